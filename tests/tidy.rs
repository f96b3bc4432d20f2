//! What the compiler does not check about where things stand.

use std::fs;
use std::path::{Path, PathBuf};

/// Words that protocol code may not use: time and bytes are its arguments, actions its results. The methods among
/// them are also denied by clippy (`clippy.toml`); here are the modules, so that an import fails already.
const FOREIGN_TO_PROTO: &[&str] = &[
    "tokio",
    "Instant::now",
    "SystemTime",
    ".elapsed()",
    "std::net::Tcp",
    "std::net::Udp",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
    "std::fs",
    "std::thread",
    "std::env",
    "std::process",
    "async fn",
    "async move",
];

#[test]
fn protocol_code_has_no_runtime_no_clock_and_no_socket() {
    let mut found = Vec::new();
    // Unit tests stand at the end of a file or in tests.rs and below it, and may read a clock: there is no other way to
    // an `Instant`.
    let is_test = |file: &Path| {
        file.iter().any(|part| part.to_string_lossy().trim_end_matches(".rs").ends_with("tests"))
    };
    for file in files_below("src/proto").iter().filter(|file| !is_test(file)) {
        let code = lines(file).into_iter().take_while(|(_, line)| line != "mod tests {");
        found.extend(with_words(
            file,
            code.filter(|(_, line)| !line.trim_start().starts_with("//")),
            FOREIGN_TO_PROTO,
        ));
    }
    assert!(
        found.is_empty(),
        "src/proto takes bytes and `now`, and returns actions:\n{}",
        found.join("\n")
    );
}

#[test]
fn nothing_is_left_to_do_later() {
    // Pieced together, or this file would find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
    ];
    let mut found = Vec::new();
    for file in ["src", "crates", "tests", "deploy", "config"].iter().flat_map(files_below) {
        found.extend(with_words(&file, lines(&file).into_iter(), &words));
    }
    assert!(found.is_empty(), "finish it or file an issue:\n{}", found.join("\n"));
}

/// `file:line: text` of every line that holds one of the words.
fn with_words(
    file: &Path,
    lines: impl Iterator<Item = (usize, String)>,
    words: &[&str],
) -> Vec<String> {
    lines
        .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
        .map(|(number, line)| format!("{}:{number}: {}", file.display(), line.trim()))
        .collect()
}

/// The lines of a text file with their numbers; none of a file that is not text.
fn lines(file: &Path) -> Vec<(usize, String)> {
    let text = fs::read_to_string(root().join(file)).unwrap_or_default();
    text.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect()
}

/// All files below a folder of the repository, as paths from its root, in a fixed order.
fn files_below(dir: impl AsRef<Path>) -> Vec<PathBuf> {
    let dir = dir.as_ref();
    let entries =
        fs::read_dir(root().join(dir)).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| dir.join(entry.expect("a readable folder").file_name()))
        .flat_map(|path| if root().join(&path).is_dir() { files_below(path) } else { vec![path] })
        .collect();
    files.sort();
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
