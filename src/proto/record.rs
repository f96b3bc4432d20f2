//! TLS records behind the handshake (RFC 8446 §5, RFC 5246 §6.2): plaintext in and out, records in between.
//!
//! In: a finished handshake, as rustls made it. From then on a session needs two keys, two sequence numbers and, for
//! TLS 1.3, the means to make the next keys; the rest of the connection, most of its memory, is given up. The AEAD, its
//! nonces and the key schedule stay rustls' (its interface for kernel TLS); what is here is a record's header, the order
//! of records, and the few messages that may still come: alerts, KeyUpdate (RFC 8446 §4.6.3), and the renegotiation that TLS 1.2
//! clients may ask for and never get.
//!
//! Limits: a record as long as its version allows; [`MAX_WITHOUT_DATA`] records in a row that carry no data; as many
//! records under one key as its cipher allows, then TLS 1.3 takes a new one and TLS 1.2 ends: [`Records::are_worn`] says so
//! [`MARGIN`] records before. A KeyUpdate may come in pieces, with no other record between them, and ends where its record
//! does, since the next record has another key (§5.1).
//! **Invariant:** no sequence number is used twice, and after an error or close_notify nothing more is opened.
//! Not here: the handshake, sockets, when to send (`conn`).

#[cfg(test)]
mod tests;

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, ProtocolVersion, SupportedCipherSuite,
};

/// Plaintext that one record carries at most (RFC 8446 §5.1).
const MAX_PLAIN: usize = 16 * 1024;
const HEADER: usize = 5;
/// Alerts, KeyUpdates and the like between two records with data.
const MAX_WITHOUT_DATA: u8 = 32;
/// Records that are kept back for the last KeyUpdate and the last alert under a key.
const RESERVE: u64 = 16;
/// Records between the moment at which keys count as worn and their end: 1 GiB at most, in which a response ends.
const MARGIN: u64 = 1 << 16;

const ALERT_WARNING: u8 = 1;
const ALERT_FATAL: u8 = 2;
const KEY_UPDATE: u8 = 24;
const CLIENT_HELLO: u8 = 1;

/// Why the connection can't go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the client ended TLS with alert {0:?}")]
    Alert(AlertDescription),
    /// It was told so, by this alert.
    #[error("the client breaks TLS: {0:?}")]
    Broken(AlertDescription),
    #[error("the connection's keys are used up")]
    Exhausted,
}

/// What the client's direction has come to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Opened {
    /// More may come.
    Open,
    /// The client sent close_notify (RFC 8446 §6.1).
    Closed,
}

/// One connection behind its handshake.
pub struct Records {
    encrypter: Box<dyn MessageEncrypter>,
    decrypter: Box<dyn MessageDecrypter>,
    sealed: u64,
    opened: u64,
    /// Records under one key, ours.
    limit: u64,
    suite: SupportedCipherSuite,
    /// Makes the next keys; TLS 1.3 only.
    next: Option<Box<KernelConnection<ServerConnectionData>>>,
    without_data: u8,
    message: Message,
}

/// A handshake message of the client that has not come whole.
#[derive(Default)]
struct Message {
    /// Bytes that came of its type, its length and, of a KeyUpdate, its content, which are what they have to be.
    seen: u8,
    /// The length of a ClientHello, as far as it came, then what is missing of it.
    rest: u32,
}

impl Records {
    /// Takes over from a handshake that is done and has nothing left to say.
    ///
    /// # Errors
    /// If it is not.
    pub fn new(tls: UnbufferedServerConnection) -> Result<Self, rustls::Error> {
        let (secrets, next) = tls.dangerous_into_kernel_connection()?;
        let suite = next.negotiated_cipher_suite();
        let sealed = secrets.tx.0;
        Ok(Self {
            encrypter: encrypter(suite, secrets.tx)?,
            decrypter: decrypter(suite, secrets.rx.1)?,
            sealed,
            opened: secrets.rx.0,
            limit: match suite {
                SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
                SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            },
            suite,
            next: suite.tls13().map(|_| Box::new(next)),
            without_data: 0,
            message: Message::default(),
        })
    }

    /// Takes whole records off the front of `input` and appends what they say to `plain`; what has to be answered is
    /// appended to `out`, an alert before an error included.
    ///
    /// # Errors
    /// The client broke the protocol or sent a fatal alert.
    pub fn open(
        &mut self,
        input: &mut Vec<u8>,
        plain: &mut Vec<u8>,
        out: &mut Vec<Vec<u8>>,
    ) -> Result<Opened, Error> {
        let mut taken = 0;
        let opened = loop {
            let rest = &mut input[taken..];
            let length = match self.length(rest) {
                Ok(Some(length)) if rest.len() >= HEADER + length => length,
                Ok(_) => break Ok(Opened::Open),
                Err(alert) => break Err(Error::Broken(alert)),
            };
            match self.record(&mut rest[..HEADER + length], plain, out) {
                Ok(Opened::Open) => taken += HEADER + length,
                end => {
                    taken = input.len(); // what comes behind the end is nobody's
                    break end;
                }
            }
        };
        input.drain(..taken);
        if let Err(Error::Broken(alert)) = opened {
            self.alert(ALERT_FATAL, alert, out)?;
        }
        opened
    }

    /// Of the record that begins here, without its header; `None`: too little to tell.
    fn length(&self, record: &[u8]) -> Result<Option<usize>, AlertDescription> {
        let &[content, _, _, high, low, ..] = record else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        // RFC 8446 §5.2, RFC 5246 §6.2.3.
        let expansion = if self.next.is_some() { 256 } else { 2048 };
        if self.next.is_some() && ContentType::from(content) != ContentType::ApplicationData {
            return Err(AlertDescription::UnexpectedMessage);
        }
        if length > MAX_PLAIN + expansion {
            return Err(AlertDescription::RecordOverflow);
        }
        Ok(Some(length))
    }

    fn record(
        &mut self,
        record: &mut [u8],
        plain: &mut Vec<u8>,
        out: &mut Vec<Vec<u8>>,
    ) -> Result<Opened, Error> {
        let content = ContentType::from(record[0]);
        // Whatever the header says, which is only a hint to middleboxes (RFC 8446 §5.1).
        let version = ProtocolVersion::TLSv1_2;
        let message = InboundOpaqueMessage::new(content, version, &mut record[HEADER..]);
        let message = self.decrypter.decrypt(message, self.opened).map_err(|error| {
            Error::Broken(match error {
                rustls::Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
                rustls::Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
                _ => AlertDescription::BadRecordMac,
            })
        })?;
        self.opened += 1;
        let is_handshake = message.typ == ContentType::Handshake;
        if self.message.seen > 0 && !is_handshake && self.next.is_some() {
            return Err(Error::Broken(AlertDescription::UnexpectedMessage)); // between its pieces
        }
        if message.typ == ContentType::ApplicationData && !message.payload.is_empty() {
            self.without_data = 0;
            plain.extend_from_slice(message.payload);
            return Ok(Opened::Open);
        }
        self.without_data += 1;
        if self.without_data > MAX_WITHOUT_DATA {
            return Err(Error::Broken(AlertDescription::UnexpectedMessage));
        }
        match (message.typ, message.payload) {
            (ContentType::ApplicationData, _) => Ok(Opened::Open),
            // RFC 8446 §5.4, RFC 5246 §6.2.1: these are never empty.
            (_, []) => Err(Error::Broken(AlertDescription::UnexpectedMessage)),
            (ContentType::Alert, &[level, alert]) => self.on_alert(level, alert.into()),
            (ContentType::Alert, _) => Err(Error::Broken(AlertDescription::DecodeError)),
            (ContentType::Handshake, _) if self.next.is_some() => {
                match self.key_update(message.payload).map_err(Error::Broken)? {
                    Some(requested) => self.on_key_update(requested, out),
                    None => Ok(Opened::Open),
                }
            }
            (ContentType::Handshake, _) => {
                if self.hello(message.payload).map_err(Error::Broken)? {
                    // RFC 5246 §7.2.2: it may go on without.
                    self.alert(ALERT_WARNING, AlertDescription::NoRenegotiation, out)?;
                }
                Ok(Opened::Open)
            }
            _ => Err(Error::Broken(AlertDescription::UnexpectedMessage)),
        }
    }

    /// Takes a piece of the only handshake message that TLS 1.3 allows here (RFC 8446 §4.6.3); once it is whole, whether the
    /// client wants a new key of ours as well.
    fn key_update(&mut self, piece: &[u8]) -> Result<Option<bool>, AlertDescription> {
        for (index, byte) in piece.iter().enumerate() {
            match (self.message.seen, *byte) {
                (0, KEY_UPDATE) | (1 | 2, 0) | (3, 1) => self.message.seen += 1,
                (0, _) => return Err(AlertDescription::UnexpectedMessage),
                (1..=3, _) => return Err(AlertDescription::DecodeError), // its length
                (_, 2..) => return Err(AlertDescription::IllegalParameter),
                (_, _) if index + 1 < piece.len() => {
                    return Err(AlertDescription::UnexpectedMessage); // under the old key
                }
                (_, request) => {
                    self.message.seen = 0;
                    return Ok(Some(request == 1));
                }
            }
        }
        Ok(None)
    }

    /// Takes a piece of the only handshake message that TLS 1.2 allows here; whether one has ended in it.
    fn hello(&mut self, piece: &[u8]) -> Result<bool, AlertDescription> {
        let Message { seen, rest } = &mut self.message;
        let mut ended = false;
        for byte in piece {
            match (*seen, *byte) {
                (0, CLIENT_HELLO) => *rest = 0,
                (0, _) => return Err(AlertDescription::UnexpectedMessage),
                (1..=3, byte) => *rest = (*rest << 8) | u32::from(byte),
                _ => *rest -= 1,
            }
            *seen = (*seen + 1).min(4);
            if *seen == 4 && *rest == 0 {
                *seen = 0;
                ended = true;
            }
        }
        Ok(ended)
    }

    fn on_alert(&self, level: u8, alert: AlertDescription) -> Result<Opened, Error> {
        match alert {
            AlertDescription::CloseNotify => Ok(Opened::Closed),
            // RFC 8446 §6: in TLS 1.3 every other alert is fatal, whatever its level says.
            AlertDescription::UserCanceled => Ok(Opened::Open),
            _ if level == ALERT_WARNING && self.next.is_none() => Ok(Opened::Open),
            alert => Err(Error::Alert(alert)),
        }
    }

    fn on_key_update(&mut self, requested: bool, out: &mut Vec<Vec<u8>>) -> Result<Opened, Error> {
        let next = self.next.as_mut().ok_or(Error::Exhausted)?;
        let (sequence, secrets) = next.update_rx_secret().map_err(|_| Error::Exhausted)?;
        self.decrypter = decrypter(self.suite, secrets).map_err(|_| Error::Exhausted)?;
        self.opened = sequence;
        if requested {
            self.update_key(out)?;
        }
        Ok(Opened::Open)
    }

    /// Announces a new key for our direction and takes it.
    fn update_key(&mut self, out: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        self.encrypt(ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        let next = self.next.as_mut().ok_or(Error::Exhausted)?;
        let secrets = next.update_tx_secret().map_err(|_| Error::Exhausted)?;
        self.sealed = secrets.0;
        self.encrypter = encrypter(self.suite, secrets).map_err(|_| Error::Exhausted)?;
        Ok(())
    }

    /// Whether the end of the keys is near: then nothing more should be begun. Never with TLS 1.3, which takes new ones.
    pub fn are_worn(&self) -> bool {
        self.next.is_none() && self.sealed.saturating_add(MARGIN) >= self.limit
    }

    /// `plain` as records, appended to `out`.
    ///
    /// # Errors
    /// The keys are used up, which only TLS 1.2 can't cure.
    pub fn seal(&mut self, plain: &[u8], out: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        for fragment in plain.chunks(MAX_PLAIN) {
            if self.sealed + RESERVE >= self.limit {
                if self.next.is_none() {
                    return Err(Error::Exhausted);
                }
                self.update_key(out)?;
            }
            self.encrypt(ContentType::ApplicationData, fragment, out)?;
        }
        Ok(())
    }

    /// Tells the client that nothing more will come (RFC 8446 §6.1).
    ///
    /// # Errors
    /// As [`Records::seal`].
    pub fn close_notify(&mut self, out: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        self.alert(ALERT_WARNING, AlertDescription::CloseNotify, out)
    }

    fn alert(
        &mut self,
        level: u8,
        alert: AlertDescription,
        out: &mut Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        self.encrypt(ContentType::Alert, &[level, alert.into()], out)
    }

    fn encrypt(
        &mut self,
        content: ContentType,
        payload: &[u8],
        out: &mut Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        if self.sealed >= self.limit {
            return Err(Error::Exhausted);
        }
        let message = message(content, payload);
        let record = self.encrypter.encrypt(message, self.sealed).map_err(|_| Error::Exhausted)?;
        self.sealed += 1;
        out.push(record.encode());
        Ok(())
    }
}

type KeyAndIv = (AeadKey, Iv);

fn parts(secrets: ConnectionTrafficSecrets) -> Result<KeyAndIv, rustls::Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(rustls::Error::General("a cipher whose keys can't be handed over".into())),
    }
}

fn encrypter(
    suite: SupportedCipherSuite,
    (sequence, secrets): (u64, ConnectionTrafficSecrets),
) -> Result<Box<dyn MessageEncrypter>, rustls::Error> {
    let (key, iv) = parts(secrets)?;
    let mut encrypter = match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            // The explicit part of the nonce stands behind the fixed one (RFC 5288 §3).
            let (fixed, explicit) =
                iv.as_ref().split_at(suite.aead_alg.key_block_shape().fixed_iv_len);
            suite.aead_alg.encrypter(key, fixed, explicit)
        }
    };
    if sequence > 0 {
        // AWS-LC's guard against a nonce used twice takes the first one that it sees for number 0, so it is shown
        // number 0. That record is for nobody: nothing goes out twice under one nonce.
        encrypter.encrypt(message(ContentType::ApplicationData, b""), 0)?;
    }
    Ok(encrypter)
}

fn message(content: ContentType, payload: &[u8]) -> OutboundPlainMessage<'_> {
    // The version that every record bears (RFC 8446 §5.1).
    let version = ProtocolVersion::TLSv1_2;
    OutboundPlainMessage { typ: content, version, payload: OutboundChunks::Single(payload) }
}

fn decrypter(
    suite: SupportedCipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, rustls::Error> {
    let (key, iv) = parts(secrets)?;
    Ok(match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.decrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
            suite.aead_alg.decrypter(key, &iv.as_ref()[..fixed])
        }
    })
}
