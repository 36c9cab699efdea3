//! An example's plan: `federation.toml` in its folder says who takes part, which rows go where, and what is trained.
//! From it `cloister demo` writes what the parties of a real federation would write by hand: keys, credentials, graphs,
//! the policy and one node file a node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_policy::Slice;
use cloister_policy::agreement::{Limits, RoundMode, Rounds};
use serde::Deserialize;

use super::rows::DataPlan;
use super::wish::{Wish, applied};
use crate::derivation::{Derivation, OptimizerName};

/// No plan is larger than this.
const MAX_PLAN_BYTES: u64 = 64 * 1024;
/// No example has more nodes than this: each is two processes on one machine.
const MAX_NODES: usize = 16;
/// No sealed example has more managers.
const MAX_MANAGERS: usize = 3;

/// How long nothing may happen at least before a run is given up.
const LEAST_PATIENCE: Duration = Duration::from_secs(120);

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The plan or a file that it names cannot be read.
    #[error("{path} cannot be read: {cause}")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        #[source]
        cause: std::io::Error,
    },
    /// The plan is not TOML of this form.
    #[error("{path}: {cause}")]
    Syntax {
        /// The plan.
        path: String,
        /// What the parser says, with line and column.
        cause: Box<toml::de::Error>,
    },
    /// The plan contradicts itself.
    #[error("{path}: {message}")]
    Meaning {
        /// The plan.
        path: String,
        /// What doesn't fit.
        message: String,
    },
    /// The data are nowhere.
    #[error("the data of this example are not there; looked in {}", looked.join(" and "))]
    NoData {
        /// The folders.
        looked: Vec<String>,
        /// What to fetch, and where to put it.
        missing: String,
    },
}

/// The kind of sample model that an example trains.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Sample {
    /// Logistic regression.
    Logistic,
    /// A multi-layer perceptron.
    Mlp,
    /// A small convolutional network with batch norm and max pooling.
    Cnn,
    /// A residual network for small images (v2).
    Resnet,
    /// A residual network of bottleneck blocks.
    Bottleneck,
    /// A transformer encoder.
    Encoder,
}

/// The model of an example.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPlan {
    /// The model's name in the policy.
    pub name: String,
    /// Which sample it is.
    pub sample: Sample,
    /// Numbers of a row.
    pub inputs: usize,
    /// Classes.
    pub classes: usize,
    /// Width of the hidden layer.
    #[serde(default)]
    pub hidden: usize,
    /// Layers, as the sample counts them.
    #[serde(default)]
    pub depth: usize,
    /// Seed of the initial weights.
    pub seed: u64,
}

/// How an example trains.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingPlan {
    /// The trainer: a guest module's name.
    pub trainer: String,
    /// The aggregator's module.
    pub aggregator: String,
    /// The optimizer inside the training graph; `none` where the aggregator steps.
    pub optimizer: OptimizerName,
    /// Rows of one step.
    pub batch: u32,
    /// Rows of one evaluation step.
    pub evaluation_batch: u32,
    /// Everything else about the training graph, by the names of `graph train`'s options (`decay_norms = false` for `--no-decay-norm`,
    /// `dropout = false` for `--no-dropout`);
    /// `forms` is a file beside the plan.
    #[serde(flatten)]
    pub derivation: Derivation,
    /// The trainer's settings.
    #[serde(default)]
    pub settings: toml::Table,
    /// The aggregation module's settings.
    #[serde(default)]
    pub aggregator_settings: toml::Table,
}

/// A transform of an example.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformPlan {
    /// Its name in the policy.
    pub name: String,
    /// The guest module; several transforms may be one module with other settings.
    pub module: String,
    /// The datasets of this name go through it.
    pub dataset: String,
    /// The inputs that it makes, as the policy writes them.
    pub makes: toml::Table,
    /// Its settings.
    #[serde(default)]
    pub settings: toml::Table,
}

/// The rounds of an example.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundsPlan {
    /// How many.
    pub count: u32,
    /// How many updates a round needs.
    pub quorum: u32,
    /// How long a round waits for a worker.
    pub deadline_s: u64,
    /// The fewest updates that may be aggregated.
    pub min_workers_per_aggregate: u32,
    /// How updates come together.
    #[serde(default)]
    pub mode: ModePlan,
    /// Rounds from one whose model is sealed to the next.
    #[serde(default = "every")]
    pub checkpoint_every: u32,
    /// Rounds from one evaluation to the next.
    #[serde(default = "every")]
    pub evaluate_every: u32,
    /// How many steps an update may be behind, in the mode `asynchronous`.
    #[serde(default = "max_staleness")]
    pub max_staleness: u32,
}

fn every() -> u32 {
    Rounds::EVERY
}

fn max_staleness() -> u32 {
    Rounds::MAX_STALENESS
}

/// How updates come together, in the policy's words.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModePlan {
    /// Averaging of models.
    #[default]
    Averaging,
    /// Steps by gradients of all workers.
    Synchronous,
    /// Steps by each gradient alone.
    Asynchronous,
}

impl From<ModePlan> for RoundMode {
    fn from(mode: ModePlan) -> Self {
        match mode {
            ModePlan::Averaging => Self::Averaging,
            ModePlan::Synchronous => Self::Synchronous,
            ModePlan::Asynchronous => Self::Asynchronous,
        }
    }
}

/// What modules may use up, where an example needs more than usual.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsPlan {
    /// One run of a graph, in seconds.
    pub call_s: Option<u64>,
    /// All that a module does in a round, and an evaluation, in seconds.
    pub round_s: Option<u64>,
}

/// A node of an example.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePlan {
    /// Its name.
    pub name: String,
    /// `worker` or `aggregator`; in a sealed example one is the `manager`, or up to three, and one a `server` to which the model goes.
    pub role: String,
    /// Whose it is.
    pub participant: String,
    /// Its dataset's name; manager and server have none.
    #[serde(default)]
    pub dataset: String,
    /// Its share of the rows that are dealt out, as a weight among all shares; manager and server have none.
    #[serde(default)]
    pub share: u32,
    /// Its rows of a file that is used where it lies, as the policy writes them; left out: all.
    #[serde(default)]
    pub slice: Option<String>,
}

/// Who gets the model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleasePlan {
    /// Participants.
    pub recipients: Vec<String>,
}

/// The plan of an example.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// One line that says what happens.
    pub title: String,
    /// The federation's name.
    pub federation: String,
    /// The participants.
    pub participants: Vec<String>,
    /// Whether rows and trainer are sealed, and the nodes get what they need from a manager.
    #[serde(default)]
    pub sealed: bool,
    /// The rows.
    pub data: DataPlan,
    /// The model.
    pub model: ModelPlan,
    /// The training.
    pub training: TrainingPlan,
    /// The transforms.
    #[serde(rename = "transform", default)]
    pub transforms: Vec<TransformPlan>,
    /// The rounds.
    pub rounds: RoundsPlan,
    /// What modules may use up.
    #[serde(default)]
    pub limits: LimitsPlan,
    /// What is otherwise in other modes: by mode and section the keys whose values are others.
    #[serde(default)]
    pub modes: BTreeMap<String, BTreeMap<String, toml::Table>>,
    /// The nodes.
    #[serde(rename = "node")]
    pub nodes: Vec<NodePlan>,
    /// Who gets the model.
    pub release: ReleasePlan,
    /// The folder of the plan.
    #[serde(skip)]
    pub folder: PathBuf,
    /// The plan as it is run, in TOML.
    #[serde(skip)]
    pub text: String,
}

impl NodePlan {
    /// Whether it works on rows.
    pub fn has_rows(&self) -> bool {
        self.role == "worker" || self.role == "aggregator"
    }
}

impl Plan {
    /// Reads `federation.toml` in an example's folder, and changes it as is wished.
    pub fn load(folder: &Path, wish: &Wish) -> Result<Self, PlanError> {
        let path = folder.join("federation.toml");
        let shown = path.display().to_string();
        let read = |cause| PlanError::Read {
            path: shown.clone(),
            cause,
        };
        let syntax = |cause| PlanError::Syntax {
            path: shown.clone(),
            cause: Box::new(cause),
        };
        let meaning = |message| PlanError::Meaning {
            path: shown.clone(),
            message,
        };
        if std::fs::metadata(&path).map_err(read)?.len() > MAX_PLAN_BYTES {
            return Err(meaning(format!("over {MAX_PLAN_BYTES} bytes")));
        }
        let text = std::fs::read_to_string(&path).map_err(read)?;
        // As it stands first: what is wrong there has a line.
        let whole: Self = toml::from_str(&text).map_err(syntax)?;
        let table: toml::Table = toml::from_str(&text).map_err(syntax)?;
        let changed = |wish: &Wish| {
            let table = applied(table.clone(), wish).map_err(meaning)?;
            let mut plan: Self = table.clone().try_into().map_err(syntax)?;
            plan.text = table.to_string();
            plan.folder = folder.to_path_buf();
            plan.check().map_err(meaning)?;
            Ok(plan)
        };
        for mode in whole.modes.keys() {
            // A mode that nobody asks for today has to be sound, too.
            changed(&Wish {
                mode: Some(mode.clone()),
                ..Wish::default()
            })?;
        }
        changed(wish)
    }

    fn check(&self) -> Result<(), String> {
        if self.nodes.len() > MAX_NODES {
            return Err(format!(
                "{} nodes; at most {MAX_NODES} run on one machine",
                self.nodes.len()
            ));
        }
        let aggregators = self.nodes.iter().filter(|node| node.role == "aggregator").count();
        if aggregators != 1 {
            return Err(format!(
                "{aggregators} nodes have the role aggregator; exactly one is wanted"
            ));
        }
        let servers = self.nodes.iter().filter(|node| node.role == "server").count();
        if servers > usize::from(self.sealed) {
            return Err(format!(
                "{servers} nodes have the role server; a sealed example may have one, others none"
            ));
        }
        let managers = self.nodes.iter().filter(|node| node.role == "manager").count();
        let most = if self.sealed { MAX_MANAGERS } else { 0 };
        if managers > most || managers < usize::from(self.sealed) {
            return Err(format!(
                "{managers} nodes have the role manager; a sealed example has one, or up to {MAX_MANAGERS}, others none"
            ));
        }
        for node in &self.nodes {
            if !["aggregator", "worker", "manager", "server"].contains(&node.role.as_str()) {
                return Err(format!(
                    "node {} has the role {}; worker, aggregator, manager or server is wanted",
                    node.name, node.role
                ));
            }
            if !self.participants.contains(&node.participant) {
                return Err(format!(
                    "node {} belongs to {}, who is no participant",
                    node.name, node.participant
                ));
            }
            if node.dataset.is_empty() == node.has_rows() {
                return Err(format!(
                    "node {} has no dataset, or is a manager or a server and has one",
                    node.name
                ));
            }
            if let Some(slice) = node.slice.as_deref().filter(|slice| Slice::parse(slice).is_none()) {
                return Err(format!(
                    "node {}: its slice is {slice:?}; FIRST..END is wanted, such as 0..25000",
                    node.name
                ));
            }
        }
        self.data.check(&self.nodes)?;
        if self.sealed && self.data.file.is_none() {
            return Err("a sealed example deals the rows of a CSV file out".into());
        }
        if self.training.batch == 0 || self.training.evaluation_batch == 0 {
            return Err("batches have at least one row".into());
        }
        self.training.derivation.check(self.training.optimizer)
    }

    /// The aggregator's node.
    pub fn aggregator(&self) -> Option<&NodePlan> {
        self.nodes.iter().find(|node| node.role == "aggregator")
    }

    /// The workers.
    pub fn workers(&self) -> impl Iterator<Item = &NodePlan> {
        self.nodes.iter().filter(|node| node.role == "worker")
    }

    /// The limits of the plan, the others as usual.
    pub fn limits(&self) -> Limits {
        let usual = Limits::default();
        Limits {
            call_s: self.limits.call_s.unwrap_or(usual.call_s),
            round_s: self.limits.round_s.unwrap_or(usual.round_s),
            ..usual
        }
    }

    /// How long nothing may happen before a run is given up: what the slowest worker may take, and an evaluation behind it.
    pub fn patience(&self) -> Duration {
        LEAST_PATIENCE.max(Duration::from_secs(self.rounds.deadline_s + self.limits().round_s))
    }
}
