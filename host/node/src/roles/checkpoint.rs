//! What the aggregator's vault keeps of the rounds: the model and the receipt of the last one, sealed in one commit, so that an
//! aggregator that is started again goes on behind it, or finds that all is done.

use std::collections::BTreeMap;
use std::io::BufRead;

use cloister_exchange::aggregator::StartingPoint;
use cloister_exchange::work::{RoundRecord, WorkError};
use cloister_rounds::{Layout, LayoutError, Receipt};
use cloister_sandbox::MAX_SLOTS;
use cloister_tensor::{Digest, ReadLimits, TensorMap, safetensors};
use cloister_vault::{
    Access, Cipher, CommitCounter, FileName, Freshness, LastSeenFile, Vault, VaultError, VaultKey, VaultKeys,
};

use crate::keeper::Keeper;
use crate::keeper::config::VaultFiles;
use crate::manager::counter::ManagerCounter;
use crate::ui::{Exit, fail, failed, unreadable};

/// Names of the sealed files.
const MODEL_FILE: &str = "model.safetensors";
const ONNX_FILE: &str = "model.onnx";
const RECEIPT_FILE: &str = "receipt.bin";
/// The optimizer's state: what the aggregation module keeps from round to round, a vector a slot.
const STATE_FILE: &str = "state.safetensors";
/// What to do where the vault is not this federation's.
const OTHER_VAULT: &str = "name another folder in [vault] `path` (and another `last_seen`) for this federation, or put back what belongs \
                           to the vault";

/// What an aggregator finds when it starts.
pub enum Found {
    /// Its node file names no vault.
    NoVault,
    /// All rounds of the policy are done; this is the last one's receipt.
    Finished(Box<Receipt>),
    /// There is work to do: from the first round on, or behind the round of this receipt.
    Ready(Box<Vault>, Option<Box<Receipt>>),
}

/// Opens the vault that the node file names, or makes it. One in which the federation has finished is read only.
pub fn open(keeper: &Keeper) -> Result<Found, miette::Report> {
    let Some(files) = &keeper.config.vault else {
        return Ok(Found::NoVault);
    };
    if !files.path.join("index").exists() {
        let vault = Vault::create(&files.path, key(keeper, files)?, counter(keeper, files))
            .map_err(|error| fail(Exit::Failed, error))?;
        say_freshness(&vault);
        return Ok(Found::Ready(Box::new(vault), None));
    }
    let open = |access| {
        Vault::open(&files.path, key(keeper, files)?, counter(keeper, files), access)
            .map_err(|error| fail(Exit::Failed, error))
    };
    let reading = open(Access::Read)?;
    let last = last_round(&reading, keeper)?;
    if let Some(receipt) = &last
        && receipt.round >= u64::from(keeper.policy.rounds.count)
    {
        say_freshness(&reading);
        return Ok(Found::Finished(Box::new(receipt.clone())));
    }
    drop(reading);
    let vault = open(Access::Write)?;
    // Once more, now that nobody else can write.
    let last = last_round(&vault, keeper)?;
    say_freshness(&vault);
    Ok(Found::Ready(Box::new(vault), last.map(Box::new)))
}

/// The vault with the final model, and the last round's receipt: every round of the policy is done, and the counter outside has this
/// very version.
pub fn released(keeper: &Keeper) -> Result<(Vault, Receipt), miette::Report> {
    let files = keeper
        .config
        .vault
        .as_ref()
        .ok_or_else(|| failed(Exit::Usage, "the node file names no vault to export from", None))?;
    // For writing: what is ahead of the counter by a commit is confirmed first.
    let vault = Vault::open(&files.path, key(keeper, files)?, counter(keeper, files), Access::Write)
        .map_err(|error| fail(Exit::Failed, error))?;
    let count = u64::from(keeper.policy.rounds.count);
    let last = last_round(&vault, keeper)?;
    match last {
        Some(last) if last.round >= count && vault.freshness() == Freshness::Proven => Ok((vault, last)),
        Some(last) if last.round >= count => Err(failed(
            Exit::Failed,
            "nothing proves that this vault is the newest, so nothing is released out of it",
            Some("name `last_seen` in [vault], or a manager".into()),
        )),
        last => Err(failed(
            Exit::Denied,
            format!(
                "the policy releases the final model, of round {count}; the vault holds {}",
                last.map_or("none".to_owned(), |last| format!("that of round {}", last.round))
            ),
            Some("run the aggregator until the last round is done".into()),
        )),
    }
}

/// The vault's key, out of the node's file or from its manager.
fn key(keeper: &Keeper, files: &VaultFiles) -> Result<VaultKeys, miette::Report> {
    match (&files.key_file, &keeper.provisions.vault) {
        (Some(path), _) => VaultKey::load(path).map(VaultKeys::from).map_err(unreadable),
        (None, Some(keys)) => Ok(keys.clone()),
        (None, None) => Err(failed(
            Exit::Denied,
            "no key of the vault was released to this node",
            None,
        )),
    }
}

fn counter(keeper: &Keeper, files: &VaultFiles) -> Option<Box<dyn CommitCounter>> {
    if let Some(link) = &keeper.link {
        return Some(Box::new(ManagerCounter::new(link.clone(), &keeper.policy.digest())));
    }
    files
        .last_seen
        .as_ref()
        .map(|path| Box::new(LastSeenFile::new(path)) as Box<dyn CommitCounter>)
}

fn say_freshness(vault: &Vault) {
    match vault.freshness() {
        Freshness::Proven => tracing::info!("vault version {}: fresh", vault.index().version),
        Freshness::NotProven => tracing::warn!("vault version {}: freshness not proven", vault.index().version),
    }
}

/// The record of the last round that a vault holds, if any.
pub fn sealed_record(vault: &Vault) -> Result<Option<RoundRecord>, miette::Report> {
    let file = read(vault, RECEIPT_FILE, RoundRecord::MAX_BYTES)?;
    let record = file.map(|file| RoundRecord::parse(&file)).transpose();
    record.map_err(|error| fail(Exit::Failed, error))
}

/// The receipt of the last round that was sealed, if any: of this federation, under this policy, signed by this node.
fn last_round(vault: &Vault, keeper: &Keeper) -> Result<Option<Receipt>, miette::Report> {
    let Some(file) = read(vault, RECEIPT_FILE, RoundRecord::MAX_BYTES)? else {
        return match read(vault, MODEL_FILE, 0) {
            Ok(None) => Ok(None),
            _ => Err(failed(
                Exit::Failed,
                format!(
                    "the vault holds {MODEL_FILE}, but no {RECEIPT_FILE} that says what it is; a round would overwrite it"
                ),
                Some(OTHER_VAULT.into()),
            )),
        };
    };
    let not_ours = |exit, what: String| {
        Err(failed(
            exit,
            format!("the last round sealed in the vault {what}"),
            Some(OTHER_VAULT.into()),
        ))
    };
    let record = RoundRecord::parse(&file).map_err(|error| fail(Exit::Failed, error))?;
    let receipt = &record.receipt;
    let policy = &keeper.policy;
    if (receipt.federation.as_str(), receipt.policy_digest) != (policy.name.as_str(), policy.digest()) {
        return not_ours(
            Exit::Denied,
            format!(
                "is round {} of {} under the policy {}; this node runs {} under {}",
                receipt.round,
                receipt.federation.escape_debug(),
                receipt.policy_digest,
                policy.name,
                policy.digest()
            ),
        );
    }
    let key = keeper.identity.key.public();
    if !record.signed_by(&key) {
        return not_ours(
            Exit::Failed,
            format!("(round {}) is not signed by this node's key {key}", receipt.round),
        );
    }
    Ok(Some(record.receipt))
}

/// Where the rounds go on behind `last`: the model that was sealed with it, and what the aggregation module kept.
pub fn starting_point(
    vault: &Vault,
    last: &Receipt,
    keeper: &Keeper,
) -> Result<(StartingPoint, TensorMap), miette::Report> {
    let limit = keeper.policy.limits.update_mib << 20;
    let model = sealed(vault, MODEL_FILE, limit, last, &last.model_after)?;
    let slots = match &last.state {
        Some(state) => sealed(vault, STATE_FILE, limit.saturating_mul(MAX_SLOTS as u64), last, state)?,
        None => TensorMap::new(),
    };
    let start = StartingPoint {
        model,
        next_round: last.round + 1,
        previous: Some(last.digest()),
    };
    Ok((start, slots))
}

/// Tensors that were sealed with `last`, which names their digest.
fn sealed(vault: &Vault, file: &str, limit: u64, last: &Receipt, wanted: &Digest) -> Result<TensorMap, miette::Report> {
    let not_ours = |text: String| failed(Exit::Failed, text, Some(OTHER_VAULT.into()));
    let round = last.round;
    let bytes = read(vault, file, limit)?
        .ok_or_else(|| not_ours(format!("the vault holds the receipt of round {round}, but no {file}")))?;
    let limits = ReadLimits {
        max_bytes: limit,
        ..ReadLimits::default()
    };
    let tensors = safetensors::read(bytes.into(), &limits).map_err(|error| fail(Exit::Failed, error))?;
    let digest = Layout::model_digest(&tensors).map_err(|error| fail(Exit::Failed, error))?;
    if digest != *wanted {
        return Err(not_ours(format!(
            "{file} in the vault has the digest {digest}, the receipt of round {round} names {wanted}"
        )));
    }
    Ok(tensors)
}

/// Digest of what an aggregation module keeps from round to round, as receipts name it: that of a model of its slots. None of nothing.
pub fn state_digest(slots: &TensorMap) -> Result<Option<Digest>, LayoutError> {
    match slots.is_empty() {
        true => Ok(None),
        false => Layout::model_digest(slots).map(Some),
    }
}

fn read(vault: &Vault, name: &str, limit: u64) -> Result<Option<Vec<u8>>, miette::Report> {
    let name: FileName = name.parse().map_err(|error: VaultError| fail(Exit::Failed, error))?;
    if !vault.index().files.contains_key(&name) {
        return Ok(None);
    }
    vault
        .get(&name, Cipher::Bulk)
        .and_then(|reader| reader.read_all(limit))
        .map(Some)
        .map_err(|error| fail(Exit::Failed, error))
}

/// Seals a round: model, receipt and the module's slots (and the model as ONNX, where there is one) are all of this round, or of the one
/// that was sealed before.
pub fn keep(
    vault: &mut Vault,
    record: &RoundRecord,
    model: &TensorMap,
    slots: &TensorMap,
    onnx: Option<&[u8]>,
) -> Result<(), WorkError> {
    let metadata = BTreeMap::from([("cloister.round".to_owned(), record.receipt.round.to_string())]);
    let tensors = safetensors::write(model, &metadata).map_err(|error| WorkError::new("writing the model", error))?;
    let state = match slots.is_empty() {
        true => Vec::new(),
        false => safetensors::write(slots, &metadata).map_err(|error| WorkError::new("writing the slots", error))?,
    };
    let receipt = record.to_bytes();
    let sealing = |error: VaultError| WorkError::new("sealing the round", error);
    let (mut tensors, mut receipt, mut onnx) = (tensors.as_slice(), receipt.as_slice(), onnx);
    let mut state = state.as_slice();
    let mut files: BTreeMap<FileName, &mut dyn BufRead> = BTreeMap::new();
    files.insert(MODEL_FILE.parse().map_err(sealing)?, &mut tensors);
    files.insert(RECEIPT_FILE.parse().map_err(sealing)?, &mut receipt);
    if !state.is_empty() {
        files.insert(STATE_FILE.parse().map_err(sealing)?, &mut state);
    }
    if let Some(onnx) = &mut onnx {
        files.insert(ONNX_FILE.parse().map_err(sealing)?, onnx);
    }
    vault.put_all(files).map_err(sealing)
}

/// The number that a receipt gives by this name.
pub fn metric(receipt: &Receipt, wanted: &str) -> Option<f64> {
    let found = receipt.metrics.iter().find(|(name, _)| name == wanted);
    found.map(|(_, value)| *value)
}
