//! The gradient of a convolution's weight, in one of several forms that give the same numbers within rounding.

use super::conv_form::{ConvLayer, WeightGradient};
use super::convolution::geometry;
use super::window::Window;
use crate::builder::{Builder, Piece};
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};

pub(super) fn weight_gradient(
    builder: &mut Builder,
    gradient: ValueId,
    operand: ValueId,
    kernel: &[usize],
    window: &Window,
    group: usize,
) -> Result<ValueId, GraphError> {
    let layer = ConvLayer::of(builder.shape(operand), window, kernel, group);
    let form = builder.forms.of(&layer);
    builder.forms.layers.insert(layer);
    match form {
        WeightGradient::Gemm => by_gemm(builder, gradient, operand, kernel, window),
        WeightGradient::Spatial { parts } => with_channels_spatial(builder, gradient, operand, kernel, window, parts),
        WeightGradient::Interleaved => with_channels_interleaved(builder, gradient, operand, kernel, window),
        WeightGradient::Auto | WeightGradient::Conv => by_conv(builder, gradient, operand, kernel, window, group),
    }
}

/// The gradient of a layer's weight alone, for a trial of its form.
pub(crate) fn isolated(
    builder: &mut Builder,
    layer: &ConvLayer,
    value: ValueId,
    gradient: ValueId,
) -> Result<ValueId, GraphError> {
    let (before, after) = layer.pads.split_at(layer.pads.len() / 2);
    let window = Window {
        kernel: layer.kernel[2..].to_vec(),
        strides: layer.strides.clone(),
        dilations: layer.dilations.clone(),
        before: before.to_vec(),
        after: after.to_vec(),
    };
    weight_gradient(builder, gradient, value, &layer.kernel, &window, layer.groups)
}

/// `[N, C, spatial...]` as it lies where engines keep channels last, as OpenVINO does around convolutions.
fn channels_last(builder: &mut Builder, value: ValueId) -> Result<ValueId, GraphError> {
    let rank = builder.rank(value);
    let order: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    builder.transpose(value, &order)
}

/// `[matrices, height, width]` with height and width exchanged in each. In four axes and this order, for so OpenVINO has a kernel
/// for it; as three axes it takes ten times as long.
fn transposed_matrices(builder: &mut Builder, value: ValueId, sizes: [usize; 3]) -> Result<ValueId, GraphError> {
    let [matrices, height, width] = sizes;
    let value = builder.reshape(value, &[matrices, 1, height, width])?;
    builder.transpose(value, &[0, 3, 1, 2])
}

/// The ground with the rows of the batch last, and the slider with its channels first, in parts of the batch.
fn turned(
    builder: &mut Builder,
    operand: ValueId,
    gradient: ValueId,
    parts: usize,
) -> Result<(ValueId, ValueId), GraphError> {
    let elements = |builder: &Builder, value: ValueId| builder.shape(value).iter().product::<usize>();
    let rows = builder.shape(operand)[0];
    let ground = channels_last(builder, operand)?;
    let columns = elements(builder, ground) / rows;
    let ground = transposed_matrices(builder, ground, [1, rows, columns])?;
    let channels = builder.shape(gradient)[1];
    let slider = channels_last(builder, gradient)?;
    let places = elements(builder, slider) / channels / parts;
    let slider = transposed_matrices(builder, slider, [parts, places, channels])?;
    Ok((ground, slider))
}

/// The gradient slides over the input, rows of the batch in the place of channels, channels in a spatial axis of their own.
fn with_channels_spatial(
    builder: &mut Builder,
    gradient: ValueId,
    operand: ValueId,
    kernel: &[usize],
    window: &Window,
    parts: usize,
) -> Result<ValueId, GraphError> {
    let shape = builder.shape(operand).to_vec();
    let (rows, channels, spatial) = (shape[0], shape[1], &shape[2..]);
    let count = builder.shape(gradient)[2..].to_vec();
    let axes = spatial.len();
    let (ground, slider) = turned(builder, operand, gradient, parts)?;
    let ground = builder.reshape(ground, &[&[1], spatial, &[channels, rows]].concat())?;
    let rows_second: Vec<usize> = [0, axes + 2].into_iter().chain(1..axes + 2).collect();
    let ground = builder.transpose(ground, &rows_second)?;
    let slid = [&count[..], &[1]].concat();
    let slider = builder.reshape(slider, &[&[parts * kernel[0], rows / parts], &slid[..]].concat())?;
    let with = |sizes: &[usize], last: usize| [sizes, &[last]].concat();
    let mut attributes = geometry(
        &with(&window.dilations, 1),
        &with(&window.strides, 1),
        &with(&window.before, 0),
        &with(&window.after, 0),
    )
    .with_ints("kernel_shape", &slid);
    if parts != 1 {
        attributes = attributes.with_int("group", parts as i64);
    }
    let swept = builder.node(Operator::Conv, &[ground, slider], attributes)?;
    let swept = cut(builder, swept, &kernel[2..])?;
    let split = builder.reshape(swept, &[&[parts, kernel[0]], &kernel[2..], &[channels]].concat())?;
    let sum = if parts == 1 {
        builder.reshape(split, &[&kernel[..1], &kernel[2..], &[channels]].concat())?
    } else {
        builder.sum(split, &[0], false)?
    };
    channels_second(builder, sum)
}

/// The same with the channels laid along the last spatial axis, where strides, pads and kernel become as many times as wide.
fn with_channels_interleaved(
    builder: &mut Builder,
    gradient: ValueId,
    operand: ValueId,
    kernel: &[usize],
    window: &Window,
) -> Result<ValueId, GraphError> {
    let shape = builder.shape(operand).to_vec();
    let (rows, channels) = (shape[0], shape[1]);
    let count = builder.shape(gradient)[2..].to_vec();
    let axes = count.len();
    let wide = |sizes: &[usize]| {
        let mut sizes = sizes.to_vec();
        if let Some(last) = sizes.last_mut() {
            *last *= channels;
        }
        sizes
    };
    let (ground, slider) = turned(builder, operand, gradient, 1)?;
    let ground = builder.reshape(ground, &[&[1], &wide(&shape[2..])[..], &[rows]].concat())?;
    let rows_second: Vec<usize> = [0, axes + 1].into_iter().chain(1..axes + 1).collect();
    let ground = builder.transpose(ground, &rows_second)?;
    let slider = builder.reshape(slider, &[&[kernel[0], rows], &count[..]].concat())?;
    let attributes = geometry(
        &window.dilations,
        &wide(&window.strides),
        &wide(&window.before),
        &wide(&window.after),
    )
    .with_ints("kernel_shape", &count);
    let swept = builder.node(Operator::Conv, &[ground, slider], attributes)?;
    let swept = cut(builder, swept, &wide(&kernel[2..]))?;
    let split = builder.reshape(swept, &[&kernel[..1], &kernel[2..], &[channels]].concat())?;
    channels_second(builder, split)
}

/// Where strides leave a rest, there are more positions than the kernel has.
fn cut(builder: &mut Builder, swept: ValueId, kernel: &[usize]) -> Result<ValueId, GraphError> {
    let axes: Vec<usize> = (2..2 + kernel.len()).collect();
    let pieces: Vec<Piece> = kernel.iter().map(|&end| Piece { start: 0, end, step: 1 }).collect();
    builder.slice(swept, &axes, &pieces)
}

/// `[O, spatial..., C]` as the weight stands, `[O, C, spatial...]`.
fn channels_second(builder: &mut Builder, value: ValueId) -> Result<ValueId, GraphError> {
    let rank = builder.rank(value);
    let order: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    builder.transpose(value, &order)
}

/// The gradient of a weight is itself a convolution: the input's channels become the batch, the batch becomes the channels,
/// the gradient becomes the kernel; strides and dilations change places.
fn by_conv(
    builder: &mut Builder,
    gradient: ValueId,
    operand: ValueId,
    kernel: &[usize],
    window: &Window,
    group: usize,
) -> Result<ValueId, GraphError> {
    let shape = builder.shape(operand).to_vec();
    let rank = shape.len();
    let swap: Vec<usize> = [1, 0].into_iter().chain(2..rank).collect();
    let ground = if group == 1 {
        builder.transpose(operand, &swap)?
    } else {
        // [N, G, C/G, ...] to [C/G, G N, ...]: each group keeps its own batch as channels.
        let split = builder.reshape(operand, &[&[shape[0], group, kernel[1]], &shape[2..]].concat())?;
        let order: Vec<usize> = [2, 1, 0].into_iter().chain(3..rank + 1).collect();
        let turned = builder.transpose(split, &order)?;
        builder.reshape(turned, &[&[kernel[1], group * shape[0]], &shape[2..]].concat())?
    };
    let slider = builder.transpose(gradient, &swap)?;
    let mut attributes = geometry(&window.dilations, &window.strides, &window.before, &window.after);
    let slid: Vec<usize> = builder.shape(slider)[2..].to_vec();
    attributes = attributes.with_ints("kernel_shape", &slid);
    if group != 1 {
        attributes = attributes.with_int("group", group as i64);
    }
    let swapped = builder.node(Operator::Conv, &[ground, slider], attributes)?;
    let cut = cut(builder, swapped, &window.kernel)?;
    builder.transpose(cut, &swap)
}

/// The windows as rows of a matrix, channels last, and one product.
fn by_gemm(
    builder: &mut Builder,
    gradient: ValueId,
    operand: ValueId,
    kernel: &[usize],
    window: &Window,
) -> Result<ValueId, GraphError> {
    let rank = kernel.len();
    let count = builder.shape(gradient)[2..].to_vec();
    let before = [&[0, 0], &window.before[..]].concat();
    let after = [&[0, 0], &window.after[..]].concat();
    let padded = builder.pad(operand, &before, &after, 0.0)?;
    let last: Vec<usize> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let ground = builder.transpose(padded, &last)?;
    let mut columns = Vec::new();
    for offset in window.offsets().map_err(|problem| builder.error(problem))? {
        columns.push(window.pick(builder, ground, 1, &offset, &count)?);
    }
    let windows = builder.concat(&columns, rank - 1)?;
    let shape = builder.shape(windows).to_vec();
    let rows: usize = shape[..rank - 1].iter().product();
    let windows = builder.reshape(windows, &[rows, shape[rank - 1]])?;
    let slider = builder.transpose(gradient, &last)?;
    let slider = builder.reshape(slider, &[rows, kernel[0]])?;
    let product = builder.gemm(slider, windows, (true, false), 1.0)?;
    let spread = builder.reshape(product, &[&[kernel[0]], &kernel[2..], &[kernel[1]]].concat())?;
    channels_second(builder, spread)
}
