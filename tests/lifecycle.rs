//! A node's life: what it closes when it starts, how it ends, what it leaves.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloister_tests::federation::{Federation, Worker};
use cloister_tests::processes::{self, lives};
use cloister_tests::{binary, cloister, guests, root, words};
use tempfile::TempDir;

/// How long a test waits for something to happen: less than the 300 s that a policy gives a round by default.
const PATIENCE: Duration = Duration::from_secs(150);

/// Waits until `happened`, and says what did not.
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < end, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn signal(pid: u32, name: &str) {
    processes::signal(pid, name).unwrap();
}

fn children(pid: u32) -> Vec<u32> {
    processes::children(pid).unwrap()
}

#[test]
fn a_node_starts_closed_and_ends_cleanly() {
    let federation = Federation::of_demo().unwrap();
    let mut aggregator = federation.start_aggregator().unwrap();

    // No core dump of the keeper or of its runner can carry keys or rows out.
    let runners = children(aggregator.pid());
    assert!(!runners.is_empty(), "the aggregator has no runner");
    for pid in runners.iter().copied().chain([aggregator.pid()]) {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"))
            .unwrap();
        let fields: Vec<_> = core.split_whitespace().collect();
        assert_eq!(fields[4..6], ["0", "0"], "{core}");
    }

    aggregator.terminate().unwrap();
    assert_eq!(aggregator.wait().unwrap(), Some(0), "asked to end, it ends in order");
    for pid in runners {
        assert!(
            !Path::new(&format!("/proc/{pid}")).exists(),
            "the runner {pid} outlived its keeper"
        );
    }

    // What the demo sealed is still whole, and known to be the newest.
    let own = federation.node("aggregator");
    let run = cloister([
        "vault".as_ref(),
        "verify".as_ref(),
        own.join("vault").as_os_str(),
        "--key-file".as_ref(),
        own.join("vault.key").as_os_str(),
        "--last-seen".as_ref(),
        own.join("vault.last-seen").as_os_str(),
        "-o".as_ref(),
        "json".as_ref(),
    ])
    .unwrap();
    assert_eq!(run.code, 0, "{}", run.stderr);
    let listing = run.json().unwrap();
    assert_eq!(listing["freshness"], "proven", "{listing}");
    assert_eq!(listing["files"].as_array().map(Vec::len), Some(3), "{listing}");
}

#[test]
fn a_vault_put_back_whole_is_refused_with_both_versions() {
    let federation = Federation::of_demo().unwrap();
    let own = federation.node("aggregator");
    let place = |command: &str| {
        vec![
            "vault".into(),
            command.into(),
            own.join("vault").into_os_string(),
            "--key-file".into(),
            own.join("vault.key").into_os_string(),
            "--last-seen".into(),
            own.join("vault.last-seen").into_os_string(),
        ]
    };
    let mut listing = place("ls");
    listing.extend(["-o".into(), "json".into()]);
    let version = cloister(listing).unwrap().json().unwrap()["version"].as_u64().unwrap();
    let older = own.join("older");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(own.join("vault"))
        .arg(&older)
        .status()
        .unwrap();
    assert!(copied.success());
    let mut put: Vec<std::ffi::OsString> = place("put");
    put.extend([
        "note.txt".into(),
        "--from".into(),
        own.join("node.toml").into_os_string(),
    ]);
    let run = cloister(put).unwrap();
    assert_eq!(run.code, 0, "{}", run.stderr);

    std::fs::remove_dir_all(own.join("vault")).unwrap();
    std::fs::rename(&older, own.join("vault")).unwrap();
    for command in ["ls", "verify"] {
        let run = cloister(place(command)).unwrap();
        assert_eq!(run.code, 1, "{}", run.stderr);
        let said = words(&run.stderr);
        let versions = format!(
            "rolled back: its version is {version}, but version {} was seen before",
            version + 1
        );
        assert!(said.contains(&versions), "{versions}: {said}");
    }

    // Without the record nothing is proven, and that is said.
    let blind: Vec<_> = place("ls").into_iter().take(5).collect();
    let run = cloister(blind).unwrap();
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("freshness not proven"), "{}", run.stderr);
}

/// A demo amid a training that comes to no end by itself.
struct EndlessDemo {
    demo: Child,
    out: PathBuf,
    _kept: TempDir,
}

impl EndlessDemo {
    fn start() -> Self {
        let kept = tempfile::tempdir().unwrap();
        let (example, out) = (kept.path().join("example"), kept.path().join("out"));
        example_like_digits(&example, |plan| plan.replace("epochs = 2,", "epochs = 4000000000,"));
        let demo = demo(&example, &out).spawn().unwrap();
        let endless = Self { demo, out, _kept: kept };
        until("the first round", || {
            endless.logged("worker-north", "round 1/20 starts")
        });
        endless
    }

    fn logged(&self, node: &str, words: &str) -> bool {
        let log = self.out.join("run-1/logs").join(node).with_extension("log");
        std::fs::read_to_string(log).unwrap_or_default().contains(words)
    }

    /// Its nodes, and their runners.
    fn processes(&self) -> (Vec<u32>, Vec<u32>) {
        let nodes = children(self.demo.id());
        assert_eq!(nodes.len(), 3, "an aggregator and two workers");
        let runners: Vec<u32> = nodes.iter().flat_map(|&node| children(node)).collect();
        assert_eq!(runners.len(), 3, "each with a runner");
        (nodes, runners)
    }
}

impl Drop for EndlessDemo {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.demo.kill();
        let _ = self.demo.wait();
    }
}

/// An example beside the digits', whose plan `edit` changes.
fn example_like_digits(example: &Path, edit: impl FnOnce(&str) -> String) {
    std::fs::create_dir(example).unwrap();
    let digits = root().join("examples/digits");
    std::fs::copy(digits.join("digits.csv"), example.join("digits.csv")).unwrap();
    let plan = std::fs::read_to_string(digits.join("federation.toml")).unwrap();
    let edited = edit(&plan);
    assert_ne!(plan, edited);
    std::fs::write(example.join("federation.toml"), edited).unwrap();
}

fn demo(example: &Path, out: &Path) -> Command {
    let mut command = Command::new(binary());
    command
        .args(["demo".as_ref(), "--guests".as_ref(), guests().as_os_str()])
        .args(["--example".as_ref(), example.as_os_str()])
        .args(["--out".as_ref(), out.as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

#[test]
fn whoever_is_asked_to_end_amid_a_training_ends_and_leaves_no_process() {
    let mut endless = EndlessDemo::start();
    let (nodes, runners) = endless.processes();
    let north = |pid: &&u32| {
        let line = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("cmdline"));
        line.is_ok_and(|line| line.contains("worker-north"))
    };
    let worker = *nodes.iter().find(north).unwrap();
    signal(worker, "TERM");
    until("the end of a worker that was asked to end", || !lives(worker));
    until("its goodbye", || {
        endless.logged("aggregator", "dropped worker-north: left")
    });
    assert!(
        !endless.logged("aggregator", "module failed"),
        "its module did nothing wrong"
    );

    signal(endless.demo.id(), "TERM");
    assert_eq!(endless.demo.wait().unwrap().code(), Some(1));
    for pid in nodes.into_iter().chain(runners) {
        until("the end of every node and runner", || !lives(pid));
    }
}

#[test]
fn a_demo_that_is_killed_leaves_no_process() {
    let mut endless = EndlessDemo::start();
    let (nodes, runners) = endless.processes();
    signal(endless.demo.id(), "KILL");
    endless.demo.wait().unwrap();
    for pid in nodes.into_iter().chain(runners) {
        until("the end of every node and runner", || !lives(pid));
    }
}

#[test]
fn a_node_runs_once_and_one_that_hangs_makes_room() {
    let federation = Federation::of_demo().unwrap();
    let aggregator = federation.start_aggregator().unwrap();
    let worker = |side: &str, case: &str| {
        let node = format!("worker-{side}");
        let file = federation.worker_file(&node, case, &aggregator.address, |_, text| text);
        Worker::start(&file.unwrap()).unwrap()
    };
    let mut first = worker("north", "first");
    // It told of itself before it listened; then come the first one's evidence and the wait for the other worker.
    aggregator.wait_for("waiting").unwrap();
    let (code, said) = worker("north", "second").wait().unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        words(&said).contains("another instance of worker-north takes part since 20")
            && words(&said).contains("a node runs once"),
        "{said}"
    );
    assert!(first.lives(), "the first one stays");

    // One that hangs is given up for the one that comes, and finds that out when it goes on.
    signal(first.pid(), "STOP");
    let mut third = worker("north", "third");
    let dropped = aggregator.wait_for("dropped").unwrap();
    assert!(
        dropped["reason"].as_str().unwrap().contains("showed no life"),
        "{dropped}"
    );
    signal(first.pid(), "CONT");
    let (code, said) = first.wait().unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert!(words(&said).contains("another instance of worker-north"), "{said}");
    let mut south = worker("south", "other");
    aggregator.wait_for("finished").unwrap();
    for worker in [&mut third, &mut south] {
        let (code, said) = worker.wait().unwrap();
        assert_eq!(code, Some(0), "{said}");
    }
}

/// Whether one of the two workers was dropped for that.
fn dropped(log: &str, why: &str) -> bool {
    ["north", "south"]
        .iter()
        .any(|worker| log.contains(&format!("dropped worker-{worker}: {why}")))
}

#[test]
fn a_worker_ends_with_what_its_module_said_and_others_learn_code_and_digest() {
    let kept = tempfile::tempdir().unwrap();
    let (example, out) = (kept.path().join("example"), kept.path().join("out"));
    example_like_digits(&example, |plan| {
        plan.replace("trainer = \"train-sgd\"", "trainer = \"hostile-trainer\"")
            .replace("epochs = 2, learning_rate = 0.05", "attack = \"give_up\"")
    });
    let demo = demo(&example, &out).status().unwrap();
    assert_eq!(demo.code(), Some(1));
    let log = |node: &str| std::fs::read_to_string(out.join("run-1/logs").join(node).with_extension("log")).unwrap();
    let north = words(&log("worker-north"));
    let own = north.split_once("What failed on this node, in round 1: module ");
    let (_, own) = own.unwrap_or_else(|| panic!("{north}"));
    let digest = own.split(' ').next().unwrap();
    assert_eq!(digest.len(), 64, "{own}");
    assert!(own.contains("no xxxxxxxx"), "what the module says: {own}");
    let aggregator = log("aggregator");
    // Either worker's failure ends the attempt before the other's is heard.
    assert!(
        dropped(&aggregator, "its module failed (") && aggregator.contains(digest),
        "{aggregator}"
    );
    assert!(!aggregator.contains("xxxxxxxx"), "a module's words stay on its node");
}

#[test]
fn rows_that_cannot_be_trained_on_are_their_owners_to_know_and_no_modules_fault() {
    let kept = tempfile::tempdir().unwrap();
    let (example, out) = (kept.path().join("example"), kept.path().join("out"));
    example_like_digits(&example, |plan| plan.replace("classes = 10", "classes = 9"));
    assert_eq!(demo(&example, &out).status().unwrap().code(), Some(1));
    let log = |node: &str| std::fs::read_to_string(out.join("run-1/logs").join(node).with_extension("log")).unwrap();
    let north = words(&log("worker-north"));
    assert!(
        north.contains("What failed on this node, in round 1: the training failed (dataset): dataset train: row ")
            && north.contains("counted from 1: seen the label 9, wanted 0 to 8"),
        "{north}"
    );
    let aggregator = log("aggregator");
    assert!(
        dropped(&aggregator, "its training failed (dataset)") && !aggregator.contains("label 9"),
        "{aggregator}"
    );
}
