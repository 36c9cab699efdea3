//! Whole federations in one process: real sessions, real rounds, fake work.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics says where")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cloister_exchange::ExchangeError;
use cloister_exchange::aggregator::AggregatorEnd;
use cloister_exchange::progress::{Happening, Progress};
use cloister_exchange::worker::{self, WorkerEnd};
use cloister_session::Proxy;
use cloister_tensor::{Tensor, TensorMap};
use cloister_testkit::fakes::{AddingWork, AveragingWork, Remembered, Shown, add};
use cloister_testkit::link::{Faults, Link};
use cloister_testkit::world::{RunningAggregator, World, WorldOptions, small_model};

type WorkerTask = tokio::task::JoinHandle<Result<WorkerEnd, ExchangeError>>;

fn start_worker(world: &World, name: &str, address: &str, work: AddingWork) -> WorkerTask {
    let options = world.worker_options(&world.node(name), address, Arc::new(Remembered::default()));
    tokio::spawn(worker::run(options, Box::new(work)))
}

async fn start(world: &World, model: TensorMap, progress: &Remembered) -> RunningAggregator {
    world.aggregator(model, Arc::new(progress.clone())).await
}

/// A federation of two workers whose aggregator runs and waits for them.
struct Waiting {
    world: World,
    progress: Remembered,
    aggregator: RunningAggregator,
    rounds: tokio::task::JoinHandle<Result<AggregatorEnd, ExchangeError>>,
}

impl Waiting {
    async fn of_rounds(rounds: u32) -> Self {
        let world = World::new(WorldOptions {
            rounds,
            ..WorldOptions::default()
        });
        let progress = Remembered::default();
        let mut aggregator = start(&world, small_model(0.0), &progress).await;
        let driver = aggregator.driver.take().unwrap();
        Self {
            world,
            progress,
            aggregator,
            rounds: tokio::spawn(driver.run(Box::new(AveragingWork::default()))),
        }
    }

    fn worker(&self, name: &str) -> WorkerTask {
        start_worker(&self.world, name, &self.aggregator.address, AddingWork::new(1.0, 10))
    }

    /// Waits until that was shown.
    async fn shown(&self, words: &str) {
        while !self.progress.lines().contains(words) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn close(left: &TensorMap, right: &TensorMap) -> bool {
    left.iter().all(|(name, tensor)| {
        let (a, b) = (tensor.to_f32_vec().unwrap(), right[name].to_f32_vec().unwrap());
        a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-4)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_train_and_the_numbers_add_up() {
    let world = World::new(WorldOptions::default());
    let progress = Remembered::default();
    let mut aggregator = start(&world, small_model(1.0), &progress).await;
    let work = AveragingWork::default();
    let driver = aggregator.driver.take().unwrap();
    let (alpha, beta) = (AddingWork::new(1.0, 100), AddingWork::new(4.0, 200));
    let receipts = Arc::clone(&alpha.receipts);
    let workers = [
        start_worker(&world, "worker-a", &aggregator.address, alpha),
        start_worker(&world, "worker-b", &aggregator.address, beta),
    ];
    let end = driver.run(Box::new(work.clone())).await.unwrap();
    // Each round adds (1 * 100 + 4 * 200) / 300 = 3.
    assert!(close(&end.model, &small_model(10.0)), "{:?}", end.model);
    for worker in workers {
        let worker = worker.await.unwrap().unwrap();
        assert!(worker.finished);
        assert_eq!(worker.rounds, 3);
        assert_eq!(worker.model, end.last.as_ref().map(|record| record.receipt.model_after));
    }
    let both = vec!["worker-a".to_owned(), "worker-b".to_owned()];
    assert_eq!(
        *work.folded.lock().unwrap(),
        (1..=3).map(|round| (round, both.clone())).collect::<Vec<_>>()
    );
    // The chain of receipts, as kept and as told.
    let kept = work.kept.lock().unwrap().clone();
    let told = receipts.lock().unwrap().clone();
    assert_eq!(kept.len(), 3);
    assert_eq!(told.len(), 3);
    for (index, record) in kept.iter().enumerate() {
        assert_eq!(record.receipt, told[index].receipt);
        let previous = index.checked_sub(1).map(|before| kept[before].receipt.digest());
        assert_eq!(record.receipt.previous, previous);
        assert_eq!(
            record
                .receipt
                .updates
                .iter()
                .map(|update| update.rows)
                .collect::<Vec<_>>(),
            [100, 200]
        );
    }
    let lines = progress.lines();
    assert!(
        lines.contains("round 3/3  loss 0.091  accuracy 0.900  train "),
        "{lines}"
    );
    assert!(lines.contains("verified worker worker-a (SIMULATED)"), "{lines}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_larger_model_crosses_in_chunks_and_arrival_order_does_not_matter() {
    let world = World::new(WorldOptions {
        workers: 3,
        quorum: 3,
        rounds: 1,
        ..WorldOptions::default()
    });
    let tensor = |n: usize| Tensor::from_f32(&[n], (0..n).map(|i| (i % 97) as f32).collect()).unwrap();
    let model = TensorMap::from([
        ("a".to_owned(), tensor(1_000_003)),
        ("b".to_owned(), tensor(5)),
        ("c".to_owned(), tensor(700_001)),
    ]);
    let mut digests = Vec::new();
    for slow in ["worker-a", "worker-c"] {
        let mut aggregator = start(&world, model.clone(), &Remembered::default()).await;
        let driver = aggregator.driver.take().unwrap();
        let workers: Vec<_> = world
            .workers()
            .into_iter()
            .enumerate()
            .map(|(index, name)| {
                let mut work = AddingWork::new(0.1 * (index as f32 + 1.0), 10 + index as u64);
                if name == slow {
                    work.delay = BTreeMap::from([(1, Duration::from_millis(400))]);
                }
                start_worker(&world, &name, &aggregator.address, work)
            })
            .collect();
        let end = driver.run(Box::new(AveragingWork::default())).await.unwrap();
        digests.push(end.last.unwrap().receipt.model_after);
        for worker in workers {
            worker.await.unwrap().unwrap();
        }
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_worker_is_dropped_and_comes_back() {
    let world = World::new(WorldOptions {
        workers: 3,
        quorum: 2,
        rounds: 4,
        deadline_s: 5,
        ..WorldOptions::default()
    });
    let progress = Remembered::default();
    let mut aggregator = start(&world, small_model(0.0), &progress).await;
    let driver = aggregator.driver.take().unwrap();
    let shown = |words, times| Shown {
        progress: progress.clone(),
        words,
        times,
    };
    let mut late = AddingWork::new(1.0, 10);
    late.waits = BTreeMap::from([(1, shown("dropped worker-a", 1))]);
    let steady = || {
        let mut work = AddingWork::new(1.0, 10);
        work.waits = BTreeMap::from([(2, shown("worker-a joined", 2))]);
        work
    };
    let workers = [
        start_worker(&world, "worker-a", &aggregator.address, late),
        start_worker(&world, "worker-b", &aggregator.address, steady()),
        start_worker(&world, "worker-c", &aggregator.address, steady()),
    ];
    let work = AveragingWork::default();
    driver.run(Box::new(work.clone())).await.unwrap();
    let kept = work.kept.lock().unwrap().clone();
    let takers: Vec<usize> = kept.iter().map(|record| record.receipt.updates.len()).collect();
    assert_eq!(takers[0], 2, "{}", progress.lines());
    assert_eq!(takers[3], 3, "{}", progress.lines());
    assert_eq!(kept[0].receipt.drops[0].code, "late");
    assert!(
        progress
            .lines()
            .contains("dropped worker-a: late: no update after 5.0 s"),
        "{}",
        progress.lines()
    );
    for worker in workers {
        assert!(worker.await.unwrap().unwrap().finished);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_amid_its_upload_is_dropped_and_the_round_goes_on() {
    let world = World::new(WorldOptions {
        workers: 3,
        quorum: 2,
        rounds: 2,
        ..WorldOptions::default()
    });
    let progress = Remembered::default();
    let model = TensorMap::from([(
        "w".to_owned(),
        Tensor::from_f32(&[500_000], vec![1.0; 500_000]).unwrap(),
    )]);
    let mut aggregator = start(&world, model.clone(), &progress).await;
    let driver = aggregator.driver.take().unwrap();
    let link = Link::open(
        &aggregator.address,
        Faults {
            cut_after: 1 << 20,
            cuts: 1,
            ..Faults::default()
        },
    )
    .await;
    let workers = [
        start_worker(&world, "worker-a", &link.address, AddingWork::new(1.0, 10)),
        start_worker(&world, "worker-b", &aggregator.address, AddingWork::new(1.0, 10)),
        start_worker(&world, "worker-c", &aggregator.address, AddingWork::new(1.0, 10)),
    ];
    let work = AveragingWork::default();
    let end = driver.run(Box::new(work.clone())).await.unwrap();
    let kept = work.kept.lock().unwrap().clone();
    assert!(close(&end.model, &add(&model, 2.0)));
    assert_eq!(kept[0].receipt.updates.len(), 2, "{}", progress.lines());
    assert_eq!(kept[0].receipt.drops[0].code, "gone", "{}", progress.lines());
    for worker in workers {
        let _ = worker.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_the_quorum_the_aggregator_says_why_it_waits() {
    let waiting = Waiting::of_rounds(1).await;
    let first = waiting.worker("worker-a");
    waiting
        .shown("waiting for workers: 1 here, 2 needed; missing worker-b")
        .await;
    let second = waiting.worker("worker-b");
    assert_eq!(waiting.rounds.await.unwrap().unwrap().last.unwrap().receipt.round, 1);
    assert!(first.await.unwrap().unwrap().finished && second.await.unwrap().unwrap().finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modules_that_fail_are_named_and_the_round_is_tried_again() {
    let world = World::new(WorldOptions {
        rounds: 2,
        ..WorldOptions::default()
    });
    let progress = Remembered::default();
    let mut aggregator = start(&world, small_model(0.0), &progress).await;
    let driver = aggregator.driver.take().unwrap();
    let mut failing = AddingWork::new(1.0, 10);
    failing.fails = vec![1];
    let workers = [
        start_worker(&world, "worker-a", &aggregator.address, failing),
        start_worker(&world, "worker-b", &aggregator.address, AddingWork::new(1.0, 10)),
    ];
    let work = AveragingWork {
        fails: vec![2],
        ..AveragingWork::default()
    };
    let end = driver.run(Box::new(work)).await.unwrap();
    assert!(close(&end.model, &small_model(2.0)));
    let lines = progress.lines();
    assert!(
        lines.contains("dropped worker-a: its training failed (trap)"),
        "{lines}"
    );
    assert!(lines.contains("round 2 given up: the aggregation failed"), "{lines}");
    for worker in workers {
        assert!(worker.await.unwrap().unwrap().finished);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_a_connect_proxy_and_a_slow_link() {
    let world = World::new(WorldOptions {
        rounds: 1,
        ..WorldOptions::default()
    });
    let mut aggregator = start(&world, small_model(0.0), &Remembered::default()).await;
    let driver = aggregator.driver.take().unwrap();
    let proxy = Link::open(
        "",
        Faults {
            connect: true,
            ..Faults::default()
        },
    )
    .await;
    let slow = Link::open(
        &aggregator.address,
        Faults {
            delay: Duration::from_millis(5),
            ..Faults::default()
        },
    )
    .await;
    let mut options = world.worker_options(
        &world.node("worker-a"),
        &aggregator.address,
        Arc::new(Remembered::default()),
    );
    options.dial.proxy = Some(format!("http://{}", proxy.address).parse::<Proxy>().unwrap());
    let first = tokio::spawn(worker::run(options, Box::new(AddingWork::new(1.0, 1))));
    let second = start_worker(&world, "worker-b", &slow.address, AddingWork::new(1.0, 1));
    driver.run(Box::new(AveragingWork::default())).await.unwrap();
    assert!(first.await.unwrap().unwrap().finished && second.await.unwrap().unwrap().finished);
    assert_eq!(proxy.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_a_worker_leaves_and_the_aggregator_ends() {
    let Waiting {
        world,
        progress,
        aggregator,
        rounds,
    } = Waiting::of_rounds(1000).await;
    let shown: Arc<dyn Progress> = Arc::new(Remembered::default());
    let options = world.worker_options(&world.node("worker-a"), &aggregator.address, shown);
    let cancel = options.cancel.clone();
    let leaving = tokio::spawn(worker::run(options, Box::new(AddingWork::new(0.0, 1))));
    let staying = start_worker(&world, "worker-b", &aggregator.address, AddingWork::new(0.0, 1));
    while !progress
        .all()
        .iter()
        .any(|happening| matches!(happening, Happening::RoundDone(_)))
    {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cancel.cancel();
    assert!(!leaving.await.unwrap().unwrap().finished);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(
        progress.lines().contains("dropped worker-a: left: the node stops"),
        "{}",
        progress.lines()
    );
    aggregator.cancel.cancel();
    assert!(matches!(rounds.await.unwrap(), Err(ExchangeError::Cancelled)));
    staying.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_instances_of_a_node_the_first_stays_and_the_second_is_told() {
    let waiting = Waiting::of_rounds(1).await;
    let first = waiting.worker("worker-a");
    waiting.shown("worker-a joined").await;
    let told = waiting.worker("worker-a").await.unwrap().unwrap_err();
    assert!(
        matches!(&told, ExchangeError::OtherInstance { node, .. } if node == "worker-a"),
        "{told}"
    );
    assert!(told.to_string().contains("takes part since 2026-"), "{told}");
    let lines = waiting.progress.lines();
    assert!(!lines.contains("dropped"), "{lines}");
    let other = waiting.worker("worker-b");
    assert_eq!(waiting.rounds.await.unwrap().unwrap().last.unwrap().receipt.round, 1);
    assert!(first.await.unwrap().unwrap().finished && other.await.unwrap().unwrap().finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_gets_in_where_its_old_session_is_dead_and_nobody_was_told() {
    let waiting = Waiting::of_rounds(1).await;
    let link = Link::open(&waiting.aggregator.address, Faults::default()).await;
    let first = start_worker(&waiting.world, "worker-a", &link.address, AddingWork::new(1.0, 10));
    waiting.shown("worker-a joined").await;
    link.freeze();
    let second = waiting.worker("worker-a");
    waiting
        .shown("dropped worker-a: gone: its session showed no life")
        .await;
    let other = waiting.worker("worker-b");
    assert_eq!(waiting.rounds.await.unwrap().unwrap().last.unwrap().receipt.round, 1);
    assert!(second.await.unwrap().unwrap().finished && other.await.unwrap().unwrap().finished);
    first.abort();
}
