//! The index: which files a vault holds, at which version. It is sealed like any file, under the empty name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{FileName, VaultError};

/// Most files of a vault.
const MAX_FILES: usize = 65_536;
/// No index is larger than this.
pub(crate) const MAX_INDEX_BYTES: u64 = 64 * 1024 * 1024;
const FORMAT: u32 = 1;

/// One file of a vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The random name on disk: 32 hexadecimal digits.
    pub(crate) blob: String,
    /// The commitment in the blob's header, 64 hexadecimal digits. Each key seals one content, so this fixes the content: a blob
    /// that an interrupted write left, of the same name, version and size, does not pass for this one.
    pub(crate) commitment: String,
    /// Counts the rewrites of this name, from 1. A name that is removed and comes back goes on counting from the vault's version.
    pub version: u64,
    /// The epoch of the vault key it is sealed under.
    pub epoch: u64,
    /// Bytes of the content.
    pub bytes: u64,
}

/// The files of a vault at one version of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    format: u32,
    /// Counts the commits of the vault, from 1.
    pub version: u64,
    /// The files.
    pub files: BTreeMap<FileName, Entry>,
}

impl Index {
    pub(crate) fn first() -> Self {
        Self {
            format: FORMAT,
            version: 1,
            files: BTreeMap::new(),
        }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, VaultError> {
        if self.files.len() > MAX_FILES {
            return Err(VaultError::Limit {
                what: "files in one vault",
                limit: MAX_FILES as u64,
            });
        }
        // Maps of strings and numbers always have a JSON form.
        Ok(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads an authenticated index; what is wrong with it comes as text.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let index: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("the index is not of this form: {error}"))?;
        if index.format != FORMAT {
            return Err(format!(
                "the index has format {}, this program reads {FORMAT}",
                index.format
            ));
        }
        if index.files.len() > MAX_FILES {
            return Err(format!(
                "the index lists {} files, at most {MAX_FILES} are read",
                index.files.len()
            ));
        }
        let plain = |entry: &Entry| entry.blob.len() == 32 && entry.blob.bytes().all(|byte| byte.is_ascii_hexdigit());
        match index.files.values().find(|entry| !plain(entry)) {
            Some(entry) => Err(format!(
                "the index names the blob {:?}",
                entry.blob.chars().take(40).collect::<String>()
            )),
            None => Ok(index),
        }
    }
}
