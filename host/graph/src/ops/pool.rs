//! Pools.

use cloister_tensor::{Dtype, Tensor};

use super::bounds::{float, like_first, sizes};
use super::window::Window;
use super::{Derivative, Gradients, Operands, Rule, Step, Type};
use crate::builder::{Builder, Piece};
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};

pub(crate) const MAX: Rule = Rule {
    attributes: &[
        "auto_pad",
        "ceil_mode",
        "dilations",
        "kernel_shape",
        "pads",
        "storage_order",
        "strides",
    ],
    operands: (1, 1),
    configuration: &[],
    infer,
    rewrite: None,
    derivative: Derivative::Rule(max),
};
pub(crate) const AVERAGE: Rule = Rule {
    attributes: &[
        "auto_pad",
        "ceil_mode",
        "count_include_pad",
        "dilations",
        "kernel_shape",
        "pads",
        "strides",
    ],
    derivative: Derivative::Rule(average),
    ..MAX
};
pub(crate) const GLOBAL_AVERAGE: Rule = Rule {
    attributes: &[],
    infer: infer_global,
    derivative: Derivative::Rule(global_average),
    ..MAX
};
pub(crate) const GLOBAL_MAX: Rule = Rule {
    derivative: Derivative::Rule(global_max),
    ..GLOBAL_AVERAGE
};

/// Most windows whose elements are counted one by one.
const MOST_POSITIONS: usize = 1 << 20;

/// Lower than any f32 that training can use, and finite, so that engines pad with it exactly.
const LOWEST: f32 = f32::MIN;

fn window(attributes: &Attributes) -> Result<Window, String> {
    let kernel = attributes.ints("kernel_shape")?.ok_or("kernel_shape is missing")?;
    Window::of(attributes, &sizes(kernel, "kernel_shape", 1 << 16)?)
}

fn infer(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let shape = float(operands, 0)?;
    let window = window(operands.attributes)?;
    if shape.len() != window.kernel.len() + 2 {
        return Err(format!(
            "a window of {:?} over a value of shape {shape:?}",
            window.kernel
        ));
    }
    for axis in 0..window.kernel.len() {
        if window.before[axis] >= window.reach(axis) || window.after[axis] >= window.reach(axis) + window.strides[axis]
        {
            return Err(format!("padding wider than the window of {:?}", window.kernel));
        }
    }
    like_first(operands, [&shape[..2], &window.count(&shape[2..])?].concat())
}

fn infer_global(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let mut shape = float(operands, 0)?;
    if shape.len() < 3 {
        return Err(format!("a value of shape {shape:?}; [N, C, spatial...] is wanted"));
    }
    shape[2..].fill(1);
    like_first(operands, shape)
}

/// A tiled plane, each spatial axis split into (window, element): `[N, C, oh, kh, ow, kw]`, or with 1 for the elements.
fn tiled_shape(lead: &[usize], count: &[usize], kernel: &[usize]) -> Vec<usize> {
    let mut shape = lead.to_vec();
    shape.extend(count.iter().zip(kernel).flat_map(|(&count, &size)| [count, size]));
    shape
}

/// The same with the channels innermost and the batch in the first spatial axis: `[N * oh, kh, ow, kw, C]`.
fn tiled_rows(lead: &[usize], count: &[usize], kernel: &[usize]) -> Vec<usize> {
    let mut shape = tiled_shape(&[], count, kernel);
    shape[0] *= lead[0];
    shape.push(lead[1]);
    shape
}

/// Equal maxima within a window share the gradient evenly.
///
/// `MaxPool` with indices runs on slow reference kernels, so the place of the maximum is found by comparison: where
/// windows tile, in one reshaped plane; else slice by slice. The plane has its channels innermost, as convolutions beside it have them
/// anyway, so that vectors run over channels and not over the two elements of a window; and no more axes than OpenVINO reduces
/// by compiled kernels.
fn max(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let window = window(&step.node.attributes).map_err(|problem| builder.error(problem))?;
    let (operand, output) = (step.input(builder, 0)?, step.output(builder)?);
    let shape = builder.shape(operand).to_vec();
    let (lead, spatial) = shape.split_at(2);
    let count = builder.shape(output)[2..].to_vec();
    let ones = vec![1; count.len()];
    if window.tiles() && 2 + 2 * count.len() <= 8 {
        let axes: Vec<usize> = (2..shape.len()).collect();
        let used: Vec<usize> = count
            .iter()
            .zip(&window.kernel)
            .map(|(&count, &size)| count * size)
            .collect();
        let pieces: Vec<Piece> = used.iter().map(|&end| Piece { start: 0, end, step: 1 }).collect();
        let last: Vec<usize> = [&[0], &axes[..], &[1]].concat();
        let first: Vec<usize> = [&[0, shape.len() - 1], &(1..shape.len() - 1).collect::<Vec<_>>()[..]].concat();
        let ground = builder.slice(operand, &axes, &pieces)?;
        let mut tiled = |value: ValueId, kernel: &[usize]| {
            let value = builder.transpose(value, &last)?;
            builder.reshape(value, &tiled_rows(lead, &count, kernel))
        };
        let tiles = tiled(ground, &window.kernel)?;
        let largest = tiled(output, &ones)?;
        let gradient = tiled(step.gradient, &ones)?;
        let hits = builder.binary(Operator::Equal, tiles, largest)?;
        let hits = builder.cast(hits, Dtype::F32)?;
        let elements: Vec<usize> = (0..count.len()).map(|axis| 1 + 2 * axis).collect();
        let ties = builder.sum(hits, &elements, true)?;
        let share = builder.div(gradient, ties)?;
        let spread = builder.mul(hits, share)?;
        let plane = builder.reshape(spread, &[&lead[..1], &used, &lead[1..]].concat())?;
        let flat = builder.transpose(plane, &first)?;
        let rest: Vec<usize> = spatial.iter().zip(&used).map(|(&size, &used)| size - used).collect();
        let whole = builder.pad(flat, &vec![0; shape.len()], &[&[0, 0], &rest[..]].concat(), 0.0)?;
        return Ok(vec![Some(whole)]);
    }
    let before = [&[0, 0], &window.before[..]].concat();
    let after = [&[0, 0], &window.after[..]].concat();
    let padded = builder.pad(operand, &before, &after, LOWEST)?;
    let mut hits = Vec::new();
    let mut ties: Option<ValueId> = None;
    for offset in window.offsets().map_err(|problem| builder.error(problem))? {
        let part = window.pick(builder, padded, 2, &offset, &count)?;
        let hit = builder.binary(Operator::Equal, part, output)?;
        let hit = builder.cast(hit, Dtype::F32)?;
        ties = Some(match ties {
            Some(ties) => builder.add(ties, hit)?,
            None => hit,
        });
        hits.push((offset, hit));
    }
    let ties = ties.ok_or_else(|| builder.error("a window of no elements"))?;
    let share = builder.div(step.gradient, ties)?;
    let mut parts = Vec::with_capacity(hits.len());
    for (offset, hit) in hits {
        parts.push((offset, builder.mul(hit, share)?));
    }
    Ok(vec![Some(window.scatter(builder, &parts, spatial)?)])
}

/// How many elements outside the padding each window averages.
fn averaged(window: &Window, spatial: &[usize], count: &[usize]) -> Vec<f32> {
    let mut counts = vec![1.0];
    for axis in 0..count.len() {
        let along = |at: usize| {
            let inside = |&element: &usize| {
                let position = at * window.strides[axis] + element * window.dilations[axis];
                (window.before[axis]..window.before[axis] + spatial[axis]).contains(&position)
            };
            (0..window.kernel[axis]).filter(inside).count() as f32
        };
        counts = counts
            .iter()
            .flat_map(|outer| (0..count[axis]).map(move |at| outer * along(at)))
            .collect();
    }
    counts
}

fn average(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let bad = |problem| builder.error(problem);
    let window = window(&step.node.attributes).map_err(bad)?;
    let with_padding = step.node.attributes.int("count_include_pad", 0).map_err(bad)? != 0;
    let operand = step.input(builder, 0)?;
    let shape = builder.shape(operand).to_vec();
    let (lead, spatial) = shape.split_at(2);
    let count = builder.shape(step.gradient)[2..].to_vec();
    let padded = window.before.iter().chain(&window.after).any(|&pad| pad != 0);
    let share = if with_padding || !padded {
        let elements: usize = window.kernel.iter().product();
        builder.scale(step.gradient, 1.0 / elements as f32)?
    } else {
        if count.iter().product::<usize>() > MOST_POSITIONS {
            return Err(builder.error(format!(
                "a padded average over {count:?} windows is too large to differentiate"
            )));
        }
        let inverse = averaged(&window, spatial, &count)
            .iter()
            .map(|count| 1.0 / count)
            .collect();
        let inverse = builder.constant(Tensor::from_f32(&[&[1, 1], &count[..]].concat(), inverse)?)?;
        builder.mul(step.gradient, inverse)?
    };
    if window.tiles() && 2 + 2 * count.len() <= 8 {
        let ones = vec![1; count.len()];
        let split = builder.reshape(share, &tiled_shape(lead, &count, &ones))?;
        let spread = builder.expand(split, &tiled_shape(lead, &count, &window.kernel))?;
        let used: Vec<usize> = count
            .iter()
            .zip(&window.kernel)
            .map(|(&count, &size)| count * size)
            .collect();
        let flat = builder.reshape(spread, &[lead, &used].concat())?;
        let rest: Vec<usize> = spatial.iter().zip(&used).map(|(&size, &used)| size - used).collect();
        let whole = builder.pad(flat, &vec![0; shape.len()], &[&[0, 0], &rest[..]].concat(), 0.0)?;
        return Ok(vec![Some(whole)]);
    }
    let offsets = window.offsets().map_err(|problem| builder.error(problem))?;
    let parts: Vec<_> = offsets.into_iter().map(|offset| (offset, share)).collect();
    Ok(vec![Some(window.scatter(builder, &parts, spatial)?)])
}

fn spatial(builder: &Builder, step: &Step<'_>) -> Result<(Vec<usize>, Vec<usize>), GraphError> {
    let operand = step.input(builder, 0)?;
    let shape = builder.shape(operand).to_vec();
    let axes = (2..shape.len()).collect();
    Ok((shape, axes))
}

fn global_average(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (shape, _) = spatial(builder, step)?;
    let count: usize = shape[2..].iter().product();
    let share = builder.scale(step.gradient, 1.0 / count as f32)?;
    Ok(vec![Some(builder.expand(share, &shape)?)])
}

fn global_max(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (_, axes) = spatial(builder, step)?;
    let (operand, output) = (step.input(builder, 0)?, step.output(builder)?);
    let hits = builder.binary(Operator::Equal, operand, output)?;
    let hits = builder.cast(hits, Dtype::F32)?;
    let ties = builder.sum(hits, &axes, true)?;
    let share = builder.div(step.gradient, ties)?;
    Ok(vec![Some(builder.mul(hits, share)?)])
}
