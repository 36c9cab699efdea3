//! Picking rows by index (embeddings), and the way back: adding rows up where they were picked.

use cloister_tensor::Dtype;

use super::bounds::{axis, like_first, same_dtype};
use super::{Derivative, Gradients, Mode, Operands, Rule, Step, Type, Written};
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Attribute, Attributes, Node, Operator, ValueId};

pub(crate) const GATHER: Rule = Rule {
    attributes: &["axis"],
    operands: (2, 2),
    configuration: &[],
    infer: infer_gather,
    rewrite: Some(rewrite),
    derivative: Derivative::Rule(differentiate),
};
/// Appears in gradients; there it adds.
pub(crate) const SCATTER_ELEMENTS: Rule = Rule {
    attributes: &["axis", "reduction"],
    operands: (3, 3),
    configuration: &[1],
    infer: infer_scatter,
    rewrite: None,
    derivative: Derivative::Missing,
};

fn indices(operands: &Operands<'_>) -> Result<(), String> {
    match operands.get(1)?.dtype {
        Dtype::I64 | Dtype::I32 => Ok(()),
        other => Err(format!(
            "the indices have elements of type {}, i64 is wanted",
            other.name()
        )),
    }
}

fn infer_gather(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let (data, picks) = (operands.get(0)?, operands.get(1)?);
    indices(operands)?;
    let axis = axis(operands.attributes.int("axis", 0)?, data.shape.len())?;
    let shape = [&data.shape[..axis], &picks.shape, &data.shape[axis + 1..]].concat();
    like_first(operands, shape)
}

fn infer_scatter(operands: &Operands<'_>) -> Result<Vec<Type>, String> {
    let (data, picks, updates) = (operands.get(0)?, operands.get(1)?, operands.get(2)?);
    indices(operands)?;
    same_dtype(operands, 0, 2)?;
    axis(operands.attributes.int("axis", 0)?, data.shape.len())?;
    let reduction = operands.attributes.text("reduction", "none")?;
    if !matches!(reduction, "none" | "add") {
        return Err(format!("the reduction '{reduction}' is not supported"));
    }
    if picks.shape != updates.shape || picks.shape.len() != data.shape.len() {
        return Err(format!(
            "indices of shape {:?} and updates of shape {:?} for a value of shape {:?}",
            picks.shape, updates.shape, data.shape
        ));
    }
    like_first(operands, data.shape.clone())
}

fn along(builder: &Builder, node: &Node, data: ValueId) -> Result<usize, GraphError> {
    let given = node.attributes.int("axis", 0);
    let along = given.and_then(|given| axis(given, builder.rank(data)));
    along.map_err(|problem| builder.error(problem))
}

/// Engines differ in what they do with an index outside of the table: some read 0, some stop. Here such a row is NaN, as is
/// the loss then, so that it can't pass unseen.
fn rewrite(builder: &mut Builder, node: &Node, inputs: &[Option<ValueId>], _: Mode) -> Result<Written, GraphError> {
    let [Some(data), Some(picks)] = *inputs else {
        return Err(builder.error("two operands are wanted"));
    };
    let axis = along(builder, node, data)?;
    let attributes = || Attributes::none().with_int("axis", axis as i64);
    let is_float = matches!(builder.dtype(data), Dtype::F32 | Dtype::F64);
    if builder.constant_of(picks).is_some() || !is_float {
        let output = builder.node(Operator::Gather, &[data, picks], attributes())?;
        return Ok(Written {
            outputs: vec![output],
            saved: vec![picks],
            ..Written::default()
        });
    }
    let size = builder.shape(data)[axis] as i64;
    let whole = |builder: &mut Builder, value: i64| {
        let tensor = cloister_tensor::Tensor::from_i64(&[], vec![value])?;
        builder.constant(tensor)
    };
    let picks = builder.cast(picks, Dtype::I64)?;
    let (zero, size, least) = (whole(builder, 0)?, whole(builder, size)?, whole(builder, -size)?);
    let above = builder.binary(Operator::GreaterOrEqual, picks, least)?;
    let below = builder.binary(Operator::Less, picks, size)?;
    let known = builder.binary(Operator::And, above, below)?;
    let negative = builder.binary(Operator::Less, picks, zero)?;
    let from_end = builder.add(picks, size)?;
    let choose =
        |builder: &mut Builder, operands: [ValueId; 3]| builder.node(Operator::Where, &operands, Attributes::none());
    let forward = choose(builder, [negative, from_end, picks])?;
    let safe = choose(builder, [known, forward, zero])?;
    let rows = builder.node(Operator::Gather, &[data, safe], attributes())?;
    let behind = builder.rank(data) - axis - 1;
    let beside = [builder.shape(known), &vec![1; behind]].concat();
    let known = builder.reshape(known, &beside)?;
    let unknown = builder.scalar(f32::NAN)?;
    let unknown = builder.cast(unknown, builder.dtype(rows))?;
    let output = choose(builder, [known, rows, unknown])?;
    Ok(Written {
        outputs: vec![output],
        saved: vec![safe],
        ..Written::default()
    })
}

/// Rows of the gradient are added up where they were picked.
fn differentiate(builder: &mut Builder, step: &Step<'_>) -> Gradients {
    let (data, picks) = (step.input(builder, 0)?, step.saved(builder, 0)?);
    let axis = along(builder, step.node, data)?;
    let shape = builder.shape(data).to_vec();
    let count: usize = builder.shape(picks).iter().product();
    let mut rows = shape.clone();
    rows[axis] = count;
    let updates = builder.reshape(step.gradient, &rows)?;
    let mut column = vec![1; shape.len()];
    column[axis] = count;
    let picks = builder.reshape(picks, &column)?;
    let picks = builder.expand(picks, &rows)?;
    let zero = builder.scalar(0.0)?;
    let zero = builder.cast(zero, builder.dtype(data))?;
    let ground = builder.expand(zero, &shape)?;
    let attributes = Attributes::none()
        .with_int("axis", axis as i64)
        .with("reduction", Attribute::Text("add".to_owned()));
    let sum = builder.node(Operator::ScatterElements, &[ground, picks, updates], attributes)?;
    Ok(vec![Some(sum), None])
}
