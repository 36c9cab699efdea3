//! A model as one vector of f32, read and written by ranges: `flat-model` and `updates` of the world `aggregator`.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use cloister_tensor::{Dtype, Tensor, TensorMap};
use wasmtime::Result;
use wasmtime::component::Resource;

use crate::accept::fits;
use crate::bindings::aggregator::cloister::federation::{flat_model, updates};
use crate::bindings::trainer::cloister::federation::types;
use crate::budget::Charge;
use crate::error::{ModuleErrorKind, Refusal};
use crate::guest::{Guest, wit_update};
use crate::slots::Slots;
use crate::training::wit_dimensions;
use crate::{UpdateKind, WorkerUpdate};

/// Elements that one call reads or writes at most (64 MiB).
const MAX_RANGE_ELEMENTS: usize = 16 << 20;

/// Where the model's tensors stand in the vector.
pub(crate) struct Layout {
    names: Vec<String>,
    /// First element of each tensor, and the vector's length at the end.
    starts: Vec<usize>,
}

/// A piece of a range: this tensor, these elements of it.
struct Piece {
    tensor: usize,
    from: usize,
    to: usize,
}

impl Layout {
    fn of(model: &TensorMap) -> Result<Self, Refusal> {
        let mut starts = vec![0];
        let mut length = 0_usize;
        for (name, tensor) in model {
            if tensor.dtype() != Dtype::F32 {
                let message = format!(
                    "`{name}` is {}: an aggregator works on models of F32",
                    tensor.dtype().name()
                );
                return Err(Refusal::new(ModuleErrorKind::WrongShape, message));
            }
            length = length.saturating_add(tensor.shape().elements());
            starts.push(length);
        }
        Ok(Self {
            names: model.keys().cloned().collect(),
            starts,
        })
    }

    fn length(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The pieces that make up `count` elements from `offset` on.
    fn pieces(&self, what: &str, offset: u64, count: usize) -> Result<Vec<Piece>, Refusal> {
        let Range { start: mut at, end } = range(what, offset, count, self.length())?;
        let mut pieces = Vec::new();
        let mut tensor = self.starts.partition_point(|&start| start <= at).saturating_sub(1);
        while at < end {
            let (start, next) = (self.starts[tensor], self.starts[tensor + 1]);
            let stop = end.min(next);
            if stop > at {
                pieces.push(Piece {
                    tensor,
                    from: at - start,
                    to: stop - start,
                });
                at = stop;
            }
            tensor += 1;
        }
        Ok(pieces)
    }
}

/// `count` elements from `offset` on of a vector of `length`.
pub(crate) fn range(what: &str, offset: u64, count: usize, length: usize) -> Result<Range<usize>, Refusal> {
    let start = usize::try_from(offset).ok();
    let end = start.and_then(|start| start.checked_add(count));
    let (Some(start), Some(end)) = (start, end.filter(|&end| end <= length)) else {
        let message = format!("{what}: seen elements {offset} to {offset} + {count}, wanted at most {length}");
        return Err(Refusal::new(ModuleErrorKind::WrongShape, message));
    };
    if count > MAX_RANGE_ELEMENTS {
        let message = format!("{what}: seen {count} elements in one call, wanted at most {MAX_RANGE_ELEMENTS}");
        return Err(Refusal::new(ModuleErrorKind::Argument, message));
    }
    Ok(start..end)
}

/// Appends elements `from..to` of an f32 tensor.
pub(crate) fn copy_elements(tensor: &Tensor, from: usize, to: usize, out: &mut Vec<f32>) {
    match tensor.as_f32() {
        Some(elements) => out.extend_from_slice(&elements[from..to]),
        // Bytes out of a mapping may stand at any address.
        None => out.extend(
            tensor.bytes()[from * 4..to * 4]
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        ),
    }
}

/// Brings the next update, over from the thread that called the sandbox.
pub(crate) struct UpdateLine {
    pub(crate) ask: SyncSender<()>,
    pub(crate) answer: Receiver<Result<Option<WorkerUpdate>, String>>,
}

/// What the world `aggregator` adds to a [`Guest`].
pub(crate) struct Aggregating {
    layout: Arc<Layout>,
    statistics: BTreeSet<String>,
    update: UpdateKind,
    pub(crate) slots: Slots,
    previous: Vec<Tensor>,
    /// The result, by tensor; nothing where nothing is written yet.
    written: Vec<Option<Vec<f32>>>,
    /// Nothing once the call is over.
    line: Option<UpdateLine>,
    charges: Vec<Arc<Charge>>,
}

/// An update as a guest holds it.
#[allow(unreachable_pub, reason = "the bindings re-export it")]
pub struct Update {
    node: String,
    rows: u64,
    tensors: Vec<Tensor>,
    layout: Arc<Layout>,
    _charge: Arc<Charge>,
}

impl Aggregating {
    pub(crate) fn new(
        model: &TensorMap,
        statistics: BTreeSet<String>,
        update: UpdateKind,
        slots: TensorMap,
        line: UpdateLine,
    ) -> Result<Self, Refusal> {
        let layout = Arc::new(Layout::of(model)?);
        let slots = Slots::new(slots, layout.length())?;
        let previous: Vec<_> = model.values().cloned().collect();
        let written = previous.iter().map(|_| None).collect();
        Ok(Self {
            layout,
            statistics,
            update,
            slots,
            previous,
            written,
            line: Some(line),
            charges: Vec::new(),
        })
    }

    /// Hangs up, so that the thread which brings updates is free to go.
    pub(crate) fn close(&mut self) {
        self.line = None;
    }

    /// Whether anything was written.
    pub(crate) fn any_written(&self) -> bool {
        self.written.iter().any(Option::is_some)
    }

    /// The next model, and the slots.
    pub(crate) fn into_result(self) -> Result<(TensorMap, TensorMap), Refusal> {
        let mut result = TensorMap::new();
        for ((name, previous), written) in self.layout.names.iter().zip(self.previous).zip(self.written) {
            let tensor = match written {
                Some(elements) => Tensor::from_f32(previous.shape().dims(), elements)
                    .map_err(|error| Refusal::new(ModuleErrorKind::Host, format!("`{name}`: {error}")))?,
                None => previous,
            };
            if let Some(at) = tensor.first_not_finite() {
                let message = format!("the aggregate's `{name}` is not finite, first at element {at}");
                return Err(Refusal::new(ModuleErrorKind::NotFinite, message));
            }
            result.insert(name.clone(), tensor);
        }
        Ok((result, self.slots.into_tensors()?))
    }
}

impl Guest<Aggregating> {
    /// Charges the model, the result, and the slots that are there.
    pub(crate) fn hold_model(&mut self) -> Result<(), Refusal> {
        let bytes = self.world.layout.length() as u64 * 4;
        self.world.charges = vec![
            self.budget.charge(bytes, "the model")?,
            self.budget.charge(bytes, "the result")?,
        ];
        self.world.slots.hold(&self.budget)?;
        Ok(())
    }
}

impl flat_model::Host for Guest<Aggregating> {
    fn length(&mut self) -> Result<u64> {
        Ok(self.world.layout.length() as u64)
    }

    fn layout(&mut self) -> Result<Vec<flat_model::Entry>> {
        let tensors = self
            .world
            .layout
            .names
            .iter()
            .zip(&self.world.layout.starts)
            .zip(&self.world.previous);
        tensors
            .map(|((name, &start), tensor)| {
                Ok(flat_model::Entry {
                    name: name.clone(),
                    statistic: self.world.statistics.contains(name),
                    offset: start as u64,
                    dimensions: wit_dimensions(tensor.shape().dims())?,
                })
            })
            .collect()
    }

    fn previous(&mut self, offset: u64, count: u32) -> Result<Vec<f32>> {
        let count = count as usize;
        let pieces = self.world.layout.pieces("previous", offset, count)?;
        let mut out = Vec::with_capacity(count);
        for piece in pieces {
            copy_elements(&self.world.previous[piece.tensor], piece.from, piece.to, &mut out);
        }
        Ok(out)
    }

    fn written(&mut self, offset: u64, count: u32) -> Result<Vec<f32>> {
        let count = count as usize;
        let pieces = self.world.layout.pieces("written", offset, count)?;
        let mut out = Vec::with_capacity(count);
        for piece in pieces {
            match &self.world.written[piece.tensor] {
                Some(elements) => out.extend_from_slice(&elements[piece.from..piece.to]),
                None => copy_elements(&self.world.previous[piece.tensor], piece.from, piece.to, &mut out),
            }
        }
        Ok(out)
    }

    fn write(&mut self, offset: u64, values: Vec<f32>) -> Result<()> {
        let mut rest = &values[..];
        for piece in self.world.layout.pieces("write", offset, values.len())? {
            let (now, later) = rest.split_at(piece.to - piece.from);
            rest = later;
            let previous = &self.world.previous[piece.tensor];
            let elements = self.world.written[piece.tensor].get_or_insert_with(|| {
                let mut elements = Vec::with_capacity(previous.shape().elements());
                copy_elements(previous, 0, previous.shape().elements(), &mut elements);
                elements
            });
            elements[piece.from..piece.to].copy_from_slice(now);
        }
        Ok(())
    }
}

impl updates::Host for Guest<Aggregating> {
    fn kind(&mut self) -> Result<types::UpdateKind> {
        Ok(wit_update(self.world.update))
    }

    fn next(&mut self) -> Result<Option<Resource<Update>>> {
        self.deadline.left()?;
        let asked = Instant::now();
        let gone = || Refusal::new(ModuleErrorKind::Updates, "nobody brings updates any more");
        let line = self.world.line.as_ref().ok_or_else(gone)?;
        line.ask.send(()).map_err(|_| gone())?;
        let answer = line.answer.recv().map_err(|_| gone())?;
        self.deadline.extend(asked.elapsed());
        let update = match answer {
            Ok(Some(update)) => update,
            Ok(None) => return Ok(None),
            Err(message) => return Err(Refusal::new(ModuleErrorKind::Updates, message).into()),
        };
        let bytes = update.tensors.values().map(|tensor| tensor.bytes().len() as u64).sum();
        let charge = self.budget.charge(bytes, "an update")?;
        let layout = Arc::clone(&self.world.layout);
        let mut tensors = Vec::with_capacity(layout.names.len());
        let mut given = update.tensors;
        for (name, like) in layout.names.iter().zip(&self.world.previous) {
            let Some(tensor) = given.remove(name) else {
                let message = format!("the update of `{}` lacks `{name}`", update.node);
                return Err(Refusal::new(ModuleErrorKind::Updates, message).into());
            };
            fits(name, &tensor, like)?;
            tensors.push(tensor);
        }
        if let Some(name) = given.keys().next() {
            let message = format!(
                "the update of `{}` holds `{name}`, which the model does not have",
                update.node
            );
            return Err(Refusal::new(ModuleErrorKind::Updates, message).into());
        }
        self.push(Update {
            node: update.node,
            rows: update.rows,
            tensors,
            layout,
            _charge: charge,
        })
        .map(Some)
    }
}

impl updates::HostUpdate for Guest<Aggregating> {
    fn node(&mut self, update: Resource<Update>) -> Result<String> {
        Ok(self.table.get(&update)?.node.clone())
    }

    fn rows(&mut self, update: Resource<Update>) -> Result<u64> {
        Ok(self.table.get(&update)?.rows)
    }

    fn read(&mut self, update: Resource<Update>, offset: u64, count: u32) -> Result<Vec<f32>> {
        let update = self.table.get(&update)?;
        let count = count as usize;
        let pieces = update.layout.pieces("read", offset, count)?;
        let mut out = Vec::with_capacity(count);
        for piece in pieces {
            copy_elements(&update.tensors[piece.tensor], piece.from, piece.to, &mut out);
        }
        Ok(out)
    }

    fn drop(&mut self, update: Resource<Update>) -> Result<()> {
        self.table.delete(update)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cross_tensors_and_stop_at_the_end() {
        let model = TensorMap::from([
            ("a".to_owned(), Tensor::from_f32(&[2], vec![1.0, 2.0]).unwrap()),
            ("b".to_owned(), Tensor::from_f32(&[0], vec![]).unwrap()),
            ("c".to_owned(), Tensor::from_f32(&[3], vec![3.0, 4.0, 5.0]).unwrap()),
        ]);
        let layout = Layout::of(&model).unwrap();
        assert_eq!(layout.length(), 5);
        let tensors: Vec<_> = model.values().cloned().collect();
        for offset in 0..=5_usize {
            for count in 0..=5 - offset {
                let mut seen = Vec::new();
                for piece in layout.pieces("test", offset as u64, count).unwrap() {
                    copy_elements(&tensors[piece.tensor], piece.from, piece.to, &mut seen);
                }
                let wanted: Vec<f32> = (offset..offset + count).map(|at| at as f32 + 1.0).collect();
                assert_eq!(seen, wanted);
            }
        }
        for (offset, count) in [(5, 1), (0, 6), (6, 0), (u64::MAX, 1), (u64::MAX, usize::MAX)] {
            assert_eq!(
                layout.pieces("test", offset, count).err().unwrap().kind,
                ModuleErrorKind::WrongShape
            );
        }
    }
}
