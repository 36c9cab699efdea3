//! `cloister demo`: a whole federation on one machine, out of an example's plan, each node a process of its own.

mod plan;
mod prepare;
mod processes;
mod sealed;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_attestation::identity::Role;
use cloister_attestation::ratls::VisitorIdentity;
use cloister_exchange::client::Client;
use cloister_exchange::content::Submission;
use cloister_session::{DialOptions, Local, SelfSide, SessionMemory, connect};
use cloister_vault::{Access, Cipher, FileName, LastSeenFile, Vault, VaultKey};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::events::{Event, words};
use crate::files;
use crate::keeper::config::Engine;
use crate::keeper::{load_policy, load_verifier, runner::openvino_folder};
use crate::ui::{Exit, OutputArgs, Ui, fail, failed, now_unix_s, refused, unreadable};
use plan::Plan;
use prepare::{Prepared, Submission as Submitted, prepare, write_node_file};
use processes::Processes;
use sealed::Sealed;

/// How long any single step of a demo may take.
const STEP: Duration = Duration::from_secs(120);
/// How long the nodes may take to end by themselves after the last round.
const END: Duration = Duration::from_secs(30);
/// No sealed model of an example is larger than this.
const MAX_MODEL_BYTES: u64 = 1 << 30;

/// Run a whole federation on this machine: an aggregator and workers, each a simulated TD in processes of its own.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cargo xtask demo                        sets everything up and runs this
  cargo xtask demo -- -o json             ends with one JSON object on stdout
  cloister demo --guests target/guests --example examples/hospitals --out /tmp/hospitals --rounds 5")]
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
    /// Another number of rounds than the plan's.
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a demo comes to; with `-o json` the last thing on stdout.
#[derive(Serialize)]
struct Summary {
    federation: String,
    simulated: bool,
    test_accuracy: f64,
    rounds: u64,
    final_loss: f64,
    peers: Vec<PeerSummary>,
    model: ModelSummary,
    wall_s: f64,
}

#[derive(Serialize)]
struct PeerSummary {
    name: String,
    role: String,
    verdict: String,
    measurement: String,
    verified_by: Vec<String>,
}

#[derive(Serialize)]
struct ModelSummary {
    digest: String,
    safetensors: PathBuf,
    onnx: PathBuf,
    vault: PathBuf,
}

/// Runs the command.
pub fn run(args: DemoArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let started = Instant::now();
    let mut plan = Plan::load(&args.example).map_err(unreadable)?;
    if let Some(rounds) = args.rounds {
        plan.rounds.count = rounds;
    }
    let folder = new_folder(&args.out)?;
    let openvino = openvino_folder(&Engine::default())?;
    out.note(&plan.title);
    out.note("SIMULATED: every TD here is a simulator's; quotes have the real format, the root of trust is made up for this run");
    let now = now_unix_s();
    let prepared = prepare(&plan, &args.guests, &folder, openvino.as_deref(), now)?;
    if plan.sealed {
        let told = Sealed::new(&plan, &prepared, &folder).run(started, out)?;
        let accuracy = told["trained"]["test_accuracy"].as_f64().unwrap_or(f64::NAN);
        if args.output.json() {
            out.json(&told);
        } else {
            out.data(format!(
                "test accuracy {accuracy:.4}; {} attempts refused",
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
    for worker in plan.workers() {
        let config = write_node_file(&prepared, worker, Some(&address))?;
        processes
            .start(&worker.name, "worker", &config)
            .map_err(|error| fail(Exit::Failed, error))?;
    }
    let seen = follow(&plan, &mut processes, out)?;
    processes.wait(END).map_err(|error| fail(Exit::Failed, error))?;
    let model = open_on_trusted_node(&plan, &prepared, &folder, &seen.model)?;
    out.note(format!("5  sealed in {}", model.vault.display()));
    out.note("6  the trusted node opened the vault and wrote");
    out.note(format!("     {}", model.safetensors.display()));
    out.note(format!("     {}", model.onnx.display()));
    let summary = Summary {
        federation: plan.federation.clone(),
        simulated: true,
        test_accuracy: seen.accuracy,
        rounds: seen.rounds,
        final_loss: seen.loss,
        peers: seen.peers.into_values().collect(),
        model,
        wall_s: started.elapsed().as_secs_f64(),
    };
    if args.output.json() {
        out.json(&summary);
    } else {
        out.data(format!(
            "test accuracy {:.4} after {} rounds, loss {:.4}, {:.1} s",
            summary.test_accuracy, summary.rounds, summary.final_loss, summary.wall_s
        ));
    }
    Ok(Exit::Done)
}

/// A folder of this run's own: keys and vaults of earlier runs are never touched.
fn new_folder(base: &Path) -> Result<PathBuf, miette::Report> {
    let cannot = |cause: std::io::Error| failed(Exit::Failed, format!("{}: {cause}", base.display()), None);
    std::fs::create_dir_all(base).map_err(cannot)?;
    let base = base.canonicalize().map_err(cannot)?;
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
    start(&aggregator.name, "aggregator", &config, processes)
}

/// Starts a node that listens; gives its address.
fn start(node: &str, role: &str, config: &Path, processes: &mut Processes) -> Result<String, miette::Report> {
    processes
        .start(node, role, config)
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
        .join(format!("{participant}.pem"));
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

/// What the nodes told.
#[derive(Default)]
struct Seen {
    peers: BTreeMap<String, PeerSummary>,
    rounds: u64,
    accuracy: f64,
    loss: f64,
    model: String,
}

fn follow(plan: &Plan, processes: &mut Processes, out: &mut Ui) -> Result<Seen, miette::Report> {
    let aggregator = plan.aggregator().map(|node| node.name.clone()).unwrap_or_default();
    let mut seen = Seen::default();
    let bar = ProgressBar::with_draw_target(Some(plan.rounds.count.into()), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("   {wide_bar} {msg}") {
        bar.set_style(style);
    }
    let mut started = false;
    loop {
        let (node, event) = processes
            .next("the next round", STEP)
            .map_err(|error| fail(Exit::Failed, error))?;
        match event {
            Event::Peer {
                name,
                role,
                verdict,
                measurement,
                ..
            } => {
                let peer = seen.peers.entry(name.clone()).or_insert_with(|| PeerSummary {
                    name,
                    role,
                    verdict: verdict.clone(),
                    measurement: measurement.clone(),
                    verified_by: Vec::new(),
                });
                peer.verdict = verdict;
                peer.measurement = measurement;
                if !peer.verified_by.contains(&node) {
                    peer.verified_by.push(node);
                    peer.verified_by.sort();
                }
            }
            Event::Round {
                round, loss, accuracy, ..
            } if node == aggregator => {
                if !started {
                    started = true;
                    tell_peers(&seen, out);
                }
                seen.rounds = round;
                seen.loss = loss.unwrap_or(f64::NAN);
                seen.accuracy = accuracy.unwrap_or(f64::NAN);
                bar.println(format!("   {}", words(&event)));
                if bar.is_hidden() {
                    out.note(format!("   {}", words(&event)));
                }
                bar.set_position(round);
                bar.set_message(format!("{round}/{} accuracy {:.3}", plan.rounds.count, seen.accuracy));
            }
            Event::Dropped { .. } if node == aggregator => out.note(format!("   {}", words(&event))),
            Event::Finished { model, .. } if node == aggregator => {
                bar.finish_and_clear();
                seen.model = model;
                return Ok(seen);
            }
            _ => {}
        }
    }
}

fn tell_peers(seen: &Seen, out: &mut Ui) {
    out.note("4  verified each other, two by two (SIMULATED evidence):");
    for peer in seen.peers.values() {
        let measurement = peer.measurement.get(..16).unwrap_or_default();
        out.note(format!(
            "     {} ({}) {measurement}… {} by {}",
            peer.name,
            peer.role,
            peer.verdict,
            peer.verified_by.join(", ")
        ));
    }
}

/// The step on the trusted node: who has the vault, its key and the record of what was last seen opens it.
fn open_on_trusted_node(
    plan: &Plan,
    prepared: &Prepared,
    folder: &Path,
    digest: &str,
) -> Result<ModelSummary, miette::Report> {
    let own = prepared
        .nodes
        .join(plan.aggregator().map(|node| node.name.as_str()).unwrap_or_default());
    let key = VaultKey::load(&own.join("vault.key")).map_err(unreadable)?;
    let vault = Vault::open(
        &own.join("vault"),
        key,
        Some(Box::new(LastSeenFile::new(own.join("vault.last-seen")))),
        Access::Read,
    )
    .map_err(|error| fail(Exit::Failed, error))?;
    let released = folder.join("released");
    std::fs::create_dir_all(&released)
        .map_err(|cause| failed(Exit::Failed, format!("{}: {cause}", released.display()), None))?;
    let mut paths = Vec::new();
    for name in ["model.safetensors", "model.onnx"] {
        let sealed: FileName = name.parse().map_err(unreadable)?;
        let content = vault
            .get(&sealed, Cipher::Bulk)
            .and_then(|reader| reader.read_all(MAX_MODEL_BYTES))
            .map_err(|error| fail(Exit::Failed, error))?;
        let path = released.join(name);
        files::write(&path, &content)?;
        paths.push(path);
    }
    let [safetensors, onnx] = paths
        .try_into()
        .map_err(|_| failed(Exit::Failed, "the vault lacks the model", None))?;
    Ok(ModelSummary {
        digest: digest.to_owned(),
        safetensors,
        onnx,
        vault: own.join("vault"),
    })
}
