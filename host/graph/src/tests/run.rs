//! A whole graph on the reference interpreter.

use std::collections::BTreeMap;

use super::interpreter::{Array, compute};
use crate::engine_graph::EngineGraph;
use crate::ir::ValueId;

/// Runs a graph on named values.
pub(super) fn run(graph: &EngineGraph, feeds: &BTreeMap<String, Array>) -> BTreeMap<String, Array> {
    let graph = &graph.graph;
    let mut values: BTreeMap<ValueId, Array> = graph
        .constants
        .iter()
        .map(|(&id, tensor)| (id, Array::of(tensor)))
        .collect();
    for &id in &graph.inputs {
        let port = graph.value(id);
        let feed = feeds
            .get(&port.name)
            .unwrap_or_else(|| panic!("no feed for {}", port.name));
        assert_eq!(feed.shape, port.shape, "{}", port.name);
        values.insert(id, feed.clone());
    }
    for node in &graph.nodes {
        let inputs: Vec<Option<&Array>> = node.inputs.iter().map(|id| id.map(|id| &values[&id])).collect();
        let output = node.outputs[0];
        let result = compute(node, &inputs);
        assert_eq!(
            result.shape,
            graph.value(output).shape,
            "inferred shape of {:?}",
            node.operator
        );
        values.insert(output, result);
    }
    graph
        .outputs
        .iter()
        .map(|(name, id)| (name.clone(), values[id].clone()))
        .collect()
}
