//! Runners that die, hang or lie: the keeper gets a typed error and lives on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod common;

use std::time::{Duration, Instant};

use cloister_runner::{Death, Runner, RunnerError, SharedTensors};
use cloister_tensor::{Tensor, TensorMap};
use common::*;

/// How a runner that misbehaves at its start ends.
fn start(how: &str) -> (Death, String) {
    let mut options = options(how);
    options.limits.start = Duration::from_millis(1500);
    match Runner::start(options) {
        Err(RunnerError::Died { how, stderr, .. }) => (how, stderr),
        other => panic!("{how}: {other:?}"),
    }
}

#[test]
fn an_exit_is_told_with_its_code_and_last_words() {
    let (how, stderr) = start("exit");
    assert_eq!(how, Death::Exited(7));
    assert!(stderr.ends_with("last [31m words") && stderr.len() < 3000, "{stderr}");
}

#[test]
fn silence_ends_at_the_limit() {
    let started = Instant::now();
    assert_eq!(start("silent").0, Death::Late);
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn garbage_is_refused() {
    for how in [
        "garbage",
        "oversized",
        "lying-length",
        "descriptors",
        "unsealed-message",
        "huge-message",
        "early-update",
    ] {
        let (death, _) = start(how);
        assert!(matches!(&death, Death::Misbehaved(_)), "{how}: {death}");
    }
    assert!(!matches!(start("empty").0, Death::Exited(_)));
}

#[test]
fn lying_results_are_refused() {
    let tensors = TensorMap::from([("w".to_owned(), Tensor::from_f32(&[4], vec![0.0; 4]).unwrap())]);
    for (how, wanted) in [
        ("no-memory", "without their memory"),
        ("unsealed-tensors", "without the seals"),
        ("short-tensors", "do not fit"),
        ("huge-tensors", "at most"),
        ("other-shape", "other tensors than the model's"),
        ("more-tensors", "other tensors than the model's"),
        ("overflowing-shape", "shared tensor"),
        ("long-log", "more metrics or log"),
        ("other-reply", "unexpected reply"),
    ] {
        let mut options = options(how);
        options.limits.tensor_bytes = 1 << 20;
        let mut runner = Runner::start(options).unwrap();
        let mut request = train_request("any");
        request.model = SharedTensors::copy_of(&tensors).unwrap();
        match runner.train(&request) {
            Err(RunnerError::Died {
                how: Death::Misbehaved(problem),
                during: "training",
                ..
            }) => {
                assert!(problem.contains(wanted), "{how}: {problem}");
            }
            other => panic!("{how}: {other:?}"),
        }
        assert_eq!(runner.pid(), None);
        assert!(matches!(runner.train(&request), Err(RunnerError::NotRunning)));
    }
}

#[test]
fn a_crash_of_native_code_is_told_with_its_signal() {
    let mut runner = Runner::start(options("abort")).unwrap();
    let error = runner.evaluate(&evaluate_request()).unwrap_err();
    assert!(
        matches!(
            &error,
            RunnerError::Died {
                how: Death::Signal(6),
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_killed_runner_comes_back_with_everything_loaded() {
    let mut runner = furnished();
    let before = runner.evaluate(&evaluate_request()).unwrap();
    let killer = runner.killer().unwrap();
    killer.kill();
    let error = runner.evaluate(&evaluate_request()).unwrap_err();
    assert!(
        matches!(
            &error,
            RunnerError::Died {
                how: Death::Signal(9),
                ..
            }
        ),
        "{error}"
    );
    runner.restart().unwrap();
    let after = runner.evaluate(&evaluate_request()).unwrap();
    assert_eq!(
        (before.loss, before.correct, before.rows),
        (after.loss, after.correct, after.rows)
    );
    killer.kill();
    assert_eq!(
        runner.evaluate(&evaluate_request()).unwrap().rows,
        after.rows,
        "an old killer does not reach the new process"
    );
}

#[test]
fn a_runner_killed_at_work_is_an_error() {
    let Some(module) = guest("hostile-trainer") else { return };
    let mut runner = furnished();
    runner.load_module("hostile", &module).unwrap();
    let mut request = train_request("hostile");
    request.settings = attack("loop");
    let killer = runner.killer().unwrap();
    let death = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            killer.kill();
        });
        runner.train(&request).unwrap_err()
    });
    assert!(
        matches!(
            &death,
            RunnerError::Died {
                how: Death::Signal(9),
                during: "training",
                ..
            }
        ),
        "{death}"
    );
    // One that hangs is ended by the keeper itself.
    runner.restart().unwrap();
    request.timeout = Duration::from_millis(300);
    let death = runner.train(&request).unwrap_err();
    assert!(matches!(&death, RunnerError::Died { how: Death::Late, .. }), "{death}");
    runner.restart().unwrap();
    assert_eq!(runner.evaluate(&evaluate_request()).unwrap().rows, ROWS as u64);
}
