//! ONNX files: models and graphs of others. What is accepted was written anew, and is accepted again.
#![no_main]

use cloister_fuzz::plant;
use cloister_graph::{EngineGraph, Limits, Model, Optimizer, TrainOptions, samples, train};
use libfuzzer_sys::fuzz_target;

fn limits() -> Limits {
    Limits {
        bytes: 1 << 20,
        elements: 1 << 20,
        ..Limits::default()
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let logistic = samples::logistic(4, 3, 1).unwrap();
    let mlp = samples::mlp(4, 3, 2, 1).unwrap();
    let options = TrainOptions::new(Optimizer::Sgd, 2);
    let trained = train(&samples::parsed(&mlp).unwrap(), &options).unwrap();
    vec![
        logistic,
        mlp,
        trained.training.bytes().to_vec(),
        trained.evaluation.bytes().to_vec(),
    ]
}

fuzz_target!(init: plant("onnx", seeds()), |data: &[u8]| {
    if let Ok(graph) = EngineGraph::load_within(data, &limits()) {
        EngineGraph::load(graph.bytes()).expect("what was written anew is accepted");
    }
    if let Ok(model) = Model::parse(data, &limits()) {
        let _ = (model.inputs(), model.digest());
    }
});
