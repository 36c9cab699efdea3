//! What moves elements and computes none.

use super::{Array, axis_of, indices, ints};
use crate::ir::Node;

pub(super) fn gather(node: &Node, value: &Array, picks: &Array) -> Array {
    let axis = axis_of(node, value);
    let shape = [&value.shape[..axis], &picks.shape, &value.shape[axis + 1..]].concat();
    let pick = |index: &Vec<usize>| {
        let chosen = picks.at(&index[axis..axis + picks.shape.len()]) as i64;
        let chosen = chosen.rem_euclid(value.shape[axis] as i64) as usize;
        value.at(&[&index[..axis], &[chosen], &index[axis + picks.shape.len()..]].concat())
    };
    Array::new(&shape, indices(&shape).iter().map(pick).collect())
}

pub(super) fn scatter(node: &Node, all: &[&Array]) -> Array {
    let axis = axis_of(node, all[0]);
    assert_eq!(node.attributes.text("reduction", "none").unwrap(), "add");
    let mut result = all[0].clone();
    let strides = result.strides();
    for index in indices(&all[2].shape) {
        let mut to = index.clone();
        to[axis] = (all[1].at(&index) as i64).rem_euclid(result.shape[axis] as i64) as usize;
        let at: usize = to.iter().zip(&strides).map(|(at, stride)| at * stride).sum();
        result.values[at] += all[2].at(&index);
    }
    result
}

pub(super) fn concat(node: &Node, all: &[&Array]) -> Array {
    let rank = all[0].shape.len() as i64;
    let axis = node.attributes.int("axis", 0).unwrap().rem_euclid(rank) as usize;
    let mut shape = all[0].shape.clone();
    shape[axis] = all.iter().map(|one| one.shape[axis]).sum();
    let pick = |index: &Vec<usize>| {
        let mut own = index.clone();
        for one in all {
            if own[axis] < one.shape[axis] {
                return one.at(&own);
            }
            own[axis] -= one.shape[axis];
        }
        unreachable!()
    };
    Array::new(&shape, indices(&shape).iter().map(pick).collect())
}

pub(super) fn slice(value: &Array, all: &[&Array]) -> Array {
    let (starts, ends) = (ints(Some(all[1])), ints(Some(all[2])));
    let given = |at: usize| all.get(at).map(|one| ints(Some(one)));
    let axes = given(3).unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = given(4).unwrap_or_else(|| vec![1; starts.len()]);
    let mut shape = value.shape.clone();
    let mut from = vec![(0, 1); shape.len()];
    for (at, &axis) in axes.iter().enumerate() {
        let axis = axis.rem_euclid(shape.len() as i64) as usize;
        let size = shape[axis] as i64;
        let bound = |value: i64| if value < 0 { value + size } else { value }.clamp(0, size);
        let (start, end) = (bound(starts[at]), bound(ends[at]));
        shape[axis] = ((end - start) as usize).div_ceil(steps[at] as usize);
        from[axis] = (start as usize, steps[at] as usize);
    }
    let pick = |index: &Vec<usize>| {
        let own: Vec<usize> = index
            .iter()
            .zip(&from)
            .map(|(at, (start, step))| start + at * step)
            .collect();
        value.at(&own)
    };
    Array::new(&shape, indices(&shape).iter().map(pick).collect())
}

pub(super) fn pad(value: &Array, all: &[&Array]) -> Array {
    let pads = ints(Some(all[1]));
    let fill = all.get(2).map_or(0.0, |one| one.values[0]);
    let rank = value.shape.len();
    let shape: Vec<usize> = (0..rank)
        .map(|axis| value.shape[axis] + (pads[axis] + pads[rank + axis]) as usize)
        .collect();
    let pick = |index: &Vec<usize>| {
        let own: Option<Vec<usize>> = index
            .iter()
            .enumerate()
            .map(|(axis, &at)| at.checked_sub(pads[axis] as usize).filter(|&at| at < value.shape[axis]))
            .collect();
        own.map_or(fill, |own| value.at(&own))
    };
    Array::new(&shape, indices(&shape).iter().map(pick).collect())
}
