//! Whether the parts of an agreement fit each other, as far as their files are at hand: settings and what modules declare, grants and
//! what graphs have, datasets and weights and what graphs take. What is found here would else end the first round.

mod weights;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cloister_attestation::identity::Role;
use cloister_graph::{EngineGraph, Limits, Model, Port, PortKind};
use cloister_policy::agreement::{Agreement, Dataset, Graph, Module, RoundMode};
use cloister_policy::{DatasetSpec, InputType, ModuleRole, Scalar};
use cloister_sandbox::{Inspection, SandboxLimits, SettingValue, World, inspect, resolve_settings};
use cloister_tensor::{Digest, Dtype};
use miette::Report;

use crate::files;
use crate::keeper::runner::settings;
use crate::ui::{Exit, failed};
use weights::Weights;

/// The setting by which a trainer says how many rows a batch has.
pub const BATCH: &str = "batch";
/// The setting by which a trainer says that it reads the loss.
const REPORT_LOSS: &str = "report_loss";
/// The dataset's input that goes to a graph's labels.
const LABELS: &str = "labels";
/// Files of a folder that are looked at.
const MAX_FOLDER_FILES: usize = 4096;

/// Files of an agreement that are at hand, by their digests.
#[derive(Debug, Default)]
pub struct AtHand {
    modules: BTreeMap<Digest, Inspection>,
    graphs: BTreeMap<Digest, Result<Ports, String>>,
    weights: Option<Weights>,
}

/// How a file that an agreement names is looked at.
type Look = fn(&mut AtHand, &Path) -> Result<(), Report>;

/// The ports of a graph.
#[derive(Debug)]
struct Ports {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl AtHand {
    /// Looks at a module's file.
    ///
    /// # Errors
    /// It cannot be read or is no component.
    pub fn module(&mut self, path: &Path) -> Result<(), Report> {
        let bytes = files::read(path, SandboxLimits::default().component_bytes as u64)?;
        let inspection =
            inspect(&bytes).map_err(|error| failed(Exit::Usage, format!("{}: {error}", path.display()), None))?;
        self.modules.insert(inspection.digest, inspection);
        Ok(())
    }

    /// Looks at a graph's file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn graph(&mut self, path: &Path) -> Result<(), Report> {
        let bytes = files::read(path, Limits::default().bytes as u64)?;
        let typed = if EngineGraph::is_torch_script(&bytes) {
            Ok(true)
        } else {
            Model::parse(&bytes, &Limits::default()).map(|model| model.has_typed_ports())
        };
        let ports = match typed {
            Ok(true) => EngineGraph::load(&bytes)
                .map_err(|error| error.to_string())
                .map(|graph| Ports {
                    inputs: graph.inputs().to_vec(),
                    outputs: graph.outputs().to_vec(),
                }),
            Ok(false) => Err("a forward model, wanted a graph made by `cloister graph train`".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        self.graphs.insert(Digest::of(&bytes), ports);
        Ok(())
    }

    /// Looks at the file of the initial weights.
    ///
    /// # Errors
    /// It cannot be read or is no safetensors file.
    pub fn weights(&mut self, path: &Path) -> Result<(), Report> {
        self.weights = Some(Weights::read(path)?);
        Ok(())
    }

    /// Looks at those files of a folder that the agreement names; says which it names besides.
    ///
    /// # Errors
    /// The folder or one of those files cannot be read.
    pub fn folder(&mut self, folder: &Path, agreement: &Agreement) -> Result<Vec<String>, Report> {
        let unreadable = |error: std::io::Error| {
            let help = files::help(error.kind());
            failed(
                Exit::Usage,
                format!("{} cannot be read: {error}", folder.display()),
                help,
            )
        };
        let mut named: BTreeMap<Digest, (&str, Look)> = BTreeMap::new();
        let weights = &agreement.model;
        named.insert(weights.weights, (weights.name.as_str(), Self::weights));
        for graph in &agreement.graphs {
            named.insert(graph.sha256, (graph.name.as_str(), Self::graph));
        }
        for module in &agreement.modules {
            named.insert(module.sha256, (module.name.as_str(), Self::module));
        }
        for entry in std::fs::read_dir(folder).map_err(unreadable)?.take(MAX_FOLDER_FILES) {
            let path = entry.map_err(unreadable)?.path();
            if !path.is_file() {
                continue;
            }
            if let Some((_, look)) = named.remove(&files::digest_of(&path)?) {
                look(self, &path)?;
            }
        }
        Ok(named.into_values().map(|(name, _)| name.to_owned()).collect())
    }

    /// All that does not fit, each in a sentence that names both sides.
    pub fn problems(&self, agreement: &Agreement) -> Vec<String> {
        let mut problems = BTreeSet::new();
        for module in &agreement.modules {
            if let Some(inspection) = self.modules.get(&module.sha256) {
                module_problems(module, inspection, &mut problems);
            }
        }
        for graph in &agreement.graphs {
            self.graph_problems(graph, &mut problems);
        }
        if let Some(weights) = &self.weights
            && weights.digest == agreement.model.weights
        {
            let ports = |graph: &'_ Graph| self.graphs.get(&graph.sha256)?.as_ref().ok();
            let graphs = agreement.graphs.iter();
            let graphs: Vec<_> = graphs.filter_map(|graph| Some((graph, ports(graph)?))).collect();
            problems.extend(weights.problems(&graphs));
        }
        for node in &agreement.nodes {
            let base = match node.role {
                Role::Worker => "train",
                Role::Aggregator => "evaluate",
                _ => continue,
            };
            let graphs = agreement.graphs_for(&node.name).into_iter();
            let graphs: Vec<_> = graphs
                .filter(|graph| graph.base_name() == base)
                .filter_map(|graph| Some((graph, self.graphs.get(&graph.sha256)?.as_ref().ok()?)))
                .collect();
            if graphs.is_empty() {
                continue;
            }
            let mut makes_tensors = false;
            for module in agreement.modules_for(&node.name) {
                if module.role == ModuleRole::Trainer {
                    makes_tensors |= module.tensor_access.may_write();
                    self.grant_problems(module, &graphs, &mut problems);
                }
            }
            // A trainer that makes tensors of its own may feed a graph without the dataset.
            if !makes_tensors {
                let datasets = agreement.datasets_for(&node.name);
                problems.extend(dataset_problems(&datasets, &graphs));
                if node.role == Role::Worker {
                    problems.extend(mode_problem(agreement.rounds.mode, &graphs));
                }
            }
        }
        problems.into_iter().collect()
    }

    fn graph_problems(&self, graph: &Graph, problems: &mut BTreeSet<String>) {
        match self.graphs.get(&graph.sha256) {
            Some(Err(problem)) => {
                problems.insert(format!("graph {}: {problem}", graph.name));
            }
            Some(Ok(ports)) => {
                let rows = ports
                    .inputs
                    .iter()
                    .find(|port| matches!(port.kind, PortKind::Labels | PortKind::Data(_)));
                if let Some(rows) = rows.and_then(|port| port.shape.first())
                    && *rows as u64 != u64::from(graph.batch)
                {
                    problems.insert(format!(
                        "graph {} is said to be for a batch of {}, and its file is for {rows}",
                        graph.name, graph.batch
                    ));
                }
            }
            None => {}
        }
    }

    /// What a trainer may set and read, against the ports of the graphs that it runs.
    fn grant_problems(&self, module: &Module, graphs: &[(&Graph, &Ports)], problems: &mut BTreeSet<String>) {
        let name = &module.name;
        for (graph, ports) in graphs {
            for port in ports
                .inputs
                .iter()
                .filter(|port| scalar(port) && !module.scalars.contains_key(&port.name))
            {
                let range = match port.kind {
                    PortKind::Step => "1..1e9",
                    _ => "0..1",
                };
                problems.insert(format!(
                    "graph {} takes {}, and module {name} has no range for it in its `scalars`: add one, such as \
                     --scalar {name}.{}={range}",
                    graph.name, port.name, port.name
                ));
            }
        }
        let inputs = || graphs.iter().flat_map(|(_, ports)| &ports.inputs);
        for granted in module.scalars.keys() {
            if !inputs().any(|port| scalar(port) && port.name == *granted) {
                let known: BTreeSet<_> = inputs()
                    .filter(|port| scalar(port))
                    .map(|port| port.name.as_str())
                    .collect();
                problems.insert(format!(
                    "module {name}: `scalars` names {granted}, and no graph that it runs has such a scalar; they have {}",
                    words(&known)
                ));
            }
        }
        let single = |port: &&Port| port.shape.iter().product::<usize>() == 1;
        let outputs = || graphs.iter().flat_map(|(_, ports)| &ports.outputs).filter(single);
        for read in &module.reads {
            if !outputs().any(|port| port.name == *read) {
                let known: BTreeSet<_> = outputs().map(|port| port.name.as_str()).take(16).collect();
                problems.insert(format!(
                    "module {name}: `reads` names {read}, and no graph that it runs has such an output of one element; they \
                     have {}",
                    words(&known)
                ));
            }
        }
        let resolved = self
            .modules
            .get(&module.sha256)
            .and_then(|inspection| resolve_settings(&inspection.settings, &settings(module)).ok())
            .unwrap_or_default();
        if resolved.get(REPORT_LOSS) == Some(&SettingValue::Boolean(true))
            && !module.reads.iter().any(|read| read == "loss")
        {
            problems.insert(format!(
                "module {name} reports the loss (setting {REPORT_LOSS} = true) and may not read it: add --reads {name}.loss, \
                 or set {REPORT_LOSS} = false"
            ));
        }
        if let Some(SettingValue::Integer(batch)) = resolved.get(BATCH) {
            let whole = graphs.iter().find(|(graph, _)| graph.name == graph.base_name());
            if let Some((graph, _)) = whole
                && i64::from(graph.batch) != *batch
            {
                problems.insert(format!(
                    "module {name} asks for batches of {batch} rows (setting {BATCH}), and graph {} is for {}",
                    graph.name, graph.batch
                ));
            }
        }
    }
}

/// Refuses what does not fit.
///
/// # Errors
/// There is a problem; all are named.
pub fn refuse(problems: &[String], exit: Exit) -> Result<(), Report> {
    if problems.is_empty() {
        return Ok(());
    }
    Err(failed(
        exit,
        format!(
            "the parts do not fit each other; the first round would fail:\n  {}",
            problems.join("\n  ")
        ),
        None,
    ))
}

fn module_problems(module: &Module, inspection: &Inspection, problems: &mut BTreeSet<String>) {
    let name = &module.name;
    let wanted = match module.role {
        ModuleRole::Trainer => Some(World::Trainer),
        ModuleRole::Aggregator => Some(World::Aggregator),
        ModuleRole::Transform => Some(World::Transform),
        ModuleRole::Predictor => None,
    };
    match (wanted, inspection.world) {
        (_, None) => {
            let problem = inspection.problem.as_deref().unwrap_or("of no known world");
            problems.insert(format!("module {name}: {problem}"));
        }
        (Some(wanted), Some(seen)) if wanted != seen => {
            problems.insert(format!(
                "module {name} has the role {}, and its file is a {seen}",
                module.role.as_str()
            ));
        }
        _ => {}
    }
    if let Err(error) = resolve_settings(&inspection.settings, &settings(module)) {
        problems.insert(format!("module {name}: {error}"));
    }
    for (setting, range) in &module.scalars {
        let value = match module.settings.get(setting) {
            Some(Scalar::Integer(value)) => *value as f64,
            Some(Scalar::Float(value)) => *value,
            _ => continue,
        };
        if !(range.min..=range.max).contains(&value) {
            problems.insert(format!(
                "module {name}: setting {setting} = {value} lies outside of its range {} to {} in `scalars`",
                range.min, range.max
            ));
        }
    }
}

/// Graphs by which a worker can't give what it is to send.
fn mode_problem(mode: RoundMode, graphs: &[(&Graph, &Ports)]) -> Option<String> {
    let gives = |ports: &Ports| {
        ports
            .outputs
            .iter()
            .any(|port| matches!(port.kind, PortKind::Gradient(_)))
    };
    let (graph, _) = graphs.iter().find(|(_, ports)| mode.by_steps() && !gives(ports))?;
    Some(format!(
        "workers send gradients (mode {}), and graph {} gives none: make it with --optimizer none",
        mode.as_str(),
        graph.name
    ))
}

/// A node's datasets against the graphs that they feed. Modules choose among several by name: one that fits is enough.
fn dataset_problems(datasets: &[&Dataset], graphs: &[(&Graph, &Ports)]) -> Vec<String> {
    let mut all = Vec::new();
    for dataset in datasets {
        let mut problems = Vec::new();
        for (graph, ports) in graphs {
            let computed = |name: &str| {
                graphs
                    .iter()
                    .any(|(_, ports)| ports.outputs.iter().any(|port| port.name == name))
            };
            for port in &ports.inputs {
                let input = match &port.kind {
                    PortKind::Labels => LABELS,
                    PortKind::Data(name) if !computed(name) => name.as_str(),
                    _ => continue,
                };
                problems.extend(input_problem(dataset, &dataset.spec, graph, input, port));
            }
        }
        if problems.is_empty() {
            return Vec::new();
        }
        all.extend(problems);
    }
    all
}

fn input_problem(dataset: &Dataset, spec: &DatasetSpec, graph: &Graph, input: &str, port: &Port) -> Option<String> {
    let whose = format!("dataset {} of {}", dataset.name(), dataset.node);
    let wanted_shape = port.shape.get(1..).unwrap_or_default();
    let wanted = format!(
        "{} rows of shape {wanted_shape:?}",
        port.dtype.name().to_ascii_lowercase()
    );
    let fed = spec.fed();
    let Some(&(seen_shape, seen)) = fed.get(input) else {
        let known: BTreeSet<_> = fed.into_keys().collect();
        return Some(format!(
            "{whose} has the inputs {}, and graph {} takes {input} ({wanted})",
            words(&known),
            graph.name
        ));
    };
    let dtype = match seen {
        InputType::U8 => Dtype::U8,
        InputType::F32 => Dtype::F32,
        InputType::I64 => Dtype::I64,
    };
    let made = spec
        .transform
        .as_ref()
        .filter(|transform| transform.makes.contains_key(input));
    let by = made.map_or_else(String::new, |transform| {
        format!(", made by the transform {},", transform.module)
    });
    (dtype != port.dtype || seen_shape != wanted_shape).then(|| {
        format!(
            "{whose}: input {input}{by} has {} rows of shape {seen_shape:?}, and graph {} takes {wanted}",
            seen.name(),
            graph.name
        )
    })
}

fn scalar(port: &Port) -> bool {
    matches!(port.kind, PortKind::LearningRate | PortKind::Step)
}

fn words(names: &BTreeSet<&str>) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    names.iter().copied().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
