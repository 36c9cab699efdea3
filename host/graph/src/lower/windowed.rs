//! Convolutions and pools: paddings made explicit, kernels named.

use super::Source;
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};
use crate::ops;

pub(super) fn windowed(builder: &mut Builder, source: Source<'_>) -> Result<ValueId, GraphError> {
    let operator = source.node.operator;
    let attributes = source.node.attributes.clone();
    let bad = |problem: String| builder.error(problem);
    let shape_of = |at: usize| source.optional(at).map(|id| builder.shape(id).to_vec());
    let shape = shape_of(0).unwrap_or_default();
    let kernel: Vec<usize> = if matches!(operator, Operator::Conv | Operator::ConvTranspose) {
        shape_of(1).unwrap_or_default().get(2..).unwrap_or_default().to_vec()
    } else {
        let given = attributes.ints("kernel_shape").map_err(bad)?.unwrap_or_default();
        given.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect()
    };
    let spatial = shape.get(2..).unwrap_or_default();
    if kernel.is_empty() || kernel.contains(&0) || spatial.is_empty() {
        return Err(builder.error(format!("a window of {kernel:?} over a value of shape {shape:?}")));
    }
    if operator == Operator::ConvTranspose {
        let attributes = ops::explicit_transposed_pads(attributes, spatial, &kernel).map_err(bad)?;
        return source.copied(builder, attributes.with_ints("kernel_shape", &kernel));
    }
    let (mut attributes, added) = ops::explicit_pads(attributes, spatial, &kernel).map_err(bad)?;
    if operator == Operator::MaxPool && attributes.int("storage_order", 0).map_err(bad)? == 0 {
        attributes.0.remove("storage_order");
    }
    if operator == Operator::AveragePool {
        // Dilated average pools came with opset 19, after the one that is written.
        if attributes
            .ints("dilations")
            .map_err(bad)?
            .is_some_and(|given| given.iter().any(|&one| one != 1))
        {
            return Err(builder.error("a dilated average pool is not supported"));
        }
        attributes.0.remove("dilations");
        let counts_padding = attributes.int("count_include_pad", 0).map_err(bad)? != 0;
        if counts_padding && added.iter().any(|&one| one != 0) {
            return partly_counted(builder, &source, attributes, &added);
        }
    } else {
        attributes = attributes.with_ints("kernel_shape", &kernel);
    }
    source.copied(builder, attributes)
}

/// An average that counts its padding, but not what `ceil_mode` has `added` behind: the padding becomes zeros that are averaged like any
/// other value, and what was added stays padding that is not counted.
fn partly_counted(
    builder: &mut Builder,
    source: &Source<'_>,
    attributes: Attributes,
    added: &[usize],
) -> Result<ValueId, GraphError> {
    let value = source.operand(builder, 0)?;
    let pads = attributes.ints("pads").map_err(|problem| builder.error(problem))?;
    let pads: Vec<usize> = pads.unwrap_or_default().iter().map(|&pad| pad as usize).collect();
    let (before, after) = pads.split_at(added.len());
    let behind: Vec<usize> = after.iter().zip(added).map(|(all, added)| all - added).collect();
    let ground = builder.pad(
        value,
        &[&[0, 0], before].concat(),
        &[&[0, 0], &behind[..]].concat(),
        0.0,
    )?;
    let attributes = attributes
        .with_int("count_include_pad", 0)
        .with_ints("pads", &[&vec![0; added.len()], added].concat());
    builder.node(Operator::AveragePool, &[ground], attributes)
}
