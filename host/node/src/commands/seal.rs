//! `cloister seal` and `cloister unseal`: modules and datasets that travel where their keys do not.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use cloister_manager::SealingKey;
use cloister_policy::Policy;
use cloister_tensor::Digest;
use cloister_vault::{Cipher, ParcelError, ParcelKind, READ_AHEAD_BYTES, VaultKey, open_parcel, seal_parcel};
use serde_json::json;
use tempfile::NamedTempFile;

use super::vault::bar;
use crate::export::package::{self, Recipient};
use crate::files;
use crate::through::Through;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// No policy file is larger.
const MAX_POLICY_BYTES: u64 = 1 << 20;

/// Seal a module or a dataset under a key of its own, so that the file can be kept and sent anywhere.
///
/// The key file is new, and readable by its owner alone. Who has it opens the file (`cloister unseal`); who loses it has lost
/// the content. Memory does not grow with the content. No file appears unless it is whole, and none is overwritten.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cloister seal module train_sgd.wasm --out train_sgd.wasm.sealed --key-out train_sgd.key
  cloister seal data patients.csv --out patients.csv.sealed --key-out patients.key -o json")]
pub struct SealArgs {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(clap::Subcommand, Debug)]
enum Kind {
    /// Seal a WebAssembly module.
    #[command(after_help = "Example:\n  cloister seal module train.wasm --out train.wasm.sealed --key-out train.key")]
    Module(OneArgs),
    /// Seal a dataset.
    #[command(after_help = "Example:\n  cloister seal data rows.csv --out rows.csv.sealed --key-out rows.key")]
    Data(OneArgs),
}

#[derive(clap::Args, Debug)]
struct OneArgs {
    /// The file to seal.
    file: PathBuf,
    /// The sealed file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Where to write the new key.
    #[arg(long, value_name = "FILE")]
    key_out: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Open a file that `cloister seal` made, or a model that a federation released to a participant.
///
/// The file appears when all of it is authentic, and not before. With --sha256 it also has to be that very content. A released model
/// (`cloister vault export`) opens with its participant's key into a folder, if a node of the policy signed it.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cloister unseal train_sgd.wasm.sealed --key-file train_sgd.key --out train_sgd.wasm
  cloister unseal rows.csv.sealed --key-file rows.key --out rows.csv --sha256 \"$(cat rows.sha256)\"
  cloister unseal model.export --policy wards.toml --participant north --participant-key north.pem --out model")]
pub struct UnsealArgs {
    /// The sealed file.
    file: PathBuf,
    /// Its key.
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "participant_key",
        conflicts_with = "participant_key"
    )]
    key_file: Option<PathBuf>,
    /// Where to write the content, readable by its owner alone; of a released model a folder.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// The SHA-256 that the content must have.
    #[arg(long, value_name = "SHA256", conflicts_with = "participant_key")]
    sha256: Option<Digest>,
    /// The private key (PEM) of the participant to whom a model was released.
    #[arg(long, value_name = "FILE", requires = "participant", requires = "policy")]
    participant_key: Option<PathBuf>,
    /// That participant.
    #[arg(long, value_name = "NAME", requires = "participant_key")]
    participant: Option<String>,
    /// The policy under which it was trained.
    #[arg(long, value_name = "FILE", requires = "participant_key")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `cloister seal`.
pub fn seal(args: &SealArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let (kind, args) = match &args.kind {
        Kind::Module(args) => (ParcelKind::Module, args),
        Kind::Data(args) => (ParcelKind::Data, args),
    };
    let (file, bytes) = open(&args.file)?;
    for path in [&args.out, &args.key_out] {
        if path.exists() {
            return Err(there(path));
        }
    }
    let (key, salt) = VaultKey::generate()
        .and_then(|key| Ok((key, VaultKey::salt()?)))
        .map_err(|error| ui::fail(Exit::Failed, error))?;
    let mut sealed = Through::new(beside(&args.out)?);
    let bar = bar(bytes, "sealing");
    let mut source = BufReader::with_capacity(READ_AHEAD_BYTES, Through::new(bar.wrap_read(file)));
    let bytes = seal_parcel(&key, kind, &salt, Cipher::Bulk, &mut source, &mut sealed)
        .map_err(|error| failed(error, &args.file, &args.out))?;
    bar.finish_and_clear();
    let (_, plain) = source.into_inner().finish();
    let (sealed, digest) = sealed.finish();
    // The key first: a sealed file whose key is nowhere would be lost.
    key.save(&args.key_out).map_err(|error| ui::fail(Exit::Failed, error))?;
    if let Err(report) = name(sealed, &args.out) {
        // It opens nothing then. If it can't be removed it is of no use to anybody either.
        let _ = std::fs::remove_file(&args.key_out);
        return Err(report);
    }
    if args.output.json() {
        out.json(&json!({
            "kind": kind.as_str(),
            "file": args.out.display().to_string(),
            "sha256": digest.to_string(),
            "content_sha256": plain.to_string(),
            "content_bytes": bytes,
            "key_file": args.key_out.display().to_string(),
        }));
    } else {
        out.data(format_args!("{digest}  {}", args.out.display()));
        out.note(format_args!(
            "sealed {bytes} bytes of {kind} (SHA-256 {plain}); who has {} opens them",
            args.key_out.display()
        ));
    }
    Ok(Exit::Done)
}

/// Runs `cloister unseal`.
pub fn unseal(args: &UnsealArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let key_file = match (&args.key_file, &args.participant_key, &args.participant, &args.policy) {
        (Some(key_file), ..) => key_file,
        (None, Some(key), Some(name), Some(policy)) => return released(args, (key, name, policy), out),
        _ => return Err(ui::failed(Exit::Usage, "give --key-file, or --participant-key", None)),
    };
    let key = VaultKey::load(key_file).map_err(ui::unreadable)?;
    let (file, bytes) = open(&args.file)?;
    if args.out.exists() {
        return Err(there(&args.out));
    }
    let mut plain = Through::new(beside(&args.out)?);
    let bar = bar(bytes, "opening");
    let mut source = BufReader::with_capacity(READ_AHEAD_BYTES, bar.wrap_read(file));
    let (kind, bytes) = open_parcel(&key, Cipher::Bulk, &mut source, &mut plain)
        .map_err(|error| failed(error, &args.file, &args.out))?;
    bar.finish_and_clear();
    let (plain, digest) = plain.finish();
    if let Some(wanted) = args.sha256.filter(|wanted| *wanted != digest) {
        let text = format!(
            "{} opens, but its content has the SHA-256 {digest}; {wanted} was wanted. Nothing is written",
            args.file.display()
        );
        return Err(ui::failed(Exit::Failed, text, None));
    }
    name(plain, &args.out)?;
    if args.output.json() {
        out.json(&json!({
            "kind": kind.as_str(),
            "file": args.out.display().to_string(),
            "content_sha256": digest.to_string(),
            "content_bytes": bytes,
        }));
    } else {
        out.data(format_args!("{digest}  {}", args.out.display()));
        out.note(format_args!("opened {bytes} bytes of {kind}"));
    }
    Ok(Exit::Done)
}

/// Opens a model that was released to a participant.
fn released(
    args: &UnsealArgs,
    (key, name, policy): (&Path, &str, &Path),
    out: &mut Ui,
) -> Result<Exit, miette::Report> {
    let text = files::read(policy, MAX_POLICY_BYTES)?;
    let policy = Policy::parse(&text, &policy.display().to_string()).map_err(ui::unreadable)?;
    let key = SealingKey::of(&files::read_key(key)?).map_err(|error| ui::fail(Exit::Failed, error))?;
    let (file, _) = open(&args.file)?;
    let mut source = BufReader::with_capacity(READ_AHEAD_BYTES, file);
    let me = Recipient::Participant(name.to_owned());
    let (statement, paths) =
        package::open(&mut source, &policy, (&me, &key), &args.out).map_err(super::vault_export::export_failed)?;
    if args.output.json() {
        out.json(&json!({ "round": statement.round, "model": statement.model, "files": paths }));
    } else {
        paths.iter().for_each(|path| out.data(path.display()));
        out.note(format_args!(
            "the model of round {} ({})",
            statement.round, statement.model
        ));
    }
    Ok(Exit::Done)
}

fn open(path: &Path) -> Result<(File, u64), miette::Report> {
    let opened = File::open(path).and_then(|file| {
        let found = file.metadata()?;
        if found.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok((file, found.len()))
    });
    opened.map_err(|error| {
        let text = format!("{} cannot be read: {error}", path.display());
        ui::failed(Exit::Usage, text, files::help(error.kind()))
    })
}

/// A file without a name yet, in the folder of `path`, that only its owner can read.
fn beside(path: &Path) -> Result<NamedTempFile, miette::Report> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(|error| unwritable(path, &error))
}

/// Gives a file that is whole its name, unless another one has it by now.
fn name(file: NamedTempFile, path: &Path) -> Result<(), miette::Report> {
    let synced = file.as_file().sync_all();
    synced
        .and_then(|()| file.persist_noclobber(path).map_err(|error| error.error))
        .map(|_| ())
        .map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> miette::Report {
    let text = format!("{} cannot be written: {error}", path.display());
    ui::failed(Exit::Failed, text, files::help(error.kind()))
}

fn there(path: &Path) -> miette::Report {
    let text = format!("{} is there already", path.display());
    ui::failed(Exit::Usage, text, files::help(io::ErrorKind::AlreadyExists))
}

fn failed(error: ParcelError, from: &Path, to: &Path) -> miette::Report {
    match error {
        ParcelError::Sink(cause) => unwritable(to, &cause),
        ParcelError::NoParcel(_) => {
            let help = Some("`cloister seal` makes them; files of a vault are opened by `cloister vault`".to_owned());
            ui::failed(Exit::Usage, format!("{}: {error}", from.display()), help)
        }
        error => ui::failed(
            Exit::Failed,
            format!("{}: {error}. Nothing is written", from.display()),
            None,
        ),
    }
}
