//! The rounds that a member has seen, and how far an aggregator may go back behind them.

use cloister_tensor::Digest;

use super::fault::AggregatorFault;
use super::{RoundHead, WorkerConfig};

/// Where the rounds stood at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// How many rounds are done.
    pub round: u64,
    /// Digest of the last one's receipt, where this member knows it.
    pub receipt: Option<Digest>,
    /// Model after it, where this member knows it.
    pub model: Option<Digest>,
}

/// The chain that a member holds on to. It outlives a connection: after a reconnect the aggregator still can't go back, but for
/// one that was started anew, and that to the last round that it had to seal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The last round with a receipt.
    pub last: Mark,
    /// The last round that the aggregator had to seal and that this member knows.
    sealed: Mark,
    /// The instance of the aggregator that all this is from: the digest of its claims, which hold a key made at its start.
    instance: Option<Digest>,
}

impl Chain {
    /// The aggregator `instance` starts a round on a new connection, or again on the same one. Gives how many rounds of which this
    /// member has receipts it takes back with that: none, but where it was started anew.
    pub(super) fn go_on(
        &mut self,
        config: &WorkerConfig,
        head: &RoundHead,
        instance: Option<Digest>,
    ) -> Result<u64, AggregatorFault> {
        let round = head.round;
        let restarted = self.instance != instance;
        let floor = if restarted {
            config.sealed_at_least(self.last.round)
        } else {
            self.last.round
        };
        if round <= floor || round > config.rounds {
            return Err(match restarted && floor < self.last.round {
                true => AggregatorFault::WentBack {
                    seen: round,
                    last: self.last.round,
                    sealed: floor,
                },
                false => AggregatorFault::Backwards {
                    what: "round",
                    seen: round,
                    last: self.last.round,
                },
            });
        }
        // What was not sealed may be made anew, otherwise: then only what was sealed binds.
        let binding = if floor == self.last.round {
            self.last.clone()
        } else if floor == self.sealed.round {
            self.sealed.clone()
        } else {
            Mark {
                round: floor,
                ..Mark::default()
            }
        };
        if round == floor + 1 && binding.receipt.is_some() {
            require(round, "the receipt before", head.previous, binding.receipt)?;
            require(round, "the model", Some(head.model_digest), binding.model)?;
        }
        if round == 1 {
            require(round, "the receipt before", head.previous, None)?;
            if config.initial_model.is_some() {
                require(
                    round,
                    "the initial model",
                    Some(head.model_digest),
                    config.initial_model,
                )?;
            }
        }
        let undone = self.last.round.saturating_sub(round - 1);
        self.last = binding;
        self.instance = instance;
        Ok(undone)
    }

    /// Takes what a round's head says of the round before: that is what the next receipt has to fit.
    pub(super) fn anchor(&mut self, config: &WorkerConfig, head: &RoundHead) {
        let mark = Mark {
            round: head.round.saturating_sub(1),
            receipt: head.previous,
            model: Some(head.model_digest),
        };
        self.done(config, mark);
    }

    /// A round is done.
    pub(super) fn done(&mut self, config: &WorkerConfig, mark: Mark) {
        if config.seals(mark.round) {
            self.sealed = mark.clone();
        }
        self.last = mark;
    }
}

pub(super) fn require(
    round: u64,
    what: &'static str,
    seen: Option<Digest>,
    wanted: Option<Digest>,
) -> Result<(), AggregatorFault> {
    if seen == wanted {
        return Ok(());
    }
    let show = |digest: Option<Digest>| digest.map_or_else(|| "none".to_owned(), |digest| digest.to_string());
    Err(AggregatorFault::Digest {
        round,
        what,
        seen: show(seen),
        wanted: show(wanted),
    })
}
