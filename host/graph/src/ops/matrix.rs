//! Matrix products.

use super::bounds::{broadcast, float, like_first, same_dtype};
use super::{Derivative, Gradients, Operands, Rule, Step, Type};
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};

pub(crate) const GEMM: Rule = Rule {
    attributes: &["alpha", "beta", "transA", "transB"],
    operands: (2, 3),
    configuration: &[],
    infer: infer_gemm,
    rewrite: None,
    derivative: Derivative::Rule(gemm),
};
pub(crate) const MAT_MUL: Rule = Rule {
    attributes: &[],
    operands: (2, 2),
    configuration: &[],
    infer: infer_mat_mul,
    rewrite: None,
    derivative: Derivative::Rule(mat_mul),
};

fn matrix(operands: &Operands<'_>, at: usize, transposed: bool) -> Result<(usize, usize), String> {
    match float(operands, at)?[..] {
        [rows, columns] if transposed => Ok((columns, rows)),
        [rows, columns] => Ok((rows, columns)),
        ref shape => Err(format!("operand {at} has the shape {shape:?}, a matrix is wanted")),
    }
}

fn infer_gemm(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let (rows, inner) = matrix(operands, 0, operands.attributes.int("transA", 0)? != 0)?;
    let (other, columns) = matrix(operands, 1, operands.attributes.int("transB", 0)? != 0)?;
    same_dtype(operands, 0, 1)?;
    operands.attributes.float("alpha", 1.0)?;
    operands.attributes.float("beta", 1.0)?;
    if inner != other {
        return Err(format!(
            "the product sums over {inner} columns of operand 0 and {other} rows of operand 1"
        ));
    }
    if let Some(addend) = operands.optional(2)
        && broadcast(&addend.shape, &[rows, columns])? != [rows, columns]
    {
        return Err(format!(
            "operand 2 has the shape {:?}, which does not fit [{rows}, {columns}]",
            addend.shape
        ));
    }
    like_first(operands, vec![rows, columns])
}

fn gemm(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let attributes = &step.node.attributes;
    let bad = |problem| builder.error(problem);
    let flip_left = attributes.int("transA", 0).map_err(bad)? != 0;
    let flip_right = attributes.int("transB", 0).map_err(bad)? != 0;
    let alpha = attributes.float("alpha", 1.0).map_err(bad)?;
    let beta = attributes.float("beta", 1.0).map_err(bad)?;
    let (left, right, gradient) = (step.input(builder, 0)?, step.input(builder, 1)?, step.gradient);
    let left_gradient = if !step.wants(0) {
        None
    } else if flip_left {
        Some(builder.gemm(right, gradient, (flip_right, true), alpha)?)
    } else {
        Some(builder.gemm(gradient, right, (false, !flip_right), alpha)?)
    };
    let right_gradient = if !step.wants(1) {
        None
    } else if flip_right {
        Some(builder.gemm(gradient, left, (true, flip_left), alpha)?)
    } else {
        Some(builder.gemm(left, gradient, (!flip_left, false), alpha)?)
    };
    let mut gradients = vec![left_gradient, right_gradient];
    if step.inputs.len() > 2 {
        gradients.push(super::elementwise::settle(builder, step, 2, |builder| {
            builder.scale(gradient, beta)
        })?);
    }
    Ok(gradients)
}

fn infer_mat_mul(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let (left, right) = (float(operands, 0)?, float(operands, 1)?);
    same_dtype(operands, 0, 1)?;
    let ([left_batch @ .., rows, inner], [right_batch @ .., other, columns]) = (&left[..], &right[..]) else {
        return Err(format!(
            "the shapes {left:?} and {right:?}; two dimensions at least are wanted"
        ));
    };
    if inner != other {
        return Err(format!(
            "the product sums over {inner} columns of operand 0 and {other} rows of operand 1"
        ));
    }
    let mut shape = broadcast(left_batch, right_batch)?;
    shape.extend([*rows, *columns]);
    like_first(operands, shape)
}

fn last_two_swapped(builder: &mut Builder, value: ValueId) -> Result<ValueId, GraphError> {
    let rank = builder.rank(value);
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(rank - 2, rank - 1);
    builder.transpose(value, &order)
}

fn mat_mul(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (left, right) = (step.input(builder, 0)?, step.input(builder, 1)?);
    // With one matrix on the right, all leading axes are rows: two plain products.
    if builder.rank(right) == 2 {
        let (inner, columns) = (builder.shape(right)[0], builder.shape(right)[1]);
        let shape = builder.shape(left).to_vec();
        let rows = shape.iter().product::<usize>() / inner;
        let gradient = builder.reshape(step.gradient, &[rows, columns])?;
        let left_gradient = if step.wants(0) {
            let flat = builder.gemm(gradient, right, (false, true), 1.0)?;
            Some(builder.reshape(flat, &shape)?)
        } else {
            None
        };
        let right_gradient = if step.wants(1) {
            let flat = builder.reshape(left, &[rows, inner])?;
            Some(builder.gemm(flat, gradient, (true, false), 1.0)?)
        } else {
            None
        };
        return Ok(vec![left_gradient, right_gradient]);
    }
    Ok(vec![
        super::elementwise::settle(builder, step, 0, |builder| {
            let flipped = last_two_swapped(builder, right)?;
            builder.binary(Operator::MatMul, step.gradient, flipped)
        })?,
        super::elementwise::settle(builder, step, 1, |builder| {
            let flipped = last_two_swapped(builder, left)?;
            builder.binary(Operator::MatMul, flipped, step.gradient)
        })?,
    ])
}
