//! Element by element, with broadcasting.

use cloister_tensor::Dtype;

use super::bounds::{broadcast, like_first, same_dtype};
use super::{Derivative, Gradients, Operands, Rule, Step, Type};
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};

const UNARY: Rule = Rule {
    attributes: &[],
    operands: (1, 1),
    configuration: &[],
    infer: infer_unary,
    rewrite: None,
    derivative: Derivative::Missing,
};
const BINARY: Rule = Rule {
    operands: (2, 2),
    infer: infer_binary,
    ..UNARY
};

pub(crate) const ADD: Rule = Rule {
    derivative: Derivative::Rule(add),
    ..BINARY
};
pub(crate) const SUB: Rule = Rule {
    derivative: Derivative::Rule(sub),
    ..BINARY
};
pub(crate) const MUL: Rule = Rule {
    derivative: Derivative::Rule(mul),
    ..BINARY
};
pub(crate) const DIV: Rule = Rule {
    derivative: Derivative::Rule(div),
    ..BINARY
};
/// The exponent says how to compute: no parameter is looked for behind it.
pub(crate) const POW: Rule = Rule {
    configuration: &[1],
    infer: infer_pow,
    derivative: Derivative::Rule(pow),
    ..BINARY
};
/// Any number of operands in a file; two of them once it is bound.
pub(crate) const MAX: Rule = Rule {
    operands: (1, 1 << 10),
    derivative: Derivative::Rule(extreme),
    ..BINARY
};
pub(crate) const MIN: Rule = MAX;
pub(crate) const NEG: Rule = Rule {
    derivative: Derivative::Rule(neg),
    ..UNARY
};
pub(crate) const ABS: Rule = Rule {
    derivative: Derivative::Rule(abs),
    ..UNARY
};
pub(crate) const SIGN: Rule = Rule {
    derivative: Derivative::Stops,
    ..UNARY
};
pub(crate) const EXP: Rule = Rule {
    infer: infer_float,
    derivative: Derivative::Rule(exp),
    ..UNARY
};
pub(crate) const LOG: Rule = Rule {
    infer: infer_float,
    derivative: Derivative::Rule(log),
    ..UNARY
};
pub(crate) const SQRT: Rule = Rule {
    infer: infer_float,
    derivative: Derivative::Rule(sqrt),
    ..UNARY
};
pub(crate) const ERF: Rule = Rule {
    infer: infer_float,
    derivative: Derivative::Rule(erf),
    ..UNARY
};
pub(crate) const RECIPROCAL: Rule = Rule {
    infer: infer_float,
    derivative: Derivative::Rule(reciprocal),
    ..UNARY
};
pub(crate) const SIN: Rule = Rule {
    infer: infer_float,
    derivative: Derivative::Rule(sin),
    ..UNARY
};
pub(crate) const COS: Rule = Rule {
    derivative: Derivative::Rule(cos),
    ..SIN
};
pub(crate) const SOFTPLUS: Rule = Rule {
    derivative: Derivative::Rule(softplus),
    ..SIN
};
/// `Floor`, `Ceil` and `Round`: steps, so that gradients end there.
pub(crate) const ROUNDED: Rule = Rule {
    infer: infer_float,
    derivative: Derivative::Stops,
    ..UNARY
};
pub(crate) const IDENTITY: Rule = Rule {
    derivative: Derivative::Rule(identity),
    ..UNARY
};

fn infer_unary(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    like_first(operands, operands.get(0)?.shape.clone())
}

fn infer_float(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let shape = super::bounds::float(operands, 0)?;
    like_first(operands, shape)
}

fn infer_binary(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    same_dtype(operands, 0, 1)?;
    if operands.get(0)?.dtype == Dtype::Bool {
        return Err("arithmetic on truth values".to_owned());
    }
    like_first(operands, broadcast(&operands.get(0)?.shape, &operands.get(1)?.shape)?)
}

fn infer_pow(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    super::bounds::float(operands, 0)?;
    like_first(operands, broadcast(&operands.get(0)?.shape, &operands.get(1)?.shape)?)
}

/// The gradient of operand `at`, summed over what was broadcast, when it is wanted.
pub(crate) fn settle(
    builder: &mut Builder,
    step: &Step<'_>,
    at: usize,
    make: impl FnOnce(&mut Builder) -> Result<ValueId, GraphError>,
) -> Result<Option<ValueId>, GraphError> {
    if !step.wants(at) {
        return Ok(None);
    }
    let shape = {
        let id = step.input(builder, at)?;
        builder.shape(id).to_vec()
    };
    let gradient = make(builder)?;
    builder.unbroadcast(gradient, &shape).map(Some)
}

fn add(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    Ok(vec![
        settle(builder, step, 0, |_| Ok(step.gradient))?,
        settle(builder, step, 1, |_| Ok(step.gradient))?,
    ])
}

fn sub(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    Ok(vec![
        settle(builder, step, 0, |_| Ok(step.gradient))?,
        settle(builder, step, 1, |builder| builder.unary(Operator::Neg, step.gradient))?,
    ])
}

fn mul(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (left, right) = (step.input(builder, 0)?, step.input(builder, 1)?);
    Ok(vec![
        settle(builder, step, 0, |builder| builder.mul(step.gradient, right))?,
        settle(builder, step, 1, |builder| builder.mul(step.gradient, left))?,
    ])
}

fn div(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let right = step.input(builder, 1)?;
    let output = step.output(builder)?;
    Ok(vec![
        settle(builder, step, 0, |builder| builder.div(step.gradient, right))?,
        settle(builder, step, 1, |builder| {
            let product = builder.mul(step.gradient, output)?;
            let quotient = builder.div(product, right)?;
            builder.unary(Operator::Neg, quotient)
        })?,
    ])
}

/// Powers with a constant exponent, which is what exporters write; the caller refuses a trained one.
fn pow(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (base, exponent) = (step.input(builder, 0)?, step.input(builder, 1)?);
    let base_gradient = settle(builder, step, 0, |builder| {
        let exponent = builder.cast(exponent, Dtype::F32)?;
        let one = builder.scalar(1.0)?;
        let lower = builder.sub(exponent, one)?;
        let power = builder.binary(Operator::Pow, base, lower)?;
        let slope = builder.mul(power, exponent)?;
        builder.mul(step.gradient, slope)
    })?;
    Ok(vec![base_gradient, None])
}

/// `Max` and `Min` of two: the gradient goes to the chosen operand, half to each where they are equal (as in PyTorch).
fn extreme(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operands = [step.input(builder, 0)?, step.input(builder, 1)?];
    let output = step.output(builder)?;
    let mut gradients = Vec::new();
    for (at, &own) in operands.iter().enumerate() {
        let other = operands[1 - at];
        gradients.push(settle(builder, step, at, |builder| {
            let mine = builder.binary(Operator::Equal, own, output)?;
            let mine = builder.cast(mine, Dtype::F32)?;
            let tie = builder.binary(Operator::Equal, own, other)?;
            let tie = builder.cast(tie, Dtype::F32)?;
            let half = builder.scale(tie, 0.5)?;
            let share = builder.sub(mine, half)?;
            builder.mul(step.gradient, share)
        })?);
    }
    Ok(gradients)
}

fn neg(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    Ok(vec![Some(builder.unary(Operator::Neg, step.gradient)?)])
}

fn abs(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operand = step.input(builder, 0)?;
    let sign = builder.unary(Operator::Sign, operand)?;
    Ok(vec![Some(builder.mul(step.gradient, sign)?)])
}

fn exp(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let output = step.output(builder)?;
    Ok(vec![Some(builder.mul(step.gradient, output)?)])
}

fn log(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operand = step.input(builder, 0)?;
    Ok(vec![Some(builder.div(step.gradient, operand)?)])
}

fn sqrt(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let output = step.output(builder)?;
    let half = builder.scale(step.gradient, 0.5)?;
    Ok(vec![Some(builder.div(half, output)?)])
}

/// d erf(x) = 2/sqrt(pi) exp(-x^2)
fn erf(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operand = step.input(builder, 0)?;
    let square = builder.mul(operand, operand)?;
    let negative = builder.unary(Operator::Neg, square)?;
    let bell = builder.unary(Operator::Exp, negative)?;
    let slope = builder.scale(bell, std::f32::consts::FRAC_2_SQRT_PI)?;
    Ok(vec![Some(builder.mul(step.gradient, slope)?)])
}

fn sin(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operand = step.input(builder, 0)?;
    let slope = builder.unary(Operator::Cos, operand)?;
    Ok(vec![Some(builder.mul(step.gradient, slope)?)])
}

fn cos(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operand = step.input(builder, 0)?;
    let sine = builder.unary(Operator::Sin, operand)?;
    let slope = builder.unary(Operator::Neg, sine)?;
    Ok(vec![Some(builder.mul(step.gradient, slope)?)])
}

/// d log(1 + exp(x)) = sigmoid(x)
fn softplus(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operand = step.input(builder, 0)?;
    let slope = builder.unary(Operator::Sigmoid, operand)?;
    Ok(vec![Some(builder.mul(step.gradient, slope)?)])
}

fn reciprocal(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let output = step.output(builder)?;
    let square = builder.mul(output, output)?;
    let product = builder.mul(step.gradient, square)?;
    Ok(vec![Some(builder.unary(Operator::Neg, product)?)])
}

fn identity(_: &mut Builder, step: &Step<'_>) -> Gradients {
    Ok(vec![Some(step.gradient)])
}
