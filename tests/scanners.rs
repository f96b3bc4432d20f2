//! The weather of the Internet: connections that are opened by the hundred and never log in.

mod support;

use std::thread;
use std::time::{Duration, Instant};

use support::{Client, Dovecot, FakeBackend, Proxy, TlsOptions, wait_until};

/// So many clients that were greeted, made by eight threads.
fn crowd(proxy: &Proxy<'_>, count: usize, question: &str) -> Vec<Client> {
    let config = TlsOptions::default().config(&proxy.certificates.roots);
    let config = &config;
    thread::scope(|scope| {
        let makers: Vec<_> = (0..8)
            .map(|maker| {
                scope.spawn(move || {
                    (maker..count)
                        .step_by(8)
                        .map(|_| {
                            let mut client = Client::tls(proxy.imaps, config, "localhost").unwrap();
                            client.expect("* OK ");
                            if !question.is_empty() {
                                let answer = client.result(question);
                                assert!(answer.starts_with("OK"), "{answer}");
                            }
                            client
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        makers.into_iter().flat_map(|maker| maker.join().expect("all are greeted")).collect()
    })
}

/// How long a login and a SELECT take, the best of five.
fn login_time(proxy: &Proxy<'_>) -> Duration {
    (0..5)
        .map(|_| {
            let start = Instant::now();
            let mut client = proxy.logged_in();
            assert!(client.result("SELECT INBOX").starts_with("OK"));
            let took = start.elapsed();
            assert!(client.result("LOGOUT").starts_with("OK"));
            took
        })
        .min()
        .expect("five were measured")
}

#[test]
fn six_hundred_scanners_cost_the_backend_nothing_and_a_login_no_time() {
    // Dovecot's default: a hundred login processes, and then it drops people.
    let dovecot = Dovecot::with("default_process_limit = 100");
    let proxy = Proxy::start(&dovecot, "");
    let quiet = login_time(&proxy);
    dovecot.wait_for_connections(0);
    let silent = crowd(&proxy, 300, "");
    let asking = crowd(&proxy, 300, "CAPABILITY");
    proxy.wait_for_metric("imaps_proxy_sessions{phase=\"login\"}", 600.0);
    assert_eq!(support::Backend::connections(&dovecot), 0);
    let busy = login_time(&proxy);
    assert!(busy < quiet * 3 + Duration::from_millis(100), "{quiet:?} before, {busy:?} now");
    assert!(!dovecot.log().contains("process_limit"), "{}", dovecot.log());
    drop((silent, asking));
    wait_until("all of them are gone", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
    proxy.stop();
}

#[test]
fn backend_sees_no_scanner_at_all() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "timeouts: { login: 5s }");
    let dials = backend.dials();
    let silent = crowd(&proxy, 100, "");
    let asking = crowd(&proxy, 100, "CAPABILITY");
    // Until each of them has met its deadline.
    proxy.wait_for_ends("login_timeout", 200);
    assert_eq!(backend.dials(), dials);
    drop((silent, asking));
    proxy.stop();
}

#[test]
fn memory_and_descriptors_of_scanners_come_back() {
    let backend = FakeBackend::plain();
    let proxy = Proxy::start(&backend, "");
    let mut settled = Vec::new();
    for _ in 0..4 {
        drop(crowd(&proxy, 200, "NOOP"));
        wait_until("all of them are gone", || proxy.sum("imaps_proxy_sessions", &[]) == 0.0);
        settled.push((proxy.fd_count(), proxy.rss()));
    }
    let (first, last) = (settled[1], settled[3]);
    assert!(last.0 <= first.0 + 1, "descriptors: {settled:?}");
    assert!(last.1 < first.1 + (4 << 20), "memory: {settled:?}");
    proxy.stop();
}
