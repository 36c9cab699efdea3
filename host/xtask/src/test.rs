//! `cargo xtask test`: stages, each timed, and a table at the end.

mod backends;
mod checks;
mod run;
mod stages;
mod summary;

use std::process::ExitCode;

use crate::layers;
use crate::problem::Outcome;
use crate::setup;
use crate::workspace::Workspace;

use stages::{Stage, Stages};

/// Set up, then check formatting, lints, layers and licences, and run all tests.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct TestArgs {
    /// The long tests (marked `#[ignore]`) as well.
    #[arg(long)]
    pub long: bool,
    /// These stages only, and the set-up that they need; may be repeated.
    #[arg(long, value_enum, value_name = "STAGE")]
    pub stage: Vec<Stage>,
    /// The optional engines, ONNX Runtime and libtorch, and nothing else: fetch their libraries, build them, and run on them the
    /// tests that every engine has to pass.
    #[arg(long, conflicts_with_all = ["long", "stage"])]
    pub backends: bool,
    /// What goes to the test runner: names of tests to run.
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub rest: Vec<String>,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask test
  cargo xtask test --long
  cargo xtask test --stage format --stage layers
  cargo xtask test --stage tests -- vault
  cargo xtask test --backends";

/// Runs the stages. A stage that fails does not keep those from running that do not need it.
pub fn run(workspace: &Workspace, args: &TestArgs) -> Outcome<ExitCode> {
    if args.backends {
        return backends::run(workspace, args);
    }
    let mut stages = Stages::new(&args.stage);
    stages.check(Stage::Format, || checks::format(workspace));
    stages.check(Stage::Layers, || layers::check(workspace));
    stages.check(Stage::Licences, || checks::licences(workspace));

    let toolchain = stages.provide(Stage::Toolchain, || setup::toolchain::provide(workspace));
    let openvino = stages.provide(Stage::Openvino, || setup::openvino::provide(workspace));
    let guests = toolchain
        .as_ref()
        .and_then(|toolchain| stages.provide(Stage::Guests, || setup::guests::build(workspace, toolchain)));
    stages.check(Stage::Lints, || checks::lints(workspace));
    match &toolchain {
        Some(toolchain) => stages.check(Stage::GuestLints, || checks::guest_lints(workspace, toolchain)),
        None => stages.skip(Stage::GuestLints, "there is no compiler of guests"),
    }
    stages.tests(Stage::GuestTests, || run::guest_tests(workspace));
    stages.check(Stage::FuzzTargets, || checks::fuzz_targets(workspace));
    let cloister = stages.provide(Stage::Build, || {
        setup::host::build(workspace, setup::host::Profile::Dev)
    });

    match (guests, openvino, cloister) {
        (Some(guests), Some(openvino), Some(cloister)) => {
            let prepared = setup::Prepared {
                cloister,
                guests,
                openvino,
            };
            stages.check(Stage::BuildTests, || run::build(workspace, &prepared));
            stages.tests(Stage::Tests, || run::tests(workspace, &prepared, args));
            stages.tests(Stage::DocTests, || run::doctests(workspace, &prepared));
        }
        _ => {
            for stage in [Stage::BuildTests, Stage::Tests, Stage::DocTests] {
                stages.skip(stage, "the set-up failed");
            }
        }
    }
    Ok(stages.finish())
}
