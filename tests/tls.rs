mod support;
use support::*;
#[test]
fn harness() {
    let d = Dovecot::start();
    d.deliver("alice", 1, b"Subject: x\r\n\r\nhello\r\n");
    let p = Proxy::start(&d, "");
    let mut c = p.connect();
    c.log_in("alice", "secret");
    assert_eq!(c.command("SELECT INBOX").len(), 8);
    let _ = c.result("LOGOUT");
    assert_eq!(c.end(), End::Orderly);
    assert_eq!(d.messages("alice").len(), 1);
    p.stop();
}
#[test]
fn harness_fake() {
    let d = FakeBackend::plain();
    let p = Proxy::start(&d, "");
    let mut c = p.connect();
    c.log_in("alice", "secret");
    let _ = c.result("LOGOUT");
    assert_eq!(d.logins().len(), 1);
    p.stop();
}
