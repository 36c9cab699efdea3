//! Arithmetic of shapes and axes, checked.

use cloister_tensor::Dtype;

use super::{Operands, Type};

/// The shape that two shapes broadcast to.
pub(crate) fn broadcast(left: &[usize], right: &[usize]) -> Result<Vec<usize>, String> {
    let rank = left.len().max(right.len());
    let at = |shape: &[usize], axis: usize| {
        (axis + shape.len())
            .checked_sub(rank)
            .and_then(|axis| shape.get(axis).copied())
            .unwrap_or(1)
    };
    (0..rank)
        .map(|axis| match (at(left, axis), at(right, axis)) {
            (a, b) if a == b => Ok(a),
            (1, b) => Ok(b),
            (a, 1) => Ok(a),
            _ => Err(format!("the shapes {left:?} and {right:?} do not fit each other")),
        })
        .collect()
}

/// An axis from 0, given one that may count from the end.
pub(crate) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let signed = rank as i64;
    if (-signed..signed).contains(&axis) {
        Ok(axis.rem_euclid(signed.max(1)) as usize)
    } else {
        Err(format!("axis {axis} of a value of rank {rank}"))
    }
}

/// Axes from 0, sorted, each once.
pub(crate) fn axes(given: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut sorted = given
        .iter()
        .map(|&one| axis(one, rank))
        .collect::<Result<Vec<_>, _>>()?;
    sorted.sort_unstable();
    let count = sorted.len();
    sorted.dedup();
    if sorted.len() != count {
        return Err(format!("the axes {given:?} name one twice"));
    }
    Ok(sorted)
}

/// Non-negative integers of an attribute.
pub(crate) fn sizes(values: &[i64], what: &str, most: usize) -> Result<Vec<usize>, String> {
    let in_range = |&value: &i64| usize::try_from(value).ok().filter(|&value| value <= most);
    let sizes: Option<Vec<usize>> = values.iter().map(in_range).collect();
    sizes.ok_or_else(|| format!("{what} {values:?}: each must be between 0 and {most}"))
}

/// One result of the first operand's element type.
pub(crate) fn like_first(operands: &Operands<'_>, shape: Vec<usize>) -> Result<Vec<Type>, String> {
    Ok(vec![Type {
        dtype: operands.get(0)?.dtype,
        shape,
    }])
}

/// Refuses operands of other than floating-point elements.
pub(crate) fn float(operands: &Operands<'_>, at: usize) -> Result<Vec<usize>, String> {
    let value = operands.get(at)?;
    match value.dtype {
        Dtype::F32 | Dtype::F64 => Ok(value.shape.clone()),
        other => Err(format!(
            "operand {at} has elements of type {}, f32 is wanted",
            other.name()
        )),
    }
}

/// Refuses two operands of different element types.
pub(crate) fn same_dtype(operands: &Operands<'_>, first: usize, second: usize) -> Result<(), String> {
    let (one, other) = (operands.get(first)?, operands.get(second)?);
    if one.dtype == other.dtype {
        return Ok(());
    }
    Err(format!(
        "operands {first} and {second} have elements of different types, {} and {}",
        one.dtype.name(),
        other.dtype.name()
    ))
}
