//! `Attention` (opset 23 and 24): scaled dot products, written out.

use cloister_tensor::Dtype;

use super::{Source, rearrange};
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Attributes, Operator, ValueId};

pub(super) fn attention(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let flat = {
        let query = source.operand(builder, 0)?;
        builder.rank(query) == 3
    };
    let heads = |name: &str| -> Result<usize, GraphError> {
        let given = source.int(builder, name, 0)?;
        usize::try_from(given).map_err(|_| builder.error(format!("{given} heads")))
    };
    let (query_heads, other_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
    let query = with_heads(builder, source, 0, query_heads)?;
    let key = with_heads(builder, source, 1, other_heads)?;
    let value = with_heads(builder, source, 2, other_heads)?;
    let count = builder.shape(query)[1];
    let key = repeated(builder, key, count)?;
    let value = repeated(builder, value, count)?;

    let width = builder.shape(query)[3];
    let scale = source.float(builder, "scale", 1.0 / (width as f32).sqrt())?;
    let scaled = builder.scale(query, scale)?;
    let turned = builder.transpose(key, &[0, 1, 3, 2])?;
    let mut scores = builder.binary(Operator::MatMul, scaled, turned)?;
    let cap = source.float(builder, "softcap", 0.0)?;
    if cap != 0.0 {
        let small = builder.scale(scores, 1.0 / cap)?;
        let bent = builder.unary(Operator::Tanh, small)?;
        scores = builder.scale(bent, cap)?;
    }
    let shape = builder.shape(scores).to_vec();
    let hidden = builder.scalar(f32::NEG_INFINITY)?;
    if source.int(builder, "is_causal", 0)? != 0 {
        let seen = rearrange::triangle_mask(builder, shape[2], shape[3], 0, false)?;
        scores = builder.node(Operator::Where, &[seen, scores, hidden], Attributes::none())?;
    }
    if let Some(mask) = source.optional(3) {
        scores = if builder.dtype(mask) == Dtype::Bool {
            builder.node(Operator::Where, &[mask, scores, hidden], Attributes::none())?
        } else {
            builder.add(scores, mask)?
        };
        if builder.shape(scores) != shape {
            return Err(builder.error("the mask has more rows than there are scores"));
        }
    }
    let shares = builder.node(Operator::Softmax, &[scores], Attributes::none().with_int("axis", -1))?;
    let result = builder.binary(Operator::MatMul, shares, value)?;
    if !flat {
        return Ok(result);
    }
    let turned = builder.transpose(result, &[0, 2, 1, 3])?;
    let shape = builder.shape(turned).to_vec();
    builder.reshape(turned, &[shape[0], shape[1], shape[2] * shape[3]])
}

/// `[N, heads, rows, width]`, out of that or out of `[N, rows, heads * width]`.
fn with_heads(builder: &mut Builder, source: &Source<'_>, at: usize, heads: usize) -> Result<ValueId, GraphError> {
    let operand = source.operand(builder, at)?;
    match builder.shape(operand)[..] {
        [_, _, _, _] => Ok(operand),
        [batch, rows, all] if heads > 0 && all % heads == 0 => {
            let split = builder.reshape(operand, &[batch, rows, heads, all / heads])?;
            builder.transpose(split, &[0, 2, 1, 3])
        }
        ref shape => {
            let problem = format!("operand {at} has the shape {shape:?}, with {heads} heads");
            Err(builder.error(problem))
        }
    }
}

/// Each head of keys or values serves as many of the query's heads as it takes to make `count`.
fn repeated(builder: &mut Builder, value: ValueId, count: usize) -> Result<ValueId, GraphError> {
    let [batch, heads, rows, width] = builder.shape(value)[..] else {
        return Err(builder.error("a value without heads"));
    };
    if heads == count {
        return Ok(value);
    }
    if !count.is_multiple_of(heads) {
        return Err(builder.error(format!("{count} heads of queries for {heads} heads of keys")));
    }
    let apart = builder.reshape(value, &[batch, heads, 1, rows, width])?;
    let wide = builder.expand(apart, &[batch, heads, count / heads, rows, width])?;
    builder.reshape(wide, &[batch, count, rows, width])
}
