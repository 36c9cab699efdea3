//! `cloister manager secrets`: what a participant leaves at the manager, and takes away again.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use cloister_attestation::identity::Credential;
use cloister_manager::{NewSecret, SecretId, SecretInfo, SecretKind, SecretValue};
use cloister_policy::Policy;
use cloister_tensor::Digest;
use cloister_vault::{Cipher, ParcelKind, VaultKey, open_parcel};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::manager::{AsParticipant, failed_call};
use super::peer::block_on;
use crate::files;
use crate::through::Through;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// Longest secret, in bytes.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Commands on a participant's secrets.
#[derive(Subcommand, Debug)]
pub(super) enum SecretsCommand {
    Put(PutArgs),
    /// List this participant's secrets: what they are for, never what they are.
    #[command(after_help = "Examples:
  cloister manager secrets ls --to manager.example.org:7800 --policy wards.toml \\
      --participant north --participant-key keys/north.key
  cloister manager secrets ls --to manager.example.org:7800 --policy wards.toml \\
      --participant north --participant-key keys/north.key -o json")]
    Ls(LsArgs),
    /// Remove one of this participant's secrets with all its epochs.
    #[command(after_help = "Example:
  cloister manager secrets rm train-key --to manager.example.org:7800 --policy wards.toml \\
      --participant north --participant-key keys/north.key")]
    Rm(RmArgs),
    Consent(ConsentArgs),
}

/// Upload a secret to the manager, after its evidence was verified.
///
/// A key of a sealed module or dataset is tried on the sealed file first: what it opens has to be what the policy names. Putting
/// a name again begins its next epoch (rotation). Secrets come by file, never by argument.
#[derive(Args, Debug)]
#[command(
    group = clap::ArgGroup::new("use"),
    after_help = "Examples (--to, --policy, --participant and --participant-key left out):
  cloister manager secrets put train-key --from train.key --module train-sgd --sealed train.wasm.sealed ...
  cloister manager secrets put rows-key --from rows.key --data hospital-north/train --sealed rows.csv.sealed ...
  cloister manager secrets put vault-key --from vault.key --vault aggregator ...
  cloister manager secrets put worker --from worker.key --credential hospital-north --credential-file worker.credential ...
  cloister manager secrets put salt --from rows.csv.salt ..."
)]
pub(super) struct PutArgs {
    /// Its name among this participant's secrets.
    name: String,
    /// The file with the secret.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// It is the key of a sealed module of the policy.
    #[arg(long, value_name = "MODULE", group = "use", requires = "sealed")]
    module: Option<String>,
    /// It is the key of a sealed dataset of the policy.
    #[arg(long, value_name = "NODE/DATASET", group = "use", requires = "sealed")]
    data: Option<String>,
    /// It is the key of that node's vault.
    #[arg(long, value_name = "NODE", group = "use")]
    vault: Option<String>,
    /// It is that node's key (PEM), and its credential goes with it.
    #[arg(long, value_name = "NODE", group = "use", requires = "credential_file")]
    credential: Option<String>,
    /// The sealed file that the key opens.
    #[arg(long, value_name = "FILE")]
    sealed: Option<PathBuf>,
    /// The node's credential.
    #[arg(long, value_name = "FILE", requires = "credential")]
    credential_file: Option<PathBuf>,
    #[command(flatten)]
    whom: AsParticipant,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `manager secrets ls`.
#[derive(Args, Debug)]
pub(super) struct LsArgs {
    #[command(flatten)]
    whom: AsParticipant,
    #[command(flatten)]
    output: OutputArgs,
}

/// Arguments of `manager secrets rm`.
#[derive(Args, Debug)]
pub(super) struct RmArgs {
    /// Its name among this participant's secrets.
    name: String,
    #[command(flatten)]
    whom: AsParticipant,
}

/// Let a sealed module read or write tensors where this participant's data are, as the policy grants it.
///
/// Nobody can read what a sealed module does. Where the policy lets it read or make values, its key is released only after each
/// owner of data that it runs on has consented to that very module and grant.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples (--to, --policy, --participant and --participant-key left out):
  cloister manager secrets consent train-sgd ...
  cloister manager secrets consent train-sgd --withdraw ..."
)]
pub(super) struct ConsentArgs {
    /// The module's name in the policy.
    module: String,
    /// Take the consent back.
    #[arg(long)]
    withdraw: bool,
    #[command(flatten)]
    whom: AsParticipant,
}

/// Runs the command.
pub(super) fn run(command: &SecretsCommand, out: &mut Ui) -> Result<Exit, miette::Report> {
    match command {
        SecretsCommand::Put(args) => put(args, out),
        SecretsCommand::Ls(args) => list(args, out),
        SecretsCommand::Rm(args) => remove(args, out),
        SecretsCommand::Consent(args) => consent(args, out),
    }
}

fn put(args: &PutArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let local = args.whom.local()?;
    let secret = secret(args, &local.policy)?;
    let info = block_on(async {
        let mut client = args.whom.client(&local).await?;
        client.put_secret(secret).await.map_err(failed_call)
    })?;
    if args.output.json() {
        out.json(&told(&info));
    } else {
        out.data(format_args!(
            "{} epoch {}, {} of {} bytes",
            info.id,
            info.epoch,
            info.kind.as_str(),
            info.bytes
        ));
    }
    Ok(Exit::Done)
}

/// The secret as it is to be uploaded, tried on what it is for.
fn secret(args: &PutArgs, policy: &Policy) -> Result<NewSecret, miette::Report> {
    let mut new = NewSecret {
        name: args.name.clone(),
        kind: SecretKind::Value,
        value: SecretValue::new(trimmed(files::read(&args.from, MAX_SECRET_BYTES)?)),
        ciphertext: None,
        plaintext: None,
    };
    if let Some(module) = &args.module {
        let named = policy.modules.iter().find(|known| known.name == *module);
        let wanted = named.map(|known| known.sha256);
        let (ciphertext, plaintext) = tried(&args.from, args.sealed.as_deref(), ParcelKind::Module)?;
        if let Some(wanted) = wanted.filter(|wanted| *wanted != plaintext) {
            return Err(ui::failed(
                Exit::Denied,
                format!("the sealed file holds {plaintext}, but the policy names {wanted} for the module {module}"),
                Some("seal the file that the policy names".into()),
            ));
        }
        (new.ciphertext, new.plaintext) = (Some(ciphertext), Some(plaintext));
        new.kind = SecretKind::Module { module: module.clone() };
    } else if let Some(data) = &args.data {
        let (node, dataset) = data
            .split_once('/')
            .ok_or_else(|| ui::failed(Exit::Usage, format!("--data {data}: NODE/DATASET is wanted"), None))?;
        let (ciphertext, plaintext) = tried(&args.from, args.sealed.as_deref(), ParcelKind::Data)?;
        (new.ciphertext, new.plaintext) = (Some(ciphertext), Some(plaintext));
        new.kind = SecretKind::Data {
            node: node.to_owned(),
            dataset: dataset.to_owned(),
        };
    } else if let Some(node) = &args.vault {
        VaultKey::load(&args.from).map_err(ui::unreadable)?;
        new.kind = SecretKind::Vault { node: node.clone() };
    } else if let (Some(node), Some(credential)) = (&args.credential, &args.credential_file) {
        let text = files::read(credential, MAX_SECRET_BYTES)?;
        fits(node, &args.from, credential, &text)?;
        let mut both = new.value.expose().to_vec();
        both.push(b'\n');
        both.extend_from_slice(&text);
        new.value = SecretValue::new(Zeroizing::new(both));
        new.kind = SecretKind::Credential { node: node.clone() };
    }
    Ok(new)
}

/// Refuses a credential that is none, of another node, or over another key: the node that got it could not start.
fn fits(node: &str, key: &Path, file: &Path, credential: &[u8]) -> Result<(), miette::Report> {
    let public = files::read_key(key)?.public();
    let text = std::str::from_utf8(credential).map_err(ui::unreadable)?;
    let fields = Credential::parse(text).map_err(ui::unreadable)?.fields;
    let wrong = |problem: String| ui::failed(Exit::Usage, format!("{}: {problem}", file.display()), None);
    if fields.node != node {
        let seen = fields.node;
        return Err(wrong(format!("a credential of the node {seen}, wanted one of {node}")));
    }
    if fields.node_key != public {
        let (seen, key) = (public.to_hex(), key.display());
        let problem = format!(
            "a credential for the node key {}, {key} holds {seen}",
            fields.node_key.to_hex()
        );
        return Err(wrong(problem));
    }
    Ok(())
}

/// Without the line end that editors and commands leave.
fn trimmed(bytes: Vec<u8>) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(bytes);
    while bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    bytes
}

/// Opens the sealed file with the key; gives the digests of the file and of what is in it.
fn tried(key: &Path, sealed: Option<&Path>, kind: ParcelKind) -> Result<(Digest, Digest), miette::Report> {
    let key = VaultKey::load(key).map_err(ui::unreadable)?;
    // Clap has seen that it is there.
    let path = sealed.unwrap_or(Path::new(""));
    let file = std::fs::File::open(path).map_err(|cause| {
        let help = files::help(cause.kind());
        ui::failed(Exit::Usage, format!("{} cannot be read: {cause}", path.display()), help)
    })?;
    let mut source = Through::new(std::io::BufReader::new(file));
    let mut content = Through::new(std::io::sink());
    let (seen, _) = open_parcel(&key, Cipher::Bulk, &mut source, &mut content)
        .map_err(|error| ui::failed(Exit::Usage, format!("{}: {error}", path.display()), None))?;
    if seen != kind {
        return Err(ui::failed(
            Exit::Usage,
            format!("{} holds a {seen}, wanted a {kind}", path.display()),
            None,
        ));
    }
    Ok((source.finish().1, content.finish().1))
}

fn list(args: &LsArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let local = args.whom.local()?;
    let secrets = block_on(async {
        let mut client = args.whom.client(&local).await?;
        client.list_secrets().await.map_err(failed_call)
    })?;
    if args.output.json() {
        out.json(&secrets.iter().map(told).collect::<Vec<_>>());
        return Ok(Exit::Done);
    }
    for info in &secrets {
        let opens = info
            .ciphertext
            .map_or(String::new(), |digest| format!("  opens {digest}"));
        out.data(format_args!(
            "{:<32} epoch {:<4} {}{opens}",
            info.id,
            info.epoch,
            info.kind.as_str()
        ));
    }
    Ok(Exit::Done)
}

fn remove(args: &RmArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let id = SecretId {
        owner: args.whom.participant.clone(),
        name: args.name.clone(),
    };
    let local = args.whom.local()?;
    block_on(async {
        let mut client = args.whom.client(&local).await?;
        client.remove_secret(&id).await.map_err(failed_call)
    })?;
    out.note(format_args!(
        "{id} is removed; what was released stays with the TDs that have it"
    ));
    Ok(Exit::Done)
}

fn consent(args: &ConsentArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let local = args.whom.local()?;
    let named = local.policy.modules.iter().find(|module| module.name == args.module);
    let Some(module) = named else {
        return Err(ui::failed(
            Exit::Denied,
            format!("the policy names no module {}", args.module),
            None,
        ));
    };
    let access = if args.withdraw {
        ""
    } else {
        module.tensor_access.as_str()
    };
    block_on(async {
        let mut client = args.whom.client(&local).await?;
        client.consent(&module.sha256, access).await.map_err(failed_call)
    })?;
    out.note(match args.withdraw {
        true => format!("consent to {} is taken back, for releases to come", module.name),
        false => format!(
            "{} consents to {} ({}) with the grant `{access}`",
            args.whom.participant, module.name, module.sha256
        ),
    });
    Ok(Exit::Done)
}

fn told(info: &SecretInfo) -> Value {
    json!({
        "id": info.id.to_string(),
        "kind": info.kind,
        "epoch": info.epoch,
        "ciphertext": info.ciphertext,
        "plaintext": info.plaintext,
        "put_unix_s": info.put_unix_s,
        "bytes": info.bytes,
    })
}
