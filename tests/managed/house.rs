//! The sealed example as it was left, its manager and nodes started again.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cloister_tests::{Run, binary, cloister, guests, root, words};
use serde_json::Value;
use tempfile::TempDir;

/// How long a test waits for an event: far longer than any takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const PARTICIPANTS: [&str; 4] = ["north", "east", "south", "institute"];

/// What the sealed example left, and what it told.
pub(crate) struct House {
    _kept: TempDir,
    pub(crate) folder: PathBuf,
    pub(crate) told: Value,
}

impl House {
    pub(crate) fn new() -> Self {
        let kept = tempfile::tempdir().unwrap();
        let run = cloister([
            "demo".as_ref(),
            "--rounds".as_ref(),
            "3".as_ref(),
            "--example".as_ref(),
            root().join("examples/hospitals-sealed").as_os_str(),
            "--guests".as_ref(),
            guests().as_os_str(),
            "--out".as_ref(),
            kept.path().as_os_str(),
            "-o".as_ref(),
            "json".as_ref(),
        ])
        .unwrap();
        assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
        let told = run.json().unwrap();
        let folder = kept.path().canonicalize().unwrap().join("run-1");
        Self {
            _kept: kept,
            folder,
            told,
        }
    }

    /// Runs the binary on a line in which `OUT` stands for the folder.
    pub(crate) fn run(&self, line: &str) -> Run {
        let out = self.folder.display().to_string();
        cloister(line.split_whitespace().map(|word| word.replace("OUT", &out))).unwrap()
    }

    pub(crate) fn refused(&self, line: &str, code: i32, wanted: &str) {
        let run = self.run(line);
        assert_eq!(run.code, code, "{line}: {}{}", run.stdout, run.stderr);
        assert!(words(&run.stderr).contains(wanted), "{wanted}: {}", run.stderr);
    }

    /// The manager of the house, started again: at that address, or with port 0 where the system likes.
    pub(crate) fn manager(&self, address: &str) -> (Node, String) {
        let own = self.folder.join("nodes/manager");
        let text = std::fs::read_to_string(own.join("node.toml")).unwrap();
        let path = own.join("case.toml");
        std::fs::write(&path, text.replace("127.0.0.1:0", address)).unwrap();
        let manager = Node::start("manager", &path);
        let address = manager.wait_for("listening")["address"].as_str().unwrap().to_owned();
        (manager, address)
    }

    /// How a command names the manager and the policy that it is judged by.
    pub(crate) fn at(address: &str, policy: &str) -> String {
        format!("--to {address} --policy OUT/{policy} --trust-root OUT/authority")
    }

    /// A command of a participant to the manager under the founding policy.
    pub(crate) fn as_one(address: &str, participant: &str) -> String {
        format!(
            "{} --participant {participant} --participant-key OUT/participants/{participant}.key",
            Self::at(address, "policy.toml")
        )
    }

    /// All participants hand their shares over; gives the phase after the last one.
    pub(crate) fn recover(&self, address: &str, more: &str) -> String {
        let mut phase = String::new();
        for name in PARTICIPANTS {
            let run = self.run(&format!(
                "manager recover {more} {} -o json",
                Self::as_one(address, name)
            ));
            assert_eq!(run.code, 0, "{}", run.stderr);
            phase = run.json().unwrap()["phase"].as_str().unwrap().to_owned();
        }
        phase
    }

    /// Asks for the manager's status until it is as wanted.
    pub(crate) fn until(&self, address: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let run = self.run(&format!("manager status {} -o json", Self::at(address, "policy.toml")));
            let status = run.json().unwrap_or_default();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < until, "{status}{}", run.stderr);
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// A node's file, changed, beside it; the address of the manager in it is replaced.
    pub(crate) fn node_file(&self, node: &str, manager: &str, edit: impl FnOnce(String) -> String) -> PathBuf {
        let own = self.folder.join("nodes").join(node);
        let text = std::fs::read_to_string(own.join("node.toml")).unwrap();
        let lines = text.lines().map(|line| match line.starts_with("address = ") {
            true => format!("address = \"{manager}\"\n"),
            false => format!("{line}\n"),
        });
        let path = own.join("case.toml");
        std::fs::write(&path, edit(lines.collect())).unwrap();
        path
    }
}

/// A running node; it ends with this value.
pub(crate) struct Node {
    child: Child,
    events: Receiver<Value>,
}

impl Node {
    pub(crate) fn start(role: &str, file: &Path) -> Self {
        let mut child = Command::new(binary())
            .args([role, "-o", "json", "--config"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, events) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            for event in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                let _ = sender.send(event);
            }
        });
        Self { child, events }
    }

    pub(crate) fn wait_for(&self, name: &str) -> Value {
        loop {
            let event: Value = self
                .events
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("no {name}"));
            if event["event"] == name {
                return event;
            }
        }
    }

    /// Waits for its end; gives its exit code.
    pub(crate) fn ended(&mut self) -> i32 {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < until, "it never ended");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
