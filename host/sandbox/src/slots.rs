//! What an aggregator keeps from call to call: the interface `slots`.

use std::collections::BTreeMap;
use std::sync::Arc;

use cloister_tensor::{Dtype, Tensor, TensorMap};
use wasmtime::Result;

use crate::bindings::aggregator::cloister::federation::slots;
use crate::budget::{Budget, Charge};
use crate::error::{ModuleErrorKind, Refusal};
use crate::flat::{Aggregating, copy_elements, range};
use crate::guest::{Guest, check_name};

/// Slots of an aggregator at most.
pub const MAX_SLOTS: usize = 4;

/// Whether these can be the slots of an aggregator over a model of `length` elements: not too many, under names that a module may
/// give, each a vector of that length.
///
/// # Errors
/// In words, what was seen and what was wanted.
pub fn check_slots<'a>(
    slots: impl ExactSizeIterator<Item = (&'a str, Dtype, &'a [usize])>,
    length: usize,
) -> Result<(), String> {
    if slots.len() > MAX_SLOTS {
        return Err(format!("seen {} slots, wanted at most {MAX_SLOTS}", slots.len()));
    }
    for (name, dtype, dims) in slots {
        check_name("slot", name).map_err(|refusal| refusal.message)?;
        if dtype != Dtype::F32 || dims != [length] {
            return Err(format!(
                "slot `{name}`: seen {} {dims:?}, wanted F32 [{length}]",
                dtype.name()
            ));
        }
    }
    Ok(())
}

/// One slot: what it was as the call began, and what it is since the call wrote to it.
#[derive(Default)]
struct Slot {
    before: Option<Tensor>,
    written: Option<Vec<f32>>,
    /// Held for their drop.
    charges: Vec<Arc<Charge>>,
}

/// The slots of a call.
pub(crate) struct Slots {
    length: usize,
    held: BTreeMap<String, Slot>,
}

impl Slots {
    pub(crate) fn new(slots: TensorMap, length: usize) -> Result<Self, Refusal> {
        let seen = slots.iter();
        let seen = seen.map(|(name, tensor)| (name.as_str(), tensor.dtype(), tensor.shape().dims()));
        check_slots(seen, length).map_err(|problem| Refusal::new(ModuleErrorKind::Host, problem))?;
        let held = slots.into_iter().map(|(name, tensor)| {
            let slot = Slot {
                before: Some(tensor),
                ..Slot::default()
            };
            (name, slot)
        });
        Ok(Self {
            length,
            held: held.collect(),
        })
    }

    fn bytes(&self) -> u64 {
        self.length as u64 * 4
    }

    /// Charges the slots that are there.
    pub(crate) fn hold(&mut self, budget: &Budget) -> Result<(), Refusal> {
        let bytes = self.bytes();
        for slot in self.held.values_mut() {
            slot.charges.push(budget.charge(bytes, "a slot")?);
        }
        Ok(())
    }

    fn read(&self, name: &str, offset: u64, count: u32) -> Result<Vec<f32>, Refusal> {
        check_name("slot", name)?;
        let range = range("slot", offset, count as usize, self.length)?;
        let mut out = Vec::with_capacity(range.len());
        match self.held.get(name).map(|slot| (&slot.written, &slot.before)) {
            Some((Some(elements), _)) => out.extend_from_slice(&elements[range]),
            Some((None, Some(before))) => copy_elements(before, range.start, range.end, &mut out),
            _ => out.resize(range.len(), 0.0),
        }
        Ok(out)
    }

    fn write(&mut self, budget: &Budget, name: String, offset: u64, values: &[f32]) -> Result<(), Refusal> {
        check_name("slot", &name)?;
        let range = range("slot", offset, values.len(), self.length)?;
        if self.held.len() == MAX_SLOTS && !self.held.contains_key(&name) {
            let message = format!("slot `{name}`: a module keeps at most {MAX_SLOTS}");
            return Err(Refusal::new(ModuleErrorKind::Argument, message));
        }
        let (length, bytes) = (self.length, self.bytes());
        let slot = self.held.entry(name).or_default();
        let elements = match &mut slot.written {
            Some(elements) => elements,
            written => {
                slot.charges.push(budget.charge(bytes, "a slot that is written")?);
                let mut elements = Vec::with_capacity(length);
                match &slot.before {
                    Some(before) => copy_elements(before, 0, length, &mut elements),
                    None => elements.resize(length, 0.0),
                }
                written.insert(elements)
            }
        };
        elements[range].copy_from_slice(values);
        Ok(())
    }

    /// What the next call finds.
    pub(crate) fn into_tensors(self) -> Result<TensorMap, Refusal> {
        let mut tensors = TensorMap::new();
        for (name, slot) in self.held {
            let tensor = match (slot.written, slot.before) {
                (Some(elements), _) => Tensor::from_f32(&[self.length], elements)
                    .map_err(|error| Refusal::new(ModuleErrorKind::Host, format!("slot `{name}`: {error}")))?,
                (None, Some(before)) => before,
                (None, None) => continue,
            };
            if let Some(at) = tensor.first_not_finite() {
                let message = format!("slot `{name}` is not finite, first at element {at}");
                return Err(Refusal::new(ModuleErrorKind::NotFinite, message));
            }
            tensors.insert(name, tensor);
        }
        Ok(tensors)
    }
}

impl slots::Host for Guest<Aggregating> {
    fn read(&mut self, slot: String, offset: u64, count: u32) -> Result<Vec<f32>> {
        Ok(self.world.slots.read(&slot, offset, count)?)
    }

    fn write(&mut self, slot: String, offset: u64, values: Vec<f32>) -> Result<()> {
        Ok(self.world.slots.write(&self.budget, slot, offset, &values)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(held: &[(&str, Vec<f32>)]) -> Slots {
        let tensors = held
            .iter()
            .map(|(name, values)| ((*name).to_owned(), Tensor::from_f32(&[3], values.clone()).unwrap()));
        Slots::new(tensors.collect(), 3).unwrap()
    }

    fn kind<T: std::fmt::Debug>(result: Result<T, Refusal>) -> ModuleErrorKind {
        result.unwrap_err().kind
    }

    #[test]
    fn a_slot_is_zeros_then_what_was_written_and_the_next_call_finds_it() {
        let budget = Budget::new(1000);
        let mut first = slots(&[]);
        assert_eq!(first.read("m", 0, 3).unwrap(), [0.0; 3]);
        first.write(&budget, "m".to_owned(), 1, &[2.0]).unwrap();
        assert_eq!(first.read("m", 0, 3).unwrap(), [0.0, 2.0, 0.0]);
        let kept = first.into_tensors().unwrap();
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["m"], "reading keeps nothing");
        let mut next = Slots::new(kept.clone(), 3).unwrap();
        assert_eq!(next.read("m", 1, 2).unwrap(), [2.0, 0.0]);
        assert_eq!(
            Slots::new(kept, 3).unwrap().into_tensors().unwrap()["m"]
                .to_f32_vec()
                .unwrap(),
            [0.0, 2.0, 0.0]
        );
        next.write(&budget, "m".to_owned(), 2, &[5.0]).unwrap();
        assert_eq!(next.into_tensors().unwrap()["m"].to_f32_vec().unwrap(), [0.0, 2.0, 5.0]);
    }

    #[test]
    fn ranges_names_and_their_number_are_limited() {
        let budget = Budget::new(1000);
        let mut slots = slots(&[
            ("a", vec![1.0; 3]),
            ("b", vec![1.0; 3]),
            ("c", vec![1.0; 3]),
            ("d", vec![1.0; 3]),
        ]);
        for (offset, count) in [(3, 1), (0, 4), (u64::MAX, 1), (1, u32::MAX)] {
            assert_eq!(kind(slots.read("a", offset, count)), ModuleErrorKind::WrongShape);
        }
        let write = |slots: &mut Slots, name: &str, offset, values: &[f32]| {
            slots.write(&budget, name.to_owned(), offset, values)
        };
        assert_eq!(kind(write(&mut slots, "a", 1, &[0.0; 3])), ModuleErrorKind::WrongShape);
        assert_eq!(kind(write(&mut slots, "e", 0, &[0.0; 3])), ModuleErrorKind::Argument);
        assert_eq!(slots.read("e", 0, 3).unwrap(), [0.0; 3]);
        for name in ["", "row 7", "A", "../\n", &"x".repeat(65)] {
            assert_eq!(kind(write(&mut slots, name, 0, &[0.0])), ModuleErrorKind::Argument);
            assert_eq!(kind(slots.read(name, 0, 1)), ModuleErrorKind::Argument);
        }
        write(&mut slots, "d", 0, &[f32::NAN]).unwrap();
        assert_eq!(kind(slots.into_tensors()), ModuleErrorKind::NotFinite);
    }

    #[test]
    fn slots_are_charged_as_they_are_held_and_as_they_are_written() {
        let budget = Budget::new(30);
        let mut slots = slots(&[("m", vec![1.0; 3])]);
        slots.hold(&budget).unwrap();
        slots.write(&budget, "m".to_owned(), 0, &[2.0]).unwrap();
        slots.write(&budget, "m".to_owned(), 1, &[2.0]).unwrap();
        assert_eq!(
            kind(slots.write(&budget, "v".to_owned(), 0, &[2.0])),
            ModuleErrorKind::Memory
        );
    }

    #[test]
    fn what_cannot_be_slots_of_the_model_is_refused() {
        let tensors = |name: &str, tensor| TensorMap::from([(name.to_owned(), tensor)]);
        for (odd, wanted) in [
            (
                tensors("m", Tensor::from_f32(&[4], vec![0.0; 4]).unwrap()),
                "wanted F32 [3]",
            ),
            (
                tensors("m", Tensor::from_f32(&[3, 1], vec![0.0; 3]).unwrap()),
                "wanted F32 [3]",
            ),
            (tensors("m", Tensor::from_i64(&[3], vec![0; 3]).unwrap()), "seen I64"),
            (
                tensors("M", Tensor::from_f32(&[3], vec![0.0; 3]).unwrap()),
                "wanted a name",
            ),
            (
                (0..5)
                    .map(|at| (at.to_string(), Tensor::from_f32(&[3], vec![0.0; 3]).unwrap()))
                    .collect(),
                "seen 5 slots, wanted at most 4",
            ),
        ] {
            let refusal = Slots::new(odd, 3).err().unwrap();
            assert_eq!(refusal.kind, ModuleErrorKind::Host);
            assert!(refusal.message.contains(wanted), "{}", refusal.message);
        }
    }
}
