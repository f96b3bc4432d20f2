//! What each server logs as the client's address, by identity and listener: the table in `deploy/backends/README.md`.

mod support;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use support::{Backend, Client, Dovecot, Legacy, PATIENCE, Proxy, TlsOptions, free_port, within};

/// The client, and what a balancer says that it is.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
const ANNOUNCED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

const LISTEN: &str = "listen: [{ address: '127.0.0.1:0' }, { address: '127.0.0.1:0', tls: starttls }, \
    { address: '127.0.0.1:0', proxy_protocol_from: [127.0.0.1] }]";

/// The server and the proxy don't understand each other, and every client is told so.
const DOWN: &str = "`BYE [UNAVAILABLE]`";

/// A server, as it is set up, and the TLVs that suit it.
struct Row {
    name: &'static str,
    tlvs: &'static str,
    address: SocketAddr,
    server: Box<dyn Logs>,
}

trait Logs: Backend {
    fn text(&self) -> String;
}

impl Logs for Dovecot {
    fn text(&self) -> String {
        self.log()
    }
}

impl Logs for Legacy {
    fn text(&self) -> String {
        self.log()
    }
}

fn rows() -> Vec<Row> {
    let dovecot = |name, config: &str| {
        let server = Dovecot::that_wants_tls_with(config);
        Row { name, tlvs: "dovecot-2.3", address: server.address, server: Box::new(server) }
    };
    // A port of its own, as the page says: nobody is greeted there without a header.
    let header = SocketAddr::from(([127, 0, 0, 2], free_port()));
    let config = format!(
        "haproxy_trusted_networks = 127.0.0.1\nservice imap-login {{\n inet_listener imap_proxy {{\n  \
         address = {}\n  port = {}\n  haproxy = yes\n }}\n}}\n",
        header.ip(),
        header.port()
    );
    let haproxied = dovecot("Dovecot 2.3, `haproxy = yes`", &config);
    let (cyrus, courier) = (Legacy::cyrus(""), Legacy::courier(""));
    vec![
        Row { address: header, ..haproxied },
        dovecot("Dovecot 2.3, `login_trusted_networks`", "login_trusted_networks = 127.0.0.1\n"),
        dovecot("Dovecot 2.3, neither", ""),
        Row { name: "Cyrus 3.6", tlvs: "cyrus", address: cyrus.address, server: Box::new(cyrus) },
        Row {
            name: "Courier 5.0",
            tlvs: "generic",
            address: courier.address,
            server: Box::new(courier),
        },
    ]
}

/// What a login leads to through each listener, in words.
fn outcomes(row: &Row, identity: &str) -> Vec<String> {
    let tlvs = match identity {
        "proxy-v2" => format!(", proxy_tlvs: {}", row.tlvs),
        _ => String::new(),
    };
    let config = format!(
        "{LISTEN}\nbackend: {{ servers: [{{ address: '{}' }}], identity: {identity}{tlvs} }}\n\
         timeouts: {{ backend_greeting: 5s }}",
        row.address
    );
    let backend: &dyn Backend = &*row.server;
    let proxy = Proxy::starting(backend).config(&config).not_ready().start();
    let is = |message: &str| proxy.log().iter().any(|line| line.message() == message);
    within(PATIENCE, "the proxy has looked", || is("backend is up") || is("backend is down"));
    if is("backend is down") {
        proxy.connect().expect("* BYE [UNAVAILABLE]");
        return vec![DOWN.to_owned()];
    }
    let ports: Vec<SocketAddr> = proxy
        .log()
        .iter()
        .filter(|line| line.message() == "listening" && line.field("service").contains("imap"))
        .map(|line| line.field("address").parse().expect("an address"))
        .collect();
    let tls = TlsOptions::default().config(&proxy.certificates.roots);
    let header = format!("PROXY TCP4 {ANNOUNCED} 198.51.100.1 50000 993\r\n");
    let roads: [(Ipv4Addr, &dyn Fn() -> Client); 3] = [
        (CLIENT, &|| Client::tls_from(CLIENT.into(), ports[0], &tls).expect("a handshake")),
        (CLIENT, &|| Client::starttls_from(CLIENT.into(), ports[1], &tls).expect("a handshake")),
        (ANNOUNCED, &|| {
            Client::tls_behind(header.as_bytes(), ports[2], &tls).expect("a handshake")
        }),
    ];
    roads.iter().map(|(client, connect)| outcome(row, *client, connect())).collect()
}

fn outcome(row: &Row, client: Ipv4Addr, mut session: Client) -> String {
    let before = row.server.text().len();
    let answer = session.result("LOGIN alice secret");
    if let Some(code) = answer.strip_prefix("NO [") {
        return format!("`NO [{}]`", code.split(']').next().unwrap_or_default());
    }
    assert!(answer.starts_with("OK"), "{answer}");
    let login = || {
        let log = row.server.text();
        let words = ["Login: user=<alice>", "] alice ", "LOGIN, user=alice,"];
        let lines = log.get(before..).unwrap_or_default().to_owned();
        lines.lines().find(|line| words.iter().any(|word| line.contains(word))).map(str::to_owned)
    };
    within(PATIENCE, "the server logs the login", || login().is_some());
    let line = login().expect("it was there");
    let has = |address: &str| {
        let forms = [format!("rip={address},"), format!("[{address}]"), format!(":{address}]")];
        forms.iter().any(|form| line.contains(form))
    };
    match (has(&client.to_string()), has("127.0.0.1")) {
        (true, false) => "the client".to_owned(),
        (false, true) => "the proxy".to_owned(),
        _ => panic!("neither client nor proxy: {line}"),
    }
}

const IDENTITIES: [&str; 4] = ["none", "proxy-v1", "proxy-v2", "dovecot-id"];

#[test]
fn the_table_is_what_servers_log() {
    let mut table = String::from(
        "| server | `none` | `proxy-v1` | `proxy-v2` | `dovecot-id` |\n|---|---|---|---|---|\n",
    );
    for row in rows() {
        table += &format!("| {} |", row.name);
        for identity in IDENTITIES {
            let by_listener = outcomes(&row, identity);
            let same = by_listener.iter().all(|outcome| *outcome == by_listener[0]);
            assert!(
                same,
                "{}, {identity}: implicit, starttls, behind a balancer: {by_listener:?}",
                row.name
            );
            table += &format!(" {} |", by_listener[0]);
        }
        table += "\n";
    }
    println!("{table}");
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/backends/README.md");
    let page = fs::read_to_string(page).expect("it is there");
    assert!(
        page.contains(&table),
        "deploy/backends/README.md has another table than this:\n{table}"
    );
}
