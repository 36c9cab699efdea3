//! What the aggregator's machine goes by.

use std::collections::BTreeSet;

use crate::roster::RosterEntry;

/// What the machine has to know beforehand.
#[derive(Clone, Debug)]
pub struct RoundsConfig {
    /// How many rounds make the federation's work.
    pub rounds: u64,
    /// Fewest updates of an aggregate: the larger of the policy's quorum and `min_workers_per_aggregate`.
    pub needed: usize,
    /// The workers that the policy names; nobody else joins.
    pub workers: BTreeSet<String>,
    /// The aggregator's own entry of the roster.
    pub aggregator: RosterEntry,
    /// How long a member may take for a step (train, upload, roster), in milliseconds.
    pub deadline_ms: u64,
    /// How long the first roster waits for workers beyond the quorum, in milliseconds.
    pub gather_ms: u64,
    /// Updates held at one time, the one being folded included; at least 2.
    pub update_slots: usize,
    /// How often a node may misbehave before it can't join again.
    pub max_strikes: u32,
    /// How often one round's aggregation may fail before the federation stops.
    pub max_aggregate_failures: u32,
}

impl RoundsConfig {
    /// Updates held at one time unless somebody says otherwise: one being folded, one coming.
    pub const UPDATE_SLOTS: usize = 2;
    /// Strikes unless somebody says otherwise.
    pub const MAX_STRIKES: u32 = 3;
    /// Failed aggregations unless somebody says otherwise.
    pub const MAX_AGGREGATE_FAILURES: u32 = 3;
}
