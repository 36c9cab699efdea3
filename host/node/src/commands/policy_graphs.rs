//! The part of `cloister policy draft` that brings graphs and weights: made from a model, or files at hand.

use std::path::{Path, PathBuf};

use clap::{Args, value_parser};
use cloister_graph::{Limits, Model};
use cloister_policy::agreement::{Graph, Module};
use cloister_policy::{ModuleRole, Scalar};
use cloister_tensor::Digest;

use super::graph;
use super::policy_draft::{each, parse, split};
use crate::consistency::BATCH;
use crate::derivation::{Derivation, OptimizerName};
use crate::drafting::{Parties, Recipe, make_graphs};
use crate::files::{self, digest_of};
use crate::ui::{Exit, Ui, failed};

/// Where graphs and weights come from.
#[derive(Args, Debug)]
#[command(next_help_heading = "Graphs and weights")]
pub(super) struct GraphsArgs {
    /// A forward model: `train`, `evaluate` and the initial weights are made from it, and graphs such as `train@23` for the
    /// last batches that the datasets' rows leave (none for training where a trainer has drop_last = true). What dropouts leave
    /// out is drawn by the host.
    #[arg(long, value_name = "MODEL.onnx", requires_all = ["optimizer", "batch", "graphs_out"])]
    onnx: Option<PathBuf>,
    /// The optimizer that becomes part of the training graphs.
    #[arg(long, value_enum, requires = "onnx")]
    optimizer: Option<OptimizerName>,
    /// Rows of a batch in training; also the setting `batch` of trainers that have none.
    #[arg(long, value_name = "N", requires = "onnx", value_parser = value_parser!(u32).range(1..))]
    batch: Option<u32>,
    /// Rows of a batch in evaluation; by default those of --batch.
    #[arg(long, value_name = "N", requires = "onnx", value_parser = value_parser!(u32).range(1..))]
    evaluation_batch: Option<u32>,
    #[command(flatten)]
    derivation: Option<Derivation>,
    /// Where the made graphs and weights are written.
    #[arg(long, value_name = "DIR", requires = "onnx")]
    graphs_out: Option<PathBuf>,
    /// A graph at hand, its batch and its file (repeat).
    #[arg(long = "graph", value_name = "NAME:BATCH=FILE")]
    graphs: Vec<String>,
    /// Initial weights at hand (safetensors).
    #[arg(long, value_name = "FILE", conflicts_with = "onnx")]
    weights: Option<PathBuf>,
}

impl GraphsArgs {
    /// Sets `batch` for the trainers if graphs are made for one.
    pub(super) fn settle(&self, modules: &mut [Module]) -> Result<(), miette::Report> {
        let Some(batch) = self.batch else { return Ok(()) };
        let wanted = Scalar::Integer(i64::from(batch));
        for module in modules.iter_mut().filter(|module| module.role == ModuleRole::Trainer) {
            let set = module
                .settings
                .entry(BATCH.to_owned())
                .or_insert_with(|| wanted.clone());
            if *set != wanted {
                return Err(contradiction(format!(
                    "--setting {}.{BATCH}={set} contradicts --batch {batch}: graphs would be made for another batch than the \
                     module asks for",
                    module.name
                )));
            }
        }
        Ok(())
    }

    /// The argument that a graph of the policy comes from, by its place there: the given ones stand first.
    pub(super) fn argument(&self, index: Option<usize>) -> String {
        match index.map(|index| self.graphs.get(index)) {
            Some(Some(text)) => format!("--graph {text}"),
            Some(None) => "--onnx and --batch".to_owned(),
            None if self.onnx.is_some() => "--onnx".to_owned(),
            None => "--graph".to_owned(),
        }
    }

    /// The weights that were given.
    pub(super) fn weights(&self) -> Option<&Path> {
        self.weights.as_deref()
    }

    /// The files that are read.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &Path> {
        let graphs = self
            .graphs
            .iter()
            .filter_map(|graph| Some(Path::new(graph.split_once('=')?.1)));
        let forms = self.derivation.as_ref().and_then(|given| given.forms.as_deref());
        graphs
            .chain(self.onnx.as_deref())
            .chain(self.weights.as_deref())
            .chain(forms)
    }

    /// The digest of the initial weights, and the graphs with their files: those given, and those that `parties` need of the model.
    pub(super) fn obtain(
        &self,
        parties: Parties<'_>,
        out: &mut Ui,
    ) -> Result<(Digest, Vec<(Graph, PathBuf)>), miette::Report> {
        let mut graphs = each(&self.graphs, given)?;
        let Some(onnx) = &self.onnx else {
            if self.derivation.is_some() {
                return Err(contradiction(
                    "how graphs are made (--loss, --weight-decay and their like) is said, and no model to make them from: give --onnx"
                        .to_owned(),
                ));
            }
            let (Some(weights), false) = (&self.weights, graphs.is_empty()) else {
                return Err(failed(
                    Exit::Usage,
                    "graphs or weights are missing",
                    Some(
                        "--onnx, --optimizer, --batch and --graphs-out make them from a model; --weights and --graph name files \
                         at hand"
                            .into(),
                    ),
                ));
            };
            return Ok((digest_of(weights)?, graphs));
        };
        if let Some(twice) = graphs
            .iter()
            .map(|(graph, _)| graph)
            .find(|graph| ["train", "evaluate"].contains(&graph.base_name()))
        {
            return Err(contradiction(format!(
                "--graph {} contradicts --onnx, from which all graphs train and evaluate are made: leave one of them out",
                twice.name
            )));
        }
        let (Some(recipe), Some(folder)) = (self.recipe()?, &self.graphs_out) else {
            return Err(contradiction(
                "--onnx wants --optimizer, --batch and --graphs-out".to_owned(),
            ));
        };
        let model =
            Model::parse(&graph::read(onnx)?, &Limits::default()).map_err(|error| graph::refused(onnx, &error))?;
        // What is made has names of its own; none may be that of the model or of a graph that was given.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name == "weights.safetensors" || ["train", "evaluate"].iter().any(|made| name.starts_with(made)) {
                files::not_an_input(&entry.path(), self.inputs())?;
            }
        }
        let made = make_graphs(&model, &recipe, parties, folder)?;
        out.note(format_args!(
            "weights        {}  sha256 {}",
            made.weights_path.display(),
            made.weights
        ));
        for (graph, path) in made.graphs {
            out.note(format_args!(
                "{:<14} {}  sha256 {}",
                graph.name,
                path.display(),
                graph.sha256
            ));
            graphs.push((graph, path));
        }
        Ok((made.weights, graphs))
    }

    fn recipe(&self) -> Result<Option<Recipe>, miette::Report> {
        let (Some(optimizer), Some(batch)) = (self.optimizer, self.batch) else {
            return Ok(None);
        };
        let derivation = self.derivation.clone().unwrap_or_default();
        let options = derivation.options(optimizer, batch as usize)?;
        Ok(Some(Recipe {
            options,
            batch,
            evaluation_batch: self.evaluation_batch.unwrap_or(batch),
        }))
    }
}

fn given(text: &str) -> Result<(Graph, PathBuf), miette::Report> {
    let (head, path) = split(text, "=", text, "NAME:BATCH=FILE")?;
    let (name, batch) = split(head, ":", text, "NAME:BATCH=FILE")?;
    let graph = Graph {
        name: name.to_owned(),
        batch: parse(batch, text)?,
        sha256: digest_of(Path::new(path))?,
        nodes: None,
    };
    Ok((graph, path.into()))
}

fn contradiction(message: String) -> miette::Report {
    failed(Exit::Usage, message, None)
}
