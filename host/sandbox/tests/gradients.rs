//! Updates of gradients: the trainer `train-ps`, and trainers that give something else for a gradient.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use cloister_data::{Batch, BatchOrder};
use cloister_graph::{Limits, Model, Optimizer, PortKind, TrainOptions, samples};
use cloister_sandbox::{
    Module, ModuleError, ModuleErrorKind, PassOrder, RowBatches, Rows, RowsError, SettingValue, SharedGraph,
    TensorAccess, TrainCall, TrainError, TrainOutcome, UpdateKind,
};
use cloister_tensor::{Tensor, TensorMap};
use common::{
    BATCH, CLASSES, Fake, INPUTS, REST, ROWS, compiled, graphs_for, loaded, settings, text, train, train_call,
};

fn options(batch: usize) -> TrainOptions {
    TrainOptions::new(Optimizer::None, batch)
}

fn graph(model: &Model, options: &TrainOptions) -> SharedGraph {
    compiled(&cloister_graph::train(model, options).unwrap().training)
}

/// Graphs that give gradients, of the batch sizes of the rows.
fn gradient_graphs(model: &Model) -> BTreeMap<String, SharedGraph> {
    [("train".to_owned(), BATCH), (format!("train@{REST}"), REST)]
        .map(|(name, batch)| (name, graph(model, &options(batch))))
        .into()
}

fn gradient_call(module: &Module, step: u64) -> TrainCall {
    let mut call = train_call(module);
    call.graphs = gradient_graphs(&common::model());
    call.update = UpdateKind::Gradient;
    call.round.step = step;
    call
}

/// What the graph itself gives for these rows: loss, and gradients and statistics by the names that they have in an update.
fn computed(graph: &SharedGraph, model: &TensorMap, rows: &Batch) -> (f64, TensorMap) {
    let mut graph = graph.lock().unwrap();
    let inputs: Vec<_> = graph
        .inputs()
        .iter()
        .map(|port| {
            let tensor = model.get(&port.name).or_else(|| rows.tensors.get(&port.name));
            (port.name.clone(), tensor.unwrap().clone())
        })
        .collect();
    let named: Vec<_> = inputs
        .iter()
        .map(|(name, tensor)| (name.as_str(), tensor.clone()))
        .collect();
    let outputs: BTreeMap<_, _> = graph.run(&named, None).unwrap().into_iter().collect();
    let mut tensors = TensorMap::new();
    for port in graph.outputs() {
        if let PortKind::Gradient(name) | PortKind::NextStatistic(name) = &port.kind {
            tensors.insert(name.clone(), outputs[&port.name].clone());
        }
    }
    (outputs["loss"].first_f64().unwrap(), tensors)
}

/// The rows of one batch, as the test's dataset gives them.
fn rows(seed: u64, at: usize) -> Batch {
    let order = BatchOrder {
        seed: Some(seed),
        ..BatchOrder::of(BATCH)
    };
    let pass = PassOrder {
        order,
        seed: cloister_sandbox::PassSeed {
            round: 0,
            dataset: Arc::from("train"),
            pass: 0,
        },
        end: None,
        ahead: false,
    };
    Fake(ROWS).batches(&pass).unwrap().nth(at).unwrap().unwrap().batch
}

#[test]
fn one_call_is_the_gradient_of_one_batch_and_passes_go_on_from_call_to_call() {
    let Some((sandbox, module)) = loaded("train-ps") else {
        return;
    };
    let (model, graphs) = (common::model().initial_weights(), gradient_graphs(&common::model()));
    // 70 rows are three batches a pass, the last one of six rows; the setting `seed` is 1, and each pass has the next.
    for (step, seed, at) in [(0, 1, 0), (1, 1, 1), (2, 1, 2), (3, 2, 0), (4, 2, 1), (8, 3, 2)] {
        let rows = rows(seed, at);
        let name = if at == 2 { "train@6" } else { "train" };
        let (loss, gradients) = computed(&graphs[name], &model, &rows);
        let outcome = sandbox.train(gradient_call(&module, step)).unwrap();
        assert_eq!(
            outcome.tensors, gradients,
            "step {step}: the same bytes as without a module"
        );
        assert_eq!(
            (outcome.rows, &outcome.metrics[..]),
            (rows.rows as u64, &[("loss".to_owned(), loss)][..])
        );
    }
    let mut whole = gradient_call(&module, 2);
    whole.settings = settings(&[
        ("drop_last", SettingValue::Boolean(true)),
        ("seed", SettingValue::Integer(9)),
    ]);
    let (_, wanted) = computed(&graphs["train"], &model, &rows(10, 0));
    assert_eq!(
        sandbox.train(whole).unwrap().tensors,
        wanted,
        "two batches a pass without the rest"
    );
    // The round's own seed changes nothing: the step says what is drawn.
    let mut other = gradient_call(&module, 1);
    other.round.seed += 1;
    assert_eq!(
        sandbox.train(other).unwrap().tensors,
        sandbox.train(gradient_call(&module, 1)).unwrap().tensors
    );
}

/// Batches as they are given.
struct Given(Vec<Batch>);

impl Rows for Given {
    fn rows(&self) -> u64 {
        self.0.iter().map(|batch| batch.rows as u64).sum()
    }

    fn ahead_bytes(&self, _order: BatchOrder) -> u64 {
        0
    }

    fn batches(&self, pass: &PassOrder) -> Result<RowBatches, RowsError> {
        let batches = self.0.clone().into_iter().skip(pass.order.first);
        Ok(Box::new(batches.map(|batch| Ok(batch.into()))))
    }
}

#[test]
fn statistics_move_and_what_is_frozen_has_no_gradient() {
    let Some((sandbox, module)) = loaded("train-ps") else {
        return;
    };
    let cnn = samples::cnn(64, 2, CLASSES, 1).unwrap();
    let cnn = Model::parse(&cnn, &Limits::default()).unwrap();
    let frozen = "fc.weight".to_owned();
    let wanted = TrainOptions {
        freeze: vec![frozen.clone()],
        ..options(4)
    };
    let pixels = (0..4 * 64).map(|at| ((at * 37) % 97) as f32 / 97.0).collect();
    let rows = Batch {
        rows: 4,
        tensors: TensorMap::from([
            ("x".to_owned(), Tensor::from_f32(&[4, 1, 8, 8], pixels).unwrap()),
            ("labels".to_owned(), Tensor::from_i64(&[4], vec![0, 1, 2, 0]).unwrap()),
        ]),
    };
    let mut call = gradient_call(&module, 0);
    call.model = cnn.initial_weights();
    let graph = graph(&cnn, &wanted);
    let (_, mut update) = computed(&graph, &call.model, &rows);
    assert!(cnn.statistics().iter().all(|(name, _)| update.contains_key(name)));
    assert!(!update.contains_key(&frozen));
    update.insert(
        frozen.clone(),
        Tensor::zeros(call.model[&frozen].dtype(), call.model[&frozen].shape().clone()),
    );
    call.graphs = BTreeMap::from([("train".to_owned(), graph)]);
    call.datasets = BTreeMap::from([("train".to_owned(), Arc::new(Given(vec![rows])) as Arc<dyn Rows>)]);
    call.settings = settings(&[("batch", SettingValue::Integer(4))]);
    let model = call.model.clone();
    let outcome = sandbox.train(call).unwrap();
    assert_eq!(outcome.tensors, update);
    assert!(outcome.tensors.keys().eq(model.keys()), "the model's layout");
}

#[test]
fn trainers_and_graphs_that_do_not_fit_what_is_wanted_are_told() {
    let Some((sandbox, module)) = loaded("train-ps") else {
        return;
    };
    let mut models = gradient_call(&module, 0);
    models.update = UpdateKind::Model;
    let error = train(&sandbox, models).unwrap_err();
    assert!(error.message.contains("the policy has updates hold models"), "{error}");
    let mut none = gradient_call(&module, 0);
    none.datasets.insert("train".to_owned(), Arc::new(Fake(0)));
    let error = train(&sandbox, none).unwrap_err();
    assert!(error.message.contains("the rows fill no batch"), "{error}");

    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let mut gradients = train_call(&module);
    gradients.update = UpdateKind::Gradient;
    let error = train(&sandbox, gradients).unwrap_err();
    assert_eq!(error.kind, ModuleErrorKind::NoUpdate);
    assert!(
        error
            .message
            .contains("no graph that the policy gives the module has an output `grad/NAME`"),
        "{error}"
    );
    // Nothing of the model would move, so the model as it was would pass for frozen.
    let mut models = gradient_call(&module, 0);
    models.update = UpdateKind::Model;
    let error = train(&sandbox, models).unwrap_err();
    assert_eq!(error.kind, ModuleErrorKind::NoUpdate);
    assert!(error.message.contains("`next/NAME`"), "{error}");
}

/// A model whose two layers have biases of one shape, and whose first weights have the shape of a batch.
fn attacked(module: &Module, attack: &str) -> TrainCall {
    let model = samples::mlp(INPUTS, CLASSES, CLASSES, 1).unwrap();
    let model = Model::parse(&model, &Limits::default()).unwrap();
    let mut call = gradient_call(module, 0);
    call.model = model.initial_weights();
    let sgd = TrainOptions::new(Optimizer::Sgd, CLASSES);
    call.graphs = BTreeMap::from([
        ("train".to_owned(), graph(&model, &options(CLASSES))),
        ("move".to_owned(), graph(&model, &sgd)),
    ]);
    call.settings = settings(&[
        ("attack", text(attack)),
        ("batch", SettingValue::Integer(CLASSES as i64)),
    ]);
    call
}

fn attack(name: &str, change: impl FnOnce(&mut TrainCall)) -> Result<TrainOutcome, ModuleError> {
    let (sandbox, module) = loaded("hostile-trainer").unwrap();
    let mut call = attacked(&module, name);
    change(&mut call);
    let result = train(&sandbox, call);
    // The sandbox works on.
    assert_eq!(
        train(&sandbox, attacked(&module, "no_attack_on_gradients"))
            .unwrap()
            .rows,
        CLASSES as u64
    );
    result
}

#[test]
fn what_is_no_gradient_of_the_parameter_is_refused_whatever_it_is() {
    if loaded("hostile-trainer").is_none() {
        return;
    }
    let write = |call: &mut TrainCall| {
        call.grants.tensor_access = TensorAccess {
            read: true,
            write: true,
        };
    };
    for (name, words) in [
        (
            "parameter_as_gradient",
            "gives parameter `fc1.bias` as the gradient of parameter `fc1.bias`",
        ),
        (
            "moved_as_gradient",
            "gives parameter `fc1.bias` as the gradient of parameter `fc1.bias`",
        ),
        (
            "swap_gradients",
            "gives the gradient of parameter `fc1.bias` as the gradient of parameter `fc2.bias`",
        ),
        (
            "rows_as_gradient",
            "gives rows of dataset `train`, input `x` as the gradient of parameter `fc1.weight`",
        ),
        (
            "gradient_as_parameter",
            "port `fc1.bias`: seen the gradient of parameter `fc1.bias`, wanted parameter `fc1.bias`",
        ),
    ] {
        // No grant opens that way.
        for granted in [false, true] {
            let change = |call: &mut TrainCall| {
                if granted {
                    write(call);
                }
            };
            let error = attack(name, change).expect_err(name);
            assert_eq!(error.kind, ModuleErrorKind::Denied, "{name}: {error}");
            assert!(error.message.contains(words), "{name}: wanted {words:?} in {error}");
        }
    }
    let error = attack("made_gradient", |_| {}).unwrap_err();
    assert!(error.message.contains("without `tensor_access = \"write\"`"), "{error}");
    assert!(attack("made_gradient", write).is_ok());
}

#[test]
fn a_jump_past_the_end_is_a_pass_of_nothing() {
    let Some((sandbox, module)) = loaded("hostile-trainer") else {
        return;
    };
    let mut call = train_call(&module);
    call.settings = settings(&[("attack", text("jump_past_end"))]);
    assert_eq!(train(&sandbox, call).unwrap().metrics, [("seen".to_owned(), 0.0)]);
}

/// Rows that cannot be had, from the second batch on.
struct Broken;

impl Rows for Broken {
    fn rows(&self) -> u64 {
        ROWS
    }

    fn ahead_bytes(&self, _order: BatchOrder) -> u64 {
        0
    }

    fn batches(&self, pass: &PassOrder) -> Result<RowBatches, RowsError> {
        let good = Fake(ROWS).batches(pass)?.take(1);
        let bad = Err(RowsError::Unreadable("row 40, counted from 1: seen nothing".to_owned()));
        Ok(Box::new(good.chain([bad])))
    }
}

#[test]
fn rows_that_cannot_be_had_are_the_datasets_failure_not_the_modules() {
    let Some((sandbox, module)) = loaded("train-sgd") else {
        return;
    };
    let mut call = train_call(&module);
    call.graphs
        .insert("train".to_owned(), compiled(&graphs_for(BATCH).training));
    call.datasets = BTreeMap::from([("train".to_owned(), Arc::new(Broken) as Arc<dyn Rows>)]);
    let wanted = TrainError::Dataset {
        name: "train".to_owned(),
        message: "row 40, counted from 1: seen nothing".to_owned(),
    };
    assert_eq!(sandbox.train(call).unwrap_err(), wanted);
}
