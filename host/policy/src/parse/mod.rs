//! From the file's bytes to an [`Agreement`]: shapes and ranges first, then what refers to what.
//!
//! A section's problems are told together; the next section is read when the one that it refers to is sound.

mod attestation;
mod coherence;
mod rounds;
mod rtmr3;

use std::collections::BTreeMap;

use cloister_attestation::identity::Role;
use cloister_tensor::Digest;

use crate::agreement::{
    Agreement, Compute, Consent, Dataset, Graph, Limits, Model, Module, ModuleRole, Node, Participant, Precision,
    Release, ReleasedModel, ScalarRange, TensorAccess,
};
use crate::dataset::DatasetSpec;
use crate::reader::{self, Fields, PolicyError, Problem, Scalar, all, read_document};
pub(crate) use attestation::anchor_tables;

/// The schema that this crate reads.
pub const FORMAT: u64 = 1;

const MAX_PARTICIPANTS: usize = 256;
const MAX_NODES: usize = 1024;
const MAX_MODULES: usize = 64;
const MAX_GRAPHS: usize = 64;
const MAX_DATASETS: usize = 2048;
const MAX_SETTINGS: usize = 64;

const SECTIONS: [&str; 16] = [
    "format",
    "name",
    "version",
    "predecessor",
    "agreement",
    "participant",
    "node",
    "model",
    "module",
    "graph",
    "dataset",
    "rounds",
    "compute",
    "limits",
    "attestation",
    "release",
];

const DATASET: [&str; 9] = [
    "name",
    "node",
    "commitment",
    "rows",
    "inputs",
    "slice",
    "transform",
    "makes",
    "damaged",
];

/// Parses a policy.
pub(crate) fn parse(bytes: &[u8], file: &str) -> Result<Agreement, PolicyError> {
    read_document(bytes, file, &SECTIONS, |top| {
        let format = top.required("format")?;
        if format.integer(0..=u64::MAX)? != FORMAT {
            return Err(format
                .problem(format_args!("is not {FORMAT}, the one that this host reads"))
                .into());
        }
        let participants = participants(top)?;
        let nodes = nodes(top, &participants)?;
        let rounds = rounds::rounds(top, &nodes)?;
        let (version, predecessor) = lineage(top)?;
        let agreement = Agreement {
            name: top.required("name")?.party_name()?,
            version,
            predecessor,
            consent: consent(top, &participants)?,
            model: model(top)?,
            modules: modules(top, &nodes)?,
            graphs: graphs(top, &nodes)?,
            datasets: datasets(top, &nodes)?,
            compute: compute(top)?,
            limits: limits(top)?,
            attestation: attestation::read(top, &participants)?,
            release: release(top, &participants)?,
            participants,
            nodes,
            rounds,
        };
        coherence::check(top, &agreement)?;
        Ok(agreement)
    })
}

fn participants(top: &Fields<'_>) -> Result<Vec<Participant>, Vec<Problem>> {
    let mut seen: Vec<Participant> = Vec::new();
    all(top.required("participant")?.list(MAX_PARTICIPANTS)?.iter().map(|node| {
        let fields = node.fields(&["name", "public_key"])?;
        let name = fields.required("name")?;
        let key = fields.required("public_key")?;
        let text = key.text(128)?;
        let public_key = text
            .parse()
            .map_err(|error| key.problem(format_args!("is {text:?}: {error}")))?;
        let participant = Participant {
            name: name.party_name()?,
            public_key,
        };
        if seen.iter().any(|other| other.name == participant.name) {
            return Err(name.problem(format_args!("is {:?} a second time", participant.name)));
        }
        if let Some(other) = seen.iter().find(|other| other.public_key == participant.public_key) {
            return Err(key.problem(format_args!(
                "is the key of participant {:?}, too; each has its own",
                other.name
            )));
        }
        seen.push(participant.clone());
        Ok(participant)
    }))
}

/// The version, and the digest of the policy before it: the founding policy is version 1 and follows none.
fn lineage(top: &Fields<'_>) -> Result<(u64, Option<Digest>), Problem> {
    let node = top.required("version")?;
    let version = node.integer(1..=u64::from(u32::MAX))?;
    match top.optional("predecessor") {
        Some(before) if version == 1 => {
            Err(before.problem("is given, but version 1 is the founding policy and follows none; count `version` up"))
        }
        None if version > 1 => Err(node.problem(format_args!(
            "is {version}, but `predecessor` is missing: the SHA-256 of the file of version {}",
            version - 1
        ))),
        before => Ok((version, before.map(|node| node.digest()).transpose()?)),
    }
}

fn consent(top: &Fields<'_>, participants: &[Participant]) -> Result<Consent, Problem> {
    let all = Consent::of_all(participants.len());
    let Some(node) = top.optional("agreement") else {
        return Ok(all);
    };
    let fields = node.fields(&["threshold", "immutable", "recovery_shares"])?;
    let immutable = fields.optional("immutable").map(|node| node.boolean()).transpose()?;
    let threshold = match fields.optional("threshold") {
        Some(node) => {
            let threshold = node.integer_u32(1..=1024)?;
            if threshold > all.threshold || threshold * 2 <= all.threshold {
                return Err(node.problem(format_args!(
                    "is {threshold} of {} participants; more than half have to sign, or two policies could follow one",
                    all.threshold
                )));
            }
            threshold
        }
        None => all.threshold,
    };
    let recovery_shares = match fields.optional("recovery_shares") {
        Some(node) => {
            let shares = node.integer_u32(1..=255)?;
            // One participant alone would be the manager's operator in all but name, unless there is but one.
            if shares > all.threshold || shares < all.threshold.min(2) {
                return Err(node.problem(format_args!(
                    "is {shares} of {} participants, who hold one share each; at least 2 have to open a manager's state together",
                    all.threshold
                )));
            }
            shares
        }
        None => threshold,
    };
    Ok(Consent {
        threshold,
        recovery_shares,
        immutable: immutable.unwrap_or(all.immutable),
    })
}

fn nodes(top: &Fields<'_>, participants: &[Participant]) -> Result<Vec<Node>, Vec<Problem>> {
    let mut seen = Vec::new();
    all(top.required("node")?.list(MAX_NODES)?.iter().map(|node| {
        let fields = node.fields(&["name", "role", "participant"])?;
        let name = fields.required("name")?;
        let owner = fields.required("participant")?;
        let node = Node {
            name: name.party_name()?,
            role: fields.required("role")?.one_of(&Role::ALL, Role::as_str)?,
            participant: owner.party_name()?,
        };
        let known: Vec<_> = participants
            .iter()
            .map(|participant| participant.name.as_str())
            .collect();
        refer(&owner, &node.participant, "participant", &known)?;
        unique(&name, &node.name, &mut seen)?;
        Ok(node)
    }))
}

fn model(top: &Fields<'_>) -> Result<Model, Problem> {
    let fields = top.required("model")?.fields(&["name", "weights"])?;
    Ok(Model {
        name: fields.required("name")?.name()?,
        weights: fields.required("weights")?.digest()?,
    })
}

fn modules(top: &Fields<'_>, nodes: &[Node]) -> Result<Vec<Module>, Vec<Problem>> {
    let mut seen = Vec::new();
    all(top.list("module", MAX_MODULES)?.iter().map(|node| {
        let fields = node.fields(&[
            "name",
            "role",
            "sha256",
            "tensor_access",
            "settings",
            "scalars",
            "reads",
            "nodes",
        ])?;
        let name = fields.required("name")?;
        let access = fields.optional("tensor_access");
        let access = access
            .map(|node| node.one_of(&TensorAccess::ALL, TensorAccess::as_str))
            .transpose()?;
        let reads = fields.list("reads", MAX_SETTINGS)?;
        let module = Module {
            name: name.name()?,
            role: fields.required("role")?.one_of(&ModuleRole::ALL, ModuleRole::as_str)?,
            sha256: fields.required("sha256")?.digest()?,
            tensor_access: access.unwrap_or_default(),
            settings: settings(&fields)?,
            scalars: scalars(&fields)?,
            reads: reads.iter().map(reader::Node::name).collect::<Result<_, _>>()?,
            nodes: named_nodes(&fields, nodes)?,
        };
        unique(&name, &module.name, &mut seen)?;
        Ok(module)
    }))
}

fn settings(fields: &Fields<'_>) -> Result<BTreeMap<String, Scalar>, Problem> {
    let Some(node) = fields.optional("settings") else {
        return Ok(BTreeMap::new());
    };
    node.map(MAX_SETTINGS)?
        .into_iter()
        .map(|(name, node)| Ok((name, node.scalar()?)))
        .collect()
}

fn scalars(fields: &Fields<'_>) -> Result<BTreeMap<String, ScalarRange>, Problem> {
    let Some(node) = fields.optional("scalars") else {
        return Ok(BTreeMap::new());
    };
    let ranges = node.map(MAX_SETTINGS)?.into_iter().map(|(name, node)| {
        let fields = node.fields(&["min", "max"])?;
        let range = ScalarRange {
            min: fields.required("min")?.number()?,
            max: fields.required("max")?.number()?,
        };
        if range.min > range.max {
            return Err(node.problem(format_args!(
                "has the minimum {} above the maximum {}",
                range.min, range.max
            )));
        }
        Ok((name, range))
    });
    ranges.collect()
}

fn graphs(top: &Fields<'_>, nodes: &[Node]) -> Result<Vec<Graph>, Vec<Problem>> {
    let mut seen = Vec::new();
    all(top.list("graph", MAX_GRAPHS)?.iter().map(|node| {
        let fields = node.fields(&["name", "sha256", "batch", "nodes"])?;
        let name = fields.required("name")?;
        let batch = fields.required("batch")?;
        let graph = Graph {
            name: name.name()?,
            sha256: fields.required("sha256")?.digest()?,
            batch: batch.integer_u32(1..=1 << 20)?,
            nodes: named_nodes(&fields, nodes)?,
        };
        if let Some((_, rows)) = graph.name.split_once('@')
            && rows.parse() != Ok(graph.batch)
        {
            let (rows, wanted) = (graph.batch, &graph.name);
            return Err(batch.problem(format_args!(
                "is {rows} in the graph {wanted:?}; behind the `@` stands its batch"
            )));
        }
        unique(&name, &graph.name, &mut seen)?;
        Ok(graph)
    }))
}

fn datasets(top: &Fields<'_>, nodes: &[Node]) -> Result<Vec<Dataset>, Vec<Problem>> {
    let mut seen: Vec<(String, String)> = Vec::new();
    let known: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    all(top.list("dataset", MAX_DATASETS)?.iter().map(|node| {
        let fields = node.fields(&DATASET)?;
        let dataset = dataset(&fields)?;
        refer(&fields.required("node")?, &dataset.node, "node", &known)?;
        let key = (dataset.node.clone(), dataset.spec.name.clone());
        if seen.contains(&key) {
            return Err(node.problem(format_args!("is a second dataset {:?} of node {:?}", key.1, key.0)));
        }
        seen.push(key);
        Ok(dataset)
    }))
}

fn dataset(fields: &Fields<'_>) -> Result<Dataset, Problem> {
    Ok(Dataset {
        node: fields.required("node")?.party_name()?,
        commitment: fields.required("commitment")?.digest()?,
        rows: fields
            .optional("rows")
            .map(|node| node.integer(1..=1 << 40))
            .transpose()?,
        spec: DatasetSpec::read(fields)?,
    })
}

impl Dataset {
    /// Parses a file that says what a `[[dataset]]` of a policy says, without that heading.
    ///
    /// # Errors
    /// [`PolicyError`] with file, line, column and remedy of what is wrong.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, PolicyError> {
        read_document(bytes, file, &DATASET, |fields| Ok(dataset(fields)?))
    }
}

fn compute(top: &Fields<'_>) -> Result<Compute, Problem> {
    let Some(node) = top.optional("compute") else {
        return Ok(Compute::default());
    };
    let precision = node.fields(&["precision"])?.optional("precision");
    let precision = precision.map(|node| node.one_of(&Precision::ALL, Precision::as_str));
    Ok(Compute {
        precision: precision.transpose()?.unwrap_or_default(),
    })
}

fn limits(top: &Fields<'_>) -> Result<Limits, Problem> {
    let Some(node) = top.optional("limits") else {
        return Ok(Limits::default());
    };
    let fields = node.fields(&[
        "guest_memory_mib",
        "tensor_memory_mib",
        "call_s",
        "round_s",
        "instances",
        "log_bytes",
        "update_mib",
        "content_mib",
    ])?;
    let default = Limits::default();
    let limits = Limits {
        guest_memory_mib: fields.integer("guest_memory_mib", 1..=4096, default.guest_memory_mib)?,
        tensor_memory_mib: fields.integer("tensor_memory_mib", 1..=1 << 20, default.tensor_memory_mib)?,
        call_s: fields.integer("call_s", 1..=86_400, default.call_s)?,
        round_s: fields.integer("round_s", 1..=7 * 86_400, default.round_s)?,
        instances: match fields.optional("instances") {
            Some(node) => node.integer_u32(1..=1000)?,
            None => default.instances,
        },
        log_bytes: fields.integer("log_bytes", 0..=16 << 20, default.log_bytes)?,
        update_mib: fields.integer("update_mib", 1..=1 << 20, default.update_mib)?,
        content_mib: fields.integer("content_mib", 1..=1 << 20, default.content_mib)?,
    };
    if limits.call_s > limits.round_s {
        return Err(node.problem(format_args!(
            "give a call {} s, more than the round's {} s",
            limits.call_s, limits.round_s
        )));
    }
    Ok(limits)
}

fn release(top: &Fields<'_>, participants: &[Participant]) -> Result<Release, Vec<Problem>> {
    let Some(node) = top.optional("release") else {
        return Ok(Release::default());
    };
    let fields = node.fields(&["model", "recipients"])?;
    let known: Vec<_> = participants
        .iter()
        .map(|participant| participant.name.as_str())
        .collect();
    let model = fields.optional("model");
    let mut seen = Vec::new();
    let recipients = all(fields.list("recipients", MAX_PARTICIPANTS)?.iter().map(|node| {
        let name = node.party_name()?;
        refer(node, &name, "participant", &known)?;
        unique(node, &name, &mut seen)?;
        Ok(name)
    }))?;
    let model = model
        .map(|node| node.one_of(&[ReleasedModel::Final], ReleasedModel::as_str))
        .transpose()?;
    Ok(Release {
        model: model.unwrap_or_default(),
        recipients,
    })
}

/// The optional list `nodes`, each of which the policy has.
fn named_nodes(fields: &Fields<'_>, nodes: &[Node]) -> Result<Option<Vec<String>>, Problem> {
    let Some(list) = fields.optional("nodes") else {
        return Ok(None);
    };
    let known: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    let mut names = Vec::new();
    for element in list.list(MAX_NODES)? {
        let name = element.party_name()?;
        refer(&element, &name, "node", &known)?;
        unique(&element, &name, &mut names)?;
    }
    if names.is_empty() {
        Err(list.problem("is empty; leave it out, or name a node"))
    } else {
        Ok(Some(names))
    }
}

fn refer(place: &reader::Node<'_>, name: &str, what: &str, known: &[&str]) -> Result<(), Problem> {
    if known.contains(&name) {
        return Ok(());
    }
    Err(match reader::nearest(name, known) {
        Some(near) => place.problem(format_args!(
            "is {name:?}, but the policy has no such {what}; did you mean {near:?}?"
        )),
        None => place.problem(format_args!(
            "is {name:?}, but the policy has no [[{what}]] of that name"
        )),
    })
}

fn unique(place: &reader::Node<'_>, name: &str, seen: &mut Vec<String>) -> Result<(), Problem> {
    if seen.iter().any(|other| other == name) {
        return Err(place.problem(format_args!("is {name:?} a second time; names are unique")));
    }
    seen.push(name.to_owned());
    Ok(())
}
