//! A loaded module, and how its calls end.

use std::collections::BTreeMap;
use std::sync::Arc;

use cloister_tensor::Digest;
use wasmtime::Trap;

use crate::bindings::aggregator::AggregatorPre;
use crate::bindings::trainer::TrainerPre;
use crate::bindings::trainer::cloister::federation::types::{Failure, FailureKind};
use crate::bindings::transform::TransformPre;
use crate::error::{ModuleError, ModuleErrorKind, Refusal, TrainError, bounded};
use crate::flat::Aggregating;
use crate::guest::Guest;
use crate::inspect::World;
use crate::settings::{self, SettingDeclaration, SettingValue};
use crate::training::Training;
use crate::transform::Transforming;

/// Lines of a guest's log that go with its error.
const LAST_LINES: usize = 8;

/// A loaded module; cheap to clone.
#[derive(Clone)]
pub struct Module {
    pub(crate) inner: Arc<Loaded>,
}

pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) settings: BTreeMap<String, SettingDeclaration>,
    pub(crate) program: Program,
}

pub(crate) enum Program {
    Trainer(TrainerPre<Guest<Training>>),
    Aggregator(AggregatorPre<Guest<Aggregating>>),
    Transform(TransformPre<Guest<Transforming>>),
}

impl Module {
    /// Its name in the policy.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// SHA-256 of its file.
    pub fn digest(&self) -> Digest {
        self.inner.digest
    }

    /// Its world.
    pub fn world(&self) -> World {
        match self.inner.program {
            Program::Trainer(_) => World::Trainer,
            Program::Aggregator(_) => World::Aggregator,
            Program::Transform(_) => World::Transform,
        }
    }

    /// The settings that it declares.
    pub fn settings(&self) -> &BTreeMap<String, SettingDeclaration> {
        &self.inner.settings
    }

    /// Checks settings against the declaration and fills in the defaults. To be called before round 1; every call does it again.
    ///
    /// # Errors
    /// A setting is unknown, ill-typed or missing.
    pub fn resolve_settings(
        &self,
        given: &BTreeMap<String, SettingValue>,
    ) -> Result<BTreeMap<String, SettingValue>, ModuleError> {
        settings::resolve(&self.inner.settings, given).map_err(|error| self.error(ModuleErrorKind::Setting, error))
    }

    pub(crate) fn error(&self, kind: ModuleErrorKind, message: impl std::fmt::Display) -> ModuleError {
        ModuleError::new(&self.inner.name, self.inner.digest, kind, message)
    }

    pub(crate) fn refused(&self, refusal: Refusal) -> ModuleError {
        self.error(refusal.kind, refusal.message)
    }

    /// Why a call ended, with the guest's last words.
    pub(crate) fn ended(&self, end: End, log: &[String], answered: Option<&Refusal>) -> ModuleError {
        let (kind, message) = match (end, answered) {
            (End::Other(error), _) => match *error {
                TrainError::Module(error) => return error,
                error @ TrainError::Dataset { .. } => (ModuleErrorKind::Host, error.to_string()),
            },
            (End::Refused(refusal), _) => (refusal.kind, refusal.message),
            (End::Trapped(message), Some(answered)) => (
                answered.kind,
                format!("{}; then the module trapped: {message}", answered.message),
            ),
            (End::Trapped(message), None) => (ModuleErrorKind::Trap, message),
            (End::GaveUp(failure), answered) => {
                let own = failure_kind(failure.kind);
                let kind = answered.map_or(own, |answered| answered.kind);
                match answered.filter(|answered| !failure.message.contains(&answered.message)) {
                    Some(answered) => (
                        kind,
                        format!("{}; the module says: {}", answered.message, failure.message),
                    ),
                    None => (kind, failure.message),
                }
            }
        };
        let mut error = self.error(kind, message);
        error.log = log[log.len().saturating_sub(LAST_LINES)..].to_vec();
        error
    }
}

/// How a call ended without a result.
pub(crate) enum End {
    /// What the call stood on failed: a transform, or the rows themselves.
    Other(Box<TrainError>),
    Refused(Refusal),
    Trapped(String),
    GaveUp(Failure),
}

fn failure_kind(kind: FailureKind) -> ModuleErrorKind {
    match kind {
        FailureKind::Setting => ModuleErrorKind::Setting,
        FailureKind::Dataset => ModuleErrorKind::Dataset,
        FailureKind::Graph => ModuleErrorKind::Engine,
        FailureKind::Model | FailureKind::Other => ModuleErrorKind::Failed,
    }
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<wasmtime::Error> for End {
    fn from(error: wasmtime::Error) -> Self {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return Self::Refused(refusal.clone());
        }
        if let Some(error) = error.downcast_ref::<TrainError>() {
            return Self::Other(Box::new(error.clone()));
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::StackOverflow) => Self::Refused(Refusal::new(
                ModuleErrorKind::Stack,
                "the module's call stack is full: it recurses too deep",
            )),
            Some(trap) => Self::Trapped(trap.to_string()),
            None => Self::Trapped(error.root_cause().to_string()),
        }
    }
}

/// A failure with its message cut to size.
pub(crate) fn cut(failure: Failure) -> Failure {
    Failure {
        kind: failure.kind,
        message: bounded(&failure.message, crate::error::MAX_MESSAGE_BYTES),
    }
}
