//! The gradients of a convolutional network, as each engine computes them, against finite differences of the same network written
//! out in f64: convolution, batch normalisation by the batch, rectifier, max pooling, a linear layer.
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::collections::BTreeMap;

use cloister_graph::{Optimizer, samples};
use cloister_tensor::{Tensor, TensorMap};

use common::{Training, backends, batch, run, trained};

const ROWS: usize = 4;
const SIDE: usize = 4;
const HIDDEN: usize = 2;
const CLASSES: usize = 3;
/// Small beside the distance to any kink of rectifier and pooling, large beside f64's rounding.
const STEP: f64 = 1e-6;

type Weights = BTreeMap<String, Vec<f64>>;

/// Square maps: rows, then channels, then pixels.
struct Maps {
    channels: usize,
    side: usize,
    values: Vec<f64>,
}

impl Maps {
    fn at(&self, row: usize, channel: usize, y: usize, x: usize) -> f64 {
        self.values[((row * self.channels + channel) * self.side + y) * self.side + x]
    }

    fn of(channels: usize, side: usize, value: impl Fn(usize, usize, usize, usize) -> f64) -> Self {
        let mut values = Vec::new();
        for row in 0..ROWS {
            for channel in 0..channels {
                for y in 0..side {
                    for x in 0..side {
                        values.push(value(row, channel, y, x));
                    }
                }
            }
        }
        Self { channels, side, values }
    }

    /// 3 by 3, one pixel of zeros around.
    fn convolved(&self, weight: &[f64]) -> Self {
        let side = self.side;
        Self::of(weight.len() / (9 * self.channels), side, |row, out, y, x| {
            let mut sum = 0.0;
            for channel in 0..self.channels {
                for (dy, dx) in (0..9).map(|at| (at / 3, at % 3)) {
                    if (1..=side).contains(&(y + dy)) && (1..=side).contains(&(x + dx)) {
                        let of = weight[((out * self.channels + channel) * 3 + dy) * 3 + dx];
                        sum += of * self.at(row, channel, y + dy - 1, x + dx - 1);
                    }
                }
            }
            sum
        })
    }

    /// By mean and variance (over the count, not one less) of the batch.
    fn normalised(&self, scale: &[f64], shift: &[f64]) -> Self {
        let pixels = |channel: usize| {
            let all = (0..ROWS * self.side * self.side).map(move |at| (at / (self.side * self.side), at));
            all.map(move |(row, at)| self.at(row, channel, at / self.side % self.side, at % self.side))
        };
        let count = (ROWS * self.side * self.side) as f64;
        let moments: Vec<(f64, f64)> = (0..self.channels)
            .map(|channel| {
                let mean = pixels(channel).sum::<f64>() / count;
                let variance = pixels(channel).map(|value| (value - mean).powi(2)).sum::<f64>() / count;
                (mean, (variance + f64::from(1e-5_f32)).sqrt())
            })
            .collect();
        Self::of(self.channels, self.side, |row, channel, y, x| {
            let (mean, deviation) = moments[channel];
            (self.at(row, channel, y, x) - mean) / deviation * scale[channel] + shift[channel]
        })
    }

    fn rectified_and_pooled(&self) -> Self {
        Self::of(self.channels, self.side / 2, |row, channel, y, x| {
            let corners = (0..4).map(|at| self.at(row, channel, 2 * y + at / 2, 2 * x + at % 2));
            corners.fold(0.0, f64::max)
        })
    }
}

fn loss(weights: &Weights, x: &[f64], labels: &[i64]) -> f64 {
    let mut maps = Maps {
        channels: 1,
        side: SIDE,
        values: x.to_vec(),
    };
    for number in ["1", "2"] {
        maps = maps
            .convolved(&weights[&format!("conv{number}.weight")])
            .normalised(
                &weights[&format!("bn{number}.weight")],
                &weights[&format!("bn{number}.bias")],
            )
            .rectified_and_pooled();
    }
    let features = maps.values.len() / ROWS;
    let of_row = |(row, &label): (&[f64], &i64)| {
        let logits: Vec<f64> = weights["fc.weight"]
            .chunks(features)
            .zip(&weights["fc.bias"])
            .map(|(weight, bias)| weight.iter().zip(row).map(|(w, x)| w * x).sum::<f64>() + bias)
            .collect();
        logits.iter().map(|logit| logit.exp()).sum::<f64>().ln() - logits[label as usize]
    };
    maps.values.chunks(features).zip(labels).map(of_row).sum::<f64>() / ROWS as f64
}

#[test]
fn a_cnns_gradients_are_those_of_finite_differences_on_every_engine() {
    let model = samples::parsed(&samples::cnn(SIDE * SIDE, HIDDEN, CLASSES, 11).unwrap()).unwrap();
    let graph = trained(&model, Optimizer::None, ROWS, true).training;
    let labels: Vec<i64> = vec![0, 2, 1, 2];
    let data = TensorMap::from([
        ("x".to_owned(), batch(&graph, 5)["x"].clone()),
        ("labels".to_owned(), Tensor::from_i64(&[ROWS], labels.clone()).unwrap()),
    ]);
    let x = data["x"].to_f64_vec();
    let initial = model.initial_weights();
    let start: Weights = initial
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.to_f64_vec()))
        .collect();
    for backend in backends() {
        let training = Training::new(backend.as_ref(), &graph, &model, 0.0);
        let inputs = training.inputs(&data);
        let mut compiled = training.compiled;
        let outputs: TensorMap = run(compiled.as_mut(), &inputs, None).unwrap().into_iter().collect();
        let seen = outputs["loss"].first_f64().unwrap();
        assert!(
            (seen - loss(&start, &x, &labels)).abs() < 1e-5,
            "{}: loss {seen}",
            backend.name()
        );
        let mut compared = 0;
        for (name, _) in model.parameters() {
            let gradient = outputs[&format!("grad/{name}")].to_f64_vec();
            let scale = gradient.iter().fold(0.01, |most: f64, value| most.max(value.abs()));
            for (element, seen) in gradient.iter().enumerate() {
                let difference = |by: f64| {
                    let mut moved = start.clone();
                    moved.get_mut(name).unwrap()[element] += by;
                    loss(&moved, &x, &labels)
                };
                let wanted = (difference(STEP) - difference(-STEP)) / (2.0 * STEP);
                assert!(
                    (seen - wanted).abs() < 1e-4 * scale,
                    "{} {name}[{element}]: {seen}, by differences {wanted}",
                    backend.name()
                );
                compared += 1;
            }
        }
        // Two convolutions, two normalisations with scale and shift, the linear layer.
        assert_eq!(
            compared,
            9 * 2 + 2 * 2 + 9 * 2 * 4 + 2 * 4 + 4 * 3 + 3,
            "{}",
            backend.name()
        );
    }
}
