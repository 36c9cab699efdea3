//! The sandbox: loads modules and calls them.

use std::sync::Arc;

use cloister_tensor::Digest;
use wasmtime::component::{Component, HasSelf, Linker};
use wasmtime::{Config, Engine, Store, UpdateDeadline};

use crate::accept::{self, Wanted};
use crate::bindings::aggregator::{Aggregator, AggregatorPre};
use crate::bindings::trainer::{Trainer, TrainerPre};
use crate::bindings::transform::{Transform, TransformPre};
use crate::call::{AggregateCall, AggregateOutcome, TrainCall, TrainOutcome, WorkerUpdate};
use crate::error::{ModuleError, ModuleErrorKind, Refusal, TrainError};
use crate::flat::{Aggregating, UpdateLine};
use crate::guest::{Guest, wit_round};
use crate::inspect::{World, examine};
use crate::module::{End, Loaded, Module, Program, cut};
use crate::ticker::Ticker;
use crate::training::Training;
use crate::transform::Transforming;
use crate::{CallLimits, SandboxLimits, TensorAccess};

/// Bytes that a guest passes to the host in one call at most, whatever its grants.
const MAX_PASSED_BYTES: usize = 64 << 20;

/// Runs modules. Calls may come from several threads. Cheap to clone.
#[derive(Clone)]
pub struct Sandbox {
    engine: Engine,
    pub(crate) ticker: Arc<Ticker>,
    limits: SandboxLimits,
}

/// A sandbox that cannot be set up on this machine.
#[derive(Debug, thiserror::Error)]
#[error("the sandbox cannot be set up: {0}")]
pub struct SetUpError(String);

impl Sandbox {
    /// Sets up the engine and its ticker.
    ///
    /// # Errors
    /// The machine cannot run compiled code, or no thread can be started.
    pub fn new(limits: SandboxLimits) -> Result<Self, SetUpError> {
        let mut config = Config::new();
        config
            .wasm_component_model(true)
            .epoch_interruption(true)
            // The same bits on every machine.
            .cranelift_nan_canonicalization(true)
            .relaxed_simd_deterministic(true)
            .wasm_relaxed_simd(false)
            .wasm_memory64(false)
            .max_wasm_stack(limits.stack_bytes);
        let engine = Engine::new(&config).map_err(|error| SetUpError(error.to_string()))?;
        let ticker = Ticker::start(engine.clone(), limits.tick).map_err(|error| SetUpError(error.to_string()))?;
        Ok(Self {
            engine,
            ticker: Arc::new(ticker),
            limits,
        })
    }

    /// Checks, compiles and links a component. `name` is its name in the policy; whether the policy names this digest is the
    /// caller's to check.
    ///
    /// # Errors
    /// The file is too large or no component, speaks another world or version, imports what no world offers, or does not compile.
    pub fn load(&self, name: &str, file: &[u8]) -> Result<Module, ModuleError> {
        let digest = Digest::of(file);
        let error = |kind, message: String| ModuleError::new(name, digest, kind, message);
        if file.len() > self.limits.component_bytes {
            let message = format!(
                "the file has {} bytes, wanted at most {}",
                file.len(),
                self.limits.component_bytes
            );
            return Err(error(ModuleErrorKind::Invalid, message));
        }
        let (inspection, world) = examine(file).map_err(|refusal| error(refusal.kind, refusal.message))?;
        let world = world.map_err(|refusal| error(refusal.kind, refusal.message))?;
        let component = Component::new(&self.engine, file).map_err(|cause| {
            error(
                ModuleErrorKind::Invalid,
                format!("the component does not compile: {cause:#}"),
            )
        })?;
        let program = self.link(world, &component).map_err(|cause| {
            error(
                ModuleErrorKind::World,
                format!("the component does not fit the world `{world}`: {cause:#}"),
            )
        })?;
        let inner = Loaded {
            name: name.to_owned(),
            digest,
            settings: inspection.settings,
            program,
        };
        Ok(Module { inner: Arc::new(inner) })
    }

    fn link(&self, world: World, component: &Component) -> wasmtime::Result<Program> {
        Ok(match world {
            World::Trainer => {
                let mut linker = Linker::<Guest<Training>>::new(&self.engine);
                Trainer::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
                Program::Trainer(TrainerPre::new(linker.instantiate_pre(component)?)?)
            }
            World::Aggregator => {
                let mut linker = Linker::<Guest<Aggregating>>::new(&self.engine);
                Aggregator::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
                Program::Aggregator(AggregatorPre::new(linker.instantiate_pre(component)?)?)
            }
            World::Transform => {
                let mut linker = Linker::<Guest<Transforming>>::new(&self.engine);
                Transform::add_to_linker::<_, HasSelf<_>>(&mut linker, |guest| guest)?;
                Program::Transform(TransformPre::new(linker.instantiate_pre(component)?)?)
            }
        })
    }

    pub(crate) fn store<W: Send + 'static>(&self, guest: Guest<W>, passed_bytes: usize) -> Store<Guest<W>> {
        let mut store = Store::new(&self.engine, guest);
        store.limiter(|guest| guest);
        store.set_hostcall_fuel(passed_bytes);
        store.epoch_deadline_callback(|context| {
            context.data().deadline.left()?;
            Ok(UpdateDeadline::Continue(1))
        });
        store.set_epoch_deadline(1);
        store
    }

    /// Calls a trainer and checks its update.
    ///
    /// # Errors
    /// The module trapped, overstepped a limit or a grant, gave up, or gave an update that is not acceptable; or rows could not be
    /// had.
    pub fn train(&self, call: TrainCall) -> Result<TrainOutcome, TrainError> {
        let module = call.module;
        let Program::Trainer(program) = &module.inner.program else {
            let message = format!("a module of the world `{}` is asked to train", module.world());
            return Err(module.error(ModuleErrorKind::World, message).into());
        };
        let settings = module.resolve_settings(&call.settings)?;
        let access = call.grants.tensor_access;
        let training = Training::new(call.grants, call.graphs, call.datasets, (call.round.seed, call.update));
        let passed_bytes = passed_bytes(access, &call.limits);
        let mut guest = Guest::new(call.limits, settings, training);
        guest
            .hold_model(&call.model)
            .map_err(|refusal| module.refused(refusal))?;
        let mut store = self.store(guest, passed_bytes);
        let given = {
            let _running = self.ticker.run();
            train_in(&mut store, program, call.round)
        };
        let guest = store.into_data();
        let given = given.map_err(|end| match end {
            End::Other(error) => *error,
            end => module.ended(end, &guest.log, guest.answered.as_ref()).into(),
        })?;
        let rows = guest.world.fed.iter().map(|(dataset, &fed)| {
            let there = guest.world.datasets.get(&**dataset).map_or(0, |rows| rows.rows());
            fed.min(there)
        });
        let wanted = Wanted {
            model: &call.model,
            statistics: &guest.world.statistics,
            trained: &guest.world.trained(),
            update: call.update,
            access,
            rows: rows.sum(),
        };
        let tensors =
            accept::update(given, &wanted).map_err(|refusal| module.ended(refusal.into(), &guest.log, None))?;
        let metrics = guest.metrics.into_iter().collect();
        Ok(TrainOutcome {
            tensors,
            rows: wanted.rows,
            metrics,
            log: guest.log,
        })
    }

    /// Calls an aggregator, which pulls `updates` until they give nothing more.
    ///
    /// `updates` is called on the calling thread, and only as fast as the module asks; its error, in words, ends the call.
    ///
    /// # Errors
    /// As [`Sandbox::train`].
    pub fn aggregate(
        &self,
        call: AggregateCall,
        updates: &mut dyn FnMut() -> Result<Option<WorkerUpdate>, String>,
    ) -> Result<AggregateOutcome, ModuleError> {
        let module = call.module;
        let Program::Aggregator(program) = &module.inner.program else {
            let message = format!("a module of the world `{}` is asked to aggregate", module.world());
            return Err(module.error(ModuleErrorKind::World, message));
        };
        let settings = module.resolve_settings(&call.settings)?;
        let (ask, asked) = std::sync::mpsc::sync_channel(0);
        let (reply, answer) = std::sync::mpsc::sync_channel(0);
        let line = UpdateLine { ask, answer };
        let aggregating = Aggregating::new(&call.model, call.statistics, call.update, call.slots, line)
            .map_err(|refusal| module.refused(refusal))?;
        let mut guest = Guest::new(call.limits, settings, aggregating);
        guest.hold_model().map_err(|refusal| module.refused(refusal))?;
        let mut store = self.store(guest, MAX_PASSED_BYTES + (1 << 20));
        // The guest runs on a thread of its own, so that `updates` may borrow from this one.
        let ended = std::thread::scope(|scope| {
            let guest = std::thread::Builder::new()
                .name("aggregator".to_owned())
                .spawn_scoped(scope, move || {
                    let _running = self.ticker.run();
                    let ended = aggregate_in(&mut store, program, call.round);
                    let mut guest = store.into_data();
                    guest.world.close();
                    (ended, guest)
                });
            while let Ok(()) = asked.recv() {
                if reply.send(updates()).is_err() {
                    break;
                }
            }
            guest.map(std::thread::ScopedJoinHandle::join)
        });
        let (ended, guest) = match ended {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => return Err(module.error(ModuleErrorKind::Host, "the thread of the call panicked")),
            Err(error) => return Err(module.error(ModuleErrorKind::Host, format!("no thread for the call: {error}"))),
        };
        ended.map_err(|end| module.ended(end, &guest.log, guest.answered.as_ref()))?;
        let (log, metrics) = (guest.log, guest.metrics.into_iter().collect());
        if !guest.world.any_written() {
            let refusal = Refusal::new(ModuleErrorKind::NoUpdate, "the module wrote nothing of the next model");
            return Err(module.ended(refusal.into(), &log, None));
        }
        let (tensors, slots) = guest
            .world
            .into_result()
            .map_err(|refusal| module.ended(refusal.into(), &log, None))?;
        Ok(AggregateOutcome {
            tensors,
            slots,
            metrics,
            log,
        })
    }
}

/// Bytes that a trainer passes to the host in one call at most: names and handles, and tensors where it may make them.
fn passed_bytes(access: TensorAccess, limits: &CallLimits) -> usize {
    const HANDLES_BYTES: usize = 8 << 20;
    if access.write {
        let budget = usize::try_from(limits.tensor_memory_bytes).unwrap_or(usize::MAX);
        HANDLES_BYTES.saturating_add(budget.min(limits.guest_memory_bytes))
    } else {
        HANDLES_BYTES
    }
}

fn train_in(
    store: &mut Store<Guest<Training>>,
    program: &TrainerPre<Guest<Training>>,
    round: crate::RoundInfo,
) -> Result<Vec<(String, crate::label::GuestTensor)>, End> {
    let trainer = program.instantiate(&mut *store)?;
    let given = trainer
        .cloister_federation_training()
        .call_train(&mut *store, wit_round(round))?;
    let given = given.map_err(|failure| End::GaveUp(cut(failure)))?;
    let mut tensors = Vec::with_capacity(given.len());
    for (name, handle) in given {
        let tensor = store.data_mut().table.delete(handle).map_err(wasmtime::Error::from)?;
        tensors.push((name, tensor));
    }
    Ok(tensors)
}

fn aggregate_in(
    store: &mut Store<Guest<Aggregating>>,
    program: &AggregatorPre<Guest<Aggregating>>,
    round: crate::RoundInfo,
) -> Result<(), End> {
    let aggregator = program.instantiate(&mut *store)?;
    let ended = aggregator
        .cloister_federation_aggregation()
        .call_aggregate(&mut *store, wit_round(round))?;
    ended.map_err(|failure| End::GaveUp(cut(failure)))
}
