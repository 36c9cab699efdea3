//! `cloister demo`: a whole federation on one machine, out of an example's plan, each node a process of its own.

mod follow;
mod plan;
mod prepare;
mod processes;
mod rows;
mod sealed;
mod vault;
mod wish;
mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_attestation::identity::Role;
use cloister_attestation::ratls::VisitorIdentity;
use cloister_exchange::client::Client;
use cloister_exchange::content::Submission;
use cloister_policy::agreement::RoundMode;
use cloister_session::{DialOptions, Local, SelfSide, SessionMemory, connect};
use serde::Serialize;

use crate::events::Event;
use crate::files;
use crate::keeper::config::Engine;
use crate::keeper::{libraries::library_folder, load_policy, load_verifier};
use crate::ui::{Exit, OutputArgs, Ui, fail, failed, now_unix_s, refused, unreadable};
use follow::{PeerSummary, follow};
use plan::{Plan, PlanError};
use prepare::{Prepared, prepare, prepared, write_node_file};
use processes::{ProcessError, Processes};
use rows::Rows;
use sealed::Sealed;
use vault::{ModelSummary, RESULT_FILE, open_on_trusted_node, sealed_round, stopped};
use wish::Wish;
use work::Submission as Submitted;

/// How long any single step of a demo may take.
const STEP: Duration = Duration::from_secs(120);
/// How long the nodes may take to end by themselves after the last round.
const END: Duration = Duration::from_secs(30);

/// Run a whole federation on this machine: an aggregator and workers, each a simulated TD in processes of its own.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask demo                        sets everything up and runs this
  cargo xtask demo -- -o json             ends with one JSON object on stdout
  cloister demo --guests target/guests --example examples/hospitals --out /tmp/hospitals --rounds 5
  cloister demo --guests target/guests --example examples/cifar10 --data cifar-10-batches-bin --mode synchronous --updates 40

A run that was stopped (Ctrl-C) behind a round that the vault holds is gone on with by the same command.")]
pub struct DemoArgs {
    /// The folder with the guest modules (NAME.wasm).
    #[arg(long, value_name = "DIR")]
    guests: PathBuf,
    /// The example: a folder with `federation.toml` and its data.
    #[arg(long, value_name = "DIR", default_value = "examples/digits")]
    example: PathBuf,
    /// Where keys, policy, nodes, logs, vault and model go: a new folder below this one at each run.
    #[arg(long, value_name = "DIR", default_value = "cloister-demo")]
    out: PathBuf,
    /// Another number of rounds (in modes of steps: of updates) than the plan's.
    #[arg(long, visible_alias = "updates", value_name = "N")]
    rounds: Option<u32>,
    /// Another mode than the plan's, of those that it has: averaging, synchronous or asynchronous.
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,
    /// The folder with the data, for examples whose data are not part of the project.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Begin anew, also where the run before was stopped and could be gone on with.
    #[arg(long)]
    fresh: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a demo comes to; with `-o json` the last thing on stdout.
#[derive(Serialize)]
struct Summary {
    federation: String,
    simulated: bool,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    test_accuracy: Option<f64>,
    rounds: u64,
    final_loss: f64,
    /// The round behind which it went on, where an earlier run was stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_behind: Option<u64>,
    peers: Vec<PeerSummary>,
    model: ModelSummary,
    wall_s: f64,
}

/// Runs the command.
pub fn run(args: DemoArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let started = Instant::now();
    let wish = Wish {
        mode: args.mode.clone(),
        count: args.rounds,
        data: args.data.as_deref().map(absolute).transpose()?,
    };
    let plan = Plan::load(&args.example, &wish).map_err(unreadable)?;
    let base = base_folder(&args.out)?;
    let rows = Rows::find(&plan, &base).map_err(no_rows)?;
    let openvino = library_folder(&Engine::default(), true)?;
    out.note(&plan.title);
    out.note("SIMULATED: every TD here is a simulator's; quotes have the real format, the root of trust is made up for this run");
    let earlier = match args.fresh {
        true => None,
        false => stopped(&plan, &base, openvino.as_deref(), out)?,
    };
    let resumed_behind = earlier.as_ref().and_then(|run| sealed_round(&plan, run));
    let (folder, prepared) = match earlier {
        Some(run) => {
            let prepared = prepared(&plan, &rows, &run)?;
            out.note(format!("goes on with {} (--fresh begins anew)", run.display()));
            (run, prepared)
        }
        None => {
            let folder = new_folder(&base)?;
            let prepared = prepare(&plan, &rows, &args.guests, &folder, openvino.as_deref(), now_unix_s())?;
            (folder, prepared)
        }
    };
    if plan.sealed {
        let told = Sealed::new(&plan, &prepared, &folder).run(started, out)?;
        let judged = match told["trained"]["test_accuracy"].as_f64() {
            Some(accuracy) => format!("test accuracy {accuracy:.4}"),
            None => format!("loss {}", told["trained"]["final_loss"]),
        };
        if args.output.json() {
            out.json(&told);
        } else {
            out.data(format!(
                "{judged}; {} attempts refused",
                told["refused"].as_array().map_or(0, Vec::len)
            ));
        }
        return Ok(Exit::Done);
    }
    out.note(format!(
        "1  agreed: {} participants signed the policy ({})",
        plan.participants.len(),
        prepared.policy.display()
    ));
    for node in &plan.nodes {
        let rows = prepared.rows.get(&node.name).copied().unwrap_or(0);
        out.note(format!(
            "     {:<16} {:<10} {rows} rows ({})",
            node.name, node.role, node.dataset
        ));
    }
    match plan.rounds.min_workers_per_aggregate {
        0 | 1 => out.note(
            "   note: each worker's update is applied alone; averaging and synchronous steps hide it among others",
        ),
        2 => out.note(
            "   note: an aggregate of two workers lets each subtract its own part; real federations take three or more",
        ),
        _ => {}
    }
    let logs = folder.join("logs");
    std::fs::create_dir_all(&logs)
        .map_err(|cause| failed(Exit::Failed, format!("{}: {cause}", logs.display()), None))?;
    let mut processes = Processes::new(&logs);
    let address = start_aggregator(&plan, &prepared, &mut processes)?;
    out.note(format!(
        "2  the aggregator's TD listens at {address}; logs are in {}",
        logs.display()
    ));
    if resumed_behind.is_none() {
        submit(
            &plan,
            &prepared,
            &prepared.submissions.iter().collect::<Vec<_>>(),
            &address,
        )?;
        out.note(format!(
            "3  submitted over an attested session: {} modules, graphs and weights",
            prepared.submissions.len()
        ));
    }
    for worker in plan.workers() {
        let config = write_node_file(&prepared, worker, Some(&address))?;
        processes
            .start(&worker.name, &["worker"], &config)
            .map_err(|error| fail(Exit::Failed, error))?;
    }
    let told = follow(&plan, &mut processes, out).and_then(|seen| processes.wait(END).map(|()| seen));
    let seen = told.map_err(|error| {
        // With the nodes gone the vault is as they left it.
        drop(processes);
        given_up(&plan, &folder, error)
    })?;
    let model = open_on_trusted_node(&plan, &prepared, &folder, &seen.model)?;
    out.note(format!("5  sealed in {}", model.vault.display()));
    out.note("6  the trusted node opened the vault and wrote");
    out.note(format!("     {}", model.safetensors.display()));
    out.note(format!("     {}", model.onnx.display()));
    let summary = Summary {
        federation: plan.federation.clone(),
        simulated: true,
        mode: RoundMode::from(plan.rounds.mode).as_str(),
        test_accuracy: seen.accuracy,
        rounds: seen.rounds,
        final_loss: seen.loss,
        resumed_behind,
        peers: seen.peers.into_values().collect(),
        model,
        wall_s: started.elapsed().as_secs_f64(),
    };
    let result = serde_json::to_vec_pretty(&summary).map_err(|error| fail(Exit::Failed, error))?;
    files::write(&folder.join(RESULT_FILE), &result)?;
    if args.output.json() {
        out.json(&summary);
    } else {
        let accuracy = summary
            .test_accuracy
            .map_or(String::new(), |accuracy| format!("test accuracy {accuracy:.4} "));
        out.data(format!(
            "{accuracy}after {} rounds, loss {:.4}, {:.1} s",
            summary.rounds, summary.final_loss, summary.wall_s
        ));
    }
    Ok(Exit::Done)
}

/// The data are missing: what to fetch is said as it stands in the plan.
fn no_rows(error: PlanError) -> miette::Report {
    let help = match &error {
        PlanError::NoData { missing, .. } => Some(missing.clone()),
        _ => None,
    };
    failed(Exit::Usage, error.to_string(), help)
}

/// What a run comes to that did not come to its end, and how to go on.
fn given_up(plan: &Plan, folder: &Path, error: ProcessError) -> miette::Report {
    let ProcessError::Stopped { .. } = &error else {
        return fail(Exit::Failed, error);
    };
    let help = match sealed_round(plan, folder) {
        Some(round) => format!("the same command goes on behind round {round}, the last that is sealed in the vault"),
        None => "no round is sealed in the vault yet: the same command begins anew".to_owned(),
    };
    failed(Exit::Failed, error.to_string(), Some(help))
}

fn absolute(path: &Path) -> Result<PathBuf, miette::Report> {
    path.canonicalize()
        .map_err(|cause| failed(Exit::Usage, format!("{}: {cause}", path.display()), None))
}

fn base_folder(base: &Path) -> Result<PathBuf, miette::Report> {
    let cannot = |cause: std::io::Error| failed(Exit::Failed, format!("{}: {cause}", base.display()), None);
    std::fs::create_dir_all(base).map_err(cannot)?;
    base.canonicalize().map_err(cannot)
}

/// A folder of this run's own: keys and vaults of earlier runs are never touched.
fn new_folder(base: &Path) -> Result<PathBuf, miette::Report> {
    let cannot = |cause: std::io::Error| failed(Exit::Failed, format!("{}: {cause}", base.display()), None);
    for run in 1..10_000 {
        let folder = base.join(format!("run-{run}"));
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot(error)),
        }
    }
    Err(failed(
        Exit::Failed,
        format!("{} holds 10,000 runs", base.display()),
        Some("remove some, or name another --out".into()),
    ))
}

fn start_aggregator(plan: &Plan, prepared: &Prepared, processes: &mut Processes) -> Result<String, miette::Report> {
    let aggregator = plan
        .aggregator()
        .ok_or_else(|| failed(Exit::Usage, "the plan has no aggregator", None))?;
    let config = write_node_file(prepared, aggregator, None)?;
    start(&aggregator.name, &["aggregator"], &config, processes)
}

/// Starts a node that listens; gives its address.
fn start(node: &str, command: &[&str], config: &Path, processes: &mut Processes) -> Result<String, miette::Report> {
    processes
        .start(node, command, config)
        .map_err(|error| fail(Exit::Failed, error))?;
    loop {
        let (_, event) = processes
            .next(&format!("the start of {node}"), STEP)
            .map_err(|error| fail(Exit::Failed, error))?;
        if let Event::Listening { address } = event {
            return Ok(address);
        }
    }
}

/// Each participant of the plan could do this; here the aggregator's does.
fn submit(plan: &Plan, prepared: &Prepared, items: &[&Submitted], address: &str) -> Result<(), miette::Report> {
    let policy = Arc::clone(load_policy(&prepared.policy)?.policy());
    let verifier = Arc::new(load_verifier(&prepared.authority, &policy)?);
    let participant = plan
        .aggregator()
        .map(|node| node.participant.clone())
        .unwrap_or_default();
    let pem = prepared
        .nodes
        .with_file_name("participants")
        .join(format!("{participant}.key"));
    let key = || files::read_key(&pem);
    let visitor = VisitorIdentity::new(Some((participant.clone(), key()?)), now_unix_s())
        .map_err(|error| fail(Exit::Failed, error))?;
    let local = Local {
        own: SelfSide::Visitor(Arc::new(visitor)),
        verifier,
        policy: Arc::clone(&policy),
        clock: Arc::new(now_unix_s),
        memory: SessionMemory::default(),
    };
    let dial = DialOptions {
        address: address.to_owned(),
        proxy: None,
        role: Some(Role::Aggregator),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(Exit::Failed, format!("the async runtime cannot start: {error}"), None))?;
    let key = key()?;
    runtime.block_on(async {
        let connection = connect(&local, &dial).await.map_err(|error| refused(error, true))?;
        let mut client = Client::new(connection)
            .await
            .map_err(|error| fail(Exit::Failed, error))?;
        for item in items {
            let content = std::fs::read(&item.path)
                .map_err(|cause| failed(Exit::Failed, format!("{}: {cause}", item.path.display()), None))?;
            let digest = policy.digest();
            let submission = Submission {
                federation: &policy.name,
                policy_digest: &digest,
                kind: item.kind,
                name: &item.name,
                participant: &participant,
            };
            client
                .submit(&submission, &key, content.into())
                .await
                .map_err(|error| fail(Exit::Failed, error))?;
        }
        Ok(())
    })
}
