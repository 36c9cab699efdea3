//! The reference workload's augmentation of a batch: 128 pictures of 32 x 32 through the guest `augment-cifar`, beside the same
//! formulas as plain native loops. `cargo xtask bench transform`.
#![allow(missing_docs, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::process::ExitCode;

use cloister_benches::{Table, guest, timed};
use cloister_data::Batch;
use cloister_sandbox::{CallLimits, Made, Sandbox, SandboxLimits, Transform};
use cloister_tensor::{Dtype, Shape, Tensor, TensorMap};
use criterion::Criterion;

const ROWS: usize = 128;
const SIDE: usize = 32;
const MADE: usize = 24;
const PLANES: usize = 3;

fn main() -> ExitCode {
    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Table::default();
    if let Some(module) = guest("augment-cifar") {
        augmentation(&mut criterion, &mut table, &module);
    }
    criterion.final_summary();
    table.print();
    ExitCode::SUCCESS
}

fn augmentation(criterion: &mut Criterion, table: &mut Table, module: &[u8]) {
    let sandbox = Sandbox::new(SandboxLimits::default()).expect("the sandbox can be set up");
    let made = Made {
        shape: vec![PLANES, MADE, MADE],
        dtype: Dtype::F32,
        classes: None,
    };
    let transform = Transform {
        module: sandbox.load("augment-cifar", module).expect("the guest loads"),
        settings: BTreeMap::new(),
        makes: BTreeMap::from([("x".to_owned(), made)]),
        limits: CallLimits::default(),
    };
    let pixels: Vec<u8> = (0..ROWS * PLANES * SIDE * SIDE)
        .map(|at| (at * 31 % 251) as u8)
        .collect();
    let shape = Shape::new(&[ROWS, PLANES, SIDE, SIDE]).expect("a small shape");
    let x = Tensor::new(Dtype::U8, shape, pixels.clone().into()).expect("as many bytes as the shape says");
    let batch = Batch {
        rows: ROWS,
        tensors: TensorMap::from([("x".to_owned(), x)]),
    };
    let mut seed = 0;
    let ours = || {
        seed += 1;
        timed(|| {
            sandbox
                .transform(&transform, batch.clone(), seed)
                .expect("the guest augments")
        })
    };
    let reference = || timed(|| native(&pixels));
    let mut group = criterion.benchmark_group("transform");
    table.side_by_side(
        &mut group,
        "augmentation of 128 pictures, 32 x 32 to 24 x 24: guest / native loops",
        "hidden by a step of 100 ms",
        ours,
        reference,
    );
    group.finish();
}

/// Window, flip, light, contrast, standardisation, with the same places for all pictures.
fn native(pixels: &[u8]) -> Vec<f32> {
    let mut made = Vec::with_capacity(ROWS * PLANES * MADE * MADE);
    for picture in pixels.chunks_exact(PLANES * SIDE * SIDE) {
        let start = made.len();
        for plane in picture.chunks_exact(SIDE * SIDE) {
            let first = made.len();
            for row in plane.chunks_exact(SIDE).skip(3).take(MADE) {
                made.extend(row[5..5 + MADE].iter().rev().map(|&pixel| f32::from(pixel) + 17.0));
            }
            let plane = &mut made[first..];
            let mean = plane.iter().sum::<f32>() / plane.len() as f32;
            plane.iter_mut().for_each(|pixel| *pixel = (*pixel - mean) * 1.3 + mean);
        }
        let picture = &mut made[start..];
        let count = picture.len() as f32;
        let mean = picture.iter().sum::<f32>() / count;
        let variance = picture.iter().map(|pixel| (pixel - mean) * (pixel - mean)).sum::<f32>() / count;
        let factor = 1.0 / variance.sqrt().max(1.0 / count.sqrt());
        picture.iter_mut().for_each(|pixel| *pixel = (*pixel - mean) * factor);
    }
    made
}
