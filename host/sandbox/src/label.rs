//! Labels of tensors and the ports that they fit.
//!
//! Every tensor that a guest holds says what it is; every port of a graph says what it is for. A tensor goes to a port only
//! if the two fit, so that what comes out at a parameter's port was computed by a graph of the policy from that parameter.

use std::fmt;
use std::sync::Arc;

use cloister_graph::{Port, PortKind};
use cloister_tensor::Tensor;

use crate::Grants;
use crate::budget::Charge;
use crate::error::{ModuleErrorKind, Refusal};

/// What a tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    /// A parameter of the model.
    Parameter(String),
    /// A running statistic of the model.
    Statistic(String),
    /// Optimizer state of a parameter.
    State { slot: String, param: String },
    /// Rows of a dataset.
    Data { dataset: Arc<str>, input: String },
    /// One number that the guest chose.
    Scalar,
    /// A gradient of a parameter.
    Gradient(String),
    /// Any other output of a graph.
    Output { graph: Arc<str>, port: String },
    /// Bytes that the guest chose, by a `write` grant.
    Made,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameter(name) => write!(f, "parameter `{name}`"),
            Self::Statistic(name) => write!(f, "running statistic `{name}`"),
            Self::State { slot, param } => write!(f, "optimizer state `{slot}` of parameter `{param}`"),
            Self::Data { dataset, input } => write!(f, "rows of dataset `{dataset}`, input `{input}`"),
            Self::Scalar => f.write_str("a scalar that the module made"),
            Self::Gradient(name) => write!(f, "the gradient of parameter `{name}`"),
            Self::Output { graph, port } => write!(f, "output `{port}` of graph `{graph}`"),
            Self::Made => f.write_str("a tensor that the module made"),
        }
    }
}

/// A tensor as a guest holds it. Clones share bytes and charge.
#[allow(unreachable_pub, reason = "the bindings re-export it")]
#[derive(Clone, Debug)]
pub struct GuestTensor {
    pub(crate) tensor: Tensor,
    pub(crate) label: Label,
    /// Whether a graph of the policy made it in this call.
    pub(crate) computed: bool,
    /// Held for its drop.
    pub(crate) _charge: Arc<Charge>,
}

/// What a port is for, in words.
fn purpose(port: &Port) -> String {
    match &port.kind {
        PortKind::Data(name) => format!("rows of a dataset, input `{name}`"),
        PortKind::Labels => format!("rows of a dataset, input `{}`", port.name),
        PortKind::Parameter(name) => format!("parameter `{name}`"),
        PortKind::Statistic(name) => format!("running statistic `{name}`"),
        PortKind::State { slot, param } => format!("optimizer state `{slot}` of parameter `{param}`"),
        PortKind::Anchor(name) => format!("parameter `{name}` as the round began"),
        PortKind::Mask { .. } => "nothing: the host draws it".to_owned(),
        PortKind::LearningRate | PortKind::Step => "a scalar in the policy's range".to_owned(),
        _ => "nothing: it is an output".to_owned(),
    }
}

/// Whether `given` may go to the input `port`.
pub(crate) fn admit(graph: &str, port: &Port, given: &GuestTensor, grants: &Grants) -> Result<(), Refusal> {
    let fits = match (&port.kind, &given.label) {
        (PortKind::LearningRate | PortKind::Step, Label::Scalar | Label::Made) => {
            return admit_scalar(graph, port, given, grants);
        }
        (PortKind::Data(name), Label::Data { input, .. }) => name == input,
        (PortKind::Data(name), Label::Output { port: output, .. }) => name == output,
        (PortKind::Labels, Label::Data { input, .. }) => port.name == *input,
        (PortKind::Parameter(name), Label::Parameter(seen)) | (PortKind::Statistic(name), Label::Statistic(seen)) => {
            name == seen
        }
        // What a graph has computed is no longer what the round began with.
        (PortKind::Anchor(name), Label::Parameter(seen)) => name == seen && !given.computed,
        (PortKind::State { slot, param }, Label::State { slot: seen, param: of }) => slot == seen && param == of,
        (
            PortKind::Data(_)
            | PortKind::Labels
            | PortKind::Parameter(_)
            | PortKind::Statistic(_)
            | PortKind::Anchor(_)
            | PortKind::State { .. },
            Label::Made,
        ) => true,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let message = format!(
        "graph `{graph}`, port `{}`: seen {}, wanted {}",
        port.name,
        given.label,
        purpose(port)
    );
    Err(Refusal::new(ModuleErrorKind::Denied, message))
}

fn admit_scalar(graph: &str, port: &Port, given: &GuestTensor, grants: &Grants) -> Result<(), Refusal> {
    let place = format!("graph `{graph}`, port `{}`", port.name);
    let refuse = |message: String| Err(Refusal::new(ModuleErrorKind::Denied, message));
    let Some(range) = grants.scalars.get(&port.name) else {
        return refuse(format!(
            "{place}: the policy gives the module no range for it; add `{} = {{ min = .., max = .. }}` to its `scalars`",
            port.name
        ));
    };
    match given.tensor.first_f64() {
        Some(value) if range.rounded_to(port.dtype).contains(value) => Ok(()),
        seen => refuse(format!(
            "{place}: seen {}, wanted {} to {} (the policy's `scalars`)",
            seen.map_or_else(|| "no number".to_owned(), |value| value.to_string()),
            range.min,
            range.max
        )),
    }
}

/// The label of what comes out at `port`.
pub(crate) fn output_label(graph: &Arc<str>, port: &Port) -> Label {
    match &port.kind {
        PortKind::NextParameter(name) => Label::Parameter(name.clone()),
        PortKind::NextStatistic(name) => Label::Statistic(name.clone()),
        PortKind::NextState { slot, param } => Label::State {
            slot: slot.clone(),
            param: param.clone(),
        },
        PortKind::Gradient(name) => Label::Gradient(name.clone()),
        _ => Label::Output {
            graph: Arc::clone(graph),
            port: port.name.clone(),
        },
    }
}
