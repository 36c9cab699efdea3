//! A training step through runner, sandbox and guest, beside the same graph called directly on the engine.
//!
//! `cargo xtask bench train_step`; the graph is the smallest of some perceptrons whose direct step takes about 5 ms here.
#![allow(missing_docs, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Seek, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use cloister_benches::direct::Step;
use cloister_benches::{Table, guest, median, openvino_dir, timed};
use cloister_data::Format;
use cloister_engine::{Backend, CompileOptions, openvino, tract};
use cloister_graph::{EngineGraph, Model, Optimizer, TrainOptions, samples, train};
use cloister_policy::DatasetSpec;
use cloister_runner::{BackendChoice, Runner, RunnerOptions, SharedTensors, TrainRequest};
use cloister_sandbox::{CallLimits, Grants, RoundInfo, ScalarRange, SettingValue, UpdateKind};
use criterion::Criterion;

const INPUTS: usize = 256;
const CLASSES: usize = 10;
const BATCH: usize = 128;
const BATCHES: usize = 32;
const EPOCHS: usize = 2;
const STEPS: u32 = (BATCHES * EPOCHS) as u32;
/// The step that is looked for, on this machine.
const WANTED: Duration = Duration::from_millis(5);

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("runner") {
        return cloister_runner::runner_main();
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Table::default();
    if let Some(module) = guest("train-sgd") {
        steps(&mut criterion, &mut table, &module);
    }
    criterion.final_summary();
    table.print();
    ExitCode::SUCCESS
}

fn backend() -> Box<dyn Backend> {
    match openvino_dir() {
        Some(dir) => Box::new(openvino::load(&dir).expect("OpenVINO loads")),
        None => Box::new(tract::Tract::new()),
    }
}

fn direct(backend: &dyn Backend, graph: &EngineGraph, model: &Model) -> Step {
    // As many threads as the runner gives its engine.
    let options = CompileOptions {
        threads: NonZeroUsize::new(1),
        ..CompileOptions::default()
    };
    Step::new(backend, graph, model, CLASSES, &options)
}

/// The smallest perceptron whose step takes as long as wanted: model, graph, direct step.
fn sized(backend: &dyn Backend) -> (Model, EngineGraph, Step) {
    let mut hidden = 32;
    loop {
        let sample = samples::mlp(INPUTS, hidden, CLASSES, 1).expect("the sample is written");
        let model = samples::parsed(&sample).expect("the sample parses");
        let options = TrainOptions::new(Optimizer::Momentum { momentum: 0.9 }, BATCH);
        let graph = train(&model, &options).expect("the sample trains").training;
        let mut step = direct(backend, &graph, &model);
        step.run();
        let mut times: Vec<Duration> = (0..9).map(|_| timed(|| step.run())).collect();
        let took = median(&mut times).unwrap_or_default();
        if took >= WANTED || hidden >= 8192 {
            println!(
                "perceptron {INPUTS}-{hidden}-{CLASSES}, batch {BATCH}: {took:.2?} a step on {}",
                backend.name()
            );
            return (model, graph, step);
        }
        hidden += hidden / 2;
    }
}

fn rows() -> File {
    let mut text: String = (0..INPUTS).map(|column| format!("p{column},")).collect();
    text.push_str("label\n");
    for row in 0..BATCH * BATCHES {
        for column in 0..INPUTS {
            text.push(char::from(b'0' + ((row * 7 + column * 3) % 10) as u8));
            text.push(',');
        }
        writeln!(text, "{}", row % CLASSES).expect("a string takes everything");
    }
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(text.as_bytes())
        .and_then(|()| file.rewind())
        .expect("there is room for the rows");
    file
}

fn furnished(module: &[u8], graph: &EngineGraph) -> Runner {
    let mut options = RunnerOptions::new(std::env::current_exe().expect("this program has a path"));
    options.openvino_dir = openvino_dir();
    options.backend = if options.openvino_dir.is_some() {
        BackendChoice::OpenVino
    } else {
        BackendChoice::Tract
    };
    let mut runner = Runner::start(options).expect("the runner starts");
    runner.load_module("train-sgd", module).expect("the guest loads");
    runner.load_graph("train", graph.bytes()).expect("the graph loads");
    let last = INPUTS - 1;
    let spec = format!(
        "name = \"train\"\n[inputs]\nx = {{ columns = \"p0..p{last}\", shape = [{INPUTS}], scale = 0.1 }}\n\
         labels = {{ column = \"label\", dtype = \"i64\" }}\n"
    );
    let spec = DatasetSpec::parse(spec.as_bytes(), "spec.toml").expect("the dataset is described");
    runner
        .open_dataset("rows.csv", rows(), Format::Csv, &spec, &[9; 32])
        .expect("the rows are read");
    runner
}

fn request(model: &Model) -> TrainRequest {
    let range = |min, max| ScalarRange { min, max };
    let scalars = [("learning_rate", range(0.0, 1.0)), ("step", range(1.0, 1e9))];
    let names = |name: &str| BTreeSet::from([name.to_owned()]);
    TrainRequest {
        module: "train-sgd".to_owned(),
        settings: BTreeMap::from([
            ("batch".to_owned(), SettingValue::Integer(BATCH as i64)),
            ("epochs".to_owned(), SettingValue::Integer(EPOCHS as i64)),
            ("learning_rate".to_owned(), SettingValue::Number(1e-3)),
        ]),
        grants: Grants {
            scalars: scalars.map(|(name, range)| (name.to_owned(), range)).into(),
            reads: names("loss"),
            ..Grants::default()
        },
        graphs: names("train"),
        datasets: names("train"),
        transforms: BTreeMap::new(),
        model: SharedTensors::copy_of(&model.initial_weights()).expect("there is memory for the model"),
        round: RoundInfo {
            index: 1,
            count: 10,
            seed: 7,
            step: 0,
        },
        update: UpdateKind::Model,
        limits: CallLimits::default(),
        timeout: Duration::from_secs(600),
    }
}

fn steps(criterion: &mut Criterion, table: &mut Table, module: &[u8]) {
    let backend = backend();
    let (model, graph, mut step) = sized(backend.as_ref());
    let mut runner = furnished(module, &graph);
    println!(
        "runner: {}; {STEPS} steps a call, batches drawn and the call itself included",
        runner.backend()
    );
    let request = request(&model);
    let mut group = criterion.benchmark_group("train_step");
    group.sample_size(10);
    let ours = || runner.train(&request).expect("the guest trains").elapsed / STEPS;
    let reference = || timed(|| (0..STEPS).for_each(|_| step.run())) / STEPS;
    table.side_by_side(
        &mut group,
        "step: runner and guest / direct",
        "<= 1.05",
        ours,
        reference,
    );
    group.finish();
}
