//! What training can be told: losses, optimizers, decay, clipping, dropout, each against its definition.

use std::collections::BTreeMap;

use cloister_tensor::{Dtype, Tensor};

use super::gradients::feeds;
use super::interpreter::Array;
use super::run::run;
use super::{model, parameter};
use crate::ir::{Attributes, Operator as O};
use crate::{DropRatio, EngineGraph, Loss, Model, Optimizer, PortKind, TrainOptions, samples, train};

fn close(seen: f64, wanted: f64) {
    assert!(
        (seen - wanted).abs() <= 2e-6 * wanted.abs().max(1e-2),
        "{seen} was seen, {wanted} is wanted"
    );
}

fn labels_of(graph: &EngineGraph) -> crate::Port {
    let port = graph.inputs().iter().find(|port| port.kind == PortKind::Labels);
    port.unwrap().clone()
}

/// An MLP with a loss on soft labels, and values for all of its inputs.
fn with_loss(loss: Loss) -> (EngineGraph, EngineGraph, BTreeMap<String, Array>) {
    let model = samples::parsed(&samples::mlp(4, 3, 2, 9).unwrap()).unwrap();
    let mut options = TrainOptions::new(Optimizer::None, 3);
    options.loss = loss;
    let graphs = train(&model, &options).unwrap();
    let mut feeds = feeds(&graphs.training, &model, 2);
    if loss != Loss::SoftmaxCrossEntropy {
        let port = labels_of(&graphs.training);
        assert_eq!((port.dtype, &port.shape[..]), (Dtype::F32, &[3, 2][..]));
        let shares = vec![0.9, 0.1, 0.25, 0.75, 0.0, 1.0];
        feeds.insert("labels".to_owned(), Array::new(&[3, 2], shares));
    }
    (graphs.training, graphs.evaluation, feeds)
}

#[test]
fn every_loss_is_as_pytorch_defines_it_and_so_is_its_gradient() {
    for &loss in Loss::ALL {
        assert_eq!(Loss::from_name(loss.name()), Some(loss));
        let (training, evaluation, mut feeds) = with_loss(loss);
        let logits = run(&evaluation, &feeds)["logits"].values.clone();
        let labels = feeds["labels"].values.clone();
        let per_row = |row: usize| {
            let (x, t) = (&logits[row * 2..row * 2 + 2], &labels);
            let log_total = x.iter().map(|value| value.exp()).sum::<f64>().ln();
            let sigmoid = |value: f64| 1.0 / (1.0 + (-value).exp());
            let both = |of: &dyn Fn(f64, f64) -> f64| of(x[0], t[row * 2]) + of(x[1], t[row * 2 + 1]);
            match loss {
                Loss::SoftmaxCrossEntropy => log_total - x[t[row] as usize],
                Loss::SoftCrossEntropy => both(&|x, t| t * (log_total - x)),
                Loss::MeanSquaredError => both(&|x, t| (x - t).powi(2)) / 2.0,
                Loss::BinaryCrossEntropy => {
                    both(&|x, t| -t * sigmoid(x).ln() - (1.0 - t) * (1.0 - sigmoid(x)).ln()) / 2.0
                }
            }
        };
        close(
            run(&training, &feeds)["loss"].values[0],
            (0..3).map(per_row).sum::<f64>() / 3.0,
        );
        close(
            run(&evaluation, &feeds)["loss"].values[0],
            (0..3).map(per_row).sum::<f64>() / 3.0,
        );
        let gradient = run(&training, &feeds)["grad/fc2.bias"].values.clone();
        for at in 0..2 {
            let mut loss = |by: f64| {
                feeds.get_mut("fc2.bias").unwrap().values[at] += by;
                let loss = run(&training, &feeds)["loss"].values[0];
                feeds.get_mut("fc2.bias").unwrap().values[at] -= by;
                loss
            };
            close(gradient[at], (loss(1e-5) - loss(-1e-5)) / 2e-5);
        }
    }
}

#[test]
fn hits_are_counted_by_what_the_labels_mean() {
    let wanted = [
        (Loss::SoftCrossEntropy, vec![0.9, 0.1, 0.25, 0.75, 0.0, 1.0], Some(2.0)),
        (Loss::BinaryCrossEntropy, vec![1.0, 0.0, 1.0, 1.0, 1.0, 0.0], Some(2.0)),
        (Loss::MeanSquaredError, vec![0.0; 6], None),
    ];
    for (loss, labels, hits) in wanted {
        let (_, evaluation, mut feeds) = with_loss(loss);
        // Whatever comes in, the logits are (1, -1).
        for (name, value) in &mut feeds {
            if name.starts_with("fc2") {
                value.values.fill(0.0);
            }
        }
        feeds.insert("fc2.bias".to_owned(), Array::new(&[2], vec![1.0, -1.0]));
        feeds.insert("labels".to_owned(), Array::new(&[3, 2], labels));
        let seen = run(&evaluation, &feeds).get("correct").map(|correct| correct.values[0]);
        let hits = match loss {
            // The first row alone has its largest share where the largest logit is.
            Loss::SoftCrossEntropy => Some(1.0),
            _ => hits,
        };
        assert_eq!(seen, hits, "{loss:?}");
    }
}

#[test]
fn a_loss_over_outputs_of_any_rank_and_its_limits() {
    let file = model(|builder| {
        let x = builder.input("x", Dtype::F32, &[3, 1]).unwrap();
        let w = parameter(builder, "w", &[1, 4], 5);
        let rows = builder.mul(x, w).unwrap();
        builder.reshape(rows, &[3, 2, 2]).unwrap()
    });
    let model = samples::parsed(&file).unwrap();
    let mut options = TrainOptions::new(Optimizer::Sgd, 3);
    options.loss = Loss::MeanSquaredError;
    let graphs = train(&model, &options).unwrap();
    assert_eq!(labels_of(&graphs.training).shape, [3, 2, 2]);
    assert!(
        graphs
            .evaluation
            .outputs()
            .iter()
            .all(|port| port.kind != PortKind::Correct)
    );
    assert_eq!(
        EngineGraph::load(graphs.training.bytes()).unwrap().inputs(),
        graphs.training.inputs()
    );
    for loss in [Loss::SoftmaxCrossEntropy, Loss::SoftCrossEntropy] {
        options.loss = loss;
        let error = train(&model, &options).unwrap_err().to_string();
        assert!(error.contains(loss.name()) && error.contains("[3, classes]"), "{error}");
    }
}

/// Runs `count` steps, feeding what comes out: parameter `fc2.bias[0]` and its gradient at each, and last what it became.
pub(super) fn steps(options: &TrainOptions, count: usize) -> Vec<(f64, f64)> {
    let model = samples::parsed(&samples::mlp(4, 3, 2, 9).unwrap()).unwrap();
    let graph = train(&model, options).unwrap().training;
    let mut feeds = feeds(&graph, &model, 2);
    feeds.get_mut("fc2.bias").unwrap().values[0] = 0.25;
    let mut seen = Vec::new();
    for step in 1..=count {
        feeds.insert("step".to_owned(), Array::new(&[1], vec![step as f64]));
        let outputs = run(&graph, &feeds);
        seen.push((feeds["fc2.bias"].values[0], outputs["grad/fc2.bias"].values[0]));
        for (name, value) in outputs {
            if let Some(name) = name.strip_prefix("next/") {
                feeds.insert(name.to_owned(), value);
            }
        }
    }
    seen.push((feeds["fc2.bias"].values[0], 0.0));
    seen
}

pub(super) fn options(optimizer: Optimizer) -> TrainOptions {
    let mut options = TrainOptions::new(optimizer, 3);
    options.gradients = true;
    options
}

const RATE: f64 = 0.1;

#[test]
fn nesterov_is_as_pytorch_defines_it() {
    let mut options = options(Optimizer::Nesterov { momentum: 0.8 });
    options.weight_decay = 0.5;
    let seen = steps(&options, 3);
    let mut buffer = 0.0;
    for at in 0..3 {
        let gradient = seen[at].1 + 0.5 * seen[at].0;
        buffer = 0.8 * buffer + gradient;
        close(seen[at + 1].0, seen[at].0 - RATE * (gradient + 0.8 * buffer));
    }
}

#[test]
fn adamw_is_as_pytorch_defines_it() {
    let mut options = options(Optimizer::AdamW {
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
    });
    options.weight_decay = 0.5;
    let seen = steps(&options, 3);
    let (mut m, mut v) = (0.0, 0.0);
    for at in 0..3 {
        let step = at as i32 + 1;
        m = 0.9 * m + 0.1 * seen[at].1;
        v = 0.99 * v + 0.01 * seen[at].1 * seen[at].1;
        let (first, second) = (1.0 - 0.9f64.powi(step), 1.0 - 0.99f64.powi(step));
        let decayed = seen[at].0 * (1.0 - RATE * 0.5);
        let denominator = v.sqrt() / second.sqrt() + 1e-8;
        close(seen[at + 1].0, decayed - RATE / first * m / denominator);
    }
}

#[test]
fn a_proximal_term_pulls_parameters_back_to_where_the_round_began() {
    let model = samples::parsed(&samples::mlp(4, 3, 2, 9).unwrap()).unwrap();
    let mut options = options(Optimizer::Sgd);
    let plain = train(&model, &options).unwrap().training;
    options.proximal = 0.5;
    let pulled = train(&model, &options).unwrap().training;
    assert_eq!(
        EngineGraph::load(pulled.bytes()).unwrap().inputs(),
        pulled.inputs(),
        "the anchors' kind is kept"
    );
    let mut feeds = feeds(&plain, &model, 2);
    let without = run(&plain, &feeds);
    for port in pulled.inputs() {
        if let PortKind::Anchor(param) = &port.kind {
            let values = feeds[param.as_str()].values.iter().map(|value| value - 0.25).collect();
            feeds.insert(port.name.clone(), Array::new(&port.shape, values));
        }
    }
    let with = run(&pulled, &feeds);
    close(with["loss"].values[0], without["loss"].values[0]);
    for param in ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"] {
        let (seen, plain) = (
            &with[&format!("grad/{param}")].values,
            &without[&format!("grad/{param}")].values,
        );
        let next = &with[&format!("next/{param}")].values;
        for at in 0..seen.len() {
            close(seen[at], plain[at] + 0.5 * 0.25);
            close(next[at], feeds[param].values[at] - RATE * seen[at]);
        }
    }
    options.proximal = -1.0;
    assert!(train(&model, &options).unwrap_err().to_string().contains("--proximal"));
}

#[test]
fn decay_leaves_out_what_it_is_told_to() {
    let model = samples::parsed(&samples::cnn(16, 2, 2, 3).unwrap()).unwrap();
    let mut options = TrainOptions::new(Optimizer::Sgd, 2);
    options.gradients = true;
    options.weight_decay = 0.5;
    options.decay_norms = false;
    options.no_decay = vec!["fc.*".to_owned()];
    let graph = train(&model, &options).unwrap().training;
    let feeds = feeds(&graph, &model, 2);
    let outputs = run(&graph, &feeds);
    let decays = ["conv1.weight", "conv2.weight"];
    for (name, _) in model.parameters() {
        let by = if decays.contains(&name.as_str()) { 0.5 } else { 0.0 };
        let (old, next) = (&feeds[name].values, &outputs[&format!("next/{name}")].values);
        for (at, gradient) in outputs[&format!("grad/{name}")].values.iter().enumerate() {
            close(next[at], old[at] - RATE * (gradient + by * old[at]));
        }
    }
    options.no_decay = vec!["fc1.*".to_owned()];
    let error = train(&model, &options).unwrap_err().to_string();
    assert!(
        error.contains("--no-decay") && error.contains("conv1.weight"),
        "{error}"
    );
    let mut without = TrainOptions::new(Optimizer::None, 2);
    without.weight_decay = 0.1;
    assert!(
        train(&model, &without)
            .unwrap_err()
            .to_string()
            .contains("--weight-decay")
    );
}

#[test]
fn l2_is_part_of_the_loss_and_of_the_gradients() {
    let model = samples::parsed(&samples::cnn(16, 2, 2, 3).unwrap()).unwrap();
    let graph = |l2: f64| {
        let mut options = TrainOptions::new(Optimizer::None, 2);
        options.l2 = l2;
        options.decay_norms = false;
        options.no_decay = if l2 > 0.0 { vec!["fc.*".to_owned()] } else { Vec::new() };
        train(&model, &options).unwrap().training
    };
    let (plain, with) = (graph(0.0), graph(0.5));
    assert_eq!(with.metadata()["cloister.l2"], "0.5");
    let feeds = feeds(&plain, &model, 2);
    let (plain, with) = (run(&plain, &feeds), run(&with, &feeds));
    let penalised = ["conv1.weight", "conv2.weight"];
    let squares = penalised
        .iter()
        .flat_map(|name| feeds[*name].values.iter().map(|value| value * value));
    close(
        with["loss"].values[0],
        plain["loss"].values[0] + 0.25 * squares.sum::<f64>(),
    );
    for (name, _) in model.parameters() {
        let by = if penalised.contains(&name.as_str()) { 0.5 } else { 0.0 };
        let port = format!("grad/{name}");
        for (at, seen) in with[&port].values.iter().enumerate() {
            close(*seen, plain[&port].values[at] + by * feeds[name].values[at]);
        }
    }
    let mut options = TrainOptions::new(Optimizer::None, 2);
    options.l2 = -1.0;
    assert!(train(&model, &options).unwrap_err().to_string().contains("--l2"));
}

#[test]
fn gradients_are_clipped_by_their_common_norm() {
    let model = samples::parsed(&samples::mlp(4, 3, 2, 9).unwrap()).unwrap();
    let gradients = |clip: Option<f64>| {
        let mut options = TrainOptions::new(Optimizer::None, 3);
        options.clip_norm = clip;
        let graph = train(&model, &options).unwrap().training;
        assert_eq!(
            graph.metadata().get("cloister.clip_norm").cloned(),
            clip.map(|most| most.to_string())
        );
        let mut outputs = run(&graph, &feeds(&graph, &model, 2));
        outputs.remove("loss");
        outputs
    };
    let norm = |of: &BTreeMap<String, Array>| {
        let squares = of.values().flat_map(|one| one.values.iter().map(|value| value * value));
        squares.sum::<f64>().sqrt()
    };
    let free = gradients(None);
    let total = norm(&free);
    let clipped = gradients(Some(total / 4.0));
    for (name, gradient) in &clipped {
        for (seen, free) in gradient.values.iter().zip(&free[name].values) {
            close(*seen, free * (total / 4.0) / (total + 1e-6));
        }
    }
    assert_eq!(
        gradients(Some(total * 2.0)),
        free,
        "a norm below the bound changes nothing"
    );
    let mut options = TrainOptions::new(Optimizer::None, 3);
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        options.clip_norm = Some(wrong);
        assert!(train(&model, &options).unwrap_err().to_string().contains("--clip-norm"));
    }
}

/// Logits by a dropout in training form.
fn with_dropout() -> Model {
    let file = model(|builder| {
        let x = builder.input("x", Dtype::F32, &[2, 3]).unwrap();
        let w = parameter(builder, "w", &[3, 2], 5);
        let product = builder.binary(O::MatMul, x, w).unwrap();
        let ratio = builder.scalar(0.25).unwrap();
        let trains = Tensor::new(Dtype::Bool, cloister_tensor::Shape::new(&[]).unwrap(), vec![1].into()).unwrap();
        let trains = builder.constant(trains).unwrap();
        builder
            .node(O::Dropout, &[product, ratio, trains], Attributes::none())
            .unwrap()
    });
    samples::parsed(&file).unwrap()
}

#[test]
fn dropout_takes_its_mask_and_scales_what_stays() {
    let model = with_dropout();
    let graphs = train(&model, &TrainOptions::new(Optimizer::None, 2)).unwrap();
    assert_eq!(graphs.training.metadata()["cloister.dropout"], "0.25");
    let names: Vec<&str> = graphs.training.inputs().iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names, ["x", "mask/0", "labels", "w"]);
    let ratio = DropRatio::new(0.25).unwrap();
    assert_eq!(graphs.training.inputs()[1].kind, PortKind::Mask { dropout: 0, ratio });
    let again = EngineGraph::load(graphs.training.bytes()).unwrap();
    assert_eq!(again.inputs(), graphs.training.inputs());
    assert!(graphs.evaluation.inputs().iter().all(|port| port.name != "mask/0"));
    let mut values = feeds(&graphs.training, &model, 2);
    let logits = run(&graphs.evaluation, &values)["y"].values.clone();
    values.insert("mask/0".to_owned(), Array::new(&[2, 2], vec![1.0, 0.0, 0.0, 1.0]));
    let outputs = run(&graphs.training, &values);
    // Rows of the dropped logits, by hand; labels are 1 and 0.
    let (kept, labels) = ([logits[0] / 0.75, 0.0, 0.0, logits[3] / 0.75], [1, 0]);
    assert_eq!(values["labels"].values, labels.map(f64::from));
    let share = |row: usize, at: usize| {
        let total: f64 = kept[row * 2..row * 2 + 2].iter().map(|value| value.exp()).sum();
        kept[row * 2 + at].exp() / total
    };
    close(outputs["loss"].values[0], -(share(0, 1).ln() + share(1, 0).ln()) / 2.0);
    let x = &values["x"].values;
    for at in 0..3 {
        close(outputs["grad/w"].values[at * 2], x[at] * share(0, 0) / 0.75 / 2.0);
        close(
            outputs["grad/w"].values[at * 2 + 1],
            x[3 + at] * share(1, 1) / 0.75 / 2.0,
        );
    }
}

#[test]
fn dropout_can_be_left_out() {
    let model = with_dropout();
    let mut options = TrainOptions::new(Optimizer::None, 2);
    options.dropout = false;
    let graphs = train(&model, &options).unwrap();
    assert!(!graphs.training.metadata().contains_key("cloister.dropout"));
    let values = feeds(&graphs.training, &model, 2);
    close(
        run(&graphs.training, &values)["loss"].values[0],
        run(&graphs.evaluation, &values)["loss"].values[0],
    );
    // A forward graph has none either.
    assert_eq!(model.at_batch(2).unwrap().inputs().len(), 1);
}

#[test]
fn a_token_outside_the_table_is_not_silent() {
    let file = model(|builder| {
        let tokens = builder.input("tokens", Dtype::I64, &[2]).unwrap();
        let table = parameter(builder, "table", &[3, 2], 5);
        builder.node(O::Gather, &[table, tokens], Attributes::none()).unwrap()
    });
    let model = samples::parsed(&file).unwrap();
    let graph = train(&model, &TrainOptions::new(Optimizer::None, 2)).unwrap().training;
    let mut values = feeds(&graph, &model, 2);
    let mut loss = |tokens: [f64; 2]| {
        values.insert("tokens".to_owned(), Array::new(&[2], tokens.to_vec()));
        run(&graph, &values)["loss"].values[0]
    };
    assert!(loss([0.0, 2.0]).is_finite());
    assert_eq!(loss([0.0, -1.0]), loss([0.0, 2.0]), "from the end");
    for outside in [3.0, -4.0, 1e12] {
        assert!(loss([0.0, outside]).is_nan(), "{outside}");
    }
}
