//! A forward model as a participant brings it.

use cloister_tensor::{Digest, TensorMap};

use crate::bind::{self, Bound, Initializers};
use crate::document::{Dim, Document};
use crate::engine_graph::EngineGraph;
use crate::error::GraphError;
use crate::limits::Limits;
use crate::onnx;
use crate::roles::Roles;

/// A forward ONNX model, read within limits.
#[derive(Clone, Debug)]
pub struct Model {
    document: Document,
    limits: Limits,
    roles: Roles,
    digest: Digest,
}

/// An input of a model; its first dimension may be open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInput {
    /// The name.
    pub name: String,
    /// Element type.
    pub dtype: cloister_tensor::Dtype,
    /// Dimensions; `None` is open.
    pub dims: Vec<Option<usize>>,
}

impl Model {
    /// Reads a model: operator set 13 to 28, one file, standard operators, no control flow.
    ///
    /// # Errors
    /// [`GraphError`] says what was refused and at which node. Shapes are checked when the model is bound to a batch size.
    pub fn parse(file: &[u8], limits: &Limits) -> Result<Self, GraphError> {
        let document = onnx::read(file, limits)?;
        let roles = Roles::of(&document)?;
        Ok(Self {
            document,
            limits: limits.clone(),
            roles,
            digest: Digest::of(file),
        })
    }

    /// SHA-256 of the file.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether the file describes ports in `cloister.*` metadata: then it is a training or evaluation graph, no forward model.
    pub fn has_typed_ports(&self) -> bool {
        self.document.metadata.keys().any(|key| key.starts_with("cloister."))
    }

    /// The inputs, in the order of the file.
    pub fn inputs(&self) -> Vec<ModelInput> {
        let size = |dim: &Dim| match dim {
            Dim::Fixed(size) => Some(*size),
            Dim::Symbol(_) => None,
        };
        let input = |declared: &crate::document::Declared| ModelInput {
            name: declared.name.clone(),
            dtype: declared.dtype,
            dims: declared.dims.iter().map(size).collect(),
        };
        self.document.inputs.iter().map(input).collect()
    }

    /// Names of the outputs, in the order of the file.
    pub fn outputs(&self) -> &[String] {
        &self.document.outputs
    }

    /// Names and shapes of the parameters: the float initializers that reach an output, less batch norm's statistics.
    pub fn parameters(&self) -> &[(String, Vec<usize>)] {
        &self.roles.parameters
    }

    /// Names and shapes of batch norm's running statistics.
    pub fn statistics(&self) -> &[(String, Vec<usize>)] {
        &self.roles.statistics
    }

    /// The values of parameters and statistics. A scalar has the shape `[1]`, as at the ports of training graphs.
    pub fn initial_weights(&self) -> TensorMap {
        self.roles.values(&self.document)
    }

    /// The forward graph for a batch size, weights inside.
    ///
    /// # Errors
    /// As [`EngineGraph::load`].
    pub fn at_batch(&self, batch: usize) -> Result<EngineGraph, GraphError> {
        EngineGraph::bound(&self.document, &self.limits, Some(batch), self.digest)
    }

    pub(crate) fn with_ports(&self, batch: usize, dropouts: bool) -> Result<Bound, GraphError> {
        self.roles.all_f32()?;
        bind::bind(
            &self.document,
            &self.limits,
            Some(batch),
            Initializers::Ports {
                roles: &self.roles,
                dropouts,
            },
        )
    }

    pub(crate) fn roles(&self) -> &Roles {
        &self.roles
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }
}
