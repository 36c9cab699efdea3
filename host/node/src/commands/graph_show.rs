//! `cloister graph show`: a graph's parameters, ports, operators and digest.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use cloister_graph::{EngineGraph, GraphError, Language, Limits, Model, Operator, Port};
use miette::Report;
use serde::Serialize;

use super::graph::{read, refused};
use crate::ui::{Exit, OutputArgs, Ui};

/// Print a graph's parameters, ports, operators and digest.
///
/// Takes forward models, training graphs and evaluation graphs.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  cloister graph show mlp.onnx
  cloister graph show train.onnx -o json
  cloister graph show --operators")]
pub(super) struct ShowArgs {
    /// ONNX file
    #[arg(value_name = "GRAPH.onnx", required_unless_present = "operators")]
    graph: Option<PathBuf>,
    /// Batch size that a forward model is shown with
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
    /// List the operators that can be read
    #[arg(long)]
    operators: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Shown {
    sha256: String,
    kind: String,
    parameters: Vec<ShownTensor>,
    parameter_count: usize,
    statistics: Vec<ShownTensor>,
    inputs: Vec<ShownPort>,
    outputs: Vec<ShownPort>,
    operators: BTreeMap<&'static str, usize>,
    metadata: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct ShownTensor {
    name: String,
    shape: Vec<usize>,
}

#[derive(Serialize)]
struct ShownPort {
    name: String,
    kind: &'static str,
    dtype: &'static str,
    shape: Vec<usize>,
}

fn shown_tensors(of: &[(String, Vec<usize>)]) -> Vec<ShownTensor> {
    of.iter()
        .map(|(name, shape)| ShownTensor {
            name: name.clone(),
            shape: shape.clone(),
        })
        .collect()
}

fn shown_ports(of: &[Port]) -> Vec<ShownPort> {
    let port = |port: &Port| ShownPort {
        name: port.name.clone(),
        kind: port.kind.word(),
        dtype: port.dtype.name(),
        shape: port.shape.clone(),
    };
    of.iter().map(port).collect()
}

/// Runs the command.
pub(super) fn run(args: &ShowArgs, out: &mut Ui) -> Result<Exit, Report> {
    let Some(path) = &args.graph else {
        show_operators(args.output, out);
        return Ok(Exit::Done);
    };
    let file = read(path)?;
    let about = |error: GraphError| refused(path, &error);
    let forward = if EngineGraph::is_torch_script(&file) {
        None
    } else {
        let model = Model::parse(&file, &Limits::default()).map_err(about)?;
        (!model.has_typed_ports()).then_some(model)
    };
    let graph = match &forward {
        None => EngineGraph::load(&file),
        Some(model) => model.at_batch(args.batch),
    }
    .map_err(about)?;
    let (parameters, statistics) = if let Some(model) = &forward {
        (shown_tensors(model.parameters()), shown_tensors(model.statistics()))
    } else {
        let of_kind = |word: &str| -> Vec<ShownTensor> {
            let ports = graph.inputs().iter().filter(|port| port.kind.word() == word);
            ports
                .map(|port| ShownTensor {
                    name: port.name.clone(),
                    shape: port.shape.clone(),
                })
                .collect()
        };
        (of_kind("parameter"), of_kind("statistic"))
    };
    let shown = Shown {
        sha256: graph.source_digest().to_string(),
        kind: graph
            .metadata()
            .get("cloister.kind")
            .cloned()
            .unwrap_or_else(|| match graph.language() {
                Language::Onnx => "forward".to_owned(),
                Language::TorchScript => "step in TorchScript".to_owned(),
            }),
        parameter_count: parameters.iter().map(|one| one.shape.iter().product::<usize>()).sum(),
        parameters,
        statistics,
        inputs: shown_ports(graph.inputs()),
        outputs: shown_ports(graph.outputs()),
        operators: graph
            .operators()
            .into_iter()
            .map(|(operator, count)| (operator.name(), count))
            .collect(),
        metadata: graph.metadata().clone(),
    };
    if args.output.json() {
        out.json(&shown);
    } else {
        print(&shown, out);
    }
    Ok(Exit::Done)
}

fn print(shown: &Shown, out: &mut Ui) {
    out.data(format_args!("sha256      {}", shown.sha256));
    out.data(format_args!("kind        {}", shown.kind));
    for (key, value) in &shown.metadata {
        let name = key.trim_start_matches("cloister.");
        if !matches!(name, "format" | "kind" | "inputs" | "outputs") {
            out.data(format_args!("{name:<11} {value}"));
        }
    }
    let operators: Vec<String> = shown
        .operators
        .iter()
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    out.data(format_args!("operators   {}", operators.join(", ")));
    out.data(format_args!(
        "parameters  {} in {} tensors",
        shown.parameter_count,
        shown.parameters.len()
    ));
    for one in &shown.parameters {
        out.data(format_args!("  {:<40} {:?}", one.name, one.shape));
    }
    if !shown.statistics.is_empty() {
        out.data("statistics");
        for one in &shown.statistics {
            out.data(format_args!("  {:<40} {:?}", one.name, one.shape));
        }
    }
    for (title, ports) in [("inputs", &shown.inputs), ("outputs", &shown.outputs)] {
        out.data(title);
        for port in ports {
            out.data(format_args!(
                "  {:<40} {:<15} {:<5} {:?}",
                port.name, port.kind, port.dtype, port.shape
            ));
        }
    }
}

fn show_operators(output: OutputArgs, out: &mut Ui) {
    let names: Vec<&str> = Operator::ALL.iter().map(|operator| operator.name()).collect();
    if output.json() {
        out.json(&names);
    } else {
        for name in names {
            out.data(name);
        }
    }
}
