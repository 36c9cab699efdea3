//! Normalisations by the statistics of each row, group or channel, written out in primitive operators.
//! (Batch norm has running statistics and two modes, and a rule of its own.)

use cloister_tensor::Tensor;

use super::Source;
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};

/// What a normalisation gives.
struct Normal {
    value: ValueId,
    mean: ValueId,
    /// 1 over the standard deviation.
    inverse: ValueId,
}

/// `(x - mean) / sqrt(variance + epsilon)`, both over `axes`.
fn normalized(builder: &mut Builder, x: ValueId, axes: &[usize], epsilon: f32) -> Result<Normal, GraphError> {
    let mean = builder.reduce(Operator::ReduceMean, x, axes, true)?;
    let centred = builder.sub(x, mean)?;
    let inverse = inverse_root_mean_square(builder, centred, axes, epsilon)?;
    Ok(Normal {
        value: builder.mul(centred, inverse)?,
        mean,
        inverse,
    })
}

fn inverse_root_mean_square(
    builder: &mut Builder,
    x: ValueId,
    axes: &[usize],
    epsilon: f32,
) -> Result<ValueId, GraphError> {
    let squares = builder.mul(x, x)?;
    let mean = builder.reduce(Operator::ReduceMean, squares, axes, true)?;
    let small = builder.scalar(epsilon)?;
    let steady = builder.add(mean, small)?;
    let root = builder.unary(Operator::Sqrt, steady)?;
    builder.unary(Operator::Reciprocal, root)
}

/// `scale x + shift`; constants of 1 and 0, which exporters write for "without", add nothing.
fn affine(
    builder: &mut Builder,
    x: ValueId,
    scale: Option<ValueId>,
    shift: Option<ValueId>,
) -> Result<ValueId, GraphError> {
    let shape = builder.shape(x).to_vec();
    let mut result = x;
    if let Some(scale) = scale.filter(|&id| !is_filled(builder, id, 1.0)) {
        result = builder.mul(result, scale)?;
    }
    if let Some(shift) = shift.filter(|&id| !is_filled(builder, id, 0.0)) {
        result = builder.add(result, shift)?;
    }
    if builder.shape(result) != shape {
        return Err(builder.error("scale or shift do not fit the value's shape"));
    }
    Ok(result)
}

fn is_filled(builder: &Builder, id: ValueId, with: f64) -> bool {
    let constant = builder.constant_of(id).map(Tensor::to_f64_vec);
    constant.is_some_and(|values| values.iter().all(|&value| value == with))
}

/// The axes from attribute `axis` on.
fn last_axes(builder: &Builder, source: &Source<'_>, x: ValueId) -> Result<Vec<usize>, GraphError> {
    let rank = builder.rank(x);
    let first = source.axis(builder, "axis", -1, rank)?;
    if source.int(builder, "stash_type", 1)? != 1 {
        return Err(builder.error("statistics of another type than f32 are not supported"));
    }
    Ok((first..rank).collect())
}

/// `LayerNormalization`, with its mean and inverse deviation as further results.
pub(super) fn layer(builder: &mut Builder, source: &Source<'_>) -> Result<Vec<ValueId>, GraphError> {
    let x = source.operand(builder, 0)?;
    let axes = last_axes(builder, source, x)?;
    let epsilon = source.float(builder, "epsilon", 1e-5)?;
    let normal = normalized(builder, x, &axes, epsilon)?;
    let value = affine(builder, normal.value, source.optional(1), source.optional(2))?;
    Ok(vec![value, normal.mean, normal.inverse])
}

/// `RMSNormalization` (opset 23).
pub(super) fn root_mean_square(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let x = source.operand(builder, 0)?;
    let axes = last_axes(builder, source, x)?;
    let epsilon = source.float(builder, "epsilon", 1e-5)?;
    let inverse = inverse_root_mean_square(builder, x, &axes, epsilon)?;
    let normal = builder.mul(x, inverse)?;
    affine(builder, normal, source.optional(1), None)
}

/// `[N, C, ...]`, and the shape in which one number a channel stands beside it.
fn channels(builder: &Builder, x: ValueId) -> Result<(Vec<usize>, Vec<usize>), GraphError> {
    let shape = builder.shape(x).to_vec();
    if shape.len() < 3 {
        return Err(builder.error(format!("a value of shape {shape:?}; [N, C, spatial...] is wanted")));
    }
    let mut beside = vec![1; shape.len()];
    beside[1] = shape[1];
    Ok((shape, beside))
}

fn beside_channels(
    builder: &mut Builder,
    source: &Source<'_>,
    at: usize,
    beside: &[usize],
) -> Result<Option<ValueId>, GraphError> {
    let value = source.operand(builder, at)?;
    if builder.shape(value) != [beside[1]] {
        let seen = builder.shape(value).to_vec();
        return Err(builder.error(format!(
            "operand {at} has the shape {seen:?}, [{}] is wanted",
            beside[1]
        )));
    }
    let constant = if at == 1 { 1.0 } else { 0.0 };
    if is_filled(builder, value, constant) {
        return Ok(None);
    }
    builder.reshape(value, beside).map(Some)
}

pub(super) fn instance(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let x = source.operand(builder, 0)?;
    let (shape, beside) = channels(builder, x)?;
    let epsilon = source.float(builder, "epsilon", 1e-5)?;
    let axes: Vec<usize> = (2..shape.len()).collect();
    let normal = normalized(builder, x, &axes, epsilon)?;
    let scale = beside_channels(builder, source, 1, &beside)?;
    let shift = beside_channels(builder, source, 2, &beside)?;
    affine(builder, normal.value, scale, shift)
}

/// Scale and shift are one number a channel since opset 21, one a group before.
pub(super) fn group(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let x = source.operand(builder, 0)?;
    let (shape, mut beside) = channels(builder, x)?;
    let given = source.int(builder, "num_groups", 0)?;
    let groups = usize::try_from(given)
        .ok()
        .filter(|&groups| groups > 0 && shape[1] % groups == 0);
    let groups = groups.ok_or_else(|| builder.error(format!("{given} groups of {} channels", shape[1])))?;
    if source.int(builder, "stash_type", 1)? != 1 {
        return Err(builder.error("statistics of another type than f32 are not supported"));
    }
    let epsilon = source.float(builder, "epsilon", 1e-5)?;
    let within: usize = shape[1..].iter().product::<usize>() / groups;
    let rows = builder.reshape(x, &[shape[0], groups, within])?;
    let normal = normalized(builder, rows, &[2], epsilon)?;
    if source.opset < 21 {
        beside = vec![1, groups, 1];
        let scale = beside_channels(builder, source, 1, &beside)?;
        let shift = beside_channels(builder, source, 2, &beside)?;
        let scaled = affine(builder, normal.value, scale, shift)?;
        return builder.reshape(scaled, &shape);
    }
    let normal = builder.reshape(normal.value, &shape)?;
    let scale = beside_channels(builder, source, 1, &beside)?;
    let shift = beside_channels(builder, source, 2, &beside)?;
    affine(builder, normal, scale, shift)
}
