//! What the host keeps for a running guest, whatever its world: settings, log, metrics, limits.

use std::collections::BTreeMap;

use wasmtime::component::ResourceTable;
use wasmtime::{ResourceLimiter, Result};

use crate::bindings::trainer::cloister::federation::{log, metrics, settings, types};
use crate::budget::Budget;
use crate::error::{ModuleErrorKind, Refusal, bounded};
use crate::ticker::Deadline;
use crate::{CallLimits, RoundInfo, SettingValue, UpdateKind};

/// Bytes of a log line at most.
const MAX_LINE_BYTES: usize = 1024;
/// What a log line costs beside its text, so that empty lines are not free.
const LINE_COST_BYTES: usize = 16;
/// Metrics of a call at most.
const MAX_METRICS: usize = 32;
/// Bytes of a name at most that a guest gives to what it reports or keeps.
const MAX_GUEST_NAME_BYTES: usize = 64;

/// A guest's side in the host; `W` is what its world adds.
pub(crate) struct Guest<W> {
    pub(crate) table: ResourceTable,
    pub(crate) budget: Budget,
    pub(crate) deadline: Deadline,
    pub(crate) limits: CallLimits,
    pub(crate) settings: BTreeMap<String, SettingValue>,
    pub(crate) log: Vec<String>,
    pub(crate) metrics: BTreeMap<String, f64>,
    /// The last error that the host answered with: if the guest then gives up, this is why.
    pub(crate) answered: Option<Refusal>,
    pub(crate) world: W,
    log_bytes: usize,
    memory_bytes: usize,
}

impl<W> Guest<W> {
    pub(crate) fn new(limits: CallLimits, settings: BTreeMap<String, SettingValue>, world: W) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(limits.handles);
        Self {
            table,
            budget: Budget::new(limits.tensor_memory_bytes),
            deadline: Deadline::after(limits.call),
            limits,
            settings,
            log: Vec::new(),
            metrics: BTreeMap::new(),
            answered: None,
            world,
            log_bytes: 0,
            memory_bytes: 0,
        }
    }

    /// Remembers an error that goes back to the guest as an answer.
    pub(crate) fn answer(&mut self, kind: ModuleErrorKind, message: impl Into<String>) -> String {
        let message = bounded(&message.into(), MAX_LINE_BYTES);
        self.answered = Some(Refusal::new(kind, message.clone()));
        message
    }

    /// Adds a line to the call's log.
    pub(crate) fn write_down(&mut self, line: String) -> Result<(), Refusal> {
        self.log_bytes += line.len() + LINE_COST_BYTES;
        if self.log_bytes > self.limits.log_bytes {
            let limit = self.limits.log_bytes;
            let message = format!("the module, or a transform, logged more than {limit} bytes in one call");
            return Err(Refusal::new(ModuleErrorKind::Log, message));
        }
        self.log.push(line);
        Ok(())
    }

    /// Puts something into the handle table.
    pub(crate) fn push<T: Send + 'static>(&mut self, entry: T) -> Result<wasmtime::component::Resource<T>> {
        self.table.push(entry).map_err(|_full| {
            let message = format!("the module holds more than {} handles", self.limits.handles);
            Refusal::new(ModuleErrorKind::Memory, message).into()
        })
    }
}

/// Refuses a name of another alphabet or length than guests give.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/".contains(&byte);
    if !name.is_empty() && name.len() <= MAX_GUEST_NAME_BYTES && name.bytes().all(allowed) {
        return Ok(());
    }
    let seen = bounded(name, MAX_GUEST_NAME_BYTES);
    let message =
        format!("{what} `{seen}`: wanted a name of 1 to {MAX_GUEST_NAME_BYTES} characters out of a-z 0-9 . _ - /");
    Err(Refusal::new(ModuleErrorKind::Argument, message))
}

/// The round as the worlds write it.
pub(crate) fn wit_round(round: RoundInfo) -> types::Round {
    types::Round {
        index: round.index,
        count: round.count,
        seed: round.seed,
        step: round.step,
    }
}

/// What updates hold, as the worlds write it.
pub(crate) fn wit_update(kind: UpdateKind) -> types::UpdateKind {
    match kind {
        UpdateKind::Model => types::UpdateKind::Models,
        UpdateKind::Gradient => types::UpdateKind::Gradients,
    }
}

impl<W: Send> types::Host for Guest<W> {}

impl<W: Send> settings::Host for Guest<W> {
    fn get(&mut self, name: String) -> Result<Option<settings::Value>> {
        Ok(self.settings.get(&name).map(|value| match value {
            SettingValue::Boolean(value) => settings::Value::Boolean(*value),
            SettingValue::Integer(value) => settings::Value::Integer(*value),
            SettingValue::Number(value) => settings::Value::Number(*value),
            SettingValue::Text(value) => settings::Value::Text(value.clone()),
            // The guest's memory is its own from here on.
            SettingValue::Secret(value) => settings::Value::Text(value.expose().to_owned()),
        }))
    }
}

impl<W: Send> log::Host for Guest<W> {
    fn write(&mut self, level: log::Level, message: String) -> Result<()> {
        let level = match level {
            log::Level::Debug => "debug",
            log::Level::Info => "info",
            log::Level::Warn => "warn",
            log::Level::Error => "error",
        };
        let line = format!("{level}: {}", bounded(&message, MAX_LINE_BYTES));
        Ok(self.write_down(line)?)
    }
}

impl<W: Send> metrics::Host for Guest<W> {
    fn report(&mut self, name: String, value: f64) -> Result<()> {
        check_name("metric", &name)?;
        if !value.is_finite() {
            let message = format!("metric `{name}`: seen {value}, wanted a finite number");
            return Err(Refusal::new(ModuleErrorKind::NotFinite, message).into());
        }
        if self.metrics.len() == MAX_METRICS && !self.metrics.contains_key(&name) {
            let message = format!("metric `{name}`: a call reports at most {MAX_METRICS}");
            return Err(Refusal::new(ModuleErrorKind::Argument, message).into());
        }
        self.metrics.insert(name, value);
        Ok(())
    }
}

impl<W: Send> ResourceLimiter for Guest<W> {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        let memory_bytes = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if memory_bytes > self.limits.guest_memory_bytes {
            let message = format!(
                "the module's memory would grow to {memory_bytes} bytes, wanted at most {}; raise `guest_memory_mib` in the \
                 policy if it needs more",
                self.limits.guest_memory_bytes
            );
            return Err(Refusal::new(ModuleErrorKind::Memory, message).into());
        }
        self.memory_bytes = memory_bytes;
        Ok(true)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        // A table's element takes a pointer or two of the host's memory; real guests have some hundred.
        const MAX_TABLE_ELEMENTS: usize = 100_000;
        if desired > MAX_TABLE_ELEMENTS {
            let message = format!("a table of {desired} elements, wanted at most {MAX_TABLE_ELEMENTS}");
            return Err(Refusal::new(ModuleErrorKind::Memory, message).into());
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.limits.instances
    }

    fn tables(&self) -> usize {
        self.limits.instances
    }

    fn memories(&self) -> usize {
        self.limits.instances
    }
}
