//! A manager that is killed amid the training: it starts again by its participants' shares and the word of the nodes that still run, and
//! on an older copy of its state it does not.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloister_tests::{Run, binary, cloister, guests, root, words};
use serde_json::Value;
use tempfile::TempDir;

use super::house::{House, Node, PARTICIPANTS, PATIENCE};

/// The sealed example amid its training. Its nodes run on while nobody looks after them, and end with this value.
struct Training {
    _kept: TempDir,
    demo: Child,
    folder: PathBuf,
}

impl Drop for Training {
    fn drop(&mut self) {
        // The nodes end with the process that started them.
        let _ = self.demo.kill();
        let _ = self.demo.wait();
    }
}

fn signal(name: &str, id: u32) {
    let done = Command::new("kill").args([name, &id.to_string()]).status().unwrap();
    assert!(done.success(), "kill {name} {id}");
}

fn process_of(file: &Path) -> Option<u32> {
    let wanted = file.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.find(|id| {
        let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes())
    })
}

impl Training {
    fn begin() -> Self {
        let kept = tempfile::tempdir().unwrap();
        let out = kept.path().canonicalize().unwrap();
        let demo = Command::new(binary())
            .args(["demo", "--rounds", "5000", "-o", "json", "--example"])
            .arg(root().join("examples/hospitals-sealed"))
            .arg("--guests")
            .arg(guests())
            .arg("--out")
            .arg(&out)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let training = Self {
            _kept: kept,
            demo,
            folder: out.join("run-1"),
        };
        training.until("a round", |training| training.rounds() > 0);
        // What happens from here on is the test's.
        signal("-STOP", training.demo.id());
        training
    }

    fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !reached(self) {
            assert!(Instant::now() < until, "{what} never came");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn rounds(&self) -> usize {
        let log = std::fs::read_to_string(self.folder.join("nodes/aggregator/audit.jsonl")).unwrap_or_default();
        log.matches("\"event\":\"round\"").count()
    }

    fn run(&self, line: &str) -> Run {
        let out = self.folder.display().to_string();
        cloister(line.split_whitespace().map(|word| word.replace("OUT", &out))).unwrap()
    }

    fn address(&self) -> String {
        let file = std::fs::read_to_string(self.folder.join("nodes/aggregator/node.toml")).unwrap();
        let line = file.lines().find_map(|line| line.strip_prefix("address = ")).unwrap();
        line.trim_matches('"').to_owned()
    }

    fn kill_manager(&self) {
        let id = process_of(&self.folder.join("nodes/manager/node.toml")).unwrap();
        signal("-KILL", id);
    }

    /// The manager started again where the nodes look for it.
    fn manager(&self) -> Node {
        let own = self.folder.join("nodes/manager");
        let text = std::fs::read_to_string(own.join("node.toml")).unwrap();
        let path = own.join("again.toml");
        std::fs::write(&path, text.replace("127.0.0.1:0", &self.address())).unwrap();
        let manager = Node::start("manager", &path);
        manager.wait_for("listening");
        manager
    }

    /// All participants hand their shares over; none agrees to do without the nodes.
    fn hand_shares_over(&self) {
        for name in PARTICIPANTS {
            let run = self.run(&format!("manager recover {}", House::as_one(&self.address(), name)));
            assert_eq!(run.code, 0, "{}", run.stderr);
        }
    }

    fn status(&self) -> Value {
        let at = House::at(&self.address(), "policy.toml");
        let run = self.run(&format!("manager status {at} -o json"));
        run.json().unwrap_or_default()
    }
}

#[test]
fn a_manager_killed_amid_the_training_starts_by_shares_and_by_what_the_nodes_saw_of_it() {
    let training = Training::begin();
    training.kill_manager();
    let _manager = training.manager();
    training.hand_shares_over();
    training.until("the nodes' word", |training| training.status()["phase"] == "running");
    let log = format!(
        "manager log {} --out OUT/again.jsonl",
        House::as_one(&training.address(), "north")
    );
    let run = training.run(&log);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let log = std::fs::read_to_string(training.folder.join("again.jsonl")).unwrap();
    let started = log.lines().rfind(|line| line.contains("manager-started")).unwrap();
    assert!(started.contains("\"confirmed_by\":\"nodes\""), "{started}");
}

#[test]
fn a_backup_put_back_amid_the_training_does_not_start_and_neither_does_a_manager_without_a_state() {
    let training = Training::begin();
    let north = House::as_one(&training.address(), "north");
    let backup = format!("manager backup --out OUT/old.backup --keep OUT/north.mark {north}");
    let run = training.run(&backup);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let again = training.run(&backup);
    assert!(
        again.code == 2 && words(&again.stderr).contains("is there already"),
        "{}",
        again.stderr
    );
    let before = training.rounds();
    training.until("another round", |training| training.rounds() > before + 1);
    let run = training.run(&format!("manager secrets ls --keep OUT/north.mark {north}"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    training.kill_manager();

    let file = training.folder.join("nodes/manager/node.toml");
    let restore = format!("manager restore OUT/old.backup --config {}", file.display());
    let run = training.run(&restore);
    assert!(
        run.code == 4 && words(&run.stderr).contains("would forget"),
        "{}",
        run.stderr
    );
    let state = training.folder.join("nodes/manager/state/state.redb");
    std::fs::rename(&state, state.with_extension("aside")).unwrap();
    // Without a state it is not the first start: the policies that were in force lie beside it.
    let run = training.run(&format!("manager --config {}", file.display()));
    assert!(
        run.code == 1 && words(&run.stderr).contains("have forgotten what was agreed"),
        "{}",
        run.stderr
    );
    std::fs::write(training.folder.join("no.backup"), "no backup").unwrap();
    let run = training.run(&restore.replace("old.backup", "no.backup"));
    assert!(run.code == 2 && !state.exists(), "{}", run.stderr);
    let run = training.run(&restore);
    assert_eq!(run.code, 0, "{}", run.stderr);

    let _manager = training.manager();
    training.hand_shares_over();
    training.until("a node's word", |training| {
        let heard = training.status()["witnesses"]["heard"].as_array().map_or(0, Vec::len);
        heard > 0
    });
    let status = training.status();
    assert_eq!(status["phase"], "unconfirmed", "{status}");
    // Who keeps a mark finds out, too.
    let kept = format!("manager recover --kept OUT/north.mark {north}");
    let run = training.run(&kept);
    assert_eq!(run.code, 4, "it waits for no shares any more: {}", run.stderr);
}
