//! What an aggregator works with: the updates and the model as one vector.

use crate::bindings::aggregator::cloister::federation::{flat_model, updates as host};
use crate::failure::log_panics;
use crate::{Result, Round};

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
        let length = self.length;
        (0..length).step_by(CHUNK as usize).map(move |offset| {
            // At most CHUNK, so it fits.
            let count = (length - offset).min(u64::from(CHUNK)) as u32;
            Part { offset, count }
        })
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
