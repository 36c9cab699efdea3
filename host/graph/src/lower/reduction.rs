//! Reductions: axes brought from operands (opset 18) to attributes, and those that are made of sums and maxima.

use super::Source;
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};
use crate::ops;

pub(super) fn reduce(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let x = source.operand(builder, 0)?;
    let keep = source.int(builder, "keepdims", 1)? != 0;
    let axes = source.ask(builder, ops::reduced_axes)?;
    match source.node.operator {
        operator @ (Operator::ReduceMean | Operator::ReduceMax | Operator::ReduceSum) => {
            builder.reduce(operator, x, &axes, keep)
        }
        Operator::ReduceMin => {
            let negative = builder.unary(Operator::Neg, x)?;
            let largest = builder.reduce(Operator::ReduceMax, negative, &axes, keep)?;
            builder.unary(Operator::Neg, largest)
        }
        Operator::ReduceL1 => {
            let sizes = builder.unary(Operator::Abs, x)?;
            builder.sum(sizes, &axes, keep)
        }
        operator @ (Operator::ReduceSumSquare | Operator::ReduceL2) => {
            let squares = builder.mul(x, x)?;
            let sum = builder.sum(squares, &axes, keep)?;
            if operator == Operator::ReduceSumSquare {
                return Ok(sum);
            }
            builder.unary(Operator::Sqrt, sum)
        }
        Operator::ReduceLogSumExp => {
            // The largest is taken out first, so that no exponential overflows; its own derivative cancels out.
            let largest = builder.reduce(Operator::ReduceMax, x, &axes, true)?;
            let centred = builder.sub(x, largest)?;
            let powers = builder.unary(Operator::Exp, centred)?;
            let sum = builder.sum(powers, &axes, true)?;
            let logarithm = builder.unary(Operator::Log, sum)?;
            let kept = builder.add(logarithm, largest)?;
            if keep {
                return Ok(kept);
            }
            let seen = builder.shape(kept).to_vec();
            let shape: Vec<usize> = (0..seen.len())
                .filter(|axis| !axes.contains(axis))
                .map(|axis| seen[axis])
                .collect();
            builder.reshape(kept, &shape)
        }
        other => Err(builder.error(format!("{} is no reduction", other.name()))),
    }
}
