//! Work that needs no runner, a progress that remembers, and quotes that are counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cloister_attestation::simulated::SimulatedTd;
use cloister_attestation::{EventLog, ProviderError, QuoteProvider, RuntimeEvent};
use cloister_exchange::progress::{Happening, Progress};
use cloister_exchange::work::{
    Aggregate, AggregatorWork, Ledger, LocalUpdate, ModuleFailure, RoundInfo, RoundRecord, UpdateStream, WorkError,
    WorkerWork,
};
use cloister_tensor::{Tensor, TensorMap};

/// Remembers what happened.
#[derive(Clone, Debug, Default)]
pub struct Remembered(Arc<Mutex<Vec<Happening>>>);

impl Remembered {
    /// Everything so far.
    pub fn all(&self) -> Vec<Happening> {
        self.0.lock().unwrap().clone()
    }

    /// Everything so far, as lines.
    pub fn lines(&self) -> String {
        self.all().iter().map(|happening| format!("{happening}\n")).collect()
    }
}

impl Progress for Remembered {
    fn happened(&self, happening: &Happening) {
        self.0.lock().unwrap().push(happening.clone());
    }
}

/// Something that a progress shows so many times.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Where.
    pub progress: Remembered,
    /// What, as a part of a line.
    pub words: &'static str,
    /// How often.
    pub times: usize,
}

impl Shown {
    /// Blocks until it was shown, at most a minute.
    pub(crate) fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.progress.lines().matches(self.words).count() < self.times && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A worker whose training adds a number to every value.
#[derive(Clone, Debug)]
pub struct AddingWork {
    /// What it adds.
    pub delta: f32,
    /// Rows that it counts.
    pub rows: u64,
    /// How long it takes, by round.
    pub delay: BTreeMap<u64, Duration>,
    /// What it waits for, by round.
    pub waits: BTreeMap<u64, Shown>,
    /// In which rounds its module fails.
    pub fails: Vec<u64>,
    /// Puts a NaN into every update.
    pub nan: bool,
    /// Receipts that it got.
    pub receipts: Arc<Mutex<Vec<RoundRecord>>>,
}

impl AddingWork {
    /// One that works at once.
    pub fn new(delta: f32, rows: u64) -> Self {
        Self {
            delta,
            rows,
            delay: BTreeMap::new(),
            waits: BTreeMap::new(),
            fails: Vec::new(),
            nan: false,
            receipts: Arc::default(),
        }
    }
}

/// Every value of a model plus a number.
pub fn add(model: &TensorMap, delta: f32) -> TensorMap {
    map(model, |value| value + delta)
}

fn map(model: &TensorMap, change: impl Fn(f32) -> f32) -> TensorMap {
    model
        .iter()
        .map(|(name, tensor)| {
            let values = tensor.to_f32_vec().unwrap().into_iter().map(&change).collect();
            (name.clone(), Tensor::from_f32(tensor.shape().dims(), values).unwrap())
        })
        .collect()
}

impl WorkerWork for AddingWork {
    fn train(&mut self, round: &RoundInfo, model: TensorMap) -> Result<LocalUpdate, ModuleFailure> {
        if let Some(delay) = self.delay.get(&round.round) {
            std::thread::sleep(*delay);
        }
        if let Some(shown) = self.waits.get(&round.round) {
            shown.wait();
        }
        if self.fails.contains(&round.round) && round.attempt == 1 {
            let message = "unreachable executed".to_owned();
            return Err(ModuleFailure {
                code: "trap".to_owned(),
                module: None,
                message,
            });
        }
        Ok(LocalUpdate {
            tensors: add(&model, self.delta),
            rows: self.rows,
            metrics: vec![("loss".to_owned(), 0.5)],
        })
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(Receipts(Arc::clone(&self.receipts)))
    }
}

/// A ledger that a test reads.
#[derive(Clone, Debug, Default)]
pub struct Receipts(pub Arc<Mutex<Vec<RoundRecord>>>);

impl Ledger for Receipts {
    fn round_done(&self, record: &RoundRecord) -> Result<(), WorkError> {
        self.0.lock().unwrap().push(record.clone());
        Ok(())
    }
}

/// An aggregator that averages by rows, and counts how many updates it held at a time.
#[derive(Clone, Debug, Default)]
pub struct AveragingWork {
    /// Nodes in the order in which they were folded, by round.
    #[allow(clippy::type_complexity, reason = "a list that a test reads once")]
    pub folded: Arc<Mutex<Vec<(u64, Vec<String>)>>>,
    /// Kept records.
    pub kept: Arc<Mutex<Vec<RoundRecord>>>,
    /// In which rounds it fails, at the first attempt.
    pub fails: Vec<u64>,
}

impl AggregatorWork for AveragingWork {
    fn aggregate(
        &mut self,
        round: &RoundInfo,
        model: &TensorMap,
        updates: &mut UpdateStream,
    ) -> Result<Aggregate, WorkError> {
        let mut sums: BTreeMap<String, Vec<f64>> = model
            .iter()
            .map(|(name, tensor)| (name.clone(), vec![0.0; tensor.shape().elements()]))
            .collect();
        let (mut rows, mut order) = (0, Vec::new());
        while let Some(update) = updates.next().map_err(|error| WorkError::new("aggregating", error))? {
            order.push(update.node.clone());
            rows += update.rows;
            for (name, tensor) in &update.tensors {
                let values = tensor.to_f32_vec().unwrap();
                for (sum, value) in sums.get_mut(name).unwrap().iter_mut().zip(values) {
                    *sum += f64::from(value) * update.rows as f64;
                }
            }
        }
        if self.fails.contains(&round.round) && round.attempt == 1 {
            return Err(WorkError::new("aggregating", "unreachable executed"));
        }
        self.folded.lock().unwrap().push((round.round, order));
        let model = model.iter().map(|(name, tensor)| {
            let values = sums[name].iter().map(|sum| (sum / rows as f64) as f32).collect();
            (name.clone(), Tensor::from_f32(tensor.shape().dims(), values).unwrap())
        });
        Ok(Aggregate {
            model: model.collect(),
            metrics: vec![("rows".to_owned(), rows as f64)],
            state: None,
        })
    }

    fn evaluate(&mut self, _round: &RoundInfo, model: &TensorMap) -> Result<Vec<(String, f64)>, WorkError> {
        let first = model.values().next().and_then(Tensor::first_f64).unwrap_or_default();
        Ok(vec![
            ("loss".to_owned(), 1.0 / (1.0 + first.abs())),
            ("accuracy".to_owned(), 0.9),
        ])
    }

    fn keep(&mut self, record: &RoundRecord, _model: &TensorMap) -> Result<(), WorkError> {
        self.kept.lock().unwrap().push(record.clone());
        Ok(())
    }
}

/// What a counted TD is made of.
#[derive(Clone, Debug)]
pub struct CountedQuotes {
    /// How many quotes were taken.
    pub taken: Arc<AtomicUsize>,
    /// How long each takes.
    pub latency_ms: u64,
}

/// A TD whose quotes are counted.
struct CountedTd {
    td: SimulatedTd,
    taken: Arc<AtomicUsize>,
}

impl CountedQuotes {
    /// This TD's quotes, counted from now.
    pub fn of(self, td: SimulatedTd) -> impl QuoteProvider + use<> {
        CountedTd {
            td: td.with_latency_ms(self.latency_ms),
            taken: self.taken,
        }
    }
}

impl QuoteProvider for CountedTd {
    fn name(&self) -> &'static str {
        self.td.name()
    }

    fn simulated(&self) -> bool {
        true
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
        self.taken.fetch_add(1, Ordering::SeqCst);
        self.td.quote(report_data)
    }

    fn extend(&self, event: &RuntimeEvent) -> Result<(), ProviderError> {
        self.td.extend(event)
    }

    fn event_log(&self) -> Result<Option<EventLog>, ProviderError> {
        self.td.event_log()
    }
}
