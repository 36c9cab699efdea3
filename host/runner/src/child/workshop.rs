//! What is loaded, and the work that is done with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use cloister_data::{DataLimits, Dataset, Format, Source};
use cloister_graph::EngineGraph;
use cloister_policy::{DatasetSpec, InputType, MadeSpec};
use cloister_sandbox::{
    AggregateCall, AggregateOutcome, CallLimits, Made, Module, Rows, Sandbox, SharedGraph, TrainCall, TrainError,
    TrainOutcome, Transform, TransformedRows,
};
use cloister_tensor::{Dtype, TensorMap};

use super::engine::Engine;
use super::evaluate::{Evaluation, LABELS, evaluate};
use crate::blob::SealedBlob;
use crate::message::{AggregateOrder, EvaluateOrder, Failure, Reply, TrainOrder, TransformSettings};
use crate::options::RunnerLimits;
use crate::slots::SharedSlots;
use crate::tensors::{SharedTensors, WireLayout};

/// How updates come to an aggregator.
pub(super) type Updates<'a> = dyn FnMut() -> Result<Option<cloister_sandbox::WorkerUpdate>, String> + 'a;

/// The engine, the sandbox, and everything that was loaded.
pub(super) struct Workshop {
    engine: Engine,
    sandbox: Sandbox,
    limits: RunnerLimits,
    modules: BTreeMap<String, Module>,
    graphs: BTreeMap<String, SharedGraph>,
    /// Classes that the labels of a graph choose from, for graphs that have such labels.
    classes: BTreeMap<String, usize>,
    datasets: BTreeMap<String, Dataset>,
}

/// A request that names something which is not there, or comes with the wrong things.
pub(super) fn bad_request(message: impl Into<String>) -> Failure {
    Failure::Request {
        message: message.into(),
    }
}

impl Workshop {
    pub(super) fn new(engine: Engine, sandbox: Sandbox, limits: RunnerLimits) -> Self {
        Self {
            engine,
            sandbox,
            limits,
            modules: BTreeMap::new(),
            graphs: BTreeMap::new(),
            classes: BTreeMap::new(),
            datasets: BTreeMap::new(),
        }
    }

    pub(super) fn load_module(&mut self, name: String, memory: OwnedFd) -> Result<Reply, Failure> {
        room(&self.modules, &name, self.limits.loaded)?;
        let file = self.file(memory)?;
        let module = self.sandbox.load(&name, file.bytes()).map_err(Failure::Module)?;
        let reply = Reply::ModuleLoaded {
            digest: module.digest(),
            world: module.world().to_string(),
        };
        self.modules.insert(name, module);
        Ok(reply)
    }

    pub(super) fn load_graph(&mut self, name: String, memory: OwnedFd) -> Result<Reply, Failure> {
        room(&self.graphs, &name, self.limits.loaded)?;
        let file = self.file(memory)?;
        let refuse = |message: String| Failure::Graph {
            name: name.clone(),
            message,
        };
        let graph = EngineGraph::load(file.bytes()).map_err(|error| refuse(error.to_string()))?;
        let compiled = self
            .engine
            .backend
            .compile(&graph, &self.engine.options)
            .map_err(|error| refuse(error.to_string()))?;
        let reply = Reply::GraphLoaded {
            digest: graph.digest(),
            source_digest: graph.source_digest(),
        };
        match graph.classes() {
            Some(classes) => self.classes.insert(name.clone(), classes),
            None => self.classes.remove(&name),
        };
        self.graphs.insert(name, Arc::new(Mutex::new(compiled)));
        Ok(reply)
    }

    pub(super) fn open_dataset(
        &mut self,
        name: String,
        file: (String, OwnedFd),
        format: &str,
        spec: &str,
        salt: &[u8; 32],
    ) -> Result<Reply, Failure> {
        room(&self.datasets, &name, self.limits.loaded)?;
        let refuse = |message: String| Failure::Dataset {
            name: name.clone(),
            message,
        };
        let format: Format = format
            .parse()
            .map_err(|error: cloister_data::UnknownFormat| refuse(error.to_string()))?;
        let spec = DatasetSpec::parse(spec.as_bytes(), "the dataset's description")
            .map_err(|error| refuse(error.to_string()))?;
        let limits = DataLimits {
            memory_bytes: self.limits.dataset_bytes,
            ..DataLimits::default()
        };
        let source = Source::from_file(file.0, File::from(file.1)).map_err(|error| refuse(in_words(&error)))?;
        let dataset = Dataset::open(&source, format, &spec, &limits).map_err(|error| refuse(in_words(&error)))?;
        let (rows, commitment, memory_bytes) = (dataset.rows(), dataset.commitment(salt), dataset.memory_bytes());
        let skipped = dataset.skipped().clone();
        self.datasets.insert(name, dataset);
        Ok(Reply::DatasetOpened {
            rows,
            commitment,
            memory_bytes,
            skipped: skipped.rows,
            damaged: skipped.first,
        })
    }

    pub(super) fn train(&self, order: TrainOrder, model: OwnedFd) -> Result<TrainOutcome, Failure> {
        let classes = self.check_labels(&order.datasets, &order.graphs)?;
        let transforms = (&order.transforms, &order.limits, classes);
        let datasets = order.datasets.iter();
        let datasets = datasets.map(|name| Ok((name.clone(), self.rows(name, transforms)?)));
        let call = TrainCall {
            module: self.module(&order.module)?,
            settings: order.settings,
            grants: order.grants,
            graphs: self.graphs(&order.graphs)?,
            model: self.tensors(model, order.model)?,
            datasets: datasets.collect::<Result<_, _>>()?,
            round: order.round,
            update: order.update,
            limits: order.limits,
        };
        self.sandbox.train(call).map_err(|error| match error {
            TrainError::Module(error) => Failure::Module(error),
            TrainError::Dataset { name, message } => Failure::Dataset { name, message },
            other => bad_request(other.to_string()),
        })
    }

    pub(super) fn aggregate(
        &self,
        order: AggregateOrder,
        (model, slots): (OwnedFd, Vec<OwnedFd>),
        updates: &mut Updates<'_>,
    ) -> Result<AggregateOutcome, Failure> {
        let model = self.tensors(model, order.model)?;
        let bytes = model.values().map(|tensor| tensor.bytes().len() as u64).sum();
        let slots = SharedSlots::accept(order.slots, slots, bytes).and_then(|slots| slots.to_map());
        let call = AggregateCall {
            module: self.module(&order.module)?,
            settings: order.settings,
            model,
            statistics: order.statistics,
            round: order.round,
            update: order.update,
            slots: slots.map_err(|error| bad_request(error.to_string()))?,
            limits: order.limits,
        };
        self.sandbox.aggregate(call, updates).map_err(Failure::Module)
    }

    pub(super) fn evaluate(&self, order: &EvaluateOrder, model: OwnedFd) -> Result<Evaluation, Failure> {
        let classes = self.check_labels(std::iter::once(&order.dataset), &order.graphs)?;
        let rows = self.rows(&order.dataset, (&order.transforms, &order.limits, classes))?;
        let model = self.tensors(model, order.model.clone())?;
        let dataset = (order.dataset.as_str(), rows.as_ref());
        evaluate(&self.graphs(&order.graphs)?, dataset, &model, &order.limits)
    }

    /// Refuses labels that name no class of a graph: its loss would be NaN, and look as if the training had diverged. Labels that a
    /// transform makes are looked at as they are made; gives the number of classes that they choose from.
    fn check_labels<'a>(
        &self,
        datasets: impl IntoIterator<Item = &'a String>,
        graphs: &BTreeSet<String>,
    ) -> Result<Option<usize>, Failure> {
        let fewest = graphs
            .iter()
            .filter_map(|name| Some((self.classes.get(name)?, name)))
            .min();
        let Some((classes, graph)) = fewest else {
            return Ok(None);
        };
        for name in datasets {
            let read = self.datasets.get(name).filter(|dataset| {
                let transform = dataset.spec().transform.as_ref();
                !transform.is_some_and(|transform| transform.makes.contains_key(LABELS))
            });
            let outside = read.and_then(|dataset| dataset.first_outside(LABELS, *classes));
            if let Some((row, label)) = outside {
                let last = classes.saturating_sub(1);
                return Err(Failure::Dataset {
                    name: name.clone(),
                    message: format!(
                        "row {row}, counted from 1: seen the label {label}, wanted 0 to {last}: graph {graph:?} has {classes} classes"
                    ),
                });
            }
        }
        Ok(Some(*classes))
    }

    /// Tensors that came from the keeper, in place.
    pub(super) fn tensors(&self, memory: OwnedFd, layout: WireLayout) -> Result<TensorMap, Failure> {
        let blob =
            SealedBlob::accept(memory, self.limits.tensor_bytes).map_err(|error| bad_request(error.to_string()))?;
        let shared = SharedTensors::from_wire(blob, layout).map_err(|error| bad_request(error.to_string()))?;
        shared.to_map().map_err(|error| bad_request(error.to_string()))
    }

    fn file(&self, memory: OwnedFd) -> Result<SealedBlob, Failure> {
        SealedBlob::accept(memory, self.limits.file_bytes).map_err(|error| bad_request(error.to_string()))
    }

    fn module(&self, name: &str) -> Result<Module, Failure> {
        self.modules
            .get(name)
            .cloned()
            .ok_or_else(|| unknown("module", name, self.modules.keys()))
    }

    fn graphs(&self, names: &BTreeSet<String>) -> Result<BTreeMap<String, SharedGraph>, Failure> {
        let graph = |name: &String| {
            let graph = self
                .graphs
                .get(name)
                .ok_or_else(|| unknown("graph", name, self.graphs.keys()))?;
            Ok((name.clone(), Arc::clone(graph)))
        };
        names.iter().map(graph).collect()
    }

    /// A dataset as a call sees it: its rows, or what its transform makes of them.
    fn rows(
        &self,
        name: &str,
        (settings, limits, classes): (&TransformSettings, &CallLimits, Option<usize>),
    ) -> Result<Arc<dyn Rows>, Failure> {
        let rows = self
            .datasets
            .get(name)
            .ok_or_else(|| unknown("dataset", name, self.datasets.keys()))?
            .clone();
        let Some(transform) = rows.spec().transform.clone() else {
            return Ok(Arc::new(rows));
        };
        let settings = settings.get(&transform.module).ok_or_else(|| {
            bad_request(format!(
                "dataset {name:?} goes through the transform {:?}, whose settings are not given",
                transform.module
            ))
        })?;
        let makes = transform.makes.iter();
        let makes = makes.map(|(input, spec)| (input.clone(), made(spec, classes.filter(|_| input == LABELS))));
        let transform = Transform {
            module: self.module(&transform.module)?,
            settings: settings.clone(),
            makes: makes.collect(),
            limits: limits.clone(),
        };
        Ok(Arc::new(TransformedRows {
            sandbox: self.sandbox.clone(),
            rows,
            transform: Arc::new(transform),
        }))
    }
}

fn made(spec: &MadeSpec, classes: Option<usize>) -> Made {
    Made {
        shape: spec.shape.clone(),
        dtype: match spec.dtype {
            InputType::U8 => Dtype::U8,
            InputType::F32 => Dtype::F32,
            InputType::I64 => Dtype::I64,
        },
        classes,
    }
}

/// Refuses one more than may be loaded.
fn room<T>(loaded: &BTreeMap<String, T>, name: &str, limit: usize) -> Result<(), Failure> {
    if loaded.len() < limit || loaded.contains_key(name) {
        return Ok(());
    }
    Err(bad_request(format!(
        "{name:?} would be one more than the {limit} that may be loaded"
    )))
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a String>) -> Failure {
    let known: Vec<&str> = known.map(String::as_str).take(16).collect();
    bad_request(format!(
        "no {what} {name:?} is loaded; loaded are: {}",
        known.join(", ")
    ))
}

/// An error with its causes.
fn in_words(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", in_words(cause)),
        None => error.to_string(),
    }
}
