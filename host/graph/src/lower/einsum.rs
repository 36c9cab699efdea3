//! `Einsum` of one or two operands, as transposes, sums and one batched matrix product.

use super::Source;
use crate::builder::Builder;
use crate::error::GraphError;
use crate::ir::{Operator, ValueId};

/// A value and the letter of each of its axes.
struct Lettered {
    value: ValueId,
    letters: Vec<char>,
}

pub(super) fn einsum(builder: &mut Builder, source: &Source<'_>) -> Result<ValueId, GraphError> {
    let equation = source.text(builder, "equation", "")?;
    let refuse = |builder: &Builder, why: &str| builder.error(format!("the equation '{equation}': {why}"));
    let plain: String = equation.chars().filter(|letter| !letter.is_whitespace()).collect();
    let Some((left, right)) = plain.split_once("->") else {
        return Err(refuse(builder, "an explicit result ('->') is wanted"));
    };
    let wanted: Vec<char> = right.chars().collect();
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != source.inputs.len() {
        return Err(refuse(builder, "it has another number of operands than the node"));
    }
    let mut operands = Vec::new();
    for (at, term) in terms.iter().enumerate() {
        let value = source.operand(builder, at)?;
        let letters: Vec<char> = term.chars().collect();
        let plain = letters.iter().all(char::is_ascii_alphabetic)
            && (0..letters.len()).all(|at| !letters[..at].contains(&letters[at]));
        if !plain || letters.len() != builder.rank(value) {
            return Err(refuse(
                builder,
                "each axis of an operand needs a letter of its own (no '...', no diagonals)",
            ));
        }
        operands.push(Lettered { value, letters });
    }
    let known = |letter: &char| operands.iter().any(|one| one.letters.contains(letter));
    if !wanted.iter().all(known) || (0..wanted.len()).any(|at| wanted[..at].contains(&wanted[at])) {
        return Err(refuse(
            builder,
            "the result has a letter twice, or one that no operand has",
        ));
    }
    let mut operands = operands.into_iter();
    match (operands.next(), operands.next(), operands.next()) {
        (Some(only), None, None) => {
            let summed = sum_all_but(builder, only, &wanted)?;
            ordered(builder, &summed, &wanted)
        }
        (Some(first), Some(second), None) => product(builder, first, second, &wanted),
        _ => Err(refuse(builder, "one or two operands are supported")),
    }
}

fn sum_all_but(builder: &mut Builder, one: Lettered, kept: &[char]) -> Result<Lettered, GraphError> {
    let axes: Vec<usize> = (0..one.letters.len())
        .filter(|&axis| !kept.contains(&one.letters[axis]))
        .collect();
    Ok(Lettered {
        value: builder.sum(one.value, &axes, false)?,
        letters: one.letters.into_iter().filter(|letter| kept.contains(letter)).collect(),
    })
}

fn ordered(builder: &mut Builder, one: &Lettered, wanted: &[char]) -> Result<ValueId, GraphError> {
    let order: Option<Vec<usize>> = wanted
        .iter()
        .map(|letter| one.letters.iter().position(|other| other == letter))
        .collect();
    let order = order.ok_or_else(|| builder.error("a letter without an axis"))?;
    builder.transpose(one.value, &order)
}

fn product(builder: &mut Builder, first: Lettered, second: Lettered, wanted: &[char]) -> Result<ValueId, GraphError> {
    let of_use = |other: &Lettered| [wanted, &other.letters[..]].concat();
    let (for_first, for_second) = (of_use(&second), of_use(&first));
    let first = sum_all_but(builder, first, &for_first)?;
    let second = sum_all_but(builder, second, &for_second)?;
    let shared = |letter: &&char| second.letters.contains(letter);
    let batch: Vec<char> = wanted
        .iter()
        .filter(|letter| first.letters.contains(letter) && second.letters.contains(letter))
        .copied()
        .collect();
    let rows: Vec<char> = first.letters.iter().filter(|letter| !shared(letter)).copied().collect();
    let inner: Vec<char> = first
        .letters
        .iter()
        .filter(|letter| shared(letter) && !wanted.contains(letter))
        .copied()
        .collect();
    let columns: Vec<char> = second
        .letters
        .iter()
        .filter(|letter| !first.letters.contains(letter))
        .copied()
        .collect();
    let left = ordered(builder, &first, &[&batch[..], &rows, &inner].concat())?;
    let right = ordered(builder, &second, &[&batch[..], &inner, &columns].concat())?;
    let (left_shape, right_shape) = (builder.shape(left).to_vec(), builder.shape(right).to_vec());
    let size = |dims: &[usize]| dims.iter().product::<usize>();
    let (head, rest) = left_shape.split_at(batch.len());
    let (row_dims, inner_dims) = rest.split_at(rows.len());
    let column_dims = &right_shape[batch.len() + inner.len()..];
    let left = builder.reshape(left, &[head, &[size(row_dims), size(inner_dims)]].concat())?;
    let right = builder.reshape(
        right,
        &[&right_shape[..batch.len()], &[size(inner_dims), size(column_dims)]].concat(),
    )?;
    let flat = builder.binary(Operator::MatMul, left, right)?;
    let head = builder.shape(flat)[..batch.len()].to_vec();
    let value = builder.reshape(flat, &[&head, row_dims, column_dims].concat())?;
    let letters = [&batch[..], &rows, &columns].concat();
    ordered(builder, &Lettered { value, letters }, wanted)
}
