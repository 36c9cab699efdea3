//! `cloister aggregator`: collects what the participants submit, then runs the rounds, evaluates, and seals the model.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::State;
use cloister_attestation::identity::Role;
use cloister_exchange::aggregator::{AggregatorOptions, StartingPoint, prepare};
use cloister_exchange::content::{ContentKind, ContentStore};
use cloister_exchange::service::{FederationService, serve};
use cloister_exchange::work::{Aggregate, AggregatorWork, RoundInfo, RoundRecord, UpdateStream, WorkError};
use cloister_graph::EngineGraph;
use cloister_graph::PortKind;
use cloister_policy::ModuleRole;
use cloister_policy::agreement::Module;
use cloister_rounds::Receipt;
use cloister_runner::{AggregateRequest, EvaluateRequest, Runner, RunnerError, SharedSlots, WorkerUpdate};
use cloister_sandbox::{SettingValue, UpdateKind};
use cloister_session::{ListenLimits, Listener};
use cloister_tensor::{Digest, TensorMap};
use cloister_vault::Vault;
use tokio_util::sync::CancellationToken;

use super::checkpoint::{self, Found};
use super::ending::{Ending, fence, give_lease_back};
use super::watch::Watch;
use crate::events::{Event, Teller};
use crate::keeper::audit::Audit;
use crate::keeper::contents::{self, Contents};
use crate::keeper::measured::Loaded;
use crate::keeper::models::SharedModels;
use crate::keeper::{Keeper, runner as tools};
use crate::process::{ParentArgs, until_signal};
use crate::ui::{Exit, OutputArgs, Ui, fail, failed, root_in_words, unreadable};

/// How often the store is looked at while content is missing.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long members may take to leave once the last round is done.
const FAREWELL: Duration = Duration::from_secs(10);

/// Run an aggregator: collect modules and graphs, run the rounds of the policy, seal the model.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cloister aggregator --config aggregator.toml
  cloister aggregator --config aggregator.toml -o json   one JSON object a line: listening, peers, rounds, the end

Started again on a vault with rounds of the same policy, it goes on behind the last one that was sealed; where all are done, it
says so and ends with 0.")]
pub struct AggregatorArgs {
    /// The node file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    parent: ParentArgs,
}

/// Runs the command.
pub fn run(args: AggregatorArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    args.parent.tie().map_err(|error| fail(Exit::Failed, error))?;
    let teller = Teller::new(args.output.json());
    let keeper = Keeper::open(&args.config, Role::Aggregator)?;
    let kept = match checkpoint::open(&keeper)? {
        Found::Finished(last) => {
            tell_end(&teller, &last);
            say_finished(&keeper, &last, out);
            return Ok(Exit::Done);
        }
        Found::Ready(vault, last) => Some((*vault, last)),
        Found::NoVault => None,
    };
    let mut runner = keeper.start_runner()?;
    teller.tell(&Event::started(&keeper, runner.backend()));
    let loaded = keeper.open_datasets(&mut runner)?;
    let bootstrap = keeper.certificate(State::Bootstrap, &loaded)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| failed(Exit::Failed, format!("the async runtime cannot start: {error}"), None))?;
    let keeper = Arc::new(keeper);
    let end = runtime.block_on(async {
        let cancel = CancellationToken::new();
        tokio::spawn(until_signal(cancel.clone()));
        fence(&keeper, &cancel);
        let address = collect(&keeper, &bootstrap, teller, &cancel).await?;
        if cancel.is_cancelled() {
            return Ok(Exit::Done);
        }
        federate(Arc::clone(&keeper), address, (runner, loaded), kept, teller, cancel).await
    });
    give_lease_back(&keeper)?;
    end
}

/// Serves the content store with a bootstrap certificate until everything that the policy names is there.
async fn collect(
    keeper: &Keeper,
    certificate: &Arc<cloister_attestation::RaTlsIdentity>,
    teller: Teller,
    cancel: &CancellationToken,
) -> Result<SocketAddr, miette::Report> {
    let address = keeper
        .config
        .listen
        .ok_or_else(|| failed(Exit::Usage, "an aggregator's node file wants `listen`", None))?;
    let store = open_store(keeper).await?;
    let named = contents::collected(keeper);
    if contents::at_hand(keeper, &named)?.1.is_empty() {
        return Ok(address);
    }
    let listener = listen(keeper, address, certificate).await?;
    // With port 0 the system chose one; the members that were told of it must find the aggregator there again.
    let address = listener.address();
    teller.tell(&Event::measured("bootstrap", certificate));
    teller.tell(&Event::Listening {
        address: address.to_string(),
    });
    let done = CancellationToken::new();
    let service = FederationService {
        policy: Arc::clone(&keeper.policy),
        clock: keeper.clock(),
        store: store.clone(),
        aggregator: None,
    };
    let serving = tokio::spawn(serve(listener, service, done.clone().cancelled_owned()));
    let mut said = String::new();
    loop {
        let mut still = Vec::new();
        for item in &named {
            let there = store.stored(&item.digest).await;
            if there.is_none() {
                still.push(item.clone());
            }
        }
        if still.is_empty() || cancel.is_cancelled() {
            break;
        }
        let words = format!("submission of {}", contents::in_words(&still));
        if words != said {
            teller.tell(&Event::Waiting { what: words.clone() });
            said = words;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = cancel.cancelled() => {}
        }
    }
    done.cancel();
    // Connections that are still open are cut when the server is dropped: members come back to the new certificate.
    let _ = tokio::time::timeout(Duration::from_secs(2), serving).await;
    Ok(address)
}

async fn open_store(keeper: &Keeper) -> Result<ContentStore, miette::Report> {
    let limit = keeper.policy.limits.content_mib << 20;
    ContentStore::open(keeper.config.content.dir.clone(), contents::collected(keeper), limit)
        .await
        .map_err(|error| fail(Exit::Failed, error))
}

async fn listen(
    keeper: &Keeper,
    address: SocketAddr,
    certificate: &Arc<cloister_attestation::RaTlsIdentity>,
) -> Result<Listener, miette::Report> {
    let root = root_in_words(keeper.quotes.simulated());
    let audit = keeper.audit.clone();
    let refused: cloister_session::OnRefused = Arc::new(move |error| match error.refusal() {
        Some(_) => {
            tracing::warn!("not let in{root}: {error}");
            audit.refused(&error.to_string());
        }
        None => tracing::warn!("not let in: {error}"),
    });
    Listener::bind(
        keeper.local(certificate),
        &address.to_string(),
        ListenLimits::default(),
        refused,
    )
    .await
    .map_err(|error| fail(Exit::Failed, error))
}

/// As a member: all content is there, loaded and measured; runs the rounds.
async fn federate(
    keeper: Arc<Keeper>,
    address: SocketAddr,
    (mut runner, mut loaded): (Runner, Loaded),
    kept: Option<(Vault, Option<Box<Receipt>>)>,
    teller: Teller,
    cancel: CancellationToken,
) -> Result<Exit, miette::Report> {
    let (contents, missing) = contents::at_hand(&keeper, &contents::collected(&keeper))?;
    if !missing.is_empty() {
        return Err(failed(
            Exit::Failed,
            format!(
                "files in {} are not what their names say: {}",
                keeper.config.content.dir.display(),
                contents::in_words(&missing)
            ),
            Some("remove them and submit their content anew: cloister module submit".into()),
        ));
    }
    let (vault, last) = kept.unzip();
    let start = match (&vault, last.flatten()) {
        (Some(vault), Some(last)) => {
            let start = checkpoint::starting_point(vault, &last, &keeper)?;
            teller.tell(&Event::Resumed {
                round: start.next_round,
                rounds: u64::from(keeper.policy.rounds.count),
                model: last.model_after.to_string(),
            });
            start
        }
        _ => StartingPoint {
            model: contents::initial_weights(&keeper.policy, &contents)?,
            next_round: 1,
            previous: None,
        },
    };
    let name = keeper.config.name.clone();
    let needed = contents::needed(&keeper.policy, &name);
    let own: Contents = contents.into_iter().filter(|(item, _)| needed.contains(item)).collect();
    let evaluation = evaluation_graph(&own)?;
    keeper.load(&mut runner, &own, &mut loaded)?;
    let certificate = {
        let keeper = Arc::clone(&keeper);
        tokio::task::spawn_blocking(move || keeper.certificate(State::Member, &loaded))
            .await
            .map_err(|error| failed(Exit::Failed, format!("measuring: {error}"), None))??
    };
    teller.tell(&Event::measured("member", &certificate));
    let module = tools::only_module(&keeper.policy, &name, ModuleRole::Aggregator)?.clone();
    let dataset = keeper
        .policy
        .datasets_for(&name)
        .first()
        .map(|dataset| dataset.name().to_owned());
    let models = SharedModels::default();
    let work = Work {
        ending: Ending::watch(cancel.clone(), &runner),
        models: models.clone(),
        settings: keeper.provisions.settings(&module)?,
        statistics: statistics(evaluation.as_ref()),
        evaluation,
        runner,
        keeper: Arc::clone(&keeper),
        module,
        dataset,
        vault,
    };
    let options = AggregatorOptions {
        policy: Arc::clone(&keeper.policy),
        node: keeper.side(&certificate),
        identity: Arc::clone(&keeper.identity),
        verifier: Arc::clone(&keeper.verifier),
        clock: keeper.clock(),
        start,
        gather_ms: None,
        update_slots: 2,
        sink: Arc::new(models.sink(keeper.policy.limits.update_mib << 20)),
        progress: Arc::new(Watch::new(teller, &keeper)),
        cancel: cancel.clone(),
    };
    let (handle, driver) = prepare(options).map_err(|error| fail(Exit::Failed, error))?;
    let listener = listen(&keeper, address, &certificate).await?;
    teller.tell(&Event::Listening {
        address: listener.address().to_string(),
    });
    let service = FederationService {
        policy: Arc::clone(&keeper.policy),
        clock: keeper.clock(),
        store: open_store(&keeper).await?,
        aggregator: Some(handle),
    };
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, service, stop.clone().cancelled_owned()));
    let end = driver.run(Box::new(work)).await;
    stop.cancel();
    let _ = tokio::time::timeout(FAREWELL, serving).await;
    let end = match end {
        Ok(end) => end,
        Err(error) if cancel.is_cancelled() => {
            tracing::info!("asked to end: {error}");
            return Ok(Exit::Done);
        }
        Err(error) => return Err(fail(Exit::Failed, error)),
    };
    if let Some(record) = &end.last {
        tell_end(&teller, &record.receipt);
    }
    Ok(Exit::Done)
}

fn tell_end(teller: &Teller, last: &Receipt) {
    teller.tell(&Event::Finished {
        rounds: last.round,
        model: last.model_after.to_string(),
        loss: checkpoint::metric(last, "loss"),
        accuracy: checkpoint::metric(last, "accuracy"),
    });
}

/// All was done before this start: what there is now, and what to do for more.
fn say_finished(keeper: &Keeper, last: &Receipt, out: &mut Ui) {
    let simulated = if keeper.quotes.simulated() { " SIMULATED" } else { "" };
    let vault = keeper
        .config
        .vault
        .as_ref()
        .map(|files| files.path.display().to_string());
    out.note(format!(
        "{} has finished its {} rounds{simulated}: the model is sealed in {}, and nothing was changed. `cloister vault export` \
         opens it. To train again, agree on a new policy and name another folder in [vault]",
        keeper.policy.name,
        last.round,
        vault.unwrap_or_default()
    ));
}

fn evaluation_graph(contents: &Contents) -> Result<Option<EngineGraph>, miette::Report> {
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

struct Work {
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
}

impl Work {
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
                .map_err(|error| WorkError::new("sharing the model", error))?,
            statistics: self.statistics.clone(),
            round: call_round(round, &self.keeper.config.name),
            update: UpdateKind::Model,
            slots: SharedSlots::default(),
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
            WorkError::new("aggregating", error)
        })?;
        for line in &reply.log {
            tracing::info!("module {}: {line}", self.module.name);
        }
        self.models.know(reply.tensors.blob());
        let model = reply
            .tensors
            .to_map()
            .map_err(|error| WorkError::new("reading the aggregate", error))?;
        Ok(Aggregate {
            model,
            metrics: reply.metrics,
            state: None,
        })
    }

    fn evaluate(&mut self, _round: &RoundInfo, model: &TensorMap) -> Result<Vec<(String, f64)>, WorkError> {
        let Some(dataset) = &self.dataset else {
            return Ok(Vec::new());
        };
        let policy = &self.keeper.policy;
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
            WorkError::new("evaluating", error)
        })?;
        for line in &reply.log {
            tracing::info!("evaluation: {line}");
        }
        Ok(vec![("loss".into(), reply.loss), ("accuracy".into(), reply.accuracy())])
    }

    fn keep(&mut self, record: &RoundRecord, model: &TensorMap) -> Result<(), WorkError> {
        let written = |audit: &Audit| {
            let written = audit.round(record);
            written.map_err(|error| WorkError::new("writing the round down", error))
        };
        let Some(vault) = &mut self.vault else {
            return written(&self.keeper.audit);
        };
        let last = record.receipt.round == u64::from(self.keeper.policy.rounds.count);
        let onnx = match &self.evaluation {
            Some(evaluation) if last => Some(
                cloister_graph::export_forward(evaluation, model)
                    .map_err(|error| WorkError::new("writing the model as ONNX", error))?,
            ),
            _ => None,
        };
        checkpoint::keep(vault, record, model, onnx.as_deref())?;
        // While the counter is on its way; nothing of the round is told before it is confirmed.
        written(&self.keeper.audit)?;
        vault
            .settle()
            .map_err(|error| WorkError::new("confirming the round", error))
    }
}

/// A call's round: the seed differs by node, and is the same again when the round is run again.
pub(super) fn call_round(round: &RoundInfo, node: &str) -> cloister_sandbox::RoundInfo {
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
        step: round.round.saturating_sub(1),
    }
}
