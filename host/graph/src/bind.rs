//! From a [`Document`] to a [`Graph`]: the batch size put in, shapes computed, and the many ways to write the same thing
//! brought into one (`Flatten`, `Squeeze`, `Unsqueeze` become `Reshape`; automatic padding becomes explicit; ...).

use std::collections::BTreeMap;

use cloister_tensor::{Dtype, Tensor};

use crate::builder::Builder;
use crate::document::{Declared, Dim, Document, NamedNode};
use crate::error::GraphError;
use crate::ir::{Attributes, Graph, Operator, ValueId};
use crate::limits::Limits;
use crate::ops::{self, Operands};
use crate::roles::Roles;

/// What becomes of the initializers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Initializers<'a> {
    /// They stay in the graph; these keep their names.
    Inside(&'a Roles),
    /// They stay in the graph, and none keeps its name.
    Unnamed,
    /// Parameters and statistics become inputs.
    Ports(&'a Roles),
}

/// A graph of known shapes, and what its inputs are.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    pub(crate) graph: Graph,
    pub(crate) data: Vec<ValueId>,
    pub(crate) parameters: Vec<ValueId>,
    pub(crate) statistics: Vec<ValueId>,
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
    if let Initializers::Ports(roles) = initializers {
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
    let graph = builder.finish(BTreeMap::new())?;
    Ok(Bound {
        graph,
        data,
        parameters,
        statistics,
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
    let (least, most) = if matches!(node.operator, Operator::Max | Operator::Min) {
        (1, 1 << 10)
    } else {
        rule.operands
    };
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
    let Some(output) = node.outputs.first().filter(|name| !name.is_empty()) else {
        return Err(builder.error("its first result has no name"));
    };
    let made = lower(builder, opset, node, inputs)?;
    names.insert(output, made);
    Ok(())
}

/// Writes one node in the crate's own form.
fn lower(
    builder: &mut Builder,
    opset: i64,
    node: &NamedNode,
    mut inputs: Vec<Option<ValueId>>,
) -> Result<ValueId, GraphError> {
    let mut attributes = node.attributes.clone();
    let first = inputs.first().copied().flatten();
    let needed = |builder: &Builder| first.ok_or_else(|| builder.error("operand 0 is missing"));
    match node.operator {
        Operator::Identity => return needed(builder),
        Operator::Dropout => {
            let value = needed(builder)?;
            let training = inputs.get(2).copied().flatten();
            let training = training.map(|id| builder.constant_of(id).and_then(Tensor::first_f64));
            if !matches!(training, None | Some(Some(0.0))) {
                return Err(builder.error(
                    "dropout in its training form is not supported yet; export the model with its dropouts in eval mode",
                ));
            }
            return Ok(value);
        }
        Operator::Reshape | Operator::Flatten | Operator::Squeeze | Operator::Unsqueeze => {
            let value = needed(builder)?;
            let ask: fn(&Operands<'_>) -> Result<Vec<usize>, String> = match node.operator {
                Operator::Reshape => ops::reshaped,
                Operator::Flatten => ops::flattened,
                Operator::Squeeze => ops::squeezed,
                _ => ops::unsqueezed,
            };
            let shape = builder.with_operands(&inputs, &attributes, ask);
            let shape = shape.map_err(|problem| builder.error(problem))?;
            return builder.reshape(value, &shape);
        }
        Operator::ReduceMean | Operator::ReduceMax | Operator::ReduceSum => {
            let value = needed(builder)?;
            let keep = attributes
                .int("keepdims", 1)
                .map_err(|problem| builder.error(problem))?
                != 0;
            let axes = builder.with_operands(&inputs, &attributes, ops::reduced_axes);
            let axes = axes.map_err(|problem| builder.error(problem))?;
            return builder.reduce(node.operator, value, &axes, keep);
        }
        Operator::Conv | Operator::MaxPool | Operator::AveragePool => {
            attributes = window_attributes(builder, node.operator, attributes, &inputs)?;
        }
        Operator::ConvTranspose => {
            let weight = inputs
                .get(1)
                .copied()
                .flatten()
                .ok_or_else(|| builder.error("operand 1 is missing"))?;
            let kernel = builder.shape(weight).get(2..).unwrap_or_default().to_vec();
            attributes = attributes.with_ints("kernel_shape", &kernel);
        }
        Operator::BatchNormalization => {
            attributes.0.remove("training_mode");
            attributes.0.remove("spatial");
        }
        Operator::Cast => {
            attributes.0.remove("saturate");
        }
        Operator::MatMul => return matrix_product(builder, &inputs),
        Operator::Max | Operator::Min => {
            let mut operands = inputs.iter().copied().flatten();
            let mut extreme = operands.next().ok_or_else(|| builder.error("no operand"))?;
            for other in operands {
                extreme = builder.binary(node.operator, extreme, other)?;
            }
            return Ok(extreme);
        }
        Operator::Pad if opset >= 18 && inputs.len() == 4 => inputs = all_axes_padded(builder, inputs)?,
        _ => {}
    }
    let made = builder.nodes(node.operator, inputs, attributes, 1)?;
    made.first().copied().ok_or_else(|| builder.error("no result"))
}

fn window_attributes(
    builder: &Builder,
    operator: Operator,
    attributes: Attributes,
    inputs: &[Option<ValueId>],
) -> Result<Attributes, GraphError> {
    let bad = |problem: String| builder.error(problem);
    let shape_of = |at: usize| inputs.get(at).copied().flatten().map(|id| builder.shape(id).to_vec());
    let shape = shape_of(0).unwrap_or_default();
    let kernel: Vec<usize> = if operator == Operator::Conv {
        shape_of(1).unwrap_or_default().get(2..).unwrap_or_default().to_vec()
    } else {
        let given = attributes.ints("kernel_shape").map_err(bad)?.unwrap_or_default();
        given.iter().map(|&size| usize::try_from(size).unwrap_or(0)).collect()
    };
    let spatial = shape.get(2..).unwrap_or_default();
    if kernel.is_empty() || kernel.contains(&0) || spatial.is_empty() {
        return Err(builder.error(format!("a window of {kernel:?} over a value of shape {shape:?}")));
    }
    let mut attributes = ops::explicit_pads(operator, attributes, spatial, &kernel).map_err(bad)?;
    if operator == Operator::MaxPool && attributes.int("storage_order", 0).map_err(bad)? == 0 {
        attributes.0.remove("storage_order");
    }
    if operator == Operator::AveragePool {
        // Dilated average pools came with opset 19, after the one that is written.
        if attributes
            .ints("dilations")
            .map_err(bad)?
            .is_some_and(|given| given.iter().any(|&one| one != 1))
        {
            return Err(builder.error("a dilated average pool is not supported"));
        }
        attributes.0.remove("dilations");
    } else {
        attributes = attributes.with_ints("kernel_shape", &kernel);
    }
    Ok(attributes)
}

/// Vectors are matrices of one row (left) or one column (right), as NumPy has it.
fn matrix_product(builder: &mut Builder, inputs: &[Option<ValueId>]) -> Result<ValueId, GraphError> {
    let [Some(mut left), Some(mut right)] = inputs[..] else {
        return Err(builder.error("two operands are wanted"));
    };
    let (row, column) = (builder.rank(left) == 1, builder.rank(right) == 1);
    if row {
        let shape = [&[1], builder.shape(left)].concat();
        left = builder.reshape(left, &shape)?;
    }
    if column {
        let shape = [builder.shape(right), &[1]].concat();
        right = builder.reshape(right, &shape)?;
    }
    let product = builder.binary(Operator::MatMul, left, right)?;
    let mut shape = builder.shape(product).to_vec();
    if column {
        shape.pop();
    }
    if row {
        shape.remove(shape.len() - 1 - usize::from(!column));
    }
    builder.reshape(product, &shape)
}

/// Since opset 18 pads may be given for chosen axes; 17 wants them for all.
fn all_axes_padded(builder: &mut Builder, inputs: Vec<Option<ValueId>>) -> Result<Vec<Option<ValueId>>, GraphError> {
    let Some(value) = inputs[0] else {
        return Err(builder.error("operand 0 is missing"));
    };
    let rank = builder.rank(value);
    let none = Attributes::none();
    let asked = builder.with_operands(&inputs, &none, |operands| {
        let (pads, axes) = (
            operands.ints(1)?.unwrap_or_default(),
            operands.ints(3)?.unwrap_or_default(),
        );
        if pads.len() != 2 * axes.len() {
            return Err(format!("{} pads for {} axes", pads.len(), axes.len()));
        }
        let mut all = vec![0; 2 * rank];
        for (at, &axis) in axes.iter().enumerate() {
            let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).unwrap_or(rank);
            if axis >= rank {
                return Err(format!("the axes {axes:?} of a value of rank {rank}"));
            }
            all[axis] = pads[at];
            all[rank + axis] = pads[axes.len() + at];
        }
        Ok(all)
    });
    let pads = asked.map_err(|problem| builder.error(problem))?;
    let pads = builder.ints(&pads)?;
    Ok(vec![inputs[0], Some(pads), inputs[2]])
}
