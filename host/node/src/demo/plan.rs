//! An example's plan: `federation.toml` in its folder says who takes part, which rows go where, and what is trained.
//! From it `cloister demo` writes what the parties of a real federation would write by hand: keys, credentials, graphs,
//! the policy and one node file a node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cloister_policy::agreement::{RoundMode, Rounds};
use serde::Deserialize;

use crate::drafting::OptimizerName;

/// No plan is larger than this.
const MAX_PLAN_BYTES: u64 = 64 * 1024;
/// No example has more nodes than this: each is two processes on one machine.
const MAX_NODES: usize = 16;

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
}

/// The data of an example: one CSV file, whose rows are dealt out to the nodes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPlan {
    /// The CSV file, with a header, beside the plan.
    pub file: PathBuf,
    /// Seed of the order in which rows are dealt.
    pub seed: u64,
    /// What the model's inputs are made of, as the policy writes it.
    pub inputs: toml::Table,
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
}

/// The model of an example.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPlan {
    /// The model's name in the policy.
    pub name: String,
    /// Which sample it is.
    pub sample: Sample,
    /// Input features (for `cnn`: the side of the square image).
    pub inputs: usize,
    /// Classes.
    pub classes: usize,
    /// Width of the hidden layer.
    #[serde(default)]
    pub hidden: usize,
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
    /// The optimizer inside the training graph.
    pub optimizer: OptimizerName,
    /// Rows of one step.
    pub batch: u32,
    /// Rows of one evaluation step.
    pub evaluation_batch: u32,
    /// L2 decay inside the training graph.
    #[serde(default)]
    pub weight_decay: f64,
    /// FedProx's weight inside the training graph.
    #[serde(default)]
    pub proximal: f64,
    /// The trainer's settings.
    #[serde(default)]
    pub settings: toml::Table,
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

/// A node of an example.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePlan {
    /// Its name.
    pub name: String,
    /// `worker` or `aggregator`; in a sealed example one is the `manager`.
    pub role: String,
    /// Whose it is.
    pub participant: String,
    /// Its dataset's name; a manager has none.
    #[serde(default)]
    pub dataset: String,
    /// Its share of the rows, as a weight among all shares; a manager has none.
    #[serde(default)]
    pub share: u32,
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
    /// The nodes.
    #[serde(rename = "node")]
    pub nodes: Vec<NodePlan>,
    /// Who gets the model.
    pub release: ReleasePlan,
    /// The folder of the plan.
    #[serde(skip)]
    pub folder: PathBuf,
}

impl Plan {
    /// Reads `federation.toml` in an example's folder.
    pub fn load(folder: &Path) -> Result<Self, PlanError> {
        let path = folder.join("federation.toml");
        let shown = path.display().to_string();
        let read = |cause| PlanError::Read {
            path: shown.clone(),
            cause,
        };
        if std::fs::metadata(&path).map_err(read)?.len() > MAX_PLAN_BYTES {
            return Err(PlanError::Meaning {
                path: shown,
                message: format!("over {MAX_PLAN_BYTES} bytes"),
            });
        }
        let text = std::fs::read_to_string(&path).map_err(read)?;
        let mut plan: Self = toml::from_str(&text).map_err(|cause| PlanError::Syntax {
            path: shown.clone(),
            cause: Box::new(cause),
        })?;
        plan.folder = folder.to_path_buf();
        plan.check()
            .map_err(|message| PlanError::Meaning { path: shown, message })?;
        Ok(plan)
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
        let managers = self.nodes.iter().filter(|node| node.role == "manager").count();
        if managers != usize::from(self.sealed) {
            return Err(format!(
                "{managers} nodes have the role manager; a sealed example has one, others none"
            ));
        }
        for node in &self.nodes {
            if !["aggregator", "worker", "manager"].contains(&node.role.as_str()) {
                return Err(format!(
                    "node {} has the role {}; worker, aggregator or manager is wanted",
                    node.name, node.role
                ));
            }
            if !self.participants.contains(&node.participant) {
                return Err(format!(
                    "node {} belongs to {}, who is no participant",
                    node.name, node.participant
                ));
            }
            if (node.share == 0 || node.dataset.is_empty()) != (node.role == "manager") {
                return Err(format!(
                    "node {} has no share of the rows, or is a manager and has one",
                    node.name
                ));
            }
        }
        if self.training.batch == 0 || self.training.evaluation_batch == 0 {
            return Err("batches have at least one row".into());
        }
        Ok(())
    }

    /// The aggregator's node.
    pub fn aggregator(&self) -> Option<&NodePlan> {
        self.nodes.iter().find(|node| node.role == "aggregator")
    }

    /// The workers.
    pub fn workers(&self) -> impl Iterator<Item = &NodePlan> {
        self.nodes.iter().filter(|node| node.role == "worker")
    }

    /// Deals the rows of the CSV file out: one text (header and rows) a node, disjoint, every row used once.
    pub fn deal(&self) -> Result<BTreeMap<String, Dealt>, PlanError> {
        let path = self.folder.join(&self.data.file);
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|cause| PlanError::Read {
            path: shown.clone(),
            cause,
        })?;
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        let header = lines.next().ok_or_else(|| PlanError::Meaning {
            path: shown,
            message: "the file has no header".into(),
        })?;
        let mut rows: Vec<&str> = lines.collect();
        shuffle(&mut rows, self.data.seed);
        let shares: u64 = self.nodes.iter().map(|node| u64::from(node.share)).sum();
        let mut dealt = BTreeMap::new();
        let (mut given, mut before) = (0u64, 0usize);
        for node in &self.nodes {
            given += u64::from(node.share);
            let until = (rows.len() as u64 * given / shares) as usize;
            let own = rows.get(before..until).unwrap_or_default();
            let mut text = String::with_capacity(own.iter().map(|row| row.len() + 1).sum::<usize>() + header.len() + 1);
            for line in std::iter::once(&header).chain(own) {
                text.push_str(line);
                text.push('\n');
            }
            dealt.insert(node.name.clone(), Dealt { text, rows: own.len() });
            before = until;
        }
        Ok(dealt)
    }
}

/// A node's rows.
#[derive(Clone, Debug)]
pub struct Dealt {
    /// CSV, with the header.
    pub text: String,
    /// How many rows.
    pub rows: usize,
}

/// Orders rows by the digest of seed and position: a fixed order that needs no generator.
fn shuffle(rows: &mut Vec<&str>, seed: u64) {
    let mut keyed: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| {
            let mut key = seed.to_be_bytes().to_vec();
            key.extend_from_slice(&(index as u64).to_be_bytes());
            (cloister_tensor::Digest::of(&key), *row)
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    *rows = keyed.into_iter().map(|(_, row)| row).collect();
}
