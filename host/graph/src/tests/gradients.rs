//! The gradient of every operator against central differences, computed in f64.

use std::collections::BTreeMap;

use cloister_tensor::{Dtype, Tensor};

use super::interpreter::Array;
use super::run::run;
use super::zoo::onnx_file::Model as File;
use super::{model, numbers, parameter};
use crate::builder::{Builder, Piece};
use crate::ir::{Attribute, Attributes, Operator as O, ValueId};
use crate::{EngineGraph, Limits, Model, Optimizer, PortKind, TrainOptions, WeightGradient, train, tuning};

const STEP: f64 = 1e-5;

/// Values for every input of a graph: parameters as in the model, data and statistics by seed, labels in turn.
pub(super) fn feeds(graph: &EngineGraph, model: &Model, classes: usize) -> BTreeMap<String, Array> {
    let weights = model.initial_weights();
    let mut feeds = BTreeMap::new();
    for (seed, port) in graph.inputs().iter().enumerate() {
        let count = port.shape.iter().product();
        let values = match &port.kind {
            PortKind::Parameter(name) | PortKind::Statistic(name) => weights[name].to_f64_vec(),
            PortKind::Labels => (0..count).map(|row| ((row * 7 + 3) % classes) as f64).collect(),
            PortKind::LearningRate => vec![0.1],
            PortKind::Step => vec![1.0],
            PortKind::State { .. } => vec![0.0; count],
            _ => numbers(count, 1000 + seed as u64),
        };
        feeds.insert(port.name.clone(), Array::new(&port.shape, values));
    }
    feeds
}

/// Checks the gradient of every parameter, for every form of weight gradients.
pub(super) fn check(file: &[u8], batch: usize) {
    let model = Model::parse(file, &Limits::default()).unwrap();
    let layers = tuning::layers(&model, &TrainOptions::new(Optimizer::None, batch)).unwrap();
    check_form(file, batch, WeightGradient::Conv);
    for form in [
        WeightGradient::Gemm,
        WeightGradient::Spatial { parts: 1 },
        WeightGradient::Spatial { parts: 2 },
        WeightGradient::Interleaved,
    ] {
        if layers.iter().any(|layer| layer.takes(form)) {
            check_form(file, batch, form);
        }
    }
}

fn check_form(file: &[u8], batch: usize, form: WeightGradient) {
    let model = Model::parse(file, &Limits::default()).unwrap();
    let mut options = TrainOptions::new(Optimizer::None, batch);
    options.weight_gradient = form;
    let graph = train(&model, &options).unwrap().training;
    // What was written reads back as itself.
    let again = EngineGraph::load(graph.bytes()).unwrap();
    assert_eq!(again.bytes(), graph.bytes());
    let classes = 2;
    let mut feeds = feeds(&graph, &model, classes);
    let outputs = run(&again, &feeds);
    for (name, _) in model.parameters() {
        let gradient = &outputs[&format!("grad/{name}")];
        assert_eq!(gradient.shape, feeds[name].shape);
        let scale = gradient
            .values
            .iter()
            .fold(1e-3f64, |most, value| most.max(value.abs()));
        for at in 0..gradient.values.len() {
            let mut loss = |change: f64| {
                let value = feeds[name].values[at];
                feeds.get_mut(name).unwrap().values[at] = value + change;
                let loss = run(&again, &feeds)["loss"].values[0];
                feeds.get_mut(name).unwrap().values[at] = value;
                loss
            };
            let difference = (loss(STEP) - loss(-STEP)) / (2.0 * STEP);
            let seen = gradient.values[at];
            // Constants of the graph are f32, so the last digits differ.
            assert!(
                (difference - seen).abs() < 2e-6 * scale + 1e-9,
                "{name}[{at}]: {seen} by the graph, {difference} by differences"
            );
        }
    }
}

/// A model whose logits `[2, 2]` depend on every element of what `build` makes.
fn through(build: impl FnOnce(&mut Builder) -> ValueId) -> Vec<u8> {
    model(|builder| {
        let x = builder.input("x", Dtype::F32, &[2, 1]).unwrap();
        let value = build(builder);
        let count: usize = builder.shape(value).iter().product();
        let row = builder.reshape(value, &[1, count]).unwrap();
        // Mixing in x makes the two rows differ.
        let rows = builder.add(row, x).unwrap();
        let rows = builder.unary(O::Tanh, rows).unwrap();
        let mix = numbers(count * 2, 77).into_iter().map(|value| value as f32).collect();
        let tensor = Tensor::from_f32(&[count, 2], mix).unwrap().bytes().clone();
        let doubles = Tensor::new(Dtype::F32, cloister_tensor::Shape::new(&[count, 2]).unwrap(), tensor).unwrap();
        let mix = builder.constant(doubles).unwrap();
        builder.gemm(rows, mix, (false, false), 1.0).unwrap()
    })
}

fn unary(operator: O) {
    check(
        &through(|builder| {
            let p = parameter(builder, "p", &[2, 3], 5);
            builder.unary(operator, p).unwrap()
        }),
        2,
    );
}

/// The operand is brought above 0 first.
fn unary_of_positive(operator: O) {
    check(
        &through(|builder| {
            let p = parameter(builder, "p", &[2, 3], 5);
            let p = builder.mul(p, p).unwrap();
            builder.unary(operator, p).unwrap()
        }),
        2,
    );
}

fn binary(operator: O, left: &[usize], right: &[usize]) {
    check(
        &through(|builder| {
            let a = parameter(builder, "a", left, 5);
            let b = parameter(builder, "b", right, 6);
            builder.binary(operator, a, b).unwrap()
        }),
        2,
    );
}

#[test]
fn elementwise_of_one() {
    for operator in [
        O::Neg,
        O::Abs,
        O::Exp,
        O::Erf,
        O::Reciprocal,
        O::Relu,
        O::Sigmoid,
        O::Tanh,
        O::Identity,
        O::LeakyRelu,
    ] {
        unary(operator);
    }
    for operator in [O::Log, O::Sqrt] {
        unary_of_positive(operator);
    }
}

#[test]
fn elementwise_of_two_with_broadcasting() {
    for operator in [O::Add, O::Sub, O::Mul, O::Div, O::Max, O::Min] {
        binary(operator, &[2, 3], &[2, 3]);
        binary(operator, &[2, 3], &[3]);
        binary(operator, &[2, 1], &[4, 1, 3]);
        binary(operator, &[1], &[2, 2]);
        binary(operator, &[2, 2], &[]);
    }
}

#[test]
fn a_parameter_used_twice() {
    check(
        &through(|builder| {
            let p = parameter(builder, "p", &[2, 3], 5);
            let square = builder.mul(p, p).unwrap();
            builder.add(square, p).unwrap()
        }),
        2,
    );
}

#[test]
fn powers_clipping_and_choice() {
    let powers = File::new(17)
        .parameter("p", &[2, 3])
        .node("Mul", &["p", "p"], &["square"], &[])
        .floats("exponents", &[3], &[2.0, 3.0, 0.5])
        .node("Pow", &["square", "exponents"], &["power"], &[])
        .finish("power", 6);
    check(&powers, 2);
    check(
        &through(|builder| {
            let p = parameter(builder, "p", &[2, 3], 5);
            let (low, high) = (builder.scalar(-0.3).unwrap(), builder.scalar(0.4).unwrap());
            builder.node(O::Clip, &[p, low, high], Attributes::none()).unwrap()
        }),
        2,
    );
    check(
        &through(|builder| {
            let a = parameter(builder, "a", &[2, 3], 5);
            let b = parameter(builder, "b", &[3], 6);
            let zero = builder.scalar(0.1).unwrap();
            let condition = builder.binary(O::Greater, a, zero).unwrap();
            builder.node(O::Where, &[condition, a, b], Attributes::none()).unwrap()
        }),
        2,
    );
}

#[test]
fn matrix_products() {
    for flip_left in [false, true] {
        for flip_right in [false, true] {
            check(
                &through(|builder| {
                    let a = parameter(builder, "a", if flip_left { &[3, 2] } else { &[2, 3] }, 5);
                    let b = parameter(builder, "b", if flip_right { &[4, 3] } else { &[3, 4] }, 6);
                    let c = parameter(builder, "c", &[4], 7);
                    let attributes = Attributes::none()
                        .with_int("transA", i64::from(flip_left))
                        .with_int("transB", i64::from(flip_right))
                        .with("alpha", Attribute::Float(0.5))
                        .with("beta", Attribute::Float(2.0));
                    builder.node(O::Gemm, &[a, b, c], attributes).unwrap()
                }),
                2,
            );
        }
    }
    binary(O::MatMul, &[2, 3], &[3, 4]);
    binary(O::MatMul, &[2, 2, 3], &[3, 2]);
    binary(O::MatMul, &[2, 2, 3], &[2, 3, 2]);
    binary(O::MatMul, &[2, 1, 2, 3], &[3, 3, 2]);
    binary(O::MatMul, &[2, 3], &[2, 3, 2]);
}

#[test]
fn softmaxes_and_reductions() {
    for operator in [O::Softmax, O::LogSoftmax] {
        for axis in [-1, 0, 1] {
            check(
                &through(|builder| {
                    let p = parameter(builder, "p", &[2, 3], 5);
                    builder
                        .node(operator, &[p], Attributes::none().with_int("axis", axis))
                        .unwrap()
                }),
                2,
            );
        }
    }
    for operator in [O::ReduceMean, O::ReduceSum, O::ReduceMax] {
        for (axes, keep) in [(&[1][..], true), (&[0, 2], false), (&[0, 1, 2], true)] {
            check(
                &through(|builder| {
                    let p = parameter(builder, "p", &[2, 3, 2], 5);
                    builder.reduce(operator, p, axes, keep).unwrap()
                }),
                2,
            );
        }
    }
}

#[test]
fn rearrangements() {
    check(
        &through(|builder| {
            let a = parameter(builder, "a", &[2, 3, 2], 5);
            let b = parameter(builder, "b", &[2, 1, 2], 6);
            let joined = builder.concat(&[a, b, a], 1).unwrap();
            let turned = builder.transpose(joined, &[2, 0, 1]).unwrap();
            let cut = builder
                .slice(
                    turned,
                    &[1, 2],
                    &[
                        Piece {
                            start: 1,
                            end: 2,
                            step: 1,
                        },
                        Piece {
                            start: 1,
                            end: 6,
                            step: 2,
                        },
                    ],
                )
                .unwrap();
            let padded = builder.pad(cut, &[0, 1, 2], &[1, 0, 0], 0.5).unwrap();
            let flat = builder.reshape(padded, &[3, 2, 5]).unwrap();
            builder.expand(flat, &[2, 3, 2, 5]).unwrap()
        }),
        2,
    );
}

struct Plane {
    shape: [usize; 4],
    kernel: [usize; 4],
    strides: [usize; 2],
    dilations: [usize; 2],
    pads: [usize; 4],
    group: i64,
}

fn convolution(plane: &Plane) {
    check(
        &through(|builder| {
            let x = parameter(builder, "image", &plane.shape, 5);
            let w = parameter(builder, "weight", &plane.kernel, 6);
            let b = parameter(builder, "bias", &plane.kernel[..1], 7);
            let attributes = Attributes::none()
                .with_ints("strides", &plane.strides)
                .with_ints("dilations", &plane.dilations)
                .with_ints("pads", &plane.pads)
                .with_int("group", plane.group);
            builder.node(O::Conv, &[x, w, b], attributes).unwrap()
        }),
        2,
    );
}

#[test]
fn convolutions() {
    let plain = Plane {
        shape: [2, 2, 4, 5],
        kernel: [3, 2, 3, 3],
        strides: [1, 1],
        dilations: [1, 1],
        pads: [1, 1, 1, 1],
        group: 1,
    };
    convolution(&plain);
    convolution(&Plane {
        kernel: [3, 2, 1, 1],
        pads: [0; 4],
        ..plain
    });
    // A stride that leaves a rest behind, pads that differ.
    convolution(&Plane {
        shape: [2, 2, 6, 5],
        strides: [2, 3],
        pads: [0, 1, 1, 0],
        ..plain
    });
    convolution(&Plane {
        shape: [1, 2, 6, 6],
        kernel: [2, 2, 2, 3],
        dilations: [2, 1],
        ..plain
    });
    convolution(&Plane {
        shape: [2, 4, 4, 4],
        kernel: [4, 2, 3, 3],
        strides: [2, 2],
        group: 2,
        ..plain
    });
    convolution(&Plane {
        shape: [2, 3, 4, 4],
        kernel: [3, 1, 3, 3],
        group: 3,
        ..plain
    });
}

fn pooled(operator: O, shape: &[usize], kernel: [usize; 2], strides: [usize; 2], pads: [usize; 4], with_padding: bool) {
    check(
        &through(|builder| {
            let x = parameter(builder, "image", shape, 5);
            let mut attributes = Attributes::none()
                .with_ints("kernel_shape", &kernel)
                .with_ints("strides", &strides)
                .with_ints("pads", &pads);
            if with_padding {
                attributes = attributes.with_int("count_include_pad", 1);
            }
            builder.node(operator, &[x], attributes).unwrap()
        }),
        2,
    );
}

#[test]
fn pools() {
    for operator in [O::MaxPool, O::AveragePool] {
        pooled(operator, &[2, 2, 4, 4], [2, 2], [2, 2], [0; 4], false);
        pooled(operator, &[1, 2, 5, 6], [2, 3], [2, 3], [0; 4], false);
        pooled(operator, &[1, 2, 6, 6], [3, 3], [2, 2], [1, 1, 1, 1], false);
        pooled(operator, &[1, 1, 5, 5], [3, 2], [1, 1], [1, 0, 0, 1], false);
        pooled(operator, &[1, 1, 7, 5], [2, 1], [3, 2], [0; 4], false);
    }
    pooled(O::AveragePool, &[1, 2, 6, 6], [3, 3], [2, 2], [1, 1, 1, 1], true);
    for operator in [O::GlobalAveragePool, O::GlobalMaxPool] {
        check(
            &through(|builder| {
                let x = parameter(builder, "image", &[2, 3, 2, 4], 5);
                builder.unary(operator, x).unwrap()
            }),
            2,
        );
    }
}

#[test]
fn equal_maxima_share_the_gradient() {
    let file = through(|builder| {
        let x = builder
            .named_constant(
                "image",
                Tensor::from_f32(&[1, 1, 2, 2], vec![1.0, 1.0, 0.0, 0.5]).unwrap(),
            )
            .unwrap();
        builder
            .node(O::MaxPool, &[x], Attributes::none().with_ints("kernel_shape", &[2, 2]))
            .unwrap()
    });
    let model = Model::parse(&file, &Limits::default()).unwrap();
    let graph = train(&model, &TrainOptions::new(Optimizer::None, 2)).unwrap().training;
    let gradient = &run(&graph, &feeds(&graph, &model, 2))["grad/image"].values;
    assert_eq!(gradient[0], gradient[1]);
    assert_eq!(gradient[2..], [0.0, 0.0]);
    assert_ne!(gradient[0], 0.0);
}

#[test]
fn batch_normalization() {
    check(
        &through(|builder| {
            let x = parameter(builder, "image", &[2, 3, 2, 2], 5);
            let scale = parameter(builder, "scale", &[3], 6);
            let shift = parameter(builder, "shift", &[3], 7);
            let mean = parameter(builder, "mean", &[3], 8);
            let variance = parameter(builder, "variance", &[3], 9);
            builder
                .node(
                    O::BatchNormalization,
                    &[x, scale, shift, mean, variance],
                    Attributes::none(),
                )
                .unwrap()
        }),
        2,
    );
}

#[test]
fn sample_models() {
    check(&crate::samples::mlp(5, 4, 2, 1).unwrap(), 3);
    check(&crate::samples::logistic(5, 2, 1).unwrap(), 3);
    check(&crate::samples::cnn(16, 2, 2, 1).unwrap(), 3);
    check_form(
        &crate::samples::resnet(48, 1, 2, 8, 1).unwrap(),
        2,
        WeightGradient::Auto,
    );
}
