//! The handshake: from a socket to a [`Client`].
//!
//! The first bytes are looked at before anybody answers (`proto::client_hello`): what is no TLS is told so, what can't
//! come to anything is refused here, the rest goes to rustls as it came.
//! Limits: `timeouts.handshake` for all of it, `MAX_HELLO` bytes before the ClientHello is whole, [`MAX_INPUT`] after.
//! Not here: which certificate and versions are offered (`crate::tls`), why a handshake fails
//! ([`super::failure`]), and bytes after the handshake ([`super::client`]).

use std::cell::Cell;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::Context;
use super::client::{Client, LAST_WORDS, linger};
use super::close::{Reason, Session};
use super::failure::{Failed, Failure, Offer, PLAINTEXT_BYE};
use super::socket::Unsent;
use crate::crypto;
use crate::metrics::Phase;
use crate::proto::client_hello::{self, Foreign, Look, Reader, Version};
use crate::proto::record::Records;
use crate::tls::client_auth::{Identity, Refusal};
use crate::tls::names::Asked;

/// What TLS adds to a record at most, with room to spare (RFC 8446 §5.2: 256 bytes).
const RECORD_OVERHEAD: usize = 256;
const MAX_RECORD: usize = 16 * 1024;
/// Bytes of messages that are not whole. rustls takes 64 KiB of message, however thinly they are spread over records, and
/// leaves these to whoever holds the buffer.
const MAX_INPUT: usize = 128 * 1024;

thread_local! {
    static TO_SOCKET: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// What was negotiated. Every session keeps one, so it is small: numbers, no names but the client's own.
pub struct Handshake {
    version: ProtocolVersion,
    cipher: Option<CipherSuite>,
    group: Option<NamedGroup>,
    pub resumed: bool,
    /// `imap` was negotiated by ALPN: nothing else ever is.
    pub alpn: bool,
    /// Escaped for the log, for it may be anything.
    pub sni: Option<Box<str>>,
    /// Whom the client's certificate names, if it has one.
    pub identity: Option<Box<Identity>>,
}

/// Every (version, cipher, group, resumed) that `config` can negotiate, as [`Handshake`] names them.
pub fn combinations(config: &ServerConfig) -> Vec<[&'static str; 4]> {
    let provider = config.crypto_provider();
    let mut all = Vec::new();
    for suite in &provider.cipher_suites {
        let Some(cipher) = suite.suite().as_str() else { continue };
        let groups = provider.kx_groups.iter().filter_map(|group| {
            let usable = suite.tls13().is_some()
                || group.usable_for_version(rustls::ProtocolVersion::TLSv1_2);
            usable.then(|| group.name().as_str()).flatten()
        });
        if suite.tls13().is_some() {
            let both = |group| ["false", "true"].map(|resumed| ["TLSv1.3", cipher, group, resumed]);
            all.extend(groups.flat_map(both));
        } else {
            all.extend(groups.map(|group| ["TLSv1.2", cipher, group, "false"]));
            // A resumed TLS 1.2 session makes no new key exchange (RFC 5246 §7.3).
            all.push(["TLSv1.2", cipher, "none", "true"]);
        }
    }
    all
}

/// Does the handshake within `timeouts.handshake`; what was negotiated goes to `session`. `greeted`: the client came by
/// STARTTLS, and its login must be done by then. What the server says last is sent together with the first
/// [`Client::send`].
pub async fn accept(
    socket: TcpStream,
    greeted: Option<Instant>,
    session: &mut Session,
    ctx: &Context,
) -> Result<Client, Reason> {
    let start = Instant::now();
    let limit = start + ctx.timeouts.handshake;
    let deadline = greeted.map_or(limit, |login| limit.min(login));
    let mut shaking = Shaking {
        socket,
        starttls: greeted.is_some(),
        silent: true,
        hello: None,
        offer: None,
        masked: false,
        proof: None,
    };
    let shaken = timeout_at(deadline, shaking.handshake(ctx)).await;
    if let Some(version) = shaking.hello {
        ctx.metrics.client_hello(version);
    }
    let failed = match shaken {
        Ok(Ok(shaken)) => {
            let Shaken { tls, input, unsent, mut handshake } = shaken;
            handshake.sni = shaking.offer.and_then(|offer| offer.sni);
            let mut client = Client::new(shaking.socket, tls, input, unsent);
            if shaking.proof.is_some() {
                session.handshake = Some(handshake);
                client.close(LAST_WORDS).await; // at once (RFC 8737 §3)
                return Err(Reason::AcmeChallenge);
            }
            ctx.metrics.handshake(&handshake, start.elapsed());
            session.handshake = Some(handshake);
            session.phase(Phase::Login);
            return Ok(client);
        }
        Ok(Err(failed)) => {
            linger(&mut shaking.socket).await;
            failed
        }
        Err(_) => {
            if shaking.silent && !shaking.starttls {
                // A mail client set to "no encryption" waits for us to speak first: tell the person.
                let _ = shaking.socket.try_write(PLAINTEXT_BYE);
            }
            Failure::Timeout.into()
        }
    };
    let timed_out = failed.failure == Failure::Timeout;
    let reason = Failed { offer: shaking.offer, ..failed }.report(session, ctx);
    // Behind STARTTLS it may be the login that took too long.
    Err(if timed_out && deadline < limit { Reason::LoginTimeout } else { reason })
}

/// A handshake under way, and what is known of the client so far.
struct Shaking {
    socket: TcpStream,
    starttls: bool,
    /// Not a byte came, but for line ends.
    silent: bool,
    hello: Option<Version>,
    offer: Option<Offer>,
    /// Its hello names a server in a way that rustls must not see.
    masked: bool,
    /// A CA asks whether a name leads here: what it is shown, and that is all.
    proof: Option<Arc<ServerConfig>>,
}

/// What rustls leaves behind.
struct Shaken {
    tls: Box<Records>,
    /// What came behind the handshake.
    input: Vec<u8>,
    unsent: Unsent,
    handshake: Handshake,
}

impl Shaking {
    async fn handshake(&mut self, ctx: &Context) -> Result<Shaken, Failed> {
        let configs = ctx.tls.config.load_full();
        let mut input = Vec::with_capacity(2048);
        self.look(&mut input, configs.usual.crypto_provider()).await?;
        let mut config = if self.masked { &configs.masked } else { &configs.usual };
        let admit = |asked: Asked<'_>| {
            let (found, admitted) = ctx.tls.names.admit(asked);
            ctx.metrics.server_name(found);
            admitted
        };
        self.proof = self.asked().and_then(|name| ctx.shared.answers.tls.of(name));
        if let Some(proof) = &self.proof {
            config = proof;
        } else if let Some(failure) = self.offer.as_ref().and_then(|offer| offer.refused(admit)) {
            return Err(self.refuse(failure).await);
        }
        let ours = |error: rustls::Error| Failed {
            detail: Some(error.to_string()),
            ..Failure::Internal.into()
        };
        let mut tls = Box::new(UnbufferedServerConnection::new(Arc::clone(config)).map_err(ours)?);
        let (mut offered, mut retried) = (0, false);
        let mut out = Out::borrow();
        loop {
            match process(&mut tls, &mut input, &mut offered, &mut out) {
                Ok(()) if !tls.is_handshaking() => break,
                Ok(()) => {}
                Err(error) => {
                    let alert = out.take();
                    let _ = self.socket.write_all(&alert).await;
                    let failure = Failure::of(&error, self.offer.as_ref());
                    return Err(Failed { detail: Some(error.to_string()), ..failure.into() });
                }
            }
            if input.len() > MAX_INPUT {
                return Err(Failure::Malformed.into());
            }
            let flight = out.take();
            self.socket.write_all(&flight).await.map_err(|_| Failure::Closed)?;
            let retries = tls.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest);
            if self.masked && retries && !retried {
                self.look_again(&mut input).await?;
                retried = true;
            } else {
                self.read(&mut input).await?;
            }
            out = Out::borrow();
        }
        // A client that is refused here has its handshake already, so no alert can tell it.
        let handshake = Handshake::of(&tls).map_err(Failure::from)?;
        let tls = Box::new(Records::new(*tls).map_err(ours)?);
        let mut unsent = Unsent::default();
        unsent.keep(out.bytes());
        Ok(Shaken { tls, input, unsent, handshake })
    }

    /// The name of which a CA asks whether it leads here, if the client may be one (RFC 8737 §3).
    fn asked(&self) -> Option<&str> {
        let offer = self.offer.as_ref().filter(|offer| offer.acme && !self.starttls)?;
        offer.sni.as_deref()
    }

    /// Reads until the ClientHello is whole, or as much of it as can be read, and answers what is no TLS.
    async fn look(&mut self, input: &mut Vec<u8>, spoken: &CryptoProvider) -> Result<(), Failed> {
        let mut reader = Reader::default();
        loop {
            self.read(input).await?;
            self.silent = input.iter().all(u8::is_ascii_whitespace);
            match reader.look(input) {
                Look::More => {}
                Look::Hello(hello) => {
                    self.hello = Some(hello.version);
                    self.offer = Some(Offer::new(&hello, spoken));
                    if let Some(at) = hello.to_mask() {
                        client_hello::mask(input, at);
                        self.masked = true;
                    }
                    return Ok(());
                }
                Look::Foreign(foreign) => {
                    if let Foreign::Ssl2(version) = foreign {
                        self.hello = Some(version);
                    }
                    let failure = Failure::from(foreign);
                    let plaintext = self.starttls && failure != Failure::NotTlsSsl2;
                    let failure = if plaintext { Failure::PlaintextAfterStarttls } else { failure };
                    return Err(self.refuse(failure).await);
                }
                Look::Unreadable => return Ok(()), // rustls says what is wrong, with its alert
                // Nor may its name go unseen because of its length.
                Look::Endless => return Err(self.refuse(Failure::Malformed).await),
            }
        }
    }

    /// Reads and masks the hello that answers a HelloRetryRequest (RFC 8446 §4.1.2), behind the record that is for middleboxes
    /// (§D.4). What else may be wrong with it is for rustls to say.
    async fn look_again(&mut self, input: &mut Vec<u8>) -> Result<(), Failed> {
        const MIDDLEBOXES: [u8; 6] = [20, 3, 3, 0, 1, 1];
        let mut reader = Reader::default();
        loop {
            self.read(input).await?;
            let hello = input.strip_prefix(&MIDDLEBOXES).unwrap_or(input);
            match reader.look(hello) {
                _ if MIDDLEBOXES.starts_with(input) => {}
                Look::More => {}
                Look::Hello(hello) => {
                    hello.to_mask().inspect(|at| client_hello::mask(input, *at));
                    return Ok(());
                }
                Look::Endless => return Err(self.refuse(Failure::Malformed).await),
                Look::Foreign(_) | Look::Unreadable => return Ok(()),
            }
        }
    }

    async fn read(&mut self, input: &mut Vec<u8>) -> Result<(), Failure> {
        match self.socket.read_buf(input).await {
            Ok(1..) => Ok(()),
            Ok(0) | Err(_) => Err(Failure::Closed),
        }
    }

    async fn refuse(&mut self, failure: Failure) -> Failed {
        let _ = self.socket.write_all(failure.answer()).await;
        failure.into()
    }
}

impl Handshake {
    fn of(tls: &UnbufferedServerConnection) -> Result<Self, Refusal> {
        let resumed = tls.handshake_kind() == Some(HandshakeKind::Resumed);
        let chain = tls.peer_certificates().unwrap_or_default();
        Ok(Self {
            version: tls.protocol_version().unwrap_or(ProtocolVersion::TLSv1_2),
            cipher: tls.negotiated_cipher_suite().map(|suite| suite.suite()),
            group: tls.negotiated_key_exchange_group().map(|group| group.name()),
            resumed,
            alpn: tls.alpn_protocol().is_some(),
            sni: None,
            identity: Identity::of(chain, resumed, SystemTime::now())?.map(Box::new),
        })
    }

    /// As in [`combinations`].
    pub fn version(&self) -> &'static str {
        match self.version {
            ProtocolVersion::TLSv1_3 => "TLSv1.3",
            _ => "TLSv1.2",
        }
    }

    pub fn cipher(&self) -> &'static str {
        self.cipher.and_then(|cipher| cipher.as_str()).unwrap_or("none")
    }

    /// As OpenSSL names it, whose names other programs know.
    pub fn openssl_cipher(&self) -> Option<&'static str> {
        self.cipher.and_then(crypto::openssl_name)
    }

    /// `none` for a resumed TLS 1.2 session.
    pub fn group(&self) -> &'static str {
        self.group.and_then(|group| group.as_str()).unwrap_or("none")
    }
}

/// Takes whole records off the front of `input` until the handshake is done or needs more; what it has to say is appended to
/// `out`, an alert before an error included.
///
/// One record at a time, so that none behind the handshake is taken: those are [`Records`]' own.
fn process(
    tls: &mut UnbufferedServerConnection,
    input: &mut Vec<u8>,
    offered: &mut usize,
    out: &mut Out,
) -> Result<(), rustls::Error> {
    let mut consumed = 0;
    let mut end = offer(input, offered);
    let mut failed = None;
    let result = loop {
        if !tls.is_handshaking() && !tls.wants_write() && failed.is_none() {
            break Ok(());
        }
        let UnbufferedStatus { discard, state, .. } =
            tls.process_tls_records(&mut input[consumed..end]);
        consumed += discard;
        match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                if encode(&mut data, out).is_err() {
                    break Err(rustls::Error::General("a record could not be encoded".into()));
                }
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                if let Some(error) = failed.take() {
                    break Err(error);
                }
            }
            // It needs more. A message may be longer than its record, so what was not taken is offered again.
            Ok(_) => match failed.take() {
                Some(error) => break Err(error),
                None if end == input.len() => break Ok(()),
                None => end = offer(input, offered),
            },
            // The first error queues an alert, which the next turn brings.
            Err(error) if failed.is_none() => failed = Some(error),
            Err(error) => break Err(failed.unwrap_or(error)),
        }
    };
    input.drain(..consumed);
    *offered = offered.saturating_sub(consumed);
    result
}

/// Offers one more record: the end of it, or of the input if it is not whole. `offered` is where the last whole one ends:
/// rustls remembers how far it has looked, and joins what it has seen of a message over the headers below.
fn offer(input: &[u8], offered: &mut usize) -> usize {
    let [_, _, _, high, low, ..] = input[*offered..] else { return input.len() };
    let end = *offered + 5 + usize::from(u16::from_be_bytes([high, low]));
    if end > input.len() {
        return input.len();
    }
    *offered = end;
    end
}

fn encode(
    data: &mut EncodeTlsData<'_, ServerConnectionData>,
    out: &mut Out,
) -> Result<(), EncodeError> {
    let mut needed = MAX_RECORD + RECORD_OVERHEAD;
    loop {
        match data.encode(out.room(needed)) {
            Ok(written) => {
                out.used += written;
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size }))
                if required_size > needed =>
            {
                needed = required_size;
            }
            Err(error) => return Err(error),
        }
    }
}

/// The thread's buffer for outgoing records, borrowed; it is always initialised, so growing it is all it costs.
struct Out {
    buffer: Vec<u8>,
    used: usize,
}

impl Out {
    fn borrow() -> Self {
        Self { buffer: TO_SOCKET.take(), used: 0 }
    }

    fn room(&mut self, needed: usize) -> &mut [u8] {
        if self.buffer.len() < self.used + needed {
            self.buffer.resize(self.used + needed, 0);
        }
        &mut self.buffer[self.used..]
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.used]
    }

    /// A copy of the bytes; the buffer goes back before anybody waits, since other sessions of the thread need it.
    fn take(self) -> Vec<u8> {
        self.bytes().to_vec()
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        TO_SOCKET.set(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use rustls::client::ClientConnection;
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

    use super::*;

    /// A client whose records carry 27 bytes, and our configuration.
    fn pair(version: &'static SupportedProtocolVersion) -> (ClientConnection, Arc<ServerConfig>) {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.max_fragment_size = Some(32);
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        server.enable_secret_extraction = true;
        let name = ServerName::try_from("localhost").unwrap();
        (ClientConnection::new(Arc::new(client), name).unwrap(), Arc::new(server))
    }

    #[test]
    fn handshake_messages_may_be_cut_into_many_records_and_reads() {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for step in [1, 3, 40, 10_000] {
                let (mut client, server) = pair(version);
                let mut server = UnbufferedServerConnection::new(server).unwrap();
                let (mut input, mut offered) = (Vec::new(), 0);
                while server.is_handshaking() || client.is_handshaking() {
                    let mut bytes = Vec::new();
                    while client.wants_write() {
                        client.write_tls(&mut bytes).unwrap();
                    }
                    for read in bytes.chunks(step) {
                        input.extend_from_slice(read);
                        let mut out = Out::borrow();
                        process(&mut server, &mut input, &mut offered, &mut out).unwrap();
                        let mut said = out.bytes();
                        while !said.is_empty() {
                            client.read_tls(&mut said).unwrap();
                            client.process_new_packets().unwrap();
                        }
                    }
                }
                assert!(input.is_empty(), "{version:?}, {step}");
                Records::new(server).unwrap();
            }
        }
    }
}
