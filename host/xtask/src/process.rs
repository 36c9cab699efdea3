//! Running programs, and telling the person at the terminal about it.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitStatus, Output, Stdio};

use crate::problem::{Outcome, Problem};

/// Says something on stderr.
pub fn say(text: impl fmt::Display) {
    // Nothing is left to be done when stderr is closed.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Runs a program with this process's streams.
pub fn run(command: &mut Command, next: &str) -> Outcome<ExitStatus> {
    command.status().map_err(|error| not_started(command, &error, next))
}

/// Runs a program whose stdout joins our stderr, and asks for success.
pub fn must(command: &mut Command, next: &str) -> Outcome<()> {
    let status = command
        .stdout(std::io::stderr())
        .status()
        .map_err(|error| not_started(command, &error, next))?;
    if status.success() {
        Ok(())
    } else {
        Err(Problem::new(format!("`{}` ended with {status}", shown(command)), next))
    }
}

/// Runs a program and takes its output.
pub fn output(command: &mut Command, next: &str) -> Outcome<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(command, &error, next))
}

/// Runs a program quietly and says whether it can be started and succeeds.
pub fn works(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A stream of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
}

/// Runs a program, shows what it writes on our stderr, and hands each line of `watched` to `line`.
pub fn watch(command: &mut Command, watched: Stream, next: &str, mut line: impl FnMut(&str)) -> Outcome<ExitStatus> {
    command.stdin(Stdio::null());
    match watched {
        Stream::Stdout => command.stdout(Stdio::piped()),
        Stream::Stderr => command.stdout(std::io::stderr()).stderr(Stdio::piped()),
    };
    let mut child = command.spawn().map_err(|error| not_started(command, &error, next))?;
    let source: Option<Box<dyn std::io::Read>> = match watched {
        Stream::Stdout => child.stdout.take().map(|stream| Box::new(stream) as _),
        Stream::Stderr => child.stderr.take().map(|stream| Box::new(stream) as _),
    };
    if let Some(source) = source {
        let mut reader = BufReader::new(source);
        let mut raw = Vec::new();
        while reader.read_until(b'\n', &mut raw).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&raw);
            let text = text.trim_end_matches(['\n', '\r']);
            say(text);
            line(&plain(text));
            raw.clear();
        }
    }
    child.wait().map_err(|error| not_started(command, &error, next))
}

/// A command as one would type it.
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// A line without its terminal colours (`ESC [ ... m`).
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\u{1b}[") {
        out.push_str(&rest[..start]);
        let code = &rest[start + 2..];
        rest = code
            .find(|character: char| character.is_ascii_alphabetic())
            .map_or("", |end| &code[end + 1..]);
    }
    out.push_str(rest);
    out
}

fn not_started(command: &Command, error: &std::io::Error, next: &str) -> Problem {
    Problem::new(format!("cannot run `{}`: {error}", shown(command)), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_taken_out() {
        assert_eq!(plain("\u{1b}[32;1m  Summary\u{1b}[0m ok"), "  Summary ok");
        assert_eq!(plain("nothing"), "nothing");
        assert_eq!(plain("cut \u{1b}[3"), "cut ");
    }

    #[test]
    fn a_program_that_is_not_there_says_what_to_do() {
        let error = run(&mut Command::new("/nonexistent/program"), "install it")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nonexistent/program") && error.contains("install it"),
            "{error}"
        );
    }

    #[test]
    fn lines_are_seen() {
        let mut seen = Vec::new();
        let status = watch(
            Command::new("sh").args(["-c", "echo a; echo b >&2; echo c"]),
            Stream::Stdout,
            "",
            |line| {
                seen.push(line.to_owned());
            },
        );
        assert!(status.unwrap().success());
        assert_eq!(seen, ["a", "c"]);
    }
}
