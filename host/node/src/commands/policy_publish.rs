//! `cloister policy publish`: a policy and the signatures under it, to the federation's manager.

use std::path::PathBuf;

use clap::Args;
use cloister_attestation::encoding::hex;
use serde_json::json;

use super::manager::{ManagerAt, failed_call, standing_json};
use super::peer::{TrustArgs, block_on};
use super::policy::{MAX_FILE_BYTES, read_policy, signatures_path};
use crate::files;
use crate::ui::{Exit, OutputArgs, Ui};

/// Bring a policy and the signatures under it to the manager, which puts it in force when they are complete.
///
/// Whoever brings them, the signatures count. `--policy` is the one that the manager works under: the policy in force, or, while
/// there is none, the proposed one itself. Ends with 0 if the policy is in force then, with 4 if signatures are missing or refused.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister policy publish wards.toml --to manager.example.org:7800 --policy wards.toml
  cloister policy publish wards-2.toml --to manager.example.org:7800 --policy wards.toml -o json")]
pub(super) struct PublishArgs {
    /// The policy; its signatures are in FILE.sigs.
    file: PathBuf,
    #[command(flatten)]
    to: ManagerAt,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &PublishArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let policy = files::read(&args.file, MAX_FILE_BYTES)?;
    // What is no policy never leaves; what is wrong in it is told here with line and column.
    let digest = read_policy(&args.file)?.digest();
    let signatures = files::read(&signatures_path(&args.file), MAX_FILE_BYTES)?;
    let local = args.trust.visitor(None)?;
    let reply = block_on(async {
        let mut client = args.to.client(&local, &args.trust).await?;
        client.publish(policy, signatures).await.map_err(failed_call)
    })?;
    let standing = reply.standing.unwrap_or_default();
    let in_force = standing.standing == "in-force";
    if args.output.json() {
        let mut told = standing_json(&standing);
        told["taken"] = json!(reply.taken);
        out.json(&told);
    } else {
        out.data(format_args!(
            "{} signatures of {} taken",
            reply.taken,
            hex(digest.as_bytes())
        ));
        if in_force {
            out.data(format_args!("IN FORCE: version {}", standing.version));
        } else {
            out.data(format_args!(
                "NOT IN FORCE: the signatures of {} are missing",
                standing.missing.join(", ")
            ));
        }
    }
    Ok(if in_force { Exit::Done } else { Exit::Denied })
}
