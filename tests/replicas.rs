//! Three managers of one federation, through the binary: the one that leads is killed amid the training, which goes on, and the log of all of
//! them is one. When all of them were down, one is opened by shares, and the others join it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use cloister_tests::{Run, binary, cloister, guests, root};
use serde_json::Value;

/// How long a test waits for an event: far longer than any takes.
const PATIENCE: Duration = Duration::from_secs(300);
const MANAGERS: [&str; 3] = ["manager", "manager-b", "manager-c"];

/// A process of the test, which ends with this value.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The sealed hospitals with three managers in the place of one.
fn plan(folder: &Path) {
    let example = folder.join("sealed");
    std::fs::create_dir_all(&example).unwrap();
    std::fs::create_dir_all(folder.join("hospitals")).unwrap();
    let rows = "hospitals/wdbc.csv";
    std::fs::copy(root().join("examples").join(rows), folder.join(rows)).unwrap();
    let mut text = std::fs::read_to_string(root().join("examples/hospitals-sealed/federation.toml")).unwrap();
    for (name, participant) in [("manager-b", "north"), ("manager-c", "east")] {
        text += &format!("\n[[node]]\nname = \"{name}\"\nrole = \"manager\"\nparticipant = \"{participant}\"\n");
    }
    std::fs::write(example.join("federation.toml"), text).unwrap();
}

/// The process that runs with that node file.
fn process_of(file: &Path) -> Option<u32> {
    let wanted = file.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.find(|id| {
        let words = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes())
    })
}

fn lines(source: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    lines
}

/// Runs the binary on a line in which `OUT` stands for the folder.
fn run(folder: &Path, line: &str) -> Run {
    let out = folder.display().to_string();
    cloister(line.split_whitespace().map(|word| word.replace("OUT", &out))).unwrap()
}

/// Where a manager listens.
fn address(folder: &Path, name: &str) -> String {
    let file = std::fs::read_to_string(folder.join("nodes").join(name).join("node.toml")).unwrap();
    let line = file.lines().find_map(|line| line.strip_prefix("address = ")).unwrap();
    line.trim_matches('"').to_owned()
}

/// The managers as the one that leads tells.
fn status(folder: &Path) -> Value {
    let all = MANAGERS.map(|name| address(folder, name)).join(",");
    let line = format!("manager status --to {all} --policy OUT/policy.toml --trust-root OUT/authority -o json");
    run(folder, &line).json().unwrap_or_default()
}

#[test]
fn a_manager_that_leads_is_killed_amid_the_training_and_the_training_goes_on() {
    let kept = tempfile::tempdir().unwrap();
    let kept = kept.path().canonicalize().unwrap();
    plan(&kept);
    let mut demo = Command::new(binary());
    demo.args(["demo", "--rounds", "12", "-o", "json", "--example"])
        .arg(kept.join("sealed"))
        .arg("--guests")
        .arg(guests())
        .arg("--out")
        .arg(kept.join("out"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut demo = Ends(demo.spawn().unwrap());
    let told = lines(demo.0.stderr.take().unwrap());
    let result = lines(demo.0.stdout.take().unwrap());
    let folder = kept.join("out/run-1");
    let mut said = Vec::new();
    let mut killed = None;
    let audit = folder.join("nodes/aggregator/audit.jsonl");
    let since = Instant::now();
    while killed.is_none() && since.elapsed() < PATIENCE {
        said.extend(told.try_iter());
        let log = std::fs::read_to_string(&audit).unwrap_or_default();
        if log.contains("\"event\":\"round\"") {
            // Amid the training: the one that leads, by what it tells.
            let status = status(&folder);
            assert_eq!(status["replicas"].as_array().unwrap().len(), 3, "{status}");
            let leader = status["leader"].as_str().unwrap().to_owned();
            let id = process_of(&folder.join("nodes").join(&leader).join("node.toml")).unwrap();
            let done = Command::new("kill").args(["-KILL", &id.to_string()]).status().unwrap();
            assert!(done.success());
            killed = Some(leader);
        }
        assert!(
            demo.0.try_wait().unwrap().is_none(),
            "it ended early: {}",
            said.iter()
                .cloned()
                .chain(told.try_iter())
                .collect::<Vec<_>>()
                .join("\n")
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let leader = killed.expect("no round was told");
    let ended = demo.0.wait().unwrap();
    said.extend(told.iter());
    assert!(ended.success(), "{}", said.join("\n"));
    let result: Vec<_> = result.iter().collect();
    let told: Value = serde_json::from_str(&result.join("\n")).unwrap();
    assert_eq!(told["trained"]["rounds"], 12, "{told}");
    assert!(told["trained"]["test_accuracy"].as_f64().unwrap() >= 0.9, "{told}");
    let log = std::fs::read_to_string(folder.join("manager.jsonl")).unwrap();
    let led: Vec<_> = log
        .lines()
        .filter(|line| line.contains("\"event\":\"replica-leads\""))
        .collect();
    assert!(led.len() >= 2, "{led:?}");
    assert!(
        !led.last().unwrap().contains(&format!("\"node\":\"{leader}\"")),
        "{leader}: {led:?}"
    );

    // All of them are down. The one that led last is opened by shares; the others, that one too which was killed, join it.
    let last: Value = serde_json::from_str(led.last().unwrap()).unwrap();
    let last = last["what"]["node"].as_str().unwrap();
    let _again: Vec<_> = MANAGERS
        .iter()
        .map(|name| {
            let mut manager = Command::new(binary());
            manager
                .args(["manager", "--config"])
                .arg(folder.join("nodes").join(name).join("node.toml"));
            Ends(
                manager
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap(),
            )
        })
        .collect();
    let at = format!(
        "--to {} --policy OUT/policy.toml --trust-root OUT/authority",
        address(&folder, last)
    );
    let since = Instant::now();
    while run(&folder, &format!("manager status {at} -o json"))
        .json()
        .unwrap_or_default()["phase"]
        != "locked"
    {
        assert!(since.elapsed() < PATIENCE, "it does not wait for shares");
        std::thread::sleep(Duration::from_millis(200));
    }
    for name in ["north", "east", "south", "institute"] {
        let line = format!(
            "manager recover {at} --kept OUT/kept.mark --without-nodes --participant {name} --participant-key OUT/participants/{name}.key"
        );
        let handed = run(&folder, &line);
        assert_eq!(handed.code, 0, "{name}: {}", handed.stderr);
    }
    loop {
        let status = status(&folder);
        let replicas = status["replicas"].as_array().cloned().unwrap_or_default();
        if status["phase"] == "running" && replicas.iter().filter(|one| one["votes"] == true).count() == 3 {
            break;
        }
        assert!(since.elapsed() < PATIENCE, "{status}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
