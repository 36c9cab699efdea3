//! Whole federations by steps in one process: real sessions, real machines, fake gradients.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics says where")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cloister_exchange::ExchangeError;
use cloister_exchange::aggregator::{AggregatorEnd, StartingPoint};
use cloister_exchange::progress::{Happening, Progress};
use cloister_exchange::worker::{self, WorkerEnd};
use cloister_policy::agreement::RoundMode;
use cloister_rounds::worker::AggregatorFault;
use cloister_tensor::{Tensor, TensorMap};
use cloister_testkit::fakes::{Remembered, Shown};
use cloister_testkit::link::{Faults, Link};
use cloister_testkit::raw::RawMember;
use cloister_testkit::steps::{GradientWork, SteppingWork};
use cloister_testkit::world::{RunningAggregator, World, WorldOptions, small_model};

type WorkerTask = tokio::task::JoinHandle<Result<WorkerEnd, ExchangeError>>;
type Rounds = tokio::task::JoinHandle<Result<AggregatorEnd, ExchangeError>>;

fn asynchronous(rounds: u32, quorum: u32) -> WorldOptions {
    WorldOptions {
        rounds,
        quorum,
        deadline_s: 60,
        mode: RoundMode::Asynchronous,
        ..WorldOptions::default()
    }
}

/// A federation whose aggregator runs.
struct Federation {
    world: World,
    progress: Remembered,
    work: SteppingWork,
    aggregator: RunningAggregator,
    rounds: Rounds,
}

impl Federation {
    async fn of(options: WorldOptions, model: TensorMap) -> Self {
        let every = u64::from(options.checkpoint_every);
        let world = World::new(options);
        let start = StartingPoint {
            model,
            next_round: 1,
            previous: None,
        };
        let (progress, work) = (Remembered::default(), SteppingWork::new(every));
        let (aggregator, rounds) = begin(&world, start, &progress, &work).await;
        Self {
            world,
            progress,
            work,
            aggregator,
            rounds,
        }
    }

    fn worker(&self, name: &str, work: GradientWork) -> WorkerTask {
        self.worker_at(name, &self.aggregator.address, work, Remembered::default())
    }

    fn worker_at(&self, name: &str, address: &str, work: GradientWork, progress: Remembered) -> WorkerTask {
        let options = self
            .world
            .worker_options(&self.world.node(name), address, Arc::new(progress));
        tokio::spawn(worker::run(options, Box::new(work)))
    }

    /// Waits until so many rounds were kept.
    async fn kept(&self, rounds: usize) {
        while self.work.kept.lock().unwrap().len() < rounds {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn begin(
    world: &World,
    start: StartingPoint,
    progress: &Remembered,
    work: &SteppingWork,
) -> (RunningAggregator, Rounds) {
    let mut aggregator = world.aggregator_from(start, Arc::new(progress.clone())).await;
    let driver = aggregator.driver.take().unwrap();
    let rounds = tokio::spawn(driver.run(Box::new(work.clone())));
    (aggregator, rounds)
}

fn first(model: &TensorMap) -> f64 {
    model.values().next().and_then(Tensor::first_f64).unwrap()
}

fn until(progress: &Remembered, words: &'static str) -> Shown {
    Shown {
        progress: progress.clone(),
        words,
        times: 1,
    }
}

/// Something that a test says when it is time.
fn say(marks: &Remembered, words: &str) {
    marks.happened(&Happening::Waiting { why: words.to_owned() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn synchronous_steps_go_by_all_workers_gradients_and_the_numbers_add_up() {
    let options = WorldOptions {
        rounds: 5,
        mode: RoundMode::Synchronous,
        ..WorldOptions::default()
    };
    let federation = Federation::of(options, small_model(1.0)).await;
    let (alpha, beta) = (GradientWork::new(1.0, 100), GradientWork::new(4.0, 200));
    let steps = Arc::clone(&alpha.steps);
    let workers = [
        federation.worker("worker-a", alpha),
        federation.worker("worker-b", beta),
    ];
    let end = federation.rounds.await.unwrap().unwrap();
    // Each step adds (1 * 100 + 4 * 200) / 300 = 3.
    assert!((first(&end.model) - 16.0).abs() < 1e-4, "{:?}", end.model);
    assert_eq!(*steps.lock().unwrap(), [0, 1, 2, 3, 4]);
    for worker in workers {
        assert!(worker.await.unwrap().unwrap().finished);
    }
    for record in federation.work.kept.lock().unwrap().iter() {
        let receipt = &record.receipt;
        assert!(receipt.state.is_some());
        assert_eq!(receipt.updates.len(), 2);
        assert!(receipt.updates.iter().all(|update| update.base == receipt.round - 1));
    }
    let lines = federation.progress.lines();
    assert!(lines.contains("step: 4, loss: 0.500000, iter time: "), "{lines}");
    assert!(!lines.contains("round 1/5"), "a step shows by its line alone: {lines}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_worker_holds_nobody_and_goes_on_after_its_stale_update_is_left_out() {
    let options = WorldOptions {
        max_staleness: 3,
        ..asynchronous(30, 2)
    };
    let federation = Federation::of(options, small_model(0.0)).await;
    let slow_progress = Remembered::default();
    let (mut fast, mut slow) = (GradientWork::new(1.0, 10), GradientWork::new(1.0, 10));
    // The slow one answers when six updates were applied; the fast one waits for it only then, to have its next one applied, too.
    slow.waits = BTreeMap::from([(0, until(&federation.progress, "step: 5,"))]);
    fast.waits = BTreeMap::from([(9, until(&slow_progress, "step: "))]);
    let receipts = Arc::clone(&slow.receipts);
    let address = federation.aggregator.address.clone();
    let workers = [
        federation.worker("worker-a", fast),
        federation.worker_at("worker-b", &address, slow, slow_progress),
    ];
    let end = federation.rounds.await.unwrap().unwrap();
    assert!((first(&end.model) - 30.0).abs() < 1e-3);
    for worker in workers {
        assert!(worker.await.unwrap().unwrap().finished);
    }
    let lines = federation.progress.lines();
    assert!(
        lines.contains("left out an update of worker-b: its update is "),
        "{lines}"
    );
    assert!(!lines.contains("dropped worker-b"), "it lost no place by that: {lines}");
    let kept = federation.work.kept.lock().unwrap().clone();
    assert_eq!(kept.len(), 30);
    let stale: Vec<_> = kept.iter().flat_map(|record| &record.receipt.drops).collect();
    assert_eq!((stale[0].node.as_str(), stale[0].code.as_str()), ("worker-b", "stale"));
    for (record, round) in kept.iter().zip(1u64..) {
        let [update] = record.receipt.updates.as_slice() else {
            panic!("{:?}", record.receipt)
        };
        assert!(record.receipt.round == round && round - 1 - update.base <= 3);
    }
    assert!(kept.iter().any(|record| record.receipt.updates[0].node == "worker-b"));
    // Who was slow has every receipt, in order, also of what went on while it trained.
    let seen: Vec<_> = receipts
        .lock()
        .unwrap()
        .iter()
        .map(|record| record.receipt.digest())
        .collect();
    assert_eq!(
        seen,
        kept.iter().map(|record| record.receipt.digest()).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_still_trains_at_the_end_hears_of_it_at_once() {
    let federation = Federation::of(asynchronous(6, 2), small_model(0.0)).await;
    let marks = Remembered::default();
    let mut slow = GradientWork::new(1.0, 10);
    slow.waits = BTreeMap::from([(0, until(&marks, "the end"))]);
    let fast = federation.worker("worker-a", GradientWork::new(1.0, 10));
    let slow = federation.worker("worker-b", slow);
    // The aggregator's end waits for no training.
    federation.rounds.await.unwrap().unwrap();
    assert!(fast.await.unwrap().unwrap().finished);
    say(&marks, "the end");
    let end = slow.await.unwrap().unwrap();
    assert!(end.finished && end.rounds == 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_amid_its_upload_comes_back_and_no_other_waits_for_its_update() {
    let model = TensorMap::from([(
        "w".to_owned(),
        Tensor::from_f32(&[500_000], vec![0.0; 500_000]).unwrap(),
    )]);
    let federation = Federation::of(asynchronous(12, 1), model).await;
    let faults = Faults {
        cut_after: 1 << 20,
        cuts: 1,
        ..Faults::default()
    };
    let link = Link::open(&federation.aggregator.address, faults).await;
    let mut steady = GradientWork::new(1.0, 10);
    // It goes on to its end when the other one is back.
    let again = Shown {
        times: 2,
        ..until(&federation.progress, "worker-a joined")
    };
    steady.waits = BTreeMap::from([(4, again)]);
    let workers = [
        federation.worker_at(
            "worker-a",
            &link.address,
            GradientWork::new(1.0, 10),
            Remembered::default(),
        ),
        federation.worker("worker-b", steady),
    ];
    let end = federation.rounds.await.unwrap().unwrap();
    assert!((first(&end.model) - 12.0).abs() < 1e-3);
    let lines = federation.progress.lines();
    assert!(lines.contains("dropped worker-a: gone"), "{lines}");
    let kept = federation.work.kept.lock().unwrap().clone();
    let mut digests: Vec<_> = kept
        .iter()
        .map(|record| (record.receipt.updates[0].node.clone(), record.receipt.updates[0].base))
        .collect();
    digests.dedup();
    assert_eq!(digests.len(), 12, "every task gives one update at most: {digests:?}");
    for worker in workers {
        assert!(worker.await.unwrap().unwrap().finished);
    }
}

/// A federation that seals every fifth of 20 updates, whose two workers wait when they have done eight; then its aggregator is killed.
async fn killed_after_eight() -> (Federation, Link, Remembered, [WorkerTask; 2], GradientWork) {
    let options = WorldOptions {
        checkpoint_every: 5,
        ..asynchronous(20, 2)
    };
    let federation = Federation::of(options, small_model(0.0)).await;
    let link = Link::open(&federation.aggregator.address, Faults::default()).await;
    let marks = Remembered::default();
    let work = || {
        let mut work = GradientWork::new(1.0, 10);
        work.waits = BTreeMap::from([(4, until(&marks, "killed"))]);
        work
    };
    let watched = work();
    let workers = [
        federation.worker_at("worker-a", &link.address, watched.clone(), Remembered::default()),
        federation.worker_at("worker-b", &link.address, work(), Remembered::default()),
    ];
    federation.kept(8).await;
    while watched.receipts.lock().unwrap().len() < 8 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    federation.rounds.abort();
    (federation, link, marks, workers, watched)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregator_that_is_killed_between_checkpoints_goes_on_from_the_last_and_its_workers_follow() {
    let (mut federation, link, marks, workers, watched) = killed_after_eight().await;
    let (record, model) = federation.work.sealed.lock().unwrap().clone().unwrap();
    assert_eq!(record.receipt.round, 5);
    let start = StartingPoint {
        model,
        next_round: 6,
        previous: Some(record.receipt.digest()),
    };
    let progress = Remembered::default();
    let (aggregator, rounds) = begin(&federation.world, start, &progress, &federation.work).await;
    link.redirect(&aggregator.address);
    // The old one's connections end with it.
    federation.aggregator = aggregator;
    say(&marks, "killed");
    let end = rounds.await.unwrap().unwrap();
    assert!((first(&end.model) - 20.0).abs() < 1e-3);
    for worker in workers {
        let worker = worker.await.unwrap().unwrap();
        assert!(worker.finished);
        assert_eq!(worker.model, end.last.as_ref().map(|record| record.receipt.model_after));
    }
    let told: Vec<u64> = watched
        .receipts
        .lock()
        .unwrap()
        .iter()
        .map(|record| record.receipt.round)
        .collect();
    let wanted: Vec<u64> = (1..=8).chain(6..=20).collect();
    assert_eq!(told, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregator_that_goes_back_behind_its_last_checkpoint_is_left_by_its_workers() {
    let (mut federation, link, marks, workers, _) = killed_after_eight().await;
    let start = StartingPoint {
        model: small_model(0.0),
        next_round: 1,
        previous: None,
    };
    let (aggregator, rounds) = begin(&federation.world, start, &Remembered::default(), &SteppingWork::new(5)).await;
    link.redirect(&aggregator.address);
    federation.aggregator = aggregator;
    say(&marks, "killed");
    for worker in workers {
        let error = worker.await.unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                ExchangeError::Aggregator(AggregatorFault::WentBack {
                    seen: 1,
                    last: 8,
                    sealed: 5
                })
            ),
            "{error}"
        );
    }
    rounds.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gradient_that_comes_twice_costs_its_sender_its_place_and_nobody_else() {
    let federation = Federation::of(asynchronous(8, 1), small_model(0.0)).await;
    let mut honest = GradientWork::new(1.0, 10);
    honest.waits = BTreeMap::from([(1, until(&federation.progress, "dropped worker-a"))]);
    let honest = federation.worker("worker-b", honest);
    let mut member = RawMember::join(&federation.world.node("worker-a"), &federation.aggregator.address)
        .await
        .unwrap();
    member.roster().await;
    let start = member.round().await;
    let gradient = small_model(1.0);
    member.announce(start.round, start.attempt, 10, &gradient).await;
    member.granted().await;
    member.upload(&gradient).await;
    member.announce(start.round, start.attempt, 10, &gradient).await;
    let (code, _) = member.dropped().await;
    assert_eq!(code, "twice");
    federation.rounds.await.unwrap().unwrap();
    assert!(honest.await.unwrap().unwrap().finished);
    let kept = federation.work.kept.lock().unwrap().clone();
    let of_a = kept
        .iter()
        .filter(|record| record.receipt.updates[0].node == "worker-a");
    assert!(of_a.count() <= 1);
}
