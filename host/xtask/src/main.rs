//! `cargo xtask`: sets a fresh machine up, then runs the demo, the examples, the tests or the benches.
//!
//! Everything it says goes to stderr; stdout belongs to the programs that it runs, so that
//! `cargo xtask demo -- -o json` ends stdout with one JSON object.
#![forbid(unsafe_code)]
// In a binary, `pub` marks what a module offers to the others; nothing is reachable from outside.
#![allow(
    unreachable_pub,
    reason = "a binary exports nothing; `pub` says what a module offers to its neighbours"
)]

mod bench;
mod cargo;
mod clean;
mod demo;
mod example;
mod fuzz;
mod layers;
mod problem;
mod process;
mod setup;
mod source;
mod test;
mod workspace;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use problem::Outcome;
use workspace::Workspace;

/// Sets up what is missing, then runs the demo, the tests, an example or the benches.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 120, after_help = HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
Environment:
  CLOISTER_OPENVINO_DIR    a folder that holds the OpenVINO libraries, taken instead of the pinned wheel
  CLOISTER_ONNXRUNTIME_DIR a folder that holds ONNX Runtime's library, taken instead of the pinned wheel (`test --backends`)
  CLOISTER_LIBTORCH_DIR    a folder that holds libtorch's libraries and the plug-in, likewise
  CLOISTER_GUEST_TOOLCHAIN rustup or debian: where the compiler of the guests comes from (default: the first that works)

Examples:
  cargo xtask demo
  cargo xtask demo -- -o json
  cargo xtask example hospitals
  cargo xtask test --stage layers";

#[derive(Subcommand, Debug)]
enum Command {
    /// Fetch the guest toolchain and OpenVINO, build the guests and the `cloister` binary.
    Setup(setup::SetupArgs),
    /// Set up, then train the digits model in a federation of three nodes on this machine.
    Demo(demo::DemoArgs),
    /// Set up, then run one folder of examples/.
    Example(example::ExampleArgs),
    /// Set up, then check formatting, lints, layers and licences, and run all tests.
    Test(test::TestArgs),
    /// Set up, then run the benches (release profile).
    Bench(bench::BenchArgs),
    /// Build the fuzz targets of tests/fuzz and run them.
    Fuzz(fuzz::FuzzArgs),
    /// Remove what the set-up fetched and built.
    Clean(clean::CleanArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(problem) => {
            // Nothing is left to be done when stderr is closed.
            let _ = writeln!(std::io::stderr().lock(), "xtask: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Outcome<ExitCode> {
    let workspace = Workspace::locate()?;
    match cli.command {
        Command::Setup(args) => setup::run(&workspace, &args),
        Command::Demo(args) => demo::run(&workspace, &args),
        Command::Example(args) => example::run(&workspace, &args),
        Command::Test(args) => test::run(&workspace, &args),
        Command::Bench(args) => bench::run(&workspace, &args),
        Command::Fuzz(args) => fuzz::run(&workspace, &args),
        Command::Clean(args) => clean::run(&workspace, &args),
    }
}
