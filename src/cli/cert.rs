//! `cert`: makes a certificate for those who have none, and shows what a certificate file holds.
//!
//! In: names and a folder, or a PEM file. Out: files, or text on standard output. Exit code 1 if a file
//! cannot be read or written; 2 if a name is impossible. What clients would hold against a certificate is
//! part of the text and no failure: looking at it worked.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Error;
use crate::tls::certificate;
use crate::tls::complaints::{complaints, leaf_first, of_unread};
use crate::tls::facts::{self, Facts};
use crate::tls::self_signed;

/// Make and inspect certificates
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a small certificate authority and a server certificate issued by it
    ///
    /// Writes ca.pem, fullchain.pem and privkey.pem. Mail clients accept the server once the CA is trusted on
    /// their machine. The CA can vouch for the names given here and for nothing else, and its key is not kept:
    /// nobody can make other certificates by it. For other names make another CA.
    SelfSigned(SelfSigned),
    /// Show every certificate of a PEM file, and what mail clients would complain of
    ///
    /// Fingerprints are SHA-256: of the certificate, as mail clients show it, and of its public key, as it
    /// stands in DANE records (TLSA 3 1 1).
    Show(Show),
}

#[derive(Debug, clap::Args)]
struct SelfSigned {
    /// A DNS name or IP address under which mail clients reach the server; may be repeated.
    #[arg(long = "name", value_name = "NAME", required = true)]
    names: Vec<String>,
    /// The folder for the files; made if missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace a CA, certificate and keys that are there. Everybody has to trust the new CA.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, clap::Args)]
struct Show {
    /// A PEM file: a certificate, or a chain with the server's certificate first.
    file: PathBuf,
}

/// # Errors
/// An impossible name; a file that cannot be read, or may not be written.
pub fn run(args: &Args) -> Result<(), Error> {
    let text = match &args.command {
        Command::SelfSigned(args) => self_signed(args, now())?,
        Command::Show(args) => show(&args.file, now())?,
    };
    super::print(&text)
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn self_signed(args: &SelfSigned, now: i64) -> Result<String, Error> {
    let ca = self_signed::make(&args.names, &args.out, now, args.force).map_err(
        |error| match error {
            self_signed::Error::Name { .. } | self_signed::Error::NoName => {
                Error::Usage(format!("--name: {error}"))
            }
            other => Error::failed(other),
        },
    )?;
    let chain = args.out.join("fullchain.pem");
    let parsed = certificate::read_chain(&chain)
        .and_then(|certs| certificate::facts_of(&certs, &chain))
        .map_err(Error::failed)?;
    let leaf = &parsed[0];
    let at = |file: &str| args.out.join(file).display().to_string();
    Ok(format!(
        "\
Made for {names}:

  {chain}  the certificate and the CA's, until {until}
  {key}  its private key
  {ca_pem}  the certificate authority: give this one to people. It can vouch for
      these names only, as long as the certificate, and its key was forgotten

SHA-256 fingerprint of the CA:
  {fingerprint}

To trust it, after comparing the fingerprint:
  Thunderbird     Settings > Privacy & Security > Manage Certificates > Authorities > Import {ca_pem}
  Debian, Ubuntu  cp {ca_pem} /usr/local/share/ca-certificates/imaps-proxy.crt && update-ca-certificates
  Fedora, RHEL    cp {ca_pem} /etc/pki/ca-trust/source/anchors/ && update-ca-trust
  macOS           security add-trusted-cert -r trustRoot -k ~/Library/Keychains/login.keychain-db {ca_pem}
  Windows         certutil -user -addstore Root {ca_pem}
  curl            curl --cacert {ca_pem} imaps://{first}/

To use it, in the configuration:

tls:
  certificates:
    - cert: {chain}
      key: {key}

or, so that the proxy makes the next CA in time, 60 days before this one ends:

tls:
  self_signed:
    names: [{quoted}]
    dir: {dir}
",
        names = names(leaf),
        chain = at("fullchain.pem"),
        until = facts::date(leaf.not_after),
        key = at("privkey.pem"),
        ca_pem = at("ca.pem"),
        fingerprint = ca.fingerprint,
        first = leaf.first_dns().map_or_else(|| args.names[0].clone(), str::to_owned),
        quoted = leaf.names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", "),
        dir = args.out.display(),
    ))
}

fn show(file: &Path, now: i64) -> Result<String, Error> {
    let held = certificate::contents(file).map_err(Error::failed)?;
    let is_key = |label: &String| label.ends_with("private key");
    if !held.iter().any(|label| label == "certificate") && held.iter().any(is_key) {
        let encrypted = if held.iter().any(|label| label.starts_with("encrypted")) {
            ", encrypted with a passphrase"
        } else {
            ""
        };
        return Ok(format!(
            "{}: a private key{encrypted}, no certificate. It is not shown, and nobody else should see it.\n",
            file.display()
        ));
    }
    let certificate::Certs { ders, unread } =
        certificate::read_certs(file, certificate::What::Certificate).map_err(Error::failed)?;
    let (mut chain, mut out) = (Vec::new(), String::new());
    for facts in certificate::each_facts(&ders, file) {
        match facts {
            Ok(facts) => chain.push(facts),
            Err(error) if chain.is_empty() => return Err(Error::failed(error)),
            Err(error) => writeln!(out, "{error}\n").expect("a String takes everything"),
        }
    }
    for facts in &chain {
        let title = format!("{}, certificate {} of {}", file.display(), facts.position, ders.len());
        describe(&mut out, &title, facts, now).expect("a String takes everything");
    }
    if held.iter().any(is_key) {
        out.push_str("The file also holds a private key, which is not shown.\n\n");
    }
    // A root is what people trust, not what a server shows: the complaints are about servers.
    if chain.iter().all(|facts| facts.is_ca && facts.is_self_issued()) {
        let outdated = chain.iter().filter(|facts| facts::dates(facts, now).is_some()).count();
        out.push_str(match (chain.len(), outdated) {
            (1, 1) => "This CA is outside its dates: nothing that it issued is accepted.\n",
            (1, _) => {
                "A root certificate authority: clients accept what it issued once they trust it.\n"
            }
            (_, 0) => {
                "A bundle of root certificate authorities, to be trusted and not to be served.\n"
            }
            _ => "A bundle of root certificate authorities, some of them outside their dates.\n",
        });
        return Ok(out);
    }
    let mut complaints = complaints(&leaf_first(chain), now);
    complaints.extend(of_unread(&unread));
    if complaints.is_empty() {
        out.push_str("Mail clients that trust the issuer have nothing to complain of.\n");
    } else {
        out.push_str("Mail clients would complain:\n");
        for complaint in complaints {
            writeln!(out, "  - {}", complaint.text).expect("a String takes everything");
        }
    }
    Ok(out)
}

fn describe(out: &mut String, title: &str, facts: &Facts, now: i64) -> std::fmt::Result {
    let yes = |what: bool| if what { "yes" } else { "no" };
    let days = (facts.not_after - now).div_euclid(86_400);
    let left = match facts::dates(facts, now) {
        None => format!("{days} days left"),
        Some(_) if now > facts.not_after => "EXPIRED".to_owned(),
        Some(_) => "NOT YET VALID".to_owned(),
    };
    writeln!(out, "{title}")?;
    writeln!(out, "  subject      {}", or_none(&facts.subject))?;
    writeln!(out, "  issuer       {}", or_none(&facts.issuer))?;
    writeln!(out, "  names        {}", or_none(&names(facts)))?;
    writeln!(out, "  valid from   {}", facts::date(facts.not_before))?;
    writeln!(out, "  valid until  {} ({left})", facts::date(facts.not_after))?;
    writeln!(out, "  key          {}", facts.key)?;
    writeln!(out, "  signature    {}", facts.signature)?;
    writeln!(out, "  serial       {}", facts.serial)?;
    if facts.version < 3 {
        writeln!(out, "  version      {} of X.509", facts.version)?;
    }
    writeln!(out, "  SHA-256      {}", facts.fingerprint)?;
    writeln!(out, "  of its key   {}", facts::fingerprint(&facts.spki))?;
    writeln!(out, "  is a CA      {}", yes(facts.is_ca))?;
    writeln!(out, "  self-signed  {}", yes(facts.is_self_issued()))?;
    writeln!(out)
}

fn names(facts: &Facts) -> String {
    facts.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "(none)" } else { text }
}
