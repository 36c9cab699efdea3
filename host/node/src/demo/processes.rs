//! The nodes of an example as child processes of this one: started, listened to, and never left behind.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::events::Event;
use crate::process::{own_binary, until_signal};

/// The longest line of events that is taken from a node.
const MAX_EVENT_LINE_BYTES: u64 = 256 * 1024;
/// Lines of a node's log that an error shows.
const LOG_LINES_SHOWN: usize = 20;
/// How long a node may take to end after it was asked to.
const END_S: u64 = 5;

/// Why a node's process is no help.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It can't be started.
    #[error("node {node} cannot be started: {cause}")]
    Start {
        /// The node.
        node: String,
        /// The system's error.
        cause: std::io::Error,
    },
    /// It ended before its time.
    #[error("node {node} ended early ({status}). The end of its log, {log}:\n{tail}")]
    Ended {
        /// The node.
        node: String,
        /// How it ended.
        status: String,
        /// Its log file.
        log: String,
        /// The last lines of the log.
        tail: String,
    },
    /// This process was asked to end, and its nodes with it.
    #[error("asked to end before {wanted}; the nodes are ended too, their logs are in {logs}")]
    Stopped {
        /// What was waited for.
        wanted: String,
        /// Where the nodes' logs lie.
        logs: String,
    },
    /// Nothing came in time.
    #[error("{wanted} did not happen within {seconds} s; logs are in {logs}")]
    Late {
        /// What was waited for.
        wanted: String,
        /// For how long.
        seconds: u64,
        /// Where the nodes' logs lie.
        logs: String,
    },
}

/// What a node told, with the node's name.
pub type Told = (String, Event);

/// The running nodes.
pub struct Processes {
    running: Vec<Running>,
    logs: PathBuf,
    sender: Sender<Told>,
    told: Receiver<Told>,
    stop: CancellationToken,
}

struct Running {
    node: String,
    child: Child,
    log: PathBuf,
}

impl Processes {
    /// No nodes yet; their logs will lie in `logs`.
    pub fn new(logs: &Path) -> Self {
        let (sender, told) = mpsc::channel();
        Self {
            running: Vec::new(),
            logs: logs.to_path_buf(),
            sender,
            told,
            stop: stop_asked(),
        }
    }

    /// Starts `cloister ROLE --config FILE -o json`, as a process that ends with this one: to be called on a thread that lives as long
    /// (the kernel watches the thread).
    pub fn start(&mut self, node: &str, command: &[&str], config: &Path) -> Result<(), ProcessError> {
        let failed = |cause| ProcessError::Start {
            node: node.into(),
            cause,
        };
        let log = self.logs.join(format!("{node}.log"));
        let log_file = std::fs::File::create(&log).map_err(failed)?;
        let mut child = Command::new(own_binary())
            .args(command)
            .arg("--config")
            .arg(config)
            .args(["-o", "json", "--end-with", &std::process::id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file)
            .spawn()
            .map_err(failed)?;
        if let Some(stdout) = child.stdout.take() {
            let (node, sender) = (node.to_owned(), self.sender.clone());
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stdout);
                let mut line = String::new();
                while matches!((&mut lines).take(MAX_EVENT_LINE_BYTES).read_line(&mut line), Ok(1..)) {
                    if let Ok(event) = serde_json::from_str(&line)
                        && sender.send((node.clone(), event)).is_err()
                    {
                        break;
                    }
                    line.clear();
                }
            });
        }
        self.running.push(Running {
            node: node.into(),
            child,
            log,
        });
        Ok(())
    }

    /// The next thing that any node tells; an error when a node fails or `within` passes.
    pub fn next(&mut self, wanted: &str, within: Duration) -> Result<Told, ProcessError> {
        let until = Instant::now() + within;
        loop {
            self.stopped(wanted)?;
            match self.told.recv_timeout(Duration::from_millis(100)) {
                Ok(told) => return Ok(told),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => self.check()?,
            }
            if Instant::now() >= until {
                return Err(ProcessError::Late {
                    wanted: wanted.into(),
                    seconds: within.as_secs(),
                    logs: self.logs.display().to_string(),
                });
            }
        }
    }

    fn stopped(&self, wanted: &str) -> Result<(), ProcessError> {
        match self.stop.is_cancelled() {
            false => Ok(()),
            true => Err(ProcessError::Stopped {
                wanted: wanted.into(),
                logs: self.logs.display().to_string(),
            }),
        }
    }

    fn check(&mut self) -> Result<(), ProcessError> {
        for running in &mut self.running {
            if let Ok(Some(status)) = running.child.try_wait()
                && !status.success()
            {
                return Err(ended(running, status));
            }
        }
        Ok(())
    }

    /// Waits until every node ended by itself.
    pub fn wait(&mut self, within: Duration) -> Result<(), ProcessError> {
        let until = Instant::now() + within;
        loop {
            self.stopped("the end of all nodes")?;
            let mut all = true;
            for running in &mut self.running {
                match running.child.try_wait() {
                    Ok(Some(status)) if status.success() => {}
                    Ok(Some(status)) => return Err(ended(running, status)),
                    _ => all = false,
                }
            }
            if all {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(ProcessError::Late {
                    wanted: "the end of all nodes".into(),
                    seconds: within.as_secs(),
                    logs: self.logs.display().to_string(),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for running in &mut self.running {
            if let (Ok(None), Ok(pid)) = (running.child.try_wait(), i32::try_from(running.child.id()))
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        let until = Instant::now() + Duration::from_secs(END_S);
        for running in &mut self.running {
            while matches!(running.child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

/// Cancelled once this process is asked to end: dying of the signal would leave its nodes behind.
fn stop_asked() -> CancellationToken {
    let stop = CancellationToken::new();
    let asked = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    // Without the thread a signal ends this process alone, as if it were not caught.
    if let Ok(runtime) = runtime {
        std::thread::spawn(move || runtime.block_on(until_signal(asked)));
    }
    stop
}

fn ended(running: &Running, status: ExitStatus) -> ProcessError {
    let text = std::fs::read(&running.log)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    ProcessError::Ended {
        node: running.node.clone(),
        status: status.to_string(),
        log: running.log.display().to_string(),
        tail: lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n"),
    }
}
