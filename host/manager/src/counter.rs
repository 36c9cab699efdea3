//! Counters that only go up: against a vault that somebody put back.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use cloister_attestation::encoding::{from_hex, hex};
use cloister_attestation::identity::is_name;
use cloister_policy::MAX_VERSIONS;
use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};

use crate::changes::Changes;
use crate::refused::Refused;

/// Most counters of one node. A vault is of a node and a policy, and there are no more policies: no counter has to be forgotten, which
/// would let an older vault pass for the newest one.
pub const MAX_COUNTERS_OF_NODE: usize = MAX_VERSIONS;

/// A counter: of which vault of whose. As text `NODE/vault/HEX`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CounterId {
    /// The node that alone may count it up.
    pub node: String,
    /// The identity of its vault.
    pub vault: [u8; 16],
}

impl fmt::Display for CounterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/vault/{}", self.node, hex(&self.vault))
    }
}

/// A text that is no counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("wanted NODE/vault/ and 32 hexadecimal digits")]
pub struct NoCounter;

impl FromStr for CounterId {
    type Err = NoCounter;

    fn from_str(text: &str) -> Result<Self, NoCounter> {
        let (node, vault) = text.split_once("/vault/").ok_or(NoCounter)?;
        let vault = from_hex(vault).ok_or(NoCounter)?;
        let node = Some(node).filter(|node| is_name(node)).ok_or(NoCounter)?.to_owned();
        Ok(Self { node, vault })
    }
}

/// Where a counter stands: a version, and the digest of what it is the version of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The version.
    pub version: u64,
    /// Digest of the content: of a vault's sealed index.
    pub digest: Digest,
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {} ({})", self.version, self.digest.short())
    }
}

/// A step of a counter: compare and swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Which.
    pub counter: CounterId,
    /// Token of the node's lease.
    pub token: u64,
    /// Where the node believes it stands; nothing before the first step.
    pub expected: Option<Commit>,
    /// Where it shall stand: of a higher version. Versions in between may be left out, where commits went on meanwhile.
    pub next: Commit,
}

/// All counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    stand: HashMap<CounterId, Commit>,
    of_node: BTreeMap<String, usize>,
}

impl Counters {
    pub(crate) const PREFIX: &str = "counter/";

    /// Takes a record that was read.
    pub(crate) fn read(&mut self, name: &str, content: &[u8]) -> Result<(), String> {
        let id: CounterId = name.parse().map_err(|error: NoCounter| error.to_string())?;
        let commit = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        *self.of_node.entry(id.node.clone()).or_default() += 1;
        self.stand.insert(id, commit);
        Ok(())
    }

    /// Where a counter stands.
    pub(crate) fn get(&self, id: &CounterId) -> Option<&Commit> {
        self.stand.get(id)
    }

    /// Compares and swaps. The step that was taken last is answered again: its first answer may have been lost.
    pub(crate) fn step(&mut self, step: &Step, changes: &mut Changes) -> Result<(Commit, bool), Refused> {
        let Step {
            counter,
            expected,
            next,
            ..
        } = step;
        let current = self.stand.get(counter).copied();
        if current == Some(*next) {
            return Ok((*next, false));
        }
        if current != *expected {
            return Err(Refused::Stale {
                counter: counter.clone(),
                held: *expected,
                expected: current,
            });
        }
        let version = current.map_or(0, |current| current.version);
        if next.version <= version {
            return Err(Refused::NotAhead {
                counter: counter.clone(),
                next: next.version,
                current: version,
            });
        }
        if current.is_none() {
            let of_node = self.of_node.entry(counter.node.clone()).or_default();
            if *of_node >= MAX_COUNTERS_OF_NODE {
                let (what, limit) = ("counters of this node", MAX_COUNTERS_OF_NODE);
                return Err(Refused::Full { what, limit });
            }
            *of_node += 1;
        }
        self.stand.insert(counter.clone(), *next);
        changes.put(format!("{}{counter}", Self::PREFIX), next);
        Ok((*next, true))
    }

    /// Whether what a node holds is the newest that was confirmed.
    pub(crate) fn prove_newest(&self, id: &CounterId, held: Option<Commit>) -> Result<(), Refused> {
        let confirmed = self.stand.get(id).copied();
        match (held, confirmed) {
            (held, confirmed) if held == confirmed => Ok(()),
            (Some(held), confirmed) if confirmed.is_none_or(|confirmed| held.version > confirmed.version) => {
                Err(Refused::Unconfirmed {
                    counter: id.clone(),
                    held,
                    confirmed,
                })
            }
            (held, expected) => Err(Refused::Stale {
                counter: id.clone(),
                held,
                expected,
            }),
        }
    }
}
