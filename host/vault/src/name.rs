//! Names of files in a vault.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::VaultError;

const MAX_NAME_BYTES: usize = 255;

/// The name of a file in a vault: 1 to 255 bytes out of letters, digits and `. _ - / @`, no empty part, none that is `.` or `..`.
/// Names never become paths: on disk a file has a random name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

impl FileName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileName {
    type Err = VaultError;

    fn from_str(name: &str) -> Result<Self, VaultError> {
        let bad = |what| VaultError::BadName {
            name: name.chars().take(64).collect(),
            what,
        };
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(bad("1 to 255 bytes are wanted"));
        }
        if !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-/@".contains(&byte))
        {
            return Err(bad("letters, digits and . _ - / @ are wanted"));
        }
        if name
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..")
        {
            return Err(bad("no part between slashes may be empty, . or .."));
        }
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for FileName {
    type Error = VaultError;

    fn try_from(name: String) -> Result<Self, VaultError> {
        name.parse()
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}
