//! The interface `dataset`: batches by pull.

use std::sync::Arc;

use cloister_data::BatchOrder;
use wasmtime::Result;
use wasmtime::component::Resource;

use crate::bindings::trainer::cloister::federation::dataset;
use crate::bindings::trainer::cloister::federation::types::{Failure, FailureKind};
use crate::budget::Charge;
use crate::error::{MAX_MESSAGE_BYTES, ModuleErrorKind, TrainError, bounded};
use crate::guest::Guest;
use crate::label::{GuestTensor, Label};
use crate::rows::{PassOrder, PassSeed, RowBatches, RowsError};
use crate::training::Training;

/// Rows in a batch at most.
const MAX_BATCH_ROWS: u32 = 1 << 24;

/// One pass over a dataset.
#[allow(unreachable_pub, reason = "the bindings re-export it")]
pub struct Pass {
    dataset: Arc<str>,
    batches: RowBatches,
    /// Of the batches that are drawn ahead; held for its drop.
    _ahead: Arc<Charge>,
}

impl Guest<Training> {
    fn fail(&mut self, kind: ModuleErrorKind, message: String) -> Failure {
        Failure {
            kind: FailureKind::Dataset,
            message: self.answer(kind, message),
        }
    }

    fn unknown_dataset(&mut self, name: &str) -> Failure {
        let known: Vec<_> = self.world.datasets.keys().map(String::as_str).collect();
        let message = format!("no dataset `{name}`; the policy gives this node: {}", known.join(", "));
        self.fail(ModuleErrorKind::UnknownDataset, message)
    }
}

/// What ends a call whose rows are not to be had. It is not the trainer's doing, and what a transform says may come out of rows:
/// the trainer is not told.
fn failed(dataset: &str, error: RowsError) -> TrainError {
    match error {
        RowsError::Transform(error) => TrainError::Module(*error),
        RowsError::Unreadable(message) => TrainError::Dataset {
            name: dataset.to_owned(),
            message: bounded(&message, MAX_MESSAGE_BYTES),
        },
    }
}

impl dataset::Host for Guest<Training> {
    fn rows(&mut self, name: String) -> Result<Result<u64, Failure>> {
        match self.world.datasets.get(&name) {
            Some(rows) => Ok(Ok(rows.rows())),
            None => Ok(Err(self.unknown_dataset(&name))),
        }
    }

    fn open(&mut self, name: String, order: dataset::Order) -> Result<Result<Resource<Pass>, Failure>> {
        let Some(rows) = self.world.datasets.get(&name).cloned() else {
            return Ok(Err(self.unknown_dataset(&name)));
        };
        if order.batch == 0 || order.batch > MAX_BATCH_ROWS {
            let message = format!("a batch of {} rows: wanted 1 to {MAX_BATCH_ROWS}", order.batch);
            return Ok(Err(self.fail(ModuleErrorKind::Argument, message)));
        }
        let order = BatchOrder {
            seed: order.seed,
            batch: order.batch as usize,
            drop_last: order.drop_last,
            first: order.first as usize,
            most: order.most.map(|most| most as usize),
        };
        let dataset: Arc<str> = Arc::from(name);
        let charge = self.budget.charge(rows.ahead_bytes(order), "batches drawn ahead")?;
        let begun = self.world.passes.entry(Arc::clone(&dataset)).or_default();
        let seed = PassSeed {
            round: self.world.seed,
            dataset: Arc::clone(&dataset),
            pass: *begun,
        };
        *begun += 1;
        let pass = PassOrder {
            order,
            seed,
            end: Some(self.deadline.end()),
            ahead: true,
        };
        let batches = rows.batches(&pass).map_err(|error| failed(&dataset, error))?;
        self.push(Pass {
            dataset,
            batches,
            _ahead: charge,
        })
        .map(Ok)
    }
}

impl dataset::HostBatches for Guest<Training> {
    fn next(&mut self, pass: Resource<Pass>) -> Result<Result<Option<dataset::Batch>, Failure>> {
        self.deadline.left()?;
        let pass = self.table.get_mut(&pass)?;
        let dataset = Arc::clone(&pass.dataset);
        let drawn = match pass.batches.next() {
            None => return Ok(Ok(None)),
            Some(Err(error)) => return Err(failed(&dataset, error).into()),
            Some(Ok(drawn)) => drawn,
        };
        for line in drawn.log {
            self.write_down(line)?;
        }
        let batch = drawn.batch;
        let bytes = batch.tensors.values().map(|tensor| tensor.bytes().len() as u64).sum();
        let charge = self.budget.charge(bytes, "a batch of rows")?;
        if self.world.grants.tensor_access.write {
            // What a module with `write` does with rows passes by no graph: handed out counts as used.
            *self.world.fed.entry(Arc::clone(&dataset)).or_default() += batch.rows as u64;
        }
        let tensors = batch.tensors.into_iter().map(|(input, tensor)| {
            let label = Label::Data {
                dataset: Arc::clone(&dataset),
                input: input.clone(),
            };
            (
                input,
                GuestTensor {
                    tensor,
                    label,
                    computed: false,
                    _charge: Arc::clone(&charge),
                },
            )
        });
        let tensors = self.hand_over(tensors)?;
        Ok(Ok(Some(dataset::Batch {
            rows: batch.rows as u32,
            tensors,
        })))
    }

    fn drop(&mut self, pass: Resource<Pass>) -> Result<()> {
        self.table.delete(pass)?;
        Ok(())
    }
}
