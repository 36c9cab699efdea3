//! The typed inputs and outputs of a graph: their names, and how their kinds are kept in the file's metadata.

use std::collections::BTreeMap;
use std::fmt;

use cloister_tensor::Dtype;

use crate::error::GraphError;
use crate::ir::{Graph, ValueId};

/// An input or output of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The name that engines and guests use.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Shape; every dimension is fixed.
    pub shape: Vec<usize>,
    /// What may be fed to it, or what comes out of it.
    pub kind: PortKind,
}

/// What a port is for. The host lets no tensor of another kind pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// Input: a participant's data under this name of the model's inputs.
    Data(String),
    /// Input: which elements a dropout keeps, 1 for each, else 0. The host draws it.
    Mask {
        /// Counts the model's dropouts from 0.
        dropout: u32,
        /// The share of the elements that go.
        ratio: DropRatio,
    },
    /// Input: the labels, i64 [N] (classes) or f32 [N, ...].
    Labels,
    /// Input: the parameter of this name.
    Parameter(String),
    /// Input: the running statistic of this name.
    Statistic(String),
    /// Input: what the optimizer keeps for a parameter.
    State {
        /// Name of the state, such as `momentum`, `m` or `v`.
        slot: String,
        /// The parameter.
        param: String,
    },
    /// Input: the parameter of this name as the round began, from which a proximal term keeps the next ones.
    Anchor(String),
    /// Input: the learning rate, f32 [1].
    LearningRate,
    /// Input: the step, i64 [1], from 1.
    Step,
    /// Output: the loss, f32 [1].
    Loss,
    /// Output: rows whose label has the largest logit, i64 [1].
    Correct,
    /// Output: the gradient of this parameter.
    Gradient(String),
    /// Output: this parameter after the step.
    NextParameter(String),
    /// Output: this running statistic after the step.
    NextStatistic(String),
    /// Output: the optimizer's state after the step.
    NextState {
        /// Name of the state.
        slot: String,
        /// The parameter.
        param: String,
    },
    /// Output: the model's own, under this name.
    Output(String),
}

/// The share of elements that a dropout drops: above 0 and below 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropRatio {
    /// Of an f32; equal ratios have equal bits.
    bits: u32,
}

impl DropRatio {
    /// The ratio, if it is one.
    pub fn new(ratio: f32) -> Option<Self> {
        let bits = ratio.to_bits();
        (ratio > 0.0 && ratio < 1.0).then_some(Self { bits })
    }

    /// Its value.
    pub fn get(self) -> f32 {
        f32::from_bits(self.bits)
    }
}

impl fmt::Display for DropRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// Metadata keys that hold the kinds of the ports, one a line, in the order of the graph's.
pub(crate) const INPUTS: &str = "cloister.inputs";
pub(crate) const OUTPUTS: &str = "cloister.outputs";

impl PortKind {
    /// The name that a port of this kind has.
    pub fn port_name(&self) -> String {
        match self {
            Self::Data(name) | Self::Parameter(name) | Self::Statistic(name) | Self::Output(name) => name.clone(),
            Self::Mask { dropout, .. } => format!("mask/{dropout}"),
            Self::Labels => "labels".to_owned(),
            Self::State { slot, param } => format!("state/{slot}/{param}"),
            Self::Anchor(param) => format!("anchor/{param}"),
            Self::LearningRate => "learning_rate".to_owned(),
            Self::Step => "step".to_owned(),
            Self::Loss => "loss".to_owned(),
            Self::Correct => "correct".to_owned(),
            Self::Gradient(param) => format!("grad/{param}"),
            Self::NextParameter(name) | Self::NextStatistic(name) => format!("next/{name}"),
            Self::NextState { slot, param } => format!("next/state/{slot}/{param}"),
        }
    }

    /// The kind in one word.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Data(_) => "data",
            Self::Mask { .. } => "mask",
            Self::Labels => "labels",
            Self::Parameter(_) => "parameter",
            Self::Statistic(_) => "statistic",
            Self::State { .. } => "state",
            Self::Anchor(_) => "anchor",
            Self::LearningRate => "learning-rate",
            Self::Step => "step",
            Self::Loss => "loss",
            Self::Correct => "correct",
            Self::Gradient(_) => "gradient",
            Self::NextParameter(_) => "next-parameter",
            Self::NextStatistic(_) => "next-statistic",
            Self::NextState { .. } => "next-state",
            Self::Output(_) => "output",
        }
    }

    fn line(&self) -> String {
        match self {
            Self::Mask { dropout, ratio } => format!("{} {dropout} {ratio}", self.word()),
            Self::State { slot, param } | Self::NextState { slot, param } => format!("{} {slot} {param}", self.word()),
            Self::Anchor(name) | Self::Gradient(name) | Self::NextParameter(name) | Self::NextStatistic(name) => {
                format!("{} {name}", self.word())
            }
            _ => self.word().to_owned(),
        }
    }

    /// The kind of a metadata line. `name` is the port's own.
    fn from_line(line: &str, name: &str, input: bool) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let own = name.to_owned();
        let slot = || {
            rest.split_once(' ')
                .map(|(slot, param)| (slot.to_owned(), param.to_owned()))
        };
        let kind = match (word, input) {
            ("data", true) => Self::Data(own),
            ("mask", true) => {
                let (dropout, ratio) = rest.split_once(' ')?;
                Self::Mask {
                    dropout: dropout.parse().ok()?,
                    ratio: DropRatio::new(ratio.parse().ok()?)?,
                }
            }
            ("labels", true) => Self::Labels,
            ("parameter", true) => Self::Parameter(own),
            ("statistic", true) => Self::Statistic(own),
            ("state", true) => slot().map(|(slot, param)| Self::State { slot, param })?,
            ("anchor", true) => Self::Anchor(rest.to_owned()),
            ("learning-rate", true) => Self::LearningRate,
            ("step", true) => Self::Step,
            ("loss", false) => Self::Loss,
            ("correct", false) => Self::Correct,
            ("gradient", false) => Self::Gradient(rest.to_owned()),
            ("next-parameter", false) => Self::NextParameter(rest.to_owned()),
            ("next-statistic", false) => Self::NextStatistic(rest.to_owned()),
            ("next-state", false) => slot().map(|(slot, param)| Self::NextState { slot, param })?,
            ("output", false) => Self::Output(own),
            _ => return None,
        };
        (kind.line() == line && kind.port_name() == name).then_some(kind)
    }
}

/// The metadata that keep these kinds.
pub(crate) fn to_metadata(inputs: &[PortKind], outputs: &[PortKind], metadata: &mut BTreeMap<String, String>) {
    let lines = |kinds: &[PortKind]| kinds.iter().map(PortKind::line).collect::<Vec<_>>().join("\n");
    metadata.insert(INPUTS.to_owned(), lines(inputs));
    metadata.insert(OUTPUTS.to_owned(), lines(outputs));
}

/// The ports of a graph, by its metadata; without any, inputs are data and outputs the model's.
pub(crate) fn from_graph(graph: &Graph) -> Result<(Vec<Port>, Vec<Port>), GraphError> {
    let inputs = graph.inputs.iter().map(|&id| (graph.value(id).name.as_str(), id));
    let outputs = graph.outputs.iter().map(|(name, id)| (name.as_str(), *id));
    let inputs = ports(graph, inputs.collect(), INPUTS, true)?;
    let outputs = ports(graph, outputs.collect(), OUTPUTS, false)?;
    check(&inputs, &outputs)?;
    Ok((inputs, outputs))
}

fn ports(graph: &Graph, named: Vec<(&str, ValueId)>, key: &str, input: bool) -> Result<Vec<Port>, GraphError> {
    let lines: Option<Vec<&str>> = graph.metadata.get(key).map(|text| text.lines().collect());
    if lines.as_ref().is_some_and(|lines| lines.len() != named.len()) {
        return Err(GraphError::Interface(format!(
            "the metadata '{key}' do not describe the graph's {} ports; make the graph again with `cloister graph train`",
            named.len()
        )));
    }
    let port = |(at, (name, id)): (usize, (&str, ValueId))| {
        let kind = match &lines {
            None if input => PortKind::Data(name.to_owned()),
            None => PortKind::Output(name.to_owned()),
            Some(lines) => PortKind::from_line(lines[at], name, input).ok_or_else(|| {
                GraphError::Interface(format!("the metadata '{key}' call the port '{name}' a '{}'", lines[at]))
            })?,
        };
        let value = graph.value(id);
        Ok(Port {
            name: name.to_owned(),
            dtype: value.dtype,
            shape: value.shape.clone(),
            kind,
        })
    };
    named.into_iter().enumerate().map(port).collect()
}

/// What the kinds promise of types and shapes must hold.
fn check(inputs: &[Port], outputs: &[Port]) -> Result<(), GraphError> {
    let stored: BTreeMap<&str, &Port> = inputs
        .iter()
        .filter(|port| matches!(port.kind, PortKind::Parameter(_) | PortKind::Statistic(_)))
        .map(|port| (port.name.as_str(), port))
        .collect();
    for port in inputs.iter().chain(outputs) {
        let like = match &port.kind {
            PortKind::State { param, .. } | PortKind::NextState { param, .. } => Some(param),
            PortKind::Anchor(name)
            | PortKind::Gradient(name)
            | PortKind::NextParameter(name)
            | PortKind::NextStatistic(name) => Some(name),
            _ => None,
        };
        let fits = match (&port.kind, like) {
            (PortKind::NextStatistic(_), Some(name)) => stored.get(name.as_str()).is_some_and(|of| {
                matches!(of.kind, PortKind::Statistic(_)) && (of.dtype, &of.shape) == (port.dtype, &port.shape)
            }),
            (_, Some(name)) => stored.get(name.as_str()).is_some_and(|of| {
                matches!(of.kind, PortKind::Parameter(_)) && (of.dtype, &of.shape) == (port.dtype, &port.shape)
            }),
            (PortKind::Mask { .. }, None) => port.dtype == Dtype::F32,
            (PortKind::Loss | PortKind::LearningRate, None) => port.dtype == Dtype::F32 && port.shape == [1],
            (PortKind::Step | PortKind::Correct, None) => port.dtype == Dtype::I64 && port.shape == [1],
            (PortKind::Labels, None) => match port.dtype {
                Dtype::I64 => port.shape.len() == 1,
                Dtype::F32 => !port.shape.is_empty(),
                _ => false,
            },
            (PortKind::Parameter(_) | PortKind::Statistic(_), None) => port.dtype == Dtype::F32,
            _ => true,
        };
        if !fits {
            return Err(GraphError::Interface(format!(
                "the port '{}' ({}, shape {:?}) is not what a {} port has to be",
                port.name,
                port.dtype.name(),
                port.shape,
                port.kind.word()
            )));
        }
    }
    Ok(())
}
