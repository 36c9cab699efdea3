//! The runner process: hardens itself, loads the engine, then serves its keeper until the socket closes.

mod confine;
mod engine;
mod evaluate;
mod serve;
mod workshop;

use std::io::Write;
use std::process::ExitCode;

use rustix::net::SocketType;

use crate::channel::Channel;

/// The runner's whole life: what a program does when its keeper started it ([`RunnerOptions`](crate::RunnerOptions)).
///
/// The socket to the keeper is its standard input. Ends when the keeper closes the socket.
pub fn runner_main() -> ExitCode {
    runner_main_then(|| {})
}

/// As [`runner_main`], and calls `confined` once: when the process has taken from itself what it takes, has told its keeper
/// that it started, and has read nothing else. So a test tries what native code that was taken over could do.
pub fn runner_main_then(confined: impl FnOnce()) -> ExitCode {
    match run(confined) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // The keeper reads this; without it the exit code has to do.
            let _ = writeln!(std::io::stderr(), "{problem}");
            ExitCode::FAILURE
        }
    }
}

fn run(confined: impl FnOnce()) -> Result<(), String> {
    let stdin = rustix::stdio::stdin();
    if rustix::net::sockopt::socket_type(stdin).ok() != Some(SocketType::SEQPACKET) {
        return Err(
            "this is the inner half of a node, which the node starts by itself; it is not for use by hand".to_owned(),
        );
    }
    let socket = stdin
        .try_clone_to_owned()
        .map_err(|error| format!("standard input: {error}"))?;
    confine::at_start()?;
    serve::serve(&Channel::new(socket), confined)
}
