//! Where a node's engine has its libraries: what code it loads is the node file's to say, outside simulation nobody else's.

use std::path::PathBuf;

use super::config::{Engine, EngineChoice};
use crate::engines::Further;
use crate::ui::{Exit, failed};

/// Where the libraries of the node's engine lie, if it has any: the node file's folder, or under a simulated root the one that the
/// environment names for that engine (`CLOISTER_OPENVINO_DIR`). Outside simulation the environment is the host's, and what code a node
/// loads is nothing for it to choose.
pub fn library_folder(engine: &Engine, simulated: bool) -> Result<Option<PathBuf>, miette::Report> {
    folder_of(engine, simulated, |variable| {
        std::env::var_os(variable).map(PathBuf::from)
    })
}

/// As [`library_folder`], in an environment.
fn folder_of(
    engine: &Engine,
    simulated: bool,
    environment: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Option<PathBuf>, miette::Report> {
    let taken = |variable: &str, key: &str| match environment(variable) {
        Some(folder) if !simulated => Err(failed(
            Exit::Usage,
            format!(
                "the environment variable {variable} names {}, but a folder of libraries is taken from the environment under a \
                 simulated root only; this policy wants Intel's",
                folder.display()
            ),
            Some(format!(
                "name it in the node file, `[engine] {key}`, and unset {variable}"
            )),
        )),
        named => Ok(named),
    };
    let further = match engine.backend {
        EngineChoice::Tract => return Ok(None),
        EngineChoice::Auto | EngineChoice::Openvino => None,
        EngineChoice::Onnxruntime => Some(Further::OnnxRuntime),
        EngineChoice::Libtorch => Some(Further::Libtorch),
    };
    if let Some(further) = further {
        let named = match &engine.library_dir {
            Some(folder) => Some(folder.clone()),
            None => taken(further.variable(), "library_dir")?,
        };
        return further.folder(named.as_deref()).map(Some);
    }
    let named = match &engine.openvino_dir {
        Some(folder) => Some(folder.clone()),
        None => taken("CLOISTER_OPENVINO_DIR", "openvino_dir")?,
    };
    match named {
        Some(folder) => {
            let lacks = |file: &&&str| !folder.join(file).is_file();
            let problem = match cloister_engine::openvino::LIBRARY_FILES.iter().find(lacks) {
                None => return Ok(Some(folder)),
                Some(_) if !folder.is_dir() => "is not there".to_owned(),
                Some(file) => format!("holds no {file}"),
            };
            Err(failed(
                Exit::Usage,
                format!("OpenVINO's folder {} {problem}", folder.display()),
                Some("`cargo xtask setup` fetches it; `backend = \"tract\"` does without".into()),
            ))
        }
        None if engine.backend == EngineChoice::Openvino => Err(failed(
            Exit::Usage,
            "`backend = \"openvino\"` wants a folder with its libraries",
            Some("give `openvino_dir` in [engine], or under a simulated root CLOISTER_OPENVINO_DIR".into()),
        )),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn libraries() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in cloister_engine::openvino::LIBRARY_FILES {
            std::fs::write(folder.path().join(file), b"").unwrap();
        }
        folder
    }

    #[test]
    fn a_folder_of_the_environments_is_taken_under_a_simulated_root_only() {
        let folder = libraries();
        let environment = |_: &str| Some(folder.path().to_owned());
        let engine = Engine::default();
        let taken = folder_of(&engine, true, environment).unwrap();
        assert_eq!(taken.as_deref(), Some(folder.path()));

        let refused = folder_of(&engine, false, environment).unwrap_err();
        let said = format!("{refused} {}", refused.help().unwrap());
        for words in ["CLOISTER_OPENVINO_DIR", "[engine] openvino_dir", "simulated root only"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        assert_eq!(folder_of(&engine, false, |_| None).unwrap(), None, "tract serves");
    }

    #[test]
    fn the_node_files_folder_is_taken_under_either_root_whatever_the_environment_names() {
        let folder = libraries();
        let engine = Engine {
            openvino_dir: Some(folder.path().to_owned()),
            ..Engine::default()
        };
        for simulated in [true, false] {
            let taken = folder_of(&engine, simulated, |_| Some("/nowhere".into())).unwrap();
            assert_eq!(taken.as_deref(), Some(folder.path()));
        }
        let lost = Engine {
            openvino_dir: Some(Path::new("/nowhere").to_owned()),
            ..Engine::default()
        };
        assert!(folder_of(&lost, false, |_| None).is_err());
    }
}
