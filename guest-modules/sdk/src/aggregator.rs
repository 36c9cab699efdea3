//! What an aggregator works with: the updates and the model as one vector.

use crate::bindings::aggregator::cloister::federation::{flat_model, slots, updates as host};
use crate::failure::log_panics;
use crate::{Failure, Result, Round, UpdateKind, log, vector};

pub use flat_model::Entry;

/// Elements to read and write at a time: large enough that the calls cost nothing, small enough for a processor's cache.
pub const CHUNK: u32 = 64 << 10;

/// Runs an aggregator's function; [`export_aggregator!`](crate::export_aggregator) calls it.
pub fn call(round: Round, aggregate: impl FnOnce(Round, &mut FlatModel) -> Result<()>) -> Result<()> {
    log_panics();
    aggregate(
        round,
        &mut FlatModel {
            length: flat_model::length(),
        },
    )
}

/// The model as one vector of f32: what the round started with, and what is written for the next one.
#[derive(Debug)]
pub struct FlatModel {
    length: u64,
}

impl FlatModel {
    /// Elements of the vector.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Where the tensors stand in it.
    pub fn layout(&self) -> Vec<Entry> {
        flat_model::layout()
    }

    /// A part of the model as the round started.
    pub fn previous(&self, part: Part) -> Vec<f32> {
        flat_model::previous(part.offset, part.count)
    }

    /// A part of the next model as written so far; the round's own where nothing is written yet.
    pub fn written(&self, part: Part) -> Vec<f32> {
        flat_model::written(part.offset, part.count)
    }

    /// Writes a part of the next model.
    pub fn write(&mut self, part: Part, values: &[f32]) {
        flat_model::write(part.offset, values);
    }

    /// The vector cut into parts of [`CHUNK`] elements.
    pub fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        cut(0, self.length)
    }

    /// One tensor of the vector, cut likewise.
    pub fn parts_of(&self, entry: &Entry) -> impl Iterator<Item = Part> + use<> {
        cut(
            entry.offset,
            entry.dimensions.iter().map(|&dim| u64::from(dim)).product(),
        )
    }

    /// Writes the mean of the round's updates, weighted by the rows that the workers' hosts counted, and gives the rows.
    ///
    /// Updates are folded one after the other, in the order of their nodes' names, so the bytes do not depend on who was first:
    /// `mean += rows / rows so far * (update - mean)`. One update and one result are in memory, whatever the number of workers.
    /// In f32, each fold rounds an element three times: the error of a mean of `n` updates stays below `3 n` units in the last
    /// place of the largest of them.
    ///
    /// # Errors
    /// No update has rows behind it.
    pub fn write_mean(&mut self) -> Result<u64> {
        let mut total = 0_u64;
        for update in updates() {
            let rows = update.rows();
            if rows == 0 {
                log::warn(&format!(
                    "{} trained on no row: its update does not count",
                    update.node()
                ));
                continue;
            }
            let first = total == 0;
            total = total
                .checked_add(rows)
                .ok_or_else(|| Failure::new("more rows than can be counted"))?;
            let share = (rows as f64 / total as f64) as f32;
            for part in self.parts() {
                let new = update.read(part);
                if first {
                    self.write(part, &new);
                } else {
                    let mut mean = self.written(part);
                    vector::mix(share, &new, &mut mean);
                    self.write(part, &mean);
                }
            }
        }
        if total == 0 {
            return Err(Failure::new("no update to average"));
        }
        Ok(total)
    }
}

/// `length` elements from `start` on, cut into parts of [`CHUNK`] elements.
fn cut(start: u64, length: u64) -> impl Iterator<Item = Part> {
    (0..length).step_by(CHUNK as usize).map(move |at| Part {
        offset: start + at,
        // At most CHUNK, so it fits.
        count: (length - at).min(u64::from(CHUNK)) as u32,
    })
}

/// A vector that the host keeps from call to call, as long as the model: the state of an optimizer. Zeros at first.
#[derive(Clone, Copy, Debug)]
pub struct Slot(&'static str);

impl Slot {
    /// The slot of this name: 1 to 64 characters out of `a-z 0-9 . _ - /`. There are at most 4.
    pub const fn named(name: &'static str) -> Self {
        Self(name)
    }

    /// A part of it, with what this call wrote.
    pub fn read(&self, part: Part) -> Vec<f32> {
        slots::read(self.0, part.offset, part.count)
    }

    /// Writes a part of it; it is kept if the round counts.
    pub fn write(&self, part: Part, values: &[f32]) {
        slots::write(self.0, part.offset, values);
    }
}

/// A range of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first.
    pub offset: u64,
    /// How many.
    pub count: u32,
}

/// The round's updates, in the order of their nodes' names; waits for each. Dropping one frees its bytes in the host.
pub fn updates() -> impl Iterator<Item = Update> {
    std::iter::from_fn(|| host::next().map(Update))
}

/// What the updates hold.
pub fn update_kind() -> UpdateKind {
    host::kind()
}

/// What one worker sent.
pub struct Update(host::Update);

impl Update {
    /// The worker's name in the policy.
    pub fn node(&self) -> String {
        self.0.node()
    }

    /// Rows that the worker's host counted.
    pub fn rows(&self) -> u64 {
        self.0.rows()
    }

    /// A part of it.
    pub fn read(&self, part: Part) -> Vec<f32> {
        self.0.read(part.offset, part.count)
    }
}
