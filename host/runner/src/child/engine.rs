//! Which engine the process runs graphs with.

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
    pub(super) lists_folder: bool,
}

impl Engine {
    /// Loads the engine's libraries out of their folder: the last files that this process opens.
    ///
    /// Fails, too, where the engine doesn't compute as the options say.
    pub(super) fn load(
        choice: BackendChoice,
        libraries: Option<&Path>,
        options: CompileOptions,
    ) -> Result<Self, String> {
        let engine = Self::chosen(choice, libraries, options)?;
        engine.backend.can(&options).map_err(|error| error.to_string())?;
        Ok(engine)
    }

    fn chosen(choice: BackendChoice, libraries: Option<&Path>, options: CompileOptions) -> Result<Self, String> {
        let engine = |backend: Box<dyn Backend>, note| Self {
            backend,
            options,
            note,
            lists_folder: false,
        };
        let tract = |note| engine(Box::new(Tract), note);
        match (choice, libraries) {
            (BackendChoice::Tract, _) => Ok(tract(None)),
            (BackendChoice::OnnxRuntime, libraries) => Ok(engine(further::onnxruntime(libraries)?, None)),
            (BackendChoice::Libtorch, libraries) => Ok(engine(further::libtorch(libraries)?, None)),
            (BackendChoice::Auto, None) => Ok(tract(Some(
                "no folder of OpenVINO's libraries is given: tract serves".to_owned(),
            ))),
            (BackendChoice::OpenVino, None) => {
                Err("OpenVINO is asked for, but no folder of its libraries is given".to_owned())
            }
            (choice, Some(dir)) => match openvino::load(dir) {
                Ok(backend) => Ok(Self {
                    lists_folder: true,
                    ..engine(Box::new(backend), None)
                }),
                Err(error) if choice == BackendChoice::OpenVino => Err(error.to_string()),
                Err(error) => Ok(tract(Some(format!("{error}: tract serves")))),
            },
        }
    }
}

/// Engines that a program has by its features.
mod further {
    use std::path::Path;

    use cloister_engine::Backend;

    #[cfg(feature = "onnxruntime")]
    pub(super) fn onnxruntime(libraries: Option<&Path>) -> Result<Box<dyn Backend>, String> {
        let dir = libraries.ok_or("ONNX Runtime is asked for, but no folder of its library is given")?;
        let backend = cloister_engine_onnxruntime::load(dir).map_err(|error| error.to_string())?;
        Ok(Box::new(backend))
    }

    #[cfg(not(feature = "onnxruntime"))]
    pub(super) fn onnxruntime(_libraries: Option<&Path>) -> Result<Box<dyn Backend>, String> {
        Err("this program was built without ONNX Runtime: build it with the feature `onnxruntime`".to_owned())
    }

    #[cfg(feature = "libtorch")]
    pub(super) fn libtorch(libraries: Option<&Path>) -> Result<Box<dyn Backend>, String> {
        let dir = libraries.ok_or("libtorch is asked for, but no folder of its libraries is given")?;
        let backend = cloister_engine_libtorch::load(dir).map_err(|error| error.to_string())?;
        Ok(Box::new(languages::ByLanguage(backend)))
    }

    #[cfg(not(feature = "libtorch"))]
    pub(super) fn libtorch(_libraries: Option<&Path>) -> Result<Box<dyn Backend>, String> {
        Err("this program was built without libtorch: build it with the feature `libtorch`".to_owned())
    }

    #[cfg(feature = "libtorch")]
    mod languages {
        use cloister_engine::tract::Tract;
        use cloister_engine::{Backend, CompileOptions, Compiled, EngineError};
        use cloister_engine_libtorch::Libtorch;
        use cloister_graph::{EngineGraph, Language};

        /// libtorch for steps in TorchScript, and tract for what a policy has in ONNX beside them: an evaluation, for one.
        pub(super) struct ByLanguage(pub(super) Libtorch);

        impl Backend for ByLanguage {
            fn name(&self) -> &str {
                self.0.name()
            }

            fn can(&self, options: &CompileOptions) -> Result<(), EngineError> {
                self.0.can(options)
            }

            fn compile(&self, graph: &EngineGraph, options: &CompileOptions) -> Result<Box<dyn Compiled>, EngineError> {
                match graph.language() {
                    Language::TorchScript => self.0.compile(graph, options),
                    Language::Onnx => Tract.compile(graph, options),
                }
            }
        }
    }
}
