//! From a [`Document`] to a [`Graph`]: the batch size put in, each node written in the crate's own form ([`lower`]), and shapes
//! computed.

use std::collections::BTreeMap;

use cloister_tensor::Dtype;

use crate::builder::Builder;
use crate::document::{Declared, Dim, Document, NamedNode};
use crate::error::GraphError;
use crate::ir::{Graph, Operator, ValueId};
use crate::limits::Limits;
use crate::lower::{self, Source};
use crate::ops;
use crate::port::DropRatio;
use crate::roles::Roles;

/// What becomes of the initializers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Initializers<'a> {
    /// They stay in the graph; these keep their names.
    Inside(&'a Roles),
    /// They stay in the graph, and none keeps its name.
    Unnamed,
    /// Parameters and statistics become inputs, and with `dropouts` so do the masks of dropouts.
    Ports { roles: &'a Roles, dropouts: bool },
}

/// A graph of known shapes, and what its inputs are.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) graph: Graph,
    pub(crate) data: Vec<ValueId>,
    pub(crate) parameters: Vec<ValueId>,
    pub(crate) statistics: Vec<ValueId>,
    /// Masks of dropouts, and the share of elements that each drops.
    pub(crate) masks: Vec<(ValueId, DropRatio)>,
}

/// Binds a document to a batch size. Without one, every dimension has to be fixed in the file.
pub(crate) fn bind(
    document: &Document,
    limits: &Limits,
    batch: Option<usize>,
    initializers: Initializers<'_>,
) -> Result<Bound, GraphError> {
    let mut builder = Builder::new(limits);
    let mut names: BTreeMap<&str, ValueId> = BTreeMap::new();
    let mut data = Vec::new();
    for input in &document.inputs {
        let id = builder.input(&input.name, input.dtype, &dims(input, batch)?)?;
        names.insert(&input.name, id);
        data.push(id);
    }
    let (mut parameters, mut statistics) = (Vec::new(), Vec::new());
    let mut ports = BTreeMap::new();
    if let Initializers::Ports { roles, dropouts } = initializers {
        if dropouts {
            builder.with_masks();
        }
        for (list, ids) in [
            (&roles.parameters, &mut parameters),
            (&roles.statistics, &mut statistics),
        ] {
            for (name, dims) in list {
                // Engines do not return values of rank 0: a scalar passes as [1].
                let port = if dims.is_empty() { &[1][..] } else { &dims[..] };
                let id = builder.input(name, Dtype::F32, port)?;
                ids.push(id);
                ports.insert(name.as_str(), (id, dims));
            }
        }
    }
    for (name, tensor) in &document.initializers {
        let id = match (ports.get(name.as_str()), initializers) {
            (Some(&(id, dims)), _) => builder.reshape(id, dims)?,
            (None, Initializers::Inside(roles)) if roles.contains(name) => {
                builder.named_constant(name, tensor.clone())?
            }
            _ => builder.constant(tensor.clone())?,
        };
        names.insert(name, id);
    }
    for node in &document.nodes {
        builder.at(&node.place);
        bind_node(&mut builder, document.opset, node, &mut names)?;
    }
    for output in &document.outputs {
        let id = names.get(output.as_str()).copied().ok_or_else(|| {
            GraphError::Interface(format!(
                "the output '{output}' is a further result of its node, which is not supported"
            ))
        })?;
        builder.output(output, id)?;
    }
    let masks = builder.masks();
    let graph = builder.finish(BTreeMap::new())?;
    Ok(Bound {
        graph,
        data,
        parameters,
        statistics,
        masks,
    })
}

fn dims(input: &Declared, batch: Option<usize>) -> Result<Vec<usize>, GraphError> {
    let leading = match input.dims.first() {
        Some(Dim::Symbol(symbol)) => Some(symbol),
        _ => None,
    };
    let size = |(axis, dim): (usize, &Dim)| match (dim, batch) {
        (Dim::Fixed(size), _) => Ok(*size),
        (Dim::Symbol(symbol), Some(batch)) if axis == 0 || (!symbol.is_empty() && leading == Some(symbol)) => Ok(batch),
        (Dim::Symbol(symbol), Some(_)) => Err(GraphError::Interface(format!(
            "dimension {axis} of the input '{}' is open ('{symbol}'); only the first, the batch, may be",
            input.name
        ))),
        (Dim::Symbol(symbol), None) => Err(GraphError::Interface(format!(
            "dimension {axis} of the input '{}' is open ('{symbol}'); a batch size has to be given",
            input.name
        ))),
    };
    input.dims.iter().enumerate().map(size).collect()
}

fn bind_node<'a>(
    builder: &mut Builder,
    opset: i64,
    node: &'a NamedNode,
    names: &mut BTreeMap<&'a str, ValueId>,
) -> Result<(), GraphError> {
    let rule = ops::rule(node.operator);
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for name in &node.inputs {
        if name.is_empty() {
            inputs.push(None);
            continue;
        }
        let id = names.get(name.as_str()).copied();
        inputs.push(Some(id.ok_or_else(|| {
            builder.error(format!(
                "it uses '{name}', a further result of its node, which is not supported"
            ))
        })?));
    }
    while inputs.last().is_some_and(Option::is_none) {
        inputs.pop();
    }
    let (least, most) = rule.operands;
    if inputs.len() < least || inputs.len() > most {
        return Err(builder.error(format!("{} operands; {least} to {most} are wanted", inputs.len())));
    }
    // Saved by older exporters for training; they have no effect on the first result.
    let harmless = |name: &str| node.operator == Operator::BatchNormalization && name == "spatial";
    if let Some(unknown) = node
        .attributes
        .0
        .keys()
        .find(|name| !rule.attributes.contains(&name.as_str()) && !harmless(name))
    {
        return Err(builder.error(format!("the attribute '{unknown}' is not supported")));
    }
    if node.outputs.iter().all(String::is_empty) {
        return Err(builder.error("its results have no name"));
    }
    let made = lower::lower(builder, Source { opset, node, inputs })?;
    for (output, made) in node.outputs.iter().zip(made) {
        if !output.is_empty() {
            names.insert(output, made);
        }
    }
    Ok(())
}
