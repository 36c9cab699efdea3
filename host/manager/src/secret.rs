//! Secrets that participants put here: keys of sealed modules and data, vault keys, credentials, values.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::identity::is_name;
use cloister_tensor::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;
/// What stands before a secret's name in a module's setting.
const IN_SETTINGS: &str = "secret://";

/// A secret's name: `owner/name`; in a module's settings `secret://owner/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretId {
    /// The participant that put it.
    pub owner: String,
    /// Its name among the participant's.
    pub name: String,
}

impl SecretId {
    /// How a module's setting names it.
    pub fn to_setting(&self) -> String {
        format!("{IN_SETTINGS}{self}")
    }

    /// The secret that a module's setting names, if it names one.
    pub fn from_setting(text: &str) -> Option<Self> {
        text.strip_prefix(IN_SETTINGS)?.parse().ok()
    }
}

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

/// A text that names no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wanted OWNER/NAME, both of 1 to 64 of a-z, 0-9, '-', '_', '.'")]
pub struct NoSecretId;

impl FromStr for SecretId {
    type Err = NoSecretId;

    fn from_str(text: &str) -> Result<Self, NoSecretId> {
        let (owner, name) = text.split_once('/').ok_or(NoSecretId)?;
        if !is_name(owner) || !is_name(name) {
            return Err(NoSecretId);
        }
        let (owner, name) = (owner.to_owned(), name.to_owned());
        Ok(Self { owner, name })
    }
}

impl Serialize for SecretId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SecretId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What a secret is for; names are the policy's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretKind {
    /// The key of a sealed module.
    Module {
        /// The module.
        module: String,
    },
    /// The key of a sealed dataset.
    Data {
        /// The node that has it.
        node: String,
        /// The dataset.
        dataset: String,
    },
    /// A vault's key.
    Vault {
        /// The node that has the vault.
        node: String,
    },
    /// A node's key with its credential.
    Credential {
        /// The node.
        node: String,
    },
    /// Any other: for settings and configurations, by name.
    Value,
}

impl SecretKind {
    /// The kind's name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Module { .. } => "module key",
            Self::Data { .. } => "data key",
            Self::Vault { .. } => "vault key",
            Self::Credential { .. } => "credential",
            Self::Value => "value",
        }
    }
}

/// A secret's bytes: wiped when they are no longer needed, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// A value of these bytes.
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretValue({} bytes)", self.0.len())
    }
}

impl Serialize for SecretValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for SecretValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Base64;
        impl serde::de::Visitor<'_> for Base64 {
            type Value = SecretValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64")
            }

            // A text without escapes is lent by the reader, so that no copy of it stays.
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<SecretValue, E> {
                let bytes = STANDARD.decode(text).map_err(|_| E::custom("no base64"))?;
                Ok(SecretValue(Zeroizing::new(bytes)))
            }
        }
        deserializer.deserialize_str(Base64)
    }
}

/// A secret to be put.
#[derive(Clone, Debug)]
pub struct NewSecret {
    /// Its name among the participant's.
    pub name: String,
    /// What it is for.
    pub kind: SecretKind,
    /// The secret itself.
    pub value: SecretValue,
    /// SHA-256 of the sealed file that it opens; modules and data have one.
    pub ciphertext: Option<Digest>,
    /// SHA-256 of what is in that file; modules have one.
    pub plaintext: Option<Digest>,
}

/// What may be told of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretInfo {
    /// Its name.
    pub id: SecretId,
    /// What it is for.
    pub kind: SecretKind,
    /// The current epoch, from 1.
    pub epoch: u32,
    /// The sealed file that it opens.
    pub ciphertext: Option<Digest>,
    /// What is in that.
    pub plaintext: Option<Digest>,
    /// When the epoch began, in seconds since 1970.
    pub put_unix_s: u64,
    /// Size of the value.
    pub bytes: usize,
}
