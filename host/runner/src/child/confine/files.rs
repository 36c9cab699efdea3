//! Landlock: what the process reaches of the file system and the network, by the kernel's own access rules.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};

/// The newest set of rights that is asked for; an older kernel enforces those that it knows.
const NEWEST: ABI = ABI::V7;

/// Where a system keeps libraries, and where its kernel tells how many processors there are: nothing of a node's own.
const FOLDERS: [&str; 7] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/proc/self",
];
const FILES: [&str; 3] = ["/etc/ld.so.cache", "/proc/cpuinfo", "/proc/meminfo"];

/// Reading libraries is left, and nothing else: no writing, no network, no signals and sockets to other processes.
pub(super) fn libraries_only(engine: Option<&Path>) -> Result<(), String> {
    let folder = AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute;
    let folders = FOLDERS.iter().map(Path::new).chain(engine);
    let files = FILES.iter().map(Path::new);
    restrict(
        folders
            .map(|path| (path, folder))
            .chain(files.map(|path| (path, AccessFs::ReadFile.into()))),
    )
}

/// The list of the engine's folder is left, which OpenVINO reads for each graph; without that engine, nothing.
///
/// Holds for the calling thread and those that it starts. Threads that the libraries started keep [`libraries_only`], and
/// like all others open no file: that is the system-call filter's part.
pub(super) fn no_more(engine: Option<&Path>) -> Result<(), String> {
    restrict(engine.into_iter().map(|path| (path, AccessFs::ReadDir.into())))
}

fn restrict<'a>(allowed: impl Iterator<Item = (&'a Path, BitFlags<AccessFs>)>) -> Result<(), String> {
    let failed = |error: landlock::RulesetError| format!("Landlock: {error}");
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for (path, access) in allowed {
        // What is not there needs no rule.
        if let Ok(open) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(open, access)).map_err(failed)?;
        }
    }
    match rules.restrict_self().map_err(failed)?.ruleset {
        RulesetStatus::NotEnforced => {
            Err("this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, `lsm=landlock`)".into())
        }
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
    }
}
