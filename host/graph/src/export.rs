//! From an evaluation graph and trained weights back to a forward model that other tools open.

use cloister_tensor::TensorMap;

use crate::bind::{self, Initializers};
use crate::engine_graph::{EngineGraph, Language};
use crate::error::GraphError;
use crate::ir::Graph;
use crate::limits::Limits;
use crate::onnx::{self, Batch};
use crate::port::PortKind;

/// Writes the evaluation graph without loss, labels and hits, with these parameters and statistics inside: an ONNX file that
/// maps the model's inputs to its outputs. The batch is left open where the graph allows for any.
///
/// # Errors
/// [`GraphError::Weights`] when a weight is missing or has another type or shape than its port.
pub fn export_forward(evaluation: &EngineGraph, weights: &TensorMap) -> Result<Vec<u8>, GraphError> {
    if evaluation.language() != Language::Onnx {
        let problem = "a step in TorchScript can't be written as ONNX; an evaluation graph in ONNX is wanted";
        return Err(GraphError::Interface(problem.to_owned()));
    }
    let mut graph = Graph::clone(&evaluation.graph);
    let mut inputs = Vec::new();
    for (port, &id) in evaluation.inputs().iter().zip(&graph.inputs) {
        match &port.kind {
            PortKind::Data(_) => inputs.push(id),
            PortKind::Parameter(name) | PortKind::Statistic(name) => {
                let tensor = weights
                    .get(name)
                    .ok_or_else(|| GraphError::Weights(format!("'{name}' is missing")))?;
                if tensor.dtype() != port.dtype || tensor.shape().dims() != port.shape {
                    return Err(GraphError::Weights(format!(
                        "'{name}' is {} of shape {:?}, {} of shape {:?} is wanted",
                        tensor.dtype().name(),
                        tensor.shape().dims(),
                        port.dtype.name(),
                        port.shape
                    )));
                }
                graph.constants.insert(id, tensor.clone());
            }
            _ => {}
        }
    }
    let is_own = |kind: &PortKind| matches!(kind, PortKind::Output(_));
    graph.outputs = evaluation
        .outputs()
        .iter()
        .zip(graph.outputs)
        .filter(|(port, _)| is_own(&port.kind))
        .map(|(_, output)| output)
        .collect();
    if graph.outputs.is_empty() {
        return Err(GraphError::Interface(
            "the graph has no output of the model; an evaluation graph is wanted".to_owned(),
        ));
    }
    graph.inputs = inputs;
    graph.metadata.clear();
    graph.prune();
    if let Some(open) = with_open_batch(&graph)? {
        return Ok(open);
    }
    Ok(onnx::write(&graph, Batch::Fixed))
}

/// The file with its batch left open, if it gives the right shapes for another batch size too.
fn with_open_batch(graph: &Graph) -> Result<Option<Vec<u8>>, GraphError> {
    let leading: Vec<Option<usize>> = graph
        .inputs
        .iter()
        .map(|&id| graph.value(id).shape.first().copied())
        .collect();
    let Some(Some(batch)) = leading.first().copied() else {
        return Ok(None);
    };
    if leading.iter().any(|&other| other != Some(batch)) {
        return Ok(None);
    }
    let file = onnx::write(graph, Batch::Symbolic);
    let limits = Limits {
        elements: usize::MAX,
        ..Limits::default()
    };
    let document = onnx::read(&file, &limits)?;
    let other = batch + 1;
    let Ok(bound) = bind::bind(&document, &limits, Some(other), Initializers::Unnamed) else {
        return Ok(None);
    };
    let fits = graph
        .outputs
        .iter()
        .zip(&bound.graph.outputs)
        .all(|((_, here), (_, there))| {
            let (here, there) = (&graph.value(*here).shape, &bound.graph.value(*there).shape);
            here.first() == Some(&batch) && there.first() == Some(&other) && here[1..] == there[1..]
        });
    Ok(fits.then_some(file))
}
