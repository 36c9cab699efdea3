//! Steps in TorchScript: a second language of graphs, for the engine around libtorch.
//!
//! TorchScript as PyTorch saves it is an archive with pickles and a program with branches, loops, classes and operators that reach
//! files. A *step* here is far less: a text of ports and of one straight line of statements, each one operator out of
//! [`OPERATORS`] on values made before, or the gradient of a loss. It is read into the bounded [`Step`], and what libtorch compiles
//! is written anew out of that: no archive, pickle, weight or name of a stranger's reaches it.
//!
//! ```text
//! cloister torchscript step 1
//! input <tab> fc.weight <tab> F32 <tab> [4, 64] <tab> parameter
//! output <tab> next/fc.weight <tab> F32 <tab> [4, 64] <tab> next-parameter fc.weight
//! classes <tab> 4
//! v0 = leaf(i1)
//! v1 = linear(i0, v0)
//! v2, v3 = gradients(v1, [v0, v4])
//! return v2, v3
//! ```
//! `i0` is the first input, `v0` the first value that is made. Kinds of ports are those of a graph's metadata.

mod operators;
mod read;
mod scan;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;

use cloister_tensor::Dtype;

use crate::error::GraphError;
use crate::ir::{Graph, Value, ValueId};
use crate::limits::Limits;
use crate::port;

/// How a file of a step begins.
const MAGIC: &str = "cloister torchscript step 1\n";

/// Whether a file is a step in TorchScript, by its first line.
pub(crate) fn is_step(file: &[u8]) -> bool {
    file.starts_with(MAGIC.as_bytes())
}

/// A value that a statement uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ref {
    /// The input of this place.
    Input(usize),
    /// What a statement made, counted over all of them.
    Made(usize),
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Value(Ref),
    Values(Vec<Ref>),
    Int(i64),
    Ints(Vec<i64>),
    Float(f64),
    Bool(bool),
    Nothing,
    Word(&'static str),
}

/// One line: it makes one value, a gradient for each leaf.
#[derive(Clone, Debug, PartialEq)]
enum Statement {
    /// An operator on operands, the named ones last.
    Call {
        operator: &'static str,
        operands: Vec<Operand>,
        named: Vec<(&'static str, Operand)>,
    },
    /// The same values, from which gradients are taken.
    Leaf(Ref),
    /// The gradients of a value with respect to leaves.
    Gradients { of: Ref, leaves: Vec<Ref> },
}

impl Statement {
    fn makes(&self) -> usize {
        match self {
            Self::Gradients { leaves, .. } => leaves.len(),
            _ => 1,
        }
    }
}

/// A declared port.
#[derive(Clone, Debug)]
struct Declared {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Its kind, as metadata have it.
    kind: String,
}

/// A step, read and checked.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    inputs: Vec<Declared>,
    outputs: Vec<Declared>,
    classes: Option<usize>,
    statements: Vec<Statement>,
    returned: Vec<Ref>,
}

impl Step {
    /// Reads a file.
    pub(crate) fn read(file: &[u8], limits: &Limits) -> Result<Self, GraphError> {
        read::step(file, limits)
    }

    /// The program that libtorch compiles: the file `code/__torch__.py` of an archive, whose class `Step` has `forward` from a list
    /// of tensors to a list of tensors.
    pub(crate) fn source(&self) -> String {
        source::of(self)
    }

    /// The number of classes that labels choose from.
    pub(crate) fn classes(&self) -> Option<usize> {
        self.classes
    }

    /// A graph of the same ports without nodes: what tells the ports' kinds apart serves for both languages.
    pub(crate) fn interface(&self) -> Arc<Graph> {
        let mut graph = Graph::default();
        let mut value = |port: &Declared| {
            graph.values.push(Value {
                name: port.name.clone(),
                dtype: port.dtype,
                shape: port.shape.clone(),
            });
            ValueId(graph.values.len() - 1)
        };
        let inputs = self.inputs.iter().map(&mut value).collect();
        let outputs = self
            .outputs
            .iter()
            .map(|port| (port.name.clone(), value(port)))
            .collect();
        graph.inputs = inputs;
        graph.outputs = outputs;
        let lines = |ports: &[Declared]| {
            ports
                .iter()
                .map(|port| port.kind.as_str())
                .collect::<Vec<_>>()
                .join("\n")
        };
        graph.metadata = BTreeMap::from([
            (port::INPUTS.to_owned(), lines(&self.inputs)),
            (port::OUTPUTS.to_owned(), lines(&self.outputs)),
        ]);
        Arc::new(graph)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics says where")]
mod tests;
