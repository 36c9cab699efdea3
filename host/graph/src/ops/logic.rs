//! Comparisons, truth values and choice.

use cloister_tensor::Dtype;

use super::bounds::{broadcast, same_dtype};
use super::elementwise::settle;
use super::{Derivative, Gradients, Operands, Rule, Step, Type};
use crate::builder::Builder;
use crate::ir::Operator;

pub(crate) const EQUAL: Rule = Rule {
    attributes: &[],
    operands: (2, 2),
    configuration: &[],
    infer: infer_comparison,
    rewrite: None,
    derivative: Derivative::Stops,
};
pub(crate) const ORDER: Rule = EQUAL;
pub(crate) const BOTH: Rule = Rule {
    infer: infer_both,
    ..EQUAL
};
pub(crate) const NOT: Rule = Rule {
    operands: (1, 1),
    infer: infer_not,
    ..EQUAL
};
pub(crate) const IS_NAN: Rule = Rule {
    operands: (1, 1),
    infer: |operands| Ok(truth(super::bounds::float(operands, 0)?)),
    ..EQUAL
};
pub(crate) const WHERE: Rule = Rule {
    operands: (3, 3),
    infer: infer_where,
    derivative: Derivative::Rule(choose),
    ..EQUAL
};

fn truth(shape: Vec<usize>) -> Vec<Type> {
    vec![Type {
        dtype: Dtype::Bool,
        shape,
    }]
}

fn infer_comparison(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    same_dtype(operands, 0, 1)?;
    Ok(truth(broadcast(&operands.get(0)?.shape, &operands.get(1)?.shape)?))
}

fn is_truth(operands: &Operands<'_>, at: usize) -> Result<(), String> {
    match operands.get(at)?.dtype {
        Dtype::Bool => Ok(()),
        other => Err(format!(
            "operand {at} has elements of type {}, truth values are wanted",
            other.name()
        )),
    }
}

fn infer_both(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    is_truth(operands, 0)?;
    infer_comparison(operands)
}

fn infer_not(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    is_truth(operands, 0)?;
    Ok(truth(operands.get(0)?.shape.clone()))
}

fn infer_where(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    is_truth(operands, 0)?;
    same_dtype(operands, 1, 2)?;
    let branches = broadcast(&operands.get(1)?.shape, &operands.get(2)?.shape)?;
    let shape = broadcast(&operands.get(0)?.shape, &branches)?;
    Ok(vec![Type {
        dtype: operands.get(1)?.dtype,
        shape,
    }])
}

fn choose(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let condition = step.input(builder, 0)?;
    let zero = builder.scalar(0.0)?;
    Ok(vec![
        None,
        settle(builder, step, 1, |builder| {
            builder.node(Operator::Where, &[condition, step.gradient, zero], Default::default())
        })?,
        settle(builder, step, 2, |builder| {
            builder.node(Operator::Where, &[condition, zero, step.gradient], Default::default())
        })?,
    ])
}
