//! Training and evaluation graphs out of a forward model.

use std::collections::{BTreeMap, BTreeSet};

use cloister_tensor::Dtype;

use crate::bind::Bound;
use crate::builder::Builder;
use crate::differentiate::Replay;
use crate::engine_graph::EngineGraph;
use crate::error::GraphError;
use crate::ir::ValueId;
use crate::loss::{self, Loss};
use crate::model::Model;
use crate::ops::{Mode, WeightGradient};
use crate::optimizer::{Optimizer, Update};
use crate::port::{self, PortKind};

/// What kind of training graph is wanted.
#[derive(Clone, Debug)]
pub struct TrainOptions {
    /// The loss.
    pub loss: Loss,
    /// The optimizer, written into the graph.
    pub optimizer: Optimizer,
    /// Rows of a batch; the graph is fixed to it.
    pub batch: usize,
    /// L2: this times the parameter is added to its gradient before the optimizer sees it. 0 for none.
    pub weight_decay: f64,
    /// Parameters that are not trained: names, or beginnings of names followed by `*`.
    pub freeze: Vec<String>,
    /// Whether gradients are outputs besides the next parameters. Without an optimizer they always are.
    pub gradients: bool,
    /// The output that holds the logits; may be left out for models with one output.
    pub logits: Option<String>,
    /// Form of the gradients of convolution weights.
    pub weight_gradient: WeightGradient,
}

impl TrainOptions {
    /// Cross entropy, no decay, nothing frozen.
    pub fn new(optimizer: Optimizer, batch: usize) -> Self {
        Self {
            loss: Loss::default(),
            optimizer,
            batch,
            weight_decay: 0.0,
            freeze: Vec::new(),
            gradients: false,
            logits: None,
            weight_gradient: WeightGradient::default(),
        }
    }
}

/// The two graphs of a model.
#[derive(Clone, Debug)]
pub struct TrainedGraphs {
    /// Parameters, batch (and optimizer state) in; loss and next parameters or gradients out.
    pub training: EngineGraph,
    /// Parameters and batch in; loss, hits and the model's outputs out. Uses running statistics.
    pub evaluation: EngineGraph,
}

/// Largest batch.
const MAX_BATCH: usize = 1 << 20;

/// Makes the training and the evaluation graph of a forward model.
///
/// The same model and options give the same bytes.
///
/// # Errors
/// [`GraphError`] names the node that can't be differentiated or does not fit, the option that is out of range, or the part of
/// the model's interface that clashes with that of a training graph.
pub fn train(model: &Model, options: &TrainOptions) -> Result<TrainedGraphs, GraphError> {
    check(model, options)?;
    let bound = model.with_ports(options.batch)?;
    Ok(TrainedGraphs {
        training: training(model, options, &bound)?,
        evaluation: evaluation(model, options, &bound)?,
    })
}

fn check(model: &Model, options: &TrainOptions) -> Result<(), GraphError> {
    if model.has_typed_ports() {
        return Err(GraphError::Interface(
            "this is a training or evaluation graph already; the forward model is wanted".to_owned(),
        ));
    }
    if options.batch == 0 || options.batch > MAX_BATCH {
        let problem = format!("{} was given, 1 to {MAX_BATCH} is wanted", options.batch);
        return Err(GraphError::Option {
            option: "--batch",
            problem,
        });
    }
    if !(options.weight_decay >= 0.0 && options.weight_decay.is_finite()) {
        let problem = format!("{} was given, at least 0 is wanted", options.weight_decay);
        return Err(GraphError::Option {
            option: "--weight-decay",
            problem,
        });
    }
    options.optimizer.check()
}

/// The logits: the output that was named, or the only one.
fn logits(options: &TrainOptions, bound: &Bound) -> Result<(String, ValueId), GraphError> {
    let outputs = &bound.graph.outputs;
    let names = || {
        outputs
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (&options.logits, &outputs[..]) {
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(GraphError::Option {
            option: "--logits",
            problem: format!(
                "the model has several outputs ({}): name the one with the logits",
                names()
            ),
        }),
        (Some(wanted), _) => {
            outputs
                .iter()
                .find(|(name, _)| name == wanted)
                .cloned()
                .ok_or_else(|| GraphError::Option {
                    option: "--logits",
                    problem: format!("no output '{wanted}'; there are {}", names()),
                })
        }
    }
}

/// Ports under construction: each input and output together with its kind.
struct Ports {
    builder: Builder,
    inputs: Vec<PortKind>,
    outputs: Vec<PortKind>,
    taken: BTreeSet<String>,
}

impl Ports {
    fn new(model: &Model, options: &TrainOptions) -> Self {
        let mut builder = Builder::new(model.limits());
        builder.weight_gradient = options.weight_gradient;
        Self {
            builder,
            inputs: Vec::new(),
            outputs: Vec::new(),
            taken: BTreeSet::new(),
        }
    }

    fn claim(&mut self, name: &str) -> Result<(), GraphError> {
        if !self.taken.insert(name.to_owned()) {
            return Err(GraphError::Interface(format!(
                "two ports would be called '{name}'; rename the model's input, output or parameter of that name"
            )));
        }
        Ok(())
    }

    fn input(&mut self, kind: PortKind, dtype: Dtype, shape: &[usize]) -> Result<ValueId, GraphError> {
        let name = kind.port_name();
        self.claim(&name)?;
        self.inputs.push(kind);
        self.builder.input(&name, dtype, shape)
    }

    fn output(&mut self, kind: PortKind, value: ValueId) -> Result<(), GraphError> {
        let name = kind.port_name();
        self.claim(&name)?;
        self.outputs.push(kind);
        self.builder.output(&name, value)
    }

    /// The model's inputs, labels, parameters and statistics, as both graphs have them.
    fn forward(
        &mut self,
        options: &TrainOptions,
        bound: &Bound,
    ) -> Result<(BTreeMap<ValueId, ValueId>, ValueId), GraphError> {
        let mut inputs = BTreeMap::new();
        let mut add = |ports: &mut Self, ids: &[ValueId], kind: fn(String) -> PortKind| {
            for &id in ids {
                let value = bound.graph.value(id);
                let port = ports.input(kind(value.name.clone()), value.dtype, &value.shape)?;
                inputs.insert(id, port);
            }
            Ok::<(), GraphError>(())
        };
        add(self, &bound.data, PortKind::Data)?;
        let labels = self.input(PortKind::Labels, Dtype::I64, &[options.batch])?;
        add(self, &bound.parameters, PortKind::Parameter)?;
        add(self, &bound.statistics, PortKind::Statistic)?;
        Ok((inputs, labels))
    }

    fn finish(self, kind: &str, model: &Model, options: &TrainOptions) -> Result<EngineGraph, GraphError> {
        let mut metadata = BTreeMap::new();
        let mut note = |key: &str, value: String| metadata.insert(format!("cloister.{key}"), value);
        note("format", "1".to_owned());
        note("kind", kind.to_owned());
        note("batch", options.batch.to_string());
        note("loss", options.loss.name().to_owned());
        note("model_sha256", model.digest().to_string());
        if kind == TRAINING {
            note("optimizer", options.optimizer.name().to_owned());
            note("weight_decay", options.weight_decay.to_string());
            for (name, value) in options.optimizer.constants() {
                note(name, value.to_string());
            }
        }
        port::to_metadata(&self.inputs, &self.outputs, &mut metadata);
        EngineGraph::of(self.builder.finish(metadata)?, None)
    }
}

const TRAINING: &str = "training";
const EVALUATION: &str = "evaluation";

/// The parameters that are trained.
fn trained(options: &TrainOptions, bound: &Bound) -> Result<Vec<ValueId>, GraphError> {
    let name = |id: ValueId| bound.graph.value(id).name.as_str();
    let matches = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    };
    for pattern in &options.freeze {
        if !bound.parameters.iter().any(|&id| matches(pattern, name(id))) {
            let all: Vec<&str> = bound.parameters.iter().map(|&id| name(id)).take(20).collect();
            let problem = format!("no parameter '{pattern}'; there are {}", all.join(", "));
            return Err(GraphError::Option {
                option: "--freeze",
                problem,
            });
        }
    }
    let frozen = |&id: &ValueId| options.freeze.iter().any(|pattern| matches(pattern, name(id)));
    let trained: Vec<ValueId> = bound.parameters.iter().copied().filter(|id| !frozen(id)).collect();
    if trained.is_empty() {
        return Err(GraphError::Interface("the model has no parameter to train".to_owned()));
    }
    Ok(trained)
}

fn training(model: &Model, options: &TrainOptions, bound: &Bound) -> Result<EngineGraph, GraphError> {
    let trained = trained(options, bound)?;
    let mut ports = Ports::new(model, options);
    let (inputs, labels) = ports.forward(options, bound)?;
    let parameters: Vec<(String, ValueId)> = trained
        .iter()
        .map(|id| (bound.graph.value(*id).name.clone(), inputs[id]))
        .collect();
    let pace = match options.optimizer {
        Optimizer::None => None,
        _ => Some((
            ports.input(PortKind::LearningRate, Dtype::F32, &[1])?,
            ports.input(PortKind::Step, Dtype::I64, &[1])?,
        )),
    };
    let mut states = Vec::new();
    for (param, id) in &parameters {
        let shape = ports.builder.shape(*id).to_vec();
        let mut slots = Vec::new();
        for slot in options.optimizer.slots() {
            let kind = PortKind::State {
                slot: (*slot).to_owned(),
                param: param.clone(),
            };
            slots.push(ports.input(kind, Dtype::F32, &shape)?);
        }
        states.push(slots);
    }

    let replay = Replay::write(&mut ports.builder, bound, inputs, Mode::Training)?;
    let (name, source) = logits(options, bound)?;
    let logits = replay.value(&ports.builder, source)?;
    loss::classes(&ports.builder, logits, &name, options.batch)?;
    let Loss::SoftmaxCrossEntropy = options.loss;
    let lost = loss::softmax_cross_entropy(&mut ports.builder, logits, labels)?;
    let wanted: BTreeSet<ValueId> = trained.iter().copied().collect();
    let gradients = replay.backward(&mut ports.builder, &wanted, (source, lost.gradient))?;
    ports.output(PortKind::Loss, lost.loss)?;

    let mut parts = Vec::with_capacity(trained.len());
    for (id, (name, _)) in trained.iter().zip(&parameters) {
        parts.push(*gradients.get(id).ok_or_else(|| {
            GraphError::Interface(format!(
                "no gradient of the loss reaches the parameter '{name}'; freeze it (--freeze {name})"
            ))
        })?);
    }
    if options.gradients || options.optimizer == Optimizer::None {
        for ((name, _), &gradient) in parameters.iter().zip(&parts) {
            ports.output(PortKind::Gradient(name.clone()), gradient)?;
        }
    }
    if let Some((learning_rate, step)) = pace {
        let update = Update::new(
            &mut ports.builder,
            options.optimizer,
            options.weight_decay,
            learning_rate,
            step,
        )?;
        let mut next_states = Vec::new();
        for (((name, parameter), &gradient), state) in parameters.iter().zip(&parts).zip(&states) {
            let (next, next_state) = update.apply(&mut ports.builder, *parameter, gradient, state)?;
            ports.output(PortKind::NextParameter(name.clone()), next)?;
            for (slot, value) in options.optimizer.slots().iter().zip(next_state) {
                next_states.push((
                    PortKind::NextState {
                        slot: (*slot).to_owned(),
                        param: name.clone(),
                    },
                    value,
                ));
            }
        }
        for (kind, value) in next_states {
            ports.output(kind, value)?;
        }
    }
    for &id in &bound.statistics {
        if let Some(&next) = replay.statistics.get(&id) {
            ports.output(PortKind::NextStatistic(bound.graph.value(id).name.clone()), next)?;
        }
    }
    ports.finish(TRAINING, model, options)
}

fn evaluation(model: &Model, options: &TrainOptions, bound: &Bound) -> Result<EngineGraph, GraphError> {
    let mut ports = Ports::new(model, options);
    let (inputs, labels) = ports.forward(options, bound)?;
    let replay = Replay::write(&mut ports.builder, bound, inputs, Mode::Evaluation)?;
    let (name, source) = logits(options, bound)?;
    let logits = replay.value(&ports.builder, source)?;
    loss::classes(&ports.builder, logits, &name, options.batch)?;
    let lost = loss::softmax_cross_entropy(&mut ports.builder, logits, labels)?;
    let correct = loss::correct(&mut ports.builder, logits, labels)?;
    ports.output(PortKind::Loss, lost.loss)?;
    ports.output(PortKind::Correct, correct)?;
    for (name, id) in &bound.graph.outputs {
        let value = replay.value(&ports.builder, *id)?;
        ports.output(PortKind::Output(name.clone()), value)?;
    }
    ports.finish(EVALUATION, model, options)
}
