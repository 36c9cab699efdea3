//! What the parties of a real federation do by hand before it starts, done here for all of them: an authority, keys and
//! credentials, datasets and their commitments, graphs, the policy and its signatures, one node file a node.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use cloister_attestation::TrustRoot;
use cloister_attestation::identity::{CredentialFields, Role, SigningKey, endorse};
use cloister_attestation::simulated::{TdValues, create_authority};
use cloister_data::{DataLimits, Dataset as Rows, Format, Source, salt};
use cloister_exchange::content::ContentKind;
use cloister_graph::{Limits as GraphLimits, Model as Forward, TrainOptions, samples};
use cloister_policy::agreement::{
    Agreement, AttestationRules, Consent, Dataset, Graph, HostFile, Limits, Model, Module, Node, Participant, Release,
    ReleasedModel, Rounds, Rtmr3, ScalarRange,
};
use cloister_policy::{DatasetSpec, ModuleRole, Policy, Scalar, Signature, Signatures, TensorAccess, draft};
use cloister_tensor::Digest;
use cloister_vault::VaultKey;

use super::plan::{Dealt, NodePlan, Plan, Sample};
use crate::drafting::{Parties, Recipe, make_graphs};
use crate::files;
use crate::process::host_files;
use crate::ui::{Exit, fail, failed, unreadable};

const DAY_S: u64 = 86_400;
/// How long the credentials of an example hold.
const CREDENTIAL_DAYS: u64 = 30;

/// Something that a participant submits.
pub struct Submission {
    /// What it is.
    pub kind: ContentKind,
    /// Its name in the policy.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
}

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
    pub rows: BTreeMap<String, usize>,
}

/// Does it all below `out`, which must be empty or missing.
pub fn prepare(
    plan: &Plan,
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
    let mut dealt = plan.deal().map_err(unreadable)?;
    let mut datasets = Vec::new();
    let mut rows = BTreeMap::new();
    for node in &plan.nodes {
        let own = nodes.join(&node.name);
        std::fs::create_dir_all(&own).map_err(|cause| cannot("making", &own, &cause))?;
        identity(plan, node, &keys, &own, now)?;
        if node.role == "manager" {
            continue;
        }
        let part = dealt.remove(&node.name).unwrap_or(Dealt {
            text: String::new(),
            rows: 0,
        });
        rows.insert(node.name.clone(), part.rows);
        datasets.push(dataset(plan, node, &part, &own)?);
    }
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
        limits: Limits::default(),
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
    Ok(Prepared {
        policy,
        authority,
        submissions,
        nodes,
        rows,
    })
}

fn participants(plan: &Plan, folder: &Path) -> Result<BTreeMap<String, SigningKey>, miette::Report> {
    std::fs::create_dir_all(folder).map_err(|cause| cannot("making", folder, &cause))?;
    let mut keys = BTreeMap::new();
    for name in &plan.participants {
        let key = SigningKey::generate().map_err(|error| fail(Exit::Failed, error))?;
        files::write_secret(&folder.join(format!("{name}.pem")), key.to_pem().as_bytes())?;
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
    files::write_secret(&own.join("node.pem"), key.to_pem().as_bytes())?;
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

fn dataset(plan: &Plan, node: &NodePlan, part: &Dealt, own: &Path) -> Result<Dataset, miette::Report> {
    let path = own.join("data.csv");
    files::write(&path, part.text.as_bytes())?;
    let mut salted = [0; 32];
    getrandom::fill(&mut salted).map_err(|error| failed(Exit::Failed, format!("no randomness: {error}"), None))?;
    salt::create(&salt::path_beside(&path), &salted).map_err(|error| fail(Exit::Failed, error))?;
    let mut form = toml::Table::new();
    form.insert("name".into(), node.dataset.clone().into());
    form.insert("inputs".into(), plan.data.inputs.clone().into());
    if let Some(transform) = plan
        .transforms
        .iter()
        .find(|transform| transform.dataset == node.dataset)
    {
        form.insert("transform".into(), transform.name.clone().into());
        form.insert("makes".into(), transform.makes.clone().into());
    }
    let spec = DatasetSpec::parse(form.to_string().as_bytes(), "[data] inputs").map_err(unreadable)?;
    let file = File::open(&path).map_err(|cause| cannot("opening", &path, &cause))?;
    let source = Source::from_file(path.display().to_string(), file).map_err(unreadable)?;
    let rows = Rows::open(&source, Format::Csv, &spec, &DataLimits::default()).map_err(unreadable)?;
    Ok(Dataset {
        node: node.name.clone(),
        commitment: rows.commitment(&salted),
        rows: Some(rows.rows()),
        spec,
    })
}

/// Writes the model, its initial weights and its graphs.
fn graphs(
    plan: &Plan,
    parties: Parties<'_>,
    content: &Path,
    submissions: &mut Vec<Submission>,
) -> Result<(Digest, Vec<Graph>), miette::Report> {
    let (model, training) = (&plan.model, &plan.training);
    let onnx = match model.sample {
        Sample::Logistic => samples::logistic(model.inputs, model.classes, model.seed),
        Sample::Mlp => samples::mlp(model.inputs, model.hidden, model.classes, model.seed),
        Sample::Cnn => samples::cnn(model.inputs, model.hidden, model.classes, model.seed),
    };
    let onnx = onnx.map_err(unreadable)?;
    files::write(&content.join("forward.onnx"), &onnx)?;
    let forward = Forward::parse(&onnx, &GraphLimits::default()).map_err(unreadable)?;
    let mut options = TrainOptions::new(training.optimizer.optimizer(None), training.batch as usize);
    options.weight_decay = training.weight_decay;
    options.proximal = training.proximal;
    let recipe = Recipe {
        options,
        batch: training.batch,
        evaluation_batch: training.evaluation_batch,
    };
    let made = make_graphs(&forward, &recipe, parties, content)?;
    submissions.push(Submission {
        kind: ContentKind::Weights,
        name: model.name.clone(),
        path: made.weights_path,
    });
    let mut graphs = Vec::new();
    for (graph, path) in made.graphs {
        submissions.push(Submission {
            kind: ContentKind::Graph,
            name: graph.name.clone(),
            path,
        });
        graphs.push(graph);
    }
    Ok((made.weights, graphs))
}

fn modules(plan: &Plan, guests: &Path, submissions: &mut Vec<Submission>) -> Result<Vec<Module>, miette::Report> {
    let training = &plan.training;
    let mut trained = settings(&training.settings)?;
    let batch = Scalar::Integer(i64::from(training.batch));
    trained.entry("batch".to_owned()).or_insert(batch);
    let mut wanted = vec![
        (&training.trainer, &training.trainer, ModuleRole::Trainer, trained),
        (
            &training.aggregator,
            &training.aggregator,
            ModuleRole::Aggregator,
            BTreeMap::new(),
        ),
    ];
    for transform in &plan.transforms {
        let settings = settings(&transform.settings)?;
        wanted.push((&transform.name, &transform.module, ModuleRole::Transform, settings));
    }
    let mut made = Vec::new();
    for (name, guest, module_role, settings) in wanted {
        let path = guests.join(format!("{guest}.wasm"));
        let wasm = std::fs::read(&path).map_err(|cause| {
            failed(
                Exit::Usage,
                format!("the module {} cannot be read: {cause}", path.display()),
                Some("`cargo xtask setup` builds the guest modules from source".into()),
            )
        })?;
        let trainer = module_role == ModuleRole::Trainer;
        let range = |min, max| ScalarRange { min, max };
        let scalars = [
            ("learning_rate".to_owned(), range(0.0, 1.0)),
            ("step".to_owned(), range(1.0, 1e9)),
        ];
        made.push(Module {
            name: name.clone(),
            role: module_role,
            sha256: Digest::of(&wasm),
            tensor_access: TensorAccess::Handles,
            settings,
            scalars: if trainer {
                scalars.into_iter().collect()
            } else {
                BTreeMap::new()
            },
            reads: if trainer { vec!["loss".into()] } else { Vec::new() },
            nodes: None,
        });
        submissions.push(Submission {
            kind: ContentKind::Module,
            name: name.clone(),
            path,
        });
    }
    Ok(made)
}

/// Settings of a module, as the policy has them.
fn settings(table: &toml::Table) -> Result<BTreeMap<String, Scalar>, miette::Report> {
    let scalar = |(name, value): (&String, &toml::Value)| {
        let scalar = match value {
            toml::Value::Boolean(value) => Scalar::Boolean(*value),
            toml::Value::Integer(value) => Scalar::Integer(*value),
            toml::Value::Float(value) => Scalar::Float(*value),
            toml::Value::String(value) => Scalar::Text(value.clone()),
            _ => {
                let text = format!("setting {name}: a number, a text or a truth value is wanted");
                return Err(failed(Exit::Usage, text, None));
            }
        };
        Ok((name.clone(), scalar))
    };
    table.iter().map(scalar).collect()
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
        VaultKey::generate()
            .and_then(|key| key.save(&own.join("vault.key")))
            .map_err(|error| fail(Exit::Failed, error))?;
        "\n[vault]\npath = \"vault\"\nkey_file = \"vault.key\"\nlast_seen = \"vault.last-seen\"\n"
    } else {
        ""
    };
    let text = format!(
        "name = \"{name}\"\npolicy = \"../../policy.toml\"\ncredential = \"node.credential\"\nnode_key = \"node.pem\"\n{reach}\
         provider = \"simulated\"\naudit = \"audit.jsonl\"\n\n[content]\ndir = \"content\"\n\n[data.{dataset}]\npath = \"data.csv\"\n{vault}\n\
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
