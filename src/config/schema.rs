//! The JSON Schema of the configuration file, for editors.
//!
//! It is made from the declarations in `file`, so it names every key with its documentation,
//! default and bounds. Rules that concern several values are not in it; `check` knows them.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::file::File;

/// The schema (draft 2020-12) as a JSON object.
pub fn schema() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<File>().to_value();
    schema["title"] = "imaps-proxy".into();
    relax(&mut schema);
    schema
}

/// Mends what schemars cannot know. A field that is no `Option` counts as required for schemars; a key is required only if it has no
/// value when absent, as [`super::read::or_absent`] decides. Returns whether that holds of `schema`.
fn relax(schema: &mut Value) -> bool {
    if let Some(Value::String(description)) = schema.get_mut("description") {
        *description = description.replace('\n', " "); // the source's line breaks mean nothing
    }
    let mut needed = Vec::new();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (key, property) in properties {
            if relax(property) {
                needed.push(key.clone());
            } else if let Some(kind) = property.get_mut("type")
                && (kind == "object" || kind == "array")
            {
                *kind = serde_json::json!([kind, "null"]); // a key with nothing below it
            }
        }
    }
    if let Some(items) = schema.get_mut("items") {
        relax(items);
    }
    let listed = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    needed.retain(|key| listed.iter().any(|name| name == key));
    if let Some(object) = schema.as_object_mut() {
        object.remove("required");
        if !needed.is_empty() {
            object.insert("required".into(), needed.into());
        }
    }
    let is = |name: &str| schema.get("type").is_some_and(|kind| kind == name);
    let has = |name: &str| schema.get(name).is_some();
    let section_of_defaults = is("object") && !has("required") && !has("anyOf");
    let list_of_none = is("array") && !has("minItems");
    !(has("default") || section_of_defaults || list_of_none)
}
