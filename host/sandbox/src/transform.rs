//! The world `transform`: rows in, rows out, each batch in an instance of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use bytes::Bytes;
use cloister_data::{Batch, BatchOrder, Dataset};
use cloister_tensor::{Dtype, Shape, Tensor, TensorMap};
use wasmtime::Store;

use crate::bindings::transform::TransformPre;
use crate::bindings::transform::exports::cloister::federation::transforming::{Array, Batch as WitBatch, Elements};
use crate::error::{ModuleErrorKind, Refusal, bounded};
use crate::guest::Guest;
use crate::module::{End, Program, cut};
use crate::rows::{Drawn, PassOrder, RowBatches, Rows, RowsError, ahead, ahead_batches, batch_bytes};

use crate::ticker::Deadline;
use crate::training::wit_dimensions;
use crate::{CallLimits, Module, ModuleError, Sandbox, SettingValue};

/// What a batch passes to the host beside its elements: names and shapes.
const WORDS_BYTES: usize = 1 << 20;

/// What the world `transform` adds to a [`Guest`]: nothing. Whoever sees rows reaches nothing.
pub(crate) struct Transforming;

/// A transform and how it is called.
#[derive(Clone)]
pub struct Transform {
    /// The module.
    pub module: Module,
    /// Settings as the policy gives them.
    pub settings: BTreeMap<String, SettingValue>,
    /// The inputs that it makes, by name.
    pub makes: BTreeMap<String, Made>,
    /// How much the call for one batch may take; its time is [`CallLimits::compute`].
    pub limits: CallLimits,
}

/// An input that a transform makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Shape of one row.
    pub shape: Vec<usize>,
    /// F32 or I64.
    pub dtype: Dtype,
    /// Labels: whole numbers from 0 to below this.
    pub classes: Option<usize>,
}

impl Made {
    fn row_bytes(&self) -> u64 {
        let elements = self
            .shape
            .iter()
            .fold(1_u64, |product, &dim| product.saturating_mul(dim as u64));
        elements.saturating_mul(self.dtype.size_bytes() as u64)
    }
}

impl Sandbox {
    /// Calls a transform for one batch. Inputs that it does not make pass by it.
    ///
    /// # Errors
    /// The module trapped, overstepped a limit, gave up, or made other inputs than the policy says. The message may hold what the
    /// module took out of rows.
    pub fn transform(&self, transform: &Transform, batch: Batch, seed: u64) -> Result<Drawn, ModuleError> {
        self.transform_until(transform, batch, seed, None, &Arc::default())
    }

    fn transform_until(
        &self,
        transform: &Transform,
        batch: Batch,
        seed: u64,
        end: Option<Instant>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Drawn, ModuleError> {
        let module = &transform.module;
        let Program::Transform(program) = &module.inner.program else {
            let message = format!("a module of the world `{}` is asked to transform rows", module.world());
            return Err(module.error(ModuleErrorKind::World, message));
        };
        let settings = module.resolve_settings(&transform.settings)?;
        let made_bytes = transform.made_bytes(batch.rows);
        let limit = transform.limits.tensor_memory_bytes;
        if made_bytes > limit {
            let message = format!(
                "the inputs that it makes of {} rows take {made_bytes} bytes: wanted at most {limit}; take a smaller batch, or \
                 raise `tensor_memory_mib` in the policy",
                batch.rows
            );
            return Err(module.error(ModuleErrorKind::Memory, message));
        }
        let given = wit_batch(&batch, seed).map_err(|refusal| module.refused(refusal))?;
        let mut guest = Guest::new(transform.limits.clone(), settings, Transforming);
        guest.deadline = Deadline::within(transform.limits.compute, end, Arc::clone(stop));
        let passed = usize::try_from(made_bytes)
            .unwrap_or(usize::MAX)
            .saturating_add(WORDS_BYTES);
        let mut store = self.store(guest, passed);
        let made = {
            let _running = self.ticker.run();
            transform_in(&mut store, program, &given)
        };
        let guest = store.into_data();
        let made = made.map_err(|end| module.ended(end, &guest.log, None))?;
        let tensors = transform
            .accept(batch, made)
            .map_err(|refusal| module.ended(refusal.into(), &guest.log, None))?;
        let log = guest.log.into_iter().map(|line| format!("{}: {line}", module.name()));
        Ok(Drawn {
            batch: tensors,
            log: log.collect(),
        })
    }
}

fn transform_in(
    store: &mut Store<Guest<Transforming>>,
    program: &TransformPre<Guest<Transforming>>,
    batch: &WitBatch,
) -> Result<Vec<Array>, End> {
    let transform = program.instantiate(&mut *store)?;
    let made = transform
        .cloister_federation_transforming()
        .call_transform(&mut *store, batch)?;
    made.map_err(|failure| End::GaveUp(cut(failure)))
}

/// A batch as the world writes it.
fn wit_batch(batch: &Batch, seed: u64) -> Result<WitBatch, Refusal> {
    let arrays = batch.tensors.iter().map(|(name, tensor)| {
        let bytes = tensor.bytes();
        let elements = match tensor.dtype() {
            Dtype::U8 => Elements::Bytes(bytes.to_vec()),
            Dtype::F32 => Elements::Floats(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|four| f32::from_le_bytes(*four))
                    .collect(),
            ),
            Dtype::I64 => Elements::Integers(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|eight| i64::from_le_bytes(*eight))
                    .collect(),
            ),
            other => {
                let message = format!("input `{name}` is {}, which a transform does not take", other.name());
                return Err(Refusal::new(ModuleErrorKind::WrongShape, message));
            }
        };
        Ok(Array {
            name: name.clone(),
            shape: wit_dimensions(tensor.shape().dims())?,
            elements,
        })
    });
    Ok(WitBatch {
        rows: u32::try_from(batch.rows).unwrap_or(u32::MAX),
        seed,
        arrays: arrays.collect::<Result<_, _>>()?,
    })
}

impl Transform {
    fn made_bytes(&self, rows: usize) -> u64 {
        let row = self
            .makes
            .values()
            .map(Made::row_bytes)
            .fold(0_u64, u64::saturating_add);
        row.saturating_mul(rows as u64)
    }

    /// The batch with what was made in the place of what was read, if it is what the policy says.
    fn accept(&self, batch: Batch, made: Vec<Array>) -> Result<Batch, Refusal> {
        let mut fresh = TensorMap::new();
        for array in made {
            let name = bounded(&array.name, 64);
            let Some(wanted) = self.makes.get(&array.name) else {
                let known: Vec<_> = self.makes.keys().map(String::as_str).collect();
                let message = format!(
                    "it made the input `{name}`: the policy says that it makes {}",
                    known.join(", ")
                );
                return Err(Refusal::new(ModuleErrorKind::UnknownTensor, message));
            };
            let tensor = tensor(&name, wanted, batch.rows, &array.shape, array.elements)?;
            if fresh.insert(array.name, tensor).is_some() {
                let message = format!("it made the input `{name}` twice");
                return Err(Refusal::new(ModuleErrorKind::DuplicateTensor, message));
            }
        }
        if let Some(name) = self.makes.keys().find(|name| !fresh.contains_key(*name)) {
            let message = format!("it did not make the input `{name}`, which the policy says it makes");
            return Err(Refusal::new(ModuleErrorKind::MissingTensor, message));
        }
        let Batch { rows, mut tensors } = batch;
        tensors.extend(fresh);
        Ok(Batch { rows, tensors })
    }
}

/// What a transform made, if it fits: type, shape, length, finite numbers, labels that name a class.
fn tensor(name: &str, wanted: &Made, rows: usize, shape: &[u32], elements: Elements) -> Result<Tensor, Refusal> {
    let wrong = |message: String| Refusal::new(ModuleErrorKind::WrongShape, message);
    let (dtype, length) = match &elements {
        Elements::Bytes(values) => (Dtype::U8, values.len()),
        Elements::Floats(values) => (Dtype::F32, values.len()),
        Elements::Integers(values) => (Dtype::I64, values.len()),
    };
    let dims: Vec<usize> = std::iter::once(rows).chain(wanted.shape.iter().copied()).collect();
    let same = shape.len() == dims.len() && shape.iter().zip(&dims).all(|(seen, wanted)| *seen as usize == *wanted);
    if dtype != wanted.dtype || !same {
        let shape = &shape[..shape.len().min(16)];
        return Err(wrong(format!(
            "input `{name}`: seen {} {shape:?}, wanted {} {dims:?}",
            dtype.name(),
            wanted.dtype.name()
        )));
    }
    let size = Shape::new(&dims).map_err(|error| wrong(format!("input `{name}`: {error}")))?;
    if length != size.elements() {
        let wanted = size.elements();
        return Err(wrong(format!(
            "input `{name}`: seen {length} elements for {dims:?}, wanted {wanted}"
        )));
    }
    let tensor = match elements {
        Elements::Floats(values) => Tensor::from_f32(&dims, values),
        Elements::Integers(values) => {
            let outside = |label: &&i64| {
                let class = usize::try_from(**label).ok();
                wanted
                    .classes
                    .is_some_and(|classes| class.is_none_or(|class| class >= classes))
            };
            if let (Some(label), Some(classes)) = (values.iter().find(outside), wanted.classes) {
                return Err(wrong(format!(
                    "input `{name}`: seen the label {label}, wanted 0 to {}",
                    classes.max(1) - 1
                )));
            }
            Tensor::from_i64(&dims, values)
        }
        Elements::Bytes(values) => Tensor::new(Dtype::U8, size, Bytes::from(values)),
    };
    let tensor = tensor.map_err(|error| wrong(format!("input `{name}`: {error}")))?;
    match tensor.first_not_finite() {
        None => Ok(tensor),
        Some(at) => {
            let message = format!("input `{name}` is not finite, first at element {at} of the batch");
            Err(Refusal::new(ModuleErrorKind::NotFinite, message))
        }
    }
}

/// A dataset whose rows go through a transform, on a thread of their own where that is wanted.
pub struct TransformedRows {
    /// Where the transform runs.
    pub sandbox: Sandbox,
    /// The rows as they were read.
    pub rows: Dataset,
    /// What they go through.
    pub transform: Arc<Transform>,
}

impl Rows for TransformedRows {
    fn rows(&self) -> u64 {
        self.rows.rows()
    }

    fn ahead_bytes(&self, order: BatchOrder) -> u64 {
        let rows = usize::try_from(self.rows.rows()).unwrap_or(usize::MAX).min(order.batch);
        let read = batch_bytes(&self.rows, order.batch);
        // Those that wait hold what passed by the transform as well; one more is being read.
        let waiting = read.saturating_add(self.transform.made_bytes(rows));
        waiting.saturating_mul(ahead_batches(order)).saturating_add(read)
    }

    fn batches(&self, pass: &PassOrder) -> Result<RowBatches, RowsError> {
        let read = PassOrder {
            ahead: false,
            ..pass.clone()
        };
        let read = Rows::batches(&self.rows, &read)?;
        let stop = Arc::<AtomicBool>::default();
        let (sandbox, transform) = (self.sandbox.clone(), Arc::clone(&self.transform));
        let (seed, end, stopped) = (pass.seed.clone(), pass.end, Arc::clone(&stop));
        // A batch has the same seed wherever the pass began.
        let batches = read.zip(pass.order.first as u64..).map(move |(drawn, at)| {
            let batch = drawn?.batch;
            let made = sandbox.transform_until(&transform, batch, seed.of_batch(at), end, &stopped);
            made.map_err(|error| RowsError::Transform(Box::new(error)))
        });
        if pass.ahead {
            ahead(batches, stop)
        } else {
            Ok(Box::new(batches))
        }
    }
}
