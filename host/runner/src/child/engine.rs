//! Which engine the process runs graphs with.

use std::num::NonZeroUsize;
use std::path::Path;

use cloister_engine::{Backend, CompileOptions, openvino, tract::Tract};

use crate::options::BackendChoice;

/// The chosen engine.
pub(super) struct Engine {
    pub(super) backend: Box<dyn Backend>,
    pub(super) options: CompileOptions,
    /// Why it is not OpenVINO, where that was hoped for.
    pub(super) note: Option<String>,
    /// Whether it is OpenVINO, which lists its folder of libraries for each graph.
    pub(super) native: bool,
}

impl Engine {
    /// Loads the engine's libraries: the last files that this process opens.
    pub(super) fn load(choice: BackendChoice, openvino_dir: Option<&str>, threads: usize) -> Result<Self, String> {
        let options = CompileOptions {
            threads: NonZeroUsize::new(threads),
        };
        let tract = |note| Self {
            backend: Box::new(Tract),
            options,
            note,
            native: false,
        };
        match (choice, openvino_dir) {
            (BackendChoice::Tract, _) => Ok(tract(None)),
            (BackendChoice::Auto, None) => Ok(tract(Some(
                "no folder of OpenVINO's libraries is given: tract serves".to_owned(),
            ))),
            (BackendChoice::OpenVino, None) => {
                Err("OpenVINO is asked for, but no folder of its libraries is given".to_owned())
            }
            (choice, Some(dir)) => match openvino::load(Path::new(dir)) {
                Ok(backend) => Ok(Self {
                    backend: Box::new(backend),
                    options,
                    note: None,
                    native: true,
                }),
                Err(error) if choice == BackendChoice::OpenVino => Err(error.to_string()),
                Err(error) => Ok(tract(Some(format!("{error}: tract serves")))),
            },
        }
    }
}
