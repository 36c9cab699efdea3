//! The agreement: policies proposed, signed one by one, and in force; the chain of them from the founders on, and who signed two of
//! which only one can follow.
//!
//! A policy takes effect when the signatures are there that it asks for itself and that its predecessor demands
//! ([`cloister_policy::Ballot`]). It is replaced by such a successor only, and never forgotten.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::identity::PublicKey;
use cloister_policy::{Ballot, MAX_VERSIONS, Policy, Signature, Signatures, SignedPolicy, broken_rules};
use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};

use crate::changes::Changes;
use crate::refused::Refused;
use crate::standing::{Equivocation, PolicyFile, PolicyStanding, PolicyStatus};

/// Most policies that are proposed at a time.
pub const MAX_PROPOSALS: usize = 64;
/// Most double signatures that are kept; further ones are refused all the same, and in the audit log.
const MAX_EQUIVOCATIONS: usize = 1024;

/// What a key signed after one policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vow {
    policy: Digest,
    signature: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    file: String,
    signatures: String,
    in_force_unix_s: Option<u64>,
}

/// All that was agreed and proposed.
#[derive(Debug)]
pub(crate) struct Agreement {
    federation: String,
    anchor: Digest,
    chain: Vec<Arc<PolicyFile>>,
    proposals: BTreeMap<Digest, PolicyFile>,
    vows: BTreeMap<(PublicKey, Option<Digest>), Vow>,
    taken_back: BTreeMap<(PublicKey, Digest), ()>,
    equivocations: Vec<Equivocation>,
}

impl Agreement {
    pub(crate) const POLICY: &str = "policy/";
    pub(crate) const VOW: &str = "vow/";
    pub(crate) const TAKEN_BACK: &str = "taken-back/";
    pub(crate) const EQUIVOCATION: &str = "equivocation/";

    pub(crate) fn new(federation: &str, anchor: Digest) -> Self {
        Self {
            federation: federation.to_owned(),
            anchor,
            chain: Vec::new(),
            proposals: BTreeMap::new(),
            vows: BTreeMap::new(),
            taken_back: BTreeMap::new(),
            equivocations: Vec::new(),
        }
    }

    pub(crate) fn read_policy(&mut self, content: &[u8]) -> Result<(), String> {
        let record: Record = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        let bytes = STANDARD.decode(&record.file).map_err(|error| error.to_string())?;
        let policy = Policy::parse(&bytes, "a policy of the store").map_err(|error| error.to_string())?;
        let signatures = Signatures::parse(record.signatures.as_bytes(), "signatures of the store");
        let file = PolicyFile {
            policy: Arc::new(policy),
            bytes: bytes.into(),
            signatures: signatures.map_err(|error| error.to_string())?,
            in_force_unix_s: record.in_force_unix_s,
        };
        if file.in_force_unix_s.is_some() {
            self.chain.push(Arc::new(file));
        } else {
            self.proposals.insert(file.policy.digest(), file);
        }
        Ok(())
    }

    pub(crate) fn read_vow(&mut self, name: &str, content: &[u8]) -> Result<(), String> {
        let (key, after) = name.split_once('/').ok_or("it names no policy")?;
        let key = key.parse().map_err(|_| "it names no key")?;
        let after = match after {
            "founding" => None,
            digest => Some(digest.parse().map_err(|_| "it names no policy")?),
        };
        let vow = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        self.vows.insert((key, after), vow);
        Ok(())
    }

    pub(crate) fn read_taken_back(&mut self, name: &str) -> Result<(), String> {
        let (key, policy) = name.split_once('/').ok_or("it names no policy")?;
        let key = key.parse().map_err(|_| "it names no key")?;
        let policy = policy.parse().map_err(|_| "it names no policy")?;
        self.taken_back.insert((key, policy), ());
        Ok(())
    }

    pub(crate) fn read_equivocation(&mut self, content: &[u8]) -> Result<(), String> {
        let found = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        self.equivocations.push(found);
        Ok(())
    }

    /// Puts the chain in order after all was read, and checks that it is one.
    pub(crate) fn complete(&mut self) -> Result<(), String> {
        self.chain.sort_by_key(|file| file.policy.version);
        let mut before: Option<&Policy> = None;
        for file in &self.chain {
            let follows = match before {
                None => file.policy.anchor() == Some(self.anchor),
                Some(before) => file.policy.predecessor == Some(before.digest()),
            };
            if !follows {
                return Err(format!("version {} does not follow", file.policy.version));
            }
            before = Some(&file.policy);
        }
        Ok(())
    }

    /// The policy in force.
    pub(crate) fn active(&self) -> Option<&Arc<Policy>> {
        self.chain.last().map(|file| &file.policy)
    }

    pub(crate) fn chain(&self) -> &[Arc<PolicyFile>] {
        &self.chain
    }

    pub(crate) fn equivocations(&self) -> &[Equivocation] {
        &self.equivocations
    }

    pub(crate) fn file(&self, digest: &Digest) -> Option<&PolicyFile> {
        let in_chain = self.chain.iter().find(|file| file.policy.digest() == *digest);
        in_chain.map(Arc::as_ref).or_else(|| self.proposals.get(digest))
    }

    pub(crate) fn status(&self, digest: &Digest) -> Option<PolicyStatus> {
        let file = self.file(digest)?;
        let standing = if self.active().is_some_and(|active| active.digest() == *digest) {
            PolicyStanding::InForce
        } else if file.in_force_unix_s.is_some() {
            PolicyStanding::Superseded
        } else {
            PolicyStanding::Proposed(self.ballot(&file.policy, &file.signatures))
        };
        Some(PolicyStatus {
            digest: *digest,
            version: file.policy.version,
            standing,
        })
    }

    pub(crate) fn proposals(&self) -> impl Iterator<Item = PolicyStatus> {
        self.proposals.keys().filter_map(|digest| self.status(digest))
    }

    fn ballot(&self, policy: &Policy, signatures: &Signatures) -> Ballot {
        Ballot::count(policy, signatures, self.active().map(Arc::as_ref))
    }

    /// Takes a policy that could follow the one in force (or found the federation), with the signature of one who has a say in it.
    pub(crate) fn propose(
        &mut self,
        bytes: &[u8],
        signature: Signature,
        now_unix_s: u64,
        changes: &mut Changes,
    ) -> Result<(PolicyStatus, bool), Refused> {
        let policy =
            Policy::parse(bytes, "the proposed policy").map_err(|error| Refused::NoPolicyFile(error.to_string()))?;
        let digest = policy.digest();
        if self.file(&digest).is_none() {
            self.may_be_proposed(&policy)?;
            if self.proposals.len() >= MAX_PROPOSALS {
                let (what, limit) = ("proposed policies", MAX_PROPOSALS);
                return Err(Refused::Full { what, limit });
            }
            let file = PolicyFile {
                policy: Arc::new(policy),
                bytes: bytes.into(),
                signatures: Signatures::default(),
                in_force_unix_s: None,
            };
            self.admit(&file.policy, &signature, changes)?;
            self.proposals.insert(digest, file);
        }
        self.sign(digest, signature, now_unix_s, changes)
    }

    fn may_be_proposed(&self, policy: &Policy) -> Result<(), Refused> {
        match self.active() {
            None if policy.anchor() == Some(self.anchor) && policy.name == self.federation => Ok(()),
            None => Err(Refused::OtherFounders {
                seen: policy.anchor(),
                wanted: self.anchor,
            }),
            Some(active) => {
                let broken = broken_rules(active, policy);
                if !broken.is_empty() {
                    return Err(Refused::CannotFollow(broken));
                }
                if self.chain.len() >= MAX_VERSIONS {
                    let (what, limit) = ("policies of this federation", MAX_VERSIONS);
                    return Err(Refused::Full { what, limit });
                }
                Ok(())
            }
        }
    }

    /// Whether a signature is one over this policy by somebody who has a say, who has vowed nothing else.
    fn admit(&mut self, policy: &Policy, signature: &Signature, changes: &mut Changes) -> Result<(), Refused> {
        let participant = || signature.participant.clone();
        let mut alone = Signatures::default();
        alone.add(signature.clone());
        let ballot = self.ballot(policy, &alone);
        if let Some(stray) = ballot.strays.first() {
            return Err(Refused::BadSignature {
                participant: participant(),
                why: stray.to_string(),
            });
        }
        let (key, refused) = (signature.public_key, policy.digest());
        if self.taken_back.contains_key(&(key, refused)) {
            return Err(Refused::TakenBack {
                participant: participant(),
                policy: refused,
            });
        }
        let Some(vow) = self.vows.get(&(key, policy.predecessor)) else {
            return Ok(());
        };
        if vow.policy == refused {
            return Ok(());
        }
        let (signed, first) = (vow.policy, (vow.policy, vow.signature.clone()));
        let found = Equivocation {
            participant: participant(),
            public_key: key,
            after: policy.predecessor,
            first,
            second: (refused, STANDARD.encode(signature.signature)),
        };
        let known = |other: &Equivocation| other.public_key == key && other.second.0 == refused;
        if !self.equivocations.iter().any(known) && self.equivocations.len() < MAX_EQUIVOCATIONS {
            changes.put(format!("{}{}/{refused}", Self::EQUIVOCATION, key.to_hex()), &found);
            self.equivocations.push(found);
        }
        Err(Refused::Equivocation {
            participant: participant(),
            key,
            signed,
            refused,
        })
    }

    /// Takes a signature under a proposed policy; it takes effect when that was the last one. The second value says whether the signature
    /// is a new one.
    pub(crate) fn sign(
        &mut self,
        digest: Digest,
        signature: Signature,
        now_unix_s: u64,
        changes: &mut Changes,
    ) -> Result<(PolicyStatus, bool), Refused> {
        let unknown = || Refused::UnknownPolicy(digest);
        let policy = match self.proposals.get(&digest) {
            Some(file) => file.policy.clone(),
            // In force: there is nothing left to be signed, and nothing wrong with being asked again.
            None => return self.status(&digest).map(|status| (status, false)).ok_or_else(unknown),
        };
        self.admit(&policy, &signature, changes)?;
        let vowed = (signature.public_key, policy.predecessor);
        if self.vows.contains_key(&vowed) {
            return self.status(&digest).map(|status| (status, false)).ok_or_else(unknown);
        }
        let file = self.proposals.get(&digest).ok_or_else(unknown)?;
        let mut signatures = file.signatures.clone();
        signatures.add(signature.clone());
        let complete = self.ballot(&policy, &signatures).complete();
        if complete {
            let signed = SignedPolicy::new(policy.as_ref().clone(), &signatures);
            signed.map_err(|error| Refused::CannotTakeEffect(error.to_string()))?;
        }
        let vow = Vow {
            policy: digest,
            signature: STANDARD.encode(signature.signature),
        };
        changes.put(vow_name(vowed.0, vowed.1), &vow);
        self.vows.insert(vowed, vow);
        let file = self.proposals.get_mut(&digest).ok_or_else(unknown)?;
        file.signatures = signatures;
        file.in_force_unix_s = complete.then_some(now_unix_s);
        put(file, changes);
        if complete && let Some(file) = self.proposals.remove(&digest) {
            self.chain.push(Arc::new(file));
            // The others follow what is not the newest any more.
            for overtaken in std::mem::take(&mut self.proposals).into_keys() {
                changes.remove(format!("{}{overtaken}", Self::POLICY));
            }
        }
        self.status(&digest).map(|status| (status, true)).ok_or_else(unknown)
    }

    /// A participant takes its signature under a proposed policy back, to be free to sign another one. Without a signature a proposal is
    /// none.
    pub(crate) fn take_back(
        &mut self,
        participant: &str,
        digest: Digest,
        changes: &mut Changes,
    ) -> Result<(), Refused> {
        if self.chain.iter().any(|file| file.policy.digest() == digest) {
            return Err(Refused::InForce(digest));
        }
        let file = self.proposals.get_mut(&digest).ok_or(Refused::UnknownPolicy(digest))?;
        let mut kept = Signatures::default();
        let mut gone = Vec::new();
        for signature in file.signatures.iter() {
            if signature.participant == participant {
                gone.push(signature.public_key);
            } else {
                kept.add(signature.clone());
            }
        }
        let empty = kept.iter().next().is_none();
        file.signatures = kept;
        if empty {
            changes.remove(format!("{}{digest}", Self::POLICY));
        } else {
            put(file, changes);
        }
        let after = file.policy.predecessor;
        if empty {
            self.proposals.remove(&digest);
        }
        for key in gone {
            self.vows.remove(&(key, after));
            changes.remove(vow_name(key, after));
            self.taken_back.insert((key, digest), ());
            changes.put(format!("{}{}/{digest}", Self::TAKEN_BACK, key.to_hex()), &());
        }
        Ok(())
    }
}

fn vow_name(key: PublicKey, after: Option<Digest>) -> String {
    let after = after.map_or("founding".to_owned(), |digest| digest.to_string());
    format!("{}{}/{after}", Agreement::VOW, key.to_hex())
}

fn put(file: &PolicyFile, changes: &mut Changes) {
    let record = Record {
        file: STANDARD.encode(&file.bytes),
        signatures: file.signatures.to_text(),
        in_force_unix_s: file.in_force_unix_s,
    };
    changes.put(format!("{}{}", Agreement::POLICY, file.policy.digest()), &record);
}
