//! All secrets with their epochs, and the consents of owners of data.

use std::collections::BTreeMap;

use cloister_attestation::identity::is_name;
use cloister_policy::{ModuleRole, Policy, TensorAccess};
use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};

use crate::changes::Changes;
use crate::refused::Refused;
use crate::secret::{MAX_VALUE_BYTES, NewSecret, NoSecretId, SecretId, SecretInfo, SecretKind, SecretValue};

/// Most secrets of one participant.
pub const MAX_SECRETS_OF_PARTICIPANT: usize = 512;
/// Epochs of a secret that are kept; the oldest makes room. The newest alone is ever released, but for a vault's key.
pub const MAX_EPOCHS: usize = 16;
/// Most epochs of a vault's key. None makes room: what it sealed may still lie in the vault.
pub const MAX_VAULT_EPOCHS: usize = 64;
/// Most consents of one participant.
pub(crate) const MAX_CONSENTS_OF_PARTICIPANT: usize = 256;

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
        // The parser's words might hold some of the value.
        let secret: Secret = serde_json::from_slice(content).map_err(|_| "it is no secret of this format")?;
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

    pub(crate) fn all(&self) -> impl Iterator<Item = (&SecretId, &Secret)> {
        self.secrets.iter()
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
        let (bytes, limit) = (value.expose().len(), MAX_VALUE_BYTES);
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
        let vault = matches!(kind, SecretKind::Vault { .. });
        if vault && known.is_some_and(|known| known.epochs.len() >= MAX_VAULT_EPOCHS) {
            let limit = MAX_VAULT_EPOCHS;
            return Err(Refused::NoMoreEpochs { id, limit });
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
        if !vault && secret.epochs.len() > MAX_EPOCHS {
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

pub(crate) fn info(id: &SecretId, secret: &Secret) -> Option<SecretInfo> {
    let last = secret.epochs.last()?;
    Some(SecretInfo {
        id: id.clone(),
        kind: secret.kind.clone(),
        epoch: last.epoch,
        ciphertext: last.ciphertext,
        plaintext: last.plaintext,
        put_unix_s: last.put_unix_s,
        bytes: last.value.expose().len(),
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
