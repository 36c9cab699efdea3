//! A round of a 100 MB model with two workers in processes of their own, over attested sessions on loopback: its time beside
//! the same bytes over plain TCP, and how much the aggregator's memory grows from join on.
//!
//! `cargo xtask bench round`; training and aggregation do nothing, so what is left is the exchange.
#![allow(missing_docs, clippy::expect_used, clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cloister_benches::{Table, forget_peak_memory, memory_bytes, timed};
use cloister_exchange::progress::{Happening, Progress, Silent};
use cloister_exchange::sink::{ModelBuffer, ModelSink, SinkError};
use cloister_exchange::work::{
    Aggregate, AggregatorWork, Ledger, LocalUpdate, ModuleFailure, RoundInfo, RoundRecord, UpdateStream, WorkError,
    WorkerWork,
};
use cloister_exchange::worker;
use cloister_runner::{BlobError, SharedBlob};
use cloister_tensor::{Tensor, TensorMap};
use cloister_testkit::world::{World, WorldOptions};
use criterion::Criterion;
use tokio::runtime::Runtime;

const LAYERS: usize = 25;
const LAYER_VALUES: usize = 1_000_000;
const MODEL_BYTES: usize = 4 * LAYERS * LAYER_VALUES;
const WORKERS: usize = 2;
/// Rounds of one federation; the first one, which also sends the model for the first time, counts like the others.
const ROUNDS: u32 = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [role, name, address, folder] = arguments.as_slice()
        && role == "worker"
    {
        return work(name, address, Path::new(folder));
    }
    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Table::default();
    rounds(&mut criterion, &mut table);
    criterion.final_summary();
    table.print();
}

/// Sealed shared memory, as a node receives models for its runner.
struct Shared;

struct SharedBuffer(SharedBlob);

impl ModelSink for Shared {
    fn create(&self, length: u64) -> Result<Box<dyn ModelBuffer>, SinkError> {
        let blob = SharedBlob::create(length, 1 << 30).map_err(|error| no_memory(length, &error))?;
        Ok(Box::new(SharedBuffer(blob)))
    }
}

impl ModelBuffer for SharedBuffer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let length = self.0.len();
        self.0.append(bytes).map_err(|error| no_memory(length, &error))
    }

    fn finish(self: Box<Self>) -> Result<bytes::Bytes, SinkError> {
        let length = self.0.len();
        let sealed = self.0.seal().map_err(|error| no_memory(length, &error))?;
        Ok(sealed.bytes().clone())
    }
}

fn no_memory(bytes: u64, error: &BlobError) -> SinkError {
    SinkError {
        bytes,
        cause: error.to_string(),
    }
}

/// The federation, receiving as nodes do.
fn shared(mut world: World) -> World {
    world.sink = Arc::new(Shared);
    world
}

struct Nothing;

impl WorkerWork for Nothing {
    fn train(&mut self, _round: &RoundInfo, model: TensorMap) -> Result<LocalUpdate, ModuleFailure> {
        Ok(LocalUpdate {
            tensors: model,
            rows: 1,
            metrics: Vec::new(),
        })
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(Self)
    }
}

impl Ledger for Nothing {
    fn round_done(&self, _record: &RoundRecord) -> Result<(), WorkError> {
        Ok(())
    }
}

impl AggregatorWork for Nothing {
    fn aggregate(&mut self, _: &RoundInfo, _: &TensorMap, updates: &mut UpdateStream) -> Result<Aggregate, WorkError> {
        let mut last = TensorMap::new();
        while let Some(update) = updates.next().map_err(|error| WorkError::new("aggregating", error))? {
            last = update.tensors;
        }
        Ok(Aggregate {
            model: last,
            metrics: Vec::new(),
            state: None,
        })
    }

    fn evaluate(&mut self, _: &RoundInfo, _: &TensorMap) -> Result<Vec<(String, f64)>, WorkError> {
        Ok(Vec::new())
    }

    fn keep(&mut self, _: &RoundRecord, _: &TensorMap) -> Result<(), WorkError> {
        Ok(())
    }
}

/// Notes when rounds start and end, and the memory at the first join.
#[derive(Default)]
struct Watch(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    at_join: Option<u64>,
    started: Option<Instant>,
    rounds: Vec<Duration>,
}

impl Progress for Watch {
    fn happened(&self, happening: &Happening) {
        let mut seen = self.0.lock().expect("nobody panicked");
        match happening {
            Happening::Joined { .. } if seen.at_join.is_none() => {
                forget_peak_memory();
                seen.at_join = Some(memory_bytes("VmRSS"));
            }
            Happening::RoundStarted { .. } => seen.started = Some(Instant::now()),
            Happening::RoundDone(_) => {
                let took = seen.started.take().map(|started| started.elapsed());
                seen.rounds.extend(took);
            }
            _ => {}
        }
    }
}

fn options() -> WorldOptions {
    WorldOptions {
        workers: WORKERS,
        rounds: ROUNDS,
        deadline_s: 60,
        ..WorldOptions::default()
    }
}

/// A worker's process.
fn work(name: &str, address: &str, folder: &Path) {
    let world = shared(World::open(folder, options()));
    let options = world.worker_options(&world.node(name), address, Arc::new(Silent));
    let runtime = Runtime::new().expect("the runtime starts");
    runtime
        .block_on(worker::run(options, Box::new(Nothing)))
        .expect("the worker takes part to the end");
}

fn model() -> TensorMap {
    let layer = |at: usize| {
        let tensor = Tensor::from_f32(&[LAYER_VALUES], vec![0.25; LAYER_VALUES]);
        (format!("layer{at:02}"), tensor.expect("as many values as elements"))
    };
    (0..LAYERS).map(layer).collect()
}

/// A whole federation: the mean time of its rounds, and the growth of this process's memory from the first join on.
fn federation(runtime: &Runtime) -> (Duration, u64) {
    let world = shared(World::new(options()));
    let watch = Arc::new(Watch::default());
    let (progress, exe) = (
        Arc::clone(&watch),
        std::env::current_exe().expect("this program has a path"),
    );
    runtime.block_on(async {
        let mut aggregator = world.aggregator(model(), progress).await;
        let driver = aggregator.driver.take().expect("nobody took it");
        let mut children: Vec<Child> = Vec::new();
        for name in world.workers() {
            let mut command = Command::new(&exe);
            command.args(["worker", &name, &aggregator.address]).arg(world.folder());
            children.push(command.spawn().expect("the worker starts"));
        }
        driver.run(Box::new(Nothing)).await.expect("the rounds are run");
        let waiting = tokio::task::spawn_blocking(move || {
            for mut child in children {
                assert!(child.wait().expect("it can be waited for").success(), "a worker failed");
            }
        });
        waiting.await.expect("the workers end");
    });
    let seen = watch.0.lock().expect("nobody panicked");
    let growth = memory_bytes("VmHWM").saturating_sub(seen.at_join.unwrap_or_default());
    let rounds = u32::try_from(seen.rounds.len()).unwrap_or(1).max(1);
    (seen.rounds.iter().sum::<Duration>() / rounds, growth)
}

/// The bytes of a round over plain TCP on loopback: the model to each worker, then each worker's update back.
fn plain_tcp() -> Duration {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback listens");
    let address = listener.local_addr().expect("it has an address");
    let bytes = vec![1_u8; MODEL_BYTES];
    let mut workers: Vec<(TcpStream, TcpStream)> = (0..WORKERS)
        .map(|_| {
            (
                TcpStream::connect(address).expect("it dials"),
                listener.accept().expect("it is taken").0,
            )
        })
        .collect();
    let exchange = |(near, far): &mut (TcpStream, TcpStream)| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut model = vec![0; MODEL_BYTES];
                far.read_exact(&mut model)
                    .and_then(|()| far.write_all(&model))
                    .expect("loopback carries it");
            });
            let mut update = vec![0; MODEL_BYTES];
            near.write_all(&bytes)
                .and_then(|()| near.read_exact(&mut update))
                .expect("loopback carries it");
        });
    };
    let exchange = &exchange;
    timed(|| {
        std::thread::scope(|scope| {
            for worker in &mut workers {
                scope.spawn(move || exchange(worker));
            }
        });
    })
}

fn rounds(criterion: &mut Criterion, table: &mut Table) {
    let runtime = Runtime::new().expect("the runtime starts");
    let mut growths = Vec::new();
    let mut group = criterion.benchmark_group("round");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(1));
    let ours = || {
        let (round, growth) = federation(&runtime);
        growths.push(growth);
        round
    };
    table.side_by_side(
        &mut group,
        "round of 100 MB, two workers / plain TCP",
        "ours < 700 ms",
        ours,
        plain_tcp,
    );
    group.finish();
    // Later federations find memory that the allocator kept: the first one shows the growth.
    if let Some(growth) = growths.first() {
        let megabytes = |bytes: f64| format!("{:.0} MB", bytes / 1e6);
        let (grown, model) = (*growth as f64, MODEL_BYTES as f64);
        let models = format!("{:.2}", grown / model);
        table.row(
            "aggregator's memory from join on / model",
            megabytes(grown),
            megabytes(model),
            models,
            "< 3.5",
        );
    }
}
