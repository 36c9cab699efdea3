//! An example's vault, as its owner sees it: who has the vault, its key and the record of what was last seen opens it.

use std::path::{Path, PathBuf};

use cloister_exchange::work::RoundRecord;
use cloister_vault::{Access, Cipher, FileName, LastSeenFile, Vault, VaultKey};
use serde::Serialize;

use super::plan::Plan;
use super::prepare::{PLAN_FILE, Prepared};
use crate::files;
use crate::process::host_files;
use crate::roles::checkpoint::sealed_record;
use crate::ui::{Exit, Ui, fail, failed, unreadable};

/// No sealed model of an example is larger than this.
const MAX_MODEL_BYTES: u64 = 1 << 30;
/// What a run comes to; a folder that has it is done with.
pub const RESULT_FILE: &str = "result.json";

/// The released model.
#[derive(Serialize)]
pub struct ModelSummary {
    digest: String,
    /// Its tensors.
    pub safetensors: PathBuf,
    /// It as a graph.
    pub onnx: PathBuf,
    /// Where it is sealed.
    pub vault: PathBuf,
}

/// The aggregator's folder, and its vault.
fn open_vault(plan: &Plan, nodes: &Path) -> Result<(PathBuf, Vault), miette::Report> {
    let own = nodes.join(plan.aggregator().map(|node| node.name.as_str()).unwrap_or_default());
    let key = VaultKey::load(&own.join("vault.key")).map_err(unreadable)?;
    let vault = Vault::open(
        &own.join("vault"),
        key,
        Some(Box::new(LastSeenFile::new(own.join("vault.last-seen")))),
        Access::Read,
    )
    .map_err(|error| fail(Exit::Failed, error))?;
    Ok((own, vault))
}

/// The last round that a run's vault holds; `None` before the first is sealed.
pub fn sealed_round(plan: &Plan, run: &Path) -> Option<u64> {
    let (_, vault) = open_vault(plan, &run.join("nodes")).ok()?;
    let record: RoundRecord = sealed_record(&vault).ok()??;
    Some(record.receipt.round)
}

/// The newest run below `base`, if it was stopped behind a sealed round and can be gone on with: the same plan, the same program.
pub fn stopped(
    plan: &Plan,
    base: &Path,
    openvino: Option<&Path>,
    out: &mut Ui,
) -> Result<Option<PathBuf>, miette::Report> {
    let number = |name: &str| name.strip_prefix("run-").and_then(|number| number.parse::<u32>().ok());
    let runs = std::fs::read_dir(base).into_iter().flatten().flatten();
    let runs = runs.filter_map(|entry| Some((number(entry.file_name().to_str()?)?, entry.path())));
    let Some((_, run)) = runs.max() else { return Ok(None) };
    let unfinished = !plan.sealed && run.join(PLAN_FILE).is_file() && !run.join(RESULT_FILE).exists();
    let Some(round) = unfinished.then(|| sealed_round(plan, &run)).flatten() else {
        return Ok(None);
    };
    let anew = |out: &mut Ui, why: &str| {
        out.note(format!(
            "{} was stopped behind round {round}, but {why}: this run begins anew",
            run.display()
        ));
        Ok(None)
    };
    if std::fs::read_to_string(run.join(PLAN_FILE)).ok().as_deref() != Some(&plan.text) {
        return anew(out, "it was of another plan (mode, number of rounds, data)");
    }
    let agreed = crate::keeper::load_policy(&run.join("policy.toml"))?;
    let own = host_files(openvino).map_err(|error| fail(Exit::Failed, error))?;
    let pinned = agreed.policy().attestation.hosts.iter();
    if !pinned
        .map(|file| (&file.name, &file.sha256))
        .eq(own.iter().map(|(name, digest)| (name, digest)))
    {
        return anew(out, "its policy names another build of this program");
    }
    Ok((round < u64::from(plan.rounds.count)).then_some(run))
}

/// The step on the trusted node: who has the vault, its key and the record of what was last seen opens it.
pub fn open_on_trusted_node(
    plan: &Plan,
    prepared: &Prepared,
    folder: &Path,
    digest: &str,
) -> Result<ModelSummary, miette::Report> {
    let (own, vault) = open_vault(plan, &prepared.nodes)?;
    let released = folder.join("released");
    std::fs::create_dir_all(&released)
        .map_err(|cause| failed(Exit::Failed, format!("{}: {cause}", released.display()), None))?;
    let mut paths = Vec::new();
    for name in ["model.safetensors", "model.onnx"] {
        let sealed: FileName = name.parse().map_err(unreadable)?;
        let content = vault
            .get(&sealed, Cipher::Bulk)
            .and_then(|reader| reader.read_all(MAX_MODEL_BYTES))
            .map_err(|error| fail(Exit::Failed, error))?;
        let path = released.join(name);
        files::write(&path, &content)?;
        paths.push(path);
    }
    let [safetensors, onnx] = paths
        .try_into()
        .map_err(|_| failed(Exit::Failed, "the vault lacks the model", None))?;
    Ok(ModelSummary {
        digest: digest.to_owned(),
        safetensors,
        onnx,
        vault: own.join("vault"),
    })
}
