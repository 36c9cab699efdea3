//! One rule an operator: which operands and attributes it takes, the types of its results, its form in a training graph,
//! and its derivative. A file a family; a new operator is one more rule there and one name in [`Operator`].

mod activation;
mod bounds;
mod composite;
mod conv_form;
mod convolution;
mod elementwise;
mod logic;
mod matrix;
mod normalization;
mod pick;
mod pool;
mod rearrange;
mod reduction;
mod shaping;
mod weight_gradient;
mod window;

pub(crate) use bounds::{axis, broadcast};
pub(crate) use conv_form::Forms;
pub use conv_form::{ConvLayer, WeightGradient};
pub(crate) use normalization::STATISTICS;
pub(crate) use reduction::reduced_axes;
pub(crate) use shaping::{flattened, reshaped, squeezed, unsqueezed};
pub(crate) use weight_gradient::isolated;
pub(crate) use window::{explicit_pads, explicit_transposed_pads};

use cloister_tensor::Dtype;

use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Attributes, Graph, Node, Operator, Value, ValueId};

/// Type of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

/// What a rule sees of a node whose results it types.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) inputs: &'a [Option<ValueId>],
    pub(crate) attributes: &'a Attributes,
}

impl<'a> Operands<'a> {
    pub(crate) fn optional(&self, at: usize) -> Option<&'a Value> {
        self.inputs.get(at).copied().flatten().map(|id| self.graph.value(id))
    }

    pub(crate) fn get(&self, at: usize) -> Result<&'a Value, String> {
        self.optional(at).ok_or_else(|| format!("operand {at} is missing"))
    }

    /// The integers of an operand that must be known while reading.
    pub(crate) fn ints(&self, at: usize) -> Result<Option<Vec<i64>>, String> {
        let Some(id) = self.inputs.get(at).copied().flatten() else {
            return Ok(None);
        };
        let tensor = self.graph.constants.get(&id);
        let tensor = tensor.ok_or_else(|| format!("operand {at} must be constant, and depends on the data here"))?;
        tensor
            .to_i64_vec()
            .map(Some)
            .map_err(|error| format!("operand {at}: {error}"))
    }
}

/// Which graph a forward node is written into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Batch statistics; results that the derivative needs are kept.
    Training,
    /// Running statistics.
    Evaluation,
}

/// A forward node in its new graph.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written {
    pub(crate) outputs: Vec<ValueId>,
    /// Values for the derivative, in an order that the rule knows.
    pub(crate) saved: Vec<ValueId>,
    /// Operands that are running statistics, and their next values.
    pub(crate) statistics: Vec<(usize, ValueId)>,
}

/// What a derivative sees: a node in the training graph and the gradients of its results.
#[derive(Clone, Debug)]
pub(crate) struct Step<'a> {
    pub(crate) node: &'a Node,
    pub(crate) inputs: &'a [Option<ValueId>],
    pub(crate) outputs: &'a [ValueId],
    pub(crate) saved: &'a [ValueId],
    /// Gradient of the first result.
    pub(crate) gradient: ValueId,
    /// Operands whose gradient is of use.
    pub(crate) wanted: &'a [bool],
}

impl Step<'_> {
    pub(crate) fn input(&self, builder: &Builder, at: usize) -> Result<ValueId, GraphError> {
        self.inputs
            .get(at)
            .copied()
            .flatten()
            .ok_or_else(|| builder.error(format!("operand {at} is missing")))
    }

    pub(crate) fn wants(&self, at: usize) -> bool {
        self.wanted.get(at).copied().unwrap_or(false)
    }

    pub(crate) fn output(&self, builder: &Builder) -> Result<ValueId, GraphError> {
        self.outputs.first().copied().ok_or_else(|| builder.error("no result"))
    }

    pub(crate) fn saved(&self, builder: &Builder, at: usize) -> Result<ValueId, GraphError> {
        self.saved
            .get(at)
            .copied()
            .ok_or_else(|| builder.error("the forward pass kept too little"))
    }
}

/// Gradients of the operands, in their order.
pub(crate) type Gradients = Result<Vec<Option<ValueId>>, GraphError>;

/// How a node is written into a training or evaluation graph when it can't be copied as it stands.
pub(crate) type Rewrite = fn(&mut Builder, &Node, &[Option<ValueId>], Mode) -> Result<Written, GraphError>;

/// The derivative of an operator.
#[derive(Clone, Copy)]
pub(crate) enum Derivative {
    /// Gradients of the operands by those of the results.
    Rule(fn(&mut Builder, &Step<'_>) -> Gradients),
    /// The result does not vary smoothly with its operands (comparisons, integers): gradients end here.
    Stops,
    /// There should be one and is none yet.
    Missing,
}

/// All about an operator.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    /// Attributes that are understood; any other is refused.
    pub(crate) attributes: &'static [&'static str],
    /// Least and most operands.
    pub(crate) operands: (usize, usize),
    /// Operands that say how to compute, such as axes: no parameter is looked for behind them.
    pub(crate) configuration: &'static [usize],
    pub(crate) infer: fn(&Operands<'_>) -> Result<Vec<Type>, String>,
    pub(crate) rewrite: Option<Rewrite>,
    pub(crate) derivative: Derivative,
}

/// The rule of an operator.
pub(crate) fn rule(operator: Operator) -> Rule {
    use Operator as O;
    match operator {
        O::Abs => elementwise::ABS,
        O::Add => elementwise::ADD,
        O::And | O::Or | O::Xor => logic::BOTH,
        O::ArgMax => reduction::ARG_MAX,
        O::Attention => composite::ATTENTION,
        O::AveragePool => pool::AVERAGE,
        O::BatchNormalization => normalization::BATCH,
        O::Cast => shaping::CAST,
        O::CastLike => composite::CAST_LIKE,
        O::Ceil | O::Floor | O::Round => elementwise::ROUNDED,
        O::Celu | O::Elu | O::Swish => composite::WITH_ALPHA,
        O::Clip => activation::CLIP,
        O::Concat => rearrange::CONCAT,
        O::Constant | O::ConstantOfShape | O::Mod | O::Range | O::ReduceProd | O::Shape | O::Size => shaping::KNOWN,
        O::Conv => convolution::CONV,
        O::ConvTranspose => convolution::TRANSPOSED,
        O::Cos => elementwise::COS,
        O::DepthToSpace | O::SpaceToDepth => composite::DEPTH_AND_SPACE,
        O::Div => elementwise::DIV,
        O::Dropout => shaping::DROPOUT,
        O::Einsum => composite::EINSUM,
        O::Equal => logic::EQUAL,
        O::Erf => elementwise::ERF,
        O::Exp => elementwise::EXP,
        O::Expand => rearrange::EXPAND,
        O::Flatten => shaping::FLATTEN,
        O::Gather => pick::GATHER,
        O::Gelu => composite::GELU,
        O::Gemm => matrix::GEMM,
        O::GlobalAveragePool => pool::GLOBAL_AVERAGE,
        O::GlobalMaxPool => pool::GLOBAL_MAX,
        O::Greater | O::GreaterOrEqual | O::Less | O::LessOrEqual => logic::ORDER,
        O::GroupNormalization => composite::GROUP_NORM,
        O::HardSigmoid => composite::HARD_SIGMOID,
        O::HardSwish | O::Mish | O::Softsign => composite::PLAIN,
        O::Identity => elementwise::IDENTITY,
        O::InstanceNormalization => composite::INSTANCE_NORM,
        O::IsNaN => logic::IS_NAN,
        O::LayerNormalization => composite::LAYER_NORM,
        O::LeakyRelu => activation::LEAKY_RELU,
        O::Log => elementwise::LOG,
        O::LogSoftmax => activation::LOG_SOFTMAX,
        O::MatMul => matrix::MAT_MUL,
        O::Max => elementwise::MAX,
        O::MaxPool => pool::MAX,
        O::Mean | O::Sum => composite::ANY_NUMBER,
        O::Min => elementwise::MIN,
        O::Mul => elementwise::MUL,
        O::Neg => elementwise::NEG,
        O::Not => logic::NOT,
        O::PRelu => composite::P_RELU,
        O::Pad => rearrange::PAD,
        O::Pow => elementwise::POW,
        O::RMSNormalization => composite::RMS_NORM,
        O::Reciprocal => elementwise::RECIPROCAL,
        O::ReduceL1 | O::ReduceL2 | O::ReduceLogSumExp | O::ReduceMin | O::ReduceSumSquare => composite::REDUCTION,
        O::ReduceMax => reduction::MAX,
        O::ReduceMean => reduction::MEAN,
        O::ReduceSum => reduction::SUM,
        O::Relu => activation::RELU,
        O::Reshape => shaping::RESHAPE,
        O::Resize => composite::RESIZE,
        O::ScatterElements => pick::SCATTER_ELEMENTS,
        O::Selu => composite::SELU,
        O::Sigmoid => activation::SIGMOID,
        O::Sign => elementwise::SIGN,
        O::Sin => elementwise::SIN,
        O::Slice => rearrange::SLICE,
        O::Softmax => activation::SOFTMAX,
        O::Softplus => elementwise::SOFTPLUS,
        O::Split => composite::SPLIT,
        O::Sqrt => elementwise::SQRT,
        O::Squeeze => shaping::SQUEEZE,
        O::Sub => elementwise::SUB,
        O::Tanh => activation::TANH,
        O::Tile => composite::TILE,
        O::Transpose => rearrange::TRANSPOSE,
        O::Trilu => composite::TRILU,
        O::Unsqueeze => shaping::UNSQUEEZE,
        O::Where => logic::WHERE,
    }
}
