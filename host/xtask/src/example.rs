//! `cargo xtask example NAME`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::demo::run_federation;
use crate::problem::{Outcome, Problem};
use crate::setup::{self, host::Profile};
use crate::workspace::Workspace;

/// Set up, then run one folder of examples/: what its `federation.toml` says.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask example hospitals\n  cargo xtask example hospitals -- -o json\n  cargo xtask example cifar10 -- --updates 40"
)]
pub struct ExampleArgs {
    /// A folder of examples/.
    name: String,
    /// What goes to `cloister demo`.
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

/// Sets up and runs the example; its exit code is ours.
pub fn run(workspace: &Workspace, args: &ExampleArgs) -> Outcome<ExitCode> {
    let folder = find(&workspace.root().join("examples"), &args.name)?;
    let prepared = setup::prepare(workspace, Profile::Dev)?;
    run_federation(workspace, &prepared, &folder, &args.name, &args.rest)
}

/// The example's folder, or an error that lists those that are there.
fn find(examples: &Path, name: &str) -> Outcome<PathBuf> {
    let plan = |folder: &Path| folder.join("federation.toml").is_file();
    let entries = std::fs::read_dir(examples).map_err(|error| Problem::io("read", examples, &error))?;
    let mut names: Vec<_> = entries
        .flatten()
        .filter(|entry| plan(&entry.path()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if names.iter().any(|known| known == name) {
        return Ok(examples.join(name));
    }
    Err(Problem::new(
        format!("there is no example `{name}`"),
        format!("take one of: {}", names.join(", ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_example_lists_the_known_ones() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b", "a", "no-plan"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["a", "b"] {
            std::fs::write(folder.path().join(name).join("federation.toml"), "").unwrap();
        }
        assert_eq!(find(folder.path(), "a").unwrap(), folder.path().join("a"));
        let error = find(folder.path(), "../a").unwrap_err().to_string();
        assert!(error.contains("take one of: a, b"), "{error}");
    }
}
