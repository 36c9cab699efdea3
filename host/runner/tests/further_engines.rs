//! Engines that a program has by its features, in a runner that is confined in full. `cargo xtask test --backends` runs them.
#![cfg(any(feature = "onnxruntime", feature = "libtorch"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod common;

use cloister_runner::{BackendChoice, Confinement, Runner, RunnerOptions};
use common::*;

/// Required confinement: an engine that asked for more after its start would be refused it, and fail.
fn confined(backend: BackendChoice, variable: &str) -> RunnerOptions {
    let mut options = options("runner");
    options.backend = backend;
    options.threads = 2;
    options.confinement = Confinement::Required;
    options.library_dir = Some(
        std::env::var_os(variable)
            .expect("`cargo xtask test --backends` names it")
            .into(),
    );
    options
}

fn evaluates_as_tract_does(runner: &mut Runner) {
    open_rows(runner);
    let mut request = evaluate_request();
    request.graphs = names(&["evaluate@32", "evaluate@6"]);
    let seen = runner.evaluate(&request).unwrap();
    let wanted = furnished().evaluate(&evaluate_request()).unwrap();
    assert!((seen.loss - wanted.loss).abs() < 1e-5, "{seen:?} {wanted:?}");
    assert_eq!((seen.rows, seen.correct), (wanted.rows, wanted.correct));
}

#[test]
#[cfg(feature = "onnxruntime")]
fn onnxruntime_computes_in_a_confined_runner() {
    let mut runner = Runner::start(confined(BackendChoice::OnnxRuntime, "CLOISTER_ONNXRUNTIME_DIR")).unwrap();
    assert!(runner.backend().starts_with("onnxruntime"), "{}", runner.backend());
    runner.load_graph("train", graphs(BATCH).training.bytes()).unwrap();
    for batch in [BATCH, REST] {
        let name = format!("evaluate@{batch}");
        runner.load_graph(&name, graphs(batch).evaluation.bytes()).unwrap();
    }
    evaluates_as_tract_does(&mut runner);
}

/// An evaluation in TorchScript that takes gradients besides, for nothing: so that both are tried where nothing can be opened.
#[cfg(feature = "libtorch")]
fn evaluation_step(batch: usize) -> String {
    format!(
        "cloister torchscript step 1
input\tx\tF32\t[{batch}, {INPUTS}]\tdata
input\tlabels\tI64\t[{batch}]\tlabels
input\tfc1.weight\tF32\t[8, {INPUTS}]\tparameter
input\tfc1.bias\tF32\t[8]\tparameter
input\tfc2.weight\tF32\t[{CLASSES}, 8]\tparameter
input\tfc2.bias\tF32\t[{CLASSES}]\tparameter
output\tloss\tF32\t[1]\tloss
output\tcorrect\tI64\t[1]\tcorrect
classes\t{CLASSES}
v0 = leaf(i2)
v1 = linear(i0, v0, i3)
v2 = relu(v1)
v3 = linear(v2, i4, i5)
v4 = cross_entropy_loss(v3, i1, None, 1, -100, 0.0)
v5 = gradients(v4, [v0])
v6 = sum(v5)
v7 = mul(v6, 0.0)
v8 = add(v4, v7)
v9 = reshape(v8, [1])
v10 = argmax(v3, 1)
v11 = eq(v10, i1)
v12 = sum(v11)
v13 = reshape(v12, [1])
return v9, v13
"
    )
}

#[test]
#[cfg(feature = "libtorch")]
fn libtorch_computes_steps_in_a_confined_runner_and_tract_the_onnx_beside_them() {
    let mut runner = Runner::start(confined(BackendChoice::Libtorch, "CLOISTER_LIBTORCH_DIR")).unwrap();
    assert!(runner.backend().starts_with("libtorch"), "{}", runner.backend());
    let step = evaluation_step(BATCH);
    let info = runner.load_graph("evaluate@32", step.as_bytes()).unwrap();
    // What a policy names is the file, whatever is made of it.
    assert_eq!(info.source_digest, cloister_tensor::Digest::of(step.as_bytes()));
    runner
        .load_graph("evaluate@6", graphs(REST).evaluation.bytes())
        .unwrap();
    evaluates_as_tract_does(&mut runner);
    let hostile = step.replace("relu(v1)", "from_file(v1)");
    let error = runner.load_graph("hostile", hostile.as_bytes()).unwrap_err();
    assert!(error.to_string().contains("from_file"), "{error}");
    assert!(runner.pid().is_some());
}

#[test]
#[cfg(feature = "libtorch")]
fn without_its_libraries_an_engine_does_not_start() {
    let mut options = confined(BackendChoice::Libtorch, "CLOISTER_LIBTORCH_DIR");
    options.library_dir = Some("/nowhere".into());
    let error = Runner::start(options.clone()).unwrap_err().to_string();
    assert!(error.contains("/nowhere"), "{error}");
    options.library_dir = None;
    assert!(Runner::start(options).is_err());
}
