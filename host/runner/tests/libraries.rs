//! What native code is in a runner, and that the host measures it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cloister_engine::openvino;
use cloister_runner::{BackendChoice, Runner};
use common::*;

/// The files that a process has mapped, memory apart.
fn mapped(pid: u32) -> std::io::Result<BTreeSet<PathBuf>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let paths = maps
        .lines()
        .filter_map(|line| line.split_once('/').map(|(_, path)| format!("/{path}")));
    Ok(paths
        .filter(|path| !path.ends_with("(deleted)"))
        .map(PathBuf::from)
        .collect())
}

#[test]
fn every_library_in_a_runner_is_one_that_the_host_measures_or_the_systems() {
    let Some(dir) = std::env::var_os("CLOISTER_OPENVINO_DIR").map(PathBuf::from) else {
        eprintln!("SKIPPED: CLOISTER_OPENVINO_DIR is not set; `cargo xtask test` sets OpenVINO up and sets it");
        return;
    };
    let mut options = options("runner");
    options.backend = BackendChoice::OpenVino;
    options.openvino_dir = Some(dir.clone());
    let mut runner = Runner::start(options).unwrap();
    let graphs = graphs(BATCH);
    runner.load_graph("train", graphs.training.bytes()).unwrap();
    let seen = match mapped(runner.pid().unwrap()) {
        Ok(seen) => seen,
        Err(error) => {
            eprintln!("SKIPPED: the runner's memory map can't be read ({error}); its owner or root may");
            return;
        }
    };
    let dir = dir.canonicalize().unwrap();
    let measured: BTreeSet<PathBuf> = openvino::files(&dir)
        .unwrap()
        .iter()
        .map(|name| dir.join(name))
        .collect();
    for library in openvino::LIBRARY_FILES {
        assert!(seen.contains(&dir.join(library)), "{library} is loaded: {seen:?}");
    }
    let own = Path::new(env!("CARGO_BIN_EXE_cloister-runner-test"))
        .canonicalize()
        .unwrap();
    let of_the_system = |path: &Path| {
        ["/lib", "/lib64", "/usr/lib", "/usr/lib64"]
            .iter()
            .any(|folder| path.starts_with(folder))
    };
    for path in seen {
        assert!(
            measured.contains(&path) || path == own || of_the_system(&path),
            "{} is measured by nobody",
            path.display()
        );
    }
}
