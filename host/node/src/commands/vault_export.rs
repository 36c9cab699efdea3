//! `cloister vault export` and `cloister vault receive`: files out of a vault, into a folder by its key, or out of the vault of a
//! federation's aggregator to whom the policy releases the model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_attestation::State;
use cloister_attestation::identity::Role;
use cloister_manager::{ExportNote, SealingPublicKey};
use cloister_rounds::Receipt;
use cloister_session::{DialOptions, ListenLimits, Listener, Proxy, SessionError, connect};
use cloister_vault::{Access, Cipher, FileName, SealedReader, Vault};
use serde_json::json;
use tempfile::NamedTempFile;
use tokio_util::sync::CancellationToken;

use super::peer::block_on;
use super::vault::{Place, exit_of, say_freshness, write_out};
use crate::events::{Event, Teller};
use crate::export::deliver::{DeliverError, Delivery, Receiver};
use crate::export::package::{self, ExportError, Recipient};
use crate::files;
use crate::keeper::Keeper;
use crate::keeper::measured::Loaded;
use crate::manager::recipients;
use crate::process::{ParentArgs, until_signal};
use crate::roles::checkpoint;
use crate::roles::ending::{fence, give_lease_back};
use crate::ui::{Exit, OutputArgs, Ui, fail, failed, refused, unreadable};

/// Open all files of a vault into a folder by its key, or release the final model out of an aggregator's vault.
///
/// With --config this is the aggregator's node, in its TD: the vault's key stays there. What leaves is the model of the last round, sealed
/// under keys of its own, for one of those whom [release] in the policy names: a participant (--to NAME, opened by `cloister unseal`), or
/// a TD of such a participant with the role server (--to HOST:PORT, where `cloister vault receive` waits and is attested first).
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cloister vault export vault --to ./opened --key-file vault.key --last-seen vault.last-seen
  cloister vault export --config aggregator.toml --to institute --recipient institute.recipient --out model.export
  cloister vault export --config aggregator.toml --to trusted.example.org:7900")]
pub(super) struct ExportArgs {
    /// The vault's folder.
    #[arg(required_unless_present = "config", conflicts_with = "config")]
    vault: Option<PathBuf>,
    /// The file with the vault key.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "config",
        conflicts_with = "config"
    )]
    key_file: Option<PathBuf>,
    /// The record against rollback, outside the vault. Without it freshness is not proven.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    last_seen: Option<PathBuf>,
    /// The aggregator's node file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A folder, made when missing, in which nothing is overwritten; with --config a participant, or HOST:PORT of a TD.
    #[arg(long, value_name = "DIR|PARTICIPANT|HOST:PORT")]
    to: String,
    /// The participant's key, which it signed: `cloister manager recipient` makes such a file.
    #[arg(long, value_name = "FILE", requires = "config", requires = "out")]
    recipient: Option<PathBuf>,
    /// Where to write the sealed model for a participant.
    #[arg(long, value_name = "FILE", requires = "recipient")]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Wait in this TD for a federation's model, and open it into a folder of the TD's.
///
/// The node file is that of a node with the role server whose participant the policy's [release] names. Whoever exports verifies this
/// TD's evidence before anything is sealed to it. Ends when one export was opened.
#[derive(clap::Args, Debug)]
#[command(after_help = "Example:\n  cloister vault receive --config trusted.toml --out /run/model")]
pub(super) struct ReceiveArgs {
    /// The node file, with `listen`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The folder; made when missing. Nothing in it is overwritten.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    parent: ParentArgs,
}

/// Exit code 4 for what the policy denies, 1 for the rest.
pub(super) fn export_failed(error: ExportError) -> miette::Report {
    let exit = match &error {
        ExportError::NotGranted(_) | ExportError::NotOurs(_) => Exit::Denied,
        _ => Exit::Failed,
    };
    fail(exit, error)
}

/// Runs `cloister vault export`.
pub(super) fn export(args: &ExportArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match (&args.config, &args.vault, &args.key_file) {
        (Some(config), ..) => release(config, args, out),
        (None, Some(vault), Some(key_file)) => {
            let place = Place {
                vault: vault.clone(),
                key_file: key_file.clone(),
                last_seen: args.last_seen.clone(),
            };
            into_folder(&place, Path::new(&args.to), out)
        }
        _ => Err(failed(Exit::Usage, "give a vault with --key-file, or --config", None)),
    }
}

fn into_folder(place: &Place, to: &Path, out: &mut Ui) -> Result<Exit, miette::Report> {
    let vault = place.open(Access::Read)?;
    say_freshness(&vault, out);
    for name in vault.index().files.keys() {
        let path = to.join(name.as_str());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|cause| {
                let text = format!("{}: {cause}", folder.display());
                failed(Exit::Failed, text, files::help(cause.kind()))
            })?;
        }
        let reader = vault
            .get(name, Cipher::Bulk)
            .map_err(|error| fail(exit_of(&error), error))?;
        write_out(reader, &path)?;
        out.data(path.display());
    }
    Ok(Exit::Done)
}

/// To whom the policy releases the model.
fn release(config: &Path, args: &ExportArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let keeper = Keeper::open(config, Role::Aggregator)?;
    let (vault, receipt) = checkpoint::released(&keeper)?;
    let participant = keeper.policy.participants.iter().find(|known| known.name == args.to);
    let told = match (participant, &args.recipient, &args.out) {
        (Some(participant), Some(recipient), Some(path)) => {
            let to = Recipient::Participant(participant.name.clone());
            let key = recipients::of(recipient, &keeper.policy, participant)?;
            to_participant(&keeper, (&vault, &receipt), (&to, &key), path)
        }
        (Some(_), ..) => Err(failed(
            Exit::Usage,
            format!("for {} give --recipient and --out", args.to),
            Some("`cloister manager recipient` writes the participant's key".into()),
        )),
        (None, None, _) => {
            let address = crate::keeper::config::address(&args.to).map_err(|error| {
                let text = format!(
                    "--to {}: neither a participant of the policy, nor HOST:PORT: {error}",
                    args.to
                );
                failed(Exit::Usage, text, None)
            })?;
            block_on(to_td(&keeper, (&vault, &receipt), &address))
        }
        (None, Some(_), _) => Err(failed(
            Exit::Denied,
            format!("the policy has no participant {}", args.to),
            None,
        )),
    };
    give_lease_back(&keeper)?;
    let to = told?;
    let model = receipt.model_after;
    if args.output.json() {
        out.json(&json!({ "to": to, "round": receipt.round, "model": model, "out": args.out }));
    } else {
        out.data(format_args!(
            "the model of round {} ({model}) went to {to}",
            receipt.round
        ));
    }
    Ok(Exit::Done)
}

fn contents(vault: &Vault) -> Result<Vec<(FileName, SealedReader)>, miette::Report> {
    let names = vault.index().files.keys();
    let opened = names.map(|name| Ok((name.clone(), vault.get(name, Cipher::Bulk)?)));
    let opened: Result<_, cloister_vault::VaultError> = opened.collect();
    opened.map_err(|error| fail(Exit::Failed, error))
}

fn sealed(
    keeper: &Keeper,
    (vault, receipt): (&Vault, &Receipt),
    (to, key): (&Recipient, &SealingPublicKey),
    folder: &Path,
) -> Result<NamedTempFile, miette::Report> {
    to.granted(&keeper.policy).map_err(export_failed)?;
    let which = (receipt.round, receipt.model_after);
    let from = (&*keeper.policy, &*keeper.identity);
    let (file, _) = package::write(from, (to, key), which, contents(vault)?, folder).map_err(export_failed)?;
    // On the disk, and in the manager's log, before anybody can have it.
    if let Some(link) = &keeper.link {
        let export = ExportNote {
            to: to.to_string(),
            round: receipt.round,
            model: receipt.model_after,
        };
        link.note_export(export).map_err(|error| fail(Exit::Failed, error))?;
    }
    let what = json!({ "to": to.to_string(), "round": receipt.round, "model": receipt.model_after });
    keeper.audit.must("exported", what)?;
    Ok(file)
}

fn to_participant(
    keeper: &Keeper,
    kept: (&Vault, &Receipt),
    (to, key): (&Recipient, &SealingPublicKey),
    path: &Path,
) -> Result<String, miette::Report> {
    let unwritable = |cause: std::io::Error| {
        let text = format!("{} cannot be written: {cause}", path.display());
        failed(Exit::Failed, text, files::help(cause.kind()))
    };
    if path.exists() {
        return Err(unwritable(std::io::ErrorKind::AlreadyExists.into()));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let file = sealed(keeper, kept, (to, key), folder.unwrap_or(Path::new(".")))?;
    file.persist_noclobber(path).map_err(|error| unwritable(error.error))?;
    Ok(to.to_string())
}

async fn to_td(keeper: &Keeper, kept: (&Vault, &Receipt), address: &str) -> Result<String, miette::Report> {
    let simulated = keeper.quotes.simulated();
    let in_session = |error: SessionError| match error.refusal() {
        Some(_) => refused(error, simulated),
        None => fail(Exit::Failed, error),
    };
    let dial = DialOptions {
        address: address.to_owned(),
        proxy: keeper
            .config
            .proxy
            .as_deref()
            .map(str::parse::<Proxy>)
            .transpose()
            .map_err(unreadable)?,
        role: Some(Role::Server),
    };
    let connection = connect(&keeper.visiting()?, &dial).await.map_err(in_session)?;
    let node = connection.peer().permit().map(|permit| permit.node().to_owned());
    let node = node.ok_or_else(|| failed(Exit::Refused, "the peer showed no evidence of a TD", None))?;
    let to = Recipient::Node {
        name: node,
        connection: *connection.peer().connection(),
    };
    to.granted(&keeper.policy).map_err(export_failed)?;
    let delivery = |error: DeliverError| match error {
        DeliverError::Session(error) => in_session(error),
        error => fail(Exit::Failed, error),
    };
    let mut there = Delivery::offer(connection, address).await.map_err(delivery)?;
    let folder = keeper.config.vault.as_ref().map(|vault| vault.path.as_path());
    let mut file = sealed(keeper, kept, (&to, &there.key), folder.unwrap_or(Path::new(".")))?;
    there.deliver(&mut file).await.map_err(delivery)?;
    Ok(to.to_string())
}

/// Runs `cloister vault receive`.
pub(super) fn receive(args: &ReceiveArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    args.parent.tie().map_err(|error| fail(Exit::Failed, error))?;
    let keeper = Keeper::open(&args.config, Role::Server)?;
    let name = keeper.config.name.clone();
    let address = keeper.config.listen.ok_or_else(|| {
        failed(
            Exit::Usage,
            "a node that receives wants `listen` in its node file",
            None,
        )
    })?;
    let me = Recipient::Node {
        name: name.clone(),
        connection: [0; 32],
    };
    me.granted(&keeper.policy).map_err(export_failed)?;
    std::fs::create_dir_all(&args.out).map_err(|cause| {
        let text = format!("{}: {cause}", args.out.display());
        failed(Exit::Failed, text, files::help(cause.kind()))
    })?;
    let certificate = keeper.certificate(State::Bootstrap, &Loaded::default())?;
    // Model, the same as ONNX, receipt, and what stands around them.
    let limit = keeper
        .policy
        .limits
        .update_mib
        .saturating_mul(3 << 20)
        .saturating_add(4 << 20);
    let into = (args.out.clone(), limit);
    let receiver = Receiver::new((Arc::clone(&keeper.policy), keeper.clock()), &name, into);
    let receiver = receiver.map_err(|error| fail(Exit::Failed, error))?;
    let teller = Teller::new(args.output.json());
    let received = block_on(async {
        let cancel = CancellationToken::new();
        tokio::spawn(until_signal(cancel.clone()));
        fence(&keeper, &cancel);
        let audit = keeper.audit.clone();
        let on_refused: cloister_session::OnRefused = Arc::new(move |error| {
            tracing::warn!("not let in: {error}");
            if error.refusal().is_some() {
                audit.refused(&error.to_string());
            }
        });
        let local = keeper.local(&certificate);
        let listener = Listener::bind(local, &address.to_string(), ListenLimits::default(), on_refused)
            .await
            .map_err(|error| fail(Exit::Failed, error))?;
        teller.tell(&Event::Listening {
            address: listener.address().to_string(),
        });
        let served = receiver.serve(listener, cancel.cancelled_owned()).await;
        served.map_err(|error| fail(Exit::Failed, error))
    })?;
    give_lease_back(&keeper)?;
    let Some(received) = received else {
        return Err(failed(Exit::Failed, "asked to end before a model came", None));
    };
    let model = received.statement.model;
    let round = received.statement.round;
    keeper
        .audit
        .must("received", json!({ "round": round, "model": model }))?;
    teller.tell(&Event::Received {
        round,
        model: model.to_string(),
        files: received.files.iter().map(|path| path.display().to_string()).collect(),
    });
    if !args.output.json() {
        out.note(format_args!("the model of round {round} is in {}", args.out.display()));
    }
    Ok(Exit::Done)
}
