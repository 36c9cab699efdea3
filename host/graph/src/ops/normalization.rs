//! Batch normalisation, written out in primitive operators.
//!
//! In a training graph it uses the batch's own statistics and brings the running ones forward as PyTorch does: the running
//! variance takes the unbiased variance, `n / (n - 1)` times the batch's. In an evaluation graph it uses the running ones.

use super::bounds::{float, like_first};
use super::{Derivative, Gradients, Mode, Operands, Rule, Step, Type, Written};
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Node, Operator, ValueId};

/// Operands of `BatchNormalization` that are running statistics: mean and variance.
pub(crate) const STATISTICS: [usize; 2] = [3, 4];

pub(crate) const BATCH: Rule = Rule {
    attributes: &["epsilon", "momentum", "training_mode"],
    operands: (5, 5),
    configuration: &[],
    infer,
    rewrite: Some(rewrite),
    derivative: Derivative::Rule(differentiate),
};

fn infer(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let shape = float(operands, 0)?;
    let [_, channels, ..] = shape[..] else {
        return Err(format!("a value of shape {shape:?}; [N, C, ...] is wanted"));
    };
    for at in 1..5 {
        let seen = float(operands, at)?;
        if seen != [channels] {
            return Err(format!("operand {at} has the shape {seen:?}, [{channels}] is wanted"));
        }
    }
    operands.attributes.float("epsilon", 1e-5)?;
    operands.attributes.float("momentum", 0.9)?;
    like_first(operands, shape)
}

/// `[1, C, 1, ...]`, and the axes that are summed over.
fn beside(shape: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let mut kept = vec![1; shape.len()];
    kept[1] = shape[1];
    (kept, (0..shape.len()).filter(|&axis| axis != 1).collect())
}

fn rewrite(builder: &mut Builder, node: &Node, inputs: &[Option<ValueId>], mode: Mode) -> Result<Written, GraphError> {
    let operands: Vec<ValueId> = inputs.iter().copied().flatten().collect();
    let [value, scale, shift, running_mean, running_variance] = operands[..] else {
        return Err(builder.error("five operands are wanted"));
    };
    let bad = |problem| builder.error(problem);
    let epsilon = node.attributes.float("epsilon", 1e-5).map_err(bad)?;
    let momentum = node.attributes.float("momentum", 0.9).map_err(bad)?;
    let shape = builder.shape(value).to_vec();
    let (kept, axes) = beside(&shape);
    let small = builder.scalar(epsilon)?;
    if mode == Mode::Evaluation {
        let steady = builder.add(running_variance, small)?;
        let deviation = builder.unary(Operator::Sqrt, steady)?;
        let factor = builder.div(scale, deviation)?;
        let moved = builder.mul(running_mean, factor)?;
        let offset = builder.sub(shift, moved)?;
        let factor = builder.reshape(factor, &kept)?;
        let offset = builder.reshape(offset, &kept)?;
        let scaled = builder.mul(value, factor)?;
        let output = builder.add(scaled, offset)?;
        return Ok(Written {
            outputs: vec![output],
            ..Written::default()
        });
    }
    let count: usize = axes.iter().map(|&axis| shape[axis]).product();
    if count < 2 {
        return Err(builder.error("batch statistics need more than one value a channel; use a larger batch"));
    }
    let mean = builder.reduce(Operator::ReduceMean, value, &axes, true)?;
    let centred = builder.sub(value, mean)?;
    let squares = builder.mul(centred, centred)?;
    let variance = builder.reduce(Operator::ReduceMean, squares, &axes, true)?;
    let steady = builder.add(variance, small)?;
    let deviation = builder.unary(Operator::Sqrt, steady)?;
    let inverse = builder.unary(Operator::Reciprocal, deviation)?;
    let normal = builder.mul(centred, inverse)?;
    let factor = builder.reshape(scale, &kept)?;
    let offset = builder.reshape(shift, &kept)?;
    let scaled = builder.mul(normal, factor)?;
    let output = builder.add(scaled, offset)?;
    let mut statistics = Vec::new();
    let unbiased = count as f32 / (count - 1) as f32;
    for ((at, running), (batch, correction)) in STATISTICS
        .into_iter()
        .zip([running_mean, running_variance])
        .zip([(mean, 1.0), (variance, unbiased)])
    {
        let channels = builder.shape(running).to_vec();
        let batch = builder.reshape(batch, &channels)?;
        let fresh = builder.scale(batch, (1.0 - momentum) * correction)?;
        let old = builder.scale(running, momentum)?;
        statistics.push((at, builder.add(old, fresh)?));
    }
    Ok(Written {
        outputs: vec![output],
        saved: vec![normal, inverse, factor],
        statistics,
    })
}

/// dx = scale / deviation * (dy - mean(dy) - normal * mean(dy * normal))
fn differentiate(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (normal, inverse) = (step.saved(builder, 0)?, step.saved(builder, 1)?);
    let factor = step.saved(builder, 2)?;
    let shape = builder.shape(normal).to_vec();
    let (kept, axes) = beside(&shape);
    let count: usize = axes.iter().map(|&axis| shape[axis]).product();
    let product = builder.mul(step.gradient, normal)?;
    let shift_gradient = builder.sum(step.gradient, &axes, false)?;
    let scale_gradient = builder.sum(product, &axes, false)?;
    let value_gradient = if step.wants(0) {
        let share = 1.0 / count as f32;
        let mean = builder.reshape(shift_gradient, &kept)?;
        let mean = builder.scale(mean, share)?;
        let slope = builder.reshape(scale_gradient, &kept)?;
        let slope = builder.scale(slope, share)?;
        let along = builder.mul(normal, slope)?;
        let centred = builder.sub(step.gradient, mean)?;
        let rest = builder.sub(centred, along)?;
        let ratio = builder.mul(factor, inverse)?;
        Some(builder.mul(rest, ratio)?)
    } else {
        None
    };
    Ok(vec![
        value_gradient,
        step.wants(1).then_some(scale_gradient),
        step.wants(2).then_some(shift_gradient),
        None,
        None,
    ])
}
