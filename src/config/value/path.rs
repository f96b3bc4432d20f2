//! Paths of files and directories.

use std::path::PathBuf;

use schemars::json_schema;
use serde_yaml::Value;

use crate::config::read::{Read, scalar, schema};
use crate::config::text::mistake::Mistakes;
use crate::config::text::yaml::Node;

/// A path; a relative one starts at the working directory.
#[derive(Clone, Debug)]
pub struct FilePath(pub PathBuf);

impl Read for FilePath {
    const EXPECTED: &'static str = "a path";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            if text.is_empty() || text.contains('\0') {
                return Err(format!("expected a path, found {}", node.found()));
            }
            Ok(Self(text.into()))
        })
    }

    fn show(&self) -> Value {
        self.0.display().to_string().into()
    }
}

schema!([] FilePath, _generator => json_schema!({ "type": "string", "minLength": 1 }));
