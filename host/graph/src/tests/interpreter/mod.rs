//! A reference interpreter in f64: slow, plain, and written apart from the rules that it checks. The tests of `cloister-engine` compile
//! it, too, over nodes that they read from a graph's bytes.

mod rearrange;
mod windows;

use cloister_tensor::Tensor;

use crate::ir::{Node, Operator};
use rearrange::{concat, gather, pad, scatter, slice};
use windows::{conv, conv_transpose, pool};

/// Element types as ONNX numbers them.
const INT64: i64 = 7;
const BOOL: i64 = 9;

/// A value: every element type as f64.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f64>,
}

impl Array {
    pub(super) fn new(shape: &[usize], values: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{shape:?}");
        Self {
            shape: shape.to_vec(),
            values,
        }
    }

    pub(super) fn of(tensor: &Tensor) -> Self {
        Self::new(tensor.shape().dims(), tensor.to_f64_vec())
    }

    fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.shape.len()];
        for axis in (1..self.shape.len()).rev() {
            strides[axis - 1] = strides[axis] * self.shape[axis];
        }
        strides
    }

    fn at(&self, index: &[usize]) -> f64 {
        self.values[index
            .iter()
            .zip(self.strides())
            .map(|(at, stride)| at * stride)
            .sum::<usize>()]
    }

    /// Element at an index of a larger shape, broadcast.
    fn broadcast_at(&self, index: &[usize]) -> f64 {
        let extra = index.len() - self.shape.len();
        let own: Vec<usize> = self
            .shape
            .iter()
            .enumerate()
            .map(|(axis, &size)| if size == 1 { 0 } else { index[axis + extra] })
            .collect();
        self.at(&own)
    }
}

fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for &size in shape {
        all = all
            .iter()
            .flat_map(|head: &Vec<usize>| (0..size).map(move |at| [&head[..], &[at]].concat()))
            .collect();
    }
    all
}

fn map(one: &Array, compute: impl Fn(f64) -> f64) -> Array {
    Array::new(&one.shape, one.values.iter().map(|&value| compute(value)).collect())
}

fn zip(operands: &[&Array], compute: impl Fn(&[f64]) -> f64) -> Array {
    let mut shape = Vec::new();
    for one in operands {
        shape = broadcast(&shape, &one.shape);
    }
    let values = indices(&shape)
        .iter()
        .map(|index| compute(&operands.iter().map(|one| one.broadcast_at(index)).collect::<Vec<_>>()))
        .collect();
    Array::new(&shape, values)
}

/// The shape that two broadcast to.
fn broadcast(left: &[usize], right: &[usize]) -> Vec<usize> {
    let rank = left.len().max(right.len());
    let size = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis]);
    let both = (0..rank).map(|axis| (size(left, axis), size(right, axis)));
    both.map(|(a, b)| {
        assert!(
            a == b || a == 1 || b == 1,
            "{left:?} and {right:?} do not fit each other"
        );
        if a == 1 { b } else { a }
    })
    .collect()
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn ints(array: Option<&Array>) -> Vec<i64> {
    array
        .map(|array| array.values.iter().map(|&value| value as i64).collect())
        .unwrap_or_default()
}

fn attribute(node: &Node, name: &str, default: &[usize]) -> Vec<usize> {
    node.attributes
        .ints(name)
        .unwrap()
        .map(|values| values.iter().map(|&value| value as usize).collect())
        .unwrap_or_else(|| default.to_vec())
}

/// What a node makes of its operands.
pub(super) fn compute(node: &Node, inputs: &[Option<&Array>]) -> Array {
    use Operator as O;
    let all: Vec<&Array> = inputs.iter().copied().flatten().collect();
    let first = all[0];
    match node.operator {
        O::Add => zip(&all, |v| v[0] + v[1]),
        O::Sub => zip(&all, |v| v[0] - v[1]),
        O::Mul => zip(&all, |v| v[0] * v[1]),
        O::Div => zip(&all, |v| v[0] / v[1]),
        O::Pow => zip(&all, |v| v[0].powf(v[1])),
        O::Max => zip(&all, |v| v[0].max(v[1])),
        O::Min => zip(&all, |v| v[0].min(v[1])),
        O::Equal => zip(&all, |v| truth(v[0] == v[1])),
        O::Greater => zip(&all, |v| truth(v[0] > v[1])),
        O::Less => zip(&all, |v| truth(v[0] < v[1])),
        O::GreaterOrEqual => zip(&all, |v| truth(v[0] >= v[1])),
        O::LessOrEqual => zip(&all, |v| truth(v[0] <= v[1])),
        O::And => zip(&all, |v| truth(v[0] != 0.0 && v[1] != 0.0)),
        O::Or => zip(&all, |v| truth(v[0] != 0.0 || v[1] != 0.0)),
        O::Xor => zip(&all, |v| truth((v[0] != 0.0) != (v[1] != 0.0))),
        O::Not => map(first, |v| truth(v == 0.0)),
        O::IsNaN => map(first, |v| truth(v.is_nan())),
        O::Sin => map(first, f64::sin),
        O::Cos => map(first, f64::cos),
        O::Floor => map(first, f64::floor),
        O::Softplus => map(first, |v| v.max(0.0) + (-v.abs()).exp().ln_1p()),
        O::Gather => gather(node, first, all[1]),
        O::ScatterElements => scatter(node, &all),
        O::Where => zip(&all, |v| if v[0] != 0.0 { v[1] } else { v[2] }),
        O::Neg => map(first, |v| -v),
        O::Abs => map(first, f64::abs),
        O::Sign => map(first, |v| if v == 0.0 { 0.0 } else { v.signum() }),
        O::Exp => map(first, f64::exp),
        O::Log => map(first, f64::ln),
        O::Sqrt => map(first, f64::sqrt),
        O::Erf => map(first, erf),
        O::Reciprocal => map(first, |v| 1.0 / v),
        O::Relu => map(first, |v| v.max(0.0)),
        O::Tanh => map(first, f64::tanh),
        O::Sigmoid => map(first, |v| 1.0 / (1.0 + (-v).exp())),
        O::Identity => first.clone(),
        O::LeakyRelu => {
            let alpha = f64::from(node.attributes.float("alpha", 0.01).unwrap());
            map(first, |v| if v > 0.0 { v } else { alpha * v })
        }
        O::Clip => {
            let bound =
                |at: usize, default: f64| inputs.get(at).copied().flatten().map_or(default, |one| one.values[0]);
            map(first, |v| v.max(bound(1, f64::MIN)).min(bound(2, f64::MAX)))
        }
        O::Cast => match node.attributes.int("to", 0).unwrap() {
            INT64 => map(first, f64::trunc),
            BOOL => map(first, |v| truth(v != 0.0)),
            _ => first.clone(),
        },
        O::Softmax | O::LogSoftmax => softmax(node, first),
        O::Gemm => gemm(node, &all),
        O::MatMul => mat_mul(first, all[1]),
        O::Reshape => {
            let mut shape: Vec<usize> = Vec::new();
            for (at, &dim) in ints(Some(all[1])).iter().enumerate() {
                shape.push(if dim == 0 { first.shape[at] } else { dim as usize });
            }
            Array::new(&shape, first.values.clone())
        }
        O::Transpose => {
            let order = attribute(node, "perm", &[]);
            let shape: Vec<usize> = order.iter().map(|&axis| first.shape[axis]).collect();
            let pick = |index: &Vec<usize>| {
                let mut from = vec![0; order.len()];
                for (to, &axis) in order.iter().enumerate() {
                    from[axis] = index[to];
                }
                first.at(&from)
            };
            Array::new(&shape, indices(&shape).iter().map(pick).collect())
        }
        O::Concat => concat(node, &all),
        O::Slice => slice(first, &all),
        O::Pad => pad(first, &all),
        O::Expand => {
            let target: Vec<usize> = ints(Some(all[1])).iter().map(|&dim| dim as usize).collect();
            let shape = broadcast(&first.shape, &target);
            Array::new(
                &shape,
                indices(&shape).iter().map(|index| first.broadcast_at(index)).collect(),
            )
        }
        O::ReduceSum | O::ReduceMean | O::ReduceMax => reduce(node, first, inputs.get(1).copied().flatten()),
        O::ArgMax => {
            let [rows, columns] = first.shape[..] else {
                panic!("argmax of {:?}", first.shape)
            };
            let best = |row: usize| {
                let row = &first.values[row * columns..(row + 1) * columns];
                (0..columns).fold(0, |best, at| if row[at] > row[best] { at } else { best }) as f64
            };
            Array::new(&[rows], (0..rows).map(best).collect())
        }
        O::Conv => conv(node, &all),
        O::ConvTranspose => conv_transpose(node, &all),
        O::MaxPool | O::AveragePool => pool(node, first),
        O::GlobalAveragePool | O::GlobalMaxPool => {
            let (lead, area) = (
                first.shape[0] * first.shape[1],
                first.shape[2..].iter().product::<usize>(),
            );
            let shape: Vec<usize> = [&first.shape[..2], &vec![1; first.shape.len() - 2]].concat();
            let one = |at: usize| {
                let plane = &first.values[at * area..(at + 1) * area];
                if node.operator == O::GlobalMaxPool {
                    plane.iter().copied().fold(f64::MIN, f64::max)
                } else {
                    plane.iter().sum::<f64>() / area as f64
                }
            };
            Array::new(&shape, (0..lead).map(one).collect())
        }
        other => panic!("the interpreter does not know {other:?}"),
    }
}

/// Abramowitz and Stegun 7.1.5, summed to f64 accuracy for small arguments.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn softmax(node: &Node, value: &Array) -> Array {
    let rank = value.shape.len() as i64;
    let axis = node.attributes.int("axis", -1).unwrap().rem_euclid(rank) as usize;
    let row = |index: &Vec<usize>| -> f64 {
        let along = |at: usize| {
            let mut other = index.clone();
            other[axis] = at;
            value.at(&other)
        };
        let total: f64 = (0..value.shape[axis]).map(|at| along(at).exp()).sum();
        let share = value.at(index).exp() / total;
        if node.operator == Operator::LogSoftmax {
            share.ln()
        } else {
            share
        }
    };
    Array::new(&value.shape, indices(&value.shape).iter().map(row).collect())
}

fn gemm(node: &Node, all: &[&Array]) -> Array {
    let flag = |name: &str| node.attributes.int(name, 0).unwrap() != 0;
    let factor = |name: &str| f64::from(node.attributes.float(name, 1.0).unwrap());
    let get =
        |one: &Array, flip: bool, row: usize, column: usize| one.at(&if flip { [column, row] } else { [row, column] });
    let (flip_left, flip_right) = (flag("transA"), flag("transB"));
    let (rows, inner) = if flip_left {
        (all[0].shape[1], all[0].shape[0])
    } else {
        (all[0].shape[0], all[0].shape[1])
    };
    let columns = all[1].shape[usize::from(!flip_right)];
    let mut values = Vec::new();
    for row in 0..rows {
        for column in 0..columns {
            let product: f64 = (0..inner)
                .map(|k| get(all[0], flip_left, row, k) * get(all[1], flip_right, k, column))
                .sum();
            let addend = all.get(2).map_or(0.0, |one| one.broadcast_at(&[row, column]));
            values.push(factor("alpha") * product + factor("beta") * addend);
        }
    }
    Array::new(&[rows, columns], values)
}

fn mat_mul(left: &Array, right: &Array) -> Array {
    let (a, b) = (left.shape.len(), right.shape.len());
    let batch = broadcast(&left.shape[..a - 2], &right.shape[..b - 2]);
    let (rows, inner, columns) = (left.shape[a - 2], left.shape[a - 1], right.shape[b - 1]);
    let shape = [&batch[..], &[rows, columns]].concat();
    let own = |one: &Array, index: &[usize], row: usize, column: usize| {
        let lead = one.shape.len() - 2;
        let extra = batch.len() - lead;
        let mut at: Vec<usize> = (0..lead)
            .map(|axis| if one.shape[axis] == 1 { 0 } else { index[axis + extra] })
            .collect();
        at.extend([row, column]);
        one.at(&at)
    };
    let cell = |index: &Vec<usize>| -> f64 {
        let (row, column) = (index[batch.len()], index[batch.len() + 1]);
        (0..inner)
            .map(|k| own(left, index, row, k) * own(right, index, k, column))
            .sum()
    };
    Array::new(&shape, indices(&shape).iter().map(cell).collect())
}

fn axis_of(node: &Node, value: &Array) -> usize {
    node.attributes
        .int("axis", 0)
        .unwrap()
        .rem_euclid(value.shape.len() as i64) as usize
}

fn reduce(node: &Node, value: &Array, given: Option<&Array>) -> Array {
    let rank = value.shape.len();
    let mut axes = match given {
        Some(given) => ints(Some(given)),
        None => node.attributes.ints("axes").unwrap().unwrap_or_default().to_vec(),
    };
    if axes.is_empty() {
        axes = (0..rank as i64).collect();
    }
    let axes: Vec<usize> = axes.iter().map(|axis| axis.rem_euclid(rank as i64) as usize).collect();
    let kept: Vec<usize> = (0..rank)
        .map(|axis| if axes.contains(&axis) { 1 } else { value.shape[axis] })
        .collect();
    let mut sums = Array::new(&kept, vec![0.0; kept.iter().product()]);
    let strides = sums.strides();
    let is_max = node.operator == Operator::ReduceMax;
    if is_max {
        sums.values.fill(f64::MIN);
    }
    for index in indices(&value.shape) {
        let at: usize = (0..rank)
            .map(|axis| {
                if axes.contains(&axis) {
                    0
                } else {
                    index[axis] * strides[axis]
                }
            })
            .sum();
        let sum = &mut sums.values[at];
        *sum = if is_max {
            sum.max(value.at(&index))
        } else {
            *sum + value.at(&index)
        };
    }
    if node.operator == Operator::ReduceMean {
        let count: usize = axes.iter().map(|&axis| value.shape[axis]).product();
        sums.values.iter_mut().for_each(|sum| *sum /= count as f64);
    }
    if node.attributes.int("keepdims", 1).unwrap() == 0 {
        sums.shape = (0..rank)
            .filter(|axis| !axes.contains(axis))
            .map(|axis| value.shape[axis])
            .collect();
    }
    sums
}
