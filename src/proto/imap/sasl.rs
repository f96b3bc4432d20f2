//! SASL as far as a proxy has to look into it: base64 that is checked, and who wants to log in.
//!
//! Every mechanism passes line by line; nothing here knows how one works. Of the client's messages only
//! the names are read, for the log: whose password it is, and whose mail, if that is another user's. The
//! rest is a [`super::secret::Secret`] and passes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::secret::Secret;

/// The label `mechanism`: the closed list that metrics know. `Login` is the LOGIN command as well as the
/// mechanism of that name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::IntoStaticStr, strum::VariantArray)]
pub enum Mechanism {
    #[strum(serialize = "LOGIN")]
    Login,
    #[strum(serialize = "PLAIN")]
    Plain,
    #[strum(serialize = "CRAM-MD5")]
    CramMd5,
    #[strum(serialize = "DIGEST-MD5")]
    DigestMd5,
    #[strum(serialize = "SCRAM-SHA-1")]
    ScramSha1,
    #[strum(serialize = "SCRAM-SHA-256")]
    ScramSha256,
    #[strum(serialize = "XOAUTH2")]
    XOAuth2,
    #[strum(serialize = "OAUTHBEARER")]
    OAuthBearer,
    #[strum(serialize = "GSSAPI")]
    GssApi,
    #[strum(serialize = "NTLM")]
    Ntlm,
    #[strum(serialize = "EXTERNAL")]
    External,
    #[strum(serialize = "other")]
    Other,
}

impl Mechanism {
    /// `name` in upper case.
    pub fn of(name: &str) -> Self {
        use strum::VariantArray as _;
        let known = Self::VARIANTS.iter().find(|mechanism| <&str>::from(**mechanism) == name);
        known.copied().unwrap_or(Self::Other)
    }

    /// The user whom the client's message number `round` (from 0) names, if it does so in clear.
    pub fn user(self, round: usize, message: &[u8]) -> Option<Vec<u8>> {
        let user = match (self, round) {
            (Self::Login, 0) => message,
            // authorization identity NUL authentication identity NUL password (RFC 4616)
            (Self::Plain, 0) => {
                let mut parts = message.split(|&byte| byte == 0);
                let (_authorize, user, _password) = (parts.next()?, parts.next()?, parts.next()?);
                user // with a part missing, what stands here would be the password
            }
            (Self::CramMd5, 0) => &message[..message.iter().rposition(|&byte| byte == b' ')?],
            // gs2-header, then n=user,r=nonce (RFC 5802 §7)
            (Self::ScramSha1 | Self::ScramSha256, 0) => {
                let bare = message.splitn(3, |&byte| byte == b',').nth(2)?;
                let user =
                    bare.split(|&byte| byte == b',').find_map(|part| part.strip_prefix(b"n="))?;
                return Some(unescape_saslname(user));
            }
            (Self::XOAuth2, 0) => {
                message.split(|&byte| byte == 1).find_map(|part| part.strip_prefix(b"user="))?
            }
            // n,a=user, (RFC 7628 §3.1)
            (Self::OAuthBearer, 0) => {
                let header = message.split(|&byte| byte == 1).next()?;
                header.split(|&byte| byte == b',').find_map(|part| part.strip_prefix(b"a="))?
            }
            _ => return None,
        };
        (!user.is_empty()).then(|| user.to_vec())
    }

    /// The authorization identity in the client's message number `round`: whose mail it wants, if that is
    /// said in clear. A master user gives its own password and another user's name.
    pub fn authorization(self, round: usize, message: &[u8]) -> Option<Vec<u8>> {
        let user = match (self, round) {
            (Self::Plain, 0) if self.user(0, message).is_some() => {
                message.split(|&byte| byte == 0).next()?.to_vec()
            }
            (Self::ScramSha1 | Self::ScramSha256, 0) => {
                let name = message.splitn(3, |&byte| byte == b',').nth(1)?;
                unescape_saslname(name.strip_prefix(b"a=")?)
            }
            _ => return None,
        };
        (!user.is_empty()).then_some(user)
    }
}

/// What every server says before it has heard anything of the client, message by message and in base64. Empty for a
/// mechanism in which the server's first message counts, or of which that is not known. `mechanism` is in upper case.
pub fn prompts(mechanism: &str) -> &'static [&'static str] {
    match mechanism {
        // The client speaks first (RFC 4422 §5, item 2).
        "PLAIN" | "EXTERNAL" | "ANONYMOUS" | "XOAUTH2" | "OAUTHBEARER" | "GSSAPI"
        | "GSS-SPNEGO" | "NTLM" | "OTP" | "SECURID" | "SAML20" | "OPENID20" => &[""],
        scram if scram.starts_with("SCRAM-") || scram.starts_with("GS2-") => &[""],
        // `Username:` and `Password:`, which no client looks at (draft-murchison-sasl-login).
        "LOGIN" => &["VXNlcm5hbWU6", "UGFzc3dvcmQ6"],
        _ => &[],
    }
}

/// `=2C` is a comma and `=3D` an equals sign (RFC 5802 §5.1).
fn unescape_saslname(name: &[u8]) -> Vec<u8> {
    String::from_utf8_lossy(name).replace("=2C", ",").replace("=3D", "=").into_bytes()
}

/// What a line of base64 means (RFC 4648 §4), if it is one: padded, nothing behind the padding.
pub fn decode(line: &[u8]) -> Option<Secret> {
    // `decode` would leave the part that it could read behind, where a later byte is wrong.
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(line.len())]);
    let length = STANDARD.decode_slice(line, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(Secret::new(std::mem::take(&mut *bytes)))
}

/// An initial response as it stands on the command's line: `=` is the empty one (RFC 4959 §3).
pub fn decode_initial(argument: &[u8]) -> Option<Secret> {
    match argument {
        b"=" => Some(Secret::new(Vec::new())),
        b"" => None,
        _ => decode(argument),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_strictly() {
        for good in [&b""[..], b"AA==", b"AAA=", b"AAAA"] {
            assert!(decode(good).is_some(), "{good:?}");
        }
        for bad in [
            &b"A"[..],
            b"AA",
            b"AAA",
            b"AA=",
            b"=AAA",
            b"AA=BBB",
            b"AA==AA==",
            b"A\tAA",
            b"AAA!",
            b"AB==",
        ] {
            assert!(decode(bad).is_none(), "{bad:?}");
        }
        assert_eq!(decode_initial(b"=").map(|s| s.expose().len()), Some(0));
        assert!(decode_initial(b"").is_none() && decode_initial(b"=AAA").is_none());
    }

    #[test]
    fn only_what_all_servers_say_alike_is_said_in_their_place() {
        for client_first in [
            "PLAIN",
            "EXTERNAL",
            "SCRAM-SHA-1",
            "SCRAM-SHA-512",
            "GS2-KRB5",
            "XOAUTH2",
            "OAUTHBEARER",
            "GSSAPI",
            "NTLM",
        ] {
            assert_eq!(prompts(client_first), [""], "{client_first}");
        }
        for server_first in ["CRAM-MD5", "DIGEST-MD5", "KERBEROS_V4", "X-UNKNOWN", ""] {
            assert!(prompts(server_first).is_empty(), "{server_first}");
        }
        let words =
            prompts("LOGIN").iter().map(|prompt| decode(prompt.as_bytes()).expect("base64"));
        let words: Vec<Vec<u8>> = words.map(|word| word.expose().to_vec()).collect();
        assert_eq!(words, [&b"Username:"[..], b"Password:"]);
    }

    #[test]
    fn the_user_is_found_in_every_mechanism_that_names_one() {
        let user = |name: &str, message: &[u8]| {
            Mechanism::of(name).user(0, message).map(|u| String::from_utf8_lossy(&u).into_owned())
        };
        assert_eq!(user("PLAIN", b"\0bob\0pw").as_deref(), Some("bob"));
        assert_eq!(user("PLAIN", b"admin\0bob\0pw").as_deref(), Some("bob"));
        assert_eq!(user("LOGIN", b"bob").as_deref(), Some("bob"));
        assert_eq!(user("CRAM-MD5", b"bob b 0123").as_deref(), Some("bob b"));
        assert_eq!(user("SCRAM-SHA-256", b"n,,n=b=2Cb=3D,r=xyz").as_deref(), Some("b,b="));
        assert_eq!(user("XOAUTH2", b"user=bob\x01auth=Bearer t\x01\x01").as_deref(), Some("bob"));
        assert_eq!(
            user("OAUTHBEARER", b"n,a=bob,\x01auth=Bearer t\x01\x01").as_deref(),
            Some("bob")
        );
        assert_eq!(user("GSSAPI", b"whatever"), None);
        assert_eq!(user("PLAIN", b"no nul"), None);
        assert_eq!(
            user("PLAIN", b"bob\0password"),
            None,
            "the password would be taken for the user"
        );
        assert_eq!(Mechanism::of("X-UNKNOWN"), Mechanism::Other);
    }

    #[test]
    fn whose_mail_is_wanted_is_found_beside_whose_password_it_is() {
        for (name, message, expected) in [
            ("PLAIN", &b"alice\0master\0pw"[..], Some("alice")),
            ("PLAIN", b"\0bob\0pw", None),
            ("PLAIN", b"alice\0password", None),
            ("PLAIN", b"no nul", None),
            ("SCRAM-SHA-256", b"n,a=al=2Cice,n=master,r=xyz", Some("al,ice")),
            ("SCRAM-SHA-256", b"n,,n=master,r=xyz", None),
            ("LOGIN", b"bob", None),
        ] {
            let found = Mechanism::of(name).authorization(0, message);
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{name} {message:?}");
        }
        assert_eq!(Mechanism::Plain.authorization(1, b"a\0b\0c"), None);
    }
}
