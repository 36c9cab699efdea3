//! Batches of a dataset, one after another.

use std::sync::Arc;

use bytes::Bytes;
use cloister_tensor::{Shape, Tensor, TensorMap};

use crate::dataset::Rows;
use crate::error::DataError;
use crate::order;
use crate::table::Input;

/// How a dataset is cut into batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOrder {
    /// The seed of the order ([`order::shuffled`]); `None`: as the file has them.
    pub seed: Option<u64>,
    /// Rows of a batch, at least 1.
    pub batch: usize,
    /// Whether the rows that fill no batch at the end are left out.
    pub drop_last: bool,
    /// Batches at the beginning that are left out, at no cost.
    pub first: usize,
    /// Batches at most, after those; `None`: all that are left.
    pub most: Option<usize>,
}

impl BatchOrder {
    /// All rows as the file has them, in batches of `batch`.
    pub fn of(batch: usize) -> Self {
        Self {
            seed: None,
            batch,
            drop_last: false,
            first: 0,
            most: None,
        }
    }
}

/// Some rows as tensors, one an input, of shape `[rows, ...]`.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Rows in it.
    pub rows: usize,
    /// A tensor for each input, by its name.
    pub tensors: TensorMap,
}

/// The batches of a dataset in one order; the last is smaller where rows are left, unless they are dropped.
#[derive(Debug)]
pub struct Batches {
    rows: Arc<Rows>,
    /// `None`: file order.
    order: Option<Vec<u32>>,
    batch: usize,
    /// The row that comes next in the order, and where to stop.
    next: usize,
    end: usize,
}

impl Batches {
    pub(crate) fn new(rows: Arc<Rows>, wanted: BatchOrder) -> Result<Self, DataError> {
        if wanted.batch == 0 {
            return Err(DataError::Batch {
                dataset: rows.name.clone(),
                problem: "seen a batch of 0 rows, wanted at least 1".to_owned(),
            });
        }
        let count = rows.count as usize;
        let end = if wanted.drop_last {
            count - count % wanted.batch
        } else {
            count
        };
        let next = wanted.first.saturating_mul(wanted.batch).min(end);
        let most = wanted.most.map_or(end, |most| most.saturating_mul(wanted.batch));
        let end = next.saturating_add(most).min(end);
        // An order takes as long as its rows are many: none for nothing.
        let seed = wanted.seed.filter(|_| next < end);
        let order = seed.map(|seed| order::shuffled(rows.count, seed));
        Ok(Self {
            rows,
            order,
            batch: wanted.batch,
            next,
            end,
        })
    }

    /// Rows that are still to come.
    pub fn rows_left(&self) -> usize {
        self.end - self.next
    }

    fn gather(&self, input: &Input, start: usize, count: usize) -> Result<Tensor, DataError> {
        let width = input.row_bytes;
        let bytes = match &self.order {
            None => input.bytes[start * width..(start + count) * width].to_vec(),
            Some(order) => {
                let mut bytes = Vec::with_capacity(count * width);
                for row in &order[start..start + count] {
                    let at = *row as usize * width;
                    bytes.extend_from_slice(&input.bytes[at..at + width]);
                }
                bytes
            }
        };
        let dims: Vec<usize> = std::iter::once(count).chain(input.shape.iter().copied()).collect();
        let tensor = Shape::new(&dims).and_then(|shape| Tensor::new(input.dtype, shape, Bytes::from(bytes)));
        tensor.map_err(|source| DataError::Tensor {
            dataset: self.rows.name.clone(),
            input: input.name.clone(),
            source,
        })
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let count = self.batch.min(self.end - self.next);
        if count == 0 {
            return None;
        }
        let start = self.next;
        self.next += count;
        let mut tensors = TensorMap::new();
        for input in &self.rows.inputs {
            match self.gather(input, start, count) {
                Ok(tensor) => tensors.insert(input.name.clone(), tensor),
                Err(error) => return Some(Err(error)),
            };
        }
        Some(Ok(Batch { rows: count, tensors }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.rows_left().div_ceil(self.batch);
        (left, Some(left))
    }
}

impl ExactSizeIterator for Batches {}
