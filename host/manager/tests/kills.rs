//! The manager killed (SIGKILL) at random instants of a long run: what it acknowledged is there, what it did not is there as a
//! whole or not at all, and no release happened twice.
//!
//! A kill leaves what was written to the system; that redb survives a loss of power too, where what was not synced may be gone, is for its own
//! tests to show.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod support;

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use cloister_manager::*;
use cloister_testkit::wards::{NOW, WardsPolicy};
use serde::{Deserialize, Serialize};
use support::{House, commit, do_turn, module_key, request, value, wanted};

const FOLDER: &str = "CLOISTER_TEST_FOLDER";
const SEED: &str = "CLOISTER_TEST_SEED";
const KILLS: u64 = 200;

/// What a turn changes, all of it together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    counter: u64,
    epoch: u32,
    released: u64,
    shares: u32,
}

/// What the child tells.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Opened(Counts, Mark, Vec<u64>),
    Trying(Counts),
    Done(Counts, Mark),
}

fn tell(told: &Told) {
    let line = serde_json::to_string(told).unwrap() + "\n";
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

/// Steele, Lea, Flood: SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn counter() -> CounterId {
    CounterId {
        node: "hub".into(),
        vault: [0; 16],
    }
}

fn rotating(epoch: u32) -> NewSecret {
    NewSecret {
        name: "rotating".into(),
        kind: SecretKind::Value,
        value: value(&format!("epoch {epoch}")),
        ciphertext: None,
        plaintext: None,
    }
}

/// The numbers of all releases in the audit log.
fn releases(manager: &Manager) -> Vec<u64> {
    let (mut from, mut found) = (0, Vec::new());
    while from < manager.mark().lines {
        let events = House::events(manager, from);
        from += events.len() as u64;
        let released = events.into_iter().filter(|(event, _)| event == "released");
        found.extend(released.map(|(_, what)| what["sequence"].as_u64().unwrap()));
    }
    found
}

/// Runs in a process of its own until it is killed.
#[test]
fn the_manager_that_is_killed() {
    let (Ok(folder), Ok(seed)) = (std::env::var(FOLDER), std::env::var(SEED)) else {
        return;
    };
    let house = House::open(Path::new(&folder));
    let mut random = Random(seed.parse().unwrap());
    let mut manager = house.again();
    let (hub, worker, alpha) = (
        house.permit("hub", 1),
        house.permit("alpha-worker", 2),
        house.visit("alpha"),
    );
    let released = releases(&manager);
    let mut counts = Counts {
        counter: manager.counter(&counter()).map_or(0, |commit| commit.version),
        epoch: manager
            .secrets(&alpha)
            .unwrap()
            .iter()
            .find(|info| info.id.name == "rotating")
            .map_or(0, |info| info.epoch),
        released: released.last().copied().unwrap_or(0),
        shares: manager.shares()[0].epoch,
    };
    tell(&Told::Opened(counts, manager.mark(), released));
    let td = SealingKey::generate().unwrap();
    loop {
        let mut next = counts;
        if random.below(40) == 0 {
            next.shares += 1;
            tell(&Told::Trying(next));
            manager.split_anew(&house.plan(2), NOW).unwrap();
        } else {
            let moves: Vec<u64> = (0..=random.below(6)).map(|_| random.below(3)).collect();
            for one in &moves {
                match one {
                    0 => next.counter += 1,
                    1 => next.epoch += 1,
                    _ => next.released += 1,
                }
            }
            tell(&Told::Trying(next));
            let mut at = counts;
            do_turn(&mut manager, |turn| {
                let token = turn.lease(&hub, &[1; 16]).unwrap().token;
                for one in moves {
                    match one {
                        0 => {
                            let of = |version: u64| (version > 0).then(|| commit(version, &version.to_string()));
                            let (expected, next) = (of(at.counter), of(at.counter + 1).unwrap());
                            let step = Step {
                                counter: counter(),
                                token,
                                expected,
                                next,
                            };
                            turn.commit(&hub, &step).unwrap();
                            at.counter += 1;
                        }
                        1 => {
                            at.epoch += 1;
                            assert_eq!(turn.put(&alpha, rotating(at.epoch)).unwrap().epoch, at.epoch);
                        }
                        _ => {
                            at.released += 1;
                            let wants = [wanted("alpha/trainer", Some("file"))];
                            turn.release(&worker, &request(&td, at.released, &wants)).unwrap();
                        }
                    }
                }
            });
        }
        counts = next;
        tell(&Told::Done(counts, manager.mark()));
    }
}

#[test]
fn killed_hundreds_of_times_it_loses_nothing_acknowledged_and_releases_nothing_twice() {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let alpha = house.visit("alpha");
    do_turn(&mut manager, |turn| turn.put(&alpha, module_key("key", "file"))).unwrap();
    drop(manager);
    let mut random = Random(2026);
    let mut witness = Witness::new();
    let mut acknowledged = Counts {
        shares: 1,
        ..Counts::default()
    };
    let (mut tried, mut amid) = (acknowledged, 0);
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "the_manager_that_is_killed",
                "--nocapture",
                "--test-threads",
                "1",
            ])
            .env(FOLDER, house.wards.folder())
            .env(SEED, kill.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (lines, told) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            // The harness says a word of its own before the first line.
            let parsed = stdout.lines().map_while(Result::ok).filter_map(|line| {
                let at = line.find('{')?;
                serde_json::from_str::<Told>(&line[at..]).ok()
            });
            parsed.for_each(|told| lines.send(told).unwrap());
        });
        let first = told.recv();
        let Ok(Told::Opened(counts, mark, mut released)) = first else {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            panic!("kill {kill}: {first:?}\n{}", String::from_utf8_lossy(&output.stderr));
        };
        assert!(
            counts == acknowledged || counts == tried,
            "kill {kill}: {counts:?}, acknowledged {acknowledged:?}, tried {tried:?}"
        );
        witness.observe(&mark).unwrap();
        let count = released.len();
        released.dedup();
        assert_eq!((released.len(), count as u64), (count, counts.released), "kill {kill}");
        // At any instant of the next turns: most of their time goes into the commit.
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        reader.join().unwrap();
        (acknowledged, tried) = (counts, counts);
        for told in told {
            match told {
                Told::Trying(next) => tried = next,
                Told::Done(done, mark) => {
                    witness.observe(&mark).unwrap();
                    acknowledged = done;
                }
                Told::Opened(..) => panic!("it opens once"),
            }
        }
        amid += u64::from(tried != acknowledged);
    }
    assert!(amid > KILLS / 4, "{amid} of {KILLS} kills came amid a turn");
    assert!(acknowledged.counter > 0 && acknowledged.epoch > 0 && acknowledged.released > 0);
}

#[test]
fn killed_while_it_is_made_or_backed_up_it_leaves_a_store_or_what_is_told_as_none() {
    let house = House::new();
    // What a kill leaves of a file that was being made: any part of its beginning.
    drop(house.manager(&WardsPolicy::default()));
    let whole = std::fs::read(&house.path).unwrap();
    for kept in [0, 1, 100, 4096, 8192, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&house.path, &whole[..kept]).unwrap();
        match Locked::open(&house.path) {
            Err(error) => assert!(matches!(error, OpenError::Store(_)), "{kept} bytes: {error}"),
            Ok(locked) => {
                let shares = ["alpha", "beta"].map(|name| house.share(&locked, name, &Remembered::default()));
                assert!(
                    locked.recover(&shares, house.settings(), house.key.clone()).is_err(),
                    "{kept} bytes"
                );
            }
        }
    }
}
