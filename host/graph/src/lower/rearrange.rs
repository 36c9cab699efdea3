//! Moving elements: splits, tiles, triangles, picks of one row, blocks of depth.

use cloister_tensor::{Dtype, Tensor};

use super::Source;
use crate::builder::{Builder, Piece};
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};
use crate::ops;

/// Constants of up to this many elements are written out; larger ones are one element, expanded.
const WRITTEN_OUT: usize = 1 << 10;

/// Most rows and columns of a triangle.
const TRIANGLE: usize = 1 << 20;

/// A slice for each result. Sizes are an operand, or equal; since opset 18 the last of `num_outputs` may be smaller.
pub(super) fn split(builder: &mut Builder, source: &Source<'_>) -> Result<Vec<ValueId>, GraphError> {
    let value = source.operand(builder, 0)?;
    let axis = source.axis(builder, "axis", 0, builder.rank(value))?;
    let size = builder.shape(value)[axis];
    let given = source.ask(builder, |operands| operands.ints(1))?;
    let count = source.node.outputs.len();
    let sizes = match given {
        Some(sizes) => {
            let sizes: Option<Vec<usize>> = sizes.iter().map(|&one| usize::try_from(one).ok()).collect();
            sizes.unwrap_or_default()
        }
        None => {
            let parts = source.int(builder, "num_outputs", count as i64)?;
            let part = size.div_ceil(usize::try_from(parts).unwrap_or(0).max(1));
            let last = size.saturating_sub(part * count.saturating_sub(1));
            let mut sizes = vec![part; count];
            if let Some(end) = sizes.last_mut() {
                *end = last;
            }
            if source.opset < 18 && last != part {
                sizes.clear();
            }
            sizes
        }
    };
    let total = sizes.iter().try_fold(0usize, |sum, &one| sum.checked_add(one));
    if sizes.len() != count || total != Some(size) || sizes.contains(&0) {
        return Err(builder.error(format!(
            "{size} elements cannot be split into {count} parts of {sizes:?}"
        )));
    }
    let mut start = 0;
    let mut parts = Vec::with_capacity(count);
    for size in sizes {
        let end = start + size;
        parts.push(builder.slice(value, &[axis], &[Piece { start, end, step: 1 }])?);
        start = end;
    }
    Ok(parts)
}

/// One row by a constant index is a slice, whose derivative is a pad.
pub(super) fn gather(builder: &mut Builder, source: Source<'_>) -> Result<ValueId, GraphError> {
    let (value, picks) = (source.operand(builder, 0)?, source.operand(builder, 1)?);
    let single = builder.constant_of(picks).filter(|one| one.shape().elements() == 1);
    let (Some(pick), None) = (single.and_then(Tensor::first_f64), builder.constant_of(value)) else {
        let attributes = source.node.attributes.clone();
        return source.copied(builder, attributes);
    };
    let axis = source.axis(builder, "axis", 0, builder.rank(value))?;
    let shape = builder.shape(value).to_vec();
    let at = if pick < 0.0 { pick + shape[axis] as f64 } else { pick };
    if !(0.0..shape[axis] as f64).contains(&at) {
        return Err(builder.error(format!("row {pick} of {} along axis {axis}", shape[axis])));
    }
    let start = at as usize;
    let piece = Piece {
        start,
        end: start + 1,
        step: 1,
    };
    let row = builder.slice(value, &[axis], &[piece])?;
    let picked = builder.shape(picks).to_vec();
    builder.reshape(row, &[&shape[..axis], &picked, &shape[axis + 1..]].concat())
}

pub(super) fn tile(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let value = source.operand(builder, 0)?;
    let shape = builder.shape(value).to_vec();
    let repeats = source.ask(builder, |operands| operands.ints(1))?.unwrap_or_default();
    let repeats: Vec<usize> = repeats.iter().map(|&one| usize::try_from(one).unwrap_or(0)).collect();
    if repeats.len() != shape.len() || repeats.contains(&0) {
        return Err(builder.error(format!("{repeats:?} repetitions of a value of shape {shape:?}")));
    }
    repeated(builder, value, &repeats, true)
}

/// Repeats along each axis: the whole axis (`tiles`), or each element in its place.
pub(super) fn repeated(
    builder: &mut Builder,
    value: ValueId,
    repeats: &[usize],
    tiles: bool,
) -> Result<ValueId, GraphError> {
    let mut result = value;
    for (axis, &times) in repeats.iter().enumerate().filter(|(_, times)| **times > 1) {
        let mut shape = builder.shape(result).to_vec();
        let size = shape[axis].checked_mul(times);
        let size = size.ok_or_else(|| builder.error("too many elements"))?;
        let new = if tiles { axis } else { axis + 1 };
        let mut apart = shape.clone();
        apart.insert(new, 1);
        let column = builder.reshape(result, &apart)?;
        apart[new] = times;
        let wide = builder.expand(column, &apart)?;
        shape[axis] = size;
        result = builder.reshape(wide, &shape)?;
    }
    Ok(result)
}

/// 1 below the diagonal `offset` and on it, or with `upper` on it and above: `bool [rows, columns]`.
pub(super) fn triangle_mask(
    builder: &mut Builder,
    rows: usize,
    columns: usize,
    offset: i64,
    upper: bool,
) -> Result<ValueId, GraphError> {
    if rows > TRIANGLE || columns > TRIANGLE {
        return Err(builder.error(format!("a triangle of {rows} by {columns} elements")));
    }
    let offsets = (0..rows as i64).map(|row| row.saturating_add(offset)).collect();
    let down = builder.computed(Tensor::from_i64(&[rows, 1], offsets)?)?;
    let across = builder.computed(Tensor::from_i64(&[1, columns], (0..columns as i64).collect())?)?;
    let operator = if upper {
        Operator::GreaterOrEqual
    } else {
        Operator::LessOrEqual
    };
    builder.binary(operator, across, down)
}

pub(super) fn triangle(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let value = source.operand(builder, 0)?;
    let [.., rows, columns] = builder.shape(value)[..] else {
        return Err(builder.error("a value with less than two dimensions"));
    };
    let offset = source.ask(builder, |operands| operands.ints(1))?;
    let offset = offset.and_then(|given| given.first().copied()).unwrap_or(0);
    let upper = source.int(builder, "upper", 1)? != 0;
    let mask = triangle_mask(builder, rows, columns, offset, upper)?;
    let zero = match builder.dtype(value) {
        Dtype::Bool => return builder.binary(Operator::And, value, mask),
        Dtype::I64 => builder.constant(Tensor::from_i64(&[], vec![0])?)?,
        Dtype::F32 => builder.scalar(0.0)?,
        other => return Err(builder.error(format!("a triangle of elements of type {}", other.name()))),
    };
    builder.node(Operator::Where, &[mask, value, zero], Attributes::none())
}

pub(super) fn depth_and_space(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let value = source.operand(builder, 0)?;
    let given = source.int(builder, "blocksize", 0)?;
    let block = usize::try_from(given).unwrap_or(0);
    let [n, c, h, w] = builder.shape(value)[..] else {
        return Err(builder.error("a value that is not [N, C, H, W]"));
    };
    let unfit = |builder: &Builder| builder.error(format!("blocks of {given} in a value of shape {:?}", [n, c, h, w]));
    if block == 0 || block > 1 << 10 {
        return Err(unfit(builder));
    }
    if source.node.operator == Operator::SpaceToDepth {
        if h % block != 0 || w % block != 0 {
            return Err(unfit(builder));
        }
        // The mode came with opset 28.
        let order = match source.text(builder, "mode", "DCR")?.as_str() {
            "DCR" => [0, 3, 5, 1, 2, 4],
            "CRD" => [0, 1, 3, 5, 2, 4],
            other => return Err(builder.error(format!("the mode '{other}' is not supported"))),
        };
        let apart = builder.reshape(value, &[n, c, h / block, block, w / block, block])?;
        let turned = builder.transpose(apart, &order)?;
        return builder.reshape(turned, &[n, c * block * block, h / block, w / block]);
    }
    if c % (block * block) != 0 {
        return Err(unfit(builder));
    }
    let channels = c / (block * block);
    let (apart, order) = match source.text(builder, "mode", "DCR")?.as_str() {
        "DCR" => ([n, block, block, channels, h, w], [0, 3, 4, 1, 5, 2]),
        "CRD" => ([n, channels, block, block, h, w], [0, 1, 4, 2, 5, 3]),
        other => return Err(builder.error(format!("the mode '{other}' is not supported"))),
    };
    let apart = builder.reshape(value, &apart)?;
    let turned = builder.transpose(apart, &order)?;
    builder.reshape(turned, &[n, channels, h * block, w * block])
}

/// Large constants of one value (attention masks, say) are expanded when the graph runs instead of being kept in the file.
pub(super) fn filled(builder: &mut Builder, mut source: Source<'_>) -> Result<ValueId, GraphError> {
    let dims = source.ask(builder, |operands| operands.ints(0))?.unwrap_or_default();
    let dims: Option<Vec<usize>> = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let attributes = source.node.attributes.clone();
    let large = dims.filter(|dims| {
        let elements = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
        elements.is_none_or(|elements| elements > WRITTEN_OUT)
    });
    let Some(dims) = large else {
        return source.copied(builder, attributes);
    };
    let none = builder.ints(&[])?;
    source.inputs = vec![Some(none)];
    let one = source.copied(builder, attributes)?;
    builder.expand(one, &dims)
}

/// Since opset 18 pads may be given for chosen axes; 17 wants them for all.
pub(super) fn pad(builder: &mut Builder, mut source: Source<'_>) -> Result<ValueId, GraphError> {
    let attributes = source.node.attributes.clone();
    if source.optional(3).is_none() {
        return source.copied(builder, attributes);
    }
    let value = source.operand(builder, 0)?;
    let rank = builder.rank(value);
    let pads = source.ask(builder, |operands| {
        let (pads, axes) = (
            operands.ints(1)?.unwrap_or_default(),
            operands.ints(3)?.unwrap_or_default(),
        );
        if pads.len() != 2 * axes.len() {
            return Err(format!("{} pads for {} axes", pads.len(), axes.len()));
        }
        let mut all = vec![0; 2 * rank];
        for (at, &axis) in axes.iter().enumerate() {
            let axis = ops::axis(axis, rank)?;
            all[axis] = pads[at];
            all[rank + axis] = pads[axes.len() + at];
        }
        Ok(all)
    })?;
    let pads = builder.ints(&pads)?;
    source.inputs = vec![Some(value), Some(pads), source.optional(2)];
    while source.inputs.last().is_some_and(Option::is_none) {
        source.inputs.pop();
    }
    source.copied(builder, attributes)
}
