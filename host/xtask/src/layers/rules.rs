//! The rules themselves, on data: no file is read here.

use std::path::PathBuf;

use crate::source::lines_with;

/// Crates that decide: no runtime and no sandbox in their trees, so that they can be read and tested alone.
pub const PURE: [&str; 4] = [
    "cloister-attestation",
    "cloister-policy",
    "cloister-graph",
    "cloister-rounds",
];
const HEAVY: [&str; 2] = ["tokio", "wasmtime"];

/// Crates that may read arguments, environment and the wall clock.
const WORLDLY: [&str; 2] = ["cloister", "xtask"];
/// How one reads them.
const WORLD: [&str; 6] = [
    "std::env",
    "env::var",
    "env::var_os",
    "env::args",
    "SystemTime::now",
    "OffsetDateTime::now_utc",
];

/// The crates that may contain `unsafe`: the native engines' bindings. (ONNX Runtime's is all in the `ort` crate.)
const UNSAFE: [&str; 2] = ["cloister-engine", "cloister-engine-libtorch"];

/// A crate of the workspace.
#[derive(Debug)]
pub struct Member {
    /// The package's name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Folders of the workspace's crates that it uses, tests apart.
    pub depends_on: Vec<PathBuf>,
}

/// A crate depends only on crates above it; xtask depends on none of them.
pub fn broken_by_order(order: &[PathBuf], members: &[Member]) -> Vec<String> {
    let place = |folder: &PathBuf| order.iter().position(|listed| listed == folder);
    let mut broken = Vec::new();
    for member in members {
        let Some(own) = place(&member.folder) else {
            broken.push(format!("{} is not listed among the workspace's members", member.name));
            continue;
        };
        for dependency in &member.depends_on {
            let name = dependency
                .file_name()
                .map(|name| name.to_string_lossy())
                .unwrap_or_default();
            if place(dependency).is_none_or(|other| other >= own) {
                broken.push(format!(
                    "{} depends on {name}, which is not above it in Cargo.toml's list",
                    member.name
                ));
            }
            if member.name == "xtask" {
                broken.push(format!(
                    "xtask depends on {name}; it must build before any crate of the host does"
                ));
            }
        }
    }
    broken
}

/// A pure crate has neither tokio nor wasmtime in its tree (`cargo tree --prefix none --format {p}`).
pub fn broken_by_tree(package: &str, tree: &str) -> Vec<String> {
    let used = |heavy: &str| tree.lines().any(|line| line.split(' ').next() == Some(heavy));
    let heavy = HEAVY.into_iter().filter(|heavy| used(heavy));
    heavy
        .map(|heavy| format!("{package} has {heavy} in its tree; try `cargo tree -p {package} -e normal -i {heavy}`"))
        .collect()
}

/// Only `node` and `xtask` touch the world; only `engine` and `engine-libtorch` contain `unsafe`.
pub fn broken_by_source(package: &str, file: &str, code: &str) -> Vec<String> {
    let mut broken = Vec::new();
    if !WORLDLY.contains(&package) {
        for word in WORLD {
            for line in lines_with(code, word) {
                broken.push(format!(
                    "{file}:{line} uses {word}: only node and xtask read arguments, environment and the wall clock"
                ));
            }
        }
    }
    if !UNSAFE.contains(&package) {
        for line in lines_with(code, "unsafe") {
            broken.push(format!(
                "{file}:{line} uses unsafe: only engine and engine-libtorch may"
            ));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, depends_on: &[&str]) -> Member {
        Member {
            name: name.to_owned(),
            folder: name.into(),
            depends_on: depends_on.iter().map(PathBuf::from).collect(),
        }
    }

    #[test]
    fn a_crate_depends_on_crates_above_it() {
        let order: Vec<PathBuf> = ["tensor", "graph", "engine", "xtask"].map(PathBuf::from).to_vec();
        assert!(
            broken_by_order(
                &order,
                &[member("graph", &["tensor"]), member("engine", &["tensor", "graph"])]
            )
            .is_empty()
        );
        let broken = broken_by_order(&order, &[member("graph", &["engine"])]);
        assert_eq!(
            broken,
            ["graph depends on engine, which is not above it in Cargo.toml's list"]
        );
        assert_eq!(broken_by_order(&order, &[member("graph", &["graph"])]).len(), 1);
        assert_eq!(broken_by_order(&order, &[member("graph", &["elsewhere"])]).len(), 1);
        assert_eq!(broken_by_order(&order, &[member("stray", &[])]).len(), 1);
        assert!(broken_by_order(&order, &[member("xtask", &["tensor"])])[0].starts_with("xtask depends on tensor"));
    }

    #[test]
    fn a_heavy_tree_is_named() {
        let tree = "cloister-policy v0.1.0 (/x)\ntokio-util v0.7\nserde v1.0\n";
        assert!(broken_by_tree("cloister-policy", tree).is_empty());
        assert_eq!(
            broken_by_tree("cloister-policy", &format!("{tree}tokio v1.54 (*)\n")).len(),
            1
        );
    }

    #[test]
    fn the_world_stays_outside() {
        let code = "fn a() {\n let now = std::time::SystemTime::now();\n}\n";
        assert_eq!(broken_by_source("cloister-vault", "a.rs", code).len(), 1);
        assert!(broken_by_source("cloister", "a.rs", code).is_empty());
        assert_eq!(broken_by_source("cloister-vault", "a.rs", "unsafe {}").len(), 1);
        assert!(broken_by_source("cloister-engine", "a.rs", "unsafe {}").is_empty());
    }
}
