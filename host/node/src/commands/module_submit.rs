//! `cloister module submit | ls | fetch`: the content store of a running aggregator, from outside.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use cloister_exchange::client::Client;
use cloister_exchange::content::{ContentKind, Submission};
use cloister_policy::Policy;
use cloister_session::Local;
use cloister_tensor::Digest;
use serde_json::json;

use super::peer::{TrustArgs, block_on, exchange_failed, simulated};
use crate::files;
use crate::ui::{self, Exit, Ui};

/// Commands on what participants submit.
#[derive(clap::Subcommand, Debug)]
pub enum ContentCommand {
    /// Submit a module, a graph or initial weights that the policy names to the aggregator.
    ///
    /// What FILE is, and under which name, the policy says: it is found there by its digest. Ends with 4 if the policy
    /// does not name it, with 3 if the aggregator's evidence is refused.
    #[command(after_help = "Examples:
  cloister module submit train-sgd.wasm --to 192.0.2.7:8443 --policy digits.toml --trust-root sim \\
      --participant alpha --participant-key keys/alpha.key
  cloister module submit weights.safetensors --to 192.0.2.7:8443 --policy digits.toml --trust-root sim \\
      --participant alpha --participant-key keys/alpha.key")]
    Submit(SubmitArgs),
    /// List what the policy names and what of it is there.
    #[command(after_help = "Examples:
  cloister module ls --to 192.0.2.7:8443 --policy digits.toml --participant alpha --participant-key keys/alpha.key")]
    Ls(LsArgs),
    /// Fetch an object by its digest.
    #[command(after_help = "Examples:
  cloister module fetch 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --to 192.0.2.7:8443 \\
      --policy digits.toml --participant alpha --participant-key keys/alpha.key -o train-sgd.wasm")]
    Fetch(FetchArgs),
}

/// Where to, and as whom.
#[derive(clap::Args, Debug)]
pub struct StoreArgs {
    /// The aggregator.
    #[arg(long, value_name = "HOST:PORT", value_parser = crate::keeper::config::address)]
    to: String,
    #[command(flatten)]
    trust: TrustArgs,
    /// The participant that asks.
    #[arg(long, value_name = "NAME")]
    participant: String,
    /// The participant's private key (PEM), as `cloister identity new` wrote it.
    #[arg(long, value_name = "FILE")]
    participant_key: PathBuf,
}

/// Arguments of `module submit`.
#[derive(clap::Args, Debug)]
pub struct SubmitArgs {
    /// A WebAssembly component, an ONNX graph or a safetensors file.
    file: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: ui::OutputArgs,
}

/// Arguments of `module ls`.
#[derive(clap::Args, Debug)]
pub struct LsArgs {
    #[command(flatten)]
    store: StoreArgs,
    #[command(flatten)]
    output: ui::OutputArgs,
}

/// Arguments of `module fetch`.
#[derive(clap::Args, Debug)]
pub struct FetchArgs {
    /// SHA-256 of the object.
    digest: Digest,
    #[command(flatten)]
    store: StoreArgs,
    /// Where to write it.
    #[arg(short = 'o', long, value_name = "PATH")]
    output: PathBuf,
}

/// Runs the command.
pub fn run(command: ContentCommand, out: &mut Ui) -> Result<Exit, miette::Report> {
    match command {
        ContentCommand::Submit(args) => submit(&args, out),
        ContentCommand::Ls(args) => list(&args, out),
        ContentCommand::Fetch(args) => fetch(&args, out),
    }
}

impl StoreArgs {
    fn local(&self) -> Result<Local, miette::Report> {
        self.trust
            .visitor(Some((self.participant.clone(), &self.participant_key)))
    }

    /// A session with the aggregator, and whether its evidence is a simulated one.
    async fn client(&self, local: &Local) -> Result<(Client, bool), miette::Report> {
        let connection = self.trust.connect(local, &self.to).await?;
        let simulated = simulated(connection.peer());
        let client = Client::new(connection).await.map_err(exchange_failed)?;
        Ok((client, simulated))
    }
}

fn limit_bytes(policy: &Policy) -> u64 {
    policy.limits.content_mib.saturating_mul(1 << 20)
}

/// What the policy calls an object of this digest.
fn named(policy: &Policy, digest: &Digest) -> Option<(ContentKind, String)> {
    let module = policy.modules.iter().find(|module| module.sha256 == *digest);
    let graph = policy.graphs.iter().find(|graph| graph.sha256 == *digest);
    let weights = policy.model.weights == *digest;
    module
        .map(|module| (ContentKind::Module, module.name.clone()))
        .or_else(|| graph.map(|graph| (ContentKind::Graph, graph.name.clone())))
        .or_else(|| weights.then(|| (ContentKind::Weights, policy.model.name.clone())))
}

fn not_named(policy: &Policy, file: &Path, digest: &Digest) -> miette::Report {
    let modules = policy
        .modules
        .iter()
        .map(|module| format!("module {} {}", module.name, module.sha256));
    let graphs = policy
        .graphs
        .iter()
        .map(|graph| format!("graph {} {}", graph.name, graph.sha256));
    let weights = format!("weights {} {}", policy.model.name, policy.model.weights);
    let wanted: Vec<String> = modules.chain(graphs).chain([weights]).collect();
    ui::failed(
        Exit::Denied,
        format!("the policy does not name {}: seen the digest {digest}", file.display()),
        Some(format!("wanted one of\n  {}", wanted.join("\n  "))),
    )
}

fn submit(args: &SubmitArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let local = args.store.local()?;
    let content = Bytes::from(files::read(&args.file, limit_bytes(&local.policy))?);
    let digest = Digest::of(&content);
    let Some((kind, name)) = named(&local.policy, &digest) else {
        return Err(not_named(&local.policy, &args.file, &digest));
    };
    let key = files::read_key(&args.store.participant_key)?;
    let participant = &args.store.participant;
    match local.policy.participant_key(participant) {
        Some(wanted) if wanted == key.public() => {}
        Some(wanted) => {
            return Err(ui::failed(
                Exit::Denied,
                format!(
                    "{} is not the key of {participant}",
                    args.store.participant_key.display()
                ),
                Some(format!("its public half is {}, the policy says {wanted}", key.public())),
            ));
        }
        None => {
            let known: Vec<_> = local
                .policy
                .participants
                .iter()
                .map(|known| known.name.as_str())
                .collect();
            return Err(ui::failed(
                Exit::Denied,
                format!("the policy has no participant {participant}"),
                Some(format!("it has {}", known.join(", "))),
            ));
        }
    }
    let length = content.len();
    let (stored, simulated) = block_on(async {
        let (mut client, simulated) = args.store.client(&local).await?;
        let policy_digest = local.policy.digest();
        let submission = Submission {
            federation: &local.policy.name,
            policy_digest: &policy_digest,
            kind,
            name: &name,
            participant: &args.store.participant,
        };
        let stored = client.submit(&submission, &key, content).await;
        Ok((stored.map_err(exchange_failed)?, simulated))
    })?;
    if args.output.json() {
        out.json(&json!({
            "kind": kind.as_str(), "name": name, "digest": digest.to_string(), "bytes": length, "new": stored,
            "simulated": simulated,
        }));
    } else {
        let state = if stored { "submitted" } else { "was there already" };
        out.data(format!("{state}: {} {name} {digest}, {length} bytes", kind.as_str()));
    }
    Ok(Exit::Done)
}

fn list(args: &LsArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let local = args.store.local()?;
    let entries = block_on(async {
        let (mut client, _) = args.store.client(&local).await?;
        client.list().await.map_err(exchange_failed)
    })?;
    if args.output.json() {
        let entries = entries.iter().map(|entry| {
            json!({
                "kind": entry.kind, "name": entry.name, "digest": entry.digest.to_string(),
                "present": entry.present, "bytes": entry.length, "participant": entry.participant,
            })
        });
        out.json(&entries.collect::<Vec<_>>());
    } else {
        for entry in &entries {
            let state = if entry.present {
                format!("{} bytes, by {}", entry.length, entry.participant)
            } else {
                "missing".to_owned()
            };
            out.data(format!(
                "{:<8} {:<24} {}  {state}",
                entry.kind, entry.name, entry.digest
            ));
        }
    }
    Ok(Exit::Done)
}

fn fetch(args: &FetchArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let mut inputs = args.store.trust.inputs();
    inputs.push(args.store.participant_key.clone());
    files::not_an_input(&args.output, inputs.iter().map(PathBuf::as_path))?;
    let local = args.store.local()?;
    let content = block_on(async {
        let (mut client, _) = args.store.client(&local).await?;
        client
            .fetch(&args.digest, limit_bytes(&local.policy))
            .await
            .map_err(exchange_failed)
    })?;
    files::write(&args.output, &content)?;
    out.note(format!("{} bytes in {}", content.len(), args.output.display()));
    Ok(Exit::Done)
}
