//! Convolutions and pools: paddings made explicit, kernels named.

use super::Source;
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};
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
        let attributes = match attributes.text("auto_pad", "NOTSET").map_err(bad)? {
            "NOTSET" => super::without(&source, &["auto_pad"]),
            other => return Err(builder.error(format!("auto_pad '{other}' is not supported; name the pads"))),
        };
        return source.copied(builder, attributes.with_ints("kernel_shape", &kernel));
    }
    let mut attributes = ops::explicit_pads(operator, attributes, spatial, &kernel).map_err(bad)?;
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
    } else {
        attributes = attributes.with_ints("kernel_shape", &kernel);
    }
    source.copied(builder, attributes)
}
