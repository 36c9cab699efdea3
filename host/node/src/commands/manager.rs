//! `cloister manager`: a federation's manager, and what participants say to it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use cloister_attestation::encoding::hex;
use cloister_attestation::identity::Role;
use cloister_manager::{Recipient, RecoveryShare, Remembered, SealedShare, SealingKey};
use cloister_session::Local;
use cloister_wire::manager as wire;
use serde_json::{Value, json};

use super::manager_mark;
use super::manager_secrets::{self, SecretsCommand};
use super::manager_store::{self, BackupArgs, RestoreArgs};
use super::peer::{TrustArgs, block_on};
use crate::files;
use crate::manager::client::Client;
use crate::manager::standing::RUNNING;
use crate::manager::{ManagerError, recipients};
use crate::process::ParentArgs;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// Whom these commands speak to.
pub(super) const ROLE: Role = Role::Manager;
/// How long one of several managers may take to lead, and the pause before they are asked again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);
/// Lines of the audit log that are asked for at once.
const LINES: u32 = 500;

/// Run a federation's manager, and speak to one: agreement, keys, recovery.
///
/// With --config it runs the manager of that node file in this TD. It starts with the federation's anchor and a policy that is
/// proposed; participants verify its evidence, publish their signatures and upload their secrets; nodes start with its address
/// and the anchor alone.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:
  cloister manager --config manager.toml
  cloister manager status --to manager.example.org:7800 --policy wards.toml
  cloister manager secrets ls --to manager.example.org:7800 --policy wards.toml \\
      --participant north --participant-key keys/north.key"
)]
pub struct ManagerArgs {
    /// The manager's node file.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    parent: ParentArgs,
    #[command(subcommand)]
    command: Option<ManagerCommand>,
}

#[derive(Subcommand, Debug)]
#[allow(clippy::large_enum_variant, reason = "parsed once")]
enum ManagerCommand {
    Status(StatusArgs),
    /// Keys and other secrets that the manager keeps for a participant.
    #[command(subcommand)]
    Secrets(SecretsCommand),
    Recover(RecoverArgs),
    Recipient(RecipientArgs),
    Log(LogArgs),
    Backup(BackupArgs),
    Restore(RestoreArgs),
}

/// Where the manager is, and as whom to speak.
#[derive(Args, Debug)]
pub(super) struct AsParticipant {
    #[command(flatten)]
    to: ManagerAt,
    #[command(flatten)]
    pub(super) trust: TrustArgs,
    /// The participant that asks.
    #[arg(long, value_name = "NAME")]
    pub(super) participant: String,
    /// The participant's private key (PEM), as `cloister identity new` wrote it.
    #[arg(long, value_name = "FILE")]
    participant_key: PathBuf,
    /// The mark of the manager's state that this participant keeps in FILE: a manager that was put back or made anew is refused by it,
    /// and a newer mark takes its place.
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
}

impl AsParticipant {
    pub(super) fn local(&self) -> Result<Local, miette::Report> {
        self.trust
            .visitor(Some((self.participant.clone(), &self.participant_key)))
    }

    /// A client of a manager whose evidence was verified.
    pub(super) async fn client(&self, local: &Local) -> Result<Client, miette::Report> {
        let mut client = self.to.client(local, &self.trust).await?;
        if let Some(path) = &self.keep {
            let status = client.status().await.map_err(failed_call)?;
            manager_mark::keep(path, &status.mark)?;
        }
        Ok(client)
    }
}

/// Where a manager is; of several, whichever leads.
#[derive(Args, Debug)]
pub(super) struct ManagerAt {
    /// The manager; of several managers all, with commas between them.
    #[arg(long, value_name = "HOST:PORT", value_parser = crate::keeper::config::address, value_delimiter = ',', required = true)]
    to: Vec<String>,
}

impl ManagerAt {
    /// A client of a manager whose evidence was verified. Of several the one that answers, for which it waits a while: between two
    /// that lead there is a moment without one.
    pub(super) async fn client(&self, local: &Local, trust: &TrustArgs) -> Result<Client, miette::Report> {
        let since = Instant::now();
        loop {
            let (client, running) = self.any(local, trust).await?;
            if running || self.to.len() == 1 || since.elapsed() >= PATIENCE {
                return Ok(client);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The one that answers, and that it does; else the last that could be reached.
    async fn any(&self, local: &Local, trust: &TrustArgs) -> Result<(Client, bool), miette::Report> {
        let mut last = Err(ui::failed(Exit::Usage, "no manager is named", None));
        for address in &self.to {
            let connection = match trust.connect_as(local, address, Some(ROLE)).await {
                Ok(connection) => connection,
                Err(error) if self.to.len() == 1 => return Err(error),
                Err(error) => {
                    last = last.or(Err(error));
                    continue;
                }
            };
            let mut client = Client::new(connection).await.map_err(failed_call)?;
            if self.to.len() == 1 {
                return Ok((client, false));
            }
            match client.status().await {
                Ok(status) if status.phase == RUNNING => return Ok((client, true)),
                Ok(_) => last = Ok((client, false)),
                Err(error) => last = last.map_err(|_| failed_call(error)),
            }
        }
        last
    }
}

/// Say what the manager knows: which policy is in force, whose signatures are missing, what it waits for.
///
/// Ends with 0 if a policy is in force and the manager answers, else with 4.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister manager status --to manager.example.org:7800 --policy wards.toml
  cloister manager status --to manager.example.org:7800 --policy wards.toml --keep wards.mark -o json")]
struct StatusArgs {
    #[command(flatten)]
    to: ManagerAt,
    #[command(flatten)]
    trust: TrustArgs,
    /// Keep the mark of the manager's state in this file, for `manager recover --kept`: a manager that was put back to before the mark that
    /// is there, or made anew, is refused.
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Hand this participant's recovery share to a manager that was started again.
///
/// The share is opened here with the participant's key, and sealed to the TD that has just been verified.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  cloister manager recover --to manager.example.org:7800 --policy wards.toml --kept wards.mark \\
      --participant north --participant-key keys/north.key")]
struct RecoverArgs {
    #[command(flatten)]
    whom: AsParticipant,
    /// The newest mark that was kept (`manager status --keep`): an older state is refused by it.
    #[arg(long, value_name = "FILE")]
    kept: Option<PathBuf>,
    /// Agree that the manager starts though not enough nodes are there to confirm its state: the kept marks alone stand against
    /// an older copy then.
    #[arg(long, requires = "kept")]
    without_nodes: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Write the key to which this participant's recovery share is to be sealed: NAME.recipient, no secret.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  cloister manager recipient --federation wards --participant north --participant-key keys/north.key --out north.recipient")]
struct RecipientArgs {
    /// The federation's name, as in the policy.
    #[arg(long)]
    federation: String,
    /// The participant.
    #[arg(long, value_name = "NAME")]
    participant: String,
    /// The participant's private key (PEM).
    #[arg(long, value_name = "FILE")]
    participant_key: PathBuf,
    /// Where to write it.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Fetch the manager's audit log, for `cloister audit verify`.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  cloister manager log --to manager.example.org:7800 --policy wards.toml --out manager.jsonl \\
      --participant north --participant-key keys/north.key")]
struct LogArgs {
    #[command(flatten)]
    whom: AsParticipant,
    /// Where to write the lines.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: ManagerArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match (args.command, &args.config) {
        (None, Some(config)) => {
            args.parent.tie().map_err(|error| ui::fail(Exit::Failed, error))?;
            crate::roles::manager::run(config, args.output.json(), out)
        }
        (None, None) => Err(ui::failed(Exit::Usage, "give --config FILE, or a subcommand", None)),
        (Some(ManagerCommand::Status(args)), _) => status(&args, out),
        (Some(ManagerCommand::Secrets(command)), _) => manager_secrets::run(&command, out),
        (Some(ManagerCommand::Recover(args)), _) => recover(&args, out),
        (Some(ManagerCommand::Recipient(args)), _) => recipient(&args, out),
        (Some(ManagerCommand::Log(args)), _) => log(&args, out),
        (Some(ManagerCommand::Backup(args)), _) => manager_store::backup(&args, out),
        (Some(ManagerCommand::Restore(args)), _) => manager_store::restore(&args, out),
    }
}

/// Exit code 3 for refused evidence, 4 for what the manager refuses, 1 for the rest.
pub(super) fn failed_call(error: ManagerError) -> miette::Report {
    let exit = match &error {
        ManagerError::Refused { .. } => Exit::Denied,
        error if error.refusal().is_some() => Exit::Refused,
        _ => Exit::Failed,
    };
    ui::fail(exit, error)
}

pub(super) fn standing_json(standing: &wire::PolicyStanding) -> Value {
    json!({
        "policy": hex(&standing.digest),
        "version": standing.version,
        "standing": standing.standing,
        "signed": standing.signed,
        "missing": standing.missing,
    })
}

fn status(args: &StatusArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let local = args.trust.visitor(None)?;
    let reply = block_on(async {
        let (mut client, _) = args.to.any(&local, &args.trust).await?;
        client.status().await.map_err(failed_call)
    })?;
    if let Some(path) = &args.keep {
        manager_mark::keep(path, &reply.mark)?;
    }
    let in_force = reply.policies.iter().find(|standing| standing.standing == "in-force");
    let mark: Option<Value> = serde_json::from_slice(&reply.mark).ok();
    if args.output.json() {
        out.json(&json!({
            "federation": reply.federation,
            "node": reply.node,
            "anchor": hex(&reply.anchor),
            "phase": reply.phase,
            "simulated": local.policy.attestation.simulated,
            "policies": reply.policies.iter().map(standing_json).collect::<Vec<_>>(),
            "shares": { "wanted": reply.shares_wanted, "from": reply.shares_from },
            "witnesses": { "wanted": reply.witnesses_wanted, "heard": reply.witnesses },
            "mark": mark,
            "equivocations": reply.equivocations,
            "leader": (!reply.leader.is_empty()).then_some(&reply.leader),
            "replicas": reply.replicas.iter().map(replica_json).collect::<Vec<_>>(),
        }));
    } else {
        say_status(&reply, out);
    }
    Ok(if in_force.is_some() { Exit::Done } else { Exit::Denied })
}

fn replica_json(replica: &wire::Replica) -> Value {
    json!({
        "replica": format!("{:016x}", replica.replica),
        "node": replica.node,
        "address": replica.address,
        "votes": replica.votes,
        "lag": replica.lag,
    })
}

fn say_status(reply: &wire::StatusReply, out: &mut Ui) {
    out.data(format_args!(
        "{} of {}, anchor {}: {}",
        reply.node,
        reply.federation,
        hex(&reply.anchor),
        reply.phase
    ));
    if reply.shares_wanted > 0 {
        out.data(format_args!(
            "waits for {} recovery shares; handed over by {}",
            reply.shares_wanted,
            or_nobody(&reply.shares_from)
        ));
    }
    if reply.witnesses_wanted > 0 {
        out.data(format_args!(
            "waits for {} nodes to confirm its state; heard {}",
            reply.witnesses_wanted,
            or_nobody(&reply.witnesses)
        ));
    }
    for policy in &reply.policies {
        out.data(format_args!(
            "{:<10} version {} {}",
            policy.standing,
            policy.version,
            hex(&policy.digest)
        ));
        if policy.standing == "proposed" {
            out.data(format_args!("           signed by {}", or_nobody(&policy.signed)));
            out.data(format_args!("           MISSING: {}", or_nobody(&policy.missing)));
        }
    }
    for replica in &reply.replicas {
        let part = match (replica.node == reply.leader, replica.votes) {
            (true, _) => "leads",
            (false, true) => "follows",
            (false, false) => "is sent the state",
        };
        let lag = replica.lag.filter(|lag| *lag > 0);
        let lag = lag.map_or(String::new(), |lag| format!(", {lag} entries behind"));
        out.data(format_args!(
            "{:<10} {} at {}{lag}",
            part, replica.node, replica.address
        ));
    }
    for told in &reply.equivocations {
        out.data(format_args!("WARNING: {told}"));
    }
}

fn or_nobody(names: &[String]) -> String {
    match names {
        [] => "nobody".to_owned(),
        names => names.join(", "),
    }
}

fn recover(args: &RecoverArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let newest = args.kept.as_deref().map(manager_mark::read).transpose()?;
    let remembered = Remembered {
        newest,
        without_nodes: args.without_nodes,
    };
    let local = args.whom.local()?;
    let key =
        SealingKey::of(&files::read_key(&args.whom.participant_key)?).map_err(|error| ui::fail(Exit::Failed, error))?;
    let phase = block_on(async {
        let mut client = args.whom.client(&local).await?;
        let own = client.share().await.map_err(failed_call)?;
        let share: SealedShare = serde_json::from_slice(&own.share)
            .map_err(|error| ui::failed(Exit::Failed, format!("the manager sent no share: {error}"), None))?;
        let opened =
            RecoveryShare::open(&local.policy.name, &share, &key).map_err(|error| ui::fail(Exit::Failed, error))?;
        let sealed = opened
            .pass_on(&own.recipient, &remembered)
            .map_err(|error| ui::fail(Exit::Failed, error))?;
        client.pass_on(&sealed).await.map_err(failed_call)
    })?;
    if args.output.json() {
        out.json(&json!({ "participant": args.whom.participant, "phase": phase }));
    } else {
        out.data(format_args!("handed over; the manager is {phase}"));
    }
    Ok(Exit::Done)
}

fn recipient(args: &RecipientArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let key = files::read_key(&args.participant_key)?;
    let recipient =
        Recipient::sign(&args.federation, &args.participant, &key).map_err(|error| ui::fail(Exit::Failed, error))?;
    files::write(&args.out, recipients::to_text(&recipient).as_bytes())?;
    out.note(format_args!(
        "{} goes into the manager's folder of recipients, under the name {}.recipient",
        args.out.display(),
        args.participant
    ));
    Ok(Exit::Done)
}

fn log(args: &LogArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let local = args.whom.local()?;
    let lines = block_on(async {
        let mut client = args.whom.client(&local).await?;
        let mut text = String::new();
        let mut count = 0;
        loop {
            let reply = client.audit(count, LINES).await.map_err(failed_call)?;
            if reply.lines.is_empty() {
                return Ok((text, count));
            }
            for line in &reply.lines {
                text.push_str(line);
                text.push('\n');
            }
            count += reply.lines.len() as u64;
        }
    })?;
    let (text, count) = lines;
    files::write(&args.out, text.as_bytes())?;
    out.note(format_args!(
        "{count} lines in {}; `cloister audit verify` says whether they are the manager's",
        args.out.display()
    ));
    Ok(Exit::Done)
}
