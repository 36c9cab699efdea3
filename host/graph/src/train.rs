//! Training and evaluation graphs out of a forward model.

use std::collections::{BTreeMap, BTreeSet};

use cloister_tensor::Dtype;

use crate::bind::Bound;
use crate::builder::Builder;
use crate::differentiate::Replay;
use crate::engine_graph::EngineGraph;
use crate::error::GraphError;
use crate::ir::ValueId;
use crate::model::Model;
use crate::ops::{ConvLayer, Mode};
use crate::optimizer::{Optimizer, Update, clipped, sum_of_squares};
use crate::options::{TrainOptions, is_named};
use crate::port::{self, PortKind};

/// The two graphs of a model.
#[derive(Clone, Debug)]
pub struct TrainedGraphs {
    /// Parameters, batch (and optimizer state) in; loss and next parameters or gradients out.
    pub training: EngineGraph,
    /// Parameters and batch in; loss, hits and the model's outputs out. Uses running statistics.
    pub evaluation: EngineGraph,
}

/// Makes the training and the evaluation graph of a forward model.
///
/// The same model and options give the same bytes.
///
/// # Errors
/// [`GraphError`] names the node that can't be differentiated or does not fit, the option that is out of range, or the part of
/// the model's interface that clashes with that of a training graph.
pub fn train(model: &Model, options: &TrainOptions) -> Result<TrainedGraphs, GraphError> {
    if model.has_typed_ports() {
        return Err(GraphError::Interface(
            "this is a training or evaluation graph already; the forward model is wanted".to_owned(),
        ));
    }
    options.check()?;
    let bound = model.with_ports(options.batch, options.dropout)?;
    Ok(TrainedGraphs {
        training: training(model, options, &bound)?,
        evaluation: evaluation(model, options, &bound)?,
    })
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
        builder.forms.default = options.weight_gradient;
        builder.forms.chosen.clone_from(&options.weight_gradients);
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

    /// The model's inputs, labels, parameters and statistics, as both graphs have them. Only training has masks of dropouts.
    fn forward(
        &mut self,
        options: &TrainOptions,
        bound: &Bound,
        mode: Mode,
    ) -> Result<(BTreeMap<ValueId, ValueId>, ValueId), GraphError> {
        let (name, source) = logits(options, bound)?;
        let output = bound.graph.value(source);
        options.loss.check(output, &name, options.batch)?;
        let (dtype, shape) = options.loss.labels(output);
        let (mut inputs, mut masks) = (BTreeMap::new(), Vec::new());
        let mut add = |ports: &mut Self, ids: &[ValueId], kind: fn(String) -> PortKind| {
            for &id in ids {
                let value = bound.graph.value(id);
                let port = ports.input(kind(value.name.clone()), value.dtype, &value.shape)?;
                inputs.insert(id, port);
            }
            Ok::<(), GraphError>(())
        };
        add(self, &bound.data, PortKind::Data)?;
        if mode == Mode::Training {
            for (dropout, &(id, ratio)) in (0_u32..).zip(&bound.masks) {
                let kind = PortKind::Mask { dropout, ratio };
                let port = self.input(kind, Dtype::F32, &bound.graph.value(id).shape)?;
                masks.push((id, port));
            }
        }
        let labels = self.input(PortKind::Labels, dtype, &shape)?;
        add(self, &bound.parameters, PortKind::Parameter)?;
        add(self, &bound.statistics, PortKind::Statistic)?;
        inputs.extend(masks);
        if mode == Mode::Evaluation {
            for &(id, _) in &bound.masks {
                let all_pass = self.builder.scalar(1.0)?;
                inputs.insert(id, all_pass);
            }
        }
        Ok((inputs, labels))
    }

    fn finish(
        self,
        kind: &str,
        model: &Model,
        options: &TrainOptions,
        bound: &Bound,
    ) -> Result<EngineGraph, GraphError> {
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
            if let Some(most) = options.clip_norm {
                note("clip_norm", most.to_string());
            }
            if options.l2 > 0.0 {
                note("l2", options.l2.to_string());
            }
            if options.proximal > 0.0 {
                note("proximal", options.proximal.to_string());
            }
            note("weight_gradient", options.weight_gradient.to_string());
            let chosen = self.builder.forms.layers.iter().filter_map(|layer| {
                let form = options.weight_gradients.get(layer)?;
                Some(format!("{layer} = {form}"))
            });
            let chosen: Vec<String> = chosen.collect();
            if !chosen.is_empty() {
                note("weight_gradients", chosen.join("; "));
            }
            let words = |words: Vec<String>| words.join(" ");
            if !bound.masks.is_empty() {
                note(
                    "dropout",
                    words(bound.masks.iter().map(|(_, ratio)| ratio.to_string()).collect()),
                );
            }
        }
        port::to_metadata(&self.inputs, &self.outputs, &mut metadata);
        EngineGraph::of(self.builder.finish(metadata)?, None)
    }
}

const TRAINING: &str = "training";
const EVALUATION: &str = "evaluation";

/// The parameters that are trained.
fn trained(model: &Model, options: &TrainOptions, bound: &Bound) -> Result<Vec<ValueId>, GraphError> {
    let name = |id: ValueId| bound.graph.value(id).name.as_str();
    let names: Vec<&str> = bound.parameters.iter().map(|&id| name(id)).collect();
    let roles = model.roles();
    options.check_names(&names, &roles.out_of_reach().collect::<Vec<_>>())?;
    roles.all_reached(|name| is_named(&options.freeze, name))?;
    let frozen = |&id: &ValueId| is_named(&options.freeze, name(id));
    let trained: Vec<ValueId> = bound.parameters.iter().copied().filter(|id| !frozen(id)).collect();
    if trained.is_empty() {
        return Err(GraphError::Interface("the model has no parameter to train".to_owned()));
    }
    Ok(trained)
}

/// The convolutions whose weights have a gradient.
pub(crate) fn conv_layers(model: &Model, options: &TrainOptions) -> Result<Vec<ConvLayer>, GraphError> {
    options.check()?;
    let bound = model.with_ports(options.batch, options.dropout)?;
    let ports = written(model, options, &bound)?;
    Ok(ports.builder.forms.layers.into_iter().collect())
}

fn training(model: &Model, options: &TrainOptions, bound: &Bound) -> Result<EngineGraph, GraphError> {
    written(model, options, bound)?.finish(TRAINING, model, options, bound)
}

fn written(model: &Model, options: &TrainOptions, bound: &Bound) -> Result<Ports, GraphError> {
    let trained = trained(model, options, bound)?;
    let mut ports = Ports::new(model, options);
    let (inputs, labels) = ports.forward(options, bound, Mode::Training)?;
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
    let mut anchors = Vec::new();
    if options.proximal > 0.0 {
        for (param, id) in &parameters {
            let shape = ports.builder.shape(*id).to_vec();
            anchors.push(ports.input(PortKind::Anchor(param.clone()), Dtype::F32, &shape)?);
        }
    }

    let replay = Replay::write(&mut ports.builder, bound, inputs, Mode::Training)?;
    let (_, source) = logits(options, bound)?;
    let logits = replay.value(&ports.builder, source)?;
    let lost = options.loss.write(&mut ports.builder, logits, labels)?;
    let wanted: BTreeSet<ValueId> = trained.iter().copied().collect();
    let gradients = replay.backward(&mut ports.builder, &wanted, (source, lost.gradient))?;
    let spared = |name: &str| !options.decay_norms && model.roles().scales_a_norm(name);
    let decays = |name: &str| !is_named(&options.no_decay, name) && !spared(name);
    let penalised = parameters.iter().filter(|(name, _)| options.l2 > 0.0 && decays(name));
    let penalised: Vec<ValueId> = penalised.map(|&(_, id)| id).collect();
    let loss = penalty(&mut ports.builder, lost.loss, &penalised, options.l2)?;
    ports.output(PortKind::Loss, loss)?;

    let mut parts = Vec::with_capacity(trained.len());
    for (id, (name, _)) in trained.iter().zip(&parameters) {
        parts.push(*gradients.get(id).ok_or_else(|| {
            GraphError::Interface(format!(
                "no gradient of the loss reaches the parameter '{name}'; freeze it (--freeze {name})"
            ))
        })?);
    }
    for (part, (_, parameter)) in parts.iter_mut().zip(&parameters) {
        if penalised.contains(parameter) {
            let pull = ports.builder.scale(*parameter, options.l2 as f32)?;
            *part = ports.builder.add(*part, pull)?;
        }
    }
    for ((part, (_, parameter)), &anchor) in parts.iter_mut().zip(&parameters).zip(&anchors) {
        let distance = ports.builder.sub(*parameter, anchor)?;
        let pull = ports.builder.scale(distance, options.proximal as f32)?;
        *part = ports.builder.add(*part, pull)?;
    }
    if let Some(most) = options.clip_norm {
        parts = clipped(&mut ports.builder, &parts, most)?;
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
            let (next, next_state) = update.apply(&mut ports.builder, *parameter, gradient, state, decays(name))?;
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
    Ok(ports)
}

/// `loss` [1] and half of `l2` times the sum of the squares of `parameters`.
fn penalty(builder: &mut Builder, loss: ValueId, parameters: &[ValueId], l2: f64) -> Result<ValueId, GraphError> {
    if parameters.is_empty() {
        return Ok(loss);
    }
    let squares = sum_of_squares(builder, parameters)?;
    let share = builder.scale(squares, (l2 / 2.0) as f32)?;
    builder.add(loss, share)
}

fn evaluation(model: &Model, options: &TrainOptions, bound: &Bound) -> Result<EngineGraph, GraphError> {
    let mut ports = Ports::new(model, options);
    let (inputs, labels) = ports.forward(options, bound, Mode::Evaluation)?;
    let replay = Replay::write(&mut ports.builder, bound, inputs, Mode::Evaluation)?;
    let (_, source) = logits(options, bound)?;
    let logits = replay.value(&ports.builder, source)?;
    let lost = options.loss.write(&mut ports.builder, logits, labels)?;
    ports.output(PortKind::Loss, lost.loss)?;
    if let Some(correct) = options.loss.correct(&mut ports.builder, logits, labels)? {
        ports.output(PortKind::Correct, correct)?;
    }
    for (name, id) in &bound.graph.outputs {
        let value = replay.value(&ports.builder, *id)?;
        ports.output(PortKind::Output(name.clone()), value)?;
    }
    ports.finish(EVALUATION, model, options, bound)
}
