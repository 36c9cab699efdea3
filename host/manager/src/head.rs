//! What a store says of itself in the clear, and what its last commit left.

use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};

use crate::recovery::Recovery;
use crate::witness::StoreId;

/// Version of the store's format (`FORMAT.md`).
pub(crate) const FORMAT: u32 = 1;

/// What is known of a store before there is a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct About {
    pub(crate) format: u32,
    pub(crate) federation: String,
    pub(crate) store: StoreId,
    pub(crate) recovery: Recovery,
}

impl About {
    pub(crate) fn new(federation: String, store: StoreId, recovery: Recovery) -> Self {
        Self {
            format: FORMAT,
            federation,
            store,
            recovery,
        }
    }
}

/// What the last commit left: sealed, and never twice the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Head {
    /// How many commits.
    pub(crate) version: u64,
    /// Digest of the state.
    pub(crate) digest: Digest,
    /// The codes of all records, exclusive-or'd. It is never shown: who knew it could make up sets with the same one.
    pub(crate) records: Digest,
    /// How many audit lines.
    pub(crate) lines: u64,
    /// The time that leases went by in the last commit.
    pub(crate) clock_unix_s: u64,
    /// The recovery epoch; an older `about` does not fit.
    pub(crate) epoch: u32,
    /// The manager's node.
    pub(crate) node: String,
    /// The federation's founders.
    pub(crate) anchor: Digest,
}

impl Head {
    /// Before the first commit.
    pub(crate) fn new(node: String, anchor: Digest) -> Self {
        let zeros = Digest::from_bytes([0; 32]);
        Self {
            version: 0,
            digest: zeros,
            records: zeros,
            lines: 0,
            clock_unix_s: 0,
            epoch: 0,
            node,
            anchor,
        }
    }
}
