//! What the aggregator's rounds compute and keep: the module folds, the host evaluates, the vault seals.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;

use cloister_exchange::content::ContentKind;
use cloister_exchange::work::{Aggregate, AggregatorWork, RoundInfo, RoundRecord, UpdateStream, WorkError};
use cloister_graph::{EngineGraph, PortKind};
use cloister_manager::RoundNote;
use cloister_policy::agreement::Module;
use cloister_policy::{ModuleRole, Policy};
use cloister_runner::{AggregateRequest, EvaluateRequest, Runner, RunnerError, SharedSlots, WorkerUpdate};
use cloister_sandbox::{SettingValue, UpdateKind};
use cloister_tensor::{Digest, TensorMap};
use cloister_vault::Vault;
use tokio_util::sync::CancellationToken;

use crate::keeper::audit::Audit;
use crate::keeper::contents::Contents;
use crate::keeper::models::SharedModels;
use crate::keeper::{Keeper, runner as tools};
use crate::roles::checkpoint;
use crate::roles::ending::Ending;
use crate::ui::{Exit, fail, unreadable};

pub(super) fn evaluation_graph(contents: &Contents) -> Result<Option<EngineGraph>, miette::Report> {
    let graph = contents
        .iter()
        .find(|(item, _)| item.kind == ContentKind::Graph && item.name == "evaluate");
    graph
        .map(|(_, bytes)| EngineGraph::load(bytes).map_err(unreadable))
        .transpose()
}

fn statistics(evaluation: Option<&EngineGraph>) -> BTreeSet<String> {
    let ports = evaluation.map(EngineGraph::inputs).unwrap_or_default();
    ports
        .iter()
        .filter_map(|port| match &port.kind {
            PortKind::Statistic(name) => Some(name.clone()),
            _ => None,
        })
        .collect()
}

/// What the aggregator's rounds compute with and keep.
pub(super) struct Work {
    keeper: Arc<Keeper>,
    runner: Runner,
    ending: Ending,
    module: Module,
    settings: BTreeMap<String, SettingValue>,
    dataset: Option<String>,
    evaluation: Option<EngineGraph>,
    statistics: BTreeSet<String>,
    models: SharedModels,
    vault: Option<Vault>,
    /// What the module keeps from round to round, as of the last round that was kept.
    slots: SharedSlots,
    /// As of the aggregate that was made last; they count when it is kept.
    next_slots: SharedSlots,
}

impl Work {
    /// Everything that rounds need; `slots` are those of the checkpoint from which they go on.
    pub(super) fn new(
        keeper: &Arc<Keeper>,
        runner: Runner,
        models: &SharedModels,
        evaluation: Option<EngineGraph>,
        vault: Option<Vault>,
        slots: &TensorMap,
        cancel: CancellationToken,
    ) -> Result<Self, miette::Report> {
        let name = &keeper.config.name;
        let module = tools::only_module(&keeper.policy, name, ModuleRole::Aggregator)?.clone();
        let datasets = keeper.policy.datasets_for(name);
        Ok(Self {
            ending: Ending::watch(cancel, &runner),
            settings: keeper.provisions.settings(&module)?,
            dataset: datasets.first().map(|dataset| dataset.name().to_owned()),
            statistics: statistics(evaluation.as_ref()),
            slots: SharedSlots::copy_of(slots).map_err(|error| fail(Exit::Failed, error))?,
            next_slots: SharedSlots::default(),
            keeper: Arc::clone(keeper),
            models: models.clone(),
            evaluation,
            runner,
            module,
            vault,
        })
    }

    /// Brings a runner that died back, so that the next round finds one.
    fn revive(&mut self, error: &RunnerError) {
        if let Some(again) = self.ending.revive(&mut self.runner) {
            tracing::error!("the runner died ({error}) and did not come back: {again}");
        }
    }
}

impl AggregatorWork for Work {
    fn aggregate(
        &mut self,
        round: &RoundInfo,
        model: &TensorMap,
        updates: &mut UpdateStream,
    ) -> Result<Aggregate, WorkError> {
        let policy = &self.keeper.policy;
        let request = AggregateRequest {
            module: self.module.name.clone(),
            settings: self.settings.clone(),
            model: self
                .models
                .share(model)
                .map_err(|error| named("sharing the model", &self.module, error))?,
            statistics: self.statistics.clone(),
            round: call_round(round, &self.keeper.config.name),
            update: update_kind(policy),
            slots: self.slots.clone(),
            limits: tools::call_limits(policy),
            timeout: tools::round_timeout(policy),
        };
        let mut next = || match updates.next() {
            Ok(None) => Ok(None),
            Ok(Some(update)) => Ok(Some(WorkerUpdate {
                node: update.node,
                rows: update.rows,
                tensors: self.models.share(&update.tensors).map_err(|error| error.to_string())?,
            })),
            Err(given_up) => Err(given_up.to_string()),
        };
        let reply = self.runner.aggregate(&request, &mut next).map_err(|error| {
            self.revive(&error);
            module_failure("aggregating", &self.module, &error)
        })?;
        for line in &reply.log {
            tracing::info!("module {}: {line}", self.module.name);
        }
        self.models.know(reply.tensors.blob());
        let model = reply
            .tensors
            .to_map()
            .map_err(|error| named("reading the aggregate", &self.module, error))?;
        self.next_slots = reply.slots;
        let unreadable = |error: &dyn Display| named("reading the slots", &self.module, error);
        let slots = self.next_slots.to_map().map_err(|error| unreadable(&error))?;
        let state = checkpoint::state_digest(&slots).map_err(|error| unreadable(&error))?;
        Ok(Aggregate {
            model,
            metrics: reply.metrics,
            state,
        })
    }

    fn evaluate(&mut self, round: &RoundInfo, model: &TensorMap) -> Result<Vec<(String, f64)>, WorkError> {
        let policy = &self.keeper.policy;
        let Some(dataset) = self.dataset.as_ref().filter(|_| policy.rounds.evaluates(round.round)) else {
            return Ok(Vec::new());
        };
        let graphs = tools::graphs_named(policy, &self.keeper.config.name, "evaluate");
        if graphs.is_empty() {
            return Ok(Vec::new());
        }
        let request = EvaluateRequest {
            graphs,
            dataset: dataset.clone(),
            model: self
                .models
                .share(model)
                .map_err(|error| WorkError::new("sharing the model", error))?,
            transforms: tools::transforms(policy, &self.keeper.config.name),
            limits: tools::call_limits(policy),
            timeout: tools::round_timeout(policy),
        };
        let reply = self.runner.evaluate(&request).map_err(|error| {
            self.revive(&error);
            match &error {
                RunnerError::Module(_) => module_failure("evaluating", &self.module, &error),
                // The host's own graphs on the aggregate that this module made.
                other => named("evaluating the aggregate", &self.module, other),
            }
        })?;
        for line in &reply.log {
            tracing::info!("evaluation: {line}");
        }
        let accuracy = reply.accuracy().map(|accuracy| ("accuracy".to_owned(), accuracy));
        Ok([("loss".to_owned(), reply.loss)].into_iter().chain(accuracy).collect())
    }

    fn keep(&mut self, record: &RoundRecord, model: &TensorMap) -> Result<(), WorkError> {
        self.slots = std::mem::take(&mut self.next_slots);
        let written = |audit: &Audit| {
            let written = audit.round(record);
            written.map_err(|error| WorkError::new("writing the round down", error))
        };
        let rounds = &self.keeper.policy.rounds;
        let round = record.receipt.round;
        let Some(vault) = self.vault.as_mut().filter(|_| rounds.seals(round)) else {
            return written(&self.keeper.audit);
        };
        let onnx = match &self.evaluation {
            Some(evaluation) if round == u64::from(rounds.count) => Some(
                cloister_graph::export_forward(evaluation, model)
                    .map_err(|error| WorkError::new("writing the model as ONNX", error))?,
            ),
            _ => None,
        };
        let slots = self
            .slots
            .to_map()
            .map_err(|error| named("reading the slots", &self.module, error))?;
        if let Some(link) = &self.keeper.link {
            link.note_round(RoundNote {
                round,
                model: record.receipt.model_after,
                receipt: record.receipt.digest(),
            });
        }
        checkpoint::keep(vault, record, model, &slots, onnx.as_deref())?;
        // While the counter is on its way; nothing of the round is told before it is confirmed.
        written(&self.keeper.audit)?;
        vault
            .settle()
            .map_err(|error| WorkError::new("confirming the round", error))
    }
}

/// A failure beside a module, which the words name with its whole digest: what a person compares with the policy.
fn named(what: &str, module: &Module, cause: impl Display) -> WorkError {
    WorkError::new(format!("{what} (module {}, {})", module.name, module.sha256), cause)
}

/// A failure of the runner while `module` ran in it: a module's own error names which one it was (it may be a transform), and every
/// other way to fail falls to the module that ran.
fn module_failure(what: &str, module: &Module, error: &RunnerError) -> WorkError {
    match error {
        RunnerError::Module(own) => WorkError::new(
            format!("{what} (module {}, {})", own.module, own.digest),
            format!("{}: {}", own.kind, own.message),
        ),
        other => named(what, module, other),
    }
}

/// What workers send in the policy's mode.
pub(in crate::roles) fn update_kind(policy: &Policy) -> UpdateKind {
    match policy.rounds.mode.by_steps() {
        true => UpdateKind::Gradient,
        false => UpdateKind::Model,
    }
}

/// A call's round: the seed differs by node, and is the same again when the round is run again.
pub(in crate::roles) fn call_round(round: &RoundInfo, node: &str) -> cloister_sandbox::RoundInfo {
    let mut seed = round.seed.to_be_bytes().to_vec();
    seed.extend_from_slice(node.as_bytes());
    let digest = Digest::of(&seed);
    let bytes = digest.as_bytes();
    cloister_sandbox::RoundInfo {
        index: u32::try_from(round.round).unwrap_or(u32::MAX),
        count: u32::try_from(round.rounds).unwrap_or(u32::MAX),
        seed: u64::from_be_bytes([
            bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
        ]),
        step: round.step,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_sandbox::{ModuleError, ModuleErrorKind};

    #[test]
    fn whatever_ends_an_aggregation_names_the_module_with_its_whole_digest() {
        let template = include_str!("../../../../../policies/simulation.toml");
        let policy = Policy::parse(template.as_bytes(), "policies/simulation.toml").unwrap();
        let module = policy
            .modules
            .iter()
            .find(|module| module.role == ModuleRole::Aggregator);
        let module = module.unwrap();
        let trap = ModuleError::new("another", Digest::of(b"another"), ModuleErrorKind::Trap, "unreachable");
        let dead = RunnerError::Died {
            during: "an aggregation",
            how: cloister_runner::Death::Signal(9),
            stderr: String::new(),
        };
        for error in [
            dead,
            RunnerError::NotRunning,
            RunnerError::Request("no such module".into()),
            RunnerError::Updates("the round was given up".into()),
        ] {
            let said = module_failure("aggregating", module, &error).to_string();
            let wanted = format!("aggregating (module {}, {}): {error}", module.name, module.sha256);
            assert_eq!(said, wanted);
        }
        let said = module_failure("aggregating", module, &RunnerError::Module(trap)).to_string();
        let wanted = format!(
            "aggregating (module another, {}): trap: unreachable",
            Digest::of(b"another")
        );
        assert_eq!(said, wanted);
    }
}
