//! Legacy servers other than Dovecot behind the proxy: Cyrus 3.6 and Courier-IMAP 5.0.

mod support;

use std::fs;
use std::process::Command;
use std::time::Duration;

use support::{Backend, Client, End, Legacy, PATIENCE, Proxy, program, run};

const LIMIT: Duration = Duration::from_secs(60);
/// Debian's Courier offers no mechanism at all without TLS, only LOGIN.
const COURIER_PLAIN: &str = "IMAP_CAPABILITY=\"$IMAP_CAPABILITY AUTH=PLAIN\"";

/// The words of a capability list in a greeting or an untagged line.
fn capabilities(line: &str) -> Vec<String> {
    let start = line.find("CAPABILITY ").expect("there is a list") + "CAPABILITY ".len();
    let list = line[start..].split(']').next().expect("split gives at least one");
    list.split(' ').map(str::to_owned).collect()
}

#[test]
fn cyrus_is_greeted_for() {
    let cyrus = Legacy::cyrus("");
    let proxy = Proxy::start(&cyrus, "");
    let mut client = proxy.connect();
    let greeting = client.line();
    println!("{greeting}");
    proxy.stop();
}

#[test]
fn courier_is_greeted_for() {
    let courier = Legacy::courier("");
    let proxy = Proxy::start(&courier, "");
    let mut client = proxy.connect();
    let greeting = client.line();
    println!("{greeting}");
    proxy.stop();
}
