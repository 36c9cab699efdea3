//! Three managers, killed, cut off and put back hundreds of times at seeded points while they work: nothing that was acknowledged is lost,
//! nothing is released twice, and what is read is the newest.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod cluster;
#[path = "../../manager/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cloister_manager::*;
use cloister_testkit::wards::WardsPolicy;
use cluster::{Cluster, Random, copied};
use support::{House, commit, do_turn, module_key, request, wanted};

const NAMES: [&str; 3] = ["safe", "vault", "chest"];
/// Between two requests of a client: each election and each new replica reads all that was written.
const THINKING: Duration = Duration::from_millis(10);
/// Kills and cuts.
const FAULTS: u64 = 200;

fn counter() -> CounterId {
    CounterId {
        node: "hub".into(),
        vault: [0; 16],
    }
}

async fn three(seed: u64) -> Cluster {
    let house = House::new();
    let mut manager = house.manager(&WardsPolicy::default());
    let alpha = house.visit("alpha");
    do_turn(&mut manager, |turn| turn.put(&alpha, module_key("key", "file"))).unwrap();
    let cluster = Cluster::found(house, manager, &NAMES, seed).await;
    for name in &NAMES[1..] {
        assert_eq!(cluster.join(name).await, None, "nothing lay there");
    }
    cluster
}

/// Counts up for as long as the others work; each step is tried until it is confirmed.
async fn count(cluster: Arc<Cluster>, (tried, done): (Arc<AtomicU64>, Arc<AtomicU64>), stop: Arc<AtomicBool>) {
    let hub = cluster.house.permit("hub", 1);
    let mut witness = Witness::new();
    let of = |version: u64| (version > 0).then(|| commit(version, &version.to_string()));
    while !stop.load(Ordering::Relaxed) {
        let next = tried.fetch_add(1, Ordering::SeqCst) + 1;
        let hub = hub.clone();
        let (_, mark) = cluster
            .surely(move |turn| {
                let token = turn.lease(&hub, &[1; 16]).unwrap().token;
                let step = Step {
                    counter: counter(),
                    token,
                    expected: of(next - 1),
                    next: of(next).unwrap(),
                };
                // A step before is there, whoever leads now: else it is refused as stale.
                turn.commit(&hub, &step).unwrap();
            })
            .await;
        witness.observe(&mark).unwrap();
        done.store(next, Ordering::SeqCst);
        tokio::time::sleep(THINKING).await;
    }
}

/// Asks for a key again and again, each time as another request; gives those that were answered.
async fn release(cluster: Arc<Cluster>, stop: Arc<AtomicBool>) -> Vec<u64> {
    let worker = cluster.house.permit("alpha-worker", 2);
    let td = Arc::new(SealingKey::generate().unwrap());
    let (mut answered, sequence) = (Vec::new(), Arc::new(AtomicU64::new(0)));
    while !stop.load(Ordering::Relaxed) {
        let (worker, td, sequence) = (worker.clone(), Arc::clone(&td), Arc::clone(&sequence));
        let (number, _) = cluster
            .surely(move |turn| {
                let number = sequence.fetch_add(1, Ordering::SeqCst) + 1;
                let wants = [wanted("alpha/trainer", Some("file"))];
                turn.release(&worker, &request(&td, number, &wants)).unwrap();
                number
            })
            .await;
        answered.push(number);
        tokio::time::sleep(THINKING).await;
    }
    answered
}

/// Reads the counter at whoever thinks that it leads: what was confirmed before is seen, and nothing that nobody tried.
async fn read(
    cluster: Arc<Cluster>,
    (tried, done): (Arc<AtomicU64>, Arc<AtomicU64>),
    stop: Arc<AtomicBool>,
) -> (u64, u64) {
    let (mut told, mut silent) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        for (name, seat) in cluster.seats() {
            let before = done.load(Ordering::SeqCst);
            let seen = seat.with(&cluster.house, |manager| {
                manager.confirm()?;
                Ok(manager.counter(&counter()).map_or(0, |commit| commit.version))
            });
            match seen.await {
                Ok(seen) => {
                    let after = tried.load(Ordering::SeqCst);
                    assert!(
                        before <= seen && seen <= after,
                        "{name} read {seen}, between {before} and {after}"
                    );
                    told += 1;
                }
                Err(_) => silent += 1,
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (told, silent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_cut_off_and_put_back_hundreds_of_times_they_lose_nothing_and_release_nothing_twice() {
    let cluster = Arc::new(three(2026).await);
    let counts = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let counting = tokio::spawn(count(Arc::clone(&cluster), counts.clone(), Arc::clone(&stop)));
    let releasing = tokio::spawn(release(Arc::clone(&cluster), Arc::clone(&stop)));
    let reading = tokio::spawn(read(Arc::clone(&cluster), counts.clone(), Arc::clone(&stop)));
    let mut random = Random(7);
    let old = cluster.house.wards.folder().join("old.redb");
    let (mut kills, mut cuts, mut put_back) = (0, 0, 0);
    for fault in 0..FAULTS {
        cluster.net.faults.store(random.below(4), Ordering::Relaxed);
        // At any instant of the work: a commit takes some milliseconds.
        tokio::time::sleep(Duration::from_micros(random.below(40_000))).await;
        // The leader, more often than the others: it is amid something.
        let seats = cluster.seats();
        let leader = seats.iter().position(|(_, seat)| seat.replica.leads());
        let any = random.below(3) as usize;
        let name = seats[leader.filter(|_| random.below(2) == 0).unwrap_or(any)].0.clone();
        drop(seats);
        if random.below(3) > 0 {
            cluster.net.cut.lock().unwrap().insert(name.clone());
            tokio::time::sleep(Duration::from_millis(random.below(900))).await;
            cluster.net.cut.lock().unwrap().clear();
            cuts += 1;
            continue;
        }
        cluster.kill(&name).await;
        kills += 1;
        let disk = cluster.disk(&name);
        if random.below(3) == 0 && old.exists() {
            copied(&old, &disk);
            put_back += 1;
        } else if random.below(4) == 0 || fault < 10 {
            copied(&disk, &old);
        }
        cluster.join(&name).await;
    }
    cluster.net.faults.store(0, Ordering::Relaxed);
    stop.store(true, Ordering::Relaxed);
    counting.await.unwrap();
    let answered = releasing.await.unwrap();
    let (told, silent) = reading.await.unwrap();
    println!(
        "{kills} kills ({put_back} put back), {cuts} cuts; {counts:?} steps, {} releases; {told} reads, {silent} not answered",
        answered.len()
    );
    assert!(kills > FAULTS / 5 && cuts > FAULTS / 3 && put_back > 0);
    assert!(told > 0 && silent > 0 && counts.1.load(Ordering::SeqCst) > 50);

    // The whole log, as the last leader reads it: every answered release once, none twice; the chain is one.
    let (_, mark) = cluster
        .surely(|turn| turn.note("end", serde_json::json!({})).unwrap())
        .await;
    let mut released = BTreeMap::<u64, u64>::new();
    let mut from = 0;
    while from < mark.lines {
        let lines = loop {
            let (_, seat) = cluster.leader().await;
            let lines = seat
                .with(&cluster.house, move |manager| manager.lines(from, 4096))
                .await;
            if let Ok(lines) = lines {
                break lines;
            }
        };
        for line in &lines {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["index"], from);
            from += 1;
            if line["event"] == "released" {
                *released.entry(line["what"]["sequence"].as_u64().unwrap()).or_default() += 1;
            }
        }
    }
    assert!(released.values().all(|times| *times == 1), "{released:?}");
    assert!(
        answered.iter().all(|number| released.contains_key(number)),
        "an answered release is lost"
    );
}
