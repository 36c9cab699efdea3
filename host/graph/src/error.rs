//! What can be wrong with a graph, and where.

use std::fmt;

/// Where a node stands in the model it came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Position among the model's nodes, from 0.
    pub index: usize,
    /// The node's own name; often empty.
    pub name: String,
    /// The operator.
    pub operator: String,
    /// Name of the first value that the node makes.
    pub output: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.index)?;
        if !self.name.is_empty() {
            write!(f, " '{}'", self.name)?;
        }
        write!(f, " ({}", self.operator)?;
        if !self.output.is_empty() {
            write!(f, ", which makes '{}'", self.output)?;
        }
        f.write_str(")")
    }
}

/// Why a model was refused, or could not be made into a training graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The bytes are no ONNX model.
    #[error("not a readable ONNX model: {what} (at byte {offset}); export the model again")]
    Malformed {
        /// What was read and what was wanted.
        what: String,
        /// Offset into the file, in bytes.
        offset: usize,
    },
    /// A TorchScript step has a line that is refused.
    #[error("line {line} of the TorchScript step: {problem}")]
    Torch {
        /// The line, from 1.
        line: usize,
        /// What was seen and what was wanted.
        problem: String,
    },
    /// Something is larger or more numerous than allowed.
    #[error("the model has {seen} {what}, at most {limit} are allowed")]
    Limit {
        /// What was counted, with its unit.
        what: &'static str,
        /// How many or how much there is.
        seen: u64,
        /// How many or how much may be.
        limit: u64,
    },
    /// A part of ONNX that is refused on purpose.
    #[error("the model uses {what}, which is refused; {instead}")]
    Refused {
        /// The part, and where it stands.
        what: String,
        /// What to do instead.
        instead: &'static str,
    },
    /// An operator outside the list.
    #[error("{place}: the operator '{}' is not supported; `cloister graph show --operators` lists those that are", place.operator)]
    UnsupportedOperator {
        /// The node.
        place: Place,
    },
    /// The model's structure is broken: names twice, values used before they are made.
    #[error("the model is inconsistent: {0}")]
    Inconsistent(String),
    /// Operands that an operator cannot take.
    #[error("{place}: {problem}")]
    Operand {
        /// The node.
        place: Place,
        /// What was seen and what was wanted.
        problem: String,
    },
    /// A node that stands between a parameter and the loss has no derivative here.
    #[error("{place}: cannot be differentiated: {reason}")]
    NotDifferentiable {
        /// The node.
        place: Place,
        /// Why, and what to do.
        reason: String,
    },
    /// The model's inputs, outputs or parameters do not fit the interface of a training graph.
    #[error("the model does not fit: {0}")]
    Interface(String),
    /// An option is out of its range or names something that is not there.
    #[error("option {option}: {problem}")]
    Option {
        /// The option, as the command line spells it.
        option: &'static str,
        /// What was seen and what was wanted.
        problem: String,
    },
    /// Weights that do not fit the graph.
    #[error("weights: {0}")]
    Weights(String),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] cloister_tensor::TensorError),
}
