//! What to change, and where, when a server and the proxy do not fit together: the one place that knows it.
//!
//! In: the [`Product`] and what is known of the link. Out: [`Cure`]s, best first, each enough by itself. `doctor` prints
//! them, the log gives the first in one line, and `deploy/backends` has a page around each.
//! Every line can be copied as it stands. What it needs to know of a network (the address from which the server sees
//! the proxy) is put in, or stands in angle brackets.

use std::net::IpAddr;

use super::product::Product;
use crate::config::settings::{Identity, ProxyTlvs};

/// One way out: all steps of it are needed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cure {
    /// What it does: `trust the proxy's address`.
    pub title: String,
    pub steps: Vec<Step>,
}

/// Lines and where they go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// A file, a program or a place in a user interface.
    pub place: String,
    pub lines: Vec<String>,
}

/// What is known of the link to a server.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    pub product: Product,
    pub identity: &'a Identity,
    /// From where the server sees the proxy.
    pub proxy: Option<IpAddr>,
    /// It offers STARTTLS, and the link is not encrypted yet.
    pub offers_starttls: bool,
}

/// The proxy's own configuration, as a place.
pub const OURS: &str = "the proxy's configuration";

const DOVECOT: &str = "/etc/dovecot/dovecot.conf";
const SHELL: &str = "a shell";

impl Cure {
    pub fn new(title: impl Into<String>, steps: Vec<Step>) -> Self {
        Self { title: title.into(), steps }
    }

    /// On one line, for the log: `in FILE: a; b, then in a shell: c`.
    #[must_use]
    pub fn line(&self) -> String {
        let steps = self.steps.iter().map(|step| {
            let lines: Vec<&str> = step.lines.iter().map(|line| line.trim()).collect();
            format!("in {}: {}", step.place, lines.join("; "))
        });
        format!("{}: {}", self.title, steps.collect::<Vec<_>>().join(", then "))
    }
}

impl Step {
    pub fn new(place: impl Into<String>, lines: &[&str]) -> Self {
        Self { place: place.into(), lines: lines.iter().map(ToString::to_string).collect() }
    }
}

impl Link<'_> {
    fn address(&self) -> String {
        self.proxy.map_or_else(|| "<address of the proxy>".to_owned(), |ip| ip.to_string())
    }

    /// It refuses passwords because it takes the link for unencrypted (RFC 9051 §6.2.3).
    #[must_use]
    pub fn login_disabled(&self) -> Vec<Cure> {
        let mut cures = match self.product {
            Product::Dovecot | Product::Dovecot23 | Product::Dovecot24 => self.dovecot_secured(),
            Product::Cyrus => vec![
                Cure::new("allow passwords on the port that the proxy uses", cyrus_service("-p 2")),
                Cure::new(
                    "allow passwords on all ports without TLS",
                    vec![
                        Step::new("/etc/imapd.conf", &["allowplaintext: yes"]),
                        Step::new(SHELL, &["systemctl restart cyrus-imapd"]),
                    ],
                ),
            ],
            Product::Courier => vec![Cure::new(
                "allow passwords without TLS",
                vec![
                    Step::new("/etc/courier/imapd-ssl", &["IMAP_TLS_REQUIRED=0"]),
                    Step::new(SHELL, &["systemctl restart courier-imap"]),
                ],
            )],
            Product::Exchange => vec![Cure::new(
                "allow passwords without TLS",
                vec![Step::new(
                    "the Exchange Management Shell",
                    &[
                        "Set-ImapSettings -LoginType PlainTextLogin",
                        "Restart-Service MSExchangeIMAP4",
                        "Restart-Service MSExchangeIMAP4BE",
                    ],
                )],
            )],
            Product::Domino => vec![Cure::new(
                "allow passwords without TLS",
                vec![
                    Step::new(
                        "the Server document, Ports > Internet Ports > Mail, column IMAP (with Internet Sites: the IMAP Site document, Security)",
                        &["TCP/IP port status: Enabled", "Name & password: Yes"],
                    ),
                    Step::new("the Domino console", &["restart task imap"]),
                ],
            )],
            Product::HMailServer => vec![Cure::new(
                "allow passwords without TLS",
                vec![
                    Step::new(
                        "hMailServer Administrator, Settings > Advanced > TCP/IP ports, port 143",
                        &["Connection security: None"],
                    ),
                    Step::new(
                        format!(
                            "hMailServer Administrator, Settings > Advanced > IP Ranges, the range that holds {}",
                            self.address()
                        ),
                        &["Require SSL/TLS for authentication: off", "Priority: 30"],
                    ),
                ],
            )],
            Product::Uw => {
                let only_ours = format!("set plaintext-allowed-clients {}", self.address());
                let cure = |title: &str, line: &str| {
                    let place = "/etc/c-client.cf, of which these are the first lines";
                    Cure::new(title, vec![Step::new(place, &["I accept the risk", line])])
                };
                vec![
                    cure("allow the proxy passwords without TLS", &only_ours),
                    cure("allow passwords without TLS", "set disable-plaintext nil"),
                ]
            }
            Product::Unknown => Vec::new(),
        };
        if self.offers_starttls {
            cures.push(Cure::new(
                "encrypt the link as well",
                vec![Step::new(
                    OURS,
                    &[
                        "backend:",
                        "  tls:",
                        "    mode: starttls",
                        "    ca: <PEM file of the CA of its certificate>",
                    ],
                )],
            ));
        }
        if cures.is_empty() {
            cures.push(Cure::new(
                "allow passwords without TLS",
                vec![Step::new(
                    "the server's own settings (allow plaintext or cleartext logins; TLS not required)",
                    &[&format!("for the address {}", self.address())],
                )],
            ));
        }
        cures
    }

    /// Dovecot takes the link for secured if it trusts the address, or if the PROXY header says that there was TLS.
    fn dovecot_secured(&self) -> Vec<Cure> {
        match self.identity {
            Identity::ProxyV1 => vec![Cure::new(
                "tell it by PROXY v2 that there was TLS; v1 can't",
                vec![ours(self.tlvs())],
            )],
            Identity::ProxyV2(ProxyTlvs::Generic | ProxyTlvs::Cyrus) => vec![Cure::new(
                "tell it in the PROXY header that there was TLS",
                vec![ours(self.tlvs())],
            )],
            // It was told, and does not believe it or wants TLS of its own.
            Identity::ProxyV2(_) => vec![Cure::new(
                "let it take passwords on that port",
                vec![self.cleartext(), reload()],
            )],
            Identity::None | Identity::DovecotId | Identity::Transparent => {
                let trusted = format!("login_trusted_networks = {}", self.address());
                let mut lines = vec![trusted.as_str()];
                if self.product == Product::Dovecot24 {
                    lines.push("ssl = yes  # with ssl = required, trust alone is not enough");
                }
                vec![
                    Cure::new(
                        "trust the proxy's address",
                        vec![Step::new(DOVECOT, &lines), reload()],
                    ),
                    self.proxy_listener(),
                ]
            }
        }
    }

    fn cleartext(&self) -> Step {
        match self.product {
            Product::Dovecot24 => Step::new(DOVECOT, &["auth_allow_cleartext = yes", "ssl = yes"]),
            _ => Step::new(DOVECOT, &["disable_plaintext_auth = no", "ssl = yes"]),
        }
    }

    /// A port of its own on which Dovecot hears from the proxy who the client is and that there was TLS.
    fn proxy_listener(&self) -> Cure {
        let trusted = format!("haproxy_trusted_networks = {}", self.address());
        let lines = [
            trusted.as_str(),
            "service imap-login {",
            "  inet_listener imap_proxy {",
            "    port = 10143",
            "    haproxy = yes",
            "  }",
            "}",
        ];
        let mut ours = ours(self.tlvs());
        ours.lines
            .extend(["  servers:", "    - address: <the server>:10143"].map(ToString::to_string));
        Cure::new(
            "say who the client is in a PROXY header, on a port of its own",
            vec![Step::new(DOVECOT, &lines), reload(), ours],
        )
    }

    fn tlvs(&self) -> &'static str {
        match self.product {
            Product::Dovecot24 => "dovecot-2.4",
            Product::Dovecot | Product::Dovecot23 => "dovecot-2.3",
            Product::Cyrus => "cyrus",
            _ => "generic",
        }
    }

    /// It says nothing until it has read a PROXY header, and we send none.
    #[must_use]
    pub fn expects_header(&self) -> Vec<Cure> {
        vec![Cure::new("send the header that it expects", vec![ours(self.tlvs())])]
    }

    /// We send a PROXY header, and it takes that for a command.
    #[must_use]
    pub fn expects_no_header(&self) -> Vec<Cure> {
        let identity = if self.product.is_dovecot() { "dovecot-id" } else { "none" };
        let line = format!("  identity: {identity}");
        let none = Cure::new("send no header", vec![Step::new(OURS, &["backend:", &line])]);
        match self.product {
            product if product.is_dovecot() => vec![
                self.proxy_listener(),
                Cure::new(
                    "say it by ID instead of a header",
                    vec![none.steps[0].clone(), self.trust_id(), reload()],
                ),
            ],
            Product::Cyrus => vec![
                none,
                Cure::new("let it read the header (Cyrus 3.12 or newer)", cyrus_service("-H -p 2")),
            ],
            _ => vec![none],
        }
    }

    /// It closes at once, with a header and without: not from this address.
    #[must_use]
    pub fn header_not_trusted(&self) -> Vec<Cure> {
        let trusted = format!("haproxy_trusted_networks = {}", self.address());
        vec![Cure::new(
            "if it is Dovecot, let it believe headers from the proxy",
            vec![Step::new(DOVECOT, &[&trusted]), reload()],
        )]
    }

    fn trust_id(&self) -> Step {
        Step::new(DOVECOT, &[&format!("login_trusted_networks = {}", self.address())])
    }

    /// It reads our ID and does not believe it.
    #[must_use]
    pub fn id_not_trusted(&self) -> Vec<Cure> {
        vec![Cure::new("trust the proxy's address", vec![self.trust_id(), reload()])]
    }

    /// It is no server that takes the client's address from an ID.
    #[must_use]
    pub fn id_not_understood(&self) -> Vec<Cure> {
        vec![Cure::new("send no ID", vec![Step::new(OURS, &["backend:", "  identity: none"])])]
    }

    /// It sees the proxy's address for everybody.
    #[must_use]
    pub fn sees_only_the_proxy(&self) -> Vec<Cure> {
        let mut by_id = ours_with("dovecot-id");
        by_id.place = OURS.to_owned();
        match self.product {
            product if product.is_dovecot() => vec![
                Cure::new("say by ID who the client is", vec![self.trust_id(), reload(), by_id]),
                self.proxy_listener(),
            ],
            // They go by the address, and then it is not only their logs that suffer.
            Product::Courier => vec![Cure::new(
                "let it take everybody's sessions from one address",
                vec![
                    Step::new("/etc/courier/imapd", &["MAXDAEMONS=1000", "MAXPERIP=1000"]),
                    Step::new(SHELL, &["systemctl restart courier-imap"]),
                ],
            )],
            Product::HMailServer => vec![Cure::new(
                "keep auto-ban from banning the proxy, and with it everybody",
                vec![Step::new(
                    "hMailServer Administrator, Settings > Advanced > Auto-ban",
                    &["Enabled: off"],
                )],
            )],
            _ => Vec::new(),
        }
    }
}

fn ours(tlvs: &str) -> Step {
    let mut step = ours_with("proxy-v2");
    step.lines.push(format!("  proxy_tlvs: {tlvs}"));
    step
}

fn ours_with(identity: &str) -> Step {
    Step::new(OURS, &["backend:", &format!("  identity: {identity}")])
}

fn reload() -> Step {
    Step::new(SHELL, &["doveadm reload"])
}

/// `-p 2` tells imapd that somebody else has encrypted already.
fn cyrus_service(options: &str) -> Vec<Step> {
    let service = format!("  imapproxy  cmd=\"imapd {options}\" listen=\"10143\" prefork=0");
    vec![
        Step::new("/etc/cyrus.conf", &["SERVICES {", &service, "}"]),
        Step::new(SHELL, &["systemctl restart cyrus-imapd"]),
        Step::new(OURS, &["backend:", "  servers:", "    - address: <the server>:10143"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use strum::VariantArray as _;

    fn link(product: Product, identity: &Identity) -> Link<'_> {
        let proxy = Some("10.0.0.5".parse().unwrap());
        Link { product, identity, proxy, offers_starttls: false }
    }

    #[test]
    fn every_product_has_a_cure_for_login_disabled_that_can_be_copied() {
        for &product in Product::VARIANTS {
            for starttls in [false, true] {
                let link = Link { offers_starttls: starttls, ..link(product, &Identity::None) };
                let cures = link.login_disabled();
                assert!(!cures.is_empty(), "{product:?}");
                for step in cures.iter().flat_map(|cure| &cure.steps) {
                    assert!(!step.lines.is_empty() && !step.place.is_empty(), "{product:?}");
                    assert!(step.lines.iter().all(|line| !line.contains('\n')), "{step:?}");
                }
            }
        }
    }

    #[test]
    fn what_cures_dovecot_depends_on_version_and_identity() {
        let first =
            |product, identity: &Identity| link(product, identity).login_disabled()[0].line();
        for (product, identity, expected) in [
            (Product::Dovecot23, Identity::None, "login_trusted_networks = 10.0.0.5"),
            (Product::Dovecot24, Identity::DovecotId, "ssl = yes"),
            (Product::Dovecot23, Identity::ProxyV1, "proxy_tlvs: dovecot-2.3"),
            (Product::Dovecot24, Identity::ProxyV2(ProxyTlvs::Generic), "proxy_tlvs: dovecot-2.4"),
            (
                Product::Dovecot23,
                Identity::ProxyV2(ProxyTlvs::Dovecot23),
                "disable_plaintext_auth = no",
            ),
        ] {
            let line = first(product, &identity);
            assert!(line.contains(expected), "{product:?} {identity:?}: {line}");
        }
    }

    #[test]
    fn an_address_that_is_not_known_stands_in_brackets() {
        let link = Link { proxy: None, ..link(Product::Dovecot23, &Identity::None) };
        let line = link.login_disabled()[0].line();
        assert!(line.contains("login_trusted_networks = <address of the proxy>"), "{line}");
    }

    /// The lines for our own configuration are ones that it takes.
    #[test]
    fn our_lines_are_keys_of_ours() {
        let schema = crate::config::schema().to_string();
        for &product in Product::VARIANTS {
            let identity = Identity::None;
            let link = Link { offers_starttls: true, ..link(product, &identity) };
            let all = [
                link.login_disabled(),
                link.expects_header(),
                link.expects_no_header(),
                link.sees_only_the_proxy(),
                link.id_not_understood(),
            ];
            let steps = all.iter().flatten().flat_map(|cure| &cure.steps);
            for line in steps.filter(|step| step.place == OURS).flat_map(|step| &step.lines) {
                let (key, value) = line.split_once(':').unwrap();
                let key = key.trim().trim_start_matches("- ");
                assert!(schema.contains(&format!("\"{key}\"")), "{line}");
                let value = value.trim();
                let word = !value.is_empty() && !value.contains(['<', ':']);
                assert!(!word || schema.contains(&format!("\"{value}\"")), "{line}");
            }
        }
    }

    /// What is told to an operator here stands in the pages as well, word for word.
    #[test]
    fn pages_say_the_same_lines() {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        for (product, page) in [
            (Product::Dovecot23, include_str!("../../deploy/backends/dovecot-2.3.md")),
            (Product::Dovecot24, include_str!("../../deploy/backends/dovecot-2.4.md")),
            (Product::Cyrus, include_str!("../../deploy/backends/cyrus.md")),
            (Product::Courier, include_str!("../../deploy/backends/courier.md")),
            (Product::Exchange, include_str!("../../deploy/backends/exchange.md")),
            (Product::Domino, include_str!("../../deploy/backends/domino.md")),
            (Product::HMailServer, include_str!("../../deploy/backends/hmailserver.md")),
            (Product::Uw, include_str!("../../deploy/backends/uw-imap.md")),
        ] {
            let page = words(page);
            let link = link(product, &Identity::None);
            let cures = [link.login_disabled(), link.sees_only_the_proxy()];
            let steps = cures.iter().flatten().flat_map(|cure| &cure.steps);
            let lines = steps.flat_map(|step| &step.lines);
            let lines = lines.map(|line| line.split("  #").next().unwrap_or(line));
            let missing: Vec<&str> =
                lines.filter(|line| !line.contains('<') && !page.contains(&words(line))).collect();
            assert!(missing.is_empty(), "{product:?}: {missing:#?}");
        }
    }
}
