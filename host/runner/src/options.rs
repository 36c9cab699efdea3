//! How a runner is started and how much it may take.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use cloister_engine::Precision;
use cloister_sandbox::SandboxLimits;
use serde::{Deserialize, Serialize};

use crate::cpus::Cpus;

/// The engine that runs graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendChoice {
    /// OpenVINO if its folder is given and it loads, else tract; the runner's note says why.
    #[default]
    Auto,
    /// OpenVINO or an error.
    OpenVino,
    /// tract, pure Rust.
    Tract,
    /// ONNX Runtime, in a program built with the feature `onnxruntime`.
    OnnxRuntime,
    /// libtorch for steps in TorchScript and tract for graphs in ONNX, in a program built with the feature `libtorch`.
    Libtorch,
}

/// What happens on a kernel that can't take from the process everything that it should not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Confinement {
    /// The runner does not start.
    #[default]
    Required,
    /// It starts, and [`Runner::unconfined`](crate::Runner::unconfined) says what is open: for simulation, where nothing is
    /// protected from whoever owns the machine.
    WherePossible,
}

/// Limits on what passes between keeper and runner, and on what the process takes of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerLimits {
    /// Bytes of all tensors of a model or an update.
    pub tensor_bytes: u64,
    /// Bytes of a module's or a graph's file.
    pub file_bytes: u64,
    /// Bytes of a dataset in memory.
    pub dataset_bytes: u64,
    /// Private memory of the process that can be written, engine and guests together.
    pub memory_bytes: u64,
    /// Modules, graphs and datasets that are loaded, each.
    pub loaded: usize,
    /// Time to start: the libraries are loaded.
    pub start: Duration,
    /// Time to load one module, graph or dataset.
    pub load: Duration,
}

impl Default for RunnerLimits {
    /// 1 GiB of tensors, 1 GiB a file, 4 GiB a dataset, 16 GiB of memory, 256 of each, 60 s to start, 600 s to load.
    fn default() -> Self {
        Self {
            tensor_bytes: 1 << 30,
            file_bytes: 1 << 30,
            dataset_bytes: 4 << 30,
            memory_bytes: 16 << 30,
            loaded: 256,
            start: Duration::from_secs(60),
            load: Duration::from_secs(600),
        }
    }
}

/// How a runner is started.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// The program: the keeper's own.
    pub exe: PathBuf,
    /// Its arguments, which must end in [`runner_main`](crate::runner_main).
    pub args: Vec<OsString>,
    /// The engine.
    pub backend: BackendChoice,
    /// The folder of OpenVINO's libraries.
    pub openvino_dir: Option<PathBuf>,
    /// The folder of ONNX Runtime's or libtorch's libraries, where one of them is the engine.
    pub library_dir: Option<PathBuf>,
    /// Threads of the engine, at least 1.
    pub threads: usize,
    /// What the engine computes in; the runner does not start where it can't.
    pub precision: Precision,
    /// Whether OpenVINO keeps each of its threads on a processor core of its own.
    pub pinning: bool,
    /// The processors that the runner keeps to; `None`: all that the keeper may use. It does not start where one is not there.
    pub cpus: Option<Cpus>,
    /// What holds for the sandbox as a whole.
    pub sandbox: SandboxLimits,
    /// What passes between keeper and runner.
    pub limits: RunnerLimits,
    /// Whether the process has to be confined in full.
    pub confinement: Confinement,
}

impl RunnerOptions {
    /// One engine thread, any backend, f32, default limits, confined in full; `exe` is started with the argument `runner`.
    pub fn new(exe: impl Into<PathBuf>) -> Self {
        Self {
            exe: exe.into(),
            args: vec!["runner".into()],
            backend: BackendChoice::Auto,
            openvino_dir: None,
            library_dir: None,
            threads: 1,
            precision: Precision::default(),
            pinning: false,
            cpus: None,
            sandbox: SandboxLimits::default(),
            limits: RunnerLimits::default(),
            confinement: Confinement::default(),
        }
    }
}
