//! From a [`Graph`] to bytes: the same graph gives the same bytes.
//!
//! Inner values are named by position, constants are written in the order of first use, node names and texts are left out.
//! So reading what was written and writing it again gives the same file.

use std::collections::{BTreeMap, BTreeSet};

use cloister_tensor::{Dtype, Tensor};

use super::wire::Writer;
use super::{WRITTEN_IR_VERSION, WRITTEN_OPSET, dtype_to_onnx};
use crate::ir::{Attribute, Graph, Node, Operator, ValueId};

/// Dimensions of the first inputs' leading axis that are written as a symbol instead of their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// Every dimension is written as it is.
    Fixed,
    /// The leading dimension of inputs and outputs is written as the symbol `N`.
    Symbolic,
}

/// Writes the graph. Its outputs must be values of their own (see `Builder::finish`), its nodes in order.
pub(crate) fn write(graph: &Graph, batch: Batch) -> Vec<u8> {
    let names = Names::of(graph);
    let mut model = Writer::default();
    model.int(1, WRITTEN_IR_VERSION);
    model.bytes(2, b"cloister");
    let mut body = Writer::default();
    for node in &graph.nodes {
        body.message(1, write_node(node, &names));
    }
    body.bytes(2, b"cloister");
    for (id, name) in &names.constants {
        if let Some(tensor) = graph.constants.get(id) {
            body.message(5, write_tensor(name, tensor));
        }
    }
    for id in &graph.inputs {
        let value = graph.value(*id);
        body.message(11, write_port(&value.name, value.dtype, &value.shape, batch));
    }
    for (name, id) in &graph.outputs {
        let value = graph.value(*id);
        body.message(12, write_port(name, value.dtype, &value.shape, batch));
    }
    model.message(7, body);
    let mut opset = Writer::default();
    opset.bytes(1, b"");
    opset.int(2, WRITTEN_OPSET);
    model.message(8, opset);
    for (key, value) in &graph.metadata {
        let mut entry = Writer::default();
        entry.bytes(1, key.as_bytes());
        entry.bytes(2, value.as_bytes());
        model.message(14, entry);
    }
    model.finish()
}

/// The names in the file: ports keep theirs, everything else is counted.
struct Names {
    by_value: BTreeMap<ValueId, String>,
    constants: Vec<(ValueId, String)>,
}

impl Names {
    fn of(graph: &Graph) -> Self {
        let mut by_value = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for id in &graph.inputs {
            let name = graph.value(*id).name.clone();
            taken.insert(name.clone());
            by_value.insert(*id, name);
        }
        for (name, id) in &graph.outputs {
            taken.insert(name.clone());
            by_value.insert(*id, name.clone());
        }
        // Constants keep their names, but for one that an output has: that output is a copy of it.
        let kept: BTreeSet<ValueId> = graph
            .constants
            .keys()
            .copied()
            .filter(|id| {
                let name = &graph.value(*id).name;
                !name.is_empty() && taken.insert(name.clone())
            })
            .collect();
        let fresh = |prefix: char, next: &mut usize| loop {
            let name = format!("{prefix}{next}");
            *next += 1;
            if !taken.contains(&name) {
                return name;
            }
        };
        let mut constants = Vec::new();
        let (mut next_constant, mut next_value) = (0, 0);
        for node in &graph.nodes {
            for id in node.inputs.iter().flatten() {
                if graph.constants.contains_key(id) && !by_value.contains_key(id) {
                    let name = if kept.contains(id) {
                        graph.value(*id).name.clone()
                    } else {
                        fresh('c', &mut next_constant)
                    };
                    constants.push((*id, name.clone()));
                    by_value.insert(*id, name);
                }
            }
            for id in &node.outputs {
                by_value.entry(*id).or_insert_with(|| fresh('v', &mut next_value));
            }
        }
        Self { by_value, constants }
    }

    fn of_value(&self, id: ValueId) -> &[u8] {
        self.by_value.get(&id).map_or(b"", |name| name.as_bytes())
    }
}

fn write_node(node: &Node, names: &Names) -> Writer {
    let mut out = Writer::default();
    for input in &node.inputs {
        out.bytes(1, input.map_or(&b""[..], |id| names.of_value(id)));
    }
    for output in &node.outputs {
        out.bytes(2, names.of_value(*output));
    }
    out.bytes(4, Operator::name(node.operator).as_bytes());
    for (name, attribute) in &node.attributes.0 {
        out.message(5, write_attribute(name, attribute));
    }
    out
}

fn write_attribute(name: &str, attribute: &Attribute) -> Writer {
    let mut out = Writer::default();
    out.bytes(1, name.as_bytes());
    let kind = match attribute {
        Attribute::Float(value) => {
            out.float(2, *value);
            1
        }
        Attribute::Int(value) => {
            out.int(3, *value);
            2
        }
        Attribute::Text(value) => {
            out.bytes(4, value.as_bytes());
            3
        }
        Attribute::Tensor(tensor) => {
            out.message(5, write_tensor("", tensor));
            4
        }
        Attribute::Floats(values) => {
            for value in values {
                out.float(7, *value);
            }
            6
        }
        Attribute::Ints(values) => {
            // Unpacked: onnx.proto declares them so, and some readers take nothing else.
            for value in values {
                out.int(8, *value);
            }
            7
        }
    };
    out.int(20, kind);
    out
}

fn write_tensor(name: &str, tensor: &Tensor) -> Writer {
    let mut out = Writer::default();
    let dims: Vec<i64> = tensor.shape().dims().iter().map(|&dim| dim as i64).collect();
    if !dims.is_empty() {
        out.packed_ints(1, &dims);
    }
    out.int(2, dtype_to_onnx(tensor.dtype()));
    out.bytes(8, name.as_bytes());
    out.bytes(9, tensor.bytes());
    out
}

fn write_port(name: &str, dtype: Dtype, shape: &[usize], batch: Batch) -> Writer {
    let mut dims = Writer::default();
    for (axis, &size) in shape.iter().enumerate() {
        let mut dim = Writer::default();
        match batch {
            Batch::Symbolic if axis == 0 => dim.bytes(2, b"N"),
            _ => dim.int(1, size as i64),
        }
        dims.message(1, dim);
    }
    let mut tensor = Writer::default();
    tensor.int(1, dtype_to_onnx(dtype));
    tensor.message(2, dims);
    let mut kind = Writer::default();
    kind.message(1, tensor);
    let mut port = Writer::default();
    port.bytes(1, name.as_bytes());
    port.message(2, kind);
    port
}
