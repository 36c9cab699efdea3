//! Losses, with their gradients by the model's output.

use cloister_tensor::{Dtype, Tensor};

use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, Value, ValueId};

/// A loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loss {
    /// Cross entropy of the softmax of logits `[N, C]` and labels `i64 [N]`, the mean over the rows (PyTorch's
    /// `CrossEntropyLoss`). A label outside `0..C` makes the loss and all gradients NaN, so that it can't pass unseen.
    #[default]
    SoftmaxCrossEntropy,
    /// The same with a share of each class as labels, `f32 [N, C]`: for smoothed, mixed or distilled labels.
    SoftCrossEntropy,
    /// Mean over all elements of the squared difference between the output `[N, ...]` and labels `f32` of the same shape
    /// (PyTorch's `MSELoss`).
    MeanSquaredError,
    /// Mean over all elements of the cross entropy between the sigmoid of logits `[N, ...]` and labels `f32` of the same
    /// shape, 0 to 1 (PyTorch's `BCEWithLogitsLoss`).
    BinaryCrossEntropy,
}

impl Loss {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::SoftmaxCrossEntropy,
        Self::SoftCrossEntropy,
        Self::MeanSquaredError,
        Self::BinaryCrossEntropy,
    ];

    /// The name on the command line and in metadata.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SoftmaxCrossEntropy => "softmax-cross-entropy",
            Self::SoftCrossEntropy => "soft-cross-entropy",
            Self::MeanSquaredError => "mean-squared-error",
            Self::BinaryCrossEntropy => "binary-cross-entropy",
        }
    }

    /// The loss of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|loss| loss.name() == name)
    }

    /// Element type and shape of the labels for this output of the model.
    pub(crate) fn labels(self, output: &Value) -> (Dtype, Vec<usize>) {
        match self {
            Self::SoftmaxCrossEntropy => (Dtype::I64, output.shape.iter().take(1).copied().collect()),
            _ => (Dtype::F32, output.shape.clone()),
        }
    }

    /// Refuses an output that the loss does not fit; `batch` rows are wanted.
    pub(crate) fn check(self, output: &Value, name: &str, batch: usize) -> Result<(), GraphError> {
        let shape = &output.shape;
        let (fits, wanted) = match self {
            Self::SoftmaxCrossEntropy | Self::SoftCrossEntropy => (
                matches!(shape[..], [rows, classes] if rows == batch && (2..=MAX_CLASSES).contains(&classes)),
                format!("logits of shape [{batch}, classes], with 2 to {MAX_CLASSES} classes"),
            ),
            Self::MeanSquaredError | Self::BinaryCrossEntropy => (
                shape.first() == Some(&batch),
                format!("an output of shape [{batch}, ...]"),
            ),
        };
        if fits && output.dtype == Dtype::F32 {
            return Ok(());
        }
        Err(GraphError::Interface(format!(
            "the output '{name}' has the shape {shape:?} and elements of type {}; the loss {} wants f32 and {wanted} \
             (a batch size fixed on export? export with a symbolic first dimension)",
            output.dtype.name(),
            self.name()
        )))
    }

    /// Writes the loss of an output that was checked.
    pub(crate) fn write(self, builder: &mut Builder, output: ValueId, labels: ValueId) -> Result<Lost, GraphError> {
        match self {
            Self::SoftmaxCrossEntropy => softmax_cross_entropy(builder, output, labels),
            Self::SoftCrossEntropy => soft_cross_entropy(builder, output, labels),
            Self::MeanSquaredError => mean_squared_error(builder, output, labels),
            Self::BinaryCrossEntropy => binary_cross_entropy(builder, output, labels),
        }
    }

    /// How many rows were hit, `i64 [1]`: those with their label as the largest logit; with the largest share as the largest
    /// logit; with every logit on its label's side (labels above one half are 1). A loss without classes has none.
    pub(crate) fn correct(
        self,
        builder: &mut Builder,
        output: ValueId,
        labels: ValueId,
    ) -> Result<Option<ValueId>, GraphError> {
        let hits = match self {
            Self::MeanSquaredError => return Ok(None),
            Self::SoftmaxCrossEntropy => {
                let best = largest(builder, output)?;
                let hits = builder.binary(Operator::Equal, best, labels)?;
                builder.cast(hits, Dtype::F32)?
            }
            Self::SoftCrossEntropy => {
                let (best, wanted) = (largest(builder, output)?, largest(builder, labels)?);
                let hits = builder.binary(Operator::Equal, best, wanted)?;
                builder.cast(hits, Dtype::F32)?
            }
            Self::BinaryCrossEntropy => {
                let (zero, half) = (builder.scalar(0.0)?, builder.scalar(0.5)?);
                let seen = builder.binary(Operator::Greater, output, zero)?;
                let seen = builder.cast(seen, Dtype::F32)?;
                let wanted = builder.binary(Operator::Greater, labels, half)?;
                let wanted = builder.cast(wanted, Dtype::F32)?;
                let apart = builder.sub(seen, wanted)?;
                let misses = builder.unary(Operator::Abs, apart)?;
                let axes: Vec<usize> = (1..builder.rank(misses)).collect();
                let missed = builder.reduce(Operator::ReduceMax, misses, &axes, false)?;
                let one = builder.scalar(1.0)?;
                builder.sub(one, missed)?
            }
        };
        // Summed as floats, exact up to 2^24 rows: engines reduce 64-bit integers in different ways.
        let count = builder.sum(hits, &[0], true)?;
        builder.cast(count, Dtype::I64).map(Some)
    }
}

/// The values that a loss gives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    /// `f32 [1]`
    pub(crate) loss: ValueId,
    /// Gradient by the output.
    pub(crate) gradient: ValueId,
}

/// Most classes.
const MAX_CLASSES: usize = 1 << 20;

fn largest(builder: &mut Builder, rows: ValueId) -> Result<ValueId, GraphError> {
    let attributes = Attributes::none().with_int("axis", 1).with_int("keepdims", 0);
    builder.node(Operator::ArgMax, &[rows], attributes)
}

/// The mean over all elements, as `[1]`.
fn mean(builder: &mut Builder, value: ValueId) -> Result<ValueId, GraphError> {
    let axes: Vec<usize> = (0..builder.rank(value)).collect();
    let mean = builder.reduce(Operator::ReduceMean, value, &axes, true)?;
    builder.reshape(mean, &[1])
}

/// Log-softmax of each row and its parts, stable: the largest logit is subtracted first.
struct Softmax {
    logarithms: ValueId,
    shares: ValueId,
}

fn log_softmax(builder: &mut Builder, logits: ValueId) -> Result<Softmax, GraphError> {
    let largest = builder.reduce(Operator::ReduceMax, logits, &[1], true)?;
    let centred = builder.sub(logits, largest)?;
    let exponentials = builder.unary(Operator::Exp, centred)?;
    let total = builder.sum(exponentials, &[1], true)?;
    let normaliser = builder.unary(Operator::Log, total)?;
    Ok(Softmax {
        logarithms: builder.sub(centred, normaliser)?,
        shares: builder.div(exponentials, total)?,
    })
}

/// `-mean(log softmax(logits)[label])`
fn softmax_cross_entropy(builder: &mut Builder, logits: ValueId, labels: ValueId) -> Result<Lost, GraphError> {
    let [rows, classes] = builder.shape(logits)[..] else {
        return Err(builder.error("logits that are no matrix"));
    };
    let softmax = log_softmax(builder, logits)?;
    let column = builder.reshape(labels, &[rows, 1])?;
    let indices = builder.constant(Tensor::from_i64(&[1, classes], (0..classes as i64).collect())?)?;
    let hits = builder.binary(Operator::Equal, column, indices)?;
    let targets = builder.cast(hits, Dtype::F32)?;
    // 1 for a label that names a class. Dividing by it turns a row with any other label into NaN.
    let known = builder.sum(targets, &[1], true)?;

    let chosen = builder.mul(softmax.logarithms, targets)?;
    let chosen = builder.sum(chosen, &[1], true)?;
    let chosen = builder.div(chosen, known)?;
    let mean = mean(builder, chosen)?;
    let loss = builder.unary(Operator::Neg, mean)?;

    let excess = builder.sub(softmax.shares, targets)?;
    let count = builder.scale(known, rows as f32)?;
    let gradient = builder.div(excess, count)?;
    Ok(Lost { loss, gradient })
}

/// `-mean(sum(labels * log softmax(logits)))`; the labels of a row need not add up to 1.
fn soft_cross_entropy(builder: &mut Builder, logits: ValueId, labels: ValueId) -> Result<Lost, GraphError> {
    let [rows, _] = builder.shape(logits)[..] else {
        return Err(builder.error("logits that are no matrix"));
    };
    let softmax = log_softmax(builder, logits)?;
    let products = builder.mul(softmax.logarithms, labels)?;
    let sums = builder.sum(products, &[1], true)?;
    let mean = mean(builder, sums)?;
    let loss = builder.unary(Operator::Neg, mean)?;

    let weight = builder.sum(labels, &[1], true)?;
    let expected = builder.mul(softmax.shares, weight)?;
    let excess = builder.sub(expected, labels)?;
    let gradient = builder.scale(excess, 1.0 / rows as f32)?;
    Ok(Lost { loss, gradient })
}

fn count(builder: &Builder, value: ValueId) -> f32 {
    builder.shape(value).iter().product::<usize>() as f32
}

fn mean_squared_error(builder: &mut Builder, output: ValueId, labels: ValueId) -> Result<Lost, GraphError> {
    let apart = builder.sub(output, labels)?;
    let squares = builder.mul(apart, apart)?;
    let loss = mean(builder, squares)?;
    let share = 2.0 / count(builder, output);
    let gradient = builder.scale(apart, share)?;
    Ok(Lost { loss, gradient })
}

/// `max(x, 0) - x label + log(1 + exp(-|x|))`, which overflows for no logit.
fn binary_cross_entropy(builder: &mut Builder, logits: ValueId, labels: ValueId) -> Result<Lost, GraphError> {
    let above = builder.unary(Operator::Relu, logits)?;
    let product = builder.mul(logits, labels)?;
    let size = builder.unary(Operator::Abs, logits)?;
    let negative = builder.unary(Operator::Neg, size)?;
    let small = builder.unary(Operator::Exp, negative)?;
    let one = builder.scalar(1.0)?;
    let sum = builder.add(small, one)?;
    let rest = builder.unary(Operator::Log, sum)?;
    let linear = builder.sub(above, product)?;
    let losses = builder.add(linear, rest)?;
    let loss = mean(builder, losses)?;

    let shares = builder.unary(Operator::Sigmoid, logits)?;
    let excess = builder.sub(shares, labels)?;
    let share = 1.0 / count(builder, logits);
    let gradient = builder.scale(excess, share)?;
    Ok(Lost { loss, gradient })
}
