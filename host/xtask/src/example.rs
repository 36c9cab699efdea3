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

/// The example's folder, or an error that says what it is instead, or lists those that are there.
fn find(examples: &Path, name: &str) -> Outcome<PathBuf> {
    let entries = std::fs::read_dir(examples).map_err(|error| Problem::io("read", examples, &error))?;
    let with = |file: &'static str| move |name: &String| examples.join(name).join(file).is_file();
    let mut folders: Vec<_> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    folders.sort();
    let (names, without_plan): (Vec<_>, Vec<_>) = folders.into_iter().partition(with("federation.toml"));
    if names.iter().any(|known| known == name) {
        return Ok(examples.join(name));
    }
    let deployed = without_plan.iter().filter(|folder| with("README.md")(folder));
    if let Some(other) = deployed.into_iter().find(|known| *known == name) {
        return Err(Problem::new(
            format!(
                "examples/{other} is no federation that runs on this machine: {}",
                heading(&examples.join(other))
            ),
            format!(
                "it is deployed to a cluster, as examples/{other}/README.md says; to be run here: {}",
                names.join(", ")
            ),
        ));
    }
    Err(Problem::new(
        format!("there is no example `{name}`"),
        format!("take one of: {}", names.join(", ")),
    ))
}

/// What the heading of a folder's README says that it is.
fn heading(folder: &Path) -> String {
    let text = std::fs::read_to_string(folder.join("README.md")).unwrap_or_default();
    let heading = text.lines().find_map(|line| line.strip_prefix("# "));
    heading.unwrap_or_default().to_owned()
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

    #[test]
    fn an_example_that_needs_a_cluster_says_so() {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
        let error = find(&examples, "coco").unwrap_err().to_string();
        assert!(!error.contains("there is no example"), "{error}");
        for words in [
            "Cloister in Confidential Containers",
            "cluster",
            "examples/coco/README.md",
            "digits",
        ] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
