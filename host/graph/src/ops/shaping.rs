//! Operators that only say what shape or type a value has. While a model is bound to a batch size, all of them but `Cast`
//! become `Reshape` with a known shape, constants, or nothing.

use cloister_tensor::Dtype;

use super::bounds::{axes, axis, like_first};
use super::{Derivative, Gradients, Mode, Operands, Rule, Step, Type, Written};
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Node, ValueId};
use crate::onnx::dtype_from_onnx;

pub(crate) const RESHAPE: Rule = Rule {
    attributes: &["allowzero"],
    operands: (2, 2),
    configuration: &[1],
    infer: |operands| like_first(operands, reshaped(operands)?),
    rewrite: None,
    derivative: Derivative::Rule(back_to_shape),
};
pub(crate) const FLATTEN: Rule = Rule {
    attributes: &["axis"],
    operands: (1, 1),
    configuration: &[],
    infer: |operands| like_first(operands, flattened(operands)?),
    ..RESHAPE
};
pub(crate) const SQUEEZE: Rule = Rule {
    attributes: &[],
    operands: (1, 2),
    infer: |operands| like_first(operands, squeezed(operands)?),
    ..RESHAPE
};
pub(crate) const UNSQUEEZE: Rule = Rule {
    operands: (2, 2),
    infer: |operands| like_first(operands, unsqueezed(operands)?),
    ..SQUEEZE
};
pub(crate) const CAST: Rule = Rule {
    attributes: &["to", "saturate", "round_mode"],
    operands: (1, 1),
    configuration: &[],
    infer: infer_cast,
    rewrite: None,
    derivative: Derivative::Rule(cast),
};
/// While a model is bound, a dropout becomes nothing, or takes its mask as its second operand and its `ratio` as an attribute.
pub(crate) const DROPOUT: Rule = Rule {
    attributes: &["seed"],
    operands: (1, 3),
    configuration: &[1, 2],
    infer: |operands| like_first(operands, operands.get(0)?.shape.clone()),
    rewrite: Some(rewrite_dropout),
    derivative: Derivative::Rule(dropout),
};
/// Operators whose result is known while reading; one that is left depends on the data.
pub(crate) const KNOWN: Rule = Rule {
    attributes: &[
        "value",
        "value_int",
        "value_ints",
        "value_float",
        "value_floats",
        "start",
        "end",
        "axes",
        "fmod",
        "keepdims",
        "noop_with_empty_axes",
    ],
    operands: (0, 3),
    configuration: &[0, 1, 2],
    infer: |_| Err("its result must be known before the model runs, and depends on the data here".to_owned()),
    rewrite: None,
    derivative: Derivative::Stops,
};

fn known(operands: &Operands<'_>, at: usize) -> Result<Vec<i64>, String> {
    operands.ints(at)?.ok_or_else(|| format!("operand {at} is missing"))
}

/// The shape that `Reshape` gives: -1 is what is left, 0 the dimension of the operand.
pub(crate) fn reshaped(operands: &Operands<'_>) -> Result<Vec<usize>, String> {
    let seen = &operands.get(0)?.shape;
    let elements: usize = seen.iter().product();
    let asked = known(operands, 1)?;
    let copies = operands.attributes.int("allowzero", 0)? == 0;
    let mut shape = Vec::with_capacity(asked.len());
    let mut open = None;
    for (at, &dim) in asked.iter().enumerate() {
        match dim {
            -1 if open.is_none() => {
                open = Some(at);
                shape.push(1);
            }
            0 if copies => shape.push(
                *seen
                    .get(at)
                    .ok_or_else(|| format!("the shape {asked:?} copies dimension {at} of {seen:?}"))?,
            ),
            dim => shape.push(usize::try_from(dim).map_err(|_| format!("the shape {asked:?}"))?),
        }
    }
    let given = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let given = given
        .filter(|&given| given > 0)
        .ok_or_else(|| format!("the shape {asked:?}"))?;
    if let Some(open) = open {
        shape[open] = elements / given;
    }
    if shape.iter().product::<usize>() != elements {
        return Err(format!(
            "the shape {seen:?} cannot be read as {asked:?}; if a batch size was fixed on export, export with a symbolic one"
        ));
    }
    Ok(shape)
}

pub(crate) fn flattened(operands: &Operands<'_>) -> Result<Vec<usize>, String> {
    let shape = &operands.get(0)?.shape;
    let given = operands.attributes.int("axis", 1)?;
    let split = if given == shape.len() as i64 {
        shape.len()
    } else {
        axis(given, shape.len())?
    };
    Ok(vec![shape[..split].iter().product(), shape[split..].iter().product()])
}

pub(crate) fn squeezed(operands: &Operands<'_>) -> Result<Vec<usize>, String> {
    let shape = &operands.get(0)?.shape;
    let axes = match operands.ints(1)? {
        Some(given) => axes(&given, shape.len())?,
        None => (0..shape.len()).filter(|&axis| shape[axis] == 1).collect(),
    };
    if let Some(axis) = axes.iter().find(|&&axis| shape[axis] != 1) {
        return Err(format!("axis {axis} of the shape {shape:?} is not 1"));
    }
    Ok((0..shape.len())
        .filter(|axis| !axes.contains(axis))
        .map(|axis| shape[axis])
        .collect())
}

pub(crate) fn unsqueezed(operands: &Operands<'_>) -> Result<Vec<usize>, String> {
    let mut shape = operands.get(0)?.shape.clone();
    let given = known(operands, 1)?;
    let rank = shape.len().saturating_add(given.len());
    for axis in axes(&given, rank)? {
        shape.insert(axis, 1);
    }
    Ok(shape)
}

fn back_to_shape(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operand = step.input(builder, 0)?;
    let shape = builder.shape(operand).to_vec();
    Ok(vec![Some(builder.reshape(step.gradient, &shape)?)])
}

fn infer_cast(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let number = operands.attributes.int("to", 0)?;
    let dtype = dtype_from_onnx(number).ok_or_else(|| format!("the element type {number} is not supported"))?;
    Ok(vec![Type {
        dtype,
        shape: operands.get(0)?.shape.clone(),
    }])
}

/// Between floats the gradient is cast back; to and from integers it ends.
fn cast(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let operand = step.input(builder, 0)?;
    let dtype = builder.dtype(operand);
    if !matches!(dtype, Dtype::F32 | Dtype::F64) || !matches!(builder.dtype(step.gradient), Dtype::F32 | Dtype::F64) {
        return Ok(vec![None]);
    }
    Ok(vec![Some(builder.cast(step.gradient, dtype)?)])
}

/// In training, elements whose mask is 0 become 0 and the others grow by `1 / (1 - ratio)`; in evaluation all pass.
fn rewrite_dropout(
    builder: &mut Builder,
    node: &Node,
    inputs: &[Option<ValueId>],
    mode: Mode,
) -> Result<Written, GraphError> {
    let [Some(value), Some(mask)] = *inputs else {
        return Err(builder.error("a value and its mask are wanted"));
    };
    if mode == Mode::Evaluation {
        return Ok(Written {
            outputs: vec![value],
            ..Written::default()
        });
    }
    let ratio = node
        .attributes
        .float("ratio", 0.0)
        .map_err(|problem| builder.error(problem))?;
    let factor = builder.scale(mask, 1.0 / (1.0 - ratio))?;
    Ok(Written {
        outputs: vec![builder.mul(value, factor)?],
        saved: vec![factor],
        ..Written::default()
    })
}

fn dropout(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let factor = step.saved(builder, 0)?;
    Ok(vec![Some(builder.mul(step.gradient, factor)?), None])
}
