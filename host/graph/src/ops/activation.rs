//! Activations and normalised exponentials.

use cloister_tensor::Dtype;

use super::bounds::{axis, float, like_first};
use super::{Derivative, Gradients, Operands, Rule, Step, Type};
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};

pub(crate) const RELU: Rule = Rule {
    attributes: &[],
    operands: (1, 1),
    configuration: &[],
    infer,
    rewrite: None,
    derivative: Derivative::Rule(relu),
};
pub(crate) const LEAKY_RELU: Rule = Rule {
    attributes: &["alpha"],
    derivative: Derivative::Rule(leaky_relu),
    ..RELU
};
pub(crate) const SIGMOID: Rule = Rule {
    derivative: Derivative::Rule(sigmoid),
    ..RELU
};
pub(crate) const TANH: Rule = Rule {
    derivative: Derivative::Rule(tanh),
    ..RELU
};
pub(crate) const CLIP: Rule = Rule {
    operands: (1, 3),
    configuration: &[1, 2],
    derivative: Derivative::Rule(clip),
    ..RELU
};
pub(crate) const SOFTMAX: Rule = Rule {
    attributes: &["axis"],
    infer: infer_along,
    derivative: Derivative::Rule(softmax),
    ..RELU
};
pub(crate) const LOG_SOFTMAX: Rule = Rule {
    derivative: Derivative::Rule(log_softmax),
    ..SOFTMAX
};

fn infer(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let shape = float(operands, 0)?;
    like_first(operands, shape)
}

fn infer_along(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let shape = float(operands, 0)?;
    axis(operands.attributes.int("axis", -1)?, shape.len())?;
    like_first(operands, shape)
}

/// 1 where `value` is greater than 0, else 0 (also at 0, as PyTorch has it).
fn positive(builder: &mut Builder, value: ValueId) -> Result<ValueId, GraphError> {
    let zero = builder.scalar(0.0)?;
    builder.binary(Operator::Greater, value, zero)
}

fn relu(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let output = step.output(builder)?;
    let passes = positive(builder, output)?;
    let mask = builder.cast(passes, Dtype::F32)?;
    Ok(vec![Some(builder.mul(step.gradient, mask)?)])
}

fn leaky_relu(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let alpha = step
        .node
        .attributes
        .float("alpha", 0.01)
        .map_err(|problem| builder.error(problem))?;
    let operand = step.input(builder, 0)?;
    let passes = positive(builder, operand)?;
    let leaked = builder.scale(step.gradient, alpha)?;
    Ok(vec![Some(builder.node(
        Operator::Where,
        &[passes, step.gradient, leaked],
        Default::default(),
    )?)])
}

/// s (1 - s)
fn sigmoid(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let output = step.output(builder)?;
    let one = builder.scalar(1.0)?;
    let rest = builder.sub(one, output)?;
    let slope = builder.mul(output, rest)?;
    Ok(vec![Some(builder.mul(step.gradient, slope)?)])
}

/// 1 - t^2
fn tanh(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let output = step.output(builder)?;
    let square = builder.mul(output, output)?;
    let one = builder.scalar(1.0)?;
    let slope = builder.sub(one, square)?;
    Ok(vec![Some(builder.mul(step.gradient, slope)?)])
}

/// The gradient passes where nothing was clipped: there the result equals the operand.
fn clip(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (operand, output) = (step.input(builder, 0)?, step.output(builder)?);
    let untouched = builder.binary(Operator::Equal, operand, output)?;
    let mask = builder.cast(untouched, Dtype::F32)?;
    Ok(vec![Some(builder.mul(step.gradient, mask)?)])
}

fn along(builder: &Builder, step: &Step<'_>) -> Result<usize, GraphError> {
    let rank = builder.rank(step.gradient);
    let given = step.node.attributes.int("axis", -1).and_then(|given| axis(given, rank));
    given.map_err(|problem| builder.error(problem))
}

/// y (g - sum(g y))
fn softmax(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let axis = along(builder, step)?;
    let output = step.output(builder)?;
    let product = builder.mul(step.gradient, output)?;
    let total = builder.sum(product, &[axis], true)?;
    let centred = builder.sub(step.gradient, total)?;
    Ok(vec![Some(builder.mul(output, centred)?)])
}

/// g - exp(y) sum(g)
fn log_softmax(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let axis = along(builder, step)?;
    let output = step.output(builder)?;
    let shares = builder.unary(Operator::Exp, output)?;
    let total = builder.sum(step.gradient, &[axis], true)?;
    let product = builder.mul(shares, total)?;
    Ok(vec![Some(builder.sub(step.gradient, product)?)])
}
