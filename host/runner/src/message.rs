//! What keeper and runner say to each other. Each request is answered by one reply; `Aggregate` alone has a talk in between.

use cloister_engine::Precision;
use cloister_sandbox::{CallLimits, Grants, ModuleError, RoundInfo, SandboxLimits, SettingValue, UpdateKind};
use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

use crate::cpus::Cpus;
use crate::options::{BackendChoice, Confinement, RunnerLimits};
use crate::tensors::WireLayout;

/// Version of these messages; keeper and runner are one binary, so it only guards against a mix of two.
pub(crate) const PROTOCOL: u32 = 6;

/// Settings of the transforms that datasets go through, by the names of the modules.
pub(crate) type TransformSettings = BTreeMap<String, BTreeMap<String, SettingValue>>;

/// From keeper to runner. What comes beside a message is said at each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// First, and once. The runner loads its libraries now, and opens nothing later.
    Start {
        protocol: u32,
        backend: BackendChoice,
        openvino_dir: Option<String>,
        library_dir: Option<String>,
        threads: usize,
        precision: Precision,
        pinning: bool,
        cpus: Option<Cpus>,
        sandbox: SandboxLimits,
        limits: RunnerLimits,
        confinement: Confinement,
    },
    /// Beside it: the component, sealed.
    LoadModule { name: String },
    /// Beside it: the graph, sealed.
    LoadGraph { name: String },
    /// Beside it: the open file. `spec` is the dataset's description as TOML.
    OpenDataset {
        name: String,
        file: String,
        format: String,
        spec: String,
        salt: [u8; 32],
    },
    /// Beside it: the model, sealed.
    Train(TrainOrder),
    /// Beside it: the model, sealed.
    Evaluate(EvaluateOrder),
    /// Beside it: the model and the slots, sealed.
    Aggregate(AggregateOrder),
    /// Answers [`Reply::NextUpdate`]. Beside it: the update, sealed.
    Update {
        node: String,
        rows: u64,
        layout: WireLayout,
    },
    /// Answers [`Reply::NextUpdate`]: no more of them.
    NoMoreUpdates,
    /// Answers [`Reply::NextUpdate`]: they cannot be brought.
    NoUpdates { reason: String },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TrainOrder {
    pub(crate) module: String,
    pub(crate) settings: BTreeMap<String, SettingValue>,
    pub(crate) grants: Grants,
    pub(crate) graphs: BTreeSet<String>,
    pub(crate) datasets: BTreeSet<String>,
    pub(crate) transforms: TransformSettings,
    pub(crate) round: RoundInfo,
    pub(crate) update: UpdateKind,
    pub(crate) limits: CallLimits,
    pub(crate) model: WireLayout,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EvaluateOrder {
    pub(crate) graphs: BTreeSet<String>,
    pub(crate) dataset: String,
    pub(crate) transforms: TransformSettings,
    pub(crate) limits: CallLimits,
    pub(crate) model: WireLayout,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AggregateOrder {
    pub(crate) module: String,
    pub(crate) settings: BTreeMap<String, SettingValue>,
    pub(crate) statistics: BTreeSet<String>,
    pub(crate) round: RoundInfo,
    pub(crate) update: UpdateKind,
    pub(crate) limits: CallLimits,
    pub(crate) model: WireLayout,
    /// Names of the slots, whose memories come behind the model's.
    pub(crate) slots: BTreeSet<String>,
}

/// From runner to keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Started {
        backend: String,
        note: Option<String>,
        /// What this kernel could not take from the process.
        unconfined: Option<String>,
    },
    ModuleLoaded {
        digest: Digest,
        world: String,
    },
    GraphLoaded {
        digest: Digest,
        source_digest: Digest,
    },
    DatasetOpened {
        rows: u64,
        commitment: Digest,
        memory_bytes: u64,
        /// Damaged rows that were left out, and what is wrong with the first of them.
        skipped: u64,
        damaged: Vec<String>,
    },
    /// Beside it: the update, sealed.
    Trained {
        layout: WireLayout,
        rows: u64,
        metrics: Vec<(String, f64)>,
        log: Vec<String>,
    },
    Evaluated {
        loss: f64,
        /// None where the loss has no classes.
        correct: Option<u64>,
        rows: u64,
        /// What a transform logged.
        log: Vec<String>,
    },
    /// The aggregator asks for the next update.
    NextUpdate,
    /// Beside it: the next model and the slots, sealed.
    Aggregated {
        layout: WireLayout,
        slots: BTreeSet<String>,
        metrics: Vec<(String, f64)>,
        log: Vec<String>,
    },
    Failed(Failure),
}

/// What went wrong in the runner, which goes on.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Module(ModuleError),
    Graph {
        name: String,
        message: String,
    },
    Dataset {
        name: String,
        message: String,
    },
    /// The request itself: something it names was never loaded, or what came beside it is not right.
    Request {
        message: String,
    },
    /// Libraries or the sandbox could not be set up.
    SetUp {
        message: String,
    },
}
