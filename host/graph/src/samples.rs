//! Small models to begin with, with seeded weights: the same arguments give the same bytes on every machine.

mod encoder;
mod residual;

use cloister_tensor::{Dtype, Tensor};

use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Attribute, Attributes, Operator, ValueId};
use crate::limits::Limits;
use crate::model::Model;
use crate::onnx::{self, Batch};

pub use encoder::encoder;
pub use residual::{bottleneck, resnet};

/// Rows that the graph is built with; the file leaves them open.
const ROWS: usize = 2;
/// Most elements of a weight.
const MOST_WEIGHTS: usize = 1 << 28;
/// Most inputs, hidden units or classes.
const MOST: usize = 1 << 16;

/// Logistic regression: `x` [N, inputs] to `logits` [N, classes]. Parameters `linear.weight`, `linear.bias`, at 0 as usual.
/// One class makes it a linear regression, for losses without classes.
///
/// # Errors
/// [`GraphError::Option`] when a size is out of range.
pub fn logistic(inputs: usize, classes: usize, seed: u64) -> Result<Vec<u8>, GraphError> {
    let mut sample = Sample::new(&[("--inputs", inputs, 1), ("--classes", classes, 1)], seed)?;
    let x = sample.builder.input("x", Dtype::F32, &[ROWS, inputs])?;
    let logits = sample.linear("linear", x, classes, Init::Last)?;
    sample.finish(logits)
}

/// Multi-layer perceptron: `x` [N, inputs] to `logits` [N, classes] by one hidden layer of rectified units.
/// Parameters `fc1.weight`, `fc1.bias`, `fc2.weight`, `fc2.bias`. With one class it is for losses without classes.
///
/// # Errors
/// [`GraphError::Option`] when a size is out of range.
pub fn mlp(inputs: usize, hidden: usize, classes: usize, seed: u64) -> Result<Vec<u8>, GraphError> {
    let sizes = [
        ("--inputs", inputs, 1),
        ("--hidden", hidden, 1),
        ("--classes", classes, 1),
    ];
    let mut sample = Sample::new(&sizes, seed)?;
    let x = sample.builder.input("x", Dtype::F32, &[ROWS, inputs])?;
    let first = sample.linear("fc1", x, hidden, Init::Rectified)?;
    let first = sample.builder.unary(Operator::Relu, first)?;
    let logits = sample.linear("fc2", first, classes, Init::Last)?;
    sample.finish(logits)
}

/// Small CNN on square images of one channel: `x` [N, 1, side, side], with `inputs = side * side`, to `logits` [N, classes].
/// Two blocks of 3x3 convolution (`hidden` and twice as many channels), batch norm, rectifier and 2x2 max pool, then
/// a linear layer.
///
/// # Errors
/// [`GraphError::Option`] when a size is out of range, or `inputs` is no square.
pub fn cnn(inputs: usize, hidden: usize, classes: usize, seed: u64) -> Result<Vec<u8>, GraphError> {
    let sizes = [
        ("--inputs", inputs, 16),
        ("--hidden", hidden, 1),
        ("--classes", classes, 2),
    ];
    let mut sample = Sample::new(&sizes, seed)?;
    let side = inputs.isqrt();
    if side * side != inputs {
        let problem =
            format!("{inputs} was given; a CNN takes square images, so a square number is wanted, such as 64 for 8x8");
        return Err(GraphError::Option {
            option: "--inputs",
            problem,
        });
    }
    let x = sample.builder.input("x", Dtype::F32, &[ROWS, 1, side, side])?;
    let first = sample.block("1", x, hidden)?;
    let second = sample.block("2", first, 2 * hidden)?;
    let features: usize = sample.builder.shape(second)[1..].iter().product();
    let flat = sample.builder.reshape(second, &[ROWS, features])?;
    let logits = sample.linear("fc", flat, classes, Init::Last)?;
    sample.finish(logits)
}

/// Reads a sample that was just written.
///
/// # Errors
/// As [`Model::parse`].
pub fn parsed(sample: &[u8]) -> Result<Model, GraphError> {
    Model::parse(sample, &Limits::default())
}

/// How a weight starts.
#[derive(Clone, Copy)]
enum Init {
    /// He (Kaiming) uniform for what a rectifier follows: within `sqrt(6 / fan_in)`.
    Rectified,
    /// Within `sqrt(1 / fan_in)`.
    Last,
}

struct Sample {
    builder: Builder,
    random: SplitMix,
}

impl Sample {
    fn new(sizes: &[(&'static str, usize, usize)], seed: u64) -> Result<Self, GraphError> {
        for &(option, size, least) in sizes {
            if size < least || size > MOST {
                let problem = format!("{size} was given, {least} to {MOST} is wanted");
                return Err(GraphError::Option { option, problem });
            }
        }
        Ok(Self {
            builder: Builder::new(&Limits::default()),
            random: SplitMix(seed),
        })
    }

    /// A weight of which each output has as many inputs as the dimensions behind the first one hold.
    fn weight(&mut self, name: &str, shape: &[usize], init: Init) -> Result<ValueId, GraphError> {
        self.weight_for(name, shape, shape[1..].iter().product(), init)
    }

    fn weight_for(&mut self, name: &str, shape: &[usize], fan_in: usize, init: Init) -> Result<ValueId, GraphError> {
        let gain: f32 = match init {
            Init::Rectified => 6.0,
            Init::Last => 1.0,
        };
        let bound = (gain / fan_in as f32).sqrt();
        let count = shape.iter().product();
        if count > MOST_WEIGHTS {
            let problem = format!("'{name}' would have {count} elements, at most {MOST_WEIGHTS} are made");
            return Err(GraphError::Option {
                option: "--hidden",
                problem,
            });
        }
        let values = (0..count).map(|_| self.random.within(bound)).collect();
        self.builder.named_constant(name, Tensor::from_f32(shape, values)?)
    }

    fn filled(&mut self, name: &str, size: usize, value: f32) -> Result<ValueId, GraphError> {
        self.builder
            .named_constant(name, Tensor::from_f32(&[size], vec![value; size])?)
    }

    fn linear(&mut self, name: &str, x: ValueId, units: usize, init: Init) -> Result<ValueId, GraphError> {
        let inputs = self.builder.shape(x)[1];
        let weight = self.weight(&format!("{name}.weight"), &[units, inputs], init)?;
        let bias = self.filled(&format!("{name}.bias"), units, 0.0)?;
        self.builder.node(
            Operator::Gemm,
            &[x, weight, bias],
            Attributes::none().with_int("transB", 1),
        )
    }

    fn convolution(
        &mut self,
        name: &str,
        x: ValueId,
        channels: usize,
        size: usize,
        stride: usize,
    ) -> Result<ValueId, GraphError> {
        let inputs = self.builder.shape(x)[1];
        let shape = [channels, inputs, size, size];
        let weight = self.weight(&format!("{name}.weight"), &shape, Init::Rectified)?;
        let mut attributes = Attributes::none()
            .with_ints("kernel_shape", &[size, size])
            .with_ints("pads", &[size / 2; 4]);
        if stride != 1 {
            attributes = attributes.with_ints("strides", &[stride, stride]);
        }
        self.builder.node(Operator::Conv, &[x, weight], attributes)
    }

    /// `scale` is what the normalised values are multiplied with at first.
    fn batch_norm(&mut self, name: &str, x: ValueId, momentum: f32, scale: f32) -> Result<ValueId, GraphError> {
        let channels = self.builder.shape(x)[1];
        let mut operands = vec![x];
        for (part, start) in [
            ("weight", scale),
            ("bias", 0.0),
            ("running_mean", 0.0),
            ("running_var", 1.0),
        ] {
            operands.push(self.filled(&format!("{name}.{part}"), channels, start)?);
        }
        let attributes = Attributes::none()
            .with("epsilon", Attribute::Float(1e-5))
            .with("momentum", Attribute::Float(momentum));
        self.builder.node(Operator::BatchNormalization, &operands, attributes)
    }

    fn block(&mut self, number: &str, x: ValueId, channels: usize) -> Result<ValueId, GraphError> {
        let value = self.convolution(&format!("conv{number}"), x, channels, 3, 1)?;
        let value = self.batch_norm(&format!("bn{number}"), value, 0.9, 1.0)?;
        let value = self.builder.unary(Operator::Relu, value)?;
        let halves = Attributes::none()
            .with_ints("kernel_shape", &[2, 2])
            .with_ints("strides", &[2, 2]);
        self.builder.node(Operator::MaxPool, &[value], halves)
    }

    fn finish(mut self, logits: ValueId) -> Result<Vec<u8>, GraphError> {
        self.builder.output("logits", logits)?;
        let graph = self.builder.finish(Default::default())?;
        Ok(onnx::write(&graph, Batch::Symbolic))
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, the same everywhere. Not for secrets.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform between `-bound` and `bound`.
    fn within(&mut self, bound: f32) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u64 << 24) as f32;
        (2.0 * unit - 1.0) * bound
    }
}
