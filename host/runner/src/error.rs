//! What can go wrong with a runner, as its keeper sees it.

use std::fmt;
use std::io;

use cloister_sandbox::ModuleError;

use crate::tensors::SharedTensorsError;

/// Why a runner gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunnerError {
    /// The process could not be started.
    #[error("the runner cannot be started: {what}")]
    Start {
        /// The step that failed.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// Libraries or the sandbox could not be set up in the new process.
    #[error("the runner cannot be set up: {0}")]
    SetUp(String),
    /// The process is gone. [`Runner::restart`](crate::Runner::restart) brings it back with everything reloaded.
    #[error("the runner died during {during}: {how}{}", last_words(.stderr))]
    Died {
        /// What it was doing.
        during: &'static str,
        /// How it ended.
        how: Death,
        /// The end of what it wrote to its standard error, one line.
        stderr: String,
    },
    /// It died before, and was not restarted.
    #[error("the runner is not running; it must be restarted first")]
    NotRunning,
    /// The module broke a rule or gave up; the runner goes on.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// A graph was refused or failed outside of a module.
    #[error("graph {name}: {message}")]
    Graph {
        /// Its name in the policy.
        name: String,
        /// What was seen and wanted.
        message: String,
    },
    /// A dataset was refused.
    #[error("dataset {name}: {message}")]
    Dataset {
        /// Its name in the policy.
        name: String,
        /// What was seen and wanted.
        message: String,
    },
    /// A request that can't be served: it names what was never loaded, or is above a limit.
    #[error("the runner refuses the request: {0}")]
    Request(String),
    /// Tensors could not be shared with the process.
    #[error(transparent)]
    Tensors(#[from] SharedTensorsError),
    /// The caller's own updates could not be brought.
    #[error("the updates of the round cannot be brought: {0}")]
    Updates(String),
}

/// How a runner ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Death {
    /// It ended by itself, with this code.
    Exited(i32),
    /// A signal ended it: 9 is SIGKILL (also the kernel's when memory ran out), 11 SIGSEGV, 6 SIGABRT, 24
    /// SIGXCPU, 25 SIGXFSZ, 31 SIGSYS.
    Signal(i32),
    /// It gave no answer in time, so the keeper ended it.
    Late,
    /// It broke the protocol, so the keeper ended it.
    Misbehaved(String),
    /// It closed its connection, and how it ended is not known.
    Unknown,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "it exited with code {code}"),
            Self::Signal(24) => f.write_str("it computed for longer than it may (signal 24)"),
            Self::Signal(25) => f.write_str("it made a larger file than it may (signal 25)"),
            Self::Signal(31) => f.write_str("it made a system call that it has no business with (signal 31)"),
            Self::Signal(signal) => write!(f, "signal {signal} ended it"),
            Self::Late => f.write_str("it gave no answer in time and was ended"),
            Self::Misbehaved(problem) => write!(f, "it broke the protocol and was ended: {problem}"),
            Self::Unknown => f.write_str("it closed its connection"),
        }
    }
}

fn last_words(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!(" (its last words: {stderr})")
    }
}
