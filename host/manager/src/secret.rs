//! Secrets that participants put here: keys of sealed modules and data, vault keys, credentials, values; in epochs, so that
//! they can be rotated.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::identity::is_name;
use cloister_policy::{ModuleRole, Policy, TensorAccess};
use cloister_tensor::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::changes::Changes;
use crate::refused::Refused;

/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;
/// Most secrets of one participant.
pub const MAX_SECRETS_OF_PARTICIPANT: usize = 512;
/// Epochs of a secret that are kept; the oldest makes room.
pub const MAX_EPOCHS: usize = 16;
/// Most consents of one participant.
pub(crate) const MAX_CONSENTS_OF_PARTICIPANT: usize = 256;
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

/// One epoch of a secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Epoch {
    pub(crate) epoch: u32,
    pub(crate) put_unix_s: u64,
    pub(crate) ciphertext: Option<Digest>,
    pub(crate) plaintext: Option<Digest>,
    pub(crate) value: SecretValue,
}

/// A secret with its epochs, the newest last; there is at least one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Secret {
    pub(crate) kind: SecretKind,
    pub(crate) epochs: Vec<Epoch>,
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

/// All secrets and consents.
#[derive(Debug, Default)]
pub(crate) struct Secrets {
    secrets: BTreeMap<SecretId, Secret>,
    consents: BTreeMap<(String, Digest), TensorAccess>,
}

impl Secrets {
    pub(crate) const PREFIX: &str = "secret/";
    pub(crate) const CONSENT_PREFIX: &str = "consent/";

    pub(crate) fn read(&mut self, name: &str, content: &[u8]) -> Result<(), String> {
        let id = name.parse().map_err(|error: NoSecretId| error.to_string())?;
        let secret: Secret = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        if secret.epochs.is_empty() {
            return Err("it has no epoch".to_owned());
        }
        self.secrets.insert(id, secret);
        Ok(())
    }

    pub(crate) fn read_consent(&mut self, name: &str, content: &[u8]) -> Result<(), String> {
        let (participant, module) = name.split_once('/').ok_or("it names no module")?;
        let module = module.parse().map_err(|_| "it names no module")?;
        let text: String = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        let access = TensorAccess::ALL.into_iter().find(|access| access.as_str() == text);
        let access = access.ok_or("it names no access")?;
        self.consents.insert((participant.to_owned(), module), access);
        Ok(())
    }

    pub(crate) fn get(&self, id: &SecretId) -> Option<&Secret> {
        self.secrets.get(id)
    }

    /// What a participant may see: its own.
    pub(crate) fn of(&self, owner: &str) -> impl Iterator<Item = SecretInfo> {
        let own = self.secrets.iter().filter(move |(id, _)| id.owner == owner);
        own.filter_map(|(id, secret)| info(id, secret))
    }

    /// Puts a new secret, or the next epoch of one that is there.
    pub(crate) fn put(
        &mut self,
        policy: &Policy,
        owner: &str,
        new: NewSecret,
        now_unix_s: u64,
        changes: &mut Changes,
    ) -> Result<SecretInfo, Refused> {
        let NewSecret {
            name,
            kind,
            value,
            ciphertext,
            plaintext,
        } = new;
        if !is_name(&name) {
            let seen = name.chars().take(64).collect();
            return Err(Refused::BadName { seen });
        }
        let (bytes, limit) = (value.0.len(), MAX_VALUE_BYTES);
        if bytes == 0 || bytes > limit {
            return Err(Refused::BadSize { bytes, limit });
        }
        may_put(policy, owner, &kind)?;
        let sealed = matches!(kind, SecretKind::Module { .. } | SecretKind::Data { .. });
        let missing = |what| Refused::DigestMissing {
            kind: if sealed { "sealed file" } else { "secret" },
            what,
        };
        if sealed && ciphertext.is_none() {
            return Err(missing("sealed file"));
        }
        if matches!(kind, SecretKind::Module { .. }) && plaintext.is_none() {
            return Err(missing("module in it"));
        }
        let id = SecretId {
            owner: owner.to_owned(),
            name,
        };
        let known = self.secrets.get(&id);
        if known.is_some_and(|known| known.kind != kind) {
            return Err(Refused::OtherKind(id));
        }
        if known.is_none() && self.of(owner).count() >= MAX_SECRETS_OF_PARTICIPANT {
            let (what, limit) = ("secrets of this participant", MAX_SECRETS_OF_PARTICIPANT);
            return Err(Refused::Full { what, limit });
        }
        let secret = self.secrets.entry(id.clone()).or_insert(Secret {
            kind,
            epochs: Vec::new(),
        });
        let epoch = secret.epochs.last().map_or(0, |last| last.epoch) + 1;
        secret.epochs.push(Epoch {
            epoch,
            put_unix_s: now_unix_s,
            ciphertext,
            plaintext,
            value,
        });
        if secret.epochs.len() > MAX_EPOCHS {
            secret.epochs.remove(0);
        }
        changes.put(format!("{}{id}", Self::PREFIX), secret);
        info(&id, secret).ok_or(Refused::NoSecret(id))
    }

    /// Removes a secret with all its epochs.
    pub(crate) fn remove(&mut self, id: &SecretId, changes: &mut Changes) -> Result<(), Refused> {
        if self.secrets.remove(id).is_none() {
            return Err(Refused::NoSecret(id.clone()));
        }
        changes.remove(format!("{}{id}", Self::PREFIX));
        Ok(())
    }

    /// An owner of data lets a sealed module have that access to tensors, or takes that back.
    pub(crate) fn consent(
        &mut self,
        participant: &str,
        module: Digest,
        access: Option<TensorAccess>,
        changes: &mut Changes,
    ) -> Result<(), Refused> {
        let name = format!("{}{participant}/{module}", Self::CONSENT_PREFIX);
        let key = (participant.to_owned(), module);
        let Some(access) = access else {
            if self.consents.remove(&key).is_some() {
                changes.remove(name);
            }
            return Ok(());
        };
        let own = self.consents.keys().filter(|(who, _)| who == participant).count();
        if own >= MAX_CONSENTS_OF_PARTICIPANT && !self.consents.contains_key(&key) {
            let (what, limit) = ("consents of this participant", MAX_CONSENTS_OF_PARTICIPANT);
            return Err(Refused::Full { what, limit });
        }
        self.consents.insert(key, access);
        changes.put(name, &access.as_str());
        Ok(())
    }

    /// Whether the participant lets that module have at least this access.
    pub(crate) fn consents(&self, participant: &str, module: Digest, wanted: TensorAccess) -> bool {
        self.consents
            .get(&(participant.to_owned(), module))
            .is_some_and(|given| (given.may_read() || !wanted.may_read()) && (given.may_write() || !wanted.may_write()))
    }
}

fn info(id: &SecretId, secret: &Secret) -> Option<SecretInfo> {
    let last = secret.epochs.last()?;
    Some(SecretInfo {
        id: id.clone(),
        kind: secret.kind.clone(),
        epoch: last.epoch,
        ciphertext: last.ciphertext,
        plaintext: last.plaintext,
        put_unix_s: last.put_unix_s,
        bytes: last.value.0.len(),
    })
}

/// Whether the participant may give a secret for that: whatever hangs on a node is its own participant's to give.
fn may_put(policy: &Policy, owner: &str, kind: &SecretKind) -> Result<(), Refused> {
    let no = |what: String, wanted| {
        let participant = owner.to_owned();
        Err(Refused::NotYours {
            what,
            participant,
            wanted,
        })
    };
    let own_node = |name: &str| policy.node(name).is_some_and(|node| node.participant == owner);
    match kind {
        SecretKind::Module { module } => match policy.modules.iter().find(|known| known.name == *module) {
            None => no(format!("the module {module:?}"), "a module of the policy in force"),
            Some(known) if known.role == ModuleRole::Aggregator => Err(Refused::SealedAggregator(module.clone())),
            Some(_) => Ok(()),
        },
        SecretKind::Data { node, dataset } => {
            let there = policy.datasets_for(node).iter().any(|known| known.name() == dataset);
            if there && own_node(node) {
                Ok(())
            } else {
                let what = format!("the dataset {dataset:?} of the node {node:?}");
                no(what, "a dataset on a node of its own, in the policy in force")
            }
        }
        SecretKind::Vault { node } | SecretKind::Credential { node } if !own_node(node) => no(
            format!("the node {node:?}"),
            "a node of its own, in the policy in force",
        ),
        SecretKind::Vault { .. } | SecretKind::Credential { .. } | SecretKind::Value => Ok(()),
    }
}
