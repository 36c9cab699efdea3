//! Writes a node of a file in the crate's own form: the many ways to say the same thing become one (`Flatten`, `Squeeze`,
//! `Unsqueeze` become `Reshape`; automatic padding becomes explicit), and operators that are made of others (`Gelu`,
//! `LayerNormalization`, `Resize`, ...) are written out in those, so that shapes, engines and derivatives know one small set.

mod activation;
mod attention;
mod einsum;
mod normalization;
mod rearrange;
mod reduction;
mod resize;
mod windowed;

use cloister_tensor::{Dtype, Tensor};

use crate::builder::Builder;
use crate::document::NamedNode;
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};
use crate::ops::{self, Operands};
use crate::port::DropRatio;

/// A node of a file whose operands are values already.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    /// Version of the operator set that the file is written in.
    pub(crate) opset: i64,
    pub(crate) node: &'a NamedNode,
    pub(crate) inputs: Vec<Option<ValueId>>,
}

impl Source<'_> {
    fn optional(&self, at: usize) -> Option<ValueId> {
        self.inputs.get(at).copied().flatten()
    }

    fn operand(&self, builder: &Builder, at: usize) -> Result<ValueId, GraphError> {
        self.optional(at)
            .ok_or_else(|| builder.error(format!("operand {at} is missing")))
    }

    fn int(&self, builder: &Builder, name: &str, default: i64) -> Result<i64, GraphError> {
        let value = self.node.attributes.int(name, default);
        value.map_err(|problem| builder.error(problem))
    }

    fn float(&self, builder: &Builder, name: &str, default: f32) -> Result<f32, GraphError> {
        let value = self.node.attributes.float(name, default);
        value.map_err(|problem| builder.error(problem))
    }

    fn text(&self, builder: &Builder, name: &str, default: &'static str) -> Result<String, GraphError> {
        let value = self.node.attributes.text(name, default);
        value.map(str::to_owned).map_err(|problem| builder.error(problem))
    }

    /// Asks about operands and attributes, as rules do.
    fn ask<T>(&self, builder: &Builder, ask: impl FnOnce(&Operands<'_>) -> Result<T, String>) -> Result<T, GraphError> {
        let answer = builder.with_operands(&self.inputs, &self.node.attributes, ask);
        answer.map_err(|problem| builder.error(problem))
    }

    /// An axis that counts from the end when negative.
    fn axis(&self, builder: &Builder, name: &str, default: i64, rank: usize) -> Result<usize, GraphError> {
        let given = self.int(builder, name, default)?;
        ops::axis(given, rank).map_err(|problem| builder.error(problem))
    }

    /// The node as it stands, in the crate's own graph.
    fn copied(self, builder: &mut Builder, attributes: Attributes) -> Result<ValueId, GraphError> {
        let made = builder.nodes(self.node.operator, self.inputs, attributes, 1)?;
        made.first().copied().ok_or_else(|| builder.error("no result"))
    }
}

/// Writes a node. Further results are given where the operator has them and they are of use.
pub(crate) fn lower(builder: &mut Builder, source: Source<'_>) -> Result<Vec<ValueId>, GraphError> {
    use Operator as O;
    let one = match source.node.operator {
        O::Split => return rearrange::split(builder, &source),
        O::LayerNormalization => return normalization::layer(builder, &source),
        O::Identity => source.operand(builder, 0)?,
        O::Dropout => dropout(builder, &source)?,
        O::Reshape | O::Flatten | O::Squeeze | O::Unsqueeze => reshape(builder, &source)?,
        O::CastLike => {
            let (value, like) = (source.operand(builder, 0)?, source.operand(builder, 1)?);
            let dtype = builder.dtype(like);
            builder.cast(value, dtype)?
        }
        O::Cast => {
            let attributes = without(&source, &["saturate", "round_mode"]);
            source.copied(builder, attributes)?
        }
        O::BatchNormalization => {
            let attributes = without(&source, &["training_mode", "spatial"]);
            source.copied(builder, attributes)?
        }
        O::Sum | O::Mean | O::Max | O::Min => variadic(builder, &source)?,
        O::Pow => power(builder, &source)?,
        O::MatMul => matrix_product(builder, &source)?,
        O::Conv | O::MaxPool | O::AveragePool | O::ConvTranspose => windowed::windowed(builder, source)?,
        O::Pad => rearrange::pad(builder, source)?,
        O::Gather => rearrange::gather(builder, source)?,
        O::Tile => rearrange::tile(builder, &source)?,
        O::Trilu => rearrange::triangle(builder, &source)?,
        O::DepthToSpace | O::SpaceToDepth => rearrange::depth_and_space(builder, &source)?,
        O::ConstantOfShape => rearrange::filled(builder, source)?,
        O::ReduceMean
        | O::ReduceMax
        | O::ReduceSum
        | O::ReduceMin
        | O::ReduceL1
        | O::ReduceL2
        | O::ReduceSumSquare
        | O::ReduceLogSumExp => reduction::reduce(builder, &source)?,
        O::Gelu
        | O::HardSigmoid
        | O::HardSwish
        | O::Elu
        | O::Selu
        | O::Celu
        | O::Mish
        | O::Swish
        | O::Softsign
        | O::PRelu => activation::activation(builder, &source)?,
        O::GroupNormalization => normalization::group(builder, &source)?,
        O::InstanceNormalization => normalization::instance(builder, &source)?,
        O::RMSNormalization => normalization::root_mean_square(builder, &source)?,
        O::Attention => attention::attention(builder, &source)?,
        O::Einsum => einsum::einsum(builder, &source)?,
        O::Resize => resize::resize(builder, &source)?,
        _ => {
            let attributes = source.node.attributes.clone();
            source.copied(builder, attributes)?
        }
    };
    Ok(vec![one])
}

fn without(source: &Source<'_>, names: &[&str]) -> Attributes {
    let mut attributes = source.node.attributes.clone();
    for name in names {
        attributes.0.remove(*name);
    }
    attributes
}

/// Nothing in a model for inference. In its training form it takes its mask from an input of the graph, if the graph is to
/// be trained with dropouts ([`Builder::mask`]).
fn dropout(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let value = source.operand(builder, 0)?;
    let constant = |at: usize| {
        source
            .optional(at)
            .map(|id| builder.constant_of(id).and_then(Tensor::first_f64))
    };
    match constant(2) {
        None | Some(Some(0.0)) => return Ok(value),
        Some(Some(_)) => {}
        Some(None) => return Err(builder.error("whether it trains is not constant; export the model in one mode")),
    }
    let ratio = match constant(1) {
        None => 0.5,
        Some(Some(ratio)) if (0.0..1.0).contains(&ratio) => ratio,
        Some(seen) => {
            return Err(builder.error(format!(
                "a dropout ratio of {seen:?}; a constant of at least 0 and below 1 is wanted"
            )));
        }
    };
    if ratio == 0.0 {
        return Ok(value);
    }
    let ratio = DropRatio::new(ratio as f32)
        .ok_or_else(|| builder.error(format!("a dropout ratio of {ratio}, which is 0 or 1 in 32 bits")))?;
    builder.dropout(value, ratio)
}

fn reshape(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let value = source.operand(builder, 0)?;
    let shape = match source.node.operator {
        Operator::Reshape => source.ask(builder, ops::reshaped)?,
        Operator::Flatten => source.ask(builder, ops::flattened)?,
        Operator::Squeeze => source.ask(builder, ops::squeezed)?,
        _ => source.ask(builder, ops::unsqueezed)?,
    };
    builder.reshape(value, &shape)
}

fn variadic(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let operator = match source.node.operator {
        Operator::Sum | Operator::Mean => Operator::Add,
        other => other,
    };
    let mut operands = source.inputs.iter().copied().flatten();
    let mut result = operands.next().ok_or_else(|| builder.error("no operand"))?;
    for other in operands {
        result = builder.binary(operator, result, other)?;
    }
    if source.node.operator == Operator::Mean {
        result = builder.scale(result, 1.0 / source.inputs.len() as f32)?;
    }
    Ok(result)
}

/// The usual exponents become products and roots, which engines compute faster and more exactly.
fn power(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let (base, exponent) = (source.operand(builder, 0)?, source.operand(builder, 1)?);
    let known = builder.constant_of(exponent).filter(|one| one.shape().elements() == 1);
    let known = known.and_then(Tensor::first_f64);
    let grows = builder.rank(exponent) > builder.rank(base);
    if builder.dtype(base) == Dtype::F32 && !grows {
        match known {
            Some(1.0) => return Ok(base),
            Some(2.0) => return builder.mul(base, base),
            Some(3.0) => {
                let square = builder.mul(base, base)?;
                return builder.mul(square, base);
            }
            Some(0.5) => return builder.unary(Operator::Sqrt, base),
            Some(-1.0) => return builder.unary(Operator::Reciprocal, base),
            _ => {}
        }
    }
    builder.binary(Operator::Pow, base, exponent)
}

/// Vectors are matrices of one row (left) or one column (right), as NumPy has it.
fn matrix_product(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let (mut left, mut right) = (source.operand(builder, 0)?, source.operand(builder, 1)?);
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
