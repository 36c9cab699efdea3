//! What the process takes from itself.

use std::fs::File;

use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

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

/// After the libraries are loaded: others of the same user can neither trace it nor read its memory.
pub(super) fn after_start() -> Result<(), String> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("PR_SET_DUMPABLE: {error}"))
}
