//! The JSON Schema of the configuration file, for editors.
//!
//! It is made from the declarations in `file`, so it names every key with its documentation,
//! default and bounds. Rules that concern several values are not in it; `check` knows them.
//! `docs/configuration.md` is made from it by a test.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::file::File;

/// The schema (draft 2020-12) as a JSON object.
pub fn schema() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<File>().to_value();
    schema["title"] = "imaps-proxy".into();
    schema
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::{env, fs};

    use super::*;

    const REFERENCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");

    const HEAD: &str = "\
# Configuration reference

Every key of the configuration file with its default. This page is made from the declarations in
`src/config/file.rs`; `UPDATE_REFERENCE=1 cargo test reference` writes it. An example with every key is
[config/imaps-proxy.yaml](../config/imaps-proxy.yaml), and `imaps-proxy check --print` prints the
configuration in force. A name that ends in `[]` is a list. A key without a default has no value until
it is set; one that is *needed* must be set.
";

    #[test]
    fn the_reference_shows_every_key_as_it_is_declared() {
        let mut page = HEAD.to_owned();
        section("", &schema(), &mut page);
        if env::var_os("UPDATE_REFERENCE").is_some() {
            fs::write(REFERENCE, &page).unwrap();
        }
        let stands = fs::read_to_string(REFERENCE).unwrap_or_default();
        assert!(
            stands == page,
            "run it again with UPDATE_REFERENCE=1 to write docs/configuration.md"
        );
    }

    /// A section with its keys, then the sections below it.
    fn section(path: &str, schema: &Value, page: &mut String) {
        if !path.is_empty() {
            write!(page, "\n## `{path}`\n\n").unwrap();
            wrapped(schema["description"].as_str().unwrap_or_default(), "", page);
            page.push('\n');
        }
        let properties = schema["properties"].as_object().expect("a section has keys");
        let needed = |key: &str| {
            let list = schema["required"].as_array();
            list.is_some_and(|list| list.iter().any(|name| name == key))
        };
        let mut below = Vec::new();
        for (key, property) in properties {
            let inner = keys_below(property);
            let name = match inner {
                Some((_, is_list)) => format!("{key}{}", if is_list { "[]" } else { "" }),
                None => key.clone(),
            };
            if let Some((inner, _)) = inner {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                below.push((path, property, inner));
            }
            if path.is_empty() {
                continue; // each has a heading of its own
            }
            let how = match property.get("default") {
                Some(Value::String(text)) => format!(" (default `{text}`)"),
                Some(other) => format!(" (default `{other}`)"),
                None if needed(key) => " (*needed*)".to_owned(),
                None => String::new(),
            };
            let about = property["description"].as_str().unwrap_or_default();
            wrapped(&format!("- **`{name}`**{how}: {about}"), "  ", page);
        }
        for (path, property, inner) in below {
            let mut shown = inner.clone();
            shown["description"] = property["description"].clone();
            section(&path, &shown, page);
        }
    }

    /// The section that may stand behind a key, and whether a list of them does.
    fn keys_below(schema: &Value) -> Option<(&Value, bool)> {
        if schema.get("properties").is_some() {
            return Some((schema, false));
        }
        if let Some(items) = schema.get("items") {
            return keys_below(items).map(|(inner, _)| (inner, true));
        }
        schema.get("anyOf")?.as_array()?.iter().find_map(keys_below)
    }

    /// At most 100 columns.
    fn wrapped(text: &str, indent: &str, page: &mut String) {
        let mut column = 0;
        for word in text.split_whitespace() {
            let length = word.chars().count();
            if column > 0 && column + 1 + length > 100 {
                page.push('\n');
                page.push_str(indent);
                column = indent.len();
            } else if column > 0 {
                page.push(' ');
                column += 1;
            }
            page.push_str(word);
            column += length;
        }
        page.push('\n');
    }
}
