//! A runner at work: start, load, evaluate, train, aggregate; and everything that may be asked of it wrongly.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cloister_data::{DataLimits, Dataset, Format, Source};
use cloister_engine::Precision;
use cloister_graph::{Optimizer, TrainOptions};
use cloister_runner::{AggregateRequest, BackendChoice, Runner, RunnerError, SharedSlots, SharedTensors, WorkerUpdate};
use cloister_sandbox::{ModuleErrorKind, RoundInfo, SettingValue, UpdateKind};
use cloister_tensor::{Digest, Tensor, TensorMap};
use common::*;

#[test]
fn it_starts_says_its_engine_and_ends_with_its_keeper() {
    let runner = runner();
    assert!(runner.backend().starts_with("tract"), "{}", runner.backend());
    assert_eq!(runner.note(), None);
    let proc = format!("/proc/{}", runner.pid().unwrap());
    assert!(Path::new(&proc).exists());
    drop(runner);
    assert!(!Path::new(&proc).exists(), "the process is gone and reaped");
}

#[test]
fn it_does_not_start_where_its_engine_lacks_the_precision_that_was_agreed_on() {
    let mut options = options("runner");
    options.precision = Precision::Bf16;
    let refused = Runner::start(options).unwrap_err().to_string();
    assert!(
        refused.contains("tract") && refused.contains("does not compute in bf16"),
        "{refused}"
    );
}

#[test]
fn it_has_no_environment_no_privileges_to_gain_no_core_dump_and_one_socket() {
    let runner = runner();
    let read = |what: &str| std::fs::read_to_string(format!("/proc/{}/{what}", runner.pid().unwrap())).unwrap();
    assert!(
        read("status")
            .lines()
            .any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"]))
    );
    assert!(
        read("limits")
            .lines()
            .any(|line| line.starts_with("Max core file size") && line.split_whitespace().nth(4) == Some("0"))
    );
    // Others' view of it needs root, since it is not dumpable.
    let Ok(environment) = std::fs::read(format!("/proc/{}/environ", runner.pid().unwrap())) else {
        return;
    };
    assert!(environment.is_empty());
    let open = std::fs::read_dir(format!("/proc/{}/fd", runner.pid().unwrap())).unwrap();
    let open: Vec<String> = open
        .filter_map(|entry| Some(std::fs::read_link(entry.ok()?.path()).ok()?.display().to_string()))
        .collect();
    assert_eq!(
        open.iter().filter(|link| link.starts_with("socket:")).count(),
        1,
        "{open:?}"
    );
    assert!(open.contains(&"/dev/null".to_owned()), "{open:?}");
}

#[test]
fn by_hand_it_says_what_it_is() {
    let run = |stdin| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloister-runner-test"));
        command.arg("runner").stdin(stdin).output().unwrap()
    };
    let output = run(Stdio::null());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not for use by hand"));
}

#[test]
fn without_openvino_tract_serves_and_it_is_said() {
    let mut options = options("runner");
    options.backend = BackendChoice::Auto;
    assert!(
        Runner::start(options.clone())
            .unwrap()
            .note()
            .unwrap()
            .contains("tract serves")
    );
    options.openvino_dir = Some("/nowhere".into());
    let runner = Runner::start(options.clone()).unwrap();
    assert!(runner.note().unwrap().contains("/nowhere"), "{:?}", runner.note());
    options.backend = BackendChoice::OpenVino;
    assert!(matches!(Runner::start(options), Err(RunnerError::SetUp(message)) if message.contains("/nowhere")));
}

#[test]
fn openvino_serves_where_it_is() {
    let Some(dir) = std::env::var_os("CLOISTER_OPENVINO_DIR") else {
        eprintln!("SKIPPED: CLOISTER_OPENVINO_DIR is not set; `cargo xtask test` sets OpenVINO up and sets it");
        return;
    };
    let mut options = options("runner");
    options.backend = BackendChoice::OpenVino;
    options.openvino_dir = Some(dir.into());
    let mut runner = Runner::start(options).unwrap();
    assert!(runner.backend().starts_with("openvino"), "{}", runner.backend());
    for batch in [BATCH, REST] {
        runner
            .load_graph(&format!("evaluate@{batch}"), graphs(batch).evaluation.bytes())
            .unwrap();
    }
    open_rows(&mut runner);
    let mut request = evaluate_request();
    request.graphs = names(&["evaluate@32", "evaluate@6"]);
    let fast = runner.evaluate(&request).unwrap();
    let slow = furnished().evaluate(&evaluate_request()).unwrap();
    assert!((fast.loss - slow.loss).abs() < 1e-5, "{fast:?} {slow:?}");
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let error = Runner::start(cloister_runner::RunnerOptions::new("/nowhere/cloister")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/cloister"), "{error}");
}

#[test]
fn a_dataset_is_counted_and_committed_to() {
    let mut runner = runner();
    let info = open_rows(&mut runner);
    let source = Source::from_bytes("rows.csv", csv(ROWS));
    let dataset = Dataset::open(&source, Format::Csv, &spec(), &DataLimits::default()).unwrap();
    assert_eq!((info.rows, info.commitment), (ROWS as u64, dataset.commitment(&SALT)));
}

#[test]
fn what_cannot_be_loaded_is_refused_and_it_goes_on() {
    let mut runner = runner();
    let error = runner
        .open_dataset(
            "mine.csv",
            file("a,b,c,d,label\n1,2,3,x,0\n"),
            Format::Csv,
            &spec(),
            &SALT,
        )
        .unwrap_err();
    assert!(matches!(error, RunnerError::Dataset { .. }));
    assert!(
        error
            .to_string()
            .contains("mine.csv: row 1 (line 2), column \"d\": seen \"x\""),
        "{error}"
    );
    assert!(matches!(
        runner.load_graph("train", b"no graph"),
        Err(RunnerError::Graph { .. })
    ));
    let error = runner.load_module("trainer", b"no module").unwrap_err();
    assert!(
        matches!(&error, RunnerError::Module(error) if error.kind == ModuleErrorKind::Invalid),
        "{error}"
    );
    assert!(matches!(
        runner.train(&train_request("trainer")),
        Err(RunnerError::Request(_))
    ));
    assert!(matches!(
        runner.evaluate(&evaluate_request()),
        Err(RunnerError::Request(_))
    ));
    open_rows(&mut runner);
    assert!(
        matches!(runner.evaluate(&evaluate_request()), Err(RunnerError::Request(message)) if message.contains("evaluate"))
    );
}

#[test]
fn more_than_may_be_loaded_is_refused() {
    let mut options = options("runner");
    options.limits.loaded = 1;
    options.limits.file_bytes = 1 << 20;
    let mut runner = Runner::start(options).unwrap();
    let graph = graphs(4).training;
    runner.load_graph("one", graph.bytes()).unwrap();
    runner.load_graph("one", graph.bytes()).unwrap();
    let error = runner.load_graph("two", graph.bytes()).unwrap_err();
    assert!(error.to_string().contains("one more than the 1"), "{error}");
    assert!(matches!(
        runner.load_graph("big", &vec![0; (1 << 20) + 1]),
        Err(RunnerError::Request(_))
    ));
}

#[test]
fn an_evaluation_sums_over_all_rows() {
    let mut runner = furnished();
    let whole = runner.evaluate(&evaluate_request()).unwrap();
    assert_eq!(whole.rows, ROWS as u64);
    assert!(whole.loss.is_finite() && whole.correct.is_some_and(|correct| correct <= whole.rows));
    // The same in one batch: the mean over batches is weighted by their rows.
    let graph = runner.load_graph("all", graphs(ROWS).evaluation.bytes()).unwrap();
    assert_eq!(graph.source_digest, Digest::of(graphs(ROWS).evaluation.bytes()));
    let mut request = evaluate_request();
    request.graphs = names(&["all"]);
    let at_once = runner.evaluate(&request).unwrap();
    assert_eq!(at_once.correct, whole.correct);
    assert!((at_once.loss - whole.loss).abs() < 1e-6, "{at_once:?} {whole:?}");
    request.graphs = names(&["evaluate"]);
    let error = runner.evaluate(&request).unwrap_err().to_string();
    assert!(error.contains("6 rows are left at the end"), "{error}");
    request.graphs = names(&["train"]);
    assert!(
        matches!(runner.evaluate(&request), Err(RunnerError::Graph { .. })),
        "a training graph evaluates nothing"
    );
}

#[test]
fn a_label_that_names_no_class_is_named_by_row_and_value() {
    let mut runner = furnished();
    let mut text = csv(ROWS);
    text = format!(
        "{}7\n",
        text.trim_end()
            .strip_suffix(|last: char| last.is_ascii_digit())
            .unwrap()
    );
    runner
        .open_dataset("rows.csv", file(&text), Format::Csv, &spec(), &SALT)
        .unwrap();
    let Err(RunnerError::Dataset { message, .. }) = runner.evaluate(&evaluate_request()) else {
        panic!("a dataset is refused that has a label outside of the classes");
    };
    assert!(
        message.contains(&format!("row {ROWS},")) && message.contains("label 7"),
        "{message}"
    );
}

#[test]
fn a_model_that_does_not_fit_is_refused() {
    let mut runner = furnished();
    let mut request = evaluate_request();
    request.model = SharedTensors::copy_of(&TensorMap::from([("w".to_owned(), Tensor::scalar_f32(1.0))])).unwrap();
    assert!(matches!(runner.evaluate(&request), Err(RunnerError::Graph { .. })));
}

#[test]
fn a_trainer_trains_and_the_bytes_are_the_same_again() {
    let Some(module) = guest("train-sgd") else { return };
    let mut runner = furnished();
    let info = runner.load_module("train-sgd", &module).unwrap();
    assert_eq!((info.digest, info.world.as_str()), (Digest::of(&module), "trainer"));
    let before = runner.evaluate(&evaluate_request()).unwrap();
    let request = train_request("train-sgd");
    let first = runner.train(&request).unwrap();
    assert_eq!(first.rows, ROWS as u64);
    assert!(first.tensors.layout().same_tensors(request.model.layout()));
    assert_ne!(first.tensors.to_map().unwrap(), request.model.to_map().unwrap());
    let mut after = evaluate_request();
    after.model = first.tensors.clone();
    assert!(runner.evaluate(&after).unwrap().loss < before.loss);
    runner.kill();
    assert!(matches!(runner.train(&request), Err(RunnerError::NotRunning)));
    runner.restart().unwrap();
    let second = runner.train(&request).unwrap();
    assert_eq!(
        first.tensors.to_map().unwrap(),
        second.tensors.to_map().unwrap(),
        "after a restart too"
    );
}

/// Two epochs; a graph whose proximal term outweighs all else stays near where the round began, and so nearer than without.
#[test]
fn a_proximal_term_holds_a_trainer_near_the_model_that_it_was_given() {
    let Some(module) = guest("train-sgd") else { return };
    let moved = |proximal: f64| {
        let mut runner = furnished();
        runner.load_module("train-sgd", &module).unwrap();
        let mut options = TrainOptions::new(Optimizer::Sgd, BATCH);
        options.proximal = proximal;
        let graph = cloister_graph::train(&model(), &options).unwrap().training;
        runner.load_graph("train", graph.bytes()).unwrap();
        let mut request = train_request("train-sgd");
        request.settings.insert("epochs".to_owned(), SettingValue::Integer(4));
        request
            .settings
            .insert("drop_last".to_owned(), SettingValue::Boolean(true));
        let (before, after) = (
            request.model.to_map().unwrap(),
            runner.train(&request).unwrap().tensors.to_map().unwrap(),
        );
        let squares = before.iter().flat_map(|(name, tensor)| {
            let (old, new) = (tensor.to_f64_vec(), after[name].to_f64_vec());
            old.into_iter().zip(new).map(|(old, new)| (new - old).powi(2))
        });
        squares.sum::<f64>()
    };
    let (free, held) = (moved(0.0), moved(5.0));
    assert!(
        held > 0.0 && held < 0.8 * free,
        "moved {held} with the term, {free} without"
    );
}

#[test]
fn a_module_that_breaks_a_rule_is_named_and_the_runner_lives_on() {
    let Some(module) = guest("hostile-trainer") else { return };
    let mut runner = furnished();
    runner.load_module("hostile", &module).unwrap();
    let pid = runner.pid();
    for (name, kind) in [
        ("trap", ModuleErrorKind::Trap),
        ("nothing", ModuleErrorKind::NoUpdate),
        ("recurse", ModuleErrorKind::Stack),
    ] {
        let mut request = train_request("hostile");
        request.settings = attack(name);
        let Err(RunnerError::Module(error)) = runner.train(&request) else {
            panic!("{name} passed")
        };
        assert_eq!(
            (error.kind, error.digest),
            (kind, Digest::of(&module)),
            "{name}: {error}"
        );
    }
    let mut request = train_request("hostile");
    request.settings = attack("loop");
    request.limits.call = Duration::from_millis(200);
    assert!(
        matches!(runner.train(&request), Err(RunnerError::Module(error)) if error.kind == ModuleErrorKind::Deadline)
    );
    assert_eq!(runner.pid(), pid);
}

fn update(node: &str, rows: u64, value: f32) -> WorkerUpdate {
    let mut tensors = weights().to_map().unwrap();
    for tensor in tensors.values_mut() {
        *tensor = Tensor::from_f32(tensor.shape().dims(), vec![value; tensor.shape().elements()]).unwrap();
    }
    WorkerUpdate {
        node: node.to_owned(),
        rows,
        tensors: SharedTensors::copy_of(&tensors).unwrap(),
    }
}

fn aggregate_request() -> AggregateRequest {
    let train = train_request("fedavg");
    AggregateRequest {
        module: "fedavg".to_owned(),
        settings: train.settings,
        model: train.model,
        statistics: names(&[]),
        round: RoundInfo {
            index: 1,
            count: 10,
            seed: 7,
            step: 0,
        },
        update: UpdateKind::Model,
        slots: SharedSlots::default(),
        limits: train.limits,
        timeout: Duration::from_secs(60),
    }
}

#[test]
fn an_aggregator_pulls_updates_one_by_one() {
    let Some(module) = guest("aggregate-fedavg") else {
        return;
    };
    let mut runner = runner();
    assert_eq!(runner.load_module("fedavg", &module).unwrap().world, "aggregator");
    let mut updates = vec![update("a", 10, 1.0), update("b", 30, 3.0)].into_iter();
    let reply = runner
        .aggregate(&aggregate_request(), &mut || Ok(updates.next()))
        .unwrap();
    for tensor in reply.tensors.to_map().unwrap().values() {
        assert!(
            tensor
                .to_f32_vec()
                .unwrap()
                .iter()
                .all(|value| (value - 2.5).abs() < 1e-6)
        );
    }
    let mut calls = 0;
    let error = runner.aggregate(&aggregate_request(), &mut || {
        calls += 1;
        if calls == 1 {
            Ok(Some(update("a", 10, 1.0)))
        } else {
            Err("worker-b hung up".to_owned())
        }
    });
    assert!(matches!(error, Err(RunnerError::Updates(reason)) if reason == "worker-b hung up"));
    let mut none = || Ok(None);
    assert!(matches!(
        runner.aggregate(&aggregate_request(), &mut none),
        Err(RunnerError::Module(_))
    ));
}

#[test]
#[cfg(not(any(feature = "onnxruntime", feature = "libtorch")))]
fn an_engine_that_was_not_built_in_is_named() {
    for (choice, feature) in [
        (BackendChoice::OnnxRuntime, "onnxruntime"),
        (BackendChoice::Libtorch, "libtorch"),
    ] {
        let mut options = options("runner");
        options.backend = choice;
        let error = Runner::start(options).unwrap_err().to_string();
        assert!(
            error.contains("was built without") && error.contains(feature),
            "{error}"
        );
    }
}
