//! Which cipher suites and groups there are, by name, and which are spoken by default.
//!
//! All that rustls has is AEAD with forward secrecy (RFC 9325 §4.2), so whatever an operator names is
//! safe; the choice is between speed, taste and rules of others. Names are those of rustls, which log
//! and metrics show too. For TLS 1.3 suites IANA's name (`TLS_AES_…`, where rustls says `TLS13_AES_…`)
//! is understood as well.
//! Not here: combinations that cannot work (`config::rules`), the provider (`tls::config`).

use rustls::crypto::{SupportedKxGroup, aws_lc_rs};
use rustls::{CipherSuite, SupportedCipherSuite};

/// Every suite under each of its names, best first.
pub fn suites() -> Vec<(&'static str, SupportedCipherSuite)> {
    let all = aws_lc_rs::ALL_CIPHER_SUITES.iter().copied();
    let mut named: Vec<_> =
        all.filter_map(|suite| Some((suite.suite().as_str()?, suite))).collect();
    for (iana, suite) in [
        ("TLS_AES_256_GCM_SHA384", aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384),
        ("TLS_AES_128_GCM_SHA256", aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256),
        ("TLS_CHACHA20_POLY1305_SHA256", aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256),
    ] {
        named.push((iana, suite));
    }
    named
}

/// The name that OpenSSL has for a suite, of those that there are.
pub fn openssl_name(suite: CipherSuite) -> Option<&'static str> {
    use CipherSuite as S;
    Some(match suite {
        S::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        S::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        S::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => return None,
    })
}

/// Every group under its name, best first.
pub fn groups() -> Vec<(&'static str, &'static dyn SupportedKxGroup)> {
    let all = aws_lc_rs::ALL_KX_GROUPS.iter().copied();
    all.filter_map(|group| Some((group.name().as_str()?, group))).collect()
}

/// AES-128 before AES-256, as RFC 8446 §9.1 has it: nobody breaks either, and phones and servers save a quarter of the work.
pub fn default_suites() -> Vec<SupportedCipherSuite> {
    use aws_lc_rs::cipher_suite::{
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    vec![
        TLS13_AES_128_GCM_SHA256,
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ]
}

/// The hybrid of X25519 and ML-KEM first, so that what is recorded today stays secret.
pub fn default_groups() -> Vec<&'static dyn SupportedKxGroup> {
    aws_lc_rs::default_provider().kx_groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_and_group_has_a_name_of_its_own() {
        let mut names: Vec<_> = suites().iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), aws_lc_rs::ALL_CIPHER_SUITES.len() + 3);
        names.extend(groups().iter().map(|(name, _)| *name));
        names.sort_unstable();
        names.dedup();
        let groups = aws_lc_rs::ALL_KX_GROUPS.len();
        assert_eq!(names.len(), aws_lc_rs::ALL_CIPHER_SUITES.len() + 3 + groups, "{names:?}");
    }

    #[test]
    fn all_suites_are_spoken_by_default() {
        let of = |suites: Vec<SupportedCipherSuite>| {
            let mut names: Vec<_> = suites.iter().map(|suite| suite.suite().as_str()).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(of(default_suites()), of(aws_lc_rs::ALL_CIPHER_SUITES.to_vec()));
    }

    #[test]
    fn openssl_has_a_name_for_every_suite() {
        for suite in aws_lc_rs::ALL_CIPHER_SUITES {
            assert!(openssl_name(suite.suite()).is_some(), "{suite:?}");
        }
    }

    #[test]
    fn the_hybrid_group_comes_first() {
        let names: Vec<_> =
            default_groups().iter().filter_map(|group| group.name().as_str()).collect();
        assert_eq!(names, ["X25519MLKEM768", "X25519", "secp256r1", "secp384r1"]);
    }
}
