//! `cloister identity`: keys of participants and nodes, and the credentials between them.

use std::path::{Path, PathBuf};

use cloister_attestation::identity::{Credential, CredentialFields, KeyError, PublicKey, Role, SigningKey, endorse};

use crate::files;
use crate::ui::{self, Exit, Ui};

const DAY_S: u64 = 86_400;
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Make keys of participants and nodes, and let a participant endorse its nodes.
#[derive(clap::Args, Debug)]
pub struct IdentityArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Make a new Ed25519 key: NAME.key (secret, mode 0600) and NAME.pub.
    ///
    /// A participant's key signs policies, submissions and credentials: keep it off the nodes. A node's key stays on
    /// the node; its participant endorses the public half.
    #[command(after_help = "Examples:
  cloister identity new --out keys/alpha --participant
  cloister identity new --out keys/worker-a --node")]
    New(NewArgs),
    /// Endorse a node: write the credential that it shows to its peers.
    #[command(after_help = "Examples:
  cloister identity endorse --participant-key keys/alpha.key --federation digits --participant alpha \\
      --node worker-a --role worker --node-key keys/worker-a.pub --days 365 -o worker-a.credential")]
    Endorse(EndorseArgs),
    /// Show a key or a credential.
    #[command(after_help = "Examples:
  cloister identity show keys/alpha.pub
  cloister identity show worker-a.credential --participant-key keys/alpha.pub -o json")]
    Show(ShowArgs),
}

#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("kind").required(true))]
struct NewArgs {
    /// Where to write: PATH.key and PATH.pub.
    #[arg(long, value_name = "DIR/NAME")]
    out: PathBuf,
    /// The key of a participant.
    #[arg(long, group = "kind")]
    participant: bool,
    /// The key of a node.
    #[arg(long, group = "kind")]
    node: bool,
    #[command(flatten)]
    output: ui::OutputArgs,
}

#[derive(clap::Args, Debug)]
struct EndorseArgs {
    /// The participant's secret key (PEM).
    #[arg(long, value_name = "FILE")]
    participant_key: PathBuf,
    /// Name of the federation, as in the policy.
    #[arg(long)]
    federation: String,
    /// Name of the participant, as in the policy.
    #[arg(long)]
    participant: String,
    /// Name of the node, as in the policy.
    #[arg(long)]
    node: String,
    /// What the node does: worker, aggregator, manager, server or auditor.
    #[arg(long)]
    role: Role,
    /// The node's public key: a .pub file, or the key itself in base64 or hexadecimal.
    #[arg(long, value_name = "PUB")]
    node_key: String,
    /// For how many days it holds.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
    days: u64,
    /// Where to write the credential.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: PathBuf,
}

#[derive(clap::Args, Debug)]
struct ShowArgs {
    /// A .key, .pub or credential file.
    file: PathBuf,
    /// Check a credential's signature with this participant's public key: a .pub file or the key itself.
    #[arg(long, value_name = "PUB")]
    participant_key: Option<String>,
    #[command(flatten)]
    output: ui::OutputArgs,
}

/// Runs the command.
pub fn run(args: IdentityArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match args.command {
        Command::New(args) => new(&args, out),
        Command::Endorse(args) => write_credential(args, out),
        Command::Show(args) => show(&args, out),
    }
}

fn new(args: &NewArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let key = SigningKey::generate().map_err(|error| ui::fail(Exit::Failed, error))?;
    let (secret, public) = (
        files::with_suffix(&args.out, ".key"),
        files::with_suffix(&args.out, ".pub"),
    );
    if let Some(parent) = args.out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|error| {
            let help = files::help(error.kind());
            ui::failed(
                Exit::Failed,
                format!("{} cannot be made: {error}", parent.display()),
                help,
            )
        })?;
    }
    files::write_secret(&secret, key.to_pem().as_bytes())?;
    files::write_new(&public, format!("{}\n", key.public()).as_bytes(), 0o644)?;
    let kind = if args.participant { "participant" } else { "node" };
    if args.output.json() {
        out.json(&serde_json::json!({
            "kind": kind, "public_key": key.public(), "key_file": secret, "public_key_file": public,
        }));
    } else {
        out.data(key.public());
    }
    out.note(format!(
        "{kind} key: {} (secret) and {}",
        secret.display(),
        public.display()
    ));
    out.note(if args.participant {
        "Next: put the public key into the policy ([[participant]] public_key), and endorse nodes with the secret one."
    } else {
        "Next: let the participant endorse the public key (cloister identity endorse)."
    });
    Ok(Exit::Done)
}

fn write_credential(args: EndorseArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let key = files::read_key(&args.participant_key)?;
    let node_key = public_key(&args.node_key)?;
    if node_key == key.public() {
        return Err(ui::failed(
            Exit::Usage,
            "--node-key is the participant's own key: the node would hold the key that signs policies",
            Some("give the node a key of its own: `cloister identity new --node`, and its .pub here".into()),
        ));
    }
    let given = [args.participant_key.as_path(), Path::new(&args.node_key)];
    files::not_an_input(&args.output, given)?;
    let not_after_unix_s = ui::now_unix_s().saturating_add(args.days * DAY_S);
    let EndorseArgs {
        federation,
        participant,
        node,
        role,
        days,
        output,
        ..
    } = args;
    let fields = CredentialFields {
        federation,
        participant,
        node,
        role,
        node_key,
        not_after_unix_s,
    };
    let credential = endorse(&key, fields).map_err(ui::unreadable)?;
    files::write(&output, credential.to_text().as_bytes())?;
    let CredentialFields {
        federation,
        participant,
        node,
        role,
        ..
    } = &credential.fields;
    out.note(format!(
        "{participant} endorses {node_key} as {role} {node} of {federation} for {days} days: {}",
        output.display()
    ));
    Ok(Exit::Done)
}

fn show(args: &ShowArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let text = zeroize::Zeroizing::new(read_text(&args.file)?);
    if text.contains("PRIVATE KEY") {
        let key = files::read_key(&args.file)?.public();
        return Ok(show_key("secret key", key, args, out));
    }
    if let Ok(key) = text.trim().parse::<PublicKey>() {
        return Ok(show_key("public key", key, args, out));
    }
    let credential = Credential::parse(&text).map_err(ui::unreadable)?;
    let failed = match &args.participant_key {
        None => None,
        Some(key) => Some(credential.verify(&public_key(key)?, ui::now_unix_s())),
    };
    let fields = &credential.fields;
    if args.output.json() {
        out.json(&serde_json::json!({
            "kind": "credential", "federation": fields.federation, "participant": fields.participant,
            "node": fields.node, "role": fields.role, "node_key": fields.node_key,
            "not_after_unix_s": fields.not_after_unix_s,
            "verified": failed.as_ref().map(Vec::is_empty), "failed": failed,
        }));
    } else {
        out.data(format!(
            "credential of {} {} in federation {}",
            fields.role, fields.node, fields.federation
        ));
        out.data(format!("  endorsed by  {}", fields.participant));
        out.data(format!("  node key     {}", fields.node_key));
        out.data(format!(
            "  holds until  {} ({} s since 1970)",
            cloister_attestation::time::format(fields.not_after_unix_s),
            fields.not_after_unix_s
        ));
        match &failed {
            None => out.data("  signature    not checked; give --participant-key"),
            Some(failed) if failed.is_empty() => out.data("  signature    the participant's, and in force"),
            Some(failed) => failed
                .iter()
                .for_each(|rule| out.data(format!("  REFUSED      {rule}"))),
        }
    }
    Ok(if failed.is_some_and(|failed| !failed.is_empty()) {
        Exit::Refused
    } else {
        Exit::Done
    })
}

fn show_key(kind: &str, key: PublicKey, args: &ShowArgs, out: &mut Ui) -> Exit {
    if args.output.json() {
        out.json(&serde_json::json!({ "kind": kind, "public_key": key, "hex": key.to_hex() }));
    } else {
        out.data(format!("{kind}, Ed25519; public half {key}"));
    }
    Exit::Done
}

/// A public key: itself, or the file that holds it.
pub(super) fn public_key(text: &str) -> Result<PublicKey, miette::Report> {
    match text.parse() {
        Ok(key) => Ok(key),
        Err(secret @ KeyError::SecretForPublic) => Err(ui::unreadable(secret)),
        Err(_) => {
            let content = zeroize::Zeroizing::new(read_text(Path::new(text))?);
            content
                .parse()
                .map_err(|error| ui::failed(Exit::Usage, format!("{text}: {error}"), None))
        }
    }
}

fn read_text(path: &Path) -> Result<String, miette::Report> {
    String::from_utf8(files::read(path, MAX_FILE_BYTES)?).map_err(|_| {
        ui::failed(
            Exit::Usage,
            format!("{} is not text", path.display()),
            Some("a key (PEM), a public key or a credential is wanted".into()),
        )
    })
}
