//! How the command line speaks: data on stdout, everything else on stderr, one meaning an exit code.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::files;

/// What the process's exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: the work failed.
    Failed,
    /// 2: usage, or an input that cannot be read.
    Usage,
    /// 3: attestation refused.
    Refused,
    /// 4: the policy denies it.
    Denied,
}

impl Exit {
    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Denied => 4,
        }
    }
}

/// Form of the data on stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON document and nothing else.
    Json,
}

/// The option `-o text|json`, flattened into the commands that print data
/// (commands that write a file use `-o` for its path).
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// Form of the data on stdout.
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub format: Format,
}

impl OutputArgs {
    /// Whether JSON was asked for.
    pub fn json(self) -> bool {
        self.format == Format::Json
    }
}

/// Where a command writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ui {}

/// Why data did not come to stdout, the first time that they did not: the process has one stdout, whoever writes to it.
static LOST: OnceLock<std::io::Error> = OnceLock::new();

impl Ui {
    /// Prints a line of data on stdout.
    pub fn data(&mut self, text: impl fmt::Display) {
        self.bytes(format!("{text}\n").as_bytes());
    }

    /// Writes data on stdout as it is. What fails is kept for [`Self::finish`].
    pub fn bytes(&mut self, bytes: &[u8]) {
        let mut stdout = std::io::stdout().lock();
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        if let Err(error) = written {
            LOST.get_or_init(|| error);
        }
    }

    /// Whether all data came to stdout. A closed pipe (`cloister ... | head`) is the reader's choice and no failure of ours; a full
    /// disk is one.
    pub fn finish(self) -> Result<(), miette::Report> {
        match LOST.get() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(failed(
                Exit::Failed,
                format!("standard output cannot be written: {error}; data are missing there"),
                files::help(error.kind()),
            )),
            _ => Ok(()),
        }
    }

    /// Prints a value as one JSON document on stdout.
    pub fn json(&mut self, value: &impl serde::Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.data(text),
            Err(error) => {
                LOST.get_or_init(|| error.into());
            }
        }
    }

    /// Prints a remark for the person at the terminal, on stderr.
    pub fn note(&mut self, text: impl fmt::Display) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }
}

/// An error together with the exit code that it ends the process with.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
#[error("{message}")]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    message: String,
    #[help]
    help: Option<String>,
}

/// Wraps an error (with its chain of causes) so that the process ends with `exit`. Where the system is the cause, the help says what
/// to do about it.
pub fn fail(exit: Exit, error: impl std::error::Error + 'static) -> miette::Report {
    let mut message = error.to_string();
    let mut help = None;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(source) = cause {
        let text = source.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        if let Some(system) = source.downcast_ref::<std::io::Error>() {
            help = files::help(system.kind());
        }
        cause = source.source();
    }
    Failure { exit, message, help }.into()
}

/// What stands behind each verdict under a simulated root, in words for people.
pub fn root_in_words(simulated: bool) -> &'static str {
    if simulated { " (SIMULATED root)" } else { "" }
}

/// A refusal by attestation: exit code 3. Under a simulated root it says so.
pub fn refused(error: impl std::error::Error + 'static, simulated: bool) -> miette::Report {
    let message = format!("{error}");
    Failure {
        exit: Exit::Refused,
        message: match simulated {
            true => format!("SIMULATED root, nothing here is proven by hardware: {message}"),
            false => message,
        },
        help: None,
    }
    .into()
}

/// An input that cannot be read: exit code 2.
pub fn unreadable(error: impl std::error::Error + 'static) -> miette::Report {
    fail(Exit::Usage, error)
}

/// A failure in words, with what to do about it.
pub fn failed(exit: Exit, message: impl Into<String>, help: Option<String>) -> miette::Report {
    Failure {
        exit,
        message: message.into(),
        help,
    }
    .into()
}

/// The wall clock, in seconds since 1970; a clock before that reads 0.
pub fn now_unix_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
