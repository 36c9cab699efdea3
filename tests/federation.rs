//! A federation that the demo prepared, to be attacked: its aggregator, and workers that differ in one thing.

use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::{Run, binary, cloister, guests, root};

/// What the demo left: policy, authority, keys, and a folder for each node.
#[derive(Debug)]
pub struct Federation {
    _kept: TempDir,
    folder: PathBuf,
}

impl Federation {
    /// Runs the digits demo for one round, and keeps its folder.
    pub fn of_demo() -> io::Result<Self> {
        let kept = tempfile::tempdir()?;
        let run = cloister([
            "demo".as_ref(),
            "--rounds".as_ref(),
            "1".as_ref(),
            "--example".as_ref(),
            root().join("examples/digits").as_os_str(),
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

    /// Starts the aggregator and waits until it listens.
    pub fn start_aggregator(&self) -> io::Result<Aggregator> {
        let mut child = Command::new(binary())
            .args(["aggregator", "-o", "json", "--config"])
            .arg(self.node("aggregator").join("node.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| io::Error::other("no stdout"))?;
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next().transpose()? {
            let event: serde_json::Value = serde_json::from_str(&line)?;
            if let Some(address) = event["address"].as_str() {
                let address = address.to_owned();
                // Nobody else reads on: the pipe must not fill up.
                std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
                return Ok(Aggregator { child, address });
            }
        }
        Err(io::Error::other("the aggregator ended before it listened"))
    }

    /// A copy of a node's folder beside it, whose node file `edit` changes; gives the node file.
    pub fn node_like(&self, node: &str, case: &str, edit: impl FnOnce(&Path, String) -> String) -> io::Result<PathBuf> {
        let own = self.node(case);
        std::fs::create_dir_all(&own)?;
        for entry in std::fs::read_dir(self.node(node))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
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
        let file = self.node_like(node, case, |own, text| {
            edit(own, redirected(&text, &aggregator.address))
        })?;
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

/// A running aggregator; it ends with this value.
#[derive(Debug)]
pub struct Aggregator {
    child: Child,
    /// Where it listens.
    pub address: String,
}

impl Aggregator {
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
