//! Convolutions and pools.

use super::{Array, attribute, indices};
use crate::ir::{Node, Operator};

/// Strides, dilations, pads before, pads after.
fn geometry(node: &Node, rank: usize) -> (Vec<usize>, Vec<usize>, Vec<usize>, Vec<usize>) {
    let pads = attribute(node, "pads", &vec![0; 2 * rank]);
    (
        attribute(node, "strides", &vec![1; rank]),
        attribute(node, "dilations", &vec![1; rank]),
        pads[..rank].to_vec(),
        pads[rank..].to_vec(),
    )
}

pub(super) fn conv(node: &Node, all: &[&Array]) -> Array {
    let (value, kernel) = (all[0], all[1]);
    let rank = kernel.shape.len() - 2;
    let (strides, dilations, before, after) = geometry(node, rank);
    let group = node.attributes.int("group", 1).unwrap() as usize;
    let mut shape = vec![value.shape[0], kernel.shape[0]];
    for axis in 0..rank {
        let reach = (kernel.shape[2 + axis] - 1) * dilations[axis] + 1;
        shape.push((value.shape[2 + axis] + before[axis] + after[axis] - reach) / strides[axis] + 1);
    }
    let per_group = kernel.shape[0] / group;
    let cell = |index: &Vec<usize>| -> f64 {
        let base = index[1] / per_group * kernel.shape[1];
        let mut sum = all.get(2).map_or(0.0, |bias| bias.values[index[1]]);
        for tap in indices(&kernel.shape[1..]) {
            let mut from = vec![index[0], base + tap[0]];
            for axis in 0..rank {
                let at =
                    (index[2 + axis] * strides[axis] + tap[1 + axis] * dilations[axis]) as i64 - before[axis] as i64;
                if at < 0 || at >= value.shape[2 + axis] as i64 {
                    break;
                }
                from.push(at as usize);
            }
            if from.len() == rank + 2 {
                sum += value.at(&from) * kernel.at(&[&[index[1]], &tap[..]].concat());
            }
        }
        sum
    };
    Array::new(&shape, indices(&shape).iter().map(cell).collect())
}

pub(super) fn conv_transpose(node: &Node, all: &[&Array]) -> Array {
    let (value, kernel) = (all[0], all[1]);
    let rank = kernel.shape.len() - 2;
    let (strides, dilations, before, after) = geometry(node, rank);
    let extra = attribute(node, "output_padding", &vec![0; rank]);
    let group = node.attributes.int("group", 1).unwrap() as usize;
    let mut shape = vec![value.shape[0], kernel.shape[1] * group];
    for axis in 0..rank {
        let reach = (kernel.shape[2 + axis] - 1) * dilations[axis] + 1;
        let whole = (value.shape[2 + axis] - 1) * strides[axis] + reach + extra[axis];
        shape.push(whole - before[axis] - after[axis]);
    }
    let bias = |index: &Vec<usize>| all.get(2).map_or(0.0, |bias| bias.values[index[1]]);
    let mut result = Array::new(&shape, indices(&shape).iter().map(bias).collect());
    let own = result.strides();
    let per_group = kernel.shape[0] / group;
    for index in indices(&value.shape) {
        for tap in indices(&kernel.shape[1..]) {
            let channel = index[1] / per_group * kernel.shape[1] + tap[0];
            let mut to = index[0] * own[0] + channel * own[1];
            let mut inside = true;
            for axis in 0..rank {
                let at =
                    (index[2 + axis] * strides[axis] + tap[1 + axis] * dilations[axis]) as i64 - before[axis] as i64;
                inside &= at >= 0 && at < shape[2 + axis] as i64;
                to = to.wrapping_add((at as usize).wrapping_mul(own[2 + axis]));
            }
            if inside {
                result.values[to] += value.at(&index) * kernel.at(&[&[index[1]], &tap[..]].concat());
            }
        }
    }
    result
}

pub(super) fn pool(node: &Node, value: &Array) -> Array {
    let kernel = attribute(node, "kernel_shape", &[]);
    let rank = kernel.len();
    let (strides, dilations, before, after) = geometry(node, rank);
    let with_padding = node.attributes.int("count_include_pad", 0).unwrap() != 0;
    let mut shape = value.shape[..2].to_vec();
    for axis in 0..rank {
        let reach = (kernel[axis] - 1) * dilations[axis] + 1;
        shape.push((value.shape[2 + axis] + before[axis] + after[axis] - reach) / strides[axis] + 1);
    }
    let cell = |index: &Vec<usize>| {
        let mut seen = Vec::new();
        for tap in indices(&kernel) {
            let mut from = index[..2].to_vec();
            for axis in 0..rank {
                let at = (index[2 + axis] * strides[axis] + tap[axis] * dilations[axis]) as i64 - before[axis] as i64;
                if at >= 0 && at < value.shape[2 + axis] as i64 {
                    from.push(at as usize);
                }
            }
            if from.len() == rank + 2 {
                seen.push(value.at(&from));
            }
        }
        if node.operator == Operator::MaxPool {
            seen.into_iter().fold(f64::MIN, f64::max)
        } else {
            let count = if with_padding {
                kernel.iter().product()
            } else {
                seen.len()
            };
            seen.iter().sum::<f64>() / count as f64
        }
    };
    Array::new(&shape, indices(&shape).iter().map(cell).collect())
}
