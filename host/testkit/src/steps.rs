//! Work by gradients that needs no runner.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cloister_exchange::work::{
    Aggregate, AggregatorWork, Ledger, LocalUpdate, ModuleFailure, RoundInfo, RoundRecord, UpdateStream, WorkError,
    WorkerWork,
};
use cloister_tensor::{Digest, Tensor, TensorMap};

use crate::fakes::{Receipts, Shown};

/// A worker whose gradient is the same number everywhere.
#[derive(Clone, Debug)]
pub struct GradientWork {
    /// That number.
    pub gradient: f32,
    /// Rows that it counts.
    pub rows: u64,
    /// What it waits for, by its own count of trainings.
    pub waits: BTreeMap<u64, Shown>,
    /// Its counts of trainings so far.
    pub steps: Arc<Mutex<Vec<u64>>>,
    /// Receipts that it got.
    pub receipts: Arc<Mutex<Vec<RoundRecord>>>,
}

impl GradientWork {
    /// One that works at once.
    pub fn new(gradient: f32, rows: u64) -> Self {
        Self {
            gradient,
            rows,
            waits: BTreeMap::new(),
            steps: Arc::default(),
            receipts: Arc::default(),
        }
    }
}

impl WorkerWork for GradientWork {
    fn train(&mut self, round: &RoundInfo, model: TensorMap) -> Result<LocalUpdate, ModuleFailure> {
        self.steps.lock().unwrap().push(round.step);
        if let Some(shown) = self.waits.get(&round.step) {
            shown.wait();
        }
        let gradient = |tensor: &Tensor| {
            let values = vec![self.gradient; tensor.shape().elements()];
            Tensor::from_f32(tensor.shape().dims(), values).unwrap()
        };
        Ok(LocalUpdate {
            tensors: model
                .iter()
                .map(|(name, tensor)| (name.clone(), gradient(tensor)))
                .collect(),
            rows: self.rows,
            metrics: vec![("loss".to_owned(), 0.5)],
        })
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(Receipts(Arc::clone(&self.receipts)))
    }
}

/// An aggregator that adds the mean of the gradients, by rows, and seals as a policy says.
#[derive(Clone, Debug)]
pub struct SteppingWork {
    /// Rounds from one that is sealed to the next.
    pub checkpoint_every: u64,
    /// Kept records.
    pub kept: Arc<Mutex<Vec<RoundRecord>>>,
    /// The last one that was sealed, with its model.
    pub sealed: Arc<Mutex<Option<(RoundRecord, TensorMap)>>>,
}

impl SteppingWork {
    /// One that has sealed nothing.
    pub fn new(checkpoint_every: u64) -> Self {
        Self {
            checkpoint_every,
            kept: Arc::default(),
            sealed: Arc::default(),
        }
    }
}

impl AggregatorWork for SteppingWork {
    fn aggregate(
        &mut self,
        round: &RoundInfo,
        model: &TensorMap,
        updates: &mut UpdateStream,
    ) -> Result<Aggregate, WorkError> {
        let (mut sum, mut rows) = (0.0, 0.0);
        while let Some(update) = updates.next().map_err(|error| WorkError::new("aggregating", error))? {
            let first = update.tensors.values().next().and_then(Tensor::first_f64).unwrap();
            sum += first * update.rows as f64;
            rows += update.rows as f64;
        }
        Ok(Aggregate {
            model: crate::fakes::add(model, (sum / rows) as f32),
            metrics: Vec::new(),
            state: Some(Digest::of(&round.round.to_be_bytes())),
        })
    }

    fn evaluate(&mut self, _round: &RoundInfo, _model: &TensorMap) -> Result<Vec<(String, f64)>, WorkError> {
        Ok(Vec::new())
    }

    fn keep(&mut self, record: &RoundRecord, model: &TensorMap) -> Result<(), WorkError> {
        self.kept.lock().unwrap().push(record.clone());
        if record.receipt.round.is_multiple_of(self.checkpoint_every) {
            *self.sealed.lock().unwrap() = Some((record.clone(), model.clone()));
        }
        Ok(())
    }
}
