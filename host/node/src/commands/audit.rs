//! `cloister audit`: what a node wrote down, and whether it is what it was.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use cloister_attestation::identity::{Credential, CredentialFields, MAX_CREDENTIAL_BYTES, PublicKey};
use cloister_audit::{AuditError, Checkpoint, Contents, Entry, Reader, Subject};
use cloister_policy::Policy;
use serde_json::json;

use super::audit_receipt::{self, ReceiptArgs};
use super::policy::read_policy;
use crate::files;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// No checkpoint file is larger than this.
const MAX_CHECKPOINT_BYTES: u64 = 4096;

/// Check and read the audit log of a node (agreements, evidence, refusals, rounds) and receipts of rounds.
///
/// A node writes one where its node file names it (`audit = "audit.jsonl"`): a JSON object a line, each with the digest of the
/// line before it and the node's signature.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister audit verify audit.jsonl --credential hub.credential --policy digits.toml --save hub.checkpoint
  cloister audit verify audit.jsonl --credential hub.credential --policy digits.toml --checkpoint hub.checkpoint
  cloister audit show audit.jsonl --credential hub.credential --policy digits.toml --event round
  cloister audit tail audit.jsonl --credential hub.credential --policy digits.toml --lines 5
  cloister audit receipt receipt.bin --credential hub.credential --policy digits.toml")]
pub struct AuditArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Verify(VerifyArgs),
    Show(ShowArgs),
    Tail(TailArgs),
    Receipt(ReceiptArgs),
}

/// Check that a log is what the node wrote, and that it extends the checkpoints that you kept.
///
/// A chain can't show that its end was cut off, or that an older copy was put back: keep a checkpoint (--save), and ask next time
/// that the log extends it (--checkpoint). Ends with 1 if the log is not what it was.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister audit verify audit.jsonl --credential hub.credential --policy digits.toml --save monday.checkpoint
  cloister audit verify audit.jsonl --credential hub.credential --policy digits.toml --checkpoint monday.checkpoint -o json")]
struct VerifyArgs {
    #[command(flatten)]
    log: LogArgs,
    /// A checkpoint that the log has to extend (repeat).
    #[arg(long = "checkpoint", value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// Write the log's end to this file, to be kept: a checkpoint that the node signed.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Print what a log says. It is checked as by `verify`, first.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  cloister audit show audit.jsonl --credential hub.credential --policy digits.toml --event refused -o json")]
struct ShowArgs {
    #[command(flatten)]
    log: LogArgs,
    /// Only entries of this event: agreement, references, measured, attested, refused, dropped, round.
    #[arg(long, value_name = "NAME")]
    event: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Print the last entries of a log. It is checked as by `verify`, first.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  cloister audit tail audit.jsonl --credential hub.credential --policy digits.toml --lines 3")]
struct TailArgs {
    #[command(flatten)]
    log: LogArgs,
    /// How many.
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    lines: u32,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
struct LogArgs {
    /// The log.
    log: PathBuf,
    #[command(flatten)]
    signer: SignerArgs,
    /// The name that the log goes by, where several managers wrote it: the one that made their store. The credential is that of
    /// the manager that led last.
    #[arg(long, value_name = "NODE")]
    log_of: Option<String>,
}

/// Which node signed, and how that is known.
#[derive(Args, Debug)]
pub(super) struct SignerArgs {
    /// The node's credential: whose word it is, and the key that signs it.
    #[arg(long, value_name = "FILE")]
    credential: PathBuf,
    /// The policy, whose participant has to have signed that credential.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
}

impl SignerArgs {
    /// The policy, and the node by a credential that its participant signed. That one may have expired since: what was signed stays
    /// signed.
    pub(super) fn proven(&self) -> Result<(Policy, CredentialFields), miette::Report> {
        let policy = read_policy(&self.policy)?;
        let bytes = files::read(&self.credential, MAX_CREDENTIAL_BYTES as u64)?;
        let credential = Credential::parse(&String::from_utf8_lossy(&bytes)).map_err(ui::unreadable)?;
        let fields = &credential.fields;
        let denied = |text: String| ui::failed(Exit::Denied, text, None);
        if fields.federation != policy.name {
            let text = format!(
                "the credential is for the federation {:?}, the policy is of {:?}",
                fields.federation, policy.name
            );
            return Err(denied(text));
        }
        let key = policy.participant_key(&fields.participant).ok_or_else(|| {
            denied(format!(
                "the policy has no participant {:?}, who endorses the node",
                fields.participant
            ))
        })?;
        if let Some(failed) = credential.verify(&key, 0).first() {
            return Err(denied(failed.to_string()));
        }
        Ok((policy, credential.fields))
    }
}

impl LogArgs {
    /// Whose log it is, and the key that signs it.
    fn whose(&self) -> Result<(Subject, PublicKey), miette::Report> {
        let (_, fields) = self.signer.proven()?;
        let subject = Subject {
            federation: fields.federation,
            node: self.log_of.clone().unwrap_or(fields.node),
        };
        Ok((subject, fields.node_key))
    }

    fn open(&self) -> Result<BufReader<File>, miette::Report> {
        let file = File::open(&self.log).map_err(|error| {
            let text = format!("{} cannot be read: {error}", self.log.display());
            ui::failed(Exit::Usage, text, files::help(error.kind()))
        })?;
        Ok(BufReader::with_capacity(1 << 16, file))
    }
}

/// Runs the command.
pub fn run(args: &AuditArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match &args.command {
        Command::Verify(args) => verify(args, out),
        Command::Show(args) => show(args, out),
        Command::Tail(args) => tail(args, out),
        Command::Receipt(args) => audit_receipt::run(args, out),
    }
}

fn not_as_it_was(path: &Path, error: AuditError) -> miette::Report {
    let exit = match &error {
        AuditError::Io { cause, .. } if cause.kind() == ErrorKind::IsADirectory => Exit::Usage,
        _ => Exit::Failed,
    };
    ui::failed(exit, format!("{}: {error}", path.display()), None)
}

fn verify(args: &VerifyArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    if let Some(save) = &args.save {
        // A checkpoint may be replaced by the one that extends it.
        let signer = &args.log.signer;
        let inputs = [&args.log.log, &signer.credential, &signer.policy];
        files::not_an_input(save, inputs.map(PathBuf::as_path))?;
    }
    let (subject, key) = args.log.whose()?;
    let mut reader = Reader::new(subject.clone());
    for path in &args.checkpoints {
        let checkpoint = Checkpoint::parse(&files::read(path, MAX_CHECKPOINT_BYTES)?);
        let checkpoint =
            checkpoint.map_err(|error| ui::failed(Exit::Usage, format!("{}: {error}", path.display()), None))?;
        reader = reader
            .extends(checkpoint, &key)
            .map_err(|error| not_as_it_was(path, error))?;
    }
    let contents = reader
        .verify(&mut args.log.open()?, &key)
        .map_err(|error| not_as_it_was(&args.log.log, error))?;
    if let Some(path) = &args.save {
        let Some(last) = &contents.last else {
            return Err(ui::failed(
                Exit::Failed,
                "the log has no line yet: there is nothing to keep",
                None,
            ));
        };
        files::write(path, last.to_text().as_bytes())?;
    }
    if args.output.json() {
        out.json(&json!({
            "federation": subject.federation,
            "node": subject.node,
            "lines": contents.lines,
            "digest": contents.digest.to_string(),
            "torn_bytes": contents.torn_bytes,
            "extends": args.checkpoints.len(),
        }));
    } else {
        out.data(format_args!(
            "{} lines by {} of {}, each behind the one before it, the last one ({}) signed by the node.",
            contents.lines,
            subject.node,
            subject.federation,
            contents.digest.short()
        ));
        match args.checkpoints.len() {
            0 => out.data("No --checkpoint was given: whether its end was cut off can't be told."),
            1 => out.data("It extends the checkpoint."),
            several => out.data(format_args!("It extends the {several} checkpoints.")),
        }
    }
    say_torn(&contents, out);
    Ok(Exit::Done)
}

fn say_torn(contents: &Contents, out: &mut Ui) {
    if contents.torn_bytes > 0 {
        out.note(format_args!(
            "{} bytes behind the last line: the node is writing one, or stopped while it did",
            contents.torn_bytes
        ));
    }
}

/// Reads the log twice: once to check it, once to give its entries. A line that was added in between is left out.
fn proven(args: &LogArgs, each: &mut dyn FnMut(Entry)) -> Result<(), miette::Report> {
    let (subject, key) = args.whose()?;
    let fault = |error| not_as_it_was(&args.log, error);
    let contents = Reader::new(subject.clone())
        .verify(&mut args.open()?, &key)
        .map_err(fault)?;
    let Some(last) = contents.last else { return Ok(()) };
    let reader = Reader::new(subject).extends(last, &key).map_err(fault)?;
    let mut within = |entry: Entry| {
        if entry.index < contents.lines {
            each(entry);
        }
    };
    reader.entries(&mut args.open()?, &key, &mut within).map_err(fault)?;
    Ok(())
}

fn print(entry: &Entry, json: bool, out: &mut Ui) {
    if json {
        if let Ok(line) = serde_json::to_string(entry) {
            out.data(line);
        }
        return;
    }
    out.data(format_args!(
        "{:>6}  {}  {:<10} {}",
        entry.index + 1,
        entry.time_unix_s,
        entry.event,
        entry.what
    ));
}

fn show(args: &ShowArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let json = args.output.json();
    let mut each = |entry: Entry| {
        if args.event.as_ref().is_none_or(|wanted| *wanted == entry.event) {
            print(&entry, json, out);
        }
    };
    proven(&args.log, &mut each)?;
    Ok(Exit::Done)
}

fn tail(args: &TailArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let wanted = args.lines as usize;
    let mut last = VecDeque::new();
    proven(&args.log, &mut |entry| {
        if last.len() == wanted {
            last.pop_front();
        }
        last.push_back(entry);
    })?;
    for entry in &last {
        print(entry, args.output.json(), out);
    }
    Ok(Exit::Done)
}
