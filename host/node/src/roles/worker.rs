//! `cloister worker`: fetches what the policy names for it, trains on its own rows round by round.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::State;
use cloister_attestation::identity::Role;
use cloister_exchange::ExchangeError;
use cloister_exchange::progress::Progress;
use cloister_exchange::work::{Ledger, LocalUpdate, ModuleFailure, RoundInfo, RoundRecord, WorkError, WorkerWork};
use cloister_exchange::worker::{Backoff, WorkerOptions, fetch_all, run as take_part};
use cloister_policy::ModuleRole;
use cloister_policy::agreement::Module;
use cloister_rounds::Layout;
use cloister_runner::{Runner, RunnerError, TrainRequest};
use cloister_sandbox::SettingValue;
use cloister_session::{DialOptions, Proxy};
use cloister_tensor::TensorMap;
use tokio_util::sync::CancellationToken;

use super::aggregator::{call_round, update_kind};
use super::ending::{Ending, fence, give_lease_back};
use super::watch::Watch;
use crate::events::{Event, Teller};
use crate::keeper::models::SharedModels;
use crate::keeper::{Keeper, contents, runner as tools};
use crate::process::{ParentArgs, until_signal};
use crate::ui::{Exit, OutputArgs, Ui, fail, failed, refused, unreadable};

/// Run a worker: attest the aggregator and the other workers, train on this node's rows.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cloister worker --config worker.toml
  cloister worker --config worker.toml -o json   one JSON object a line: peers, rounds, the end")]
pub struct WorkerArgs {
    /// The node file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Give up after this many seconds without a session.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    give_up_s: u64,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    parent: ParentArgs,
}

/// Runs the command.
pub fn run(args: WorkerArgs, _out: &mut Ui) -> Result<Exit, miette::Report> {
    args.parent.tie().map_err(|error| fail(Exit::Failed, error))?;
    let teller = Teller::new(args.output.json());
    let keeper = Arc::new(Keeper::open(&args.config, Role::Worker)?);
    let mut runner = keeper.start_runner()?;
    teller.tell(&Event::started(&keeper, runner.backend()));
    let mut loaded = keeper.open_datasets(&mut runner)?;
    let module = tools::only_module(&keeper.policy, &keeper.config.name, ModuleRole::Trainer)?.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| failed(Exit::Failed, format!("the async runtime cannot start: {error}"), None))?;
    let cancel = CancellationToken::new();
    let dial = dial(&keeper)?;
    let backoff = Backoff {
        give_up: Duration::from_secs(args.give_up_s),
        ..Backoff::default()
    };
    let watch = Watch::new(teller, &keeper);
    let progress: Arc<dyn Progress> = Arc::new(watch.clone());
    runtime.spawn(until_signal(cancel.clone()));

    let wanted = contents::needed(&keeper.policy, &keeper.config.name);
    let (mut found, missing) = contents::at_hand(&keeper, &wanted)?;
    if !missing.is_empty() {
        let certificate = keeper.certificate(State::Bootstrap, &loaded)?;
        teller.tell(&Event::measured("bootstrap", &certificate));
        let limit = keeper.policy.limits.content_mib << 20;
        let local = keeper.local(&certificate);
        let fetched = match runtime.block_on(fetch_all(&local, &dial, &missing, limit, backoff, &progress, &cancel)) {
            Ok(fetched) => fetched,
            Err(ExchangeError::Cancelled) => return Ok(Exit::Done),
            Err(error) => return Err(refused_or_failed(error, &keeper, &watch)),
        };
        for item in missing {
            if let Some(bytes) = fetched.get(&item.digest) {
                contents::keep(&keeper.config.content.dir, &item.digest, bytes)?;
                found.insert(item, bytes.clone());
            }
        }
    }
    keeper.load(&mut runner, &found, &mut loaded)?;
    let initial = contents::initial_weights(&keeper.policy, &found)?;
    let initial_model = Layout::model_digest(&initial).map_err(|error| fail(Exit::Failed, error))?;
    drop((initial, found));
    let certificate = keeper.certificate(State::Member, &loaded)?;
    teller.tell(&Event::measured("member", &certificate));
    let model_limit_bytes = keeper.policy.limits.update_mib << 20;
    let models = SharedModels::default();
    let options = WorkerOptions {
        local: keeper.local(&certificate),
        dial,
        initial_model: Some(initial_model),
        model_limit_bytes,
        backoff,
        sink: Arc::new(models.sink(model_limit_bytes)),
        progress,
        cancel: cancel.clone(),
    };
    let ending = {
        let _runtime = runtime.enter();
        fence(&keeper, &cancel);
        Ending::watch(cancel, &runner)
    };
    let work = Work {
        settings: keeper.provisions.settings(&module)?,
        keeper: Arc::clone(&keeper),
        runner,
        ending,
        module,
        models,
        teller,
    };
    let end = runtime.block_on(take_part(options, Box::new(work)));
    give_lease_back(&keeper)?;
    let end = end.map_err(|error| refused_or_failed(error, &keeper, &watch))?;
    teller.tell(&Event::Ended {
        finished: end.finished,
        rounds: end.rounds,
    });
    Ok(Exit::Done)
}

fn dial(keeper: &Keeper) -> Result<DialOptions, miette::Report> {
    let address = keeper.config.aggregator.clone().ok_or_else(|| {
        failed(
            Exit::Usage,
            "a worker's node file wants `aggregator = \"HOST:PORT\"`",
            None,
        )
    })?;
    let proxy = keeper
        .config
        .proxy
        .as_deref()
        .map(str::parse::<Proxy>)
        .transpose()
        .map_err(unreadable)?;
    Ok(DialOptions {
        address,
        proxy,
        role: Some(Role::Aggregator),
    })
}

/// An exchange that ended, written down and told if attestation refused.
fn refused_or_failed(error: ExchangeError, keeper: &Keeper, watch: &Watch) -> miette::Report {
    watch.ended(&error);
    match Exit::of_exchange(&error) {
        Exit::Refused => {
            keeper.audit.refused(&error.to_string());
            refused(error, keeper.quotes.simulated())
        }
        exit => fail(exit, error),
    }
}

struct Work {
    keeper: Arc<Keeper>,
    settings: BTreeMap<String, SettingValue>,
    runner: Runner,
    ending: Ending,
    module: Module,
    models: SharedModels,
    teller: Teller,
}

impl Work {
    fn failure(&mut self, error: &RunnerError) -> ModuleFailure {
        if let Some(again) = self.ending.revive(&mut self.runner) {
            tracing::error!("the runner died and did not come back: {again}");
        }
        let code = code(error);
        // Module or dataset and code stand beside the reason, once. It may be the transform that failed.
        let (module, reason, event) = match error {
            RunnerError::Dataset { name, message } => {
                let (dataset, reason) = (name.clone(), message.clone());
                (None, error.to_string(), Event::DatasetFailed { dataset, reason })
            }
            other => {
                let (module, digest, reason) = match other {
                    RunnerError::Module(error) => (error.module.clone(), error.digest, error.message.clone()),
                    other => (self.module.name.clone(), self.module.sha256, other.to_string()),
                };
                let code = code.clone();
                let event = Event::ModuleFailed {
                    module,
                    code,
                    reason: reason.clone(),
                };
                (Some(digest), reason, event)
            }
        };
        // A runner that ended with the node is no failure of its module.
        if !self.ending.asked() {
            self.teller.tell(&event);
        }
        ModuleFailure {
            code,
            module,
            message: reason,
        }
    }
}

/// The word that peers get for a runner's error.
fn code(error: &RunnerError) -> String {
    match error {
        RunnerError::Module(error) => error.kind.code().to_owned(),
        RunnerError::Dataset { .. } => "dataset".into(),
        RunnerError::Died { .. } => "runner-died".into(),
        _ => "runner".into(),
    }
}

impl WorkerWork for Work {
    fn train(&mut self, round: &RoundInfo, model: TensorMap) -> Result<LocalUpdate, ModuleFailure> {
        let policy = Arc::clone(&self.keeper.policy);
        let name = &self.keeper.config.name;
        let own = |message: String| ModuleFailure {
            code: "host".into(),
            module: None,
            message,
        };
        let request = TrainRequest {
            module: self.module.name.clone(),
            settings: self.settings.clone(),
            grants: tools::grants(&self.module),
            graphs: policy
                .graphs_for(name)
                .into_iter()
                .map(|graph| graph.name.clone())
                .collect(),
            datasets: policy
                .datasets_for(name)
                .into_iter()
                .map(|dataset| dataset.name().to_owned())
                .collect(),
            transforms: tools::transforms(&policy, name),
            model: self.models.share(&model).map_err(|error| own(error.to_string()))?,
            round: call_round(round, name),
            update: update_kind(&policy),
            limits: tools::call_limits(&policy),
            timeout: tools::round_timeout(&policy),
        };
        let reply = self.runner.train(&request).map_err(|error| self.failure(&error))?;
        for line in &reply.log {
            tracing::info!("module {}: {line}", self.module.name);
        }
        let tensors = reply.tensors.to_map().map_err(|error| own(error.to_string()))?;
        Ok(LocalUpdate {
            tensors,
            rows: reply.rows,
            metrics: reply.metrics,
        })
    }

    fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::new(Receipts(Arc::clone(&self.keeper)))
    }
}

/// Writes receipts into the node's audit log.
struct Receipts(Arc<Keeper>);

impl Ledger for Receipts {
    fn round_done(&self, record: &RoundRecord) -> Result<(), WorkError> {
        tracing::debug!("receipt of round {}: {}", record.receipt.round, record.receipt.digest());
        let written = self.0.audit.round(record);
        written.map_err(|error| WorkError::new("writing the round down", error))
    }
}
