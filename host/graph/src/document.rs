//! A model as it stands in its file: read and checked for consistency, shapes not yet known.

use std::collections::{BTreeMap, BTreeSet};

use cloister_tensor::{Dtype, Tensor};

use crate::error::{GraphError, Place};
use crate::ir::{Attributes, Operator};
use crate::limits::Limits;

/// A dimension of a declared input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Dim {
    Fixed(usize),
    Symbol(String),
}

/// A declared input.
#[derive(Clone, Debug)]
pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) dims: Vec<Dim>,
}

/// A node whose operands are names.
#[derive(Clone, Debug)]
pub(crate) struct NamedNode {
    pub(crate) operator: Operator,
    /// Empty names are absent operands.
    pub(crate) inputs: Vec<String>,
    pub(crate) outputs: Vec<String>,
    pub(crate) attributes: Attributes,
    pub(crate) place: Place,
}

/// A model as it stands in its file.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) opset: i64,
    pub(crate) inputs: Vec<Declared>,
    pub(crate) outputs: Vec<String>,
    pub(crate) nodes: Vec<NamedNode>,
    pub(crate) initializers: Vec<(String, Tensor)>,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Document {
    /// Checks that each name is made once and before it is used, and that what the graph promises is made.
    /// Takes initializers out of the declared inputs, where older exporters list them too.
    pub(crate) fn checked(mut self, limits: &Limits) -> Result<Self, GraphError> {
        let mut made = BTreeSet::new();
        for (name, _) in &self.initializers {
            if name.is_empty() || !made.insert(name.as_str()) {
                return Err(GraphError::Inconsistent(format!(
                    "the initializer '{name}' is there twice or has no name"
                )));
            }
        }
        self.inputs.retain(|input| !made.contains(input.name.as_str()));
        for input in &self.inputs {
            if input.name.is_empty() || !made.insert(input.name.as_str()) {
                let name = &input.name;
                return Err(GraphError::Inconsistent(format!(
                    "the input '{name}' is there twice or has no name"
                )));
            }
            if input.dims.len() > limits.rank {
                return Err(GraphError::Limit {
                    what: "dimensions in an input",
                    seen: input.dims.len() as u64,
                    limit: limits.rank as u64,
                });
            }
        }
        for node in &self.nodes {
            if let Some(unknown) = node
                .inputs
                .iter()
                .find(|name| !name.is_empty() && !made.contains(name.as_str()))
            {
                let problem = format!(
                    "it uses '{unknown}', which no input, initializer or earlier node makes (nodes must stand in an order \
                     in which they can be computed, without cycles)"
                );
                return Err(GraphError::Operand {
                    place: node.place.clone(),
                    problem,
                });
            }
            for output in node.outputs.iter().filter(|name| !name.is_empty()) {
                if !made.insert(output) {
                    let problem = format!("it makes '{output}', which is there already");
                    return Err(GraphError::Operand {
                        place: node.place.clone(),
                        problem,
                    });
                }
            }
        }
        if self.outputs.is_empty() {
            return Err(GraphError::Inconsistent("the graph has no output".to_owned()));
        }
        let mut promised = BTreeSet::new();
        for output in &self.outputs {
            if !made.contains(output.as_str()) {
                return Err(GraphError::Inconsistent(format!(
                    "the output '{output}' is made by no node"
                )));
            }
            if !promised.insert(output) {
                return Err(GraphError::Inconsistent(format!(
                    "the output '{output}' is there twice"
                )));
            }
        }
        Ok(self)
    }
}
