//! Trials of single layers, so that whoever has an engine can choose forms by measurement: this crate computes nothing.
//!
//! The gradients of convolution weights can be written in several forms ([`WeightGradient`]) that give the same numbers within
//! rounding and take very different times, by layer, engine and processor. [`layers`] names the layers of a training graph,
//! [`ConvLayer::candidates`] the forms worth a trial, and [`trial`] is the graph of one layer in one form. What is chosen goes
//! into [`TrainOptions::weight_gradients`], from where on it is fixed: same model, options and choice, same bytes.

use cloister_tensor::{Dtype, Tensor};

use crate::builder::Builder;
use crate::engine_graph::EngineGraph;
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};
use crate::limits::Limits;
use crate::model::Model;
use crate::ops::{ConvLayer, WeightGradient, isolated};
use crate::options::TrainOptions;
use crate::train::conv_layers;

/// Channels of what the trial's values are made from.
const SOURCE_CHANNELS: usize = 16;

/// The convolutions whose weights have a gradient in this model's training graph, each kind once.
///
/// # Errors
/// As [`crate::train`].
pub fn layers(model: &Model, options: &TrainOptions) -> Result<Vec<ConvLayer>, GraphError> {
    conv_layers(model, options)
}

/// The gradient of one layer's weight in one form, as a graph `value`, `gradient` to `weight_gradient`.
///
/// What goes into it comes out of 1x1 convolutions of narrow inputs, since in a network convolutions make the values too, and an
/// engine lays those out as suits it best. Those convolutions are the same for all forms.
///
/// # Errors
/// [`GraphError`] if the layer does not fit into the limits of graphs.
pub fn trial(layer: &ConvLayer, form: WeightGradient) -> Result<EngineGraph, GraphError> {
    let mut builder = Builder::new(&Limits::default());
    builder.forms.default = form;
    let count = layer
        .count()
        .ok_or_else(|| builder.error(format!("{layer} has no window")))?;
    let value = made(&mut builder, "value", &layer.value)?;
    let shape = [&[layer.value[0], layer.kernel[0]], &count[..]].concat();
    let gradient = made(&mut builder, "gradient", &shape)?;
    let result = isolated(&mut builder, layer, value, gradient)?;
    builder.output("weight_gradient", result)?;
    EngineGraph::of(builder.finish(Default::default())?, None)
}

fn made(builder: &mut Builder, name: &str, shape: &[usize]) -> Result<ValueId, GraphError> {
    let mut narrow = shape.to_vec();
    narrow[1] = SOURCE_CHANNELS;
    let source = builder.input(name, Dtype::F32, &narrow)?;
    let mut kernel = vec![shape[1], SOURCE_CHANNELS];
    kernel.resize(shape.len(), 1);
    // Any numbers do that are neither all alike nor denormal.
    let weights = (0..shape[1] * SOURCE_CHANNELS).map(|at| (at * 7 % 19) as f32 / 19.0 - 0.5);
    let weights = builder.named_constant("", Tensor::from_f32(&kernel, weights.collect())?)?;
    builder.node(Operator::Conv, &[source, weights], Attributes::none())
}
