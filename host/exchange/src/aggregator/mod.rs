//! The aggregator: members' calls in, rounds out.
//!
//! [`prepare`] gives two halves: the [`AggregatorHandle`] goes into the gRPC service, the [`Driver`] runs the rounds.

mod acting;
mod driver;
mod inputs;
mod labour;
mod member;
mod reader;
mod running;
mod second;
mod steps;

use std::sync::Arc;

use cloister_attestation::{NodeIdentity, Verifier};
use cloister_policy::Policy;
use cloister_policy::agreement::RoundMode;
use cloister_rounds::{Layout, Pace, RoundsConfig};
use cloister_session::{Clock, NodeSide};
use cloister_tensor::{Digest, TensorMap};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::ExchangeError;
use crate::progress::Progress;
use crate::roster;
use crate::sink::ModelSink;

pub use driver::{AggregatorEnd, Driver};
pub use member::AggregatorHandle;
pub(crate) use running::loss_of;

/// Events that wait for the driver.
const INPUT_QUEUE: usize = 64;

/// Where the rounds start from.
#[derive(Clone, Debug)]
pub struct StartingPoint {
    /// The model.
    pub model: TensorMap,
    /// The round that comes next, from 1.
    pub next_round: u64,
    /// Digest of the last receipt, none before round 1.
    pub previous: Option<Digest>,
}

/// What the aggregator runs with.
#[derive(Clone)]
pub struct AggregatorOptions {
    /// The agreement.
    pub policy: Arc<Policy>,
    /// This node's certificate and quotes.
    pub node: NodeSide,
    /// Its key, which signs the receipts.
    pub identity: Arc<NodeIdentity>,
    /// Verifies the members' roster evidence.
    pub verifier: Arc<Verifier>,
    /// The wall clock.
    pub clock: Clock,
    /// Where the rounds start from.
    pub start: StartingPoint,
    /// How long the first roster waits for workers beyond the quorum, in milliseconds; the policy's `deadline_s` if none.
    pub gather_ms: Option<u64>,
    /// Updates in memory at one time, at least 2 ([`RoundsConfig::UPDATE_SLOTS`]).
    pub update_slots: usize,
    /// Buffers for updates.
    pub sink: Arc<dyn ModelSink>,
    /// Shows what happens.
    pub progress: Arc<dyn Progress>,
    /// Ends it all.
    pub cancel: CancellationToken,
}

/// Makes an aggregator that waits for its first member.
pub fn prepare(options: AggregatorOptions) -> Result<(AggregatorHandle, Driver), ExchangeError> {
    let bad_model = |error: cloister_rounds::LayoutError| ExchangeError::Message {
        what: "an initial model",
        cause: error.to_string(),
    };
    let layout = Layout::of(&options.start.model).map_err(bad_model)?;
    let model_digest = Layout::model_digest(&options.start.model).map_err(bad_model)?;
    let (sender, receiver) = mpsc::channel(INPUT_QUEUE);
    let handle = AggregatorHandle::new(
        sender.clone(),
        layout,
        Arc::clone(&options.sink),
        Arc::clone(&options.clock),
    );
    Ok((handle, Driver::new(options, model_digest, sender, receiver)))
}

/// The rounds' configuration out of the policy.
pub(crate) fn rounds_config(options: &AggregatorOptions) -> RoundsConfig {
    let rounds = &options.policy.rounds;
    let deadline_ms = rounds.deadline_s.saturating_mul(1000);
    let workers = options
        .policy
        .nodes
        .iter()
        .filter(|node| node.role == cloister_attestation::identity::Role::Worker);
    RoundsConfig {
        rounds: u64::from(rounds.count),
        pace: pace(&options.policy),
        needed: needed(&options.policy),
        workers: workers.map(|node| node.name.clone()).collect(),
        aggregator: roster::own_entry(&options.node.identity),
        deadline_ms,
        gather_ms: options.gather_ms.unwrap_or(deadline_ms),
        update_slots: options.update_slots,
        max_strikes: RoundsConfig::MAX_STRIKES,
        max_aggregate_failures: RoundsConfig::MAX_AGGREGATE_FAILURES,
    }
}

/// How members' updates come together.
pub(crate) fn pace(policy: &Policy) -> Pace {
    match policy.rounds.mode {
        RoundMode::Averaging | RoundMode::Synchronous => Pace::Together,
        RoundMode::Asynchronous => Pace::Alone {
            max_staleness: u64::from(policy.rounds.max_staleness),
        },
    }
}

/// Fewest updates of an aggregate: the larger of quorum and `min_workers_per_aggregate`.
pub fn needed(policy: &Policy) -> usize {
    policy.rounds.quorum.max(policy.rounds.min_workers_per_aggregate) as usize
}
