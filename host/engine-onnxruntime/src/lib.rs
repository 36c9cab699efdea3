//! ONNX Runtime on the CPU, over the `ort` crate, loaded at run time: an engine behind [`cloister_engine::Backend`].
//!
//! Optional: the node has it with its feature `onnxruntime`. [`load`] does everything that needs a file, and proves the
//! library on a graph; a process that has called it compiles and runs graphs without opening anything more.
//!
//! Inputs are read where they lie, and outputs are not copied. A run is ended at its deadline between two operators.
//! The CPU's kernels compute in the graph's own types; no setting of ours lets them use less.
#![forbid(unsafe_code)]

mod compiled;
mod values;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cloister_engine::{Backend, CompileOptions, Compiled, EngineError, Watchdog, bounded};
use cloister_graph::{EngineGraph, samples};
use cloister_tensor::Tensor;
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

/// The version that this program is tested with; [`load`] refuses others.
pub const VERSION: &str = "1.31.1";

/// The file that has to be in the library's folder, 29 MB. It needs the system's C and C++ libraries, and no other.
pub const LIBRARY_FILES: [&str; 1] = ["libonnxruntime.so.1.31.1"];

const NAME: &str = "onnxruntime 1.31.1";

/// The runtime, loaded and proven.
#[derive(Clone)]
pub struct OnnxRuntime {
    environment: Environment,
    watchdog: Arc<Watchdog>,
}

impl std::fmt::Debug for OnnxRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxRuntime")
            .field("version", &VERSION)
            .finish_non_exhaustive()
    }
}

/// Loads the runtime from the folder that holds [`LIBRARY_FILES`].
///
/// The library stays loaded until the process ends, so a second call must name the same folder.
///
/// # Errors
/// [`EngineError::Library`] if the file is not there or can't be loaded, or another folder was loaded before;
/// [`EngineError::Version`] for another version than [`VERSION`]; any other if the proof fails.
pub fn load(dir: &Path) -> Result<OnnxRuntime, EngineError> {
    static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);
    let refuse = |path: &Path, cause: String| EngineError::Library {
        path: path.to_owned(),
        cause,
    };
    let path = dir.join(LIBRARY_FILES[0]);
    let path = path.canonicalize().map_err(|error| {
        let cause = format!("{error}: the folder must hold ONNX Runtime {VERSION}");
        refuse(&path, cause)
    })?;
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let environment = match loaded.as_ref() {
        Some((before, environment)) if *before == path => environment.clone(),
        Some((before, _)) => {
            let cause = format!("this process has already loaded {}", before.display());
            return Err(refuse(&path, cause));
        }
        None => {
            let builder = ort::init_from(&path).map_err(|error| refuse(&path, error.to_string()))?;
            let environment = builder.with_name("cloister").with_telemetry(false).build();
            let environment = environment.map_err(|error| refuse(&path, error.to_string()))?;
            *loaded = Some((path, environment.clone()));
            environment
        }
    };
    drop(loaded);
    let build = ort::info();
    if !names_version(build) {
        return Err(EngineError::Version {
            seen: build.to_owned(),
            wanted: VERSION,
        });
    }
    let runtime = OnnxRuntime {
        environment,
        watchdog: Arc::default(),
    };
    runtime.prove()?;
    tracing::debug!(build, "ONNX Runtime loaded");
    Ok(runtime)
}

/// Whether `ORT Build Info: git-branch=rel-1.31.1, ...` tells of [`VERSION`]; a text of another form is taken as it comes, since the
/// library's own check of its interface has passed.
fn names_version(build: &str) -> bool {
    build
        .split_once("rel-")
        .is_none_or(|(_, branch)| branch.split(',').next() == Some(VERSION))
}

impl OnnxRuntime {
    /// Runs a step of a small model: afterwards nothing is left to load.
    fn prove(&self) -> Result<(), EngineError> {
        let failed = |cause: String| EngineError::Run {
            backend: NAME.into(),
            during: "proving the library",
            cause,
        };
        let model = samples::logistic(2, 2, 1).and_then(|file| samples::parsed(&file));
        let graph = model
            .and_then(|model| model.at_batch(1))
            .map_err(|error| failed(error.to_string()))?;
        let mut compiled = self.compile(&graph, &CompileOptions::default())?;
        let inputs: Vec<(String, Tensor)> = graph
            .inputs()
            .iter()
            .filter_map(|port| {
                let count = port.shape.iter().product();
                Some((port.name.clone(), Tensor::from_f32(&port.shape, vec![0.0; count]).ok()?))
            })
            .collect();
        let inputs: Vec<(&str, Tensor)> = inputs
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.clone()))
            .collect();
        let outputs = compiled.run(&inputs, None)?;
        // Whatever the weights: of zeros there are as many finite logits as classes.
        let finite = outputs
            .iter()
            .all(|(_, tensor)| tensor.to_f64_vec().iter().all(|value| value.is_finite()));
        if outputs.is_empty() || !finite {
            return Err(failed(format!("a logistic regression of zeros gives {outputs:?}")));
        }
        Ok(())
    }

    fn builder(&self, options: &CompileOptions) -> Result<SessionBuilder, ort::Error> {
        let builder = Session::builder(&self.environment)?
            .with_optimization_level(GraphOptimizationLevel::Level3)?
            .with_deterministic_compute(true)?
            .with_parallel_execution(false)?
            // Several nodes on one machine don't wait for each other's waiting threads.
            .with_intra_op_spinning(false)?;
        Ok(match options.threads {
            Some(threads) => builder.with_intra_threads(threads.get())?,
            None => builder,
        })
    }
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &str {
        NAME
    }

    fn can(&self, options: &CompileOptions) -> Result<(), EngineError> {
        options.precision.f32_alone(NAME)
    }

    fn compile(&self, graph: &EngineGraph, options: &CompileOptions) -> Result<Box<dyn Compiled>, EngineError> {
        self.can(options)?;
        let file = cloister_engine::onnx(graph, NAME)?;
        let session = self
            .builder(options)
            .and_then(|mut builder| builder.commit_from_memory(file))
            .map_err(|error| EngineError::Compile {
                backend: NAME.into(),
                digest: graph.digest(),
                cause: bounded(error.to_string()),
            })?;
        let compiled = compiled::CompiledByOnnxRuntime::new(session, Arc::clone(&self.watchdog), graph)?;
        Ok(Box::new(compiled))
    }
}

fn failed(during: &'static str, cause: impl std::fmt::Display) -> EngineError {
    EngineError::Run {
        backend: NAME.into(),
        during,
        cause: bounded(cause.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_file_and_version_are_of_one_release() {
        assert_eq!(NAME, format!("onnxruntime {VERSION}"));
        assert_eq!(LIBRARY_FILES[0], format!("libonnxruntime.so.{VERSION}"));
        assert!(names_version(&format!(
            "ORT Build Info: git-branch=rel-{VERSION}, git-commit-id=1"
        )));
        assert!(!names_version("ORT Build Info: git-branch=rel-1.30.0, git-commit-id=1"));
    }
}
