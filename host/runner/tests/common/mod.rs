//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use cloister_data::Format;
use cloister_graph::{Limits, Model, Optimizer, TrainOptions, TrainedGraphs, samples};
use cloister_policy::DatasetSpec;
use cloister_runner::{
    BackendChoice, DatasetInfo, EvaluateRequest, Runner, RunnerOptions, SharedTensors, TrainRequest,
};
use cloister_sandbox::{CallLimits, Grants, RoundInfo, ScalarRange, SettingValue, UpdateKind};

pub(crate) const INPUTS: usize = 4;
pub(crate) const CLASSES: usize = 3;
pub(crate) const ROWS: usize = 70;
pub(crate) const BATCH: usize = 32;
pub(crate) const REST: usize = 6;
pub(crate) const SALT: [u8; 32] = [9; 32];

/// A runner of the test program that behaves as `how` says.
pub(crate) fn options(how: &str) -> RunnerOptions {
    let mut options = RunnerOptions::new(env!("CARGO_BIN_EXE_cloister-runner-test"));
    options.args = vec![how.into()];
    options.backend = BackendChoice::Tract;
    options
}

pub(crate) fn runner() -> Runner {
    Runner::start(options("runner")).unwrap()
}

pub(crate) fn model() -> Model {
    Model::parse(&samples::mlp(INPUTS, 8, CLASSES, 1).unwrap(), &Limits::default()).unwrap()
}

pub(crate) fn weights() -> SharedTensors {
    SharedTensors::copy_of(&model().initial_weights()).unwrap()
}

pub(crate) fn graphs(batch: usize) -> TrainedGraphs {
    let optimizer = Optimizer::Momentum { momentum: 0.9 };
    cloister_graph::train(&model(), &TrainOptions::new(optimizer, batch)).unwrap()
}

/// Rows whose label is the input that is largest.
pub(crate) fn csv(rows: usize) -> String {
    let mut text = "a,b,c,d,label\n".to_owned();
    for row in 0..rows {
        let value = |input: usize| ((row * 37 + input * 101) % 97) as f32 / 97.0;
        let label = (0..CLASSES)
            .max_by(|&one, &other| value(one).total_cmp(&value(other)))
            .unwrap();
        text.push_str(&format!(
            "{},{},{},{},{label}\n",
            value(0),
            value(1),
            value(2),
            value(3)
        ));
    }
    text
}

pub(crate) fn spec() -> DatasetSpec {
    let text = "name = \"train\"\n[inputs]\nx = { columns = [\"a\", \"b\", \"c\", \"d\"] }\nlabels = { column = \"label\", dtype = \"i64\" }\n";
    DatasetSpec::parse(text.as_bytes(), "spec.toml").unwrap()
}

pub(crate) fn file(text: &str) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

pub(crate) fn open_rows(runner: &mut Runner) -> DatasetInfo {
    runner
        .open_dataset("rows.csv", file(&csv(ROWS)), Format::Csv, &spec(), &SALT)
        .unwrap()
}

/// A runner with graphs and rows in it.
pub(crate) fn furnished() -> Runner {
    let mut runner = runner();
    for batch in [BATCH, REST] {
        let graphs = graphs(batch);
        let name = |name: &str| {
            if batch == BATCH {
                name.to_owned()
            } else {
                format!("{name}@{batch}")
            }
        };
        runner.load_graph(&name("train"), graphs.training.bytes()).unwrap();
        runner.load_graph(&name("evaluate"), graphs.evaluation.bytes()).unwrap();
    }
    open_rows(&mut runner);
    runner
}

pub(crate) fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

pub(crate) fn train_request(module: &str) -> TrainRequest {
    let range = |min, max| ScalarRange { min, max };
    TrainRequest {
        module: module.to_owned(),
        settings: BTreeMap::new(),
        grants: Grants {
            scalars: BTreeMap::from([
                ("learning_rate".to_owned(), range(0.0, 1.0)),
                ("step".to_owned(), range(1.0, 1e9)),
            ]),
            reads: names(&["loss"]),
            ..Grants::default()
        },
        graphs: names(&["train", "train@6"]),
        datasets: names(&["train"]),
        transforms: BTreeMap::new(),
        model: weights(),
        round: RoundInfo {
            index: 1,
            count: 10,
            seed: 7,
            step: 0,
        },
        update: UpdateKind::Model,
        limits: CallLimits {
            call: Duration::from_secs(60),
            ..CallLimits::default()
        },
        timeout: Duration::from_secs(120),
    }
}

pub(crate) fn attack(name: &str) -> BTreeMap<String, SettingValue> {
    BTreeMap::from([("attack".to_owned(), SettingValue::Text(name.to_owned()))])
}

pub(crate) fn evaluate_request() -> EvaluateRequest {
    EvaluateRequest {
        graphs: names(&["evaluate", "evaluate@6"]),
        dataset: "train".to_owned(),
        transforms: BTreeMap::new(),
        model: weights(),
        limits: CallLimits::default(),
        timeout: Duration::from_secs(60),
    }
}

/// A built guest; nothing (and a line on stderr) where none are built.
pub(crate) fn guest(name: &str) -> Option<Vec<u8>> {
    let Some(dir) = std::env::var_os("CLOISTER_GUESTS_DIR") else {
        eprintln!("SKIPPED: CLOISTER_GUESTS_DIR is not set; `cargo xtask test` builds the guests and sets it");
        return None;
    };
    let path = PathBuf::from(dir).join(format!("{name}.wasm"));
    Some(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}
