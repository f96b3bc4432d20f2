//! Finds the sections of a PEM text (RFC 7468), also where files were put together by hand.
//!
//! In: bytes. Out: [`Section`]s in order, each with its line and its content, or with a [`Fault`].
//! A section may begin on the line on which another one ends, which is what `cat` makes of files
//! without a last newline. Blanks around a line and old labels (`X509 CERTIFICATE`) are taken too.
//! What announces a section of a kind that we read, and is none, is a section with a fault: nothing
//! is skipped in silence.
//! Limits: those of the text. Invariant: nothing of a section's content is part of a [`Fault`].
//! Not here: files (`certificate`), and base64, which rustls-pki-types decodes.

use std::fmt;
use std::ops::Range;

use memchr::memmem;
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// What a section holds, as far as its label says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    Certificate,
    /// OpenSSL's: a certificate, and behind it what it is trusted for.
    TrustedCertificate,
    PrivateKey,
    EncryptedKey,
    RevocationList,
    /// What nothing here reads.
    Other,
}

/// Every label that is read, its kind, and the label under which rustls-pki-types knows it.
const LABELS: [(&[u8], Kind, &str); 9] = [
    (b"CERTIFICATE", Kind::Certificate, "CERTIFICATE"),
    (b"X509 CERTIFICATE", Kind::Certificate, "CERTIFICATE"),
    (b"X.509 CERTIFICATE", Kind::Certificate, "CERTIFICATE"),
    (b"TRUSTED CERTIFICATE", Kind::TrustedCertificate, "CERTIFICATE"),
    (b"PRIVATE KEY", Kind::PrivateKey, "PRIVATE KEY"),
    (b"RSA PRIVATE KEY", Kind::PrivateKey, "RSA PRIVATE KEY"),
    (b"EC PRIVATE KEY", Kind::PrivateKey, "EC PRIVATE KEY"),
    (b"ENCRYPTED PRIVATE KEY", Kind::EncryptedKey, "PRIVATE KEY"),
    (b"X509 CRL", Kind::RevocationList, "X509 CRL"),
];

/// One section of a text, readable or not.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    pub kind: Kind,
    /// As it is written.
    pub label: &'a [u8],
    /// Where it begins, from 1.
    pub line: usize,
    body: Result<&'a [u8], Fault>,
}

/// Why a section can't be read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    NoEnd,
    NoBegin,
    /// It ends under another label.
    OtherEnd,
    /// Not five of them on either side of BEGIN or END.
    Dashes,
    /// `\n` as two characters, as JSON has it.
    Escaped,
    NotBase64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEnd => "a section has no -----END …----- line",
            Self::NoBegin => "a section ends that has no -----BEGIN …----- line",
            Self::OtherEnd => "a section ends under another label than it begins with",
            Self::Dashes => {
                "a -----BEGIN …----- or -----END …----- line is malformed: five dashes on either side"
            }
            Self::Escaped => "a section has \\n in place of line ends",
            Self::NotBase64 => "a section is not base64",
        })
    }
}

/// Every section of `text`, in order.
pub fn sections(text: &[u8]) -> Vec<Section<'_>> {
    let mut found = Vec::new();
    let mut open: Option<Mark<'_>> = None;
    for mark in (Marks { text, at: 0, line: 1 }) {
        match (mark.begins, open.take()) {
            (true, before) => {
                found.extend(before.map(|begin| begin.broken(Fault::NoEnd)));
                open = Some(mark);
            }
            (false, Some(begin)) => found.push(begin.until(&mark, text)),
            (false, None) if mark.kind() == Kind::Other => {} // a text about something else
            (false, None) => found.push(mark.broken(Fault::NoBegin)),
        }
    }
    found.extend(open.map(|begin| begin.broken(Fault::NoEnd)));
    found
}

impl Section<'_> {
    /// The content. A copy of it that is made on the way is wiped.
    ///
    /// # Errors
    /// What is wrong with the section.
    pub fn decode<T: PemObject>(&self) -> Result<T, Fault> {
        let body = self.body?;
        let known = LABELS.iter().find(|(label, ..)| *label == self.label);
        let label = known.map_or("", |(.., canonical)| canonical);
        let size = body.len() + 2 * label.len() + 40;
        let mut plain = Zeroizing::new(Vec::with_capacity(size));
        plain.extend_from_slice(b"-----BEGIN ");
        plain.extend_from_slice(label.as_bytes());
        plain.extend_from_slice(b"-----\n");
        // Headers (RFC 1421 §4.6) have a colon, which base64 has not.
        for line in body.split(|&byte| byte == b'\n').filter(|line| !line.contains(&b':')) {
            plain.extend_from_slice(line);
            plain.push(b'\n');
        }
        plain.extend_from_slice(b"-----END ");
        plain.extend_from_slice(label.as_bytes());
        plain.extend_from_slice(b"-----\n");
        T::from_pem_slice(&plain).map_err(|_| match memmem::find(body, b"\\n") {
            Some(_) => Fault::Escaped,
            None => Fault::NotBase64,
        })
    }
}

/// A `-----BEGIN LABEL-----`, or an END, or what was meant to be one.
struct Mark<'a> {
    begins: bool,
    label: &'a [u8],
    line: usize,
    range: Range<usize>,
    /// Five dashes on either side.
    whole: bool,
}

impl<'a> Mark<'a> {
    fn kind(&self) -> Kind {
        let known = LABELS.iter().find(|(label, ..)| *label == self.label);
        known.map_or(Kind::Other, |(_, kind, _)| *kind)
    }

    fn broken(&self, fault: Fault) -> Section<'a> {
        let fault = if self.whole { fault } else { Fault::Dashes };
        Section { kind: self.kind(), label: self.label, line: self.line, body: Err(fault) }
    }

    /// The section that begins here and ends with `end`.
    fn until(&self, end: &Self, text: &'a [u8]) -> Section<'a> {
        if !(self.whole && end.whole) {
            return self.broken(Fault::Dashes);
        }
        if self.label != end.label {
            return self.broken(Fault::OtherEnd);
        }
        let body = &text[self.range.end..end.range.start];
        // The old way to encrypt keeps the label of a plain key (RFC 1421 §4.6.1.1).
        let kind = match self.kind() {
            Kind::PrivateKey if memmem::find(body, b"Proc-Type: 4,ENCRYPTED").is_some() => {
                Kind::EncryptedKey
            }
            kind => kind,
        };
        Section { kind, label: self.label, line: self.line, body: Ok(body) }
    }
}

/// The marks of a text. What lacks dashes is one only with a label that we read.
struct Marks<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
}

impl<'a> Iterator for Marks<'a> {
    type Item = Mark<'a>;

    fn next(&mut self) -> Option<Mark<'a>> {
        while self.at < self.text.len() {
            let start = self.at;
            match self.text[start] {
                b'-' => {
                    let dashes = run(&self.text[start..]);
                    if let Some(mark) = self.mark(start, dashes) {
                        self.at = mark.range.end;
                        return Some(mark);
                    }
                    self.at += dashes;
                }
                byte => {
                    let ends_line = match byte {
                        b'\n' => true,
                        b'\r' => self.text.get(start + 1) != Some(&b'\n'),
                        _ => false,
                    };
                    self.line += usize::from(ends_line);
                    self.at += 1;
                }
            }
        }
        None
    }
}

impl<'a> Marks<'a> {
    /// The mark whose `dashes` begin at `start`.
    fn mark(&self, start: usize, dashes: usize) -> Option<Mark<'a>> {
        let word = &self.text[start + dashes..];
        let (begins, rest) = match word.strip_prefix(b"BEGIN ") {
            Some(rest) => (true, rest),
            None => (false, word.strip_prefix(b"END ")?),
        };
        let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let rest_at = self.text.len() - rest.len();
        let rest = &rest[..end];
        let (length, behind) = match memmem::find(rest, b"-----") {
            Some(length) => (length, 5),
            None => {
                let length = memchr::memchr(b'-', rest).unwrap_or(rest.len());
                (length, run(&rest[length..]))
            }
        };
        let mark = Mark {
            begins,
            label: rest[..length].trim_ascii(),
            line: self.line,
            range: start..rest_at + length + behind,
            whole: dashes >= 5 && behind == 5,
        };
        (mark.whole || mark.kind() != Kind::Other).then_some(mark)
    }
}

/// How many dashes `text` begins with.
fn run(text: &[u8]) -> usize {
    text.iter().take_while(|&&byte| byte == b'-').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls_pki_types::CertificateDer;

    /// Kind, line, and the content or the fault of each section.
    fn read(text: &str) -> Vec<(Kind, usize, Result<Vec<u8>, Fault>)> {
        let content = |section: &Section<'_>| match section.kind {
            Kind::Other => section.body.map(<[u8]>::to_vec),
            _ => section.decode::<CertificateDer<'_>>().map(|der| der.to_vec()),
        };
        let read = |section: &Section<'_>| (section.kind, section.line, content(section));
        sections(text.as_bytes()).iter().map(read).collect()
    }

    const ONE: &str = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";

    #[test]
    fn sections_are_read_wherever_they_begin() {
        let one = |line| (Kind::Certificate, line, Ok(vec![1, 2, 3]));
        let glued = ONE.trim_end().to_owned() + ONE;
        let table: [(String, Vec<_>); 12] = [
            (String::new(), vec![]),
            ("no PEM\n---- at -- all -----\n-----END of the story-----\n".to_owned(), vec![]),
            (ONE.to_owned(), vec![one(1)]),
            (ONE.trim_end().to_owned(), vec![one(1)]),
            (format!("{ONE}{ONE}"), vec![one(1), one(4)]),
            (glued.clone(), vec![one(1), one(3)]),
            (glued.replace('\n', "\r\n"), vec![one(1), one(3)]),
            (glued.replace('\n', "\r"), vec![one(1), one(3)]),
            (glued.replace('\n', ""), vec![one(1), one(1)]),
            (ONE.replace('\n', " \n\t  "), vec![one(1)]),
            (format!("\u{feff}subject=CN=x\n\n  {ONE}"), vec![one(3)]),
            (ONE.replace("CERTIFICATE", "X509 CERTIFICATE"), vec![one(1)]),
        ];
        for (text, expected) in table {
            assert_eq!(read(&text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_section_is_named_with_its_line() {
        use Fault as F;
        let certificate = |line, fault| (Kind::Certificate, line, Err(fault));
        let good = (Kind::Certificate, 4, Ok(vec![1, 2, 3]));
        let table = [
            ("-----BEGIN CERTIFICATE-----\nAQID\n", certificate(1, F::NoEnd)),
            ("-----BEGIN CERTIFICATE-----\nAQID\n\n", certificate(1, F::NoEnd)),
            ("AQID\n-----END CERTIFICATE-----\n\n", certificate(2, F::NoBegin)),
            (
                "-BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n",
                certificate(1, F::Dashes),
            ),
            (
                "-----BEGIN CERTIFICATE---\nAQID\n-----END CERTIFICATE-----\n",
                certificate(1, F::Dashes),
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE\n",
                certificate(1, F::Dashes),
            ),
            (
                "-----BEGIN CERTIFICATE-----\nAQID\n-----END X509 CRL-----\n",
                certificate(1, F::OtherEnd),
            ),
            (
                "-----BEGIN CERTIFICATE-----\nA!\n-----END CERTIFICATE-----\n",
                certificate(1, F::NotBase64),
            ),
            (
                "-----BEGIN CERTIFICATE-----\\nAQID\\n-----END CERTIFICATE-----\n\n\n",
                certificate(1, F::Escaped),
            ),
        ];
        for (text, expected) in table {
            let found = read(&(text.to_owned() + ONE));
            let line = 1 + text.matches('\n').count();
            assert_eq!(found, [expected, (good.0, line, good.2.clone())], "{text:?}");
        }
        // Nine dashes where there have to be ten: it is not known which of the two lacks one.
        let shared = ONE.trim_end().to_owned() + &ONE[1..];
        let found = read(&shared);
        assert_eq!(found[1..], [certificate(3, F::Dashes)], "{shared}");
        let other = read("-----BEGIN DH PARAMETERS-----\nAQID\n-----END DH PARAMETERS-----\n");
        assert_eq!((other.len(), other[0].0), (1, Kind::Other));
    }

    #[test]
    fn headers_are_no_content_and_tell_of_a_passphrase() {
        let key = |header: &str| {
            format!(
                "-----BEGIN RSA PRIVATE KEY-----\n{header}AQID\n-----END RSA PRIVATE KEY-----\n"
            )
        };
        let kind = |header: &str| sections(key(header).as_bytes())[0].kind;
        assert_eq!(kind(""), Kind::PrivateKey);
        let encrypted = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n";
        assert_eq!(kind(encrypted), Kind::EncryptedKey);
        let told = ONE.replace("AQID", "Subject: x\n\nAQID");
        assert_eq!(read(&told), [(Kind::Certificate, 1, Ok(vec![1, 2, 3]))]);
    }

    #[test]
    fn no_cut_of_a_text_is_a_panic() {
        let text =
            format!("x{0}-----BEGIN X509 CRL-----\r\n{0}--END{0}-BEGIN -{0}", ONE.trim_end());
        for start in 0..text.len() {
            for end in start..text.len() {
                sections(&text.as_bytes()[start..end]);
            }
        }
    }
}
