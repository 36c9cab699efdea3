//! What the aggregator's machine goes by.

use std::collections::BTreeSet;

use crate::roster::RosterEntry;

/// How members' updates come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Those of all members make a round.
    Together,
    /// Each makes a round alone, in the order in which they come.
    Alone {
        /// How many updates may have been applied since the model that one was computed on.
        max_staleness: u64,
    },
}

/// What the machine has to know beforehand.
#[derive(Clone, Debug)]
pub struct RoundsConfig {
    /// How many rounds make the federation's work.
    pub rounds: u64,
    /// How updates come together.
    pub pace: Pace,
    /// Fewest members at work: the larger of the policy's quorum and `min_workers_per_aggregate`. Of [`Pace::Together`]
    /// also the fewest updates of an aggregate.
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
