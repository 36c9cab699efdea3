//! What happens, for whoever shows it.

use std::fmt;

use cloister_rounds::DropReason;

/// Takes what happens; the node renders it. Called from the driver: it must not block.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn happened(&self, happening: &Happening);
}

/// Shows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn happened(&self, _happening: &Happening) {}
}

/// Something worth showing. `Display` gives a line for a log.
#[derive(Clone, Debug, PartialEq)]
pub enum Happening {
    /// Nothing goes on, and why.
    Waiting {
        /// In words.
        why: String,
    },
    /// A peer's evidence was verified and accepted.
    Verified {
        /// Its node.
        node: String,
        /// Its role.
        role: String,
        /// Root of its measurement, hex.
        measurement: String,
        /// Whether the root of trust is a simulated one.
        simulated: bool,
    },
    /// A worker joined.
    Joined {
        /// Which.
        node: String,
    },
    /// A node no longer takes part.
    Dropped {
        /// Which.
        node: String,
        /// Why.
        reason: DropReason,
    },
    /// A round starts.
    RoundStarted {
        /// Which, from 1.
        round: u64,
        /// Of how many.
        rounds: u64,
        /// Which attempt.
        attempt: u32,
        /// How many take part.
        participants: usize,
    },
    /// An attempt at a round was given up.
    RoundAborted {
        /// Which round.
        round: u64,
        /// Why.
        reason: String,
    },
    /// A round is done.
    RoundDone(RoundLine),
    /// A step is done, in a mode of which a round is one.
    StepDone(StepLine),
    /// A worker's update was not applied; the worker goes on.
    LeftOut {
        /// Whose.
        node: String,
        /// Why.
        reason: DropReason,
    },
    /// All rounds are done.
    Finished {
        /// How many.
        rounds: u64,
    },
    /// The connection to the aggregator ended; another one is tried.
    Reconnecting {
        /// Why it ended.
        why: String,
        /// When the next is tried, in seconds.
        after_s: f64,
    },
}

/// The figures of a round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundLine {
    /// Which, from 1.
    pub round: u64,
    /// Of how many.
    pub rounds: u64,
    /// Metrics of the round, `loss` and `accuracy` first where they are there.
    pub metrics: Vec<(String, f64)>,
    /// Longest training of a worker, in seconds.
    pub train_s: f64,
    /// What the round took beyond the training, up to the last update, in seconds.
    pub exchange_s: f64,
    /// Aggregation's end, evaluation and keeping, in seconds.
    pub aggregate_s: f64,
    /// Workers whose update was folded.
    pub updates: usize,
    /// Workers that fell out: name and reason's code.
    pub drops: Vec<(String, String)>,
}

impl fmt::Display for RoundLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "round {}/{}", self.round, self.rounds)?;
        for (name, value) in &self.metrics {
            match name.as_str() {
                "accuracy" => write!(f, "  accuracy {value:.3}")?,
                "loss" => write!(f, "  loss {value:.3}")?,
                _ => {}
            }
        }
        write!(f, "  train {:.2} s  exchange {:.2} s", self.train_s, self.exchange_s)?;
        for (node, code) in &self.drops {
            write!(f, "  without {node} ({code})")?;
        }
        Ok(())
    }
}

/// The figures of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepLine {
    /// Which round it made, from 1.
    pub round: u64,
    /// Of how many.
    pub rounds: u64,
    /// Mean loss that the trainers report, by rows; at a worker its own.
    pub loss: Option<f64>,
    /// Time since the step before, in seconds.
    pub seconds: f64,
    /// Whose updates it goes by.
    pub workers: Vec<String>,
    /// How many steps went between the model that they were computed on and this one, at most.
    pub staleness: u64,
    /// Numbers of an evaluation, `loss` and `accuracy`, where one was due, and those of the aggregation.
    pub metrics: Vec<(String, f64)>,
    /// Workers that fell out, or whose update was left out: name and reason's code.
    pub drops: Vec<(String, String)>,
}

impl fmt::Display for StepLine {
    /// Steps are counted from 0, as training loops do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step: {}", self.round.saturating_sub(1))?;
        if let Some(loss) = self.loss {
            write!(f, ", loss: {loss:.6}")?;
        }
        write!(f, ", iter time: {:.4}", self.seconds)
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting { why } => f.write_str(why),
            Self::Verified {
                node,
                role,
                measurement,
                simulated,
            } => {
                let root = if *simulated { " (SIMULATED)" } else { "" };
                write!(f, "verified {role} {node}{root}: measurement {measurement}")
            }
            Self::Joined { node } => write!(f, "{node} joined"),
            Self::Dropped { node, reason } => write!(f, "dropped {node}: {reason}"),
            Self::RoundStarted {
                round,
                rounds,
                attempt,
                participants,
            } => {
                write!(f, "round {round}/{rounds} starts")?;
                // A worker is not told how many there are.
                if *participants > 0 {
                    write!(f, " with {participants} workers")?;
                }
                if *attempt > 1 {
                    write!(f, " (attempt {attempt})")
                } else {
                    Ok(())
                }
            }
            Self::RoundAborted { round, reason } => write!(f, "round {round} given up: {reason}"),
            Self::RoundDone(line) => line.fmt(f),
            Self::StepDone(line) => line.fmt(f),
            Self::LeftOut { node, reason } => write!(f, "left out an update of {node}: {reason}"),
            Self::Finished { rounds } => write!(f, "all {rounds} rounds are done"),
            Self::Reconnecting { why, after_s } => write!(f, "{why}; dialling again in {after_s:.1} s"),
        }
    }
}
