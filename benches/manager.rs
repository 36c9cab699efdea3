//! What the manager's core does in a second: key releases and counter commits by group commit, and how long a store with a
//! million audit lines takes to open, every line of it verified.
//!
//! `cargo xtask bench manager`; `CLOISTER_BENCH_AUDIT_LINES` takes another number of lines. Each rate stands beside what one commit a
//! request would give.
#![allow(missing_docs, clippy::expect_used, clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use cloister_attestation::identity::SigningKey;
use cloister_benches::{Table, median, timed};
use cloister_manager::*;
use cloister_policy::{Permit, Policy};
use cloister_tensor::Digest;
use cloister_testkit::wards::{HOSPITALS, NOW, Wards, WardsPolicy};
use criterion::{Criterion, Throughput};
use rustix::time::{ClockId, clock_gettime};
use zeroize::Zeroizing;

/// Requests of a measurement, and how many wait at a time.
const REQUESTS: u64 = 8192;
const IN_FLIGHT: usize = 512;
/// Requests of one commit each, for comparison.
const ALONE: u64 = 128;

struct House {
    wards: Wards,
    key: Arc<SigningKey>,
    policy: Arc<Policy>,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let wards = Wards::new();
        // On the disk of the build, not in a /tmp that may be memory.
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("there is a folder");
        Self {
            policy: wards.policy(&WardsPolicy::default()),
            key: Arc::new(SigningKey::generate().expect("a key")),
            path: folder.path().join("manager.redb"),
            wards,
            _folder: folder,
        }
    }

    fn settings(&self) -> Settings {
        Settings {
            federation: "wards".into(),
            node: "safe".into(),
            anchor: self.policy.anchor().expect("it founds"),
            lease_s: 3600,
        }
    }

    fn manager(&self) -> Manager {
        let holder = |name: &str| Recipient::sign("wards", name, self.wards.key(name)).expect("a recipient");
        let holders = HOSPITALS.map(holder).to_vec();
        let plan = RecoveryPlan { threshold: 2, holders };
        let made = Manager::create(&self.path, self.settings(), Arc::clone(&self.key), &plan, NOW);
        let mut manager = made.expect("a manager");
        let text = self.wards.text(&WardsPolicy::default());
        let alpha = self.wards.visit(&self.policy, Some("alpha"));
        let agreed = manager.turn(NOW, |turn| {
            for name in HOSPITALS {
                let signature = self.wards.signature(&self.policy, name);
                turn.propose(text.as_bytes(), signature).expect("a signature");
            }
            let secret = NewSecret {
                name: "trainer".into(),
                kind: SecretKind::Module {
                    module: "train-sgd".into(),
                },
                value: SecretValue::new(Zeroizing::new(vec![7; 32])),
                ciphertext: Some(Digest::of(b"file")),
                plaintext: Some(Digest::of(b"train-sgd")),
            };
            turn.put(&alpha, secret).expect("a secret");
        });
        agreed.expect("it is written");
        manager
    }

    fn permit(&self, node: &str) -> Permit {
        self.wards.permit(&self.policy, node, [1; 32])
    }

    fn loaded(&self) -> Loaded {
        let locked = Locked::open(&self.path).expect("a store");
        let shares = locked.shares().iter().map(|sealed| {
            let key = SealingKey::of(self.wards.key(&sealed.participant)).expect("a key");
            RecoveryShare::open("wards", sealed, &key).expect("a share")
        });
        let shares: Vec<_> = shares.collect();
        locked
            .recover(&shares, self.settings(), Arc::clone(&self.key))
            .expect("it opens")
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Table::default();
    let house = House::new();
    let mut manager = house.manager();
    let td = SealingKey::generate().expect("a key").public();
    let worker = Arc::new(house.permit("alpha-worker"));
    let mut sequence = 0;
    let mut release = move || {
        sequence += 1;
        let request = ReleaseRequest {
            sequence,
            recipient: td,
            wanted: vec![Wanted {
                id: "alpha/trainer".parse().expect("a name"),
                ciphertext: Some(Digest::of(b"file")),
            }],
        };
        let worker = Arc::clone(&worker);
        move |turn: &mut Turn<'_>| turn.release(&worker, &request).map(|_| ()).expect("it is granted")
    };
    manager = by_the_second(
        &mut criterion,
        &mut table,
        manager,
        "key releases",
        ">= 1000/s",
        &mut release,
    );
    let hub = Arc::new(house.permit("hub"));
    let lease = manager.turn(NOW, |turn| turn.lease(&hub, &[1; 16]));
    let token = lease.expect("it is written").0.expect("a lease").token;
    let commit = |version: u64| Commit {
        version,
        digest: Digest::of(&version.to_be_bytes()),
    };
    let mut at = 0;
    let mut count = move || {
        at += 1;
        // 32 vaults in turn.
        let (vault, version) = ((at % 32) as u8, at / 32 + 1);
        let step = Step {
            counter: CounterId {
                node: "hub".into(),
                vault: [vault; 16],
            },
            token,
            // `at` begins with 1: vault 0 takes its first step one turn later, as version 2.
            expected: (version > 1 + u64::from(vault == 0)).then(|| commit(version - 1)),
            next: commit(version),
        };
        let hub = Arc::clone(&hub);
        move |turn: &mut Turn<'_>| turn.commit(&hub, &step).map(|_| ()).expect("it is counted")
    };
    manager = by_the_second(
        &mut criterion,
        &mut table,
        manager,
        "counter commits",
        ">= 5000/s",
        &mut count,
    );
    recovery(&mut table, &house, manager);
    criterion.final_summary();
    table.print();
}

/// Measures requests through a desk with many in flight, and one by one.
fn by_the_second<W>(
    criterion: &mut Criterion,
    table: &mut Table,
    mut manager: Manager,
    name: &str,
    aim: &str,
    next: &mut impl FnMut() -> W,
) -> Manager
where
    W: FnOnce(&mut Turn<'_>) + Send + 'static,
{
    let alone = timed(|| {
        for _ in 0..ALONE {
            let work = next();
            manager.turn(NOW, |turn| work(turn)).expect("it is written");
        }
    });
    let (desk, thread) = Desk::open(manager, || NOW).expect("a thread");
    let mut best = Duration::MAX;
    let mut group = criterion.benchmark_group("manager");
    group.sample_size(10).throughput(Throughput::Elements(REQUESTS));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let times = (0..iterations).map(|_| {
                let time = together(&desk, next);
                best = best.min(time);
                time
            });
            times.sum()
        });
    });
    group.finish();
    drop(desk);
    let rate = |count: u64, time: Duration| count as f64 / time.as_secs_f64();
    if best < Duration::MAX {
        let (ours, reference) = (rate(REQUESTS, best), rate(ALONE, alone));
        let times = format!("{:.1}", ours / reference);
        table.row(
            name,
            format!("{ours:.0}/s"),
            format!("{reference:.0}/s alone"),
            times,
            aim,
        );
    }
    thread.join().expect("the desk ends")
}

fn together<W>(desk: &Desk, next: &mut impl FnMut() -> W) -> Duration
where
    W: FnOnce(&mut Turn<'_>) + Send + 'static,
{
    let (answered, answers) = sync_channel(IN_FLIGHT);
    let start = Instant::now();
    let mut waiting = 0;
    let answer = |answers: &Receiver<bool>| assert!(answers.recv().expect("an answer"), "it is written");
    for _ in 0..REQUESTS {
        if waiting == IN_FLIGHT {
            answer(&answers);
            waiting -= 1;
        }
        let answered = answered.clone();
        let done = move |committed: Result<_, _>| answered.send(committed.is_ok()).expect("somebody waits");
        desk.submit(next(), done).expect("there is room");
        waiting += 1;
    }
    (0..waiting).for_each(|_| answer(&answers));
    start.elapsed()
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(time.tv_sec.unsigned_abs(), nanoseconds)
}

fn recovery(table: &mut Table, house: &House, mut manager: Manager) {
    let wanted = std::env::var("CLOISTER_BENCH_AUDIT_LINES").ok();
    let lines: u64 = wanted.map_or(1_000_000, |text| text.parse().expect("a number of lines"));
    while manager.mark().lines < lines {
        let left = lines - manager.mark().lines;
        let noted = manager.turn(NOW, |turn| {
            for round in 0..left.min(16_384) {
                let what = serde_json::json!({
                    "node": "alpha-worker", "role": "worker", "measurement": "00".repeat(48), "simulated": true, "round": round,
                });
                turn.note("attested", what).expect("a note");
            }
        });
        noted.expect("it is written");
    }
    drop(manager);
    let before = cpu();
    let mut times: Vec<Duration> = (0..3).map(|_| timed(|| house.loaded())).collect();
    let processor = (cpu() - before) / 3;
    let time = median(&mut times).expect("three times");
    let bytes = std::fs::metadata(&house.path).expect("a file").len();
    let name = format!("recovery with {lines} audit lines, {} MiB", bytes >> 20);
    let processor = format!("{:.2} s of a processor", processor.as_secs_f64());
    let time = format!("{:.2} s", time.as_secs_f64());
    table.row(&name, time, processor, "-", "< 5 s for 1000000");
}
