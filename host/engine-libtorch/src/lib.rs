//! libtorch on the CPU, for steps in TorchScript: an engine behind [`cloister_engine::Backend`].
//!
//! Optional: the node has it with its feature `libtorch`. [`load`] loads a plug-in (`plugin/`, the `tch` crate behind a C
//! interface) out of the folder that holds libtorch's libraries, and proves it on a step: so the host needs none of it to be built, and
//! a process that does not ask for this engine never maps it. A process that has called [`load`] opens nothing more.
//!
//! It runs [`EngineGraph`]s in [`Language::TorchScript`] alone: what libtorch gets is the class that `cloister_graph` wrote, in an
//! archive that is made here, without weights and without a stranger's bytes. libtorch computes in f32 where the step says so.
//!
//! A run can't be ended from outside: at its deadline its result is refused, when it comes; a run that does not come back is
//! ended with its process, by whoever watches that.
#![allow(unsafe_code, reason = "native bindings; each block has its SAFETY line")]

pub mod abi;
mod archive;
mod plugin;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloister_engine::{Backend, CompileOptions, Compiled, EngineError, Intake, bounded};
use cloister_graph::{EngineGraph, Language, Port};
use cloister_tensor::Tensor;

use plugin::{Plugin, Step};

/// The version that the plug-in is made for; [`load`] refuses others.
pub const VERSION: &str = "2.13.0";

/// The files that have to be in the libraries' folder, 445 MB together: the plug-in, libtorch, its threads, and what it links of
/// CUDA and never calls. They find each other in one folder without any environment.
pub const LIBRARY_FILES: [&str; 6] = [
    "libcloister_torch.so",
    "libtorch_cpu.so",
    "libc10.so",
    "libgomp.so.1",
    "libcupti.so.13",
    "libcudart.so.13",
];

const NAME: &str = "libtorch 2.13.0";

/// Threads where nobody says how many.
const THREADS: u32 = 1;

/// The library, loaded and proven.
#[derive(Clone, Debug)]
pub struct Libtorch {
    plugin: Arc<Plugin>,
}

/// Loads the plug-in and libtorch from the folder that holds [`LIBRARY_FILES`].
///
/// They stay loaded until the process ends, so a second call must name the same folder.
///
/// # Errors
/// [`EngineError::Library`] if a file is not there or can't be loaded, or another folder was loaded before;
/// [`EngineError::Version`] for another version than [`VERSION`]; any other if the proof fails.
pub fn load(dir: &Path) -> Result<Libtorch, EngineError> {
    static LOADED: Mutex<Option<(PathBuf, Arc<Plugin>)>> = Mutex::new(None);
    let refuse = |path: &Path, cause: String| EngineError::Library {
        path: path.to_owned(),
        cause,
    };
    let dir = dir.canonicalize().map_err(|error| refuse(dir, error.to_string()))?;
    for file in LIBRARY_FILES {
        if !dir.join(file).is_file() {
            let cause = format!("no such file: the folder must hold libtorch {VERSION} and Cloister's plug-in");
            return Err(refuse(&dir.join(file), cause));
        }
    }
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let plugin = match loaded.as_ref() {
        Some((before, plugin)) if *before == dir => Arc::clone(plugin),
        Some((before, _)) => {
            let cause = format!("this process has already loaded {}", before.display());
            return Err(refuse(&dir, cause));
        }
        None => {
            let path = dir.join(LIBRARY_FILES[0]);
            let plugin = Arc::new(Plugin::load(&path).map_err(|cause| refuse(&path, cause))?);
            *loaded = Some((dir, Arc::clone(&plugin)));
            plugin
        }
    };
    drop(loaded);
    if plugin.name() != NAME {
        return Err(EngineError::Version {
            seen: plugin.name().to_owned(),
            wanted: NAME,
        });
    }
    let libtorch = Libtorch { plugin };
    libtorch.prove()?;
    tracing::debug!(name = NAME, "libtorch loaded");
    Ok(libtorch)
}

/// `y = relu(x)` and its gradient, of one number: what [`load`] runs.
const PROOF: &str = "cloister torchscript step 1
input\tx\tF32\t[1]\tdata
output\ty\tF32\t[1]\toutput
output\tslope\tF32\t[1]\toutput
v0 = leaf(i0)
v1 = relu(v0)
v2 = gradients(v1, [v0])
return v1, v2
";

impl Libtorch {
    /// Runs [`PROOF`]: afterwards the library, its compiler and its automatic differentiation are known to work.
    fn prove(&self) -> Result<(), EngineError> {
        let failed = |cause: String| EngineError::Run {
            backend: NAME.into(),
            during: "proving the library",
            cause,
        };
        let graph = EngineGraph::load(PROOF.as_bytes()).map_err(|error| failed(error.to_string()))?;
        let mut compiled = self.compile(&graph, &CompileOptions::default())?;
        for (x, wanted) in [(-1.0, [0.0, 0.0]), (3.0, [3.0, 1.0])] {
            let outputs = compiled.run(&[("x", Tensor::scalar_f32(x))], None)?;
            let seen: Vec<Option<f64>> = outputs.iter().map(|(_, tensor)| tensor.first_f64()).collect();
            if seen != wanted.map(Some) {
                return Err(failed(format!(
                    "relu({x}) and its slope are {seen:?}, wanted {wanted:?}"
                )));
            }
        }
        Ok(())
    }
}

impl Backend for Libtorch {
    fn name(&self) -> &str {
        NAME
    }

    fn can(&self, options: &CompileOptions) -> Result<(), EngineError> {
        options.precision.f32_alone(NAME)
    }

    fn compile(&self, graph: &EngineGraph, options: &CompileOptions) -> Result<Box<dyn Compiled>, EngineError> {
        self.can(options)?;
        let refuse = |cause: String| EngineError::Compile {
            backend: NAME.into(),
            digest: graph.digest(),
            cause: bounded(cause),
        };
        if graph.language() != Language::TorchScript {
            let cause = "it is ONNX, and libtorch runs steps in TorchScript: make one of the model in PyTorch by \
                         benches/torch_step.py, or choose another engine";
            return Err(refuse(cause.to_owned()));
        }
        let archive = archive::of(graph.bytes()).map_err(refuse)?;
        let step = Plugin::step(&self.plugin, &archive).map_err(refuse)?;
        let threads = options.threads.map(|threads| u32::try_from(threads.get()));
        let threads = threads
            .transpose()
            .map_err(|_| refuse("so many threads can't be had".to_owned()))?;
        Ok(Box::new(CompiledByLibtorch {
            step,
            threads: threads.unwrap_or(THREADS),
            intake: Intake::new(graph.inputs()),
            outputs: graph.outputs().to_vec(),
        }))
    }
}

struct CompiledByLibtorch {
    step: Step,
    threads: u32,
    intake: Intake,
    outputs: Vec<Port>,
}

impl Compiled for CompiledByLibtorch {
    fn inputs(&self) -> &[Port] {
        self.intake.ports()
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(
        &mut self,
        inputs: &[(&str, Tensor)],
        deadline: Option<Duration>,
    ) -> Result<Vec<(String, Tensor)>, EngineError> {
        let begin = Instant::now();
        let late = || {
            deadline
                .filter(|after| begin.elapsed() >= *after)
                .map(|after| EngineError::Deadline { after })
        };
        let arranged = self.intake.arrange(inputs)?;
        if let Some(late) = late() {
            return Err(late);
        }
        let failed = |cause: String| EngineError::Run {
            backend: NAME.into(),
            during: "running the step",
            cause: bounded(cause),
        };
        let made = self.step.run(self.threads, &arranged, &self.outputs).map_err(failed)?;
        match late() {
            Some(late) => Err(late),
            None => Ok(self.outputs.iter().map(|port| port.name.clone()).zip(made).collect()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_libraries_is_refused_by_name() {
        let error = load(Path::new("/nowhere/at/all"))
            .map(|_| ())
            .map_err(|error| error.to_string());
        assert!(error.is_err_and(|error| error.contains("/nowhere/at/all")));
        assert_eq!(NAME, format!("libtorch {VERSION}"));
    }
}
