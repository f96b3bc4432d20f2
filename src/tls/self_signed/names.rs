//! The names that a certificate is to be made for, as the configuration has them.

use std::net::IpAddr;

use super::super::facts::Name;
use super::Error;

/// DNS names in lower case and IP addresses, each once, in the order given: the first one names the certificate.
///
/// # Errors
/// The first name that no certificate can carry.
pub fn parse_names(names: &[String]) -> Result<Vec<Name>, Error> {
    let mut parsed = Vec::new();
    for name in names {
        let name = parse_name(name)?;
        if !parsed.contains(&name) {
            parsed.push(name);
        }
    }
    if parsed.is_empty() { Err(Error::NoName) } else { Ok(parsed) }
}

fn parse_name(name: &str) -> Result<Name, Error> {
    let fail = |why| Err(Error::Name { name: name.to_owned(), why });
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(Name::Ip(address));
    }
    if !name.is_ascii() {
        return fail("write it in its ASCII form (xn--…)");
    }
    if name.contains(':') {
        return fail("leave out the port, and the brackets of an IPv6 address");
    }
    if name.is_empty() || name.len() > 253 {
        return fail("a DNS name has 1 to 253 characters");
    }
    let host = name.strip_prefix("*.").unwrap_or(name);
    for label in host.split('.') {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if label.is_empty() || label.len() > 63 {
            return fail("between two dots of a DNS name stand 1 to 63 characters");
        }
        if !label.bytes().all(legal) || label.starts_with('-') || label.ends_with('-') {
            return fail(
                "a DNS name has letters, digits and inner hyphens only; a * stands alone in front",
            );
        }
    }
    if host.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return fail("it looks like an IPv4 address but is none");
    }
    Ok(Name::Dns(name.to_ascii_lowercase()))
}
