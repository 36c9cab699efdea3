//! Seconds a step of steps in TorchScript: `step_time LIBTORCH_DIR THREADS COUNT FILE...`; what a step gives is fed to the next one.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement: a panic says where"
)]

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

use cloister_engine::{Backend, CompileOptions};
use cloister_graph::{EngineGraph, Port, PortKind};
use cloister_tensor::{Dtype, Shape, Tensor};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, threads, count, files @ ..] = &arguments[..] else {
        println!("step_time LIBTORCH_DIR THREADS COUNT FILE...");
        return;
    };
    let libtorch = cloister_engine_libtorch::load(Path::new(dir)).unwrap();
    let options = CompileOptions {
        threads: Some(threads.parse::<NonZeroUsize>().unwrap()),
        ..CompileOptions::default()
    };
    for file in files {
        let graph = EngineGraph::load(&std::fs::read(file).unwrap()).unwrap();
        let mut compiled = libtorch.compile(&graph, &options).unwrap();
        let classes = graph.classes().unwrap_or(2);
        let mut fed: BTreeMap<String, Tensor> = graph
            .inputs()
            .iter()
            .map(|port| (port.name.clone(), first(port, classes)))
            .collect();
        let mut times = Vec::new();
        let mut loss = f64::NAN;
        for _ in 0..count.parse::<usize>().unwrap() + 2 {
            let inputs: Vec<(&str, Tensor)> = fed
                .iter()
                .map(|(name, tensor)| (name.as_str(), tensor.clone()))
                .collect();
            let begin = Instant::now();
            let outputs = compiled.run(&inputs, None).unwrap();
            times.push(begin.elapsed().as_secs_f64());
            for (name, tensor) in outputs {
                if name == "loss" {
                    loss = tensor.first_f64().unwrap();
                }
                if let Some(name) = name.strip_prefix("next/") {
                    fed.insert(name.to_owned(), tensor);
                }
            }
        }
        // The first two are for pages and caches.
        let mut times = times.split_off(2);
        times.sort_by(f64::total_cmp);
        let (median, least) = (times[times.len() / 2], times[0]);
        println!(
            "{file}: median {median:.3} s, least {least:.3} s of {} steps; loss {loss:.3}",
            times.len()
        );
    }
}

/// What a port is fed at first: noise of a size that networks start with.
fn first(port: &Port, classes: usize) -> Tensor {
    let count: usize = port.shape.iter().product();
    let fan: usize = port.shape.iter().skip(1).product();
    let mut state = count as u32 + 1;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut values = |scale: f32, offset: f32| {
        let values = (0..count).map(|_| offset + scale * noise()).collect();
        Tensor::from_f32(&port.shape, values).unwrap()
    };
    match &port.kind {
        PortKind::Data(_) => values(1.0, 0.0),
        PortKind::Labels => {
            Tensor::from_i64(&port.shape, (0..count).map(|row| (row * 7 % classes) as i64).collect()).unwrap()
        }
        PortKind::Parameter(_) if port.shape.len() > 1 => values((6.0 / fan as f32).sqrt(), 0.0),
        PortKind::Parameter(name) if name.ends_with("weight") => values(0.0, 1.0),
        PortKind::Statistic(name) if name.ends_with("var") => values(0.0, 1.0),
        PortKind::LearningRate => Tensor::scalar_f32(0.01),
        PortKind::Step => Tensor::scalar_i64(1),
        _ => Tensor::zeros(Dtype::F32, Shape::new(&port.shape).unwrap()),
    }
}
