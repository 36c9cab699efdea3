//! OpenVINO on the CPU, over its C API, loaded at run time.
//!
//! [`load`] does everything that needs a file: it loads the libraries, the CPU plugin and the ONNX frontend, and
//! proves them on a graph of one operator. A process that has called it can compile and run graphs without opening
//! anything more.

mod compiled;
mod ffi;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cloister_graph::EngineGraph;
use cloister_tensor::{Dtype, Tensor};

use crate::error::bounded;
use crate::pool::Pool;
use crate::watchdog::Watchdog;
use crate::{Backend, CompileOptions, Compiled, EngineError, Precision};

/// The version that this program is tested with; [`load`] refuses others.
pub const VERSION: &str = "2026.4.1";

/// The files of OpenVINO's `libs` folder that have to be there, 93 MB together: the runtime, its C API, the CPU plugin, the
/// frontend that reads ONNX, and its threads. The libraries find each other in one folder without any environment.
pub const LIBRARY_FILES: [&str; 5] = [
    "libopenvino.so.2641",
    "libopenvino_c.so.2641",
    "libopenvino_intel_cpu_plugin.so",
    "libopenvino_onnx_frontend.so.2641",
    "libtbb.so.12",
];

const C_LIBRARY: &str = LIBRARY_FILES[1];

/// Most files that the folder may hold.
const MAX_FILES: usize = 64;

/// The names of all files in the folder of the libraries, sorted. OpenVINO loads frontends and plugins by what it finds there,
/// so each of them is code that the process may run: whoever measures the engine measures them all.
///
/// # Errors
/// [`EngineError::Library`] if the folder can't be read, or holds what would bring in code from elsewhere or without bounds.
pub fn files(dir: &Path) -> Result<Vec<String>, EngineError> {
    let refuse = |path: &Path, cause: &str| EngineError::Library {
        path: path.to_owned(),
        cause: cause.to_owned(),
    };
    let unreadable = |error: std::io::Error| refuse(dir, &error.to_string());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let name = name.ok_or_else(|| refuse(&path, "a name that is not text: take it out of the folder"))?;
        if path.is_dir() {
            if name.starts_with("openvino") {
                return Err(refuse(
                    &path,
                    "plugins would be loaded from this folder, too: take it out",
                ));
            }
            continue;
        }
        if name == "plugins.xml" {
            return Err(refuse(
                &path,
                "it may name plugins elsewhere, which nobody measures: take it out",
            ));
        }
        if names.len() == MAX_FILES {
            let cause =
                format!("more than {MAX_FILES} files: name a folder with what OpenVINO needs, and nothing else");
            return Err(refuse(dir, &cause));
        }
        names.push(name);
    }
    names.sort_unstable();
    Ok(names)
}

/// Settings that results depend on: read back after compiling, and no graph runs if one differs.
const fn exact(precision: Precision) -> [(&'static str, &'static str); 2] {
    match precision {
        Precision::F32 => [("INFERENCE_PRECISION_HINT", "f32"), ("EXECUTION_MODE_HINT", "ACCURACY")],
        Precision::Bf16 => [
            ("INFERENCE_PRECISION_HINT", "bf16"),
            ("EXECUTION_MODE_HINT", "PERFORMANCE"),
        ],
    }
}

/// Settings that only time depends on.
const SPEED: [(&str, &str); 2] = [("PERFORMANCE_HINT", "LATENCY"), ("NUM_STREAMS", "1")];

const PINNING: &str = "ENABLE_CPU_PINNING";
const THREADS: &str = "INFERENCE_NUM_THREADS";

/// The runtime, loaded and proven.
#[derive(Clone, Debug)]
pub struct OpenVino {
    core: Arc<ffi::Core>,
    watchdog: Arc<Watchdog>,
    name: Arc<str>,
}

/// Loads the runtime from the folder that holds [`LIBRARY_FILES`].
///
/// The libraries stay loaded until the process ends, so a second call must name the same folder.
///
/// # Errors
/// [`EngineError::Library`] if a file is not there or can't be loaded, or another folder was loaded before;
/// [`EngineError::Version`] for another version than [`VERSION`]; [`EngineError::Precision`] or
/// [`EngineError::Run`] if the proof fails.
pub fn load(dir: &Path) -> Result<OpenVino, EngineError> {
    static LOADED: Mutex<Option<PathBuf>> = Mutex::new(None);
    let refuse = |path: &Path, cause: String| EngineError::Library {
        path: path.to_owned(),
        cause,
    };
    let dir = dir.canonicalize().map_err(|error| refuse(dir, error.to_string()))?;
    for file in LIBRARY_FILES {
        if !dir.join(file).is_file() {
            return Err(refuse(
                &dir.join(file),
                format!("no such file: the folder must hold OpenVINO {VERSION}"),
            ));
        }
    }
    {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        match loaded.as_ref() {
            Some(before) if *before != dir => {
                return Err(refuse(
                    &dir,
                    format!("this process has already loaded {}", before.display()),
                ));
            }
            Some(_) => {}
            None => {
                let path = dir.join(C_LIBRARY);
                ffi::load(&path).map_err(|cause| refuse(&path, cause))?;
                *loaded = Some(dir);
            }
        }
    }
    let build = ffi::version().map_err(|failure| failed(VERSION, failure))?;
    if build.split('-').next() != Some(VERSION) {
        return Err(EngineError::Version {
            seen: build,
            wanted: VERSION,
        });
    }
    let name = format!("openvino {VERSION}");
    let core = ffi::Core::new().map_err(|failure| failed(&name, failure))?;
    let openvino = OpenVino {
        core: Arc::new(core),
        watchdog: Arc::default(),
        name: name.into(),
    };
    openvino.prove()?;
    tracing::debug!(build, "OpenVINO loaded");
    Ok(openvino)
}

impl OpenVino {
    /// Runs [`PROOF`]: afterwards every library is loaded, and the settings are known to hold.
    fn prove(&self) -> Result<(), EngineError> {
        let compiled = self
            .compile_bytes(&PROOF, &CompileOptions::default())
            .map_err(|refusal| self.proof_failed(refusal))?;
        let mut request = compiled.request().map_err(|failure| failed(&self.name, failure))?;
        let input = Tensor::scalar_f32(-1.0);
        let output = ffi::Output {
            dtype: Dtype::F32,
            dims: vec![1],
            buffer: Pool::new(0).take(4),
        };
        let outputs = request
            .run(&[&input], vec![output], None)
            .map_err(|failure| failed(&self.name, failure))?;
        match outputs.first().map(AsRef::as_ref) {
            Some(bytes) if bytes == 0f32.to_le_bytes() => Ok(()),
            seen => Err(EngineError::Run {
                backend: self.name.to_string(),
                during: "proving the library",
                cause: format!("Relu(-1) is {seen:?} in bytes, wanted 0"),
            }),
        }
    }

    fn proof_failed(&self, refusal: Refusal) -> EngineError {
        match refusal {
            Refusal::Failure(failure) => failed(&self.name, failure),
            Refusal::Precision(error) => error,
        }
    }

    /// Compiles ONNX bytes and reads the settings back.
    fn compile_bytes(&self, onnx: &[u8], options: &CompileOptions) -> Result<ffi::CompiledModel, Refusal> {
        let threads = options.threads.map(|threads| threads.to_string());
        let mut settings: Vec<(&str, &str)> = [&exact(options.precision)[..], &SPEED[..]].concat();
        // What is asked for, and does not change results: told of where the engine does otherwise.
        let mut wishes = vec![(PINNING, if options.pinning { "YES" } else { "NO" })];
        if let Some(threads) = &threads {
            wishes.push((THREADS, threads));
        }
        settings.extend(&wishes);
        let model = self.core.compile(onnx, &settings).map_err(Refusal::Failure)?;
        for (property, wanted) in exact(options.precision) {
            let seen = model.property(property).map_err(Refusal::Failure)?;
            if seen != wanted {
                return Err(Refusal::Precision(EngineError::Precision {
                    property,
                    seen,
                    wanted: wanted.into(),
                }));
            }
        }
        for (property, wanted) in wishes {
            let seen = model.property(property).map_err(Refusal::Failure)?;
            if seen != wanted {
                tracing::warn!(property, seen, wanted, "OpenVINO runs otherwise than was set");
            }
        }
        Ok(model)
    }
}

impl Backend for OpenVino {
    fn name(&self) -> &str {
        &self.name
    }

    fn can(&self, options: &CompileOptions) -> Result<(), EngineError> {
        let compiled = self.compile_bytes(&PROOF, options);
        compiled.map(drop).map_err(|refusal| self.proof_failed(refusal))
    }

    fn compile(&self, graph: &EngineGraph, options: &CompileOptions) -> Result<Box<dyn Compiled>, EngineError> {
        let onnx = crate::onnx(graph, &self.name)?;
        let model = self.compile_bytes(onnx, options).map_err(|refusal| match refusal {
            Refusal::Precision(error) => error,
            Refusal::Failure(failure) => EngineError::Compile {
                backend: self.name.to_string(),
                digest: graph.digest(),
                cause: bounded(failure.to_string()),
            },
        })?;
        Ok(Box::new(compiled::CompiledByOpenVino::new(
            self.name.clone(),
            self.core.clone(),
            Arc::clone(&self.watchdog),
            model,
            graph,
        )?))
    }
}

enum Refusal {
    Failure(ffi::Failure),
    Precision(EngineError),
}

fn failed(backend: &str, failure: ffi::Failure) -> EngineError {
    EngineError::Run {
        backend: backend.into(),
        during: failure.during,
        cause: bounded(failure.message),
    }
}

/// A model of one operator, `y = Relu(x)` with `x` and `y` f32 [1], as an ONNX file in protobuf's wire format.
#[rustfmt::skip]
const PROOF: [u8; 59] = [
    0x08, 8,                                     // ir_version
    0x42, 2, 0x10, 13,                           // opset_import: standard operators, version 13
    0x3a, 51,                                    // graph
    0x0a, 12, 0x0a, 1, b'x', 0x12, 1, b'y', 0x22, 4, b'R', b'e', b'l', b'u', // node: input, output, operator
    0x12, 1, b'g',                               // its name
    0x5a, 15, 0x0a, 1, b'x', 0x12, 10, 0x0a, 8, 0x08, 1, 0x12, 4, 0x0a, 2, 0x08, 1, // input: f32 [1]
    0x62, 15, 0x0a, 1, b'y', 0x12, 10, 0x0a, 8, 0x08, 1, 0x12, 4, 0x0a, 2, 0x08, 1, // output: f32 [1]
];
