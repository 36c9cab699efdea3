//! What a component is, without compiling it.

use std::collections::BTreeMap;
use std::fmt;

use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};
use wasmparser::{Encoding, Parser, Payload};

use crate::error::{ModuleErrorKind, Refusal, bounded};
use crate::settings::{self, SettingDeclaration};

/// The package of our worlds.
pub const PACKAGE: &str = "cloister:federation";
/// The versions of [`PACKAGE`] that this host speaks.
pub const VERSIONS: &[&str] = &["0.1.0"];

/// Imports and exports of a component at most.
const MAX_NAMES: usize = 256;

const TRAINER_EXPORT: &str = "cloister:federation/training@0.1.0";
const AGGREGATOR_EXPORT: &str = "cloister:federation/aggregation@0.1.0";
const TRANSFORM_EXPORT: &str = "cloister:federation/transforming@0.1.0";

const TRAINER_IMPORTS: &[&str] = &[
    "cloister:federation/dataset@0.1.0",
    "cloister:federation/handles@0.1.0",
    "cloister:federation/log@0.1.0",
    "cloister:federation/metrics@0.1.0",
    "cloister:federation/model@0.1.0",
    "cloister:federation/ports@0.1.0",
    "cloister:federation/settings@0.1.0",
    "cloister:federation/types@0.1.0",
    "wasi:nn/errors@0.2.0-rc-2024-10-28",
    "wasi:nn/graph@0.2.0-rc-2024-10-28",
    "wasi:nn/inference@0.2.0-rc-2024-10-28",
    "wasi:nn/tensor@0.2.0-rc-2024-10-28",
];

const AGGREGATOR_IMPORTS: &[&str] = &[
    "cloister:federation/flat-model@0.1.0",
    "cloister:federation/log@0.1.0",
    "cloister:federation/metrics@0.1.0",
    "cloister:federation/settings@0.1.0",
    "cloister:federation/slots@0.1.0",
    "cloister:federation/types@0.1.0",
    "cloister:federation/updates@0.1.0",
];

const TRANSFORM_IMPORTS: &[&str] = &[
    "cloister:federation/log@0.1.0",
    "cloister:federation/settings@0.1.0",
    "cloister:federation/types@0.1.0",
];

/// A world that a component exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum World {
    /// Trains on one node's rows.
    Trainer,
    /// Folds updates into the next model.
    Aggregator,
    /// Makes rows out of rows before graphs see them.
    Transform,
}

impl World {
    /// The interfaces that a component of this world may import.
    pub fn imports(self) -> &'static [&'static str] {
        match self {
            Self::Trainer => TRAINER_IMPORTS,
            Self::Aggregator => AGGREGATOR_IMPORTS,
            Self::Transform => TRANSFORM_IMPORTS,
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trainer => "trainer",
            Self::Aggregator => "aggregator",
            Self::Transform => "transform",
        })
    }
}

/// What a component's file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// SHA-256 of the file: what a policy names.
    pub digest: Digest,
    /// Length of the file.
    pub size_bytes: usize,
    /// The world, if a host of this version would load the component.
    pub world: Option<World>,
    /// Why it would not.
    pub problem: Option<String>,
    /// Names of the imports, in the file's order.
    pub imports: Vec<String>,
    /// Names of the exports, in the file's order.
    pub exports: Vec<String>,
    /// The settings that the module declares.
    pub settings: BTreeMap<String, SettingDeclaration>,
}

/// Names and sections of a component, as they stand.
#[derive(Default)]
struct Outline {
    imports: Vec<String>,
    exports: Vec<String>,
    section: Option<Vec<u8>>,
}

/// Looks at a component's file.
///
/// # Errors
/// In words: the file is no component, or its settings section cannot be read. A component of no world is no error here but a
/// [`Inspection::problem`].
pub fn inspect(file: &[u8]) -> Result<Inspection, InspectError> {
    examine(file)
        .map(|(inspection, _)| inspection)
        .map_err(|refusal| InspectError(refusal.message))
}

/// A file that [`inspect`] cannot read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InspectError(String);

/// As [`inspect`], and the world or the reason why there is none.
pub(crate) fn examine(file: &[u8]) -> Result<(Inspection, Result<World, Refusal>), Refusal> {
    let outline = outline(file)?;
    let settings = match &outline.section {
        Some(section) => {
            settings::parse(section).map_err(|error| Refusal::new(ModuleErrorKind::Setting, error.to_string()))?
        }
        None => BTreeMap::new(),
    };
    let world = world(&outline);
    let inspection = Inspection {
        digest: Digest::of(file),
        size_bytes: file.len(),
        world: world.as_ref().ok().copied(),
        problem: world.as_ref().err().map(|refusal| refusal.message.clone()),
        imports: outline.imports,
        exports: outline.exports,
        settings,
    };
    Ok((inspection, world))
}

fn outline(file: &[u8]) -> Result<Outline, Refusal> {
    let invalid = |message: String| Refusal::new(ModuleErrorKind::Invalid, message);
    let broken = |error: wasmparser::BinaryReaderError| {
        let message = format!(
            "not a WebAssembly component: {} at byte {}",
            error.message(),
            error.offset()
        );
        invalid(bounded(&message, 512))
    };
    let mut outline = Outline::default();
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(file) {
        match payload.map_err(broken)? {
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } if depth == 0 => {
                return Err(invalid(
                    "a core WebAssembly module, not a component: link it with wasm-component-ld, or turn it into one with \
                     `wasm-tools component new`"
                        .to_owned(),
                ));
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    outline.imports.push(bounded(import.map_err(broken)?.name.0, 256));
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    outline.exports.push(bounded(export.map_err(broken)?.name.0, 256));
                }
            }
            Payload::CustomSection(section) if section.name() == settings::SECTION => {
                let before = outline.section.replace(section.data().to_vec());
                before.map_or(Ok(()), |_| {
                    Err(invalid(format!("the section `{}` is there twice", settings::SECTION)))
                })?;
            }
            _ => {}
        }
        if outline.imports.len() + outline.exports.len() > MAX_NAMES {
            return Err(invalid(format!("more than {MAX_NAMES} imports and exports")));
        }
    }
    Ok(outline)
}

fn world(outline: &Outline) -> Result<World, Refusal> {
    let refuse = |message: String| Err(Refusal::new(ModuleErrorKind::World, message));
    let all = || outline.imports.iter().chain(&outline.exports);
    if let Some(version) = all().find_map(|name| foreign_version(name)) {
        return refuse(format!(
            "the module speaks {PACKAGE}@{version}; this host speaks {PACKAGE}@{}",
            VERSIONS.join(", ")
        ));
    }
    let exports = |wanted: &str| outline.exports.iter().any(|name| name == wanted);
    let worlds = [
        (TRAINER_EXPORT, World::Trainer),
        (AGGREGATOR_EXPORT, World::Aggregator),
        (TRANSFORM_EXPORT, World::Transform),
    ];
    let mut exported = worlds.into_iter().filter(|(export, _)| exports(export));
    let world = match (exported.next(), exported.next()) {
        (Some((_, world)), None) => world,
        (Some((one, _)), Some((other, _))) => {
            return refuse(format!("the module exports {one} and {other}; wanted one world"));
        }
        (None, _) => {
            let known: Vec<_> = worlds
                .iter()
                .map(|(export, world)| format!("{export} ({world})"))
                .collect();
            return refuse(format!(
                "the module exports {}; wanted one of {}",
                list(&outline.exports),
                known.join(", ")
            ));
        }
    };
    let foreign: Vec<String> = outline
        .imports
        .iter()
        .filter(|name| !world.imports().contains(&name.as_str()))
        .cloned()
        .collect();
    if foreign.is_empty() {
        return Ok(world);
    }
    refuse(format!(
        "the module imports {}, which the world `{world}` does not offer: a module reaches no files, no network, no clock and \
         no environment",
        list(&foreign)
    ))
}

/// The version of our package in an interface's name, if it is none of ours.
fn foreign_version(name: &str) -> Option<&str> {
    let (_, version) = name.strip_prefix(PACKAGE)?.strip_prefix('/')?.split_once('@')?;
    (!VERSIONS.contains(&version)).then_some(version)
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        bounded(&names.join(", "), 400)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(imports: &[&str], exports: &[&str]) -> Outline {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Outline {
            imports: owned(imports),
            exports: owned(exports),
            section: None,
        }
    }

    #[test]
    fn worlds_are_told_by_exports() {
        assert_eq!(world(&named(&[], &[TRAINER_EXPORT])).unwrap(), World::Trainer);
        assert_eq!(
            world(&named(AGGREGATOR_IMPORTS, &[AGGREGATOR_EXPORT])).unwrap(),
            World::Aggregator
        );
        let error = world(&named(&[], &["run"])).unwrap_err();
        assert!(
            error
                .message
                .contains("exports run; wanted one of cloister:federation/training"),
            "{error}"
        );
        assert_eq!(
            world(&named(TRANSFORM_IMPORTS, &[TRANSFORM_EXPORT])).unwrap(),
            World::Transform
        );
        for two in [[TRAINER_EXPORT, AGGREGATOR_EXPORT], [TRAINER_EXPORT, TRANSFORM_EXPORT]] {
            assert!(world(&named(&[], &two)).is_err());
        }
        // What sees rows has no way out: no metrics, no graph.
        for way in [
            "cloister:federation/metrics@0.1.0",
            "cloister:federation/ports@0.1.0",
            "wasi:nn/graph@0.2.0-rc-2024-10-28",
        ] {
            assert!(world(&named(&[way], &[TRANSFORM_EXPORT])).is_err(), "{way}");
        }
    }

    #[test]
    fn other_imports_and_versions_are_named() {
        let error = world(&named(&["wasi:cli/environment@0.2.3"], &[TRAINER_EXPORT])).unwrap_err();
        assert!(error.message.contains("imports wasi:cli/environment@0.2.3"), "{error}");
        let error = world(&named(&["cloister:federation/updates@0.1.0"], &[TRAINER_EXPORT])).unwrap_err();
        assert_eq!(error.kind, ModuleErrorKind::World);
        let error = world(&named(&[], &["cloister:federation/training@0.9.0"])).unwrap_err();
        assert!(
            error
                .message
                .contains("speaks cloister:federation@0.9.0; this host speaks"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_component_is_refused() {
        assert!(inspect(b"").is_err());
        assert!(inspect(b"MZ\x90\x00").is_err());
        let error = inspect(b"\0asm\x01\0\0\0").unwrap_err();
        assert!(error.to_string().contains("core WebAssembly module"));
        // A component that says nothing: readable, of no world.
        let empty = inspect(b"\0asm\x0d\0\x01\0").unwrap();
        assert!(empty.world.is_none() && empty.problem.unwrap().contains("exports nothing"));
    }
}
