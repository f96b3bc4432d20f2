//! Takes the versions of the TLS stack from `Cargo.lock`, the one place that decides them, so that
//! `--version` and the metric `build_info` cannot say anything else. See `src/version.rs`.

use std::path::Path;

fn main() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    println!("cargo:rerun-if-changed={}", lock.display());
    let text = std::fs::read_to_string(&lock)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", lock.display()));
    for (package, variable) in [("rustls", "RUSTLS_VERSION"), ("aws-lc-rs", "AWS_LC_RS_VERSION")] {
        println!("cargo:rustc-env={variable}={}", version(&text, package));
    }
}

/// The version of `package`, of which there must be exactly one in the lock file.
fn version<'t>(lock: &'t str, package: &str) -> &'t str {
    let name = format!("name = \"{package}\"");
    let mut found = lock.split("[[package]]").filter_map(|entry| {
        let mut lines = entry.lines().map(str::trim);
        lines.find(|line| *line == name)?;
        lines.find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
    });
    match (found.next(), found.next()) {
        (Some(version), None) => version,
        (None, _) => panic!("Cargo.lock has no package {package}"),
        (Some(_), Some(_)) => panic!("Cargo.lock has several versions of {package}"),
    }
}
