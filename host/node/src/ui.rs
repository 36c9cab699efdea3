//! How the command line speaks: data on stdout, everything else on stderr, one meaning an exit code.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use cloister_exchange::ExchangeError;
use cloister_session::SessionError;

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

    /// Of a session that did not come to be: a verdict of attestation, on either side, is no network that failed.
    pub fn of_session(error: &SessionError) -> Self {
        match error.refusal() {
            Some(_) => Self::Refused,
            None => Self::Failed,
        }
    }

    /// Of an exchange that ended: what attestation refused, what the policy denied, and the rest.
    pub fn of_exchange(error: &ExchangeError) -> Self {
        match error {
            error if error.refusal().is_some() => Self::Refused,
            error if error.denied() => Self::Denied,
            _ => Self::Failed,
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

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_attestation::{FailedRule, Refusal};
    use cloister_exchange::work::WorkError;
    use std::io::Error;

    fn refusal() -> Refusal {
        Refusal::one("attestation.mrtd", "11", "22")
    }

    fn address() -> String {
        "192.0.2.7:8443".into()
    }

    #[test]
    fn a_session_that_attestation_refused_ends_with_3_and_every_other_one_with_1() {
        let refused_by_peer = || SessionError::RefusedByPeer {
            address: address(),
            refusal: refusal(),
        };
        let refused_peer = SessionError::RefusedPeer {
            address: address(),
            who: String::new(),
            claimed: None,
            refusal: refusal(),
        };
        for error in [refused_peer, refused_by_peer()] {
            assert_eq!(Exit::of_session(&error).code(), 3, "{error}");
            assert!(error.to_string().contains("seen 11; wanted 22"), "{error}");
            assert_eq!(Exit::of_exchange(&error.into()).code(), 3);
        }
        let reason = FailedRule::new("session.rate", "31 a minute", "30");
        for error in [
            SessionError::Unreachable {
                address: address(),
                source: Error::from(ErrorKind::ConnectionRefused),
            },
            SessionError::Tls {
                address: address(),
                cause: "not TLS".into(),
            },
            SessionError::PeerBusy {
                address: address(),
                reason,
            },
            SessionError::Broken {
                address: address(),
                cause: "the stream ended".into(),
            },
            SessionError::Silent {
                address: address(),
                seconds: 10,
            },
            SessionError::TooSlow {
                address: address(),
                seconds: 10,
            },
            SessionError::Own { cause: "no key".into() },
            SessionError::Listen {
                address: address(),
                source: Error::from(ErrorKind::AddrInUse),
            },
            SessionError::Http {
                cause: "no preface".into(),
            },
        ] {
            assert_eq!(Exit::of_session(&error).code(), 1, "{error}");
            assert_eq!(Exit::of_exchange(&error.into()).code(), 1);
        }
    }

    #[test]
    fn an_exchange_ends_with_3_4_or_1_by_who_said_no() {
        let call = |code| ExchangeError::Call {
            what: "a submission".into(),
            code,
            message: "no".into(),
        };
        let roster = ExchangeError::RosterRefused {
            node: "worker-south".into(),
            refusal: refusal(),
        };
        for (error, code) in [
            (roster, 3),
            (call(tonic::Code::PermissionDenied), 4),
            (call(tonic::Code::Unavailable), 1),
            (call(tonic::Code::NotFound), 1),
            (WorkError::new("training", "trap").into(), 1),
            (ExchangeError::Cancelled, 1),
            (
                ExchangeError::OtherInstance {
                    node: "worker-south".into(),
                    since: "2026-01-01".into(),
                },
                1,
            ),
            (
                ExchangeError::Dropped {
                    code: "late".into(),
                    reason: "no update after 300 s".into(),
                    failure: None,
                },
                1,
            ),
        ] {
            assert_eq!(Exit::of_exchange(&error).code(), code, "{error}");
        }
    }
}
