//! Moving elements: transposing, joining, cutting, repeating.

use super::bounds::{axis, broadcast, like_first, same_dtype, sizes};
use super::{Derivative, Gradients, Operands, Rule, Step, Type};
use crate::builder::{Builder, Piece};

pub(crate) const TRANSPOSE: Rule = Rule {
    attributes: &["perm"],
    operands: (1, 1),
    configuration: &[],
    infer: infer_transpose,
    rewrite: None,
    derivative: Derivative::Rule(transpose),
};
pub(crate) const CONCAT: Rule = Rule {
    attributes: &["axis"],
    operands: (1, 1 << 10),
    infer: infer_concat,
    derivative: Derivative::Rule(concat),
    ..TRANSPOSE
};
pub(crate) const SLICE: Rule = Rule {
    attributes: &[],
    operands: (3, 5),
    configuration: &[1, 2, 3, 4],
    infer: infer_slice,
    derivative: Derivative::Rule(slice),
    ..TRANSPOSE
};
pub(crate) const PAD: Rule = Rule {
    attributes: &["mode"],
    operands: (2, 4),
    configuration: &[1, 2, 3],
    infer: infer_pad,
    derivative: Derivative::Rule(pad),
    ..TRANSPOSE
};
pub(crate) const EXPAND: Rule = Rule {
    attributes: &[],
    operands: (2, 2),
    configuration: &[1],
    infer: infer_expand,
    derivative: Derivative::Rule(expand),
    ..TRANSPOSE
};
fn order(operands: &Operands<'_>) -> Result<Vec<usize>, String> {
    let rank = operands.get(0)?.shape.len();
    let Some(given) = operands.attributes.ints("perm")? else {
        return Ok((0..rank).rev().collect());
    };
    let order = sizes(given, "perm", rank.saturating_sub(1))?;
    if super::bounds::axes(given, rank)?.len() != rank {
        return Err(format!("perm {given:?} for a value of rank {rank}"));
    }
    Ok(order)
}

fn infer_transpose(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let shape = &operands.get(0)?.shape;
    let shape = order(operands)?.iter().map(|&axis| shape[axis]).collect();
    like_first(operands, shape)
}

fn transpose(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let order = builder.with_operands(step.inputs, &step.node.attributes, order);
    let order = order.map_err(|problem| builder.error(problem))?;
    let mut back = vec![0; order.len()];
    for (to, &from) in order.iter().enumerate() {
        back[from] = to;
    }
    Ok(vec![Some(builder.transpose(step.gradient, &back)?)])
}

fn infer_concat(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let mut shape = operands.get(0)?.shape.clone();
    let axis = axis(operands.attributes.int("axis", 0)?, shape.len())?;
    for at in 1..operands.inputs.len() {
        same_dtype(operands, 0, at)?;
        let other = &operands.get(at)?.shape;
        let fits = other.len() == shape.len()
            && other
                .iter()
                .zip(&shape)
                .enumerate()
                .all(|(along, (a, b))| along == axis || a == b);
        if !fits {
            return Err(format!(
                "the shapes {shape:?} and {other:?} cannot be joined along axis {axis}"
            ));
        }
        shape[axis] = shape[axis].checked_add(other[axis]).ok_or("too many elements")?;
    }
    like_first(operands, shape)
}

fn concat(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let rank = builder.rank(step.gradient);
    let along = step.node.attributes.int("axis", 0).and_then(|given| axis(given, rank));
    let along = along.map_err(|problem| builder.error(problem))?;
    let mut gradients = Vec::new();
    let mut start = 0;
    for at in 0..step.inputs.len() {
        let operand = step.input(builder, at)?;
        let end = start + builder.shape(operand)[along];
        gradients.push(if step.wants(at) {
            Some(builder.slice(step.gradient, &[along], &[Piece { start, end, step: 1 }])?)
        } else {
            None
        });
        start = end;
    }
    Ok(gradients)
}

/// Start, count and step along each axis that a `Slice` cuts; negative steps are refused.
fn pieces(operands: &Operands<'_>) -> Result<Vec<(usize, Piece)>, String> {
    let shape = &operands.get(0)?.shape;
    let starts = operands.ints(1)?.unwrap_or_default();
    let ends = operands.ints(2)?.unwrap_or_default();
    let given = operands.ints(3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = operands.ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), given.len(), steps.len()]
        .iter()
        .any(|&count| count != starts.len())
    {
        return Err("starts, ends, axes and steps differ in length".to_owned());
    }
    super::bounds::axes(&given, shape.len())?;
    let mut pieces = Vec::with_capacity(starts.len());
    for (at, &one) in given.iter().enumerate() {
        let axis = axis(one, shape.len())?;
        let size = shape[axis] as i64;
        let within = |bound: i64| if bound < 0 { bound.saturating_add(size) } else { bound }.clamp(0, size) as usize;
        let step = usize::try_from(steps[at]).ok().filter(|&step| step > 0);
        let step = step.ok_or_else(|| format!("a step of {}; at least 1 is wanted", steps[at]))?;
        let (start, end) = (within(starts[at]), within(ends[at]));
        pieces.push((
            axis,
            Piece {
                start,
                end: end.max(start),
                step,
            },
        ));
    }
    Ok(pieces)
}

fn infer_slice(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let mut shape = operands.get(0)?.shape.clone();
    for (axis, piece) in pieces(operands)? {
        shape[axis] = (piece.end - piece.start).div_ceil(piece.step);
    }
    like_first(operands, shape)
}

fn slice(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let pieces = builder.with_operands(step.inputs, &step.node.attributes, pieces);
    let pieces = pieces.map_err(|problem| builder.error(problem))?;
    let operand = step.input(builder, 0)?;
    let shape = builder.shape(operand).to_vec();
    let mut gradient = step.gradient;
    let (mut before, mut after) = (vec![0; shape.len()], vec![0; shape.len()]);
    for &(axis, piece) in &pieces {
        gradient = super::window::interleave_zeros(builder, gradient, axis, piece.step)?;
        let covered = builder.shape(gradient)[axis];
        before[axis] = piece.start;
        let room = shape[axis].saturating_sub(piece.start);
        if covered > room {
            gradient = builder.slice(
                gradient,
                &[axis],
                &[Piece {
                    start: 0,
                    end: room,
                    step: 1,
                }],
            )?;
        } else {
            after[axis] = room - covered;
        }
    }
    Ok(vec![Some(builder.pad(gradient, &before, &after, 0.0)?)])
}

fn padding(operands: &Operands<'_>) -> Result<(Vec<usize>, Vec<usize>), String> {
    let rank = operands.get(0)?.shape.len();
    if operands.attributes.text("mode", "constant")? != "constant" {
        return Err("only constant padding is supported".to_owned());
    }
    if operands.optional(3).is_some() {
        return Err("padding along chosen axes is not supported; name all axes".to_owned());
    }
    let pads = sizes(&operands.ints(1)?.unwrap_or_default(), "pads", 1 << 20)?;
    if pads.len() != 2 * rank {
        return Err(format!("{} pads for a value of rank {rank}", pads.len()));
    }
    Ok((pads[..rank].to_vec(), pads[rank..].to_vec()))
}

fn infer_pad(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let (before, after) = padding(operands)?;
    let shape = &operands.get(0)?.shape;
    let shape = (0..shape.len())
        .map(|axis| shape[axis] + before[axis] + after[axis])
        .collect();
    like_first(operands, shape)
}

fn pad(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let padding = builder.with_operands(step.inputs, &step.node.attributes, padding);
    let (before, _) = padding.map_err(|problem| builder.error(problem))?;
    let operand = step.input(builder, 0)?;
    let shape = builder.shape(operand).to_vec();
    let axes: Vec<usize> = (0..shape.len()).collect();
    let pieces: Vec<Piece> = axes
        .iter()
        .map(|&axis| Piece {
            start: before[axis],
            end: before[axis] + shape[axis],
            step: 1,
        })
        .collect();
    Ok(vec![Some(builder.slice(step.gradient, &axes, &pieces)?)])
}

fn infer_expand(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let asked = operands.ints(1)?.unwrap_or_default();
    let asked = sizes(&asked, "the shape", 1 << 40)?;
    like_first(operands, broadcast(&operands.get(0)?.shape, &asked)?)
}

fn expand(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operand = step.input(builder, 0)?;
    let shape = builder.shape(operand).to_vec();
    Ok(vec![Some(builder.unbroadcast(step.gradient, &shape)?)])
}
