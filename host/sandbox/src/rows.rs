//! Rows on their way to a call: passes over a dataset, drawn ahead of whoever computes with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;

use cloister_data::{Batch, BatchOrder, Dataset};
use cloister_tensor::Digest;

use crate::ModuleError;

/// Batches that wait for whoever computes; one more is on its way.
pub(crate) const AHEAD_BATCHES: u64 = 2;
/// Below this, drawing a batch takes less time than handing it from thread to thread.
const AHEAD_FROM_BYTES: u64 = 256 << 10;

/// One pass over a dataset, as a call asks for it.
#[derive(Clone, Debug)]
pub struct PassOrder {
    /// Which rows come when.
    pub order: BatchOrder,
    /// What the seeds of its batches are derived from.
    pub seed: PassSeed,
    /// When the call that draws has to be over.
    pub end: Option<Instant>,
    /// Whether batches may be drawn ahead, on a thread of their own. The batches are the same either way.
    pub ahead: bool,
}

/// What the seed of each batch of a pass is derived from.
#[derive(Clone, Debug)]
pub struct PassSeed {
    /// The seed of the node's round; 0 in an evaluation, so that every round is judged on the same rows.
    pub round: u64,
    /// The dataset's name.
    pub dataset: Arc<str>,
    /// Passes over the dataset that the call began before.
    pub pass: u64,
}

impl PassSeed {
    /// The seed of a batch, counted from 0: the first 8 bytes, big endian, of SHA-256("cloister/batch-seed/v1" | u64be round's
    /// seed | u32be length of the name | name | u64be pass | u64be batch).
    pub fn of_batch(&self, batch: u64) -> u64 {
        let name = self.dataset.as_bytes();
        let mut text = b"cloister/batch-seed/v1".to_vec();
        text.extend(self.round.to_be_bytes());
        text.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes());
        text.extend(name);
        text.extend(self.pass.to_be_bytes());
        text.extend(batch.to_be_bytes());
        let digest = Digest::of(&text);
        digest
            .as_bytes()
            .iter()
            .take(8)
            .fold(0, |seed, byte| seed << 8 | u64::from(*byte))
    }
}

/// A batch, and what a transform logged over it.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// The rows.
    pub batch: Batch,
    /// Lines for the log of the node.
    pub log: Vec<String>,
}

impl From<Batch> for Drawn {
    fn from(batch: Batch) -> Self {
        Self { batch, log: Vec::new() }
    }
}

/// Why a pass gives no more batches.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowsError {
    /// Rows cannot be had, and no module is to blame.
    #[error("{0}")]
    Unreadable(String),
    /// The dataset's transform failed. What it says may come out of rows, so no trainer sees it: the call ends.
    #[error(transparent)]
    Transform(Box<ModuleError>),
}

/// One pass over a dataset.
pub type RowBatches = Box<dyn Iterator<Item = Result<Drawn, RowsError>> + Send>;

/// A dataset as a call sees it.
pub trait Rows: Send + Sync {
    /// How many rows there are.
    fn rows(&self) -> u64;

    /// Bytes of the batches that a pass in this order draws ahead.
    fn ahead_bytes(&self, order: BatchOrder) -> u64;

    /// Starts a pass.
    ///
    /// # Errors
    /// The order cannot be had; the text says why.
    fn batches(&self, pass: &PassOrder) -> Result<RowBatches, RowsError>;
}

/// Batches of a pass that wait or are on their way at a time.
pub(crate) fn ahead_batches(order: BatchOrder) -> u64 {
    order
        .most
        .map_or(AHEAD_BATCHES + 1, |most| (most as u64).min(AHEAD_BATCHES + 1))
}

/// Bytes of a batch of a dataset.
pub(crate) fn batch_bytes(dataset: &Dataset, batch: usize) -> u64 {
    let (bytes, rows) = (dataset.memory_bytes(), dataset.rows().max(1));
    (bytes / rows).saturating_mul(rows.min(batch as u64))
}

impl Rows for Dataset {
    fn rows(&self) -> u64 {
        Self::rows(self)
    }

    fn ahead_bytes(&self, order: BatchOrder) -> u64 {
        match (batch_bytes(self, order.batch), ahead_batches(order)) {
            // One batch has nothing to be ahead of.
            (bytes, batches) if bytes < AHEAD_FROM_BYTES || batches < 2 => 0,
            (bytes, batches) => bytes.saturating_mul(batches),
        }
    }

    fn batches(&self, pass: &PassOrder) -> Result<RowBatches, RowsError> {
        let unreadable = |error: cloister_data::DataError| RowsError::Unreadable(error.to_string());
        let batches = Self::batches(self, pass.order).map_err(unreadable)?;
        let batches = batches.map(move |batch| batch.map(Drawn::from).map_err(unreadable));
        if pass.ahead && self.ahead_bytes(pass.order) > 0 {
            return ahead(batches, Arc::default());
        }
        Ok(Box::new(batches))
    }
}

/// Draws on a thread of its own, at most [`AHEAD_BATCHES`] ahead. The batches come in the order in which they were drawn. Whoever
/// lets go of the pass sets `stop`, and waits for the thread.
pub(crate) fn ahead(
    batches: impl Iterator<Item = Result<Drawn, RowsError>> + Send + 'static,
    stop: Arc<AtomicBool>,
) -> Result<RowBatches, RowsError> {
    let (sender, receiver) = sync_channel(AHEAD_BATCHES as usize);
    let stopped = Arc::clone(&stop);
    let thread = std::thread::Builder::new()
        .name("rows-ahead".to_owned())
        .spawn(move || {
            for batch in batches {
                let last = batch.is_err();
                if stopped.load(Ordering::Relaxed) || sender.send(Some(batch)).is_err() || last {
                    return;
                }
            }
            // Without this word the pass did not end, its thread did.
            let _ = sender.send(None);
        });
    let thread = thread.map_err(|error| RowsError::Unreadable(format!("no thread to draw batches on: {error}")))?;
    Ok(Box::new(Ahead {
        receiver: Some(receiver),
        stop,
        thread: Some(thread),
    }))
}

struct Ahead {
    /// Nothing once the pass is over.
    receiver: Option<Receiver<Option<Result<Drawn, RowsError>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for Ahead {
    type Item = Result<Drawn, RowsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = match self.receiver.as_ref()?.recv() {
            Ok(next) => next,
            Err(_) => Some(Err(RowsError::Unreadable(
                "the thread that draws batches ended before the pass did".to_owned(),
            ))),
        };
        if !matches!(next, Some(Ok(_))) {
            self.receiver = None;
        }
        next
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.receiver = None;
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it panicked about was told by `next`.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use cloister_tensor::{Tensor, TensorMap};

    use super::*;

    fn drawn(value: usize) -> Drawn {
        let tensor = Tensor::scalar_f32(value as f32);
        Drawn::from(Batch {
            rows: 1,
            tensors: TensorMap::from([("x".to_owned(), tensor)]),
        })
    }

    fn value(drawn: Option<Result<Drawn, RowsError>>) -> f64 {
        drawn.unwrap().unwrap().batch.tensors["x"].first_f64().unwrap()
    }

    #[test]
    fn batches_come_in_order_and_not_too_many_ahead() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let batches = (0..50).map(move |at| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(drawn(at))
        });
        let mut pass = ahead(batches, Arc::default()).unwrap();
        for at in 0..50 {
            assert_eq!(value(pass.next()), at as f64);
            let ahead_of_us = made.load(Ordering::SeqCst) - (at + 1);
            assert!(ahead_of_us <= AHEAD_BATCHES as usize + 1, "{ahead_of_us}");
        }
        assert!(pass.next().is_none() && pass.next().is_none());
    }

    #[test]
    fn a_pass_that_is_let_go_of_ends_its_thread() {
        let (stop, lives) = (Arc::new(AtomicBool::new(false)), Arc::new(()));
        let kept = Arc::clone(&lives);
        let endless = (0..).map(move |at| {
            let _kept = &kept;
            Ok(drawn(at))
        });
        let mut pass = ahead(endless, Arc::clone(&stop)).unwrap();
        assert_eq!(value(pass.next()), 0.0);
        drop(pass);
        assert!(stop.load(Ordering::Relaxed));
        assert_eq!(Arc::strong_count(&lives), 1, "the thread and what it held are gone");
    }

    #[test]
    fn an_error_and_a_panic_are_told_once_and_never_taken_for_the_end() {
        let failing = [
            Ok(drawn(0)),
            Err(RowsError::Unreadable("row 2".to_owned())),
            Ok(drawn(2)),
        ];
        let mut pass = ahead(failing.into_iter(), Arc::default()).unwrap();
        assert_eq!(value(pass.next()), 0.0);
        assert!(pass.next().unwrap().unwrap_err().to_string().contains("row 2"));
        assert!(pass.next().is_none());
        let panicking = (0..3).map(|at| {
            assert!(at < 1, "a parser gave up");
            Ok(drawn(at))
        });
        let mut pass = ahead(panicking, Arc::default()).unwrap();
        assert_eq!(value(pass.next()), 0.0);
        assert!(pass.next().unwrap().unwrap_err().to_string().contains("ended before"));
    }

    #[test]
    fn seeds_differ_by_everything_and_stay_what_they_are() {
        let seed = |round, dataset: &str, pass, batch| {
            let dataset = Arc::from(dataset);
            PassSeed { round, dataset, pass }.of_batch(batch)
        };
        let all = [
            seed(7, "train", 0, 0),
            seed(8, "train", 0, 0),
            seed(7, "test", 0, 0),
            seed(7, "train", 1, 0),
            seed(7, "train", 0, 1),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| other != one));
        }
        assert_eq!(seed(7, "train", 0, 0), all[0]);
    }
}
