//! Whole models: optimizers against their definitions, running statistics, evaluation, export, errors.

use std::collections::BTreeMap;

use cloister_tensor::{Dtype, Tensor};

use super::gradients::feeds;
use super::interpreter::Array;
use super::run::run;
use super::{model, parameter};
use crate::ir::{Attributes, Operator as O};
use crate::{
    EngineGraph, GraphError, Limits, Model, Optimizer, PortKind, TrainOptions, export_forward, samples, train,
};

fn parsed(file: &[u8]) -> Model {
    Model::parse(file, &Limits::default()).unwrap()
}

fn names(ports: &[crate::Port]) -> Vec<&str> {
    ports.iter().map(|port| port.name.as_str()).collect()
}

fn close(seen: f64, wanted: f64) {
    assert!(
        (seen - wanted).abs() <= 1e-6 * wanted.abs().max(1e-3),
        "{seen} was seen, {wanted} is wanted"
    );
}

/// What the training's `steps` gives for this optimizer.
fn steps(optimizer: Optimizer, weight_decay: f64, count: usize) -> Vec<(f64, f64)> {
    let mut options = super::training::options(optimizer);
    options.weight_decay = weight_decay;
    super::training::steps(&options, count)
}

const RATE: f64 = 0.1;

#[test]
fn sgd_is_as_pytorch_defines_it() {
    let seen = steps(Optimizer::Sgd, 0.0, 2);
    close(seen[1].0, seen[0].0 - RATE * seen[0].1);
    let seen = steps(Optimizer::Sgd, 0.5, 2);
    close(seen[2].0, seen[1].0 - RATE * (seen[1].1 + 0.5 * seen[1].0));
}

#[test]
fn momentum_is_as_pytorch_defines_it() {
    let seen = steps(Optimizer::Momentum { momentum: 0.9 }, 0.0, 3);
    let mut buffer = 0.0;
    for at in 0..3 {
        buffer = 0.9 * buffer + seen[at].1;
        close(seen[at + 1].0, seen[at].0 - RATE * buffer);
    }
}

#[test]
fn adam_is_as_pytorch_defines_it() {
    let seen = steps(
        Optimizer::Adam {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        },
        0.0,
        4,
    );
    let (mut m, mut v) = (0.0, 0.0);
    for at in 0..4 {
        let step = at as i32 + 1;
        m = 0.9 * m + 0.1 * seen[at].1;
        v = 0.999 * v + 0.001 * seen[at].1 * seen[at].1;
        let (first, second) = (1.0 - 0.9f64.powi(step), 1.0 - 0.999f64.powi(step));
        let denominator = v.sqrt() / second.sqrt() + 1e-8;
        close(seen[at + 1].0, seen[at].0 - RATE / first * m / denominator);
    }
}

#[test]
fn the_interface_is_the_documented_one() {
    let model = parsed(&samples::mlp(64, 32, 10, 1).unwrap());
    let graphs = train(&model, &TrainOptions::new(Optimizer::Momentum { momentum: 0.9 }, 32)).unwrap();
    let weights = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"];
    let states = weights.map(|name| format!("state/momentum/{name}"));
    let mut wanted = vec!["x", "labels"];
    wanted.extend(weights);
    assert_eq!(names(graphs.evaluation.inputs()), wanted);
    wanted.extend(["learning_rate", "step"]);
    wanted.extend(states.iter().map(String::as_str));
    assert_eq!(names(graphs.training.inputs()), wanted);
    assert_eq!(names(graphs.evaluation.outputs()), ["loss", "correct", "logits"]);
    let outputs = names(graphs.training.outputs());
    assert_eq!(outputs[..2], ["loss", "next/fc1.weight"]);
    assert!(outputs.contains(&"next/state/momentum/fc2.bias"));
    assert!(!outputs.iter().any(|name| name.starts_with("grad/")));
    let port = |name: &str| {
        graphs
            .training
            .inputs()
            .iter()
            .find(|port| port.name == name)
            .unwrap()
            .clone()
    };
    assert_eq!((port("labels").dtype, port("labels").shape), (Dtype::I64, vec![32]));
    assert_eq!((port("step").dtype, port("step").shape), (Dtype::I64, vec![1]));
    assert_eq!(port("x").shape, [32, 64]);
    assert_eq!(graphs.training.outputs()[0].shape, [1]);
    assert_eq!(graphs.training.metadata()["cloister.momentum"], "0.9");
    assert_eq!(graphs.training.digest(), graphs.training.source_digest());
}

#[test]
fn running_statistics_are_as_pytorch_defines_them() {
    let model = parsed(&samples::cnn(16, 1, 2, 3).unwrap());
    let graph = train(&model, &TrainOptions::new(Optimizer::None, 2)).unwrap().training;
    let mut feeds = feeds(&graph, &model, 2);
    feeds.get_mut("bn1.running_mean").unwrap().values[0] = 0.5;
    let outputs = run(&graph, &feeds);
    // The first convolution, by hand.
    let (x, w) = (&feeds["x"].values, &feeds["conv1.weight"].values);
    let mut seen = Vec::new();
    for (image, y, x0) in (0..2).flat_map(|n| (0..16).map(move |at| (n, at / 4, at % 4))) {
        let mut sum = 0.0;
        for (ky, kx) in (0..9).map(|at| (at / 3, at % 3)) {
            let (row, column) = (y + ky, x0 + kx);
            if (1..5).contains(&row) && (1..5).contains(&column) {
                sum += x[image * 16 + (row - 1) * 4 + column - 1] * w[ky * 3 + kx];
            }
        }
        seen.push(sum);
    }
    let mean = seen.iter().sum::<f64>() / 32.0;
    let unbiased = seen.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 31.0;
    close(outputs["next/bn1.running_mean"].values[0], 0.9 * 0.5 + 0.1 * mean);
    close(outputs["next/bn1.running_var"].values[0], 0.9 + 0.1 * unbiased);
}

#[test]
fn evaluation_counts_hits_and_uses_running_statistics() {
    let model = parsed(&samples::cnn(16, 2, 3, 3).unwrap());
    let graph = train(&model, &TrainOptions::new(Optimizer::Sgd, 5)).unwrap().evaluation;
    let feeds = feeds(&graph, &model, 3);
    let outputs = run(&graph, &feeds);
    let logits = &outputs["logits"];
    let (mut hits, mut loss) = (0, 0.0);
    for row in 0..5 {
        let row_logits = &logits.values[row * 3..row * 3 + 3];
        let label = feeds["labels"].values[row] as usize;
        hits += usize::from(row_logits.iter().all(|&one| one <= row_logits[label]));
        loss += row_logits.iter().map(|value| value.exp()).sum::<f64>().ln() - row_logits[label];
    }
    assert_eq!(outputs["correct"].values, [hits as f64]);
    close(outputs["loss"].values[0], loss / 5.0);
}

#[test]
fn batch_statistics_of_one_value_are_refused() {
    let file = model(|builder| {
        let x = builder.input("x", Dtype::F32, &[1, 2]).unwrap();
        let operands: Vec<_> = ["scale", "shift", "mean", "variance"]
            .into_iter()
            .map(|name| parameter(builder, name, &[2], 5))
            .collect();
        let operands = [&[x], &operands[..]].concat();
        builder
            .node(O::BatchNormalization, &operands, Attributes::none())
            .unwrap()
    });
    let error = train(&parsed(&file), &TrainOptions::new(Optimizer::Sgd, 1))
        .unwrap_err()
        .to_string();
    assert!(error.contains("larger batch"), "{error}");
}

#[test]
fn a_label_without_a_class_is_not_silent() {
    let model = parsed(&samples::logistic(3, 2, 1).unwrap());
    let graph = train(&model, &TrainOptions::new(Optimizer::None, 2)).unwrap().training;
    let mut feeds = feeds(&graph, &model, 2);
    feeds.insert("labels".to_owned(), Array::new(&[2], vec![0.0, 2.0]));
    let outputs = run(&graph, &feeds);
    assert!(outputs["loss"].values[0].is_nan());
    assert!(
        outputs["grad/linear.weight"]
            .values
            .iter()
            .all(|value| !value.is_finite())
    );
}

#[test]
fn large_logits_stay_finite() {
    let model = parsed(&samples::logistic(1, 2, 1).unwrap());
    let graph = train(&model, &TrainOptions::new(Optimizer::None, 1)).unwrap().training;
    let mut feeds = feeds(&graph, &model, 2);
    feeds.insert("linear.bias".to_owned(), Array::new(&[2], vec![5e3, -5e3]));
    feeds.insert("labels".to_owned(), Array::new(&[1], vec![1.0]));
    let outputs = run(&graph, &feeds);
    assert!((outputs["loss"].values[0] - 1e4).abs() < 10.0);
}

#[test]
fn frozen_parameters_stay_inputs_and_have_no_next() {
    let model = parsed(&samples::mlp(4, 3, 2, 1).unwrap());
    let mut options = TrainOptions::new(Optimizer::Momentum { momentum: 0.9 }, 2);
    options.freeze = vec!["fc1.*".to_owned()];
    let graph = train(&model, &options).unwrap().training;
    assert!(names(graph.inputs()).contains(&"fc1.weight"));
    assert!(!names(graph.inputs()).contains(&"state/momentum/fc1.weight"));
    assert!(!names(graph.outputs()).contains(&"next/fc1.weight"));
    options.freeze = vec!["fc3.weight".to_owned()];
    let error = train(&model, &options).unwrap_err().to_string();
    assert!(error.contains("--freeze") && error.contains("fc1.weight"), "{error}");
    options.freeze = vec!["*".to_owned()];
    assert!(train(&model, &options).is_err());
}

#[test]
fn exported_models_give_the_logits_of_the_evaluation_for_any_batch() {
    for file in [samples::mlp(16, 3, 2, 1).unwrap(), samples::cnn(16, 2, 2, 1).unwrap()] {
        let model = parsed(&file);
        let graph = train(&model, &TrainOptions::new(Optimizer::Sgd, 4)).unwrap().evaluation;
        let exported = export_forward(&graph, &model.initial_weights()).unwrap();
        let forward = parsed(&exported);
        assert_eq!(forward.outputs(), ["logits"]);
        assert_eq!(forward.inputs()[0].dims[0], None, "the batch is open");
        let feeds = feeds(&graph, &model, 2);
        let wanted = run(&graph, &feeds)["logits"].clone();
        let data = BTreeMap::from([("x".to_owned(), feeds["x"].clone())]);
        let seen = run(&forward.at_batch(4).unwrap(), &data)["logits"].clone();
        for (seen, wanted) in seen.values.iter().zip(&wanted.values) {
            close(*seen, *wanted);
        }
        assert_eq!(forward.at_batch(7).unwrap().outputs()[0].shape, [7, 2]);
        // A missing weight and one of another shape.
        let mut weights = model.initial_weights();
        let name = weights.keys().next().unwrap().clone();
        weights.insert(name.clone(), Tensor::from_f32(&[1], vec![0.0]).unwrap());
        assert!(
            export_forward(&graph, &weights)
                .unwrap_err()
                .to_string()
                .contains(&name)
        );
        weights.remove(&name);
        assert!(matches!(export_forward(&graph, &weights), Err(GraphError::Weights(_))));
    }
}

#[test]
fn the_residual_network_is_the_one_of_the_reference_workload() {
    let model = parsed(&samples::resnet(3 * 24 * 24, 16, 10, 56, 1).unwrap());
    let count: usize = model
        .parameters()
        .iter()
        .map(|(_, dims)| dims.iter().product::<usize>())
        .sum();
    assert_eq!(count, 855_834);
    let graphs = train(&model, &TrainOptions::new(Optimizer::Momentum { momentum: 0.9 }, 4)).unwrap();
    assert_eq!(graphs.evaluation.outputs()[2].shape, [4, 10]);
    for (inputs, depth, option) in [(3072, 57, "--depth"), (3072, 2, "--depth"), (3071, 56, "--inputs")] {
        let error = samples::resnet(inputs, 16, 10, depth, 1).unwrap_err().to_string();
        assert!(error.contains(option), "{error}");
    }
}

#[test]
fn bottlenecks_are_those_of_resnet_50() {
    let model = parsed(&samples::bottleneck(3072, 64, 1000, 50, 1).unwrap());
    let count: usize = model
        .parameters()
        .iter()
        .map(|(_, dims)| dims.iter().product::<usize>())
        .sum();
    assert_eq!(count, 25_557_032);
    for (inputs, depth, option) in [
        (3072, 56, "--depth"),
        (3 * 24 * 24, 50, "--inputs"),
        (4096, 50, "--inputs"),
    ] {
        let error = samples::bottleneck(inputs, 64, 10, depth, 1).unwrap_err().to_string();
        assert!(error.contains(option), "{error}");
    }
}

#[test]
fn an_encoder_takes_the_lines_of_a_picture() {
    let model = parsed(&samples::encoder(64, 32, 10, 2, 1).unwrap());
    let count: usize = model
        .parameters()
        .iter()
        .map(|(_, dims)| dims.iter().product::<usize>())
        .sum();
    assert_eq!(count, 26_346, "and no constant among them");
    let graphs = train(&model, &TrainOptions::new(Optimizer::Sgd, 4)).unwrap();
    let x = graphs.evaluation.inputs().iter().find(|port| port.name == "x").unwrap();
    assert_eq!(x.shape, [4, 8, 8]);
    assert_eq!(graphs.evaluation.outputs()[2].shape, [4, 10]);
    for (inputs, hidden, layers, option) in [
        (63, 32, 2, "--inputs"),
        (64, 40, 2, "--hidden"),
        (64, 32, 65, "--depth"),
    ] {
        let error = samples::encoder(inputs, hidden, 10, layers, 1).unwrap_err().to_string();
        assert!(error.contains(option), "{error}");
    }
}

#[test]
fn a_scalar_parameter_passes_as_one_element() {
    let file = model(|builder| {
        let x = builder.input("x", Dtype::F32, &[2, 2]).unwrap();
        let p = parameter(builder, "temperature", &[], 5);
        builder.mul(x, p).unwrap()
    });
    let model = parsed(&file);
    assert_eq!(model.initial_weights()["temperature"].shape().dims(), [1]);
    let graph = train(&model, &TrainOptions::new(Optimizer::Sgd, 2)).unwrap().training;
    assert!(
        graph
            .outputs()
            .iter()
            .any(|port| port.name == "next/temperature" && port.shape == [1])
    );
    super::gradients::check(&file, 2);
}

#[test]
fn errors_name_the_node_and_where_it_stands() {
    let file = model(|builder| {
        let x = builder.input("x", Dtype::F32, &[2, 2]).unwrap();
        let table = parameter(builder, "table", &[2, 2], 5);
        let picks = builder.cast(x, Dtype::I64).unwrap();
        let ones = builder
            .constant(Tensor::from_f32(&[2, 2], vec![1.0; 4]).unwrap())
            .unwrap();
        builder
            .node(O::ScatterElements, &[table, picks, ones], Attributes::none())
            .unwrap()
    });
    let error = train(&parsed(&file), &TrainOptions::new(Optimizer::Sgd, 2))
        .unwrap_err()
        .to_string();
    assert!(error.contains("node 1 (ScatterElements"), "{error}");
    // The logits have another number of rows than the batch.
    let fixed = model(|builder| {
        let x = builder.input("x", Dtype::F32, &[1, 4]).unwrap();
        let w = parameter(builder, "w", &[4, 2], 5);
        builder.binary(O::MatMul, x, w).unwrap()
    });
    let error = train(&parsed(&fixed), &TrainOptions::new(Optimizer::Sgd, 8))
        .unwrap_err()
        .to_string();
    assert!(error.contains("[8, classes]"), "{error}");
}

#[test]
fn ports_of_a_training_graph_cannot_clash_with_the_models() {
    let file = model(|builder| {
        let x = builder.input("labels", Dtype::F32, &[2, 4]).unwrap();
        let w = parameter(builder, "w", &[4, 2], 5);
        builder.binary(O::MatMul, x, w).unwrap()
    });
    let error = train(&parsed(&file), &TrainOptions::new(Optimizer::Sgd, 2))
        .unwrap_err()
        .to_string();
    assert!(error.contains("'labels'"), "{error}");
}

#[test]
fn typed_ports_survive_the_file_and_lies_about_them_do_not() {
    let model = parsed(&samples::cnn(16, 2, 2, 1).unwrap());
    let graph = train(
        &model,
        &TrainOptions::new(
            Optimizer::Adam {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
            },
            4,
        ),
    )
    .unwrap();
    let loaded = EngineGraph::load(graph.training.bytes()).unwrap();
    assert_eq!(loaded.inputs(), graph.training.inputs());
    assert_eq!(loaded.outputs(), graph.training.outputs());
    assert!(
        loaded
            .outputs()
            .iter()
            .any(|port| port.kind == PortKind::NextStatistic("bn2.running_var".to_owned()))
    );
    let mut lying = (*graph.training.graph).clone();
    let kinds = lying.metadata["cloister.inputs"].replacen("data", "parameter", 1);
    lying
        .metadata
        .insert("cloister.inputs".to_owned(), kinds.replacen("labels", "data", 1));
    let reread = EngineGraph::load(&crate::onnx::write(&lying, crate::onnx::Batch::Fixed)).unwrap();
    assert_ne!(
        reread.digest(),
        graph.training.digest(),
        "a policy names the digest, so another typing is another graph"
    );
    let swapped = kinds.replacen("learning-rate", "step", 1);
    lying.metadata.insert("cloister.inputs".to_owned(), swapped);
    assert!(EngineGraph::load(&crate::onnx::write(&lying, crate::onnx::Batch::Fixed)).is_err());
    assert!(train(&parsed(graph.training.bytes()), &TrainOptions::new(Optimizer::Sgd, 4)).is_err());
}
