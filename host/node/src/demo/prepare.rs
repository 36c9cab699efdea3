//! What the parties of a real federation do by hand before it starts, done here for all of them: an authority, keys and
//! credentials, datasets and their commitments, graphs, the policy and its signatures, one node file a node.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use cloister_attestation::TrustRoot;
use cloister_attestation::identity::{CredentialFields, Role, SigningKey, endorse};
use cloister_attestation::simulated::{TdValues, create_authority};
use cloister_data::{DataLimits, Dataset as OpenRows, Source, salt};
use cloister_policy::agreement::{
    Agreement, AttestationRules, Compute, Consent, Dataset, HostFile, Model, Node, Participant, Release, ReleasedModel,
    Rounds, Rtmr3,
};
use cloister_policy::{DatasetSpec, Policy, Signature, Signatures, draft};
use cloister_vault::VaultKey;

use super::plan::{NodePlan, Plan};
use super::rows::{Place, Rows};
use super::work::{Submission, graphs, modules};
use crate::drafting::Parties;
use crate::files;
use crate::keeper::load_policy;
use crate::process::host_files;
use crate::ui::{Exit, fail, failed, unreadable};

/// The plan that a folder was prepared for.
pub const PLAN_FILE: &str = "plan.toml";
const DAY_S: u64 = 86_400;
/// How long the credentials of an example hold.
const CREDENTIAL_DAYS: u64 = 30;

/// A federation that is ready to start.
pub struct Prepared {
    /// The policy file.
    pub policy: PathBuf,
    /// The authority's folder.
    pub authority: PathBuf,
    /// What must be submitted.
    pub submissions: Vec<Submission>,
    /// The folder of all nodes.
    pub nodes: PathBuf,
    /// Rows of each node.
    pub rows: BTreeMap<String, u64>,
    /// Where the rows of each node are: file and salt.
    pub places: BTreeMap<String, Place>,
}

/// Does it all below `out`, which must be empty or missing.
pub fn prepare(
    plan: &Plan,
    found: &Rows<'_>,
    guests: &Path,
    out: &Path,
    openvino: Option<&Path>,
    now: u64,
) -> Result<Prepared, miette::Report> {
    let authority = out.join("authority");
    let (nodes, content) = (out.join("nodes"), out.join("submissions"));
    for folder in [out, nodes.as_path(), content.as_path()] {
        std::fs::create_dir_all(folder).map_err(|cause| cannot("making", folder, &cause))?;
    }
    create_authority(&authority, now).map_err(|error| fail(Exit::Failed, error))?;
    let keys = participants(plan, &out.join("participants"))?;
    let (mut datasets, mut places) = (Vec::new(), BTreeMap::new());
    for node in &plan.nodes {
        let own = nodes.join(&node.name);
        std::fs::create_dir_all(&own).map_err(|cause| cannot("making", &own, &cause))?;
        identity(plan, node, &keys, &own, now)?;
        if !node.has_rows() {
            continue;
        }
        let place = place(found, node, &own)?;
        if let Some(text) = found.text(node) {
            files::write(&place.path, text.as_bytes())?;
        }
        datasets.push(dataset(plan, node, found.inputs(), &place)?);
        places.insert(node.name.clone(), place);
    }
    let rows = datasets
        .iter()
        .map(|dataset| (dataset.node.clone(), dataset.rows.unwrap_or_default()));
    let rows = rows.collect();
    let mut submissions = Vec::new();
    let modules = modules(plan, guests, &mut submissions)?;
    let policy_nodes = plan.nodes.iter().map(policy_node).collect::<Result<Vec<_>, _>>()?;
    let parties = Parties {
        nodes: &policy_nodes,
        modules: &modules,
        datasets: &datasets,
    };
    let (weights, graphs) = graphs(plan, parties, &content, &mut submissions)?;
    let root = TrustRoot::from_file(&authority).map_err(unreadable)?;
    let agreement = Agreement {
        name: plan.federation.clone(),
        version: 1,
        predecessor: None,
        consent: Consent::of_all(plan.participants.len()),
        participants: plan
            .participants
            .iter()
            .filter_map(|name| {
                Some(Participant {
                    name: name.clone(),
                    public_key: keys.get(name)?.public(),
                })
            })
            .collect(),
        nodes: policy_nodes,
        model: Model {
            name: plan.model.name.clone(),
            weights,
        },
        modules,
        graphs,
        datasets,
        rounds: Rounds {
            mode: plan.rounds.mode.into(),
            count: plan.rounds.count,
            quorum: plan.rounds.quorum,
            deadline_s: plan.rounds.deadline_s,
            min_workers_per_aggregate: plan.rounds.min_workers_per_aggregate,
            seed: plan.model.seed,
            checkpoint_every: plan.rounds.checkpoint_every,
            evaluate_every: plan.rounds.evaluate_every,
            max_staleness: plan.rounds.max_staleness,
        },
        compute: Compute::default(),
        limits: plan.limits(),
        attestation: attestation(&root, openvino)?,
        release: Release {
            model: ReleasedModel::Final,
            recipients: plan.release.recipients.clone(),
        },
    };
    let policy = out.join("policy.toml");
    let text = draft(&agreement).map_err(|error| {
        // The policy's words are the plan's as well.
        let plan = plan.folder.join("federation.toml");
        let text = format!("{} makes no policy: {}", plan.display(), error.without_places());
        failed(Exit::Usage, text, None)
    })?;
    files::write(&policy, text.as_bytes())?;
    sign(&policy, &keys)?;
    // The last thing: a folder that has it can be gone on with.
    files::write(&out.join(PLAN_FILE), plan.text.as_bytes())?;
    Ok(Prepared {
        policy,
        authority,
        submissions,
        nodes,
        rows,
        places,
    })
}

/// What [`prepare`] made in a folder in an earlier run of the same plan.
pub fn prepared(plan: &Plan, found: &Rows<'_>, out: &Path) -> Result<Prepared, miette::Report> {
    let (nodes, policy) = (out.join("nodes"), out.join("policy.toml"));
    let agreed = load_policy(&policy)?;
    let datasets = &agreed.policy().datasets;
    let rows = datasets
        .iter()
        .map(|dataset| (dataset.node.clone(), dataset.rows.unwrap_or_default()));
    let mut places = BTreeMap::new();
    for node in plan.nodes.iter().filter(|node| node.has_rows()) {
        places.insert(node.name.clone(), place(found, node, &nodes.join(&node.name))?);
    }
    Ok(Prepared {
        authority: out.join("authority"),
        submissions: Vec::new(),
        rows: rows.collect(),
        nodes,
        policy,
        places,
    })
}

fn place(found: &Rows<'_>, node: &NodePlan, own: &Path) -> Result<Place, miette::Report> {
    let none = || {
        failed(
            Exit::Usage,
            format!("no file of a known format for {}", node.name),
            None,
        )
    };
    found.of(node, own).ok_or_else(none)
}

fn participants(plan: &Plan, folder: &Path) -> Result<BTreeMap<String, SigningKey>, miette::Report> {
    std::fs::create_dir_all(folder).map_err(|cause| cannot("making", folder, &cause))?;
    let mut keys = BTreeMap::new();
    for name in &plan.participants {
        let key = SigningKey::generate().map_err(|error| fail(Exit::Failed, error))?;
        files::write_secret(&folder.join(format!("{name}.key")), key.to_pem().as_bytes())?;
        keys.insert(name.clone(), key);
    }
    Ok(keys)
}

fn identity(
    plan: &Plan,
    node: &NodePlan,
    keys: &BTreeMap<String, SigningKey>,
    own: &Path,
    now: u64,
) -> Result<(), miette::Report> {
    let key = SigningKey::generate().map_err(|error| fail(Exit::Failed, error))?;
    files::write_secret(&own.join("node.key"), key.to_pem().as_bytes())?;
    let participant = keys
        .get(&node.participant)
        .ok_or_else(|| failed(Exit::Usage, format!("{} is no participant", node.participant), None))?;
    let fields = CredentialFields {
        federation: plan.federation.clone(),
        participant: node.participant.clone(),
        node: node.name.clone(),
        role: role(node)?,
        node_key: key.public(),
        not_after_unix_s: now + CREDENTIAL_DAYS * DAY_S,
    };
    let credential = endorse(participant, fields).map_err(unreadable)?;
    files::write(&own.join("node.credential"), credential.to_text().as_bytes())
}

fn role(node: &NodePlan) -> Result<Role, miette::Report> {
    node.role.parse().map_err(unreadable)
}

fn policy_node(node: &NodePlan) -> Result<Node, miette::Report> {
    Ok(Node {
        name: node.name.clone(),
        role: role(node)?,
        participant: node.participant.clone(),
    })
}

fn dataset(plan: &Plan, node: &NodePlan, inputs: &toml::Table, place: &Place) -> Result<Dataset, miette::Report> {
    let mut salted = [0; 32];
    getrandom::fill(&mut salted).map_err(|error| failed(Exit::Failed, format!("no randomness: {error}"), None))?;
    salt::create(&place.salt, &salted).map_err(|error| fail(Exit::Failed, error))?;
    let mut form = toml::Table::new();
    form.insert("name".into(), node.dataset.clone().into());
    form.insert("inputs".into(), inputs.clone().into());
    if let Some(slice) = &node.slice {
        form.insert("slice".into(), slice.clone().into());
    }
    if let Some(transform) = plan
        .transforms
        .iter()
        .find(|transform| transform.dataset == node.dataset)
    {
        form.insert("transform".into(), transform.name.clone().into());
        form.insert("makes".into(), transform.makes.clone().into());
    }
    let spec = DatasetSpec::parse(form.to_string().as_bytes(), "[data] inputs").map_err(unreadable)?;
    let path = &place.path;
    let file = File::open(path).map_err(|cause| cannot("opening", path, &cause))?;
    let source = Source::from_file(path.display().to_string(), file).map_err(unreadable)?;
    let rows = OpenRows::open(&source, place.format, &spec, &DataLimits::default()).map_err(unreadable)?;
    Ok(Dataset {
        node: node.name.clone(),
        commitment: rows.commitment(&salted),
        rows: Some(rows.rows()),
        spec,
    })
}

fn attestation(root: &TrustRoot, openvino: Option<&Path>) -> Result<AttestationRules, miette::Report> {
    let td = TdValues::default();
    let mut rules = AttestationRules::with_root(true, *root.key_id());
    rules.mrtd = vec![td.mrtd];
    rules.mrseam = vec![td.mrseam];
    rules.rtmr3 = Rtmr3::Log { others: Vec::new() };
    [rules.rtmr0, rules.rtmr1, rules.rtmr2] = [vec![td.rtmr[0]], vec![td.rtmr[1]], vec![td.rtmr[2]]];
    rules.hosts = host_files(openvino)
        .map_err(|error| fail(Exit::Failed, error))?
        .into_iter()
        .map(|(name, sha256)| HostFile { name, sha256 })
        .collect();
    Ok(rules)
}

fn sign(path: &Path, keys: &BTreeMap<String, SigningKey>) -> Result<(), miette::Report> {
    let bytes = std::fs::read(path).map_err(|cause| cannot("reading", path, &cause))?;
    let policy = Policy::parse(&bytes, &path.display().to_string()).map_err(unreadable)?;
    let mut signatures = Signatures::default();
    for (name, key) in keys {
        signatures.add(Signature::sign(&policy, name, key).map_err(|error| fail(Exit::Failed, error))?);
    }
    files::write(&path.with_added_extension("sigs"), signatures.to_text().as_bytes())
}

/// Writes a node's file. An aggregator listens at a port that the system chooses.
pub fn write_node_file(
    prepared: &Prepared,
    node: &NodePlan,
    aggregator: Option<&str>,
) -> Result<PathBuf, miette::Report> {
    let own = prepared.nodes.join(&node.name);
    let reach = match aggregator {
        Some(address) => format!("aggregator = \"{address}\"\n"),
        None => "listen = \"127.0.0.1:0\"\n".to_owned(),
    };
    let vault = if aggregator.is_none() {
        let key = own.join("vault.key");
        // A run that goes on has one.
        if !key.exists() {
            VaultKey::generate()
                .and_then(|made| made.save(&key))
                .map_err(|error| fail(Exit::Failed, error))?;
        }
        "\n[vault]\npath = \"vault\"\nkey_file = \"vault.key\"\nlast_seen = \"vault.last-seen\"\n"
    } else {
        ""
    };
    let shown = |path: &Path| toml::Value::from(path.strip_prefix(&own).unwrap_or(path).display().to_string());
    let data = prepared.places.get(&node.name).map_or_else(String::new, |place| {
        let mut data = format!("path = {}\n", shown(&place.path));
        if place.salt != salt::path_beside(&place.path) {
            data += &format!("salt = {}\n", shown(&place.salt));
        }
        data
    });
    let text = format!(
        "name = \"{name}\"\npolicy = \"../../policy.toml\"\ncredential = \"node.credential\"\nnode_key = \"node.key\"\n{reach}\
         provider = \"simulated\"\naudit = \"audit.jsonl\"\n\n[content]\ndir = \"content\"\n\n[data.{dataset}]\n{data}{vault}\n\
         [simulated]\nauthority = \"../../authority\"\n",
        name = node.name,
        dataset = node.dataset,
    );
    let path = own.join("node.toml");
    files::write(&path, text.as_bytes())?;
    Ok(path)
}

fn cannot(what: &str, path: &Path, cause: &std::io::Error) -> miette::Report {
    failed(Exit::Failed, format!("{what} {}: {cause}", path.display()), None)
}
