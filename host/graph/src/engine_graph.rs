//! What an engine accepts: a graph that this crate has written.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cloister_tensor::{Digest, Dtype};

use crate::bind::{self, Bound, Initializers};
use crate::document::Document;
use crate::error::GraphError;
use crate::ir::{Graph, Operator, ValueId};
use crate::limits::Limits;
use crate::onnx::{self, Batch};
use crate::port::{self, Port, PortKind};
use crate::roles::Roles;
use crate::torch::{self, Step};

/// What a graph is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// Canonical ONNX, opset 17.
    Onnx,
    /// The source of a TorchScript class: for the engine around libtorch alone.
    TorchScript,
}

/// A graph with typed ports and fixed shapes, as canonical ONNX or TorchScript. It can be made by this crate alone: whatever a file
/// holds is read into a bounded representation and written anew.
#[derive(Clone)]
pub struct EngineGraph {
    bytes: Bytes,
    digest: Digest,
    source_digest: Digest,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Of a step in TorchScript: its ports alone.
    pub(crate) graph: Arc<Graph>,
    step: Option<Arc<Step>>,
}

impl std::fmt::Debug for EngineGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (nodes, inputs, outputs) = (self.graph.nodes.len(), self.inputs.len(), self.outputs.len());
        write!(
            f,
            "EngineGraph({}, {nodes} nodes, {inputs} inputs, {outputs} outputs)",
            self.digest.short()
        )
    }
}

/// Metadata that are kept.
const OWN_METADATA: &str = "cloister.";

impl EngineGraph {
    /// Reads a graph of fixed shapes (a training or evaluation graph, or any other) with the default limits.
    ///
    /// # Errors
    /// Whatever [`GraphError`] names: a file that isn't ONNX, parts that are refused, operators that aren't supported,
    /// shapes that don't fit or aren't fixed (use [`crate::Model::at_batch`]), ports that aren't what the metadata say.
    pub fn load(file: &[u8]) -> Result<Self, GraphError> {
        Self::load_within(file, &Limits::default())
    }

    /// [`Self::load`] with other limits.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_within(file: &[u8], limits: &Limits) -> Result<Self, GraphError> {
        if Self::is_torch_script(file) {
            return Self::of_step(Step::read(file, limits)?, Digest::of(file));
        }
        Self::bound(&onnx::read(file, limits)?, limits, None, Digest::of(file))
    }

    pub(crate) fn bound(
        document: &Document,
        limits: &Limits,
        batch: Option<usize>,
        source: Digest,
    ) -> Result<Self, GraphError> {
        let metadata: BTreeMap<String, String> = document
            .metadata
            .iter()
            .filter(|(key, _)| key.starts_with(OWN_METADATA))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let roles;
        let initializers = if metadata.is_empty() {
            roles = Roles::of(document)?;
            Initializers::Inside(&roles)
        } else {
            Initializers::Unnamed
        };
        let Bound { mut graph, .. } = bind::bind(document, limits, batch, initializers)?;
        graph.metadata = metadata;
        Self::of(graph, Some(source))
    }

    /// Writes a graph. Its source is itself unless another is given.
    pub(crate) fn of(graph: Graph, source: Option<Digest>) -> Result<Self, GraphError> {
        let (inputs, outputs) = port::from_graph(&graph)?;
        let bytes = Bytes::from(onnx::write(&graph, Batch::Fixed));
        let digest = Digest::of(&bytes);
        Ok(Self {
            bytes,
            digest,
            source_digest: source.unwrap_or(digest),
            inputs,
            outputs,
            graph: Arc::new(graph),
            step: None,
        })
    }

    fn of_step(step: Step, source_digest: Digest) -> Result<Self, GraphError> {
        let graph = step.interface();
        let (inputs, outputs) = port::from_graph(&graph)?;
        let bytes = Bytes::from(step.source());
        Ok(Self {
            digest: Digest::of(&bytes),
            bytes,
            source_digest,
            inputs,
            outputs,
            graph,
            step: Some(Arc::new(step)),
        })
    }

    /// Whether a file is a step in TorchScript, by its first line.
    pub fn is_torch_script(file: &[u8]) -> bool {
        torch::is_step(file)
    }

    /// What [`Self::bytes`] are written in.
    pub fn language(&self) -> Language {
        match self.step {
            None => Language::Onnx,
            Some(_) => Language::TorchScript,
        }
    }

    /// The canonical ONNX file (opset 17), or the source in TorchScript: what engines compile.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// SHA-256 of [`Self::bytes`].
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// SHA-256 of the file that was read: what a policy names. Equal to [`Self::digest`] for files that
    /// `cloister graph train` has written.
    pub fn source_digest(&self) -> Digest {
        self.source_digest
    }

    /// The inputs, in the order of the file.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The outputs, in the order of the file.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The entries `cloister.*` of the metadata: the loss, the optimizer and its constants, the kinds of the ports.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.graph.metadata
    }

    /// The number of classes that labels `i64 [N]` choose from: a label outside of `0..classes` makes the loss NaN. `None` for graphs
    /// without such labels.
    pub fn classes(&self) -> Option<usize> {
        if let Some(step) = &self.step {
            return step.classes();
        }
        let labels = self
            .inputs
            .iter()
            .position(|port| port.kind == PortKind::Labels && port.dtype == Dtype::I64)?;
        let labels = *self.graph.inputs.get(labels)?;
        let rows = *self.graph.value(labels).shape.first()?;
        let same = |id: &ValueId| *id == labels;
        // As the loss is written: the labels as a column, compared with a row of all classes.
        let columns = self
            .graph
            .nodes
            .iter()
            .filter(|node| node.inputs.iter().flatten().any(same));
        let columns: Vec<ValueId> = columns.flat_map(|node| node.outputs.iter().copied()).collect();
        let compared = self.graph.nodes.iter().find(|node| {
            node.operator == Operator::Equal && node.inputs.iter().flatten().any(|id| columns.contains(id))
        })?;
        match self.graph.value(*compared.outputs.first()?).shape[..] {
            [seen, classes] if seen == rows => Some(classes),
            _ => None,
        }
    }

    /// How often each operator occurs.
    pub fn operators(&self) -> BTreeMap<Operator, usize> {
        let mut counts = BTreeMap::new();
        for node in &self.graph.nodes {
            *counts.entry(node.operator).or_insert(0) += 1;
        }
        counts
    }
}
