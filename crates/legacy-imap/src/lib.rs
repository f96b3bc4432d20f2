//! A small legacy IMAP server in memory: what `imaps-proxy demo` and the tests stand the proxy in front of.
//!
//! In: plaintext IMAP4rev1 (RFC 3501) on one TCP address, one user, one password. Out: a mailbox with
//! sample mail that any client can open, change and watch. It behaves as servers of its time do behind
//! a terminator: it announces STARTTLS, before and after login, and knows nothing of TLS. Beside RFC 3501: LITERAL+
//! (RFC 7888), SASL-IR (4959), ID (2971), IDLE (2177), NAMESPACE (2342), UIDPLUS (4315), UNSELECT
//! (3691), MOVE (6851), CHILDREN (3348) and the attributes of SPECIAL-USE (6154).
//!
//! Limits: [`MAX_SESSIONS`] sessions; a line of 64 KiB and a message of 25 MB ([`wire`]); 256 MiB of
//! mail, 20 000 messages, 500 mailboxes ([`mailbox`]); 60 s to log in, 30 min of silence after it
//! ([`session`]). Nothing is written to disk: mail lasts as long as the process.
//! Not here: the proxy. It depends on this crate for its command `demo`, and for nothing else.
#![forbid(unsafe_code)]

mod date;

mod parse;

mod message;

mod structure;

mod mailbox;

mod sample;

mod wire;

mod fetch;

mod search;

mod session;

mod folders;

mod selected;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use mailbox::Store;
use session::{Account, Session};
use wire::Wire;

/// Sessions at one time; one more is told `BYE`.
pub const MAX_SESSIONS: usize = 200;

/// After a failed `accept`, so that a process out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The embedded server: bound, and not yet serving.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    account: Arc<Account>,
}

impl Server {
    /// Binds `addr` (port 0 picks a free one) and fills the mailbox with the sample mail. Must be called
    /// inside a tokio runtime. Clients wait in the backlog until [`Server::serve`] runs.
    pub fn bind(addr: SocketAddr, user: &str, password: &str) -> io::Result<Self> {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        let listener = socket.listen(128)?;
        let address = listener.local_addr()?;
        let store = Store::new();
        sample::fill(&store);
        let account = Account { user: user.to_owned(), password: password.to_owned(), store };
        Ok(Self { listener, address, account: Arc::new(account) })
    }

    /// The address that clients connect to, with the real port.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled; then every session is told `BYE`, and all have ended when this
    /// returns.
    pub async fn serve(self, stop: CancellationToken) {
        let seats = Arc::new(Semaphore::new(MAX_SESSIONS));
        let sessions = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "demo server: cannot accept");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Answers are small and waited for; without this each costs a delayed ACK.
            let _ = stream.set_nodelay(true);
            let Ok(seat) = Arc::clone(&seats).try_acquire_owned() else {
                // A fresh socket's send buffer takes one line at once, or the peer is not worth waiting for.
                let _ = stream.try_write(b"* BYE Too many connections\r\n");
                continue;
            };
            let wire = Wire::new(stream, stop.clone());
            let session = Session::new(wire, Arc::clone(&self.account));
            sessions.spawn(async move {
                let ended = session.run().await;
                tracing::debug!(%peer, %ended, "demo server: session ended");
                drop(seat);
            });
        }
        sessions.close();
        sessions.wait().await;
    }
}
