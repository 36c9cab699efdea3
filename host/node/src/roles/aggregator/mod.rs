//! `cloister aggregator`: collects what the participants submit, then runs the rounds, evaluates, and seals the model.

mod collecting;
mod work;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::State;
use cloister_attestation::identity::Role;
use cloister_exchange::aggregator::{AggregatorOptions, StartingPoint, prepare};
use cloister_exchange::service::{FederationService, serve};
use cloister_rounds::Receipt;
use cloister_runner::Runner;
use cloister_tensor::TensorMap;
use cloister_vault::Vault;
use tokio_util::sync::CancellationToken;

use super::checkpoint::{self, Found};
use super::ending::{fence, give_lease_back};
use super::watch::Watch;
use crate::events::{Event, Teller};
use crate::keeper::Keeper;
use crate::keeper::contents::{self, Contents};
use crate::keeper::measured::Loaded;
use crate::keeper::models::SharedModels;
use crate::process::{ParentArgs, until_signal};
use crate::ui::{Exit, OutputArgs, Ui, fail, failed};
use collecting::{collect, listen, open_store};
use work::{Work, evaluation_graph};
pub(super) use work::{call_round, update_kind};

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
    let (start, slots) = match (&vault, last.flatten()) {
        (Some(vault), Some(last)) => {
            let (start, slots) = checkpoint::starting_point(vault, &last, &keeper)?;
            teller.tell(&Event::Resumed {
                round: start.next_round,
                rounds: u64::from(keeper.policy.rounds.count),
                model: last.model_after.to_string(),
            });
            (start, slots)
        }
        _ => {
            let start = StartingPoint {
                model: contents::initial_weights(&keeper.policy, &contents)?,
                next_round: 1,
                previous: None,
            };
            (start, TensorMap::new())
        }
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
    let models = SharedModels::default();
    let watch = Watch::new(teller, &keeper);
    let work = Work::new(&keeper, runner, &models, evaluation, vault, &slots, cancel.clone())?;
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
        progress: Arc::new(watch.clone()),
        cancel: cancel.clone(),
    };
    let (handle, driver) = prepare(options).map_err(|error| fail(Exit::Failed, error))?;
    let listener = listen(&keeper, address, &certificate, watch).await?;
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
