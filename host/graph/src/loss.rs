//! Losses, with their gradients by the logits.

use cloister_tensor::{Dtype, Tensor};

use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};

/// A loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// Cross entropy of the softmax of logits `[N, C]` and labels `i64 [N]`, the mean over the rows (PyTorch's
    /// `CrossEntropyLoss`). A label outside `0..C` makes the loss and all gradients NaN, so that it can't pass unseen.
    #[default]
    SoftmaxCrossEntropy,
}

impl Loss {
    /// The name on the command line and in metadata.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SoftmaxCrossEntropy => "softmax-cross-entropy",
        }
    }

    /// The loss of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        (name == Self::SoftmaxCrossEntropy.name()).then_some(Self::SoftmaxCrossEntropy)
    }
}

/// The values that a loss gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    /// `f32 [1]`
    pub(crate) loss: ValueId,
    /// Gradient by the logits.
    pub(crate) gradient: ValueId,
}

/// Most classes.
const MAX_CLASSES: usize = 1 << 20;

/// Rows and classes of the logits; `batch` rows are wanted.
pub(crate) fn classes(builder: &Builder, logits: ValueId, name: &str, batch: usize) -> Result<usize, GraphError> {
    let shape = builder.shape(logits);
    match *shape {
        [rows, classes]
            if rows == batch && (2..=MAX_CLASSES).contains(&classes) && builder.dtype(logits) == Dtype::F32 =>
        {
            Ok(classes)
        }
        _ => Err(GraphError::Interface(format!(
            "the output '{name}' has the shape {shape:?} and elements of type {}; the loss wants f32 logits of shape \
             [{batch}, classes], with 2 to {MAX_CLASSES} classes (a batch size fixed on export? export with a symbolic first dimension)",
            builder.dtype(logits).name()
        ))),
    }
}

/// `-mean(log softmax(logits)[label])`, stable: the largest logit is subtracted first.
pub(crate) fn softmax_cross_entropy(
    builder: &mut Builder,
    logits: ValueId,
    labels: ValueId,
) -> Result<Lost, GraphError> {
    let [rows, classes] = builder.shape(logits)[..] else {
        return Err(builder.error("logits that are no matrix"));
    };
    let largest = builder.reduce(Operator::ReduceMax, logits, &[1], true)?;
    let centred = builder.sub(logits, largest)?;
    let exponentials = builder.unary(Operator::Exp, centred)?;
    let total = builder.sum(exponentials, &[1], true)?;
    let normaliser = builder.unary(Operator::Log, total)?;
    let logarithms = builder.sub(centred, normaliser)?;

    let column = builder.reshape(labels, &[rows, 1])?;
    let indices = builder.constant(Tensor::from_i64(&[1, classes], (0..classes as i64).collect())?)?;
    let hits = builder.binary(Operator::Equal, column, indices)?;
    let targets = builder.cast(hits, Dtype::F32)?;
    // 1 for a label that names a class. Dividing by it turns a row with any other label into NaN.
    let known = builder.sum(targets, &[1], true)?;

    let chosen = builder.mul(logarithms, targets)?;
    let chosen = builder.sum(chosen, &[1], true)?;
    let chosen = builder.div(chosen, known)?;
    let mean = builder.reduce(Operator::ReduceMean, chosen, &[0], true)?;
    let mean = builder.reshape(mean, &[1])?;
    let loss = builder.unary(Operator::Neg, mean)?;

    let shares = builder.div(exponentials, total)?;
    let excess = builder.sub(shares, targets)?;
    let count = builder.scale(known, rows as f32)?;
    let gradient = builder.div(excess, count)?;
    Ok(Lost { loss, gradient })
}

/// How many rows have their label as the largest logit: `i64 [1]`.
pub(crate) fn correct(builder: &mut Builder, logits: ValueId, labels: ValueId) -> Result<ValueId, GraphError> {
    let attributes = Attributes::none().with_int("axis", 1).with_int("keepdims", 0);
    let best = builder.node(Operator::ArgMax, &[logits], attributes)?;
    let hits = builder.binary(Operator::Equal, best, labels)?;
    // Summed as floats, exact up to 2^24 rows: engines reduce 64-bit integers in different ways.
    let hits = builder.cast(hits, Dtype::F32)?;
    let count = builder.sum(hits, &[0], true)?;
    builder.cast(count, Dtype::I64)
}
