mod support;
use support::*;
#[test]
fn harness() {
    let t = std::time::Instant::now();
    let d = Dovecot::start();
    eprintln!("dovecot {:?}", t.elapsed());
    let p = Proxy::start(&d, "");
    eprintln!("proxy {:?}", t.elapsed());
    let mut c = p.connect();
    c.log_in("alice", "secret");
    eprintln!("login {:?}", t.elapsed());
    let _ = c.result("LOGOUT");
    assert_eq!(c.end(), End::Orderly);
    p.stop();
    eprintln!("stop {:?}", t.elapsed());
    drop(d);
    eprintln!("drop {:?}", t.elapsed());
}
