//! The house rules that ARCHITECTURE.md calls invariants, checked over cargo's metadata and over the source.

mod claims;
mod rules;

use std::path::{Path, PathBuf};

use crate::problem::{Outcome, Problem};
use crate::process::{output, say};
use crate::source::product_code;
use crate::workspace::Workspace;

use rules::{Member, PURE, broken_by_order, broken_by_source};

/// Files longer than this are named, so that somebody asks whether they do one thing.
const LONG_FILE_LINES: usize = 400;
/// Files longer than this break the rules.
const TOO_LONG_FILE_LINES: usize = 800;

/// Checks all rules; the problem names each that is broken.
pub fn check(workspace: &Workspace) -> Outcome<()> {
    let order = order(workspace)?;
    let members = members(workspace)?;
    let mut broken = broken_by_order(&order, &members);
    for package in PURE {
        broken.extend(heavy_dependencies(workspace, package)?);
    }
    let mut long = Vec::new();
    for member in &members {
        for file in rust_files(&member.folder.join("src")) {
            let source = std::fs::read_to_string(&file).map_err(|error| Problem::io("read", &file, &error))?;
            let shown = file
                .strip_prefix(workspace.root())
                .unwrap_or(&file)
                .display()
                .to_string();
            if !is_test_file(&file) {
                broken.extend(broken_by_source(&member.name, &shown, &product_code(&source)));
            }
            let lines = source.lines().count();
            if lines > TOO_LONG_FILE_LINES {
                broken.push(format!(
                    "{shown} has {lines} lines; at most {TOO_LONG_FILE_LINES} are wanted: split it by the work it does"
                ));
            } else if lines > LONG_FILE_LINES {
                long.push(format!("{shown} ({lines})"));
            }
        }
    }
    broken.extend(unproven_claims(workspace)?);
    if !long.is_empty() {
        say(format_args!(
            "  longer than {LONG_FILE_LINES} lines: {}",
            long.join(", ")
        ));
    }
    if broken.is_empty() {
        say(format_args!("  {} crates keep the order and the rules", members.len()));
        return Ok(());
    }
    Err(Problem::new(
        format!(
            "{} house rules are broken:\n  - {}",
            broken.len(),
            broken.join("\n  - ")
        ),
        "ARCHITECTURE.md says what each rule is for; move the code to the crate where it belongs",
    ))
}

/// The members in the order of the root manifest, which is the order of the layers.
fn order(workspace: &Workspace) -> Outcome<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        workspace: Members,
    }
    #[derive(serde::Deserialize)]
    struct Members {
        members: Vec<PathBuf>,
    }
    let path = workspace.root().join("Cargo.toml");
    let text = std::fs::read_to_string(&path).map_err(|error| Problem::io("read", &path, &error))?;
    let manifest: Manifest = toml::from_str(&text).map_err(|error| {
        Problem::new(
            format!("{}: {error}", path.display()),
            "list the members as plain folders",
        )
    })?;
    Ok(manifest
        .workspace
        .members
        .into_iter()
        .map(|member| workspace.root().join(member))
        .collect())
}

fn members(workspace: &Workspace) -> Outcome<Vec<Member>> {
    let metadata = workspace.metadata()?;
    Ok(metadata
        .packages
        .into_iter()
        .map(|package| Member {
            name: package.name,
            folder: package
                .manifest_path
                .parent()
                .map(Path::to_path_buf)
                .unwrap_or_default(),
            depends_on: package
                .dependencies
                .into_iter()
                .filter(|dependency| dependency.kind.as_deref() != Some("dev"))
                .filter_map(|dependency| dependency.path)
                .collect(),
        })
        .collect())
}

/// What a pure crate must not have in the tree of its normal dependencies.
fn heavy_dependencies(workspace: &Workspace, package: &str) -> Outcome<Vec<String>> {
    let next = "read cargo's message; the crate must exist";
    let mut command = workspace.cargo();
    command.args([
        "tree",
        "--package",
        package,
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    let done = output(&mut command, next)?;
    if !done.status.success() {
        return Err(Problem::new(
            format!(
                "cargo tree for {package}: {}",
                String::from_utf8_lossy(&done.stderr).trim()
            ),
            next,
        ));
    }
    Ok(rules::broken_by_tree(package, &String::from_utf8_lossy(&done.stdout)))
}

/// Tests that THREAT-MODEL.md names and that do not exist. `tests::NAME` stands for the workspace's own tests.
fn unproven_claims(workspace: &Workspace) -> Outcome<Vec<String>> {
    let path = workspace.root().join("THREAT-MODEL.md");
    let document = std::fs::read_to_string(&path).map_err(|error| Problem::io("read", &path, &error))?;
    let mut broken = Vec::new();
    for (package, test) in claims::named_tests(&document) {
        let folder = match package.as_str() {
            "tests" => workspace.root().join("tests"),
            crate_name => workspace.root().join("host").join(crate_name),
        };
        let found = rust_files(&folder)
            .iter()
            .any(|file| std::fs::read_to_string(file).is_ok_and(|source| claims::holds_test(&source, &test)));
        if !found {
            broken.push(format!(
                "THREAT-MODEL.md names the test {package}::{test}, which is not there"
            ));
        }
    }
    Ok(broken)
}

/// All `.rs` files below a folder.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Whether a file holds tests only, by its name: `tests.rs`, `NAME_tests.rs`, or anything in a folder `tests`.
fn is_test_file(file: &Path) -> bool {
    let stem = file
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    stem == "tests" || stem.ends_with("_tests") || file.parent().is_some_and(|folder| folder.ends_with("tests"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_files_are_known_by_name() {
        assert!(is_test_file(Path::new("host/graph/src/tests.rs")));
        assert!(is_test_file(Path::new("host/graph/src/tests/gradients.rs")));
        assert!(is_test_file(Path::new("host/graph/src/model_tests.rs")));
        assert!(!is_test_file(Path::new("host/xtask/src/test.rs")));
        assert!(!is_test_file(Path::new("host/graph/src/contests.rs")));
    }
}
