//! What a member goes by.

use cloister_tensor::Digest;

use crate::aggregator::Pace;

/// What the member knows before it joins.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// Its own name.
    pub node: String,
    /// Name of the federation.
    pub federation: String,
    /// Digest of its policy.
    pub policy_digest: Digest,
    /// Fewest updates of an aggregate.
    pub needed: usize,
    /// Number of rounds.
    pub rounds: u64,
    /// How updates come together.
    pub pace: Pace,
    /// Every how many rounds the aggregator seals what it has; the last it always does.
    pub checkpoint_every: u64,
    /// The digest that the model of round 1 has to have, where the member holds the initial weights.
    pub initial_model: Option<Digest>,
}

impl WorkerConfig {
    pub(super) fn seals(&self, round: u64) -> bool {
        round >= self.rounds || round.is_multiple_of(self.checkpoint_every.max(1))
    }

    /// The last round that an aggregator had to seal before it told of `round`.
    pub(super) fn sealed_at_least(&self, round: u64) -> u64 {
        if self.seals(round) {
            return round;
        }
        round - round % self.checkpoint_every.max(1)
    }

    /// How many rounds back the model of an update may lie.
    pub(super) fn most_behind(&self) -> u64 {
        match self.pace {
            Pace::Together => 0,
            Pace::Alone { max_staleness } => max_staleness,
        }
    }
}
