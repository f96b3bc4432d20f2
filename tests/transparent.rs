//! `identity: transparent`: the server sees the client's own address as that of its peer. Shown in three network
//! namespaces: client - proxy - server, with the routes that deploy/backends/transparent.md gives.

mod support;

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use support::{Client, Dovecot, FakeBackend, PATIENCE, Proxy, TlsOptions, program, run, within};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);
const CLIENT6: &str = "fd77:1::2";
/// The proxy's addresses, on the client's side and on the server's.
const FRONT: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const FRONT6: &str = "fd77:1::1";
const BACK: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 2, 2);
const SERVER6: &str = "fd77:2::2";

fn ip(arguments: &str) {
    let mut command = Command::new(program("ip", "iproute2"));
    run(command.args(arguments.split_whitespace()), b"", PATIENCE).succeeded();
}

/// Client, proxy and server, each a network of its own; gone when dropped.
struct Networks {
    name: String,
}

impl Networks {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "network namespaces need root: run the tests as root"
        );
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ipt{}x{n}", std::process::id());
        let networks = Self { name };
        let n = &networks.name;
        for end in ["c", "p", "s"] {
            ip(&format!("netns add {n}{end}"));
            ip(&format!("-n {n}{end} link set lo up"));
        }
        for (peer, own, peers, own6, peers6) in
            [("c", FRONT, CLIENT, FRONT6, CLIENT6), ("s", BACK, SERVER, "fd77:2::1", SERVER6)]
        {
            ip(&format!("-n {n}p link add to-{peer} type veth peer name eth0 netns {n}{peer}"));
            for (end, device, four, six) in
                [("p", format!("to-{peer}"), own, own6), (peer, "eth0".into(), peers, peers6)]
            {
                ip(&format!("-n {n}{end} addr add {four}/24 dev {device}"));
                ip(&format!("-n {n}{end} addr add {six}/64 dev {device} nodad"));
                ip(&format!("-n {n}{end} link set {device} up"));
            }
            ip(&format!("-n {n}{peer} route add default via {own}"));
            ip(&format!("-n {n}{peer} -6 route add default via {own6}"));
        }
        networks
    }

    /// Has the proxy's machine take what comes back from `port`, whomever it is addressed to.
    fn bring_back(&self, port: u16) {
        let n = &self.name;
        for (family, all) in [("", "0.0.0.0/0"), ("-6", "::/0")] {
            ip(&format!("-n {n}p {family} rule add iif to-s ipproto tcp sport {port} lookup 100"));
            ip(&format!("-n {n}p {family} route add local {all} dev lo table 100"));
        }
    }

    /// Runs `what` where `end` is; what it starts is there as well.
    fn at<T: Send>(&self, end: &str, what: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}{end}", self.name)).expect("it was made");
        thread::scope(|scope| {
            let there = scope.spawn(move || {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("we are root");
                what()
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A client that comes to the proxy's `ip`.
    fn connect(&self, proxy: &Proxy<'_>, ip: IpAddr) -> Client {
        let config = TlsOptions::default().config(&proxy.certificates.roots);
        let address = SocketAddr::new(ip, proxy.imaps.port());
        self.at("c", || Client::tls(address, &config, "localhost").expect("the handshake succeeds"))
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for end in ["c", "p", "s"] {
            let mut command = Command::new(program("ip", "iproute2"));
            let _ = command.args(["netns", "del", &format!("{}{end}", self.name)]).status();
        }
    }
}

const TRANSPARENT: &str = "{ listen: [{ address: '[::]:0' }], backend: { identity: transparent } }";

#[test]
fn dovecot_sees_the_clients_own_address_and_the_proxys_for_looks() {
    let networks = Networks::new();
    let dovecot =
        networks.at("s", || Dovecot::at(SERVER, "auth_verbose = yes\nverbose_proctitle = no"));
    networks.bring_back(dovecot.address.port());
    let proxy = networks.at("p", || Proxy::start(&dovecot, TRANSPARENT));
    let mut client = networks.connect(&proxy, FRONT.into());
    client.log_in("alice", "secret");
    let mut line = String::new();
    within(PATIENCE, "Dovecot logs the login", || {
        line = dovecot.log().lines().filter(|line| line.contains("Login: ")).collect();
        !line.is_empty()
    });
    assert!(line.contains(&format!("rip={CLIENT}, lip={SERVER},")), "{line}");
    // A second login of the same client, and a real session both ways.
    assert_eq!(client.result("SELECT INBOX").split(' ').next(), Some("OK"));
    networks.connect(&proxy, FRONT.into()).log_in("bob", "secret");
    assert!(!proxy.text().contains("takes a client for the proxy"), "{}", proxy.text());
}

/// What it tells the proxy rules out nothing: the client may be told otherwise.
#[test]
fn a_server_that_trusts_the_clients_address_and_not_the_proxys_is_asked() {
    let networks = Networks::new();
    let backend = networks.at("s", || {
        FakeBackend::raw_at((SERVER, 0).into(), |session| {
            let peer = session.tcp().peer_addr().expect("it is connected").ip();
            let trusts = peer == CLIENT;
            let list = if trusts { "IMAP4rev1 AUTH=PLAIN" } else { "IMAP4rev1 LOGINDISABLED" };
            session.greet(list);
            session.serve(list, &|_, _| false);
        })
    });
    networks.bring_back(backend.address.port());
    let proxy = networks.at("p", || Proxy::start(&backend, TRANSPARENT));
    let mut client = networks.connect(&proxy, FRONT.into());
    assert!(client.expect("* OK ").contains("LOGINDISABLED"));
    assert!(client.result("LOGIN alice secret").starts_with("OK"));
    let mut client = networks.connect(&proxy, FRONT.into());
    client.expect("* OK ");
    assert!(client.result("AUTHENTICATE PLAIN AGFsaWNlAHNlY3JldA==").starts_with("OK"));
}

#[test]
fn a_server_on_the_proxys_own_machine_sees_the_client_too() {
    let networks = Networks::new();
    let (backend, callers) = noting(&networks, "p", Ipv4Addr::LOCALHOST.into());
    let (n, port) = (&networks.name, backend.address.port());
    ip(&format!("-n {n}p rule add from 127.0.0.1 ipproto tcp sport {port} iif lo lookup 143"));
    ip(&format!("-n {n}p route add local 0.0.0.0/0 dev lo table 143"));
    let proxy = networks.at("p", || Proxy::start(&backend, TRANSPARENT));
    networks.connect(&proxy, FRONT.into()).log_in("alice", "secret");
    assert_eq!(logins(&callers), [CLIENT]);
}

#[test]
fn a_mark_on_what_belongs_to_a_socket_brings_answers_back_as_well() {
    let networks = Networks::new();
    let (backend, callers) = noting(&networks, "s", SERVER.into());
    let (n, port) = (&networks.name, backend.address.port());
    let mark = format!(
        "-t mangle -A PREROUTING -i to-s -p tcp --sport {port} -m socket --transparent -j MARK --set-mark 143"
    );
    networks.at("p", || {
        let mut command = Command::new(program("iptables", "iptables"));
        run(command.args(mark.split_whitespace()), b"", PATIENCE).succeeded();
    });
    ip(&format!("-n {n}p rule add fwmark 143 lookup 143"));
    ip(&format!("-n {n}p route add local 0.0.0.0/0 dev lo table 143"));
    let proxy = networks.at("p", || Proxy::start(&backend, TRANSPARENT));
    networks.connect(&proxy, FRONT.into()).log_in("alice", "secret");
    assert_eq!(logins(&callers), [CLIENT]);
}

/// Who called, and whether to log in.
type Callers = Mutex<Vec<(IpAddr, bool)>>;

/// A server at `end` that notes who calls.
fn noting(networks: &Networks, end: &str, ip: IpAddr) -> (FakeBackend, Arc<Callers>) {
    let callers = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&callers);
    let backend = networks.at(end, || {
        FakeBackend::raw_at((ip, 0).into(), move |session| {
            let peer = session.tcp().peer_addr().expect("it is connected").ip();
            session.greet("IMAP4rev1");
            session.serve("IMAP4rev1", &|_, command| {
                if ["LOGIN", "CAPABILITY"].contains(&command.name.as_str()) {
                    noted.lock().unwrap().push((peer, command.name == "LOGIN"));
                }
                false
            });
        })
    });
    (backend, callers)
}

fn logins(callers: &Callers) -> Vec<IpAddr> {
    callers.lock().unwrap().iter().filter(|(_, login)| *login).map(|(ip, _)| *ip).collect()
}

#[test]
fn ipv6_works_alike_and_a_client_of_the_other_family_comes_from_the_proxy() {
    let networks = Networks::new();
    let (backend, callers) = noting(&networks, "s", SERVER6.parse().expect("an address"));
    networks.bring_back(backend.address.port());
    let proxy = networks.at("p", || Proxy::start(&backend, TRANSPARENT));
    networks.connect(&proxy, FRONT6.parse().expect("an address")).log_in("alice", "secret");
    assert_eq!(logins(&callers), [CLIENT6.parse::<IpAddr>().expect("an address")]);
    networks.connect(&proxy, FRONT.into()).log_in("alice", "secret");
    assert_eq!(logins(&callers)[1], "fd77:2::1".parse::<IpAddr>().expect("an address"));
    within(PATIENCE, "the log says so", || {
        let text = proxy.text();
        text.matches("backend takes a client for the proxy").count() == 1
    });
    let looks = callers.lock().unwrap().iter().filter(|(_, login)| !login).count();
    let own = |ip: &IpAddr| ip.to_string() == "fd77:2::1";
    assert_eq!(callers.lock().unwrap().iter().filter(|(ip, l)| !l && own(ip)).count(), looks);
}

#[test]
fn answers_that_do_not_come_back_fail_that_login_and_leave_the_server_up() {
    let networks = Networks::new();
    let (backend, callers) = noting(&networks, "s", SERVER.into());
    networks.bring_back(backend.address.port());
    // To this client the server has a way that is not through the proxy.
    ip(&format!("-n {}s route add blackhole {CLIENT}", networks.name));
    let proxy = networks.at("p", || {
        Proxy::starting(&backend)
            .config(TRANSPARENT)
            .config("backend: { connect_timeout: 300ms }")
            .start()
    });
    let mut client = networks.connect(&proxy, FRONT.into());
    client.expect("* OK ");
    assert!(client.result("LOGIN alice secret").starts_with("NO [UNAVAILABLE]"));
    assert_eq!(logins(&callers), [] as [IpAddr; 0]);
    let (status, body) = networks.at("p", || proxy.get("/readyz"));
    assert_eq!(status, 200, "{body}");
}

#[test]
fn without_the_right_the_start_fails_with_the_cure() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("config.yaml");
    let yaml = format!(
        "listen: [{{ address: '127.0.0.1:0' }}]\n\
         tls: {{ self_signed: {{ names: [localhost], dir: '{}' }} }}\n\
         backend: {{ identity: transparent, servers: [{{ address: '127.0.0.1:1' }}] }}\n",
        folder.path().join("tls").display()
    );
    std::fs::write(&file, yaml).expect("the folder is ours");
    let mut command = Command::new(program("setpriv", "util-linux"));
    command.args(["--bounding-set=-net_admin,-net_raw", "--inh-caps=-net_admin,-net_raw"]);
    command.arg(support::binary()).args(["run", "--config"]).arg(&file);
    let finished = run(&mut command, b"", PATIENCE);
    let said = format!("{finished:?}");
    assert!(said.contains("can't use `identity: transparent`: Operation not permitted"), "{said}");
    assert!(said.contains("AmbientCapabilities=CAP_NET_ADMIN"), "{said}");
}
