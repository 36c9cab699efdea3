//! Whether the sections of a policy fit together: what every node needs is there, and a measurement can hold it.

use cloister_attestation::identity::Role;
use cloister_attestation::measurement::MAX_ENTRIES;

use crate::agreement::{Agreement, ModuleRole, TensorAccess};
use crate::reader::{Fields, Problem};

pub(super) fn check(top: &Fields<'_>, agreement: &Agreement) -> Result<(), Vec<Problem>> {
    let mut problems = Vec::new();
    let aggregators = agreement
        .nodes
        .iter()
        .filter(|node| node.role == Role::Aggregator)
        .count();
    if aggregators != 1 {
        let message = format!("has {aggregators} nodes of the role aggregator; exactly one is wanted");
        problems.push(place(top, "node", &message));
    }
    let workers = agreement.nodes.iter().filter(|node| node.role == Role::Worker).count();
    if agreement.rounds.min_workers_per_aggregate as usize > workers {
        let least = agreement.rounds.min_workers_per_aggregate;
        let message = format!("has min_workers_per_aggregate = {least}, but the policy has {workers} workers");
        problems.push(place(top, "rounds", &message));
    }
    for node in &agreement.nodes {
        let name = &node.name;
        let modules = agreement.modules_for(name);
        let count = |role| modules.iter().filter(|module| module.role == role).count();
        let kind = match node.role {
            Role::Worker => Some(ModuleRole::Trainer),
            Role::Aggregator => Some(ModuleRole::Aggregator),
            Role::Manager | Role::Server | Role::Auditor => None,
        };
        if let Some(kind) = kind
            && count(kind) != 1
        {
            let (seen, kind) = (count(kind), kind.as_str());
            let message = format!("gives node {name:?} {seen} modules of the role {kind}; exactly one is wanted");
            problems.push(place(top, "module", &message));
        }
        if node.role == Role::Worker && agreement.datasets_for(name).is_empty() {
            problems.push(place(
                top,
                "dataset",
                &format!("gives worker {name:?} no dataset to train on"),
            ));
        }
        if node.role == Role::Worker && agreement.graphs_for(name).is_empty() {
            problems.push(place(
                top,
                "graph",
                &format!("gives worker {name:?} no graph to train with"),
            ));
        }
        for module in modules.iter().filter(|module| !module.role.runs_on(node.role)) {
            let message = format!(
                "gives the {} {:?} to {name:?}, a {}",
                module.role.as_str(),
                module.name,
                node.role
            );
            problems.push(place(top, "module", &message));
        }
        // One for the policy; native libraries and the binary are host files.
        let hosts = agreement.attestation.hosts.len();
        let entries = 1 + hosts + modules.len() + agreement.graphs_for(name).len() + agreement.datasets_for(name).len();
        if entries > MAX_ENTRIES {
            let message = format!("gives node {name:?} {entries} things to measure; at most {MAX_ENTRIES} fit");
            problems.push(top.problem(message));
        }
    }
    problems.extend(transforms(top, agreement));
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// Datasets name transforms that run on their nodes; a transform has no grants, and somebody uses it.
fn transforms(top: &Fields<'_>, agreement: &Agreement) -> Vec<Problem> {
    let mut problems = Vec::new();
    for dataset in &agreement.datasets {
        let Some(transform) = &dataset.spec.transform else {
            continue;
        };
        let (node, name) = (&dataset.node, &transform.module);
        let modules = agreement.modules_for(node);
        let found = modules.iter().find(|module| module.name == *name);
        let why = match found.map(|module| module.role) {
            Some(ModuleRole::Transform) => continue,
            Some(other) => format!("which is a module of the role {}", other.as_str()),
            None if agreement.modules.iter().any(|module| module.name == *name) => {
                format!("which does not run on {node:?}: add it to the module's `nodes`, or leave those out")
            }
            None => "but the policy has no [[module]] of that name".to_owned(),
        };
        let message = format!(
            "{:?} of {node:?} goes through the transform {name:?}, {why}",
            dataset.name()
        );
        problems.push(place(top, "dataset", &message));
    }
    for module in agreement
        .modules
        .iter()
        .filter(|module| module.role == ModuleRole::Transform)
    {
        let name = &module.name;
        let granted = module.tensor_access != TensorAccess::default();
        if granted || !module.scalars.is_empty() || !module.reads.is_empty() {
            let message = format!(
                "gives the transform {name:?} `tensor_access`, `scalars` or `reads`; it sees rows and makes rows and has no other \
                 grants, leave them out"
            );
            problems.push(place(top, "module", &message));
        }
        let used = |node: &str| agreement.transforms(node).any(|used| used == name);
        let idle = |nodes: &Vec<String>| nodes.iter().find(|node| !used(node)).cloned();
        let message = match &module.nodes {
            None if !agreement.nodes.iter().any(|node| used(&node.name)) => Some(format!(
                "has the transform {name:?}, which no dataset names: add `transform` to one, or leave it out"
            )),
            None => None,
            Some(nodes) => idle(nodes)
                .map(|node| format!("has the transform {name:?} on {node:?}, none of whose datasets names it")),
        };
        problems.extend(message.map(|message| place(top, "module", &message)));
    }
    problems
}

/// A problem at a section, or with the document if it has none such.
fn place(top: &Fields<'_>, section: &str, message: &str) -> Problem {
    top.optional(section)
        .map_or_else(|| top.problem(message), |node| node.problem(message))
}
