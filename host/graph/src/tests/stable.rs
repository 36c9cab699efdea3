//! The same input and options give the same bytes.

use crate::{EngineGraph, Limits, Model, Optimizer, TrainOptions, samples, train};

#[test]
fn same_model_and_options_same_bytes() {
    let file = samples::cnn(64, 4, 10, 7).unwrap();
    assert_eq!(file, samples::cnn(64, 4, 10, 7).unwrap());
    assert_ne!(file, samples::cnn(64, 4, 10, 8).unwrap());
    let options = TrainOptions::new(Optimizer::Momentum { momentum: 0.9 }, 32);
    let make = || train(&Model::parse(&file, &Limits::default()).unwrap(), &options).unwrap();
    let (first, second) = (make(), make());
    assert_eq!(first.training.bytes(), second.training.bytes());
    assert_eq!(first.evaluation.bytes(), second.evaluation.bytes());
}

#[test]
fn writing_what_was_read_changes_nothing() {
    for file in [
        samples::logistic(4, 2, 1).unwrap(),
        samples::mlp(4, 3, 2, 1).unwrap(),
        samples::cnn(16, 2, 2, 1).unwrap(),
    ] {
        let forward = Model::parse(&file, &Limits::default()).unwrap().at_batch(3).unwrap();
        let again = EngineGraph::load(forward.bytes()).unwrap();
        assert_eq!(forward.bytes(), again.bytes());
        assert_eq!(forward.digest(), again.source_digest());
    }
}
