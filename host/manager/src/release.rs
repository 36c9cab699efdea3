//! Which keys a node gets: exactly those that the policy in force grants it. The decision is pure.

use std::collections::BTreeSet;

use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::Role;
use cloister_policy::agreement::Module;
use cloister_policy::{Admission, Permit, Policy, Scalar};
use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::refused::Refused;
use crate::sealing::{Purpose, SealedBox, SealingError, SealingKey, SealingPublicKey};
use crate::secret::{SecretId, SecretInfo, SecretKind, SecretValue};
use crate::secrets::{Epoch, Secret, Secrets, info};

/// Most secrets that one request may name.
pub const MAX_WANTED: usize = 64;
/// How far a clock may be set back without ending permits, in seconds.
const SET_BACK_S: u64 = 300;

/// One secret that a node asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub id: SecretId,
    /// SHA-256 of the sealed file at hand; modules and data have one.
    pub ciphertext: Option<Digest>,
}

/// A node's request for keys, on a session of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseRequest {
    /// Its number on this connection: higher than the last one's.
    pub sequence: u64,
    /// The key of the node's TD that the answer is sealed to.
    pub recipient: SealingPublicKey,
    /// What is asked for; all of it is granted, or nothing.
    pub wanted: Vec<Wanted>,
}

/// Granted secrets, sealed to the node's TD; bound to node, connection and request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedRelease {
    /// The request's number.
    pub sequence: u64,
    /// The secrets.
    pub sealed: SealedBox,
}

/// A secret that was released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Released {
    /// Its name.
    pub id: SecretId,
    /// What it is for.
    pub kind: SecretKind,
    /// Its epoch. A vault's key comes in all epochs that there are, since older files are sealed under older ones.
    pub epoch: u32,
    /// SHA-256 that the opened content must have, to be compared before it is used.
    pub plaintext: Option<Digest>,
    /// The secret.
    pub value: SecretValue,
}

/// Opens what the manager released.
///
/// # Errors
/// [`SealingError::NotOpened`]: sealed to another key, or for another node, connection or request.
pub fn open_release(
    key: &SealingKey,
    connection: &[u8; 32],
    node: &str,
    release: &SealedRelease,
) -> Result<Vec<Released>, SealingError> {
    let context = context(connection, node, release.sequence);
    let plain = key.open(Purpose::Release, &context, &release.sealed)?;
    serde_json::from_slice(&plain).map_err(|_| SealingError::NotOpened)
}

fn context(connection: &[u8; 32], node: &str, sequence: u64) -> Vec<u8> {
    let layout = Layout::new("").raw(connection).lp(node.as_bytes());
    layout.raw(&sequence.to_be_bytes()).into_bytes()
}

/// What a decision goes by.
pub(crate) struct Book<'a> {
    pub(crate) policy: &'a Policy,
    pub(crate) secrets: &'a Secrets,
}

/// What a permit says, or an admission: made by the policy out of verified evidence alone.
#[derive(Clone, Copy)]
pub(crate) struct Leave<'a> {
    federation: &'a str,
    participant: &'a str,
    node: &'a str,
    role: Role,
    pub(crate) policy_digest: Digest,
    pub(crate) expiry_unix_s: u64,
    pub(crate) connection: &'a [u8; 32],
}

impl<'a> From<&'a Permit> for Leave<'a> {
    fn from(permit: &'a Permit) -> Self {
        Self {
            federation: permit.federation(),
            participant: permit.participant(),
            node: permit.node(),
            role: permit.role(),
            policy_digest: permit.policy_digest(),
            expiry_unix_s: permit.expiry_unix_s(),
            connection: permit.connection(),
        }
    }
}

impl<'a> From<&'a Admission> for Leave<'a> {
    fn from(admission: &'a Admission) -> Self {
        Self {
            federation: admission.federation(),
            participant: admission.participant(),
            node: admission.node(),
            role: admission.role(),
            policy_digest: admission.policy_digest(),
            expiry_unix_s: admission.expiry_unix_s(),
            connection: admission.connection(),
        }
    }
}

/// Who asks, where the policy in force knows it so. Made by [`asker`] alone.
pub(crate) struct Asker<'a> {
    pub(crate) leave: Leave<'a>,
    /// The latest end that leave may have at this time.
    pub(crate) latest_unix_s: u64,
}

impl<'a> Asker<'a> {
    pub(crate) fn node(&self) -> &'a str {
        self.leave.node
    }
}

/// Checks leave against the policy in force, by the clock that it was made by.
pub(crate) fn asker<'a>(policy: Option<&Policy>, leave: Leave<'a>, now_unix_s: u64) -> Result<Asker<'a>, Refused> {
    let policy = policy.ok_or(Refused::NoPolicy)?;
    let (seen, active) = (leave.policy_digest, policy.digest());
    if seen != active {
        return Err(Refused::OldPolicy { seen, active });
    }
    // Leave that ends later than the policy lets it was made by a clock that has been set back since.
    let latest_unix_s = now_unix_s.saturating_add(policy.attestation.permit_max_s + SET_BACK_S);
    if now_unix_s >= leave.expiry_unix_s || leave.expiry_unix_s > latest_unix_s {
        let node = leave.node.to_owned();
        return Err(Refused::PermitEnded { node });
    }
    let known = policy.node(leave.node);
    let same = |node: &&cloister_policy::agreement::Node| {
        node.participant == leave.participant && node.role == leave.role && policy.name == leave.federation
    };
    known.filter(same).ok_or_else(|| Refused::NotInPolicy {
        node: leave.node.to_owned(),
        role: leave.role,
        participant: leave.participant.to_owned(),
    })?;
    Ok(Asker { leave, latest_unix_s })
}

impl<'a> Book<'a> {
    /// What the policy grants the asking node, if it has the sealed files.
    pub(crate) fn granted(&self, asker: &Asker<'_>) -> Vec<SecretInfo> {
        let all = self.secrets.all().filter_map(|(id, secret)| info(id, secret));
        let grants = |told: &SecretInfo| {
            let (id, ciphertext) = (told.id.clone(), told.ciphertext);
            self.decide(asker, &Wanted { id, ciphertext }).is_ok()
        };
        all.filter(grants).collect()
    }

    /// The credential that its participant left for the asking node.
    pub(crate) fn credential(&self, asker: &Asker<'_>) -> Result<(SecretId, &'a Secret, &'a [Epoch]), Refused> {
        let node = asker.node();
        let own = |id: &SecretId, secret: &Secret| {
            id.owner == asker.leave.participant
                && matches!(&secret.kind, SecretKind::Credential { node: at } if at == node)
        };
        let id = self
            .secrets
            .all()
            .find(|(id, secret)| own(id, secret))
            .map(|(id, _)| id.clone());
        let id = id.ok_or_else(|| Refused::NoCredential {
            node: node.to_owned(),
            participant: asker.leave.participant.to_owned(),
        })?;
        let wanted = Wanted { id, ciphertext: None };
        let (secret, epochs) = self.decide(asker, &wanted)?;
        Ok((wanted.id, secret, epochs))
    }

    /// The epochs of a secret that the policy grants the asking node.
    pub(crate) fn decide(&self, asker: &Asker<'_>, wanted: &Wanted) -> Result<(&'a Secret, &'a [Epoch]), Refused> {
        let Wanted { id, ciphertext } = wanted;
        let node = asker.node();
        let secret = self.secrets.get(id).ok_or_else(|| Refused::NoSecret(id.clone()))?;
        let no = |wanted| {
            let (id, node) = (id.clone(), node.to_owned());
            Err(Refused::NotGranted { id, node, wanted })
        };
        let owns = |name: &str| self.policy.node(name).is_some_and(|node| node.participant == id.owner);
        let all = secret.epochs.as_slice();
        let current = all.len().checked_sub(1).and_then(|last| all.get(last..)).unwrap_or(all);
        match &secret.kind {
            SecretKind::Module { module } => {
                let runs = self.policy.modules_for(node).into_iter();
                let Some(module) = runs.into_iter().find(|known| known.name == *module) else {
                    return no("a node that runs the module");
                };
                self.consented(id, module)?;
                same_file(id, *ciphertext, all)?;
                match current.first().and_then(|epoch| epoch.plaintext) {
                    Some(seen) if seen != module.sha256 => Err(Refused::OtherContent {
                        id: id.clone(),
                        seen,
                        wanted: module.sha256,
                    }),
                    _ => Ok((secret, current)),
                }
            }
            SecretKind::Data { node: at, dataset } => {
                let has = self
                    .policy
                    .datasets_for(node)
                    .iter()
                    .any(|known| known.name() == dataset);
                if at != node || !has || !owns(at) {
                    return no("the node that has the dataset, if it is the owner's");
                }
                same_file(id, *ciphertext, all)?;
                Ok((secret, current))
            }
            SecretKind::Vault { node: at } | SecretKind::Credential { node: at } => {
                if at != node || !owns(at) {
                    return no("the node that it is for, if it is the owner's");
                }
                let vault = matches!(secret.kind, SecretKind::Vault { .. });
                Ok((secret, if vault { all } else { current }))
            }
            SecretKind::Value => {
                let setting = id.to_setting();
                let names = |module: &&Module| module.settings.values().any(|value| is_text(value, &setting));
                if !owns(node) && !self.policy.modules_for(node).iter().any(names) {
                    return no("a node of the owner's, or one that runs a module whose settings name it");
                }
                Ok((secret, current))
            }
        }
    }

    /// A sealed module that reads or writes tensors (a transform does), on any node, needs the consent of each owner of data there.
    fn consented(&self, id: &SecretId, module: &Module) -> Result<(), Refused> {
        let access = module.effective_access();
        if !access.may_read() && !access.may_write() {
            return Ok(());
        }
        let runs = |node: &str| {
            self.policy
                .modules_for(node)
                .iter()
                .any(|known| known.name == module.name)
        };
        let with_it = self.policy.datasets.iter().filter(|dataset| runs(&dataset.node));
        let owners = with_it.filter_map(|dataset| Some(self.policy.node(&dataset.node)?.participant.as_str()));
        let owners: BTreeSet<&str> = owners.collect();
        // Who sealed the module knows what it does.
        let asked = owners.into_iter().filter(|owner| *owner != id.owner);
        let missing = asked.filter(|owner| !self.secrets.consents(owner, module.sha256, access));
        let missing: Vec<String> = missing.map(str::to_owned).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Refused::NoConsent {
            module: module.name.clone(),
            access: access.as_str(),
            missing,
        })
    }
}

fn is_text(value: &Scalar, wanted: &str) -> bool {
    matches!(value, Scalar::Text(text) if text == wanted)
}

/// Whether the sealed file at hand is the one of the current epoch.
fn same_file(id: &SecretId, seen: Option<Digest>, epochs: &[Epoch]) -> Result<(), Refused> {
    let Some((current, wanted)) = epochs.last().and_then(|last| Some((last, last.ciphertext?))) else {
        return Err(Refused::NoSecret(id.clone()));
    };
    if seen == Some(wanted) {
        return Ok(());
    }
    let older = epochs.iter().find(|epoch| seen.is_some() && epoch.ciphertext == seen);
    Err(match older {
        Some(older) => Refused::OldEpoch {
            id: id.clone(),
            seen: older.epoch,
            current: current.epoch,
            wanted,
        },
        None => Refused::OtherCiphertext {
            id: id.clone(),
            seen,
            wanted,
        },
    })
}

/// Seals what was granted to the asking TD.
pub(crate) fn seal(
    asker: &Asker<'_>,
    request: &ReleaseRequest,
    granted: &[(&SecretId, &Secret, &[Epoch])],
) -> Result<SealedRelease, Refused> {
    let released = granted.iter().flat_map(|(id, secret, epochs)| {
        epochs.iter().map(|epoch| Released {
            id: (*id).clone(),
            kind: secret.kind.clone(),
            epoch: epoch.epoch,
            plaintext: epoch.plaintext,
            value: epoch.value.clone(),
        })
    });
    let released: Vec<Released> = released.collect();
    // Values as base64, and what stands around them: a buffer that grew would leave copies behind.
    let room = released.iter().map(|one| one.value.expose().len() / 3 * 4 + 1024).sum();
    let mut plain = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *plain, &released).map_err(|_| Refused::NotSealed)?;
    let context = context(asker.leave.connection, asker.node(), request.sequence);
    let sealed = request.recipient.seal(Purpose::Release, &context, &plain);
    Ok(SealedRelease {
        sequence: request.sequence,
        sealed: sealed.map_err(|_| Refused::NotSealed)?,
    })
}
