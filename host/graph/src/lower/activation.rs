//! Activations that are made of other operators.

use super::Source;
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};

/// Selu's constants (Klambauer et al. 2017), as ONNX has them.
const SELU: (f32, f32) = (1.673_263_2, 1.050_701);

pub(super) fn activation(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let x = source.operand(builder, 0)?;
    match source.node.operator {
        Operator::Gelu => gelu(builder, source, x),
        Operator::HardSigmoid => {
            let (alpha, beta) = (
                source.float(builder, "alpha", 0.2)?,
                source.float(builder, "beta", 0.5)?,
            );
            hard_sigmoid(builder, x, alpha, beta)
        }
        Operator::HardSwish => {
            let gate = hard_sigmoid(builder, x, 1.0 / 6.0, 0.5)?;
            builder.mul(x, gate)
        }
        Operator::Elu => {
            let alpha = source.float(builder, "alpha", 1.0)?;
            exponential_below(builder, x, alpha, 1.0)
        }
        Operator::Selu => {
            let alpha = source.float(builder, "alpha", SELU.0)?;
            let gamma = source.float(builder, "gamma", SELU.1)?;
            let elu = exponential_below(builder, x, alpha, 1.0)?;
            builder.scale(elu, gamma)
        }
        Operator::Celu => {
            let alpha = source.float(builder, "alpha", 1.0)?;
            if alpha == 0.0 {
                return Err(builder.error("alpha is 0"));
            }
            exponential_below(builder, x, alpha, 1.0 / alpha)
        }
        Operator::Mish => {
            let soft = builder.unary(Operator::Softplus, x)?;
            let gate = builder.unary(Operator::Tanh, soft)?;
            builder.mul(x, gate)
        }
        Operator::Swish => {
            let alpha = source.float(builder, "alpha", 1.0)?;
            let scaled = builder.scale(x, alpha)?;
            let gate = builder.unary(Operator::Sigmoid, scaled)?;
            builder.mul(x, gate)
        }
        Operator::Softsign => {
            let size = builder.unary(Operator::Abs, x)?;
            let one = builder.scalar(1.0)?;
            let below = builder.add(size, one)?;
            builder.div(x, below)
        }
        Operator::PRelu => {
            let slope = source.operand(builder, 1)?;
            let leaked = builder.mul(x, slope)?;
            if builder.shape(leaked) != builder.shape(x) {
                return Err(builder.error("the slopes have more dimensions than the value"));
            }
            choose_positive(builder, x, x, leaked)
        }
        other => Err(builder.error(format!("{} is no activation", other.name()))),
    }
}

/// `x / 2 (1 + erf(x / sqrt 2))`, or its approximation by tanh.
fn gelu(builder: &mut Builder, source: &Source<'_>, x: ValueId) -> Result<ValueId, GraphError> {
    let curve = match source.text(builder, "approximate", "none")?.as_str() {
        "none" => {
            let scaled = builder.scale(x, std::f32::consts::FRAC_1_SQRT_2)?;
            builder.unary(Operator::Erf, scaled)?
        }
        "tanh" => {
            let square = builder.mul(x, x)?;
            let cube = builder.mul(square, x)?;
            let small = builder.scale(cube, 0.044_715)?;
            let sum = builder.add(x, small)?;
            let scaled = builder.scale(sum, (2.0 / std::f32::consts::PI).sqrt())?;
            builder.unary(Operator::Tanh, scaled)?
        }
        other => return Err(builder.error(format!("the approximation '{other}' is not supported"))),
    };
    let one = builder.scalar(1.0)?;
    let gate = builder.add(curve, one)?;
    let half = builder.scale(x, 0.5)?;
    builder.mul(half, gate)
}

/// `x` cut off below `low` and above `high`.
fn clip(builder: &mut Builder, x: ValueId, low: f32, high: f32) -> Result<ValueId, GraphError> {
    let (low, high) = (builder.scalar(low)?, builder.scalar(high)?);
    builder.node(Operator::Clip, &[x, low, high], Attributes::none())
}

fn hard_sigmoid(builder: &mut Builder, x: ValueId, alpha: f32, beta: f32) -> Result<ValueId, GraphError> {
    let scaled = builder.scale(x, alpha)?;
    let offset = builder.scalar(beta)?;
    let line = builder.add(scaled, offset)?;
    clip(builder, line, 0.0, 1.0)
}

/// `x` where it is above 0, else `alpha (exp(rate x) - 1)`. Only values of 0 and below reach the exponential, so that it
/// can't overflow on the side that is not chosen.
fn exponential_below(builder: &mut Builder, x: ValueId, alpha: f32, rate: f32) -> Result<ValueId, GraphError> {
    let below = clip(builder, x, f32::MIN, 0.0)?;
    let scaled = builder.scale(below, rate)?;
    let power = builder.unary(Operator::Exp, scaled)?;
    let one = builder.scalar(1.0)?;
    let rest = builder.sub(power, one)?;
    let rest = builder.scale(rest, alpha)?;
    choose_positive(builder, x, x, rest)
}

fn choose_positive(builder: &mut Builder, x: ValueId, above: ValueId, below: ValueId) -> Result<ValueId, GraphError> {
    let zero = builder.scalar(0.0)?;
    let positive = builder.binary(Operator::Greater, x, zero)?;
    builder.node(Operator::Where, &[positive, above, below], Attributes::none())
}
