//! `cloister policy`: the agreement of a federation, drafted, explained, signed.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use cloister_attestation::identity::SigningKey;
use cloister_policy::{Policy, Signature, SignatureError, Signatures, SignedPolicy, explain, warnings};
use serde_json::json;

use super::policy_draft::{self, DraftArgs};
use crate::ui::{self, Exit, OutputArgs, Ui};

/// Draft, check and sign the agreement of a federation.
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
    Sign(SignArgs),
}

/// Say in plain words what a policy means, and warn of what deserves a second thought.
///
/// Ends with 2 if the file is no sound policy (with line and column of what is wrong), and with 4 if a signature is not good.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  cloister policy check digits.toml\n  cloister policy check digits.toml --sigs digits.toml.sigs -o json"
)]
struct CheckArgs {
    /// The policy.
    file: PathBuf,
    /// Its signatures; by default FILE.sigs, if there is one.
    #[arg(long, value_name = "FILE")]
    sigs: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Sign a policy as one of its participants; the signature goes to FILE.sigs, beside those of the others.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  cloister policy sign digits.toml --key alpha.pem --participant alpha")]
struct SignArgs {
    /// The policy.
    file: PathBuf,
    /// The participant's private key (PEM), as `cloister identity new` wrote it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The participant that signs.
    #[arg(long, value_name = "NAME")]
    participant: String,
}

/// Runs the command.
pub fn run(args: PolicyArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match args.command {
        Command::Check(args) => check(&args, out),
        Command::Draft(args) => policy_draft::run(&args, out),
        Command::Sign(args) => sign(&args, out),
    }
}

fn check(args: &CheckArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let policy = read_policy(&args.file)?;
    let beside = signatures_path(&args.file);
    let sigs = args.sigs.clone().or_else(|| beside.exists().then_some(beside));
    let signatures = sigs.as_deref().map(read_signatures).transpose()?.unwrap_or_default();
    let missing = match SignedPolicy::new(policy.clone(), &signatures) {
        Ok(_) => Vec::new(),
        // Drafts and templates are there to be read before they can run.
        Err(SignatureError::Missing { missing }) => missing,
        Err(SignatureError::Placeholder { .. }) => Vec::new(),
        Err(error) => return Err(ui::fail(Exit::Denied, error)),
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
            "signatures_wanted": missing,
        }));
        return Ok(Exit::Done);
    }
    for line in explain(&policy) {
        out.data(line);
    }
    out.data(match signers.as_slice() {
        [] => "Signed by nobody yet.".to_owned(),
        signers => format!("Signed by {}.", signers.join(", ")),
    });
    if !missing.is_empty() {
        out.data(format_args!("Nodes refuse it until {} sign it.", missing.join(", ")));
    }
    for warning in warnings(&policy) {
        out.data(format_args!("WARNING: {warning}."));
    }
    Ok(Exit::Done)
}

fn sign(args: &SignArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let policy = read_policy(&args.file)?;
    let pem = zeroize::Zeroizing::new(read(&args.key)?);
    let pem = std::str::from_utf8(&pem).map_err(|_| not_text(&args.key))?;
    let key = SigningKey::from_pem(pem).map_err(ui::unreadable)?;
    let path = signatures_path(&args.file);
    let mut signatures = if path.exists() {
        read_signatures(&path)?
    } else {
        Signatures::default()
    };
    signatures.add(Signature::sign(&policy, &args.participant, &key).map_err(|error| ui::fail(Exit::Denied, error))?);
    write(&path, signatures.to_text().as_bytes())?;
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
    Policy::parse(&read(path)?, &path.display().to_string()).map_err(ui::unreadable)
}

fn read_signatures(path: &Path) -> Result<Signatures, miette::Report> {
    Signatures::parse(&read(path)?, &path.display().to_string()).map_err(ui::unreadable)
}

/// Where a policy's signatures stand: `.sigs` behind its whole name.
fn signatures_path(policy: &Path) -> PathBuf {
    let mut name = policy.as_os_str().to_owned();
    name.push(".sigs");
    name.into()
}

fn not_text(path: &Path) -> miette::Report {
    ui::failed(
        Exit::Usage,
        format!("{} is no text; a PEM file is wanted", path.display()),
        None,
    )
}

/// Reads a whole file of at most a few MiB.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, miette::Report> {
    std::fs::read(path)
        .map_err(|error| ui::failed(Exit::Usage, format!("{} cannot be read: {error}", path.display()), None))
}

/// Writes a file whole or not at all.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), miette::Report> {
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let written = tempfile::Builder::new()
        .permissions(readable_by_all())
        .tempfile_in(dir)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        });
    written.map_err(|error| {
        ui::failed(
            Exit::Failed,
            format!("{} cannot be written: {error}", path.display()),
            None,
        )
    })
}

fn readable_by_all() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}
