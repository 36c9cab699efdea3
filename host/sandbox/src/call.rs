//! What goes into a call of a module and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use cloister_engine::Compiled;
use cloister_tensor::TensorMap;
use serde::{Deserialize, Serialize};

use crate::rows::Rows;
use crate::{CallLimits, Grants, Module, SettingValue};

/// A graph ready to run; shared between calls, used by one at a time.
pub type SharedGraph = Arc<Mutex<Box<dyn Compiled>>>;

/// The round that a call belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundInfo {
    /// Counts from 1.
    pub index: u32,
    /// Rounds that the policy asks for.
    pub count: u32,
    /// Seed of everything that looks random in the call.
    pub seed: u64,
    /// Calls of this node's module that came to an end before in this federation.
    pub step: u64,
}

/// What the updates of a federation hold. Both have the model's names, types and shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpdateKind {
    /// The model as a worker trained it.
    #[default]
    Model,
    /// For each parameter its gradient, zeros where no graph trains it; for each running statistic its next value.
    Gradient,
}

/// A call of a trainer.
pub struct TrainCall {
    /// The trainer.
    pub module: Module,
    /// Settings as the policy gives them.
    pub settings: BTreeMap<String, SettingValue>,
    /// What the policy grants.
    pub grants: Grants,
    /// Graphs by their names in the policy.
    pub graphs: BTreeMap<String, SharedGraph>,
    /// Parameters and running statistics as the round starts.
    pub model: TensorMap,
    /// Datasets by their names in the policy.
    pub datasets: BTreeMap<String, Arc<dyn Rows>>,
    /// The round.
    pub round: RoundInfo,
    /// What the update has to hold.
    pub update: UpdateKind,
    /// How much the call may take.
    pub limits: CallLimits,
}

/// What a trainer's call gave: an accepted update.
#[derive(Clone, Debug)]
pub struct TrainOutcome {
    /// The names, types and shapes of the model, and what the call was asked for; all finite.
    pub tensors: TensorMap,
    /// Rows of the datasets that training graphs were fed, each dataset counted once at most. The host counts.
    pub rows: u64,
    /// The last value of each metric that the guest reported, in the order of their names.
    pub metrics: Vec<(String, f64)>,
    /// The guest's log.
    pub log: Vec<String>,
}

/// A call of an aggregator.
pub struct AggregateCall {
    /// The aggregator.
    pub module: Module,
    /// Settings as the policy gives them.
    pub settings: BTreeMap<String, SettingValue>,
    /// Parameters and running statistics as the round starts; all f32.
    pub model: TensorMap,
    /// Names among `model` that are running statistics.
    pub statistics: BTreeSet<String>,
    /// The round.
    pub round: RoundInfo,
    /// What the updates hold.
    pub update: UpdateKind,
    /// What the module keeps from call to call, as the call before gave it: vectors of f32, each as long as the model. Empty in
    /// the first.
    pub slots: TensorMap,
    /// How much the call may take.
    pub limits: CallLimits,
}

/// One worker's update on its way into an aggregator.
#[derive(Clone, Debug)]
pub struct WorkerUpdate {
    /// The worker's name in the policy.
    pub node: String,
    /// Rows that the worker's host counted.
    pub rows: u64,
    /// The same names, types and shapes as the model.
    pub tensors: TensorMap,
}

/// What an aggregator's call gave.
#[derive(Clone, Debug)]
pub struct AggregateOutcome {
    /// The next model: the same names and shapes; all finite.
    pub tensors: TensorMap,
    /// What the next call gets as [`AggregateCall::slots`]; all finite.
    pub slots: TensorMap,
    /// As in [`TrainOutcome`].
    pub metrics: Vec<(String, f64)>,
    /// The guest's log.
    pub log: Vec<String>,
}
