//! `cloister audit receipt`: the record of a round, which the aggregator signed.

use std::path::PathBuf;

use clap::Args;
use cloister_attestation::identity::{CredentialFields, PublicKey, Role};
use cloister_exchange::aggregator::needed;
use cloister_exchange::work::RoundRecord;
use cloister_policy::Policy;
use cloister_policy::agreement::RoundMode;
use cloister_rounds::receipt::ReceiptUpdate;
use cloister_rounds::{Layout, Receipt};
use cloister_tensor::{Digest, ReadLimits, safetensors};
use serde_json::{Value, json};

use super::audit::SignerArgs;
use crate::files;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// Check and print the receipt of a round: which updates went into which model, under which roster and policy.
///
/// An aggregator seals the last round's receipt beside the model (`receipt.bin`: `cloister vault get` or `export`). Ends with 1 if its node
/// did not sign it or it says what the policy rules out, with 4 if it is of another federation or policy.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister audit receipt receipt.bin --credential hub.credential --policy digits.toml
  cloister audit receipt receipt.bin --credential hub.credential --policy digits.toml --model model.safetensors -o json")]
pub(super) struct ReceiptArgs {
    /// The receipt.
    file: PathBuf,
    #[command(flatten)]
    signer: SignerArgs,
    /// A model (safetensors) that has to be the one that the round ended with.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
pub(super) fn run(args: &ReceiptArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let (policy, signer) = args.signer.proven()?;
    let bytes = files::read(&args.file, RoundRecord::MAX_BYTES)?;
    let shown = args.file.display();
    let record =
        RoundRecord::parse(&bytes).map_err(|error| ui::failed(Exit::Usage, format!("{shown}: {error}"), None))?;
    if !record.signed_by(&signer.node_key) {
        let text = format!("{shown} is not signed by {} ({})", signer.node, signer.node_key);
        let help = "it was changed, or another aggregator signed it: give the credential of the node that did";
        return Err(ui::failed(Exit::Failed, text, Some(help.into())));
    }
    let receipt = &record.receipt;
    check_agreement(receipt, &policy)?;
    if let Some(broken) = broken(receipt, &policy, &signer) {
        let text = format!(
            "{shown} is signed by {}, and says what the policy rules out: {broken}",
            signer.node
        );
        return Err(ui::failed(Exit::Failed, text, None));
    }
    let model = args
        .model
        .as_ref()
        .map(|path| model_digest(path, &policy))
        .transpose()?;
    if let Some(seen) = model.filter(|seen| *seen != receipt.model_after) {
        let text = format!(
            "the model has the digest {seen}, and round {} ended with {}",
            receipt.round, receipt.model_after
        );
        return Err(ui::failed(Exit::Failed, text, None));
    }
    let simulated = policy.attestation.simulated;
    if args.output.json() {
        out.json(&as_json(receipt, &signer, simulated, model.is_some()));
    } else {
        as_text(receipt, &signer, simulated, out);
        if model.is_some() {
            out.data("The model given is the one that the round ended with.");
        }
    }
    Ok(Exit::Done)
}

fn check_agreement(receipt: &Receipt, policy: &Policy) -> Result<(), miette::Report> {
    if (receipt.federation.as_str(), receipt.policy_digest) == (policy.name.as_str(), policy.digest()) {
        return Ok(());
    }
    let text = format!(
        "the receipt is of {} under the policy {}; the policy given is of {}, and {}",
        receipt.federation.escape_debug(),
        receipt.policy_digest,
        policy.name,
        policy.digest()
    );
    Err(ui::failed(Exit::Denied, text, None))
}

/// What no aggregator that keeps the policy signs.
fn broken(receipt: &Receipt, policy: &Policy, signer: &CredentialFields) -> Option<String> {
    let is = |name: &str, role| policy.node(name).is_some_and(|node| node.role == role);
    if !is(&signer.node, Role::Aggregator) {
        return Some(format!("{} is no aggregator of it", signer.node));
    }
    if !(1..=u64::from(policy.rounds.count)).contains(&receipt.round) {
        return Some(format!("round {} of {}", receipt.round, policy.rounds.count));
    }
    let names = receipt.updates.iter().map(|update| &update.node);
    if let Some(stranger) = names
        .chain(receipt.drops.iter().map(|drop| &drop.node))
        .find(|name| !is(name, Role::Worker))
    {
        return Some(format!(
            "{} takes part, which is no worker of it",
            stranger.escape_debug()
        ));
    }
    if receipt.updates.windows(2).any(|pair| pair[0].node >= pair[1].node) {
        return Some("a worker's update went in twice, or updates out of the order of their nodes".to_owned());
    }
    let rounds = &policy.rounds;
    let (seen, most_behind) = (
        receipt.updates.len(),
        match rounds.mode {
            RoundMode::Averaging | RoundMode::Synchronous => 0,
            RoundMode::Asynchronous => u64::from(rounds.max_staleness),
        },
    );
    let before = receipt.round - 1;
    let off = |update: &&ReceiptUpdate| {
        before
            .checked_sub(update.base)
            .is_none_or(|behind| behind > most_behind)
    };
    if let Some(update) = receipt.updates.iter().find(off) {
        return Some(format!(
            "an update of {} on the model after round {}; wanted one of the last {most_behind} before round {before}, or that",
            update.node, update.base
        ));
    }
    match rounds.mode {
        RoundMode::Asynchronous => (seen != 1).then(|| format!("{seen} updates; each is applied alone")),
        RoundMode::Averaging | RoundMode::Synchronous => {
            let wanted = needed(policy);
            (seen < wanted).then(|| format!("an aggregate of {seen} updates; fewest are {wanted}"))
        }
    }
}

fn model_digest(path: &std::path::Path, policy: &Policy) -> Result<Digest, miette::Report> {
    let max_bytes = policy.limits.update_mib.saturating_mul(1 << 20);
    let limits = ReadLimits {
        max_bytes,
        ..ReadLimits::default()
    };
    let unreadable =
        |error: &dyn std::fmt::Display| ui::failed(Exit::Usage, format!("{}: {error}", path.display()), None);
    let model = safetensors::read(files::read(path, max_bytes)?.into(), &limits).map_err(|error| unreadable(&error))?;
    Layout::model_digest(&model).map_err(|error| unreadable(&error))
}

fn as_json(receipt: &Receipt, signer: &CredentialFields, simulated: bool, model_compared: bool) -> Value {
    let updates = receipt.updates.iter();
    let updates = updates.map(
        |update| json!({ "node": update.node, "rows": update.rows, "digest": update.digest, "base": update.base }),
    );
    let drops = receipt
        .drops
        .iter()
        .map(|drop| json!({ "node": drop.node, "code": drop.code }));
    let metrics = receipt
        .metrics
        .iter()
        .map(|(name, value)| json!({ "name": name, "value": value }));
    json!({
        "federation": receipt.federation,
        "simulated": simulated,
        "policy": receipt.policy_digest,
        "round": receipt.round,
        "attempt": receipt.attempt,
        "receipt": receipt.digest(),
        "previous": receipt.previous,
        "roster": receipt.roster_digest,
        "model_before": receipt.model_before,
        "model_after": receipt.model_after,
        "state": receipt.state,
        "model_compared": model_compared,
        "updates": updates.collect::<Vec<_>>(),
        "dropped": drops.collect::<Vec<_>>(),
        "metrics": metrics.collect::<Vec<_>>(),
        "signed_by": { "node": signer.node, "participant": signer.participant, "node_key": signer.node_key },
    })
}

fn as_text(receipt: &Receipt, signer: &CredentialFields, simulated: bool, out: &mut Ui) {
    let Receipt { round, attempt, .. } = receipt;
    let key: &PublicKey = &signer.node_key;
    if simulated {
        out.data("SIMULATED: the policy's root of trust is a simulated one; the round is proven by no hardware");
    }
    out.data(format_args!(
        "round {round} of {}, attempt {attempt}",
        receipt.federation
    ));
    out.data(format_args!(
        "signed by     {} of {} ({key})",
        signer.node, signer.participant
    ));
    out.data(format_args!("policy        {}", receipt.policy_digest));
    out.data(format_args!("receipt       {}", receipt.digest()));
    match &receipt.previous {
        Some(previous) => out.data(format_args!("before it     {previous}")),
        None => out.data("before it     none: it begins the chain"),
    }
    out.data(format_args!("roster        {}", receipt.roster_digest));
    out.data(format_args!("model before  {}", receipt.model_before));
    out.data(format_args!("model after   {}", receipt.model_after));
    if let Some(state) = &receipt.state {
        out.data(format_args!("kept state    {state}"));
    }
    for update in &receipt.updates {
        let behind = match round.saturating_sub(1).saturating_sub(update.base) {
            0 => String::new(),
            1 => ", 1 round behind".to_owned(),
            behind => format!(", {behind} rounds behind"),
        };
        out.data(format_args!(
            "update        {}  {} by {} rows{behind}",
            update.digest, update.node, update.rows
        ));
    }
    for drop in &receipt.drops {
        out.data(format_args!(
            "fell out      {} ({})",
            drop.node,
            drop.code.escape_debug()
        ));
    }
    for (name, value) in &receipt.metrics {
        out.data(format_args!("metric        {} = {value}", name.escape_debug()));
    }
}
