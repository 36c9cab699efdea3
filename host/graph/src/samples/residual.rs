//! Residual networks.

use cloister_tensor::Dtype;

use super::{Init, ROWS, Sample};
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};

/// Residual network for small square images of three channels (ResNet v2 of He et al. 2016, in the form that TensorFlow's
/// models made common): `x` [N, 3, side, side], with `inputs = 3 * side * side`, to `logits` [N, classes].
/// A convolution, three stages of `(depth - 2) / 6` blocks with `hidden`, twice and four times as many channels, each block
/// two 3x3 convolutions behind batch norm (decay 0.997) and rectifier, the first of a stage with a 1x1 convolution beside it;
/// then batch norm, rectifier, mean over the image and a linear layer. `resnet(1728, 16, 10, 56, seed)` has 855,834 parameters.
///
/// # Errors
/// [`GraphError::Option`] when a size is out of range, `inputs` is not three squares, or `depth` is not 6 n + 2.
pub fn resnet(inputs: usize, hidden: usize, classes: usize, depth: usize, seed: u64) -> Result<Vec<u8>, GraphError> {
    let sizes = [
        ("--inputs", inputs, 48),
        ("--hidden", hidden, 1),
        ("--classes", classes, 2),
    ];
    let mut sample = Sample::new(&sizes, seed)?;
    let side = side(inputs, 4)?;
    if !(8..=1202).contains(&depth) || depth % 6 != 2 {
        let problem = format!("{depth} was given; 6 n + 2 is wanted, 8 to 1202, such as 20 or 56");
        return Err(GraphError::Option {
            option: "--depth",
            problem,
        });
    }
    let x = sample.builder.input("x", Dtype::F32, &[ROWS, 3, side, side])?;
    let mut value = sample.convolution("conv", x, hidden, 3, 1)?;
    for stage in 0..3 {
        for block in 0..(depth - 2) / 6 {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("stage{}.block{}", stage + 1, block + 1);
            value = sample.residual(&name, value, hidden << stage, stride, block == 0)?;
        }
    }
    value = sample.batch_norm("bn", value, 0.997, 1.0)?;
    value = sample.builder.unary(Operator::Relu, value)?;
    sample.classify(value, classes)
}

/// Residual network of bottleneck blocks (He et al. 2015, with the stride in the 3x3 convolution as PyTorch's `torchvision` has it):
/// `x` [N, 3, side, side], with `inputs = 3 * side * side`, to `logits` [N, classes]. A 7x7 convolution with stride 2, a 3x3 max pool with
/// stride 2, four stages of blocks with `hidden`, twice, four and eight times as many channels inside and four times those outside, mean
/// over the image and a linear layer. `depth` 50 has 3, 4, 6, 3 blocks, 101 has 3, 4, 23, 3, and 152 has 3, 8, 36, 3; 26 has two each.
/// The scale behind a block's last convolution starts at 0, so that each block starts as what passes it by (Goyal et al. 2017).
/// `bottleneck(3072, 64, 1000, 50, seed)` has the 25,557,032 parameters of ResNet-50.
///
/// # Errors
/// [`GraphError::Option`] when a size is out of range, `inputs` is not three squares of 32 or more, or `depth` is none of these.
pub fn bottleneck(
    inputs: usize,
    hidden: usize,
    classes: usize,
    depth: usize,
    seed: u64,
) -> Result<Vec<u8>, GraphError> {
    let sizes = [
        ("--inputs", inputs, 3 * 32 * 32),
        ("--hidden", hidden, 1),
        ("--classes", classes, 2),
    ];
    let mut sample = Sample::new(&sizes, seed)?;
    let side = side(inputs, 32)?;
    let blocks = match depth {
        26 => [2, 2, 2, 2],
        50 => [3, 4, 6, 3],
        101 => [3, 4, 23, 3],
        152 => [3, 8, 36, 3],
        _ => {
            let problem = format!("{depth} was given; 26, 50, 101 or 152 is wanted");
            return Err(GraphError::Option {
                option: "--depth",
                problem,
            });
        }
    };
    let x = sample.builder.input("x", Dtype::F32, &[ROWS, 3, side, side])?;
    let mut value = sample.convolution("conv1", x, hidden, 7, 2)?;
    value = sample.batch_norm("bn1", value, MOMENTUM, 1.0)?;
    value = sample.builder.unary(Operator::Relu, value)?;
    let pool = Attributes::none()
        .with_ints("kernel_shape", &[3, 3])
        .with_ints("pads", &[1; 4])
        .with_ints("strides", &[2, 2]);
    value = sample.builder.node(Operator::MaxPool, &[value], pool)?;
    for (stage, count) in blocks.into_iter().enumerate() {
        for block in 0..count {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = format!("stage{}.block{}", stage + 1, block + 1);
            value = sample.narrow(&name, value, hidden << stage, stride, block == 0)?;
        }
    }
    sample.classify(value, classes)
}

/// Share of the running statistics that a step keeps; PyTorch writes it as 0.1, the share of what comes in.
const MOMENTUM: f32 = 0.9;

/// Height and width of square images of three channels.
fn side(inputs: usize, least: usize) -> Result<usize, GraphError> {
    let side = (inputs / 3).isqrt();
    if 3 * side * side == inputs && side >= least {
        return Ok(side);
    }
    let problem = format!(
        "{inputs} was given; a residual network takes square images of three channels, so three times a square number is \
         wanted, such as 3072 for 32x32{}",
        if least > 4 {
            ", the smallest that its five halvings take"
        } else {
            ""
        }
    );
    Err(GraphError::Option {
        option: "--inputs",
        problem,
    })
}

impl Sample {
    /// Mean over the image, and the logits.
    fn classify(mut self, value: ValueId, classes: usize) -> Result<Vec<u8>, GraphError> {
        let value = self.builder.unary(Operator::GlobalAveragePool, value)?;
        let features = self.builder.shape(value)[1];
        let flat = self.builder.reshape(value, &[ROWS, features])?;
        let logits = self.linear("fc", flat, classes, Init::Last)?;
        self.finish(logits)
    }

    /// A block with `channels` inside and four times as many outside.
    fn narrow(
        &mut self,
        name: &str,
        x: ValueId,
        channels: usize,
        stride: usize,
        projects: bool,
    ) -> Result<ValueId, GraphError> {
        let mut value = x;
        // What size, stride and scale each of the three convolutions has.
        for (at, (size, stride, wide, scale)) in [(1, 1, 1, 1.0), (3, stride, 1, 1.0), (1, 1, 4, 0.0)]
            .into_iter()
            .enumerate()
        {
            let number = at + 1;
            value = self.convolution(&format!("{name}.conv{number}"), value, wide * channels, size, stride)?;
            value = self.batch_norm(&format!("{name}.bn{number}"), value, MOMENTUM, scale)?;
            if number < 3 {
                value = self.builder.unary(Operator::Relu, value)?;
            }
        }
        let beside = if projects {
            let beside = self.convolution(&format!("{name}.shortcut"), x, 4 * channels, 1, stride)?;
            self.batch_norm(&format!("{name}.bn_shortcut"), beside, MOMENTUM, 1.0)?
        } else {
            x
        };
        let sum = self.builder.add(value, beside)?;
        self.builder.unary(Operator::Relu, sum)
    }

    fn residual(
        &mut self,
        name: &str,
        x: ValueId,
        channels: usize,
        stride: usize,
        projects: bool,
    ) -> Result<ValueId, GraphError> {
        let normal = self.batch_norm(&format!("{name}.bn1"), x, 0.997, 1.0)?;
        let active = self.builder.unary(Operator::Relu, normal)?;
        let beside = if projects {
            self.convolution(&format!("{name}.shortcut"), active, channels, 1, stride)?
        } else {
            x
        };
        let first = self.convolution(&format!("{name}.conv1"), active, channels, 3, stride)?;
        let normal = self.batch_norm(&format!("{name}.bn2"), first, 0.997, 1.0)?;
        let active = self.builder.unary(Operator::Relu, normal)?;
        let second = self.convolution(&format!("{name}.conv2"), active, channels, 3, 1)?;
        self.builder.add(second, beside)
    }
}
