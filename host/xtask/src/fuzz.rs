//! `cargo xtask fuzz`: builds the targets of tests/fuzz with coverage instrumentation and runs them under libFuzzer.
//!
//! No cargo-fuzz and no nightly compiler are needed: the instrumentation is LLVM's, which the stable compiler passes on.
//! Everything is below `target/fuzz`: builds, the corpus of each target (it grows from run to run), and what was found.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::problem::{Outcome, Problem};
use crate::process::{must, run as run_program, say};
use crate::workspace::Workspace;

/// The platform that is fuzzed on. Naming it keeps the instrumentation out of build scripts.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What libFuzzer needs of the code: counters of edges, a table of their places, and the operands of comparisons.
const INSTRUMENTATION: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cforce-frame-pointers=yes",
];

/// Most memory of a target, in MiB, and of one allocation: no input may make a parser take more.
const MEMORY_MIB: u32 = 2048;
const ALLOCATION_MIB: u32 = 512;
/// Longest time for one input, in seconds: of the clock, so a busy machine has to be thought of.
const INPUT_S: u32 = 120;
/// Longest input, in bytes.
const INPUT_BYTES: u32 = 96 * 1024;

/// Build the fuzz targets of tests/fuzz and run them, one after the other.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask fuzz
  cargo xtask fuzz quote --seconds 600
  cargo xtask fuzz handshake -- -runs=0        the corpus only, for a look at coverage
  cargo xtask fuzz quote -- target/fuzz/found/quote/crash-1234   one input again")]
pub struct FuzzArgs {
    /// These targets; all without it.
    pub targets: Vec<String>,
    /// How long each runs.
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub seconds: u32,
    /// What goes to libFuzzer. A file runs that input alone.
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub rest: Vec<String>,
}

/// Builds and runs. A target that finds something does not keep the others from running.
pub fn run(workspace: &Workspace, args: &FuzzArgs) -> Outcome<ExitCode> {
    let known = targets(workspace)?;
    if let Some(unknown) = args.targets.iter().find(|name| !known.contains(name)) {
        return Err(Problem::new(
            format!("there is no fuzz target {unknown}"),
            format!("the targets are {}", known.join(", ")),
        ));
    }
    let chosen = if args.targets.is_empty() { &known } else { &args.targets };
    let folder = workspace.fuzz();
    build(workspace, &folder, chosen)?;
    let mut found = Vec::new();
    for target in chosen {
        if !fuzz(workspace, &folder, target, args)? {
            found.push(target.as_str());
        }
    }
    if found.is_empty() {
        say(format_args!("[fuzz] {} targets found nothing", chosen.len()));
        return Ok(ExitCode::SUCCESS);
    }
    Err(Problem::new(
        format!("the fuzz targets {} found something", found.join(", ")),
        format!(
            "the inputs are in {}; run one again as `cargo xtask fuzz TARGET -- FILE`, correct the code, and keep the input as a \
             case of an ordinary test",
            folder.join("found").display()
        ),
    ))
}

/// The targets, by their files.
fn targets(workspace: &Workspace) -> Outcome<Vec<String>> {
    let folder = workspace.root().join("tests/fuzz/fuzz_targets");
    let entries = std::fs::read_dir(&folder).map_err(|error| Problem::io("read", &folder, &error))?;
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "rs"))
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn build(workspace: &Workspace, folder: &Path, targets: &[String]) -> Outcome<()> {
    say("[fuzz] building the targets with instrumentation (some minutes the first time)");
    let mut command = workspace.cargo();
    command
        .current_dir(workspace.root().join("tests/fuzz"))
        .args(["build", "--release", "--locked", "--target", PLATFORM, "--target-dir"])
        .arg(folder.join("build"))
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    for target in targets {
        command.args(["--bin", target]);
    }
    must(
        &mut command,
        "read the compiler's message above; a C++ compiler is needed for libFuzzer",
    )
}

/// Runs one target; says whether it found nothing.
fn fuzz(workspace: &Workspace, folder: &Path, target: &str, args: &FuzzArgs) -> Outcome<bool> {
    let corpus = made(folder.join("corpus"))?;
    let own = made(corpus.join(target))?;
    let found = made(folder.join("found").join(target))?;
    let program = folder.join("build").join(PLATFORM).join("release").join(target);
    let mut command = std::process::Command::new(program);
    command
        .current_dir(workspace.root())
        .env("CLOISTER_FUZZ_CORPUS", &corpus)
        .arg(format!("-artifact_prefix={}/", found.display()))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-malloc_limit_mb={ALLOCATION_MIB}"))
        .arg(format!("-timeout={INPUT_S}"));
    if args.rest.iter().any(|argument| !argument.starts_with('-')) {
        say(format_args!("[fuzz] {target}: the inputs that were named"));
    } else {
        say(format_args!("[fuzz] {target}: {} s", args.seconds));
        command
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-max_len={INPUT_BYTES}"))
            .args(["-print_final_stats=1", "-verbosity=1", "-use_value_profile=1"]);
    }
    command.args(&args.rest);
    if !args.rest.iter().any(|argument| !argument.starts_with('-')) {
        command.arg(&own);
    }
    let status = run_program(&mut command, "build the targets again with `cargo xtask fuzz`")?;
    Ok(status.success())
}

/// A folder that is there.
fn made(folder: PathBuf) -> Outcome<PathBuf> {
    std::fs::create_dir_all(&folder).map_err(|error| Problem::io("make", &folder, &error))?;
    Ok(folder)
}
