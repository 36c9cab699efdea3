//! `cloister policy`: the agreement of a federation, drafted, explained, signed.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use cloister_policy::{
    Policy, Signature, SignatureError, Signatures, SignedPolicy, broken_rules, diff, explain, warnings,
};
use serde_json::json;

use super::policy_draft::{self, DraftArgs};
use super::policy_image::{self, FromImageArgs};
use super::policy_publish::{self, PublishArgs};
use super::policy_reference::{self, FromQuoteArgs, ReferenceArgs};
use super::policy_succession::{self, DiffArgs, HistoryArgs, StatusArgs};
use crate::consistency::{self, AtHand};
use crate::files;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// No policy, file of signatures or description of a dataset is larger than this.
pub(super) const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Draft, check and sign the agreement of a federation, and follow it from version to version.
#[derive(Args, Debug)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
#[allow(clippy::large_enum_variant, reason = "parsed once")]
enum Command {
    Check(CheckArgs),
    Draft(DraftArgs),
    FromImage(FromImageArgs),
    FromQuote(FromQuoteArgs),
    Reference(ReferenceArgs),
    Sign(SignArgs),
    Publish(PublishArgs),
    Status(StatusArgs),
    Diff(DiffArgs),
    History(HistoryArgs),
}

/// Say in plain words what a policy means, and warn of what deserves a second thought.
///
/// Ends with 2 if the file is no sound policy (with line and column of what is wrong), and with 4 if a signature is not good.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cloister policy check digits.toml\n  cloister policy check digits.toml --content submissions\n  cloister policy check digits.toml --sigs digits.toml.sigs -o json"
)]
struct CheckArgs {
    /// The policy.
    file: PathBuf,
    /// Its signatures; by default FILE.sigs, if there is one.
    #[arg(long, value_name = "FILE")]
    sigs: Option<PathBuf>,
    /// A folder with modules, graphs and weights of the policy: those that it names by their SHA-256 are compared with its settings,
    /// grants and datasets.
    #[arg(long, value_name = "DIR")]
    content: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Sign a policy as one of its participants; the signature goes to FILE.sigs, beside those of the others.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister policy sign digits.toml --key keys/alpha.key --participant alpha
  cloister policy sign digits-2.toml --key keys/gamma.key --participant gamma --predecessor digits.toml")]
struct SignArgs {
    /// The policy.
    file: PathBuf,
    /// The participant's private key (PEM), as `cloister identity new` wrote it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The participant that signs.
    #[arg(long, value_name = "NAME")]
    participant: String,
    /// The policy that this one follows: what changes is told, and a participant that leaves or changes its key signs as
    /// that policy knows it.
    #[arg(long, value_name = "FILE")]
    predecessor: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: PolicyArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match args.command {
        Command::Check(args) => check(&args, out),
        Command::Draft(args) => policy_draft::run(&args, out),
        Command::FromImage(args) => policy_image::run(&args, out),
        Command::FromQuote(args) => policy_reference::from_quote(&args, out),
        Command::Reference(args) => policy_reference::run(args, out),
        Command::Sign(args) => sign(&args, out),
        Command::Publish(args) => policy_publish::run(&args, out),
        Command::Status(args) => policy_succession::status(&args, out),
        Command::Diff(args) => policy_succession::compare(&args, out),
        Command::History(args) => policy_succession::history(&args, out),
    }
}

fn check(args: &CheckArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let policy = read_policy(&args.file)?;
    if let Some(folder) = &args.content {
        let mut at_hand = AtHand::default();
        let missing = at_hand.folder(folder, &policy)?;
        consistency::refuse(&at_hand.problems(&policy), Exit::Failed)?;
        out.note(match missing.as_slice() {
            [] => format!("its modules, graphs and weights in {} fit it", folder.display()),
            missing => format!(
                "what {} holds of it fits; not there, hence not compared: {}",
                folder.display(),
                missing.join(", ")
            ),
        });
    }
    let beside = signatures_path(&args.file);
    let sigs = args.sigs.clone().or_else(|| beside.exists().then_some(beside));
    let signatures = sigs.as_deref().map(read_signatures).transpose()?.unwrap_or_default();
    // What a policy says comes first, whatever its signatures: whoever is to sign reads it before.
    let (missing, wrong) = match SignedPolicy::new(policy.clone(), &signatures) {
        Ok(_) => (Vec::new(), None),
        // Drafts and templates are there to be read before they can run.
        Err(SignatureError::Missing { missing, .. }) => (missing, None),
        Err(SignatureError::Placeholder { .. }) => (Vec::new(), None),
        Err(error) => (Vec::new(), Some(ui::fail(Exit::Denied, error))),
    };
    let signers: Vec<_> = signatures
        .iter()
        .map(|signature| signature.participant.as_str())
        .collect();
    if args.output.json() {
        let warnings: Vec<_> = warnings(&policy)
            .iter()
            .map(|warning| json!({ "kind": warning.kind.as_str(), "text": warning.text }))
            .collect();
        out.json(&json!({
            "name": policy.name,
            "version": policy.version,
            "sha256": policy.digest().to_string(),
            "simulated": policy.attestation.simulated,
            "explanation": explain(&policy),
            "warnings": warnings,
            "signed_by": signers,
            "signatures_valid": wrong.is_none(),
            "signatures_wanted": missing,
        }));
        return wrong.map_or(Ok(Exit::Done), Err);
    }
    for line in explain(&policy) {
        out.data(line);
    }
    out.data(match signers.as_slice() {
        [] => "Signed by nobody yet.".to_owned(),
        signers if wrong.is_some() => format!("Signatures that do not all hold are there by {}.", signers.join(", ")),
        signers => format!("Signed by {}.", signers.join(", ")),
    });
    if !missing.is_empty() {
        let threshold = policy.consent.threshold;
        out.data(format_args!(
            "Nodes refuse it until {threshold} participants signed it; not yet: {}.",
            missing.join(", ")
        ));
    }
    for warning in warnings(&policy) {
        out.data(format_args!("WARNING: {warning}."));
    }
    wrong.map_or(Ok(Exit::Done), Err)
}

fn sign(args: &SignArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let policy = read_policy(&args.file)?;
    let key = files::read_key(&args.key)?;
    let path = signatures_path(&args.file);
    let mut signatures = if path.exists() {
        read_signatures(&path)?
    } else {
        Signatures::default()
    };
    let predecessor = args.predecessor.as_deref().map(read_policy).transpose()?;
    let mut signature = Signature::sign(&policy, &args.participant, &key);
    if let Some(before) = &predecessor {
        if let Some(failed) = broken_rules(before, &policy).first() {
            let text = format!("{} can't follow that policy: {failed}", args.file.display());
            return Err(ui::failed(Exit::Denied, text, None));
        }
        for change in diff(before, &policy) {
            if let Some(concern) = change.concern {
                out.note(format_args!("WARNING: {}: {concern}.", change.text));
            }
        }
        signature = signature.or_else(|_| Signature::sign_as(&policy, before, &args.participant, &key));
    }
    signatures.add(signature.map_err(|error| ui::fail(Exit::Denied, error))?);
    files::write(&path, signatures.to_text().as_bytes())?;
    for warning in warnings(&policy) {
        out.note(format_args!("WARNING: {warning}."));
    }
    let text = format!(
        "{} signed {} (SHA-256 {}) in {}",
        args.participant,
        args.file.display(),
        policy.digest(),
        path.display()
    );
    out.note(text);
    Ok(Exit::Done)
}

pub(super) fn read_policy(path: &Path) -> Result<Policy, miette::Report> {
    Policy::parse(&files::read(path, MAX_FILE_BYTES)?, &path.display().to_string()).map_err(ui::unreadable)
}

pub(super) fn read_signatures(path: &Path) -> Result<Signatures, miette::Report> {
    Signatures::parse(&files::read(path, MAX_FILE_BYTES)?, &path.display().to_string()).map_err(ui::unreadable)
}

/// Where a policy's signatures stand: `.sigs` behind its whole name.
pub(super) fn signatures_path(policy: &Path) -> PathBuf {
    files::with_suffix(policy, ".sigs")
}
