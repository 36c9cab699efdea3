//! Nodes of a graph as the reference interpreter takes them, read from the bytes that engines get: by a reader of its own, so
//! that the writer is checked as well.

use std::collections::BTreeMap;

pub(super) use cloister_graph::Operator;
use cloister_tensor::{Dtype, Shape, Tensor};

/// An attribute of a node.
#[derive(Clone, Debug)]
enum Attribute {
    Int(i64),
    Float(f32),
    Text(String),
    Ints(Vec<i64>),
}

/// The attributes of a node, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Attributes(BTreeMap<String, Attribute>);

/// Each as the crate's own type answers it.
impl Attributes {
    pub(super) fn int(&self, name: &str, default: i64) -> Result<i64, String> {
        match self.0.get(name) {
            None => Ok(default),
            Some(Attribute::Int(value)) => Ok(*value),
            other => Err(format!("{name}: {other:?}")),
        }
    }

    pub(super) fn float(&self, name: &str, default: f32) -> Result<f32, String> {
        match self.0.get(name) {
            None => Ok(default),
            Some(Attribute::Float(value)) => Ok(*value),
            other => Err(format!("{name}: {other:?}")),
        }
    }

    pub(super) fn text<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str, String> {
        match self.0.get(name) {
            None => Ok(default),
            Some(Attribute::Text(value)) => Ok(value),
            other => Err(format!("{name}: {other:?}")),
        }
    }

    pub(super) fn ints(&self, name: &str) -> Result<Option<&[i64]>, String> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Attribute::Ints(values)) => Ok(Some(values)),
            other => Err(format!("{name}: {other:?}")),
        }
    }
}

/// An operation on values by their names.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) operator: Operator,
    pub(super) inputs: Vec<Option<String>>,
    pub(super) outputs: Vec<String>,
    pub(super) attributes: Attributes,
}

/// Nodes in order, and constants.
pub(super) struct Nodes {
    pub(super) nodes: Vec<Node>,
    pub(super) constants: BTreeMap<String, Tensor>,
}

/// Numbers of fields in `onnx.proto`.
const MODEL_GRAPH: u64 = 7;
const GRAPH_NODE: u64 = 1;
const GRAPH_INITIALIZER: u64 = 5;

impl Nodes {
    /// Reads what this workspace writes: canonical ONNX.
    pub(super) fn read(onnx: &[u8]) -> Self {
        let graph = fields(onnx).into_iter().find(|field| field.0 == MODEL_GRAPH).unwrap();
        let mut nodes = Vec::new();
        let mut constants = BTreeMap::new();
        for (number, field) in fields(graph.1.bytes()) {
            match number {
                GRAPH_NODE => nodes.push(node(field.bytes())),
                GRAPH_INITIALIZER => {
                    let (name, tensor) = tensor(field.bytes());
                    constants.insert(name, tensor);
                }
                _ => {}
            }
        }
        Self { nodes, constants }
    }
}

fn node(message: &[u8]) -> Node {
    let (mut inputs, mut outputs, mut operator) = (Vec::new(), Vec::new(), None);
    let mut attributes = Attributes::default();
    for (number, field) in fields(message) {
        match number {
            1 => inputs.push(Some(field.text()).filter(|name| !name.is_empty())),
            2 => outputs.push(field.text()),
            4 => operator = Operator::from_name(&field.text()),
            5 => {
                let (name, value) = attribute(field.bytes());
                attributes.0.insert(name, value);
            }
            other => panic!("field {other} of a node"),
        }
    }
    Node {
        operator: operator.unwrap(),
        inputs,
        outputs,
        attributes,
    }
}

fn attribute(message: &[u8]) -> (String, Attribute) {
    let fields = fields(message);
    let one = |wanted: u64| fields.iter().find(|field| field.0 == wanted).map(|field| field.1);
    let value = match one(20).unwrap().int() {
        1 => Attribute::Float(one(2).unwrap().float()),
        2 => Attribute::Int(one(3).map_or(0, Field::int)),
        3 => Attribute::Text(one(4).unwrap().text()),
        7 => {
            let list = fields.iter().filter(|field| field.0 == 8);
            Attribute::Ints(list.map(|field| field.1.int()).collect())
        }
        other => panic!("an attribute of type {other}"),
    };
    (one(1).unwrap().text(), value)
}

fn tensor(message: &[u8]) -> (String, Tensor) {
    let fields = fields(message);
    let one = |wanted: u64| fields.iter().find(|field| field.0 == wanted).map(|field| field.1);
    let mut dims = Vec::new();
    let mut packed = one(1).map_or(&[][..], Field::bytes);
    while !packed.is_empty() {
        dims.push(usize::try_from(varint(&mut packed)).unwrap());
    }
    let dtype = match one(2).unwrap().int() {
        1 => Dtype::F32,
        6 => Dtype::I32,
        7 => Dtype::I64,
        9 => Dtype::Bool,
        other => panic!("a constant of type {other}"),
    };
    let bytes = one(9).map_or(&[][..], Field::bytes).to_vec();
    let tensor = Tensor::new(dtype, Shape::new(&dims).unwrap(), bytes.into()).unwrap();
    (one(8).unwrap().text(), tensor)
}

/// A field's value on the wire.
#[derive(Clone, Copy)]
enum Field<'a> {
    Varint(u64),
    Fixed(u32),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            _ => panic!("a field that is no message"),
        }
    }

    fn text(self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }

    fn int(self) -> i64 {
        match self {
            Self::Varint(value) => value as i64,
            _ => panic!("a field that is no integer"),
        }
    }

    fn float(self) -> f32 {
        match self {
            Self::Fixed(bits) => f32::from_bits(bits),
            _ => panic!("a field that is no float"),
        }
    }
}

fn varint(rest: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().unwrap();
        *rest = after;
        value |= u64::from(byte & 127) << shift;
        if byte & 128 == 0 {
            break;
        }
    }
    value
}

/// The fields of a message, by number.
fn fields(mut rest: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest);
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut rest)),
            2 => {
                let length = usize::try_from(varint(&mut rest)).unwrap();
                let (bytes, after) = rest.split_at(length);
                rest = after;
                Field::Bytes(bytes)
            }
            5 => {
                let (bytes, after) = rest.split_at(4);
                rest = after;
                Field::Fixed(u32::from_le_bytes(bytes.try_into().unwrap()))
            }
            other => panic!("wire type {other}"),
        };
        all.push((key >> 3, field));
    }
    all
}
