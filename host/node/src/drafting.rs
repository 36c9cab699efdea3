//! The graphs of a policy, out of a forward model: `train` for the datasets of workers, `evaluate` for those of the
//! aggregator, and `NAME@ROWS` for each last batch that their row counts leave.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use cloister_attestation::identity::Role;
use cloister_graph::{GraphError, Model, TrainOptions, train};
use cloister_policy::agreement::{Dataset, Graph, Module, Node};
use cloister_policy::{ModuleRole, Scalar};
use cloister_tensor::{Digest, TensorError, safetensors};

use crate::files;
use crate::ui::{Exit, fail};

/// The module setting that leaves rows out which fill no batch.
const DROP_LAST: &str = "drop_last";

/// How the graphs are made.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Everything but the batch of each graph.
    pub options: TrainOptions,
    /// Rows of a batch of `train`; at least 1.
    pub batch: u32,
    /// Rows of a batch of `evaluate`; at least 1.
    pub evaluation_batch: u32,
}

/// The parts of an agreement on which batch sizes depend.
#[derive(Clone, Copy, Debug)]
pub struct Parties<'a> {
    /// Its nodes.
    pub nodes: &'a [Node],
    /// Its modules; those with `drop_last = true` need no graph for a last batch.
    pub modules: &'a [Module],
    /// Its datasets.
    pub datasets: &'a [Dataset],
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Drafted {
    /// SHA-256 of the initial weights.
    pub weights: Digest,
    /// Their file (safetensors).
    pub weights_path: PathBuf,
    /// The graphs as the policy names them, each with its file.
    pub graphs: Vec<(Graph, PathBuf)>,
}

/// Why graphs cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum DraftingError {
    /// There is nothing to train on.
    #[error("no worker has a dataset: there are no rows to train on")]
    NoRows,
    /// A dataset keeps its row count to itself.
    #[error(
        "dataset {dataset:?} of {node} does not say how many rows it has, so the size of its last batch is not known: add \
         `rows` to it, {}or give graphs of your own", if *training { "set drop_last = true for the trainer, " } else { "" }
    )]
    RowsUnknown {
        /// The dataset.
        dataset: String,
        /// Whose it is.
        node: String,
        /// Whether it is for training; an evaluation leaves no rows out, whatever modules are set to.
        training: bool,
    },
    /// All rows of a dataset would be left out.
    #[error(
        "dataset {dataset:?} of {node} has {rows} rows, which fill no batch of {batch}, and drop_last = true leaves them \
         out: choose a smaller batch or set drop_last = false"
    )]
    NoWholeBatch {
        /// The dataset.
        dataset: String,
        /// Whose it is.
        node: String,
        /// Its rows.
        rows: u64,
        /// Rows of a batch.
        batch: u32,
    },
    /// The model cannot be made into this graph.
    #[error("graph {name:?}")]
    Graph {
        /// The graph's name.
        name: String,
        /// What does not fit.
        source: GraphError,
    },
    /// The initial weights cannot be written down.
    #[error("the initial weights")]
    Weights(#[source] TensorError),
    /// A file or the folder cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl From<DraftingError> for miette::Report {
    fn from(error: DraftingError) -> Self {
        let exit = match error {
            DraftingError::Write { .. } => Exit::Failed,
            _ => Exit::Usage,
        };
        fail(exit, error)
    }
}

/// Makes the graphs that `parties` need, and writes them and the initial weights to `folder`: `weights.safetensors`,
/// `train.onnx`, `train-23.onnx` (for `train@23`) and so on. The same arguments give the same bytes.
///
/// # Errors
/// [`DraftingError`]; nothing is written if batch sizes are not known.
pub fn make_graphs(
    forward: &Model,
    recipe: &Recipe,
    parties: Parties<'_>,
    folder: &Path,
) -> Result<Drafted, DraftingError> {
    let wanted = [
        ("train", recipe.batch, parties.training_sizes(recipe.batch)?),
        (
            "evaluate",
            recipe.evaluation_batch,
            parties.evaluation_sizes(recipe.evaluation_batch)?,
        ),
    ];
    std::fs::create_dir_all(folder).map_err(|source| DraftingError::Write {
        path: folder.to_owned(),
        source,
    })?;
    let weights = safetensors::write(&forward.initial_weights(), &BTreeMap::new()).map_err(DraftingError::Weights)?;
    let weights_path = write(folder.join("weights.safetensors"), &weights)?;
    let mut graphs = Vec::new();
    for (base, batch, sizes) in wanted {
        // The full batch first, as people read it.
        for size in sizes.into_iter().rev() {
            let (name, file) = if size == batch {
                (base.to_owned(), format!("{base}.onnx"))
            } else {
                (format!("{base}@{size}"), format!("{base}-{size}.onnx"))
            };
            let mut options = recipe.options.clone();
            options.batch = size as usize;
            let made = train(forward, &options).map_err(|source| DraftingError::Graph {
                name: name.clone(),
                source,
            })?;
            let made = if base == "train" {
                made.training
            } else {
                made.evaluation
            };
            let path = write(folder.join(file), made.bytes())?;
            let graph = Graph {
                name,
                sha256: Digest::of(made.bytes()),
                batch: size,
                nodes: None,
            };
            graphs.push((graph, path));
        }
    }
    Ok(Drafted {
        weights: Digest::of(&weights),
        weights_path,
        graphs,
    })
}

impl Parties<'_> {
    /// Batch sizes of `train`: the batch, and what each worker's dataset leaves at its end unless its trainers drop it.
    fn training_sizes(&self, batch: u32) -> Result<BTreeSet<u32>, DraftingError> {
        let mut sizes = BTreeSet::new();
        for dataset in self.datasets_on(Role::Worker) {
            sizes.insert(batch);
            if self.drops_last(&dataset.node) {
                some_batch(dataset, batch)?;
            } else {
                sizes.extend(remainder(dataset, batch, true)?);
            }
        }
        if sizes.is_empty() {
            return Err(DraftingError::NoRows);
        }
        Ok(sizes)
    }

    /// Batch sizes of `evaluate`. An evaluation leaves no row out, whatever modules are set to.
    fn evaluation_sizes(&self, batch: u32) -> Result<BTreeSet<u32>, DraftingError> {
        let mut sizes = BTreeSet::new();
        for dataset in self.datasets_on(Role::Aggregator) {
            sizes.insert(batch);
            sizes.extend(remainder(dataset, batch, false)?);
        }
        Ok(sizes)
    }

    fn datasets_on(&self, role: Role) -> impl Iterator<Item = &Dataset> {
        let holds = move |dataset: &&Dataset| {
            self.nodes
                .iter()
                .any(|node| node.name == dataset.node && node.role == role)
        };
        self.datasets.iter().filter(holds)
    }

    /// Whether every trainer of the node leaves a last, smaller batch out.
    fn drops_last(&self, node: &str) -> bool {
        let runs = |module: &&Module| {
            let named = module.nodes.as_ref();
            module.role == ModuleRole::Trainer && named.is_none_or(|nodes| nodes.iter().any(|name| name == node))
        };
        let mut trainers = self.modules.iter().filter(runs).peekable();
        trainers.peek().is_some()
            && trainers.all(|module| module.settings.get(DROP_LAST) == Some(&Scalar::Boolean(true)))
    }
}

/// Rows of the dataset's last batch, if it is smaller than the others.
fn remainder(dataset: &Dataset, batch: u32, training: bool) -> Result<Option<u32>, DraftingError> {
    let rows = dataset.rows.ok_or_else(|| DraftingError::RowsUnknown {
        dataset: dataset.name().to_owned(),
        node: dataset.node.clone(),
        training,
    })?;
    // Below a u32, hence one.
    let rest = u32::try_from(rows % u64::from(batch.max(1))).unwrap_or_default();
    Ok((rest > 0).then_some(rest))
}

/// Refuses a dataset without a single whole batch, if its rows are known.
fn some_batch(dataset: &Dataset, batch: u32) -> Result<(), DraftingError> {
    match dataset.rows.filter(|rows| *rows < u64::from(batch)) {
        None => Ok(()),
        Some(rows) => Err(DraftingError::NoWholeBatch {
            dataset: dataset.name().to_owned(),
            node: dataset.node.clone(),
            rows,
            batch,
        }),
    }
}

fn write(path: PathBuf, content: &[u8]) -> Result<PathBuf, DraftingError> {
    match files::try_write(&path, content) {
        Ok(()) => Ok(path),
        Err(source) => Err(DraftingError::Write { path, source }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that panics says where")]
mod tests;
