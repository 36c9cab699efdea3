//! Datasets that go through a transform, over the socket to a runner process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use std::collections::BTreeMap;

use cloister_data::Format;
use cloister_policy::DatasetSpec;
use cloister_runner::{EvaluateRequest, Runner, RunnerError, TrainRequest};
use cloister_sandbox::{ModuleErrorKind, SettingValue};
use common::{ROWS, SALT, attack, csv, evaluate_request, file, furnished, guest, names, train_request};

/// A runner whose dataset `train` goes through the hostile transform.
fn with_transform() -> Option<Runner> {
    let (transform, trainer) = (guest("hostile-transform")?, guest("train-sgd")?);
    let mut runner = furnished();
    assert_eq!(runner.load_module("t", &transform).unwrap().world, "transform");
    runner.load_module("train-sgd", &trainer).unwrap();
    let text = "name = \"train\"\ntransform = \"t\"\nmakes = { x = { shape = [4] } }\n\
                inputs = { x = { columns = [\"a\", \"b\", \"c\", \"d\"] }, labels = { column = \"label\", dtype = \"i64\" } }\n";
    let spec = DatasetSpec::parse(text.as_bytes(), "spec.toml").unwrap();
    let plain = runner
        .open_dataset("rows.csv", file(&csv(ROWS)), Format::Csv, &common::spec(), &SALT)
        .unwrap();
    let opened = runner
        .open_dataset("rows.csv", file(&csv(ROWS)), Format::Csv, &spec, &SALT)
        .unwrap();
    assert_eq!(
        opened.commitment, plain.commitment,
        "the commitment is to what was read"
    );
    Some(runner)
}

fn settings(name: &str) -> BTreeMap<String, BTreeMap<String, SettingValue>> {
    BTreeMap::from([("t".to_owned(), attack(name))])
}

fn training(name: &str) -> TrainRequest {
    let mut request = train_request("train-sgd");
    request.settings = BTreeMap::from([("learning_rate".to_owned(), SettingValue::Number(0.1))]);
    request.datasets = names(&["train"]);
    request.transforms = settings(name);
    request
}

fn evaluation(name: &str) -> EvaluateRequest {
    let mut request = evaluate_request();
    request.transforms = settings(name);
    request
}

#[test]
fn trains_and_evaluates_on_what_the_transform_makes() {
    let Some(mut runner) = with_transform() else { return };
    let one = runner.train(&training("log_rows")).unwrap();
    assert_eq!(one.rows, ROWS as u64);
    assert!(
        one.log.iter().any(|line| line.starts_with("t: info: row:")),
        "{:?}",
        one.log
    );
    let evaluated = runner.evaluate(&evaluation("log_rows")).unwrap();
    let again = runner.evaluate(&evaluation("none")).unwrap();
    assert_eq!((evaluated.loss, evaluated.correct), (again.loss, again.correct));
    assert!(!evaluated.log.is_empty() && again.log.is_empty());
    let before = evaluated.loss;
    let (mut plain, request) = (furnished(), evaluate_request());
    assert_ne!(
        plain.evaluate(&request).unwrap().loss,
        before,
        "the graph saw other rows"
    );
    // A new process has all of it again.
    runner.restart().unwrap();
    assert_eq!(runner.evaluate(&evaluation("none")).unwrap().loss, before);
}

#[test]
fn who_failed_is_named_and_the_runner_goes_on() {
    let Some(mut runner) = with_transform() else { return };
    for (name, kind) in [
        ("trap", ModuleErrorKind::Trap),
        ("wrong_shape", ModuleErrorKind::WrongShape),
    ] {
        for result in [
            runner.train(&training(name)).map(drop),
            runner.evaluate(&evaluation(name)).map(drop),
        ] {
            let Err(RunnerError::Module(error)) = result else {
                panic!("{name}: {result:?}")
            };
            assert_eq!((error.module.as_str(), error.kind), ("t", kind), "{error}");
        }
    }
    runner.train(&training("none")).unwrap();
    let mut forgotten = training("none");
    forgotten.transforms.clear();
    let words = runner.train(&forgotten).unwrap_err().to_string();
    assert!(words.contains("settings are not given"), "{words}");
}
