//! What the process takes from itself, step by step, so that native code which something hostile took over finds nothing to
//! reach: no file, no network, no other process, no device, and no more memory than was agreed.
//!
//! | when | what |
//! | --- | --- |
//! | first | ends with the keeper, gains no rights by `exec`, leaves no core dump, has no standard input |
//! | before the engine's libraries are loaded, in the only thread | Landlock: reads the folders of libraries and of the kernel's figures, and nothing else; no network |
//! | before the first byte of a module, a graph or a dataset | no other process may trace it; limits of memory, file sizes and descriptors; Landlock again: nothing but the list of the engine's folder; seccomp, in all threads |
//!
//! The time that the process may compute is set from outside, by the keeper.

mod calls;
mod files;
mod resources;

use std::fs::File;
use std::path::Path;

use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

use crate::options::{Confinement, RunnerLimits};

/// What this kernel could not enforce.
#[derive(Debug, Default)]
pub(super) struct Gaps(Vec<String>);

impl Gaps {
    /// One line about them; `None` where everything is enforced.
    pub(super) fn words(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.join("; "))
    }

    /// An error where everything is required, a gap to be told of otherwise.
    fn found(&mut self, required: Confinement, gap: String) -> Result<(), String> {
        match required {
            Confinement::Required => Err(format!(
                "the runner cannot be confined: {gap}; a node outside simulation runs on a kernel with Landlock and seccomp"
            )),
            Confinement::WherePossible => {
                self.0.push(gap);
                Ok(())
            }
        }
    }
}

/// Before anything is read: end with the keeper, gain no rights by `exec`, leave no core dump, have no standard input.
pub(super) fn at_start() -> Result<(), String> {
    let refused = |what: &str| {
        let what = what.to_owned();
        move |error: rustix::io::Errno| format!("{what}: {error}")
    };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(refused("PR_SET_PDEATHSIG"))?;
    rustix::thread::set_no_new_privs(true).map_err(refused("PR_SET_NO_NEW_PRIVS"))?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    rustix::process::setrlimit(Resource::Core, none).map_err(refused("RLIMIT_CORE"))?;
    let null = File::open("/dev/null").map_err(|error| format!("/dev/null: {error}"))?;
    rustix::stdio::dup2_stdin(null).map_err(refused("standard input"))
}

/// Before the engine's libraries are loaded, while there is one thread: every later thread inherits it.
pub(super) fn before_engine(required: Confinement, engine: Option<&Path>, gaps: &mut Gaps) -> Result<(), String> {
    match files::libraries_only(engine) {
        Ok(()) => Ok(()),
        Err(gap) => gaps.found(required, gap),
    }
}

/// After the libraries are loaded, before the first byte from outside is parsed. Nothing can be opened afterwards.
pub(super) fn after_engine(
    required: Confinement,
    engine: Option<&Path>,
    limits: &RunnerLimits,
    gaps: &mut Gaps,
) -> Result<(), String> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("PR_SET_DUMPABLE: {error}"))?;
    resources::limit(limits)?;
    if let Err(gap) = files::no_more(engine) {
        gaps.found(required, gap)?;
    }
    if let Err(gap) = calls::filter(engine.is_some()) {
        gaps.found(required, gap)?;
    }
    Ok(())
}
