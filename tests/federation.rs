//! A federation that the demo prepared, to be attacked: its aggregator, and workers that differ in one thing.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tempfile::TempDir;

use crate::{Run, binary, cloister, guests, root};

/// How long a test waits for an event before it says that there is none: far longer than any takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the demo left: policy, authority, keys, and a folder for each node.
#[derive(Debug)]
pub struct Federation {
    _kept: TempDir,
    folder: PathBuf,
}

impl Federation {
    /// Runs the digits demo for one round, and keeps its folder.
    pub fn of_demo() -> io::Result<Self> {
        Self::of_rounds(1)
    }

    /// Runs the digits demo for that many rounds, and keeps its folder.
    pub fn of_rounds(rounds: u32) -> io::Result<Self> {
        Self::of_example(&root().join("examples/digits"), "averaging", rounds)
    }

    /// Runs the digits demo in that mode for that many rounds, with a plan that `edit` changes, and keeps its folder.
    pub fn of_mode(mode: &str, rounds: u32, edit: impl FnOnce(String) -> String) -> io::Result<Self> {
        let (own, digits) = (tempfile::tempdir()?, root().join("examples/digits"));
        std::fs::copy(digits.join("digits.csv"), own.path().join("digits.csv"))?;
        let plan = edit(std::fs::read_to_string(digits.join("federation.toml"))?);
        std::fs::write(own.path().join("federation.toml"), plan)?;
        Self::of_example(own.path(), mode, rounds)
    }

    fn of_example(example: &Path, mode: &str, rounds: u32) -> io::Result<Self> {
        let kept = tempfile::tempdir()?;
        let run = cloister([
            "demo".as_ref(),
            "--mode".as_ref(),
            mode.as_ref(),
            "--rounds".as_ref(),
            rounds.to_string().as_ref(),
            "--example".as_ref(),
            example.as_os_str(),
            "--guests".as_ref(),
            guests().as_os_str(),
            "--out".as_ref(),
            kept.path().as_os_str(),
        ])?;
        if run.code != 0 {
            return Err(io::Error::other(format!(
                "the demo failed: {}{}",
                run.stdout, run.stderr
            )));
        }
        let folder = kept.path().canonicalize()?.join("run-1");
        Ok(Self { _kept: kept, folder })
    }

    /// The folder of policy, authority and nodes.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A node's folder.
    pub fn node(&self, name: &str) -> PathBuf {
        self.folder.join("nodes").join(name)
    }

    /// Starts the aggregator with a vault of its own (the demo's holds rounds that are done) and waits until it listens.
    pub fn start_aggregator(&self) -> io::Result<Aggregator> {
        self.start_aggregator_with(|text| text)
    }

    /// As [`Self::start_aggregator`], with a node file that `edit` changes.
    pub fn start_aggregator_with(&self, edit: impl FnOnce(String) -> String) -> io::Result<Aggregator> {
        let own = self.node("aggregator");
        let anew = (1..)
            .map(|count| format!("vault-{count}"))
            .find(|name| !own.join(name).exists())
            .unwrap_or_default();
        let text = std::fs::read_to_string(own.join("node.toml"))?
            .replace("path = \"vault\"", &format!("path = \"{anew}\""))
            .replace("\"vault.last-seen\"", &format!("\"{anew}.last-seen\""));
        let file = own.join(format!("node-{anew}.toml"));
        std::fs::write(&file, edit(text))?;
        Aggregator::start(file)
    }

    /// A copy of a node's folder beside it, whose node file `edit` changes; gives the node file.
    pub fn node_like(&self, node: &str, case: &str, edit: impl FnOnce(&Path, String) -> String) -> io::Result<PathBuf> {
        let own = self.node(case);
        std::fs::create_dir_all(&own)?;
        for entry in std::fs::read_dir(self.node(node))? {
            let entry = entry?;
            // A log is its node's: under another key it would keep this one from starting.
            if entry.file_type()?.is_file() && entry.file_name() != "audit.jsonl" {
                std::fs::copy(entry.path(), own.join(entry.file_name()))?;
            }
        }
        let file = own.join("node.toml");
        let text = edit(&own, std::fs::read_to_string(&file)?);
        std::fs::write(&file, text)?;
        Ok(file)
    }

    /// Runs a worker that is like `node` but for what `edit` changes, against an aggregator.
    pub fn worker_like(
        &self,
        node: &str,
        case: &str,
        aggregator: &Aggregator,
        edit: impl FnOnce(&Path, String) -> String,
    ) -> io::Result<Run> {
        self.worker_at(node, case, &aggregator.address, edit)
    }

    /// The node file of a worker that is like `node` but for what `edit` changes, with an aggregator's address.
    pub fn worker_file(
        &self,
        node: &str,
        case: &str,
        address: &str,
        edit: impl FnOnce(&Path, String) -> String,
    ) -> io::Result<PathBuf> {
        self.node_like(node, case, |own, text| edit(own, redirected(&text, address)))
    }

    /// As [`Self::worker_like`], against an address.
    pub fn worker_at(
        &self,
        node: &str,
        case: &str,
        address: &str,
        edit: impl FnOnce(&Path, String) -> String,
    ) -> io::Result<Run> {
        let file = self.worker_file(node, case, address, edit)?;
        cloister([
            "worker".as_ref(),
            "--give-up-s".as_ref(),
            "20".as_ref(),
            "--config".as_ref(),
            file.as_os_str(),
        ])
    }
}

/// The node file with another aggregator's address.
fn redirected(text: &str, address: &str) -> String {
    text.lines()
        .map(|line| match line.starts_with("aggregator = ") {
            true => format!("aggregator = \"{address}\"\n"),
            false => format!("{line}\n"),
        })
        .collect()
}

/// A running worker whose end is waited for; it ends with this value.
#[derive(Debug)]
pub struct Worker(Child);

impl Worker {
    /// Starts a worker from its node file.
    pub fn start(file: &Path) -> io::Result<Self> {
        let child = Command::new(binary())
            .args(["worker", "--give-up-s", "60", "--config"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self(child))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Its exit code, and what it wrote to stderr.
    pub fn wait(&mut self) -> io::Result<(Option<i32>, String)> {
        let mut said = String::new();
        if let Some(mut stderr) = self.0.stderr.take() {
            stderr.read_to_string(&mut said)?;
        }
        Ok((self.0.wait()?.code(), said))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running aggregator; it ends with this value.
#[derive(Debug)]
pub struct Aggregator {
    child: Child,
    file: PathBuf,
    events: Mutex<Receiver<serde_json::Value>>,
    /// Where it listens.
    pub address: String,
    /// What it told before it listened.
    pub before: Vec<serde_json::Value>,
}

impl Aggregator {
    /// Starts one and waits until it listens.
    pub fn start(file: PathBuf) -> io::Result<Self> {
        let mut child = Command::new(binary())
            .args(["aggregator", "-o", "json", "--config"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(file.with_extension("log"))?)
            .spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no stdout"))?;
        let (sender, events) = mpsc::channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            for event in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                // Read on even if nobody listens: the pipe must not fill up.
                let _ = sender.send(event);
            }
        });
        let mut aggregator = Self {
            child,
            file,
            events: Mutex::new(events),
            address: String::new(),
            before: Vec::new(),
        };
        loop {
            let event = aggregator.next_event("listening")?;
            match event["address"].as_str() {
                Some(address) => {
                    aggregator.address = address.to_owned();
                    return Ok(aggregator);
                }
                None => aggregator.before.push(event),
            }
        }
    }

    /// Reads events until one of that name comes.
    pub fn wait_for(&self, name: &str) -> io::Result<serde_json::Value> {
        loop {
            let event = self.next_event(name)?;
            if event["event"] == name {
                return Ok(event);
            }
        }
    }

    fn next_event(&self, wanted: &str) -> io::Result<serde_json::Value> {
        let silent = |_| io::Error::other(format!("the aggregator ended, or was silent, before {wanted:?}"));
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.recv_timeout(PATIENCE).map_err(silent)
    }

    /// Ends it as a crash would, and starts it again with the same node file at the same address.
    pub fn crash_and_restart(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let listen = format!("listen = \"{}\"", self.address);
        let text = std::fs::read_to_string(&self.file)?;
        let lines = text.lines().map(|line| match line.starts_with("listen = ") {
            true => listen.as_str(),
            false => line,
        });
        let text: Vec<_> = lines.collect();
        std::fs::write(&self.file, text.join("\n"))?;
        *self = Self::start(self.file.clone())?;
        Ok(())
    }

    /// What it wrote to stderr since it started.
    pub fn log(&self) -> io::Result<String> {
        std::fs::read_to_string(self.file.with_extension("log"))
    }

    /// Its node file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether it still runs.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, as a service manager does.
    pub fn terminate(&self) -> io::Result<()> {
        let status = Command::new("kill").arg("-TERM").arg(self.pid().to_string()).status()?;
        status
            .success()
            .then_some(())
            .ok_or_else(|| io::Error::other("kill failed"))
    }

    /// Waits for its end; gives the exit code.
    pub fn wait(&mut self) -> io::Result<Option<i32>> {
        self.child.wait().map(|status| status.code())
    }
}

impl Drop for Aggregator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
