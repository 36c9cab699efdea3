//! The process itself: what it closes before it touches a secret, what it is measured as, how it logs.

use std::path::{Path, PathBuf};

use cloister_tensor::{Digest, Digester};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

/// Why the host cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A protection of the process cannot be switched on.
    #[error("{what} cannot be switched off: {cause}. The host does not run with its memory open to others")]
    Harden {
        /// What should have been switched off.
        what: &'static str,
        /// The system's error.
        cause: rustix::io::Errno,
    },
    /// Memory may be written to a disk.
    #[error(
        "this machine swaps ({swaps}), and the memory of this process cannot be locked ({cause}): keys and rows would get to a disk. \
         Switch swap off, or give the process an unlimited RLIMIT_MEMLOCK (LimitMEMLOCK=infinity)"
    )]
    Swap {
        /// The devices or files.
        swaps: String,
        /// Why it cannot be locked.
        cause: rustix::io::Errno,
    },
    /// What started this process is gone, or its end would not be noticed.
    #[error("the process that started this node is not there, or its end cannot be watched: {cause}")]
    Parent {
        /// The system's error.
        cause: rustix::io::Errno,
    },
    /// The engine's folder can't be measured.
    #[error(transparent)]
    Engine(#[from] cloister_engine::EngineError),
    /// A file that must be measured cannot be read.
    #[error("{path} must be measured, but cannot be read: {cause}")]
    Measure {
        /// The file.
        path: String,
        /// The system's error.
        cause: std::io::Error,
    },
}

/// Switches core dumps and ptrace by other processes of this user off: both would carry keys and rows out.
pub fn harden() -> Result<(), ProcessError> {
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .map_err(|cause| ProcessError::Harden {
        what: "core dumps",
        cause,
    })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|cause| ProcessError::Harden {
        what: "ptrace (dumpable)",
        cause,
    })
}

/// Keeps this process's memory, with keys and opened rows in it, out of swap: locked as it is touched, or on a machine that does not swap.
///
/// # Errors
/// Neither holds; in simulation that is told and no error.
pub fn keep_memory(simulated: bool) -> Result<(), ProcessError> {
    let Err(cause) = lock_memory() else { return Ok(()) };
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let swaps: Vec<_> = swaps
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    if swaps.is_empty() {
        return Ok(());
    }
    let error = ProcessError::Swap {
        swaps: swaps.join(", "),
        cause,
    };
    if simulated {
        tracing::warn!("{error}");
        return Ok(());
    }
    Err(error)
}

/// With a limit, what is allocated later would fail: so all of it is locked, or nothing.
fn lock_memory() -> Result<(), rustix::io::Errno> {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if rustix::process::getrlimit(Resource::Memlock).current.is_some() {
        rustix::process::setrlimit(Resource::Memlock, unlimited)?;
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
}

/// Has the kernel ask this process to end (SIGTERM) when the one that started it ends, however that ends: by SIGKILL, too.
fn end_with(parent: u32) -> Result<(), ProcessError> {
    let failed = |cause| ProcessError::Parent { cause };
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(failed)?;
    // It may have ended before the kernel was asked.
    match rustix::process::getppid() {
        Some(now) if now.as_raw_nonzero().get().cast_unsigned() == parent => Ok(()),
        _ => Err(failed(rustix::io::Errno::SRCH)),
    }
}

/// The path of this binary, as the kernel holds it open: it stays the same file when the name is replaced.
pub fn own_binary() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

/// The native files that the host runs, by name, with their digests: the binary, and every file of the folder of its engine's
/// libraries, since OpenVINO loads by what it finds there. What both link besides (the C library and its like) is the system's:
/// the image that anchors the host holds it.
pub fn host_files(libraries: Option<&Path>) -> Result<Vec<(String, Digest)>, ProcessError> {
    let mut files = vec![("cloister".to_owned(), digest_of(&own_binary())?)];
    if let Some(folder) = libraries {
        for library in cloister_engine::openvino::files(folder)? {
            let digest = digest_of(&folder.join(&library))?;
            files.push((library, digest));
        }
    }
    Ok(files)
}

fn digest_of(path: &Path) -> Result<Digest, ProcessError> {
    let mut digester = Digester::new();
    // An engine's libraries are hundreds of megabytes: they are read piece by piece.
    let read = std::fs::File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut digester));
    read.map_err(|cause| ProcessError::Measure {
        path: path.display().to_string(),
        cause,
    })?;
    Ok(digester.finish())
}

/// How a node is tied to what started it; for programs, not for people.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct ParentArgs {
    /// End when this process, which started the node, ends.
    #[arg(long, value_name = "PID", hide = true)]
    end_with: Option<u32>,
}

impl ParentArgs {
    /// Ties this process to the one that is named, if one is.
    pub fn tie(self) -> Result<(), ProcessError> {
        self.end_with.map_or(Ok(()), end_with)
    }
}

/// Starts the log on stderr. `CLOISTER_LOG` holds a filter such as `info` or `cloister_session=debug`.
pub fn start_log(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("CLOISTER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // A second subscriber in one process can only come from a test; the first one serves.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .try_init();
}

/// Cancels at SIGTERM or SIGINT, so that the node leaves in order.
pub async fn until_signal(cancel: tokio_util::sync::CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::warn!("signals cannot be caught: the node ends without leaving its federation first");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = cancel.cancelled() => return,
    }
    tracing::info!("asked to end: leaving");
    cancel.cancel();
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn memory_is_locked_or_nothing_swaps_or_it_is_told() {
        let locked = lock_memory();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kept = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        match locked {
            Ok(()) => assert_ne!(kept.trim(), "0 kB"),
            Err(cause) => {
                let swaps = std::fs::read_to_string("/proc/swaps")
                    .unwrap_or_default()
                    .lines()
                    .count()
                    > 1;
                assert_eq!(keep_memory(false).is_err(), swaps, "{cause}");
            }
        }
        keep_memory(true).unwrap();
    }

    #[test]
    fn every_file_that_an_engine_could_load_is_measured_and_none_comes_from_elsewhere() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["libopenvino.so", "libopenvino_other_frontend.so", "libevil.so"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::create_dir(at("pkgconfig")).unwrap();
        let files = host_files(Some(folder.path())).unwrap();
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "cloister",
                "libevil.so",
                "libopenvino.so",
                "libopenvino_other_frontend.so"
            ]
        );
        assert_eq!(files[1].1, Digest::of(b"libevil.so"));
        for outside in ["plugins.xml", "openvino-2026.4.1"] {
            let other = tempfile::tempdir().unwrap();
            let path = other.path().join(outside);
            if outside.ends_with("xml") {
                std::fs::write(path, b"").unwrap();
            } else {
                std::fs::create_dir(path).unwrap();
            }
            let error = host_files(Some(other.path())).unwrap_err().to_string();
            assert!(error.contains(outside) && error.contains("take it out"), "{error}");
        }
    }
}
