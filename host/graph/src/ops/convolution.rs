//! Convolutions.

use super::bounds::{float, like_first, same_dtype, sizes};
use super::weight_gradient::weight_gradient;
use super::window::Window;
use super::{Derivative, Gradients, Operands, Rule, Step, Type};
use crate::builder::{Builder, Piece};
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};

pub(crate) const CONV: Rule = Rule {
    attributes: &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"],
    operands: (2, 3),
    configuration: &[],
    infer,
    rewrite: None,
    derivative: Derivative::Rule(differentiate),
};
pub(crate) const TRANSPOSED: Rule = Rule {
    attributes: &[
        "auto_pad",
        "dilations",
        "group",
        "kernel_shape",
        "output_padding",
        "pads",
        "strides",
    ],
    infer: infer_transposed,
    derivative: Derivative::Rule(differentiate_transposed),
    ..CONV
};

fn group(attributes: &Attributes) -> Result<usize, String> {
    let group = attributes.int("group", 1)?;
    usize::try_from(group)
        .ok()
        .filter(|&group| group > 0)
        .ok_or_else(|| format!("{group} groups"))
}

fn planes(operands: &Operands<'_>) -> Result<(Vec<usize>, Vec<usize>), String> {
    let (shape, kernel) = (float(operands, 0)?, float(operands, 1)?);
    same_dtype(operands, 0, 1)?;
    if shape.len() < 3 || shape.len() != kernel.len() {
        return Err(format!("a kernel of shape {kernel:?} over a value of shape {shape:?}"));
    }
    Ok((shape, kernel))
}

fn check_bias(operands: &Operands<'_>, channels: usize) -> Result<(), String> {
    match operands.optional(2) {
        Some(bias) if bias.shape != [channels] => {
            Err(format!("a bias of shape {:?} for {channels} channels", bias.shape))
        }
        _ => Ok(()),
    }
}

fn infer(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let (shape, kernel) = planes(operands)?;
    let group = group(operands.attributes)?;
    if kernel[1].checked_mul(group) != Some(shape[1]) || kernel[0] % group != 0 {
        return Err(format!(
            "a kernel of shape {kernel:?} in {group} groups over a value of shape {shape:?}"
        ));
    }
    check_bias(operands, kernel[0])?;
    let window = Window::of(operands.attributes, &kernel[2..])?;
    like_first(
        operands,
        [&[shape[0], kernel[0]], &window.count(&shape[2..])?[..]].concat(),
    )
}

fn infer_transposed(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let (shape, kernel) = planes(operands)?;
    let group = group(operands.attributes)?;
    if kernel[0] != shape[1] || shape[1] % group != 0 {
        return Err(format!(
            "a kernel of shape {kernel:?} in {group} groups over a value of shape {shape:?}"
        ));
    }
    let channels = kernel[1].checked_mul(group).ok_or("too many channels")?;
    check_bias(operands, channels)?;
    let window = Window::of(operands.attributes, &kernel[2..])?;
    let extra = match operands.attributes.ints("output_padding")? {
        Some(values) => sizes(values, "output_padding", 1 << 16)?,
        None => vec![0; window.kernel.len()],
    };
    if extra.len() != window.kernel.len() {
        return Err(format!("output_padding {extra:?}"));
    }
    let mut result = vec![shape[0], channels];
    for axis in 0..window.kernel.len() {
        let whole = (shape[2 + axis] - 1)
            .checked_mul(window.strides[axis])
            .ok_or("too many elements")?;
        let whole = whole + window.reach(axis) + extra[axis];
        let size = whole
            .checked_sub(window.before[axis] + window.after[axis])
            .filter(|&size| size > 0);
        result.push(size.ok_or("padding wider than the result")?);
    }
    like_first(operands, result)
}

fn differentiate(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (operand, weight) = (step.input(builder, 0)?, step.input(builder, 1)?);
    let kernel = builder.shape(weight).to_vec();
    let bad = |problem| builder.error(problem);
    let window = Window::of(&step.node.attributes, &kernel[2..]).map_err(bad)?;
    let group = group(&step.node.attributes).map_err(bad)?;
    let input_gradient = if step.wants(0) {
        Some(input_gradient(builder, step.gradient, operand, weight, &window, group)?)
    } else {
        None
    };
    let weight_gradient = if step.wants(1) {
        Some(weight_gradient(
            builder,
            step.gradient,
            operand,
            &kernel,
            &window,
            group,
        )?)
    } else {
        None
    };
    with_bias(builder, step, vec![input_gradient, weight_gradient])
}

/// A transposed convolution is the derivative of a convolution by its input: so its own derivative by the input is that
/// convolution, and the weight's is that of the convolution's weight with operand and gradient in each other's place.
fn differentiate_transposed(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (operand, weight) = (step.input(builder, 0)?, step.input(builder, 1)?);
    let kernel = builder.shape(weight).to_vec();
    let bad = |problem| builder.error(problem);
    let window = Window::of(&step.node.attributes, &kernel[2..]).map_err(bad)?;
    let group = group(&step.node.attributes).map_err(bad)?;
    let spatial = builder.shape(operand)[2..].to_vec();
    let input_gradient = if step.wants(0) {
        let mut attributes = geometry(&window.strides, &window.dilations, &window.before, &window.after)
            .with_ints("kernel_shape", &window.kernel);
        if group != 1 {
            attributes = attributes.with_int("group", group as i64);
        }
        let whole = builder.node(Operator::Conv, &[step.gradient, weight], attributes)?;
        // An output padding wider than the stride leaves room for more windows than there were.
        let axes: Vec<usize> = (2..kernel.len()).collect();
        let pieces: Vec<Piece> = spatial.iter().map(|&end| Piece { start: 0, end, step: 1 }).collect();
        Some(builder.slice(whole, &axes, &pieces)?)
    } else {
        None
    };
    let weight_gradient = if step.wants(1) {
        Some(weight_gradient(
            builder,
            operand,
            step.gradient,
            &kernel,
            &window,
            group,
        )?)
    } else {
        None
    };
    with_bias(builder, step, vec![input_gradient, weight_gradient])
}

/// The gradients, and the bias's behind them where there is a bias: the sum over all axes but the channels'.
fn with_bias(builder: &mut Builder, step: &Step<'_>, mut gradients: Vec<Option<ValueId>>) -> Gradients {
    if step.inputs.len() > 2 {
        let rank = builder.shape(step.gradient).len();
        let axes: Vec<usize> = (0..rank).filter(|&axis| axis != 1).collect();
        gradients.push(if step.wants(2) {
            Some(builder.sum(step.gradient, &axes, false)?)
        } else {
            None
        });
    }
    Ok(gradients)
}

pub(super) fn geometry(strides: &[usize], dilations: &[usize], before: &[usize], after: &[usize]) -> Attributes {
    Attributes::none()
        .with_ints("dilations", dilations)
        .with_ints("pads", &[before, after].concat())
        .with_ints("strides", strides)
}

fn input_gradient(
    builder: &mut Builder,
    gradient: ValueId,
    operand: ValueId,
    weight: ValueId,
    window: &Window,
    group: usize,
) -> Result<ValueId, GraphError> {
    let spatial = builder.shape(operand)[2..].to_vec();
    let count = builder.shape(gradient)[2..].to_vec();
    // What the last window left over behind comes back as output padding.
    let rest = |axis: usize| {
        let covered = (count[axis] - 1) * window.strides[axis] + window.reach(axis);
        (spatial[axis] + window.before[axis] + window.after[axis]).saturating_sub(covered)
    };
    let rest: Vec<usize> = (0..spatial.len()).map(rest).collect();
    let mut attributes = geometry(&window.strides, &window.dilations, &window.before, &window.after);
    attributes = attributes.with_ints("kernel_shape", &window.kernel);
    if group != 1 {
        attributes = attributes.with_int("group", group as i64);
    }
    if rest.iter().any(|&one| one != 0) {
        attributes = attributes.with_ints("output_padding", &rest);
    }
    builder.node(Operator::ConvTranspose, &[gradient, weight], attributes)
}
