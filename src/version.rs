//! What this program was built from: for `--version` and the metric `build_info`.

/// The version of imaps-proxy, such as `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The version of rustls, as locked when this was built.
pub const RUSTLS: &str = env!("RUSTLS_VERSION");

/// The name of the crate behind rustls that does the cryptography.
pub const PROVIDER_NAME: &str = "aws-lc-rs";

/// The version of that crate, as locked when this was built.
pub const PROVIDER_VERSION: &str = env!("AWS_LC_RS_VERSION");

/// Name and version of the provider, as in the label `provider`: `aws-lc-rs 1.2.3`.
pub const PROVIDER: &str = concat!("aws-lc-rs ", env!("AWS_LC_RS_VERSION"));

/// What `--version` prints behind the name of the program.
pub const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\nrustls ",
    env!("RUSTLS_VERSION"),
    "\naws-lc-rs ",
    env!("AWS_LC_RS_VERSION")
);
