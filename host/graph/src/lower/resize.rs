//! `Resize`: each axis on its own, as a repetition or as a product with a constant matrix, so that its derivative is one too.

use cloister_tensor::Tensor;

use super::{Source, rearrange};
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};

/// Most elements of a matrix that resizes one axis.
const MOST: usize = 1 << 20;

/// Where an element of the result lies on the axis that it stems from.
struct Along {
    from: usize,
    to: usize,
    /// Result per operand, as it was given.
    scale: f64,
}

pub(super) fn resize(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    if source.int(builder, "antialias", 0)? != 0 {
        return Err(builder.error("antialiasing is not supported"));
    }
    let mut value = source.operand(builder, 0)?;
    let mode = source.text(builder, "mode", "nearest")?;
    let place = source.text(builder, "coordinate_transformation_mode", "half_pixel")?;
    let rounding = source.text(builder, "nearest_mode", "round_prefer_floor")?;
    let sizes = sizes(builder, source, value)?;
    let repeats = mode == "nearest" && place == "asymmetric" && rounding == "floor";
    if repeats
        && sizes
            .iter()
            .all(|one| one.to % one.from == 0 && one.scale == (one.to / one.from) as f64)
    {
        let times: Vec<usize> = sizes.iter().map(|one| one.to / one.from).collect();
        return rearrange::repeated(builder, value, &times, false);
    }
    for (axis, along) in sizes.iter().enumerate() {
        if along.from == along.to && along.scale == 1.0 {
            continue;
        }
        let elements = along.from.checked_mul(along.to).filter(|&elements| elements <= MOST);
        if elements.is_none() {
            return Err(builder.error(format!(
                "{} elements resized to {} along axis {axis}",
                along.from, along.to
            )));
        }
        let mut matrix = vec![0.0f32; along.from * along.to];
        for at in 0..along.to {
            let position = position(at, along, &place).map_err(|problem| builder.error(problem))?;
            let row = &mut matrix[at * along.from..(at + 1) * along.from];
            match mode.as_str() {
                "nearest" => row[nearest(position, along, &rounding).map_err(|problem| builder.error(problem))?] = 1.0,
                "linear" => {
                    let last = along.from as f64 - 1.0;
                    let position = position.clamp(0.0, last);
                    let (low, share) = (position.floor(), position.fract());
                    row[low as usize] += (1.0 - share) as f32;
                    row[(low + 1.0).min(last) as usize] += share as f32;
                }
                other => {
                    let problem = format!("the mode '{other}' is not supported; nearest and linear are");
                    return Err(builder.error(problem));
                }
            }
        }
        value = along_axis(builder, value, axis, along, matrix)?;
    }
    Ok(value)
}

/// Every axis with its factor, out of `scales`, or `sizes` (for the axes of the attribute, or for all).
fn sizes(builder: &Builder, source: &Source<'_>, value: ValueId) -> Result<Vec<Along>, GraphError> {
    let shape = builder.shape(value).to_vec();
    let rank = shape.len();
    let axes = match source
        .node
        .attributes
        .ints("axes")
        .map_err(|problem| builder.error(problem))?
    {
        Some(given) => given.iter().map(|&axis| crate::ops::axis(axis, rank)).collect(),
        None => Ok((0..rank).collect::<Vec<_>>()),
    };
    let axes = axes.map_err(|problem| builder.error(problem))?;
    if source.text(builder, "keep_aspect_ratio_policy", "stretch")? != "stretch" {
        return Err(builder.error("keeping the aspect ratio is not supported"));
    }
    let constant = |at: usize| -> Result<Option<Vec<f64>>, GraphError> {
        let Some(id) = source.optional(at) else { return Ok(None) };
        let values = builder.constant_of(id).map(Tensor::to_f64_vec);
        let values =
            values.ok_or_else(|| builder.error(format!("operand {at} must be constant, and depends on the data")))?;
        Ok(Some(values).filter(|values| !values.is_empty()))
    };
    let mut all: Vec<Along> = shape
        .iter()
        .map(|&size| Along {
            from: size,
            to: size,
            scale: 1.0,
        })
        .collect();
    let (given, by_size) = match (constant(2)?, constant(3)?) {
        (Some(scales), None) => (scales, false),
        (None, Some(sizes)) => (sizes, true),
        _ => return Err(builder.error("either scales or sizes are wanted")),
    };
    if given.len() != axes.len() {
        return Err(builder.error(format!("{} scales or sizes for {} axes", given.len(), axes.len())));
    }
    for (&axis, &one) in axes.iter().zip(&given) {
        let from = all[axis].from as f64;
        let to = if by_size { one } else { (from * one).floor() };
        if !(1.0..=65536.0).contains(&to) {
            return Err(builder.error(format!("{from} elements resized to {to} along axis {axis}")));
        }
        all[axis].to = to as usize;
        all[axis].scale = if by_size { to / from } else { one };
    }
    Ok(all)
}

fn position(at: usize, along: &Along, place: &str) -> Result<f64, String> {
    let at = at as f64;
    let (from, to) = (along.from as f64, along.to as f64);
    match place {
        "half_pixel" => Ok((at + 0.5) / along.scale - 0.5),
        "pytorch_half_pixel" if along.to > 1 => Ok((at + 0.5) / along.scale - 0.5),
        "pytorch_half_pixel" => Ok(0.0),
        "half_pixel_symmetric" => {
            let adjustment = to / (along.scale * from);
            let offset = from / 2.0 * (1.0 - adjustment);
            Ok(offset + (at + 0.5) / along.scale - 0.5)
        }
        "align_corners" if along.to > 1 => Ok(at * (from - 1.0) / (to - 1.0)),
        "align_corners" => Ok(0.0),
        "asymmetric" => Ok(at / along.scale),
        other => Err(format!("the coordinate transformation '{other}' is not supported")),
    }
}

fn nearest(position: f64, along: &Along, rounding: &str) -> Result<usize, String> {
    let rounded = match rounding {
        "round_prefer_floor" => (position - 0.5).ceil(),
        "round_prefer_ceil" => (position + 0.5).floor(),
        "floor" => position.floor(),
        "ceil" => position.ceil(),
        other => return Err(format!("the rounding '{other}' is not supported")),
    };
    Ok(rounded.clamp(0.0, along.from as f64 - 1.0) as usize)
}

/// The product of each column along `axis` with `matrix`, `[to, from]`.
fn along_axis(
    builder: &mut Builder,
    value: ValueId,
    axis: usize,
    along: &Along,
    matrix: Vec<f32>,
) -> Result<ValueId, GraphError> {
    let mut shape = builder.shape(value).to_vec();
    let rank = shape.len();
    if axis + 1 == rank {
        let turned = (0..along.from * along.to).map(|at| matrix[at % along.to * along.from + at / along.to]);
        let turned = builder.computed(Tensor::from_f32(&[along.from, along.to], turned.collect())?)?;
        return builder.binary(Operator::MatMul, value, turned);
    }
    let matrix = builder.computed(Tensor::from_f32(&[along.to, along.from], matrix)?)?;
    // Axes behind this one are columns of one matrix.
    let inner: usize = shape[axis + 1..].iter().product();
    let columns = builder.reshape(value, &[&shape[..=axis], &[inner]].concat())?;
    let product = builder.binary(Operator::MatMul, matrix, columns)?;
    shape[axis] = along.to;
    builder.reshape(product, &shape)
}
