//! From bytes to a [`Document`]. Field numbers are those of onnx.proto3 (ONNX 1.17).

use std::collections::BTreeMap;

use bytes::Bytes;
use cloister_tensor::{Dtype, Shape, Tensor};

use super::wire::{Content, Field, Fields, within};
use super::{OPSETS, dtype_from_onnx};
use crate::document::{Declared, Dim, Document, NamedNode};
use crate::error::{GraphError, Place};
use crate::ir::{Attribute, Attributes, Operator};
use crate::limits::Limits;

/// Reads a model. Fields that carry no meaning for the computation (texts, producers, shape hints) are skipped;
/// every other field that is not understood is an error.
pub(crate) fn read(file: &[u8], limits: &Limits) -> Result<Document, GraphError> {
    within("bytes", file.len(), limits.bytes)?;
    let mut graph = None;
    let mut opset = None;
    let mut metadata = BTreeMap::new();
    let mut fields = Fields::new(file, 0);
    while let Some(field) = fields.next()? {
        match field.number {
            // ir_version, producer name and version, domain, model version, text
            1..=6 => {}
            7 if graph.is_none() => graph = Some(field),
            7 => return Err(field.error("a second graph")),
            8 => read_opset(&field, limits, &mut opset)?,
            14 => {
                let (key, value) = read_metadata(&field, limits)?;
                metadata.insert(key, value);
                within("metadata entries", metadata.len(), limits.metadata)?;
            }
            20 => return Err(refused("training information", "export the forward model alone")),
            25 => return Err(refused("functions of its own", "export with standard operators only")),
            other => return Err(field.error(format!("field {other} of the model is not understood"))),
        }
    }
    let graph = graph.ok_or_else(|| GraphError::Malformed {
        what: "there is no graph".to_owned(),
        offset: 0,
    })?;
    let opset = opset.ok_or_else(|| GraphError::Malformed {
        what: "no version of the default operator set is named".to_owned(),
        offset: 0,
    })?;
    read_graph(&graph, limits, opset, metadata)?.checked(limits)
}

fn refused(what: impl Into<String>, instead: &'static str) -> GraphError {
    GraphError::Refused {
        what: what.into(),
        instead,
    }
}

fn is_default_domain(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

fn read_opset(field: &Field<'_>, limits: &Limits, opset: &mut Option<i64>) -> Result<(), GraphError> {
    let (mut domain, mut version) = ("", 0);
    let mut fields = field.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => domain = field.text(limits.name_bytes)?,
            2 => version = field.int()?,
            other => return Err(field.error(format!("field {other} of an operator set is not understood"))),
        }
    }
    // Exporters declare sets that they then don't use; a node of another domain is refused where it stands.
    if !is_default_domain(domain) {
        return Ok(());
    }
    if !OPSETS.contains(&version) {
        return Err(refused(
            format!(
                "version {version} of the operator set ({} to {} are read)",
                OPSETS.start(),
                OPSETS.end()
            ),
            "export it with opset 17",
        ));
    }
    if opset.replace(version).is_some() {
        return Err(field.error("the default operator set is named twice"));
    }
    Ok(())
}

fn read_metadata(field: &Field<'_>, limits: &Limits) -> Result<(String, String), GraphError> {
    let (mut key, mut value) = ("", "");
    let mut fields = field.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => key = field.text(limits.metadata_bytes)?,
            2 => value = field.text(limits.metadata_bytes)?,
            other => return Err(field.error(format!("field {other} of a metadata entry is not understood"))),
        }
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn read_graph(
    graph: &Field<'_>,
    limits: &Limits,
    opset: i64,
    metadata: BTreeMap<String, String>,
) -> Result<Document, GraphError> {
    let mut document = Document {
        opset,
        inputs: Vec::new(),
        outputs: Vec::new(),
        nodes: Vec::new(),
        initializers: Vec::new(),
        metadata,
    };
    let mut fields = graph.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => {
                within("nodes", document.nodes.len() + 1, limits.nodes)?;
                let node = read_node(&field, limits, document.nodes.len())?;
                document.nodes.push(node);
            }
            5 => {
                within("initializers", document.initializers.len() + 1, limits.initializers)?;
                document.initializers.push(read_tensor(&field, limits)?);
            }
            11 => {
                within("inputs", document.inputs.len() + 1, limits.ports + limits.initializers)?;
                document.inputs.push(read_declared(&field, limits)?);
            }
            12 => {
                within("outputs", document.outputs.len() + 1, limits.ports)?;
                document.outputs.push(read_output_name(&field, limits)?);
            }
            // name, text, shape hints, quantisation hints, metadata
            2 | 10 | 13 | 14 | 16 => {}
            15 => return Err(refused("sparse initializers", "export dense weights")),
            other => return Err(field.error(format!("field {other} of the graph is not understood"))),
        }
    }
    Ok(document)
}

fn name<'a>(field: &Field<'a>, limits: &Limits) -> Result<&'a str, GraphError> {
    let name = field.text(limits.name_bytes)?;
    if name.chars().any(char::is_control) {
        return Err(field.error("a name with control characters"));
    }
    Ok(name)
}

fn read_node(field: &Field<'_>, limits: &Limits, index: usize) -> Result<NamedNode, GraphError> {
    let (mut inputs, mut outputs, mut attributes) = (Vec::new(), Vec::new(), Vec::new());
    let mut place = Place {
        index,
        ..Place::default()
    };
    let (mut domain, mut overload) = ("", "");
    let mut fields = field.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => inputs.push(name(&field, limits)?.to_owned()),
            2 => outputs.push(name(&field, limits)?.to_owned()),
            3 => place.name = name(&field, limits)?.to_owned(),
            4 => place.operator = name(&field, limits)?.to_owned(),
            5 => attributes.push(field),
            7 => domain = field.text(limits.name_bytes)?,
            8 => overload = field.text(limits.name_bytes)?,
            6 | 9 => {} // text, metadata
            other => return Err(field.error(format!("field {other} of node {index} is not understood"))),
        }
        within("operands in one node", inputs.len().max(outputs.len()), limits.operands)?;
        within("attributes in one node", attributes.len(), limits.attributes)?;
    }
    place.output = outputs.first().cloned().unwrap_or_default();
    if !is_default_domain(domain) || !overload.is_empty() {
        return Err(refused(
            format!("an operator of the domain '{domain}' at {place}"),
            "export with standard operators only",
        ));
    }
    if matches!(place.operator.as_str(), "If" | "Loop" | "Scan" | "SequenceMap") {
        return Err(refused(
            format!("control flow at {place}"),
            "export a model without branches and loops",
        ));
    }
    if matches!(place.operator.as_str(), "GRU" | "LSTM" | "RNN") {
        return Err(refused(
            format!("a recurrent cell at {place}"),
            "write its steps out one after another in the model (as matrix products, Sigmoid and Tanh), then export it",
        ));
    }
    let Some(operator) = Operator::from_name(&place.operator) else {
        return Err(GraphError::UnsupportedOperator { place });
    };
    let mut by_name = Attributes::none();
    for attribute in attributes {
        let (key, value) = read_attribute(&attribute, limits, &place)?;
        if by_name.0.insert(key.clone(), value).is_some() {
            return Err(GraphError::Operand {
                place,
                problem: format!("attribute '{key}' is there twice"),
            });
        }
    }
    Ok(NamedNode {
        operator,
        inputs,
        outputs,
        attributes: by_name,
        place,
    })
}

fn read_attribute(field: &Field<'_>, limits: &Limits, place: &Place) -> Result<(String, Attribute), GraphError> {
    let (mut key, mut kind) = ("", 0);
    let (mut int, mut float, mut text, mut tensor) = (0, 0.0, "", None);
    let (mut ints, mut floats) = (Vec::new(), Vec::new());
    let mut fields = field.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => key = name(&field, limits)?,
            2 => float = field.float()?,
            3 => int = field.int()?,
            4 => text = field.text(limits.name_bytes)?,
            5 => tensor = Some(read_tensor(&field, limits)?.1),
            7 => field.fixed_into(&mut floats, 4, limits.attribute_values)?,
            8 => field.ints_into(&mut ints, limits.attribute_values)?,
            13 => {}
            20 => kind = field.int()?,
            6 | 11 => {
                return Err(refused(
                    format!("a graph within a node at {place}"),
                    "export without control flow",
                ));
            }
            other => {
                let problem = format!("attribute '{key}' has content of a kind (field {other}) that is not supported");
                return Err(GraphError::Operand {
                    place: place.clone(),
                    problem,
                });
            }
        }
    }
    let value = match (kind, tensor) {
        (1, _) => Attribute::Float(float),
        (2, _) => Attribute::Int(int),
        (3, _) => Attribute::Text(text.to_owned()),
        (4, Some(tensor)) => Attribute::Tensor(tensor),
        (6, _) => Attribute::Floats(
            floats
                .chunks_exact(4)
                .map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]))
                .collect(),
        ),
        (7, _) => Attribute::Ints(ints),
        _ => {
            let problem = format!("attribute '{key}' is of a type ({kind}) that is not supported");
            return Err(GraphError::Operand {
                place: place.clone(),
                problem,
            });
        }
    };
    Ok((key.to_owned(), value))
}

fn read_tensor(field: &Field<'_>, limits: &Limits) -> Result<(String, Tensor), GraphError> {
    let (mut label, mut kind, mut raw) = ("", 0, None);
    let (mut dims, mut ints) = (Vec::new(), Vec::new());
    let mut packed = Vec::new();
    let most = limits.bytes; // a typed list has no more elements than the file has bytes
    let mut fields = field.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => field.ints_into(&mut dims, limits.rank)?,
            2 => kind = field.int()?,
            4 => field.fixed_into(&mut packed, 4, most)?,
            5 | 7 => field.ints_into(&mut ints, most)?,
            8 => label = name(&field, limits)?,
            9 => raw = Some(field.bytes()?),
            10 => field.fixed_into(&mut packed, 8, most)?,
            12 | 16 => {}
            13 => {
                return Err(refused(
                    format!("external data for '{label}'"),
                    "save the model in one file",
                ));
            }
            14 if field.int()? == 0 => {}
            14 => {
                return Err(refused(
                    format!("external data for '{label}'"),
                    "save the model in one file",
                ));
            }
            other => return Err(field.error(format!("field {other} of tensor '{label}' is not supported"))),
        }
    }
    let dtype = dtype_from_onnx(kind).ok_or_else(|| {
        field.error(format!(
            "tensor '{label}' has the element type {kind}, which is not supported"
        ))
    })?;
    let dims = dims
        .iter()
        .map(|&dim| usize::try_from(dim))
        .collect::<Result<Vec<_>, _>>();
    let shape = Shape::new(&dims.map_err(|_| field.error(format!("tensor '{label}' has a negative dimension")))?)?;
    let bytes = match raw {
        Some(raw) => Bytes::copy_from_slice(raw),
        None if ints.is_empty() => Bytes::from(packed),
        None => Bytes::from(narrow(&ints, dtype)),
    };
    let wanted = (shape.elements() as u64).saturating_mul(dtype.size_bytes() as u64);
    if bytes.len() as u64 != wanted {
        let seen = bytes.len();
        return Err(field.error(format!(
            "tensor '{label}' has {seen} bytes of content where its shape wants {wanted}"
        )));
    }
    if dtype == Dtype::Bool && bytes.iter().any(|&byte| byte > 1) {
        return Err(field.error(format!("tensor '{label}' has truth values other than 0 and 1")));
    }
    Ok((label.to_owned(), Tensor::new(dtype, shape, bytes)?))
}

/// The bytes of integers in `int32_data` and `int64_data`, which hold the narrow types too.
fn narrow(values: &[i64], dtype: Dtype) -> Vec<u8> {
    let size = dtype.size_bytes();
    values
        .iter()
        .flat_map(|value| value.to_le_bytes().into_iter().take(size))
        .collect()
}

fn read_output_name(field: &Field<'_>, limits: &Limits) -> Result<String, GraphError> {
    let mut label = "";
    let mut fields = field.message()?;
    while let Some(field) = fields.next()? {
        if field.number == 1 {
            label = name(&field, limits)?;
        }
    }
    Ok(label.to_owned())
}

fn read_declared(field: &Field<'_>, limits: &Limits) -> Result<Declared, GraphError> {
    let (mut label, mut kind) = ("", None);
    let mut fields = field.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => label = name(&field, limits)?,
            2 => kind = Some(field),
            3 | 4 => {}
            other => return Err(field.error(format!("field {other} of an input is not understood"))),
        }
    }
    let untyped = || GraphError::Interface(format!("the input '{label}' is not declared as a tensor with a shape"));
    let mut tensor = None;
    let mut fields = kind.ok_or_else(untyped)?.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => tensor = Some(field),
            6 => {}
            _ => return Err(untyped()),
        }
    }
    let (mut dtype, mut dims) = (None, None);
    let mut fields = tensor.ok_or_else(untyped)?.message()?;
    while let Some(field) = fields.next()? {
        match field.number {
            1 => dtype = dtype_from_onnx(field.int()?),
            2 => dims = Some(read_dims(&field, limits)?),
            _ => return Err(untyped()),
        }
    }
    let dtype = dtype.ok_or_else(|| {
        GraphError::Interface(format!("the input '{label}' has an element type that is not supported"))
    })?;
    Ok(Declared {
        name: label.to_owned(),
        dtype,
        dims: dims.ok_or_else(untyped)?,
    })
}

fn read_dims(field: &Field<'_>, limits: &Limits) -> Result<Vec<Dim>, GraphError> {
    let mut dims = Vec::new();
    let mut fields = field.message()?;
    while let Some(field) = fields.next()? {
        if field.number != 1 {
            return Err(field.error(format!("field {} of a shape is not understood", field.number)));
        }
        within("dimensions in an input", dims.len() + 1, limits.rank)?;
        let mut dim = Dim::Symbol(String::new());
        let mut parts = field.message()?;
        while let Some(part) = parts.next()? {
            match (part.number, part.content) {
                (1, Content::Varint(value)) => {
                    let size = i64::try_from(value).ok().and_then(|value| usize::try_from(value).ok());
                    dim = match size {
                        Some(size) => Dim::Fixed(size),
                        // Some exporters write -1 for "any".
                        None if value == u64::MAX => Dim::Symbol(String::new()),
                        None => return Err(part.error("a negative dimension")),
                    };
                }
                (2, _) => dim = Dim::Symbol(part.text(limits.name_bytes)?.to_owned()),
                (3, _) => {}
                (other, _) => return Err(part.error(format!("field {other} of a dimension is not understood"))),
            }
        }
        dims.push(dim);
    }
    Ok(dims)
}
