//! The crate's own representation of a graph: what is read is brought into it, and only it is written.

use std::collections::BTreeMap;

use cloister_tensor::{Dtype, Tensor};

use crate::error::Place;

macro_rules! operators {
    ($($name:ident),* $(,)?) => {
        /// The operators that this crate knows, under their ONNX names (default domain).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "each is the ONNX operator of that name")]
        pub enum Operator { $($name),* }

        impl Operator {
            /// All of them, by name.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The ONNX name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }

            /// The operator of an ONNX name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $(stringify!($name) => Some(Self::$name),)* _ => None }
            }
        }
    };
}

operators!(
    Abs,
    Add,
    And,
    ArgMax,
    Attention,
    AveragePool,
    BatchNormalization,
    Cast,
    CastLike,
    Ceil,
    Celu,
    Clip,
    Concat,
    Constant,
    ConstantOfShape,
    Conv,
    ConvTranspose,
    Cos,
    DepthToSpace,
    Div,
    Dropout,
    Einsum,
    Elu,
    Equal,
    Erf,
    Exp,
    Expand,
    Flatten,
    Floor,
    Gather,
    Gelu,
    Gemm,
    GlobalAveragePool,
    GlobalMaxPool,
    Greater,
    GreaterOrEqual,
    GroupNormalization,
    HardSigmoid,
    HardSwish,
    Identity,
    InstanceNormalization,
    IsNaN,
    LayerNormalization,
    LeakyRelu,
    Less,
    LessOrEqual,
    Log,
    LogSoftmax,
    MatMul,
    Max,
    MaxPool,
    Mean,
    Min,
    Mish,
    Mod,
    Mul,
    Neg,
    Not,
    Or,
    PRelu,
    Pad,
    Pow,
    RMSNormalization,
    Range,
    Reciprocal,
    ReduceL1,
    ReduceL2,
    ReduceLogSumExp,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    ReduceProd,
    ReduceSum,
    ReduceSumSquare,
    Relu,
    Reshape,
    Resize,
    Round,
    ScatterElements,
    Selu,
    Shape,
    Sigmoid,
    Sign,
    Sin,
    Size,
    Slice,
    Softmax,
    Softplus,
    Softsign,
    SpaceToDepth,
    Split,
    Sqrt,
    Squeeze,
    Sub,
    Sum,
    Swish,
    Tanh,
    Tile,
    Transpose,
    Trilu,
    Unsqueeze,
    Where,
    Xor,
);

/// A value of a graph, by its position in [`Graph::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ValueId(pub(crate) usize);

/// What is known of a value before it is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

/// An attribute of a node.
#[derive(Clone, Debug)]
pub(crate) enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Tensor(Tensor),
}

/// The attributes of a node, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(pub(crate) BTreeMap<String, Attribute>);

impl Attributes {
    pub(crate) fn none() -> Self {
        Self::default()
    }

    pub(crate) fn with(mut self, name: &str, attribute: Attribute) -> Self {
        self.0.insert(name.to_owned(), attribute);
        self
    }

    pub(crate) fn with_int(self, name: &str, value: i64) -> Self {
        self.with(name, Attribute::Int(value))
    }

    pub(crate) fn with_ints(self, name: &str, values: &[usize]) -> Self {
        self.with(
            name,
            Attribute::Ints(values.iter().map(|&value| value as i64).collect()),
        )
    }

    pub(crate) fn int(&self, name: &str, default: i64) -> Result<i64, String> {
        match self.0.get(name) {
            None => Ok(default),
            Some(Attribute::Int(value)) => Ok(*value),
            Some(_) => Err(format!("attribute '{name}' is not an integer")),
        }
    }

    pub(crate) fn float(&self, name: &str, default: f32) -> Result<f32, String> {
        match self.0.get(name) {
            None => Ok(default),
            Some(Attribute::Float(value)) => Ok(*value),
            Some(_) => Err(format!("attribute '{name}' is not a float")),
        }
    }

    pub(crate) fn text(&self, name: &str, default: &'static str) -> Result<&str, String> {
        match self.0.get(name) {
            None => Ok(default),
            Some(Attribute::Text(value)) => Ok(value),
            Some(_) => Err(format!("attribute '{name}' is not text")),
        }
    }

    pub(crate) fn ints(&self, name: &str) -> Result<Option<&[i64]>, String> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values)),
            Some(_) => Err(format!("attribute '{name}' is not a list of integers")),
        }
    }
}

/// An operation: operator, operands, results. Absent optional operands are `None`.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) operator: Operator,
    pub(crate) inputs: Vec<Option<ValueId>>,
    pub(crate) outputs: Vec<ValueId>,
    pub(crate) attributes: Attributes,
    pub(crate) place: Place,
}

/// A graph with every type and shape known. Nodes stand in an order in which they can be computed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    pub(crate) values: Vec<Value>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) constants: BTreeMap<ValueId, Tensor>,
    pub(crate) inputs: Vec<ValueId>,
    pub(crate) outputs: Vec<(String, ValueId)>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Graph {
    pub(crate) fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// Removes nodes and constants that no output needs. Inputs stay, used or not.
    pub(crate) fn prune(&mut self) {
        let mut needed = vec![false; self.values.len()];
        for (_, id) in &self.outputs {
            needed[id.0] = true;
        }
        for node in self.nodes.iter().rev() {
            if node.outputs.iter().any(|id| needed[id.0]) {
                for id in node.inputs.iter().flatten() {
                    needed[id.0] = true;
                }
            }
        }
        self.nodes.retain(|node| node.outputs.iter().any(|id| needed[id.0]));
        self.constants.retain(|id, _| needed[id.0]);
    }
}
