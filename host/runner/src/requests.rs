//! What a keeper asks of its runner and what it gets.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cloister_data::Skipped;
use cloister_sandbox::{CallLimits, Grants, RoundInfo, SettingValue, UpdateKind};
use cloister_tensor::Digest;

use crate::slots::SharedSlots;
use crate::tensors::SharedTensors;

/// A module that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleInfo {
    /// SHA-256 of its file; the keeper compares it with the policy.
    pub digest: Digest,
    /// Its world: `trainer`, `transform` or `aggregator`.
    pub world: String,
}

/// A graph that is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphInfo {
    /// SHA-256 of its canonical bytes, which the engine runs.
    pub digest: Digest,
    /// SHA-256 of its file, which the policy names.
    pub source_digest: Digest,
}

/// A dataset that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetInfo {
    /// Its rows.
    pub rows: u64,
    /// Its salted commitment; the keeper compares it with the policy.
    pub commitment: Digest,
    /// Bytes that it takes in the runner.
    pub memory_bytes: u64,
    /// Damaged rows that were left out, and what is wrong with the first of them.
    pub skipped: Skipped,
}

/// A call of a trainer.
#[derive(Clone, Debug)]
pub struct TrainRequest {
    /// The loaded module's name.
    pub module: String,
    /// Settings as the policy gives them.
    pub settings: BTreeMap<String, SettingValue>,
    /// What the policy grants.
    pub grants: Grants,
    /// Names of the loaded graphs that it may use.
    pub graphs: BTreeSet<String>,
    /// Names of the open datasets that it may use.
    pub datasets: BTreeSet<String>,
    /// Settings of the loaded transforms that these datasets go through, by the names of the modules.
    pub transforms: BTreeMap<String, BTreeMap<String, SettingValue>>,
    /// Parameters and running statistics as the round starts.
    pub model: SharedTensors,
    /// The round.
    pub round: RoundInfo,
    /// What the update has to hold.
    pub update: UpdateKind,
    /// How much the call may take; the sandbox ends it at [`CallLimits::call`].
    pub limits: CallLimits,
    /// When the keeper ends a runner that has not answered.
    pub timeout: Duration,
}

/// A trainer's accepted update.
#[derive(Clone, Debug)]
pub struct TrainReply {
    /// The same tensors as the model's: what [`TrainRequest::update`] asked for.
    pub tensors: SharedTensors,
    /// Rows that the host counted.
    pub rows: u64,
    /// The last value of each metric that the module reported.
    pub metrics: Vec<(String, f64)>,
    /// The module's log.
    pub log: Vec<String>,
    /// Time from request to reply.
    pub elapsed: Duration,
}

/// A run of the evaluation graph over a dataset, by the host itself.
#[derive(Clone, Debug)]
pub struct EvaluateRequest {
    /// Names of loaded evaluation graphs, one for each batch size that the rows need: the largest for whole batches, and
    /// one for the remainder if there is one.
    pub graphs: BTreeSet<String>,
    /// The open dataset's name.
    pub dataset: String,
    /// Settings of the loaded transform that the dataset goes through, if any, by the name of the module.
    pub transforms: BTreeMap<String, BTreeMap<String, SettingValue>>,
    /// Parameters and running statistics.
    pub model: SharedTensors,
    /// What a call of the transform may take, and the time of one run of the graph ([`CallLimits::compute`]).
    pub limits: CallLimits,
    /// When the keeper ends a runner that has not answered.
    pub timeout: Duration,
}

/// How good the model is on a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct EvaluateReply {
    /// Mean over the rows.
    pub loss: f64,
    /// Rows that were classified right; none where the loss has no classes, as in a regression.
    pub correct: Option<u64>,
    /// Rows.
    pub rows: u64,
    /// The transform's log, as far as the limit lets it.
    pub log: Vec<String>,
    /// Time from request to reply.
    pub elapsed: Duration,
}

impl EvaluateReply {
    /// The share of rows that were classified right, 0 to 1; none where there are no classes.
    pub fn accuracy(&self) -> Option<f64> {
        self.correct.map(|correct| correct as f64 / self.rows as f64)
    }
}

/// A call of an aggregator.
#[derive(Clone, Debug)]
pub struct AggregateRequest {
    /// The loaded module's name.
    pub module: String,
    /// Settings as the policy gives them.
    pub settings: BTreeMap<String, SettingValue>,
    /// Parameters and running statistics as the round started; all f32.
    pub model: SharedTensors,
    /// Names among the model's that are running statistics.
    pub statistics: BTreeSet<String>,
    /// The round.
    pub round: RoundInfo,
    /// What the updates hold.
    pub update: UpdateKind,
    /// [`AggregateReply::slots`] of the call before; none in the first.
    pub slots: SharedSlots,
    /// How much the call may take.
    pub limits: CallLimits,
    /// When the keeper ends a runner that has not answered; time that the keeper spends on bringing updates does not count.
    pub timeout: Duration,
}

/// One worker's update on its way into an aggregator.
#[derive(Clone, Debug)]
pub struct WorkerUpdate {
    /// The worker's name in the policy.
    pub node: String,
    /// Rows that the worker's host counted.
    pub rows: u64,
    /// The same tensors as the model's.
    pub tensors: SharedTensors,
}

/// What an aggregator gave.
#[derive(Clone, Debug)]
pub struct AggregateReply {
    /// The next model: the same tensors.
    pub tensors: SharedTensors,
    /// What the module keeps for the next call: to be handed over with it, and sealed with the model.
    pub slots: SharedSlots,
    /// The last value of each metric that the module reported.
    pub metrics: Vec<(String, f64)>,
    /// The module's log.
    pub log: Vec<String>,
    /// Time from request to reply, the bringing of updates included.
    pub elapsed: Duration,
}
