//! Operators by name: what derivatives and optimizers are written in.

use cloister_tensor::{Dtype, Shape, Tensor};

use super::{Builder, Made};
use crate::ir::{Attributes, Operator, ValueId};

/// Elements of a constant matrix up to which it is transposed while building.
const MAX_TURNED: usize = 1 << 20;

impl Builder {
    pub(crate) fn unary(&mut self, operator: Operator, value: ValueId) -> Made {
        self.node(operator, &[value], Attributes::none())
    }

    pub(crate) fn binary(&mut self, operator: Operator, left: ValueId, right: ValueId) -> Made {
        self.node(operator, &[left, right], Attributes::none())
    }

    pub(crate) fn add(&mut self, left: ValueId, right: ValueId) -> Made {
        self.binary(Operator::Add, left, right)
    }

    pub(crate) fn sub(&mut self, left: ValueId, right: ValueId) -> Made {
        self.binary(Operator::Sub, left, right)
    }

    pub(crate) fn mul(&mut self, left: ValueId, right: ValueId) -> Made {
        self.binary(Operator::Mul, left, right)
    }

    pub(crate) fn div(&mut self, left: ValueId, right: ValueId) -> Made {
        self.binary(Operator::Div, left, right)
    }

    pub(crate) fn scale(&mut self, value: ValueId, factor: f32) -> Made {
        if factor == 1.0 {
            return Ok(value);
        }
        let factor = self.scalar(factor)?;
        self.mul(value, factor)
    }

    pub(crate) fn cast(&mut self, value: ValueId, dtype: Dtype) -> Made {
        if self.dtype(value) == dtype {
            return Ok(value);
        }
        let to = crate::onnx::dtype_to_onnx(dtype);
        self.node(Operator::Cast, &[value], Attributes::none().with_int("to", to))
    }

    /// The same elements under another shape; nothing is added when the shape is the same.
    pub(crate) fn reshape(&mut self, value: ValueId, shape: &[usize]) -> Made {
        let seen = self.shape(value);
        if seen == shape {
            return Ok(value);
        }
        if seen.iter().product::<usize>() != shape.iter().product::<usize>() {
            return Err(self.error(format!("the shape {seen:?} cannot be read as {shape:?}")));
        }
        if let Some(constant) = self.constant_of(value).cloned() {
            return self.constant(constant.reshaped(Shape::new(shape)?)?);
        }
        // A leading 0 copies that dimension: so a graph exported for one batch size can serve others.
        let keeps_first = !seen.is_empty() && seen.first() == shape.first();
        let mut dims: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        if keeps_first && let Some(first) = dims.first_mut() {
            *first = 0;
        }
        let dims = self.ints(&dims)?;
        self.binary(Operator::Reshape, value, dims)
    }

    pub(crate) fn transpose(&mut self, value: ValueId, order: &[usize]) -> Made {
        if order.iter().enumerate().all(|(at, &axis)| at == axis) {
            return Ok(value);
        }
        if order == [1, 0]
            && let Some(turned) = self.constant_of(value).and_then(turned_matrix)
        {
            return self.computed(turned);
        }
        self.node(
            Operator::Transpose,
            &[value],
            Attributes::none().with_ints("perm", order),
        )
    }

    /// `ReduceSum` takes its axes as an operand since opset 13, the other reductions as an attribute until 17.
    pub(crate) fn reduce(&mut self, operator: Operator, value: ValueId, axes: &[usize], keep: bool) -> Made {
        if axes.is_empty() {
            return Ok(value);
        }
        let attributes = Attributes::none().with_int("keepdims", i64::from(keep));
        if operator == Operator::ReduceSum {
            let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
            let axes = self.ints(&axes)?;
            return self.node(operator, &[value, axes], attributes);
        }
        self.node(operator, &[value], attributes.with_ints("axes", axes))
    }

    pub(crate) fn sum(&mut self, value: ValueId, axes: &[usize], keep: bool) -> Made {
        self.reduce(Operator::ReduceSum, value, axes, keep)
    }

    /// `value[starts..ends by steps]` along `axes`.
    pub(crate) fn slice(&mut self, value: ValueId, axes: &[usize], pieces: &[Piece]) -> Made {
        let whole = axes.iter().zip(pieces).all(|(&axis, piece)| {
            piece.start == 0 && piece.step == 1 && self.shape(value).get(axis) == Some(&piece.end)
        });
        if whole {
            return Ok(value);
        }
        let column = |pick: fn(&Piece) -> usize| pieces.iter().map(|piece| pick(piece) as i64).collect::<Vec<_>>();
        let starts = self.ints(&column(|piece| piece.start))?;
        let ends = self.ints(&column(|piece| piece.end))?;
        let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
        let axes = self.ints(&axes)?;
        let steps = self.ints(&column(|piece| piece.step))?;
        self.node(Operator::Slice, &[value, starts, ends, axes, steps], Attributes::none())
    }

    /// Surrounds `value` with `fill`: `before` and `after` have one entry an axis.
    pub(crate) fn pad(&mut self, value: ValueId, before: &[usize], after: &[usize], fill: f32) -> Made {
        if before.iter().chain(after).all(|&count| count == 0) {
            return Ok(value);
        }
        let pads: Vec<i64> = before.iter().chain(after).map(|&count| count as i64).collect();
        let pads = self.ints(&pads)?;
        let fill = self.scalar(fill)?;
        self.node(Operator::Pad, &[value, pads, fill], Attributes::none())
    }

    pub(crate) fn concat(&mut self, values: &[ValueId], axis: usize) -> Made {
        match values {
            [only] => Ok(*only),
            _ => self.node(
                Operator::Concat,
                values,
                Attributes::none().with_int("axis", axis as i64),
            ),
        }
    }

    pub(crate) fn expand(&mut self, value: ValueId, shape: &[usize]) -> Made {
        if self.shape(value) == shape {
            return Ok(value);
        }
        let dims: Vec<i64> = shape.iter().map(|&dim| dim as i64).collect();
        let dims = self.ints(&dims)?;
        self.binary(Operator::Expand, value, dims)
    }

    /// `alpha * left' @ right'`, transposed as told.
    ///
    /// A constant is transposed here: OpenVINO 2026.4 takes the wrong one of the two where a square constant is used as it is
    /// and transposed in one graph.
    pub(crate) fn gemm(
        &mut self,
        mut left: ValueId,
        mut right: ValueId,
        mut transposed: (bool, bool),
        alpha: f32,
    ) -> Made {
        for (operand, flip) in [(&mut left, &mut transposed.0), (&mut right, &mut transposed.1)] {
            if *flip && let Some(turned) = self.constant_of(*operand).and_then(turned_matrix) {
                *operand = self.computed(turned)?;
                *flip = false;
            }
        }
        let mut attributes = Attributes::none();
        if alpha != 1.0 {
            attributes = attributes.with("alpha", crate::ir::Attribute::Float(alpha));
        }
        if transposed.0 {
            attributes = attributes.with_int("transA", 1);
        }
        if transposed.1 {
            attributes = attributes.with_int("transB", 1);
        }
        self.node(Operator::Gemm, &[left, right], attributes)
    }

    /// Sums a gradient over the axes along which `shape` was broadcast, and gives it that shape.
    pub(crate) fn unbroadcast(&mut self, gradient: ValueId, shape: &[usize]) -> Made {
        let seen = self.shape(gradient).to_vec();
        let extra = seen.len().saturating_sub(shape.len());
        let axes: Vec<usize> = (0..seen.len())
            .filter(|&axis| axis < extra || (shape[axis - extra] == 1 && seen[axis] != 1))
            .collect();
        let summed = self.sum(gradient, &axes, true)?;
        self.reshape(summed, shape)
    }
}

/// The transpose of a matrix of floats.
fn turned_matrix(matrix: &Tensor) -> Option<Tensor> {
    let [rows, columns] = *matrix.shape().dims() else {
        return None;
    };
    if matrix.dtype() != Dtype::F32 || rows * columns > MAX_TURNED {
        return None;
    }
    let values = matrix.to_f32_vec().ok()?;
    let turned = (0..rows * columns).map(|at| values[at % rows * columns + at / rows]);
    Tensor::from_f32(&[columns, rows], turned.collect()).ok()
}

/// A range along one axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) step: usize,
}
