//! A round of 100 MB with two workers, for its time and memory: `cargo test -p cloister-testkit --test large_round -- --ignored --nocapture`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::sync::Arc;
use std::time::Instant;

use cloister_exchange::work::{
    Aggregate, AggregatorWork, LocalUpdate, ModuleFailure, RoundInfo, RoundRecord, UpdateStream, WorkError, WorkerWork,
};
use cloister_exchange::worker;
use cloister_tensor::{Tensor, TensorMap};
use cloister_testkit::fakes::Remembered;
use cloister_testkit::world::{World, WorldOptions};

/// Training and aggregation that cost nothing: what is left is the exchange.
struct Nothing;

impl WorkerWork for Nothing {
    fn train(&mut self, _round: &RoundInfo, model: TensorMap) -> Result<LocalUpdate, ModuleFailure> {
        Ok(LocalUpdate {
            tensors: model,
            rows: 1,
            metrics: Vec::new(),
        })
    }

    fn round_done(&mut self, _record: &RoundRecord) -> Result<(), WorkError> {
        Ok(())
    }
}

impl AggregatorWork for Nothing {
    fn aggregate(
        &mut self,
        _round: &RoundInfo,
        _model: &TensorMap,
        updates: &mut UpdateStream,
    ) -> Result<Aggregate, WorkError> {
        let mut last = TensorMap::new();
        while let Some(update) = updates.next().map_err(|error| WorkError::new("aggregating", error))? {
            last = update.tensors;
        }
        Ok(Aggregate {
            model: last,
            metrics: Vec::new(),
        })
    }

    fn evaluate(&mut self, _round: &RoundInfo, _model: &TensorMap) -> Result<Vec<(String, f64)>, WorkError> {
        Ok(Vec::new())
    }

    fn keep(&mut self, _record: &RoundRecord, _model: &TensorMap) -> Result<(), WorkError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: 400 MB over loopback a round"]
async fn a_hundred_megabytes_and_two_workers() {
    let world = World::new(WorldOptions {
        rounds: 5,
        deadline_s: 60,
        ..WorldOptions::default()
    });
    let layer = |n: usize| Tensor::from_f32(&[n], vec![0.25; n]).unwrap();
    let model: TensorMap = (0..25).map(|i| (format!("layer{i:02}"), layer(1_000_000))).collect();
    let progress = Remembered::default();
    let mut aggregator = world.aggregator(model, Arc::new(progress.clone())).await;
    let driver = aggregator.driver.take().unwrap();
    let workers: Vec<_> = world
        .workers()
        .into_iter()
        .map(|name| {
            let options =
                world.worker_options(&world.node(&name), &aggregator.address, Arc::new(Remembered::default()));
            tokio::spawn(worker::run(options, Box::new(Nothing)))
        })
        .collect();
    let started = Instant::now();
    driver.run(Box::new(Nothing)).await.unwrap();
    eprintln!(
        "{}five rounds in {:.2} s",
        progress.lines(),
        started.elapsed().as_secs_f64()
    );
    for worker in workers {
        worker.await.unwrap().unwrap();
    }
}
