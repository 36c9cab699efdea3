//! What nodes have the manager write down: rounds, with the commit that seals them, and exports, before anything leaves.

use std::collections::BTreeMap;

use cloister_attestation::identity::{Role, is_name};
use cloister_policy::Permit;
use cloister_tensor::Digest;

use crate::refusals::Budget;
use crate::refused::Refused;

/// Most notes of one node in a minute.
pub const MAX_NOTES_A_MINUTE: u32 = 60;
/// Most lines in a minute that say that a node was attested.
const MAX_ATTESTED_A_MINUTE: u32 = 60;

/// A round that an aggregator sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundNote {
    /// Its number.
    pub round: u64,
    /// Digest of the model after it.
    pub model: Digest,
    /// Digest of its receipt.
    pub receipt: Digest,
}

/// A model that an aggregator is about to let out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportNote {
    /// For whom: `participant/NAME` or `node/NAME`.
    pub to: String,
    /// Of which round.
    pub round: u64,
    /// Its digest.
    pub model: Digest,
}

impl ExportNote {
    pub(crate) fn check(&self) -> Result<(), Refused> {
        let named = self.to.split_once('/');
        match named {
            Some(("participant" | "node", name)) if is_name(name) => Ok(()),
            _ => Err(Refused::BadName {
                seen: self.to.chars().take(64).collect(),
            }),
        }
    }
}

/// How much nodes have written down, in memory.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// By node, which the policy names.
    exports: BTreeMap<String, Budget>,
    attested: BTreeMap<String, Budget>,
}

impl Notes {
    /// Whether the node may have one more written down.
    pub(crate) fn export(&mut self, node: &str, now_unix_s: u64) -> Result<(), Refused> {
        let budget = self.exports.entry(node.to_owned()).or_default();
        match budget.take(MAX_NOTES_A_MINUTE, now_unix_s) {
            true => Ok(()),
            false => Err(Refused::TooManyNotes {
                node: node.to_owned(),
                limit: MAX_NOTES_A_MINUTE,
            }),
        }
    }

    /// Whether one more session of the node is to be written down.
    pub(crate) fn attested(&mut self, node: &str, now_unix_s: u64) -> bool {
        let budget = self.attested.entry(node.to_owned()).or_default();
        budget.take(MAX_ATTESTED_A_MINUTE, now_unix_s)
    }
}

/// Rounds and exports are an aggregator's to tell.
pub(crate) fn may_note(who: &Permit) -> Result<(), Refused> {
    match who.role() {
        Role::Aggregator => Ok(()),
        role => Err(Refused::NotItsToNote {
            node: who.node().to_owned(),
            role,
        }),
    }
}
