//! What the pages in `deploy/backends` tell people to write is what the programs take.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_yaml::Value as Yaml;
use support::{PATIENCE, binary, program, run};

/// Page, kind and text of every fenced block.
fn blocks() -> Vec<(String, String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/backends");
    let mut pages: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("it is readable").path())
        .collect();
    pages.sort();
    let mut blocks = Vec::new();
    for page in pages {
        let name = page.file_name().expect("a file").to_string_lossy().into_owned();
        let text = fs::read_to_string(&page).expect("text");
        let mut parts = text.split("\n```");
        parts.next();
        while let Some(part) = parts.next() {
            let (kind, block) = part.split_once('\n').unwrap_or((part, ""));
            blocks.push((name.clone(), kind.to_owned(), block.to_owned() + "\n"));
            parts.next().expect("every block ends");
        }
    }
    blocks
}

#[test]
fn our_own_lines_are_valid_configurations() {
    let folder = tempfile::tempdir().unwrap();
    let base = format!(
        "listen: [{{ address: '127.0.0.1:9993' }}]\n\
         tls: {{ self_signed: {{ names: [localhost], dir: '{}' }} }}\n",
        folder.path().display()
    );
    let mut pages = Vec::new();
    for (page, kind, block) in blocks() {
        if kind != "yaml" {
            continue;
        }
        let keys: Yaml = serde_yaml::from_str(&block).expect("it is YAML");
        let mut whole: Yaml = serde_yaml::from_str(&base).unwrap();
        for (key, value) in keys.as_mapping().expect("sections") {
            whole.as_mapping_mut().unwrap().insert(key.clone(), value.clone());
        }
        let file = folder.path().join("config.yaml");
        fs::write(&file, serde_yaml::to_string(&whole).unwrap()).unwrap();
        let mut command = Command::new(binary());
        command.arg("check").arg("--config").arg(&file);
        let finished = run(&mut command, b"", PATIENCE);
        // `transparent` is a right of the process, which check asks for as well.
        assert_eq!(finished.code, Some(0), "{page}:\n{block}\n{finished:?}");
        pages.push(page);
    }
    pages.dedup();
    assert!(pages.len() >= 9, "every product has its lines: {pages:?}");
}

#[test]
fn dovecot_takes_the_lines_for_its_version() {
    let version =
        run(Command::new(program("dovecot", "dovecot-imapd")).arg("--version"), b"", PATIENCE);
    let mut taken = 0;
    for (page, kind, block) in blocks() {
        let fits = match kind.as_str() {
            "dovecot" => version.stdout.starts_with("2.3."),
            "dovecot-2.4" => version.stdout.starts_with("2.4."),
            _ => false,
        };
        if !fits {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dovecot.conf");
        fs::write(&file, format!("ssl = no\n{block}")).unwrap();
        let mut command = Command::new(program("doveconf", "dovecot-core"));
        let finished = run(command.arg("-n").arg("-c").arg(&file), b"", PATIENCE).succeeded();
        for line in block.lines().filter(|line| !line.starts_with('#')) {
            let line = line.trim();
            assert!(
                finished.stdout.contains(line),
                "{page}: {line} is not in\n{}",
                finished.stdout
            );
        }
        taken += 1;
    }
    assert!(taken > 0, "no page has lines for {}", version.stdout);
}

#[test]
fn every_image_is_named_by_its_digest() {
    let is_pinned = |image: &str| {
        let digest = image.split_once("@sha256:").map(|(_, digest)| digest);
        digest.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join(file)).expect("text");
    for file in ["Dockerfile", "deploy/dovecot/Dockerfile"] {
        let text = read(file);
        let values = |key: &'static str| {
            text.lines().filter_map(move |line| line.strip_prefix(key)).map(str::trim)
        };
        let variables: Vec<_> = values("ARG ").filter_map(|arg| arg.split_once('=')).collect();
        let mut images = 0;
        for from in values("FROM ") {
            let image = from.split_whitespace().next().expect("an image");
            let variable = image.strip_prefix("${").and_then(|name| name.strip_suffix('}'));
            let default = variable.and_then(|name| variables.iter().find(|(key, _)| *key == name));
            let image = default.map_or(image, |(_, image)| image);
            assert!(image == "scratch" || is_pinned(image), "{file}: {image}");
            images += 1;
        }
        assert!(images > 0, "{file}");
    }
    let compose: Yaml = serde_yaml::from_str(&read("deploy/compose.yaml")).expect("YAML");
    for (name, service) in compose["services"].as_mapping().expect("services") {
        let image = service["image"].as_str();
        let built = service.get("build").is_some();
        assert!(built || image.is_some_and(is_pinned), "{name:?}: {image:?}");
    }
}
