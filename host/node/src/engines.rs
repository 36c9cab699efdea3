//! Engines beside OpenVINO and tract, for binaries that were built with them.

use std::path::{Path, PathBuf};

use cloister_engine::{Backend, EngineError};
use miette::Report;

use crate::ui::{Exit, failed, unreadable};

/// An engine that a binary has by a feature of its build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Further {
    /// ONNX Runtime.
    OnnxRuntime,
    /// libtorch, for steps in TorchScript.
    Libtorch,
}

impl Further {
    /// The feature of the build, and the word for it in node files and options.
    const fn word(self) -> &'static str {
        match self {
            Self::OnnxRuntime => "onnxruntime",
            Self::Libtorch => "libtorch",
        }
    }

    /// The environment variable that names the folder of its libraries.
    pub const fn variable(self) -> &'static str {
        match self {
            Self::OnnxRuntime => "CLOISTER_ONNXRUNTIME_DIR",
            Self::Libtorch => "CLOISTER_LIBTORCH_DIR",
        }
    }

    /// The files that have to be in that folder; `None` in a binary that was built without the engine.
    #[allow(clippy::unnecessary_wraps, reason = "depends on the features of the build")]
    const fn files(self) -> Option<&'static [&'static str]> {
        match self {
            #[cfg(feature = "onnxruntime")]
            Self::OnnxRuntime => Some(&cloister_engine_onnxruntime::LIBRARY_FILES),
            #[cfg(not(feature = "onnxruntime"))]
            Self::OnnxRuntime => None,
            #[cfg(feature = "libtorch")]
            Self::Libtorch => Some(&cloister_engine_libtorch::LIBRARY_FILES),
            #[cfg(not(feature = "libtorch"))]
            Self::Libtorch => None,
        }
    }

    /// The folder of its libraries: the one named, or the environment's.
    ///
    /// # Errors
    /// The binary was built without the engine, no folder is named, or a file is not in it.
    pub fn folder(self, named: Option<&Path>) -> Result<PathBuf, Report> {
        let word = self.word();
        let Some(files) = self.files() else {
            return Err(failed(
                Exit::Usage,
                format!("this binary was built without the engine {word}"),
                Some(format!(
                    "build it with `cargo build --features {word}`, or choose another engine"
                )),
            ));
        };
        let environment = || std::env::var_os(self.variable()).map(PathBuf::from);
        let Some(folder) = named.map(Path::to_owned).or_else(environment) else {
            return Err(failed(
                Exit::Usage,
                format!("the engine {word} wants a folder with its libraries"),
                Some(format!(
                    "give `library_dir` in [engine], --library-dir, or {}; `cargo xtask test --backends` fetches them",
                    self.variable()
                )),
            ));
        };
        match files.iter().find(|file| !folder.join(file).is_file()) {
            None => Ok(folder),
            Some(file) => Err(failed(
                Exit::Usage,
                format!("{} holds no {file}, which the engine {word} loads", folder.display()),
                None,
            )),
        }
    }

    /// Loads the engine into this process.
    ///
    /// # Errors
    /// As for [`Self::folder`], or the libraries can't be loaded.
    pub fn load(self, named: Option<&Path>) -> Result<Box<dyn Backend>, Report> {
        let folder = self.folder(named)?;
        self.loaded(&folder).map_err(unreadable)
    }

    #[allow(unused_variables, reason = "depends on the features of the build")]
    fn loaded(self, folder: &Path) -> Result<Box<dyn Backend>, EngineError> {
        match self {
            #[cfg(feature = "onnxruntime")]
            Self::OnnxRuntime => Ok(Box::new(cloister_engine_onnxruntime::load(folder)?)),
            #[cfg(feature = "libtorch")]
            Self::Libtorch => Ok(Box::new(cloister_engine_libtorch::load(folder)?)),
            #[cfg(not(all(feature = "onnxruntime", feature = "libtorch")))]
            other => Err(EngineError::Library {
                path: folder.to_owned(),
                cause: format!("this binary was built without the engine {}", other.word()),
            }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_not_built_in_or_not_there_is_named_with_what_to_do() {
        for engine in [Further::OnnxRuntime, Further::Libtorch] {
            let error = format!("{:?}", engine.folder(Some(Path::new("/nowhere"))).unwrap_err());
            match engine.files() {
                None => assert!(
                    error.contains("built without") && error.contains(engine.word()),
                    "{error}"
                ),
                Some(files) => assert!(error.contains(files[0]), "{error}"),
            }
        }
    }
}
