//! Tests that look inside: every operator against finite differences in f64, and files meant to break the reader.

mod forms;
mod gradients;
mod hostile;
mod interpreter;
mod models;
mod opsets;
mod reach;
mod run;
mod stable;
mod training;
mod windows;
mod zoo;

use cloister_tensor::Dtype;

use crate::builder::Builder;
use crate::ir::ValueId;
use crate::limits::Limits;
use crate::onnx::{self, Batch};

/// Writes a model of one graph: `build` gets the builder and gives the output.
pub(super) fn model(build: impl FnOnce(&mut Builder) -> ValueId) -> Vec<u8> {
    let mut builder = Builder::new(&Limits::default());
    let output = build(&mut builder);
    builder.output("y", output).unwrap();
    onnx::write(&builder.finish(Default::default()).unwrap(), Batch::Fixed)
}

/// Numbers that look random and are the same everywhere, between -1 and 1, no two alike.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f64> {
    zoo::numbers(count, seed).into_iter().map(f64::from).collect()
}

pub(super) fn parameter(builder: &mut Builder, name: &str, shape: &[usize], seed: u64) -> ValueId {
    let values = numbers(shape.iter().product(), seed)
        .into_iter()
        .map(|value| value as f32)
        .collect();
    let tensor = cloister_tensor::Tensor::from_f32(shape, values).unwrap();
    assert_eq!(tensor.dtype(), Dtype::F32);
    builder.named_constant(name, tensor).unwrap()
}
