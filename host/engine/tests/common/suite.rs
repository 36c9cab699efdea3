//! What every engine must do, on a training graph in whatever language it runs.

use bytes::Bytes;
use cloister_engine::{Backend, EngineError};
use cloister_graph::{EngineGraph, Model};
use cloister_tensor::{Dtype, Shape, Tensor};

use super::{BATCH, Training, batch, run};

/// What a run is given.
type Inputs = Vec<(String, Tensor)>;

/// Of a graph whose `x` is f32 [16, 64].
pub fn what_does_not_fit_a_port_is_refused(backend: &dyn Backend, graph: &EngineGraph, model: &Model) {
    let training = Training::new(backend, graph, model, 0.1);
    let good = training.inputs(&batch(graph, 0));
    let mut compiled = training.compiled;
    let mut refused = |change: &dyn Fn(&mut Inputs)| {
        let mut inputs = good.clone();
        change(&mut inputs);
        run(compiled.as_mut(), &inputs, None).unwrap_err()
    };
    let x = good.iter().position(|(name, _)| name == "x").unwrap();
    let transposed = Tensor::zeros(Dtype::F32, Shape::new(&[64, BATCH]).unwrap());
    let error = refused(&|inputs| inputs[x].1 = transposed.clone());
    assert_eq!(error.to_string(), "input `x` is F32 [64, 16]: wanted F32 [16, 64]");
    let integers = Tensor::zeros(Dtype::I32, Shape::new(&[BATCH, 64]).unwrap());
    let error = refused(&|inputs| inputs[x].1 = integers.clone());
    assert!(matches!(error, EngineError::Shape { .. }), "{error}");
    let error = refused(&|inputs| drop(inputs.remove(x)));
    assert_eq!(error.to_string(), "input `x` is missing: wanted F32 [16, 64]");
    let error = refused(&|inputs| inputs.push(inputs[x].clone()));
    assert_eq!(error.to_string(), "input `x` is given twice");
    let error = refused(&|inputs| inputs.push(("y".into(), Tensor::scalar_f32(1.0))));
    assert!(
        error.to_string().starts_with("the graph has no input `y`: it has `x`"),
        "{error}"
    );
    assert!(run(compiled.as_mut(), &good, None).is_ok(), "and it runs on");
}

/// The same bytes each time, wherever inputs lie; no run writes to inputs, or to outputs of earlier ones.
pub fn runs_repeat_bit_by_bit(backend: &dyn Backend, graph: &EngineGraph, model: &Model) {
    let what = backend.name();
    let training = Training::new(backend, graph, model, 0.1);
    let inputs = training.inputs(&batch(graph, 0));
    let bytes = |tensors: &[(String, Tensor)]| -> Vec<Vec<u8>> {
        tensors.iter().map(|(_, tensor)| tensor.bytes().to_vec()).collect()
    };
    let before = bytes(&inputs);
    let mut compiled = training.compiled;
    let first = run(compiled.as_mut(), &inputs, None).unwrap();
    let kept = bytes(&first);
    for _ in 0..5 {
        assert_eq!(run(compiled.as_mut(), &inputs, None).unwrap(), first, "{what}");
    }
    let shifted = |tensor: &Tensor| {
        let bytes = Bytes::from([&[0][..], tensor.bytes()].concat()).slice(1..);
        Tensor::new(tensor.dtype(), tensor.shape().clone(), bytes).unwrap()
    };
    let moved: Vec<(String, Tensor)> = inputs
        .iter()
        .map(|(name, tensor)| (name.clone(), shifted(tensor)))
        .collect();
    assert_eq!(
        run(compiled.as_mut(), &moved, None).unwrap(),
        first,
        "{what}, unaligned"
    );
    // Outputs outlive the graph that made them.
    drop(compiled);
    assert!(bytes(&first) == kept && bytes(&inputs) == before, "{what}");
}

/// Two compiled graphs in two threads compute what each computes alone.
pub fn two_threads_run_side_by_side(backend: &dyn Backend, graph: &EngineGraph, model: &Model) {
    let losses = |seed: u64| {
        let mut training = Training::new(backend, graph, model, 0.05);
        (0..30)
            .map(|_| training.step(&batch(graph, seed)))
            .collect::<Vec<f64>>()
    };
    let alone = [losses(1), losses(2)];
    let together = std::thread::scope(|scope| {
        let threads = [1, 2].map(|seed| scope.spawn(move || losses(seed)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(alone, together, "{}", backend.name());
}

/// Of a graph that puts out half a megabyte or more: a leak of one step in a hundred shows. For a process in which nothing else grows.
pub fn a_thousand_runs_take_no_more_memory_than_a_few(backend: &dyn Backend, graph: &EngineGraph, model: &Model) {
    let resident_bytes = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let mut training = Training::new(backend, graph, model, 0.001);
    let data = batch(graph, 0);
    for _ in 0..50 {
        training.step(&data);
    }
    let before = resident_bytes();
    for _ in 0..1000 {
        training.step(&data);
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "{} grew by {grown} bytes", backend.name());
}
