//! Sums, means and extremes along axes.

use cloister_tensor::Dtype;

use super::bounds::{axes, axis, like_first};
use super::{Derivative, Gradients, Operands, Rule, Step, Type};
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};

/// Axes come as an attribute (opset 17) or an operand (`ReduceSum`; all of them from opset 18, brought back on reading).
pub(crate) const SUM: Rule = Rule {
    attributes: &["axes", "keepdims", "noop_with_empty_axes"],
    operands: (1, 2),
    configuration: &[1],
    infer,
    rewrite: None,
    derivative: Derivative::Rule(sum),
};
pub(crate) const MEAN: Rule = Rule {
    derivative: Derivative::Rule(mean),
    ..SUM
};
pub(crate) const MAX: Rule = Rule {
    derivative: Derivative::Rule(max),
    ..SUM
};
pub(crate) const ARG_MAX: Rule = Rule {
    attributes: &["axis", "keepdims", "select_last_index"],
    operands: (1, 1),
    configuration: &[],
    infer: infer_arg_max,
    rewrite: None,
    derivative: Derivative::Stops,
};

/// The axes of a reduction, from 0 and sorted.
pub(crate) fn reduced_axes(operands: &Operands<'_>) -> Result<Vec<usize>, String> {
    let rank = operands.get(0)?.shape.len();
    let given = match operands.ints(1)? {
        Some(axes) => axes,
        None => operands
            .attributes
            .ints("axes")?
            .map(<[i64]>::to_vec)
            .unwrap_or_default(),
    };
    if !given.is_empty() {
        return axes(&given, rank);
    }
    let nothing = operands.attributes.int("noop_with_empty_axes", 0)? != 0;
    Ok(if nothing { Vec::new() } else { (0..rank).collect() })
}

fn reduced(shape: &[usize], axes: &[usize], keep: bool) -> Vec<usize> {
    let at = |(axis, &size): (usize, &usize)| match (axes.contains(&axis), keep) {
        (false, _) => Some(size),
        (true, true) => Some(1),
        (true, false) => None,
    };
    shape.iter().enumerate().filter_map(at).collect()
}

fn infer(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let value = operands.get(0)?;
    if value.dtype == Dtype::Bool {
        return Err("a reduction of truth values".to_owned());
    }
    let keep = operands.attributes.int("keepdims", 1)? != 0;
    like_first(operands, reduced(&value.shape, &reduced_axes(operands)?, keep))
}

fn infer_arg_max(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let value = operands.get(0)?;
    let axis = axis(operands.attributes.int("axis", 0)?, value.shape.len())?;
    let keep = operands.attributes.int("keepdims", 1)? != 0;
    if operands.attributes.int("select_last_index", 0)? != 0 {
        return Err("select_last_index is not supported".to_owned());
    }
    Ok(vec![Type {
        dtype: Dtype::I64,
        shape: reduced(&value.shape, &[axis], keep),
    }])
}

/// The reduced axes, and the shape in which the result stands beside the operand.
fn axes_and_kept(builder: &Builder, step: &Step<'_>) -> Result<(Vec<usize>, Vec<usize>), GraphError> {
    let operand = step.input(builder, 0)?;
    let axes = builder
        .with_operands(step.inputs, &step.node.attributes, reduced_axes)
        .map_err(|problem| builder.error(problem))?;
    let kept = reduced(builder.shape(operand), &axes, true);
    Ok((axes, kept))
}

fn spread(builder: &mut Builder, step: &Step<'_>, value: ValueId) -> Result<ValueId, GraphError> {
    let shape = {
        let operand = step.input(builder, 0)?;
        builder.shape(operand).to_vec()
    };
    builder.expand(value, &shape)
}

fn sum(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (_, kept) = axes_and_kept(builder, step)?;
    let gradient = builder.reshape(step.gradient, &kept)?;
    Ok(vec![Some(spread(builder, step, gradient)?)])
}

fn mean(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (axes, kept) = axes_and_kept(builder, step)?;
    let operand = step.input(builder, 0)?;
    let count: usize = axes.iter().map(|&axis| builder.shape(operand)[axis]).product();
    let gradient = builder.reshape(step.gradient, &kept)?;
    let share = builder.scale(gradient, 1.0 / count as f32)?;
    Ok(vec![Some(spread(builder, step, share)?)])
}

/// Equal maxima share the gradient evenly, as in PyTorch's `amax`.
fn max(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (axes, kept) = axes_and_kept(builder, step)?;
    let (operand, output) = (step.input(builder, 0)?, step.output(builder)?);
    let largest = builder.reshape(output, &kept)?;
    let hits = builder.binary(Operator::Equal, operand, largest)?;
    let hits = builder.cast(hits, Dtype::F32)?;
    let count = builder.sum(hits, &axes, true)?;
    let gradient = builder.reshape(step.gradient, &kept)?;
    let share = builder.div(gradient, count)?;
    Ok(vec![Some(builder.mul(hits, share)?)])
}
