//! Computes integer constants while a model is read: shapes, axes and the arithmetic that exporters do on them.

use cloister_tensor::{Dtype, Shape, Tensor};

use crate::ir::{Attribute, Operator};
use crate::onnx::dtype_from_onnx;
use crate::ops::{Operands, broadcast};

/// A small constant of integers or truth values.
struct Known {
    dtype: Dtype,
    shape: Vec<usize>,
    values: Vec<i64>,
}

impl Known {
    fn list(values: Vec<i64>) -> Self {
        Self {
            dtype: Dtype::I64,
            shape: vec![values.len()],
            values,
        }
    }

    fn tensor(self) -> Result<Tensor, String> {
        let size = self.dtype.size_bytes();
        let bytes: Vec<u8> = match self.dtype {
            Dtype::F32 => self
                .values
                .iter()
                .flat_map(|&value| (value as f32).to_le_bytes())
                .collect(),
            _ => self
                .values
                .iter()
                .flat_map(|value| value.to_le_bytes().into_iter().take(size))
                .collect(),
        };
        let shape = Shape::new(&self.shape).map_err(|error| error.to_string())?;
        Tensor::new(self.dtype, shape, bytes.into()).map_err(|error| error.to_string())
    }
}

/// The result of a node whose operands are small integer constants (or of which only the shape matters); `None` when the
/// node has to be computed when the graph runs.
pub(crate) fn fold(operator: Operator, operands: &Operands<'_>, most: usize) -> Result<Option<Tensor>, String> {
    match operator {
        Operator::Constant => return constant(operands).map(Some),
        Operator::Shape => return shape(operands).and_then(Known::tensor).map(Some),
        Operator::ConstantOfShape => return filled(operands, most).map(Some),
        Operator::Concat => {
            if let Some(row) = joined_floats(operands, most) {
                return Ok(Some(row));
            }
        }
        Operator::Size => {
            let elements: usize = operands.get(0)?.shape.iter().product();
            return Tensor::from_i64(&[], vec![elements as i64])
                .map(Some)
                .map_err(|error| error.to_string());
        }
        Operator::Cast => {
            if let Some(known) = whole_numbers(operands, most) {
                return known.tensor().map(Some);
            }
        }
        _ => {}
    }
    let mut known = Vec::with_capacity(operands.inputs.len());
    for at in 0..operands.inputs.len() {
        let Some(one) = known_operand(operands, at, most) else {
            return Ok(None);
        };
        known.push(one);
    }
    if known.is_empty() {
        return Ok(None);
    }
    let result = match (operator, &known[..]) {
        (Operator::Gather, [data, picks]) => gather(operands, data, picks)?,
        (Operator::Concat, _)
            if known
                .iter()
                .all(|one| one.shape.len() == 1 && one.dtype == known[0].dtype) =>
        {
            let values: Vec<i64> = known.iter().flat_map(|one| one.values.iter().copied()).collect();
            Some(Known {
                dtype: known[0].dtype,
                shape: vec![values.len()],
                values,
            })
        }
        (Operator::Slice, _) => slice(&known),
        (Operator::Expand, [one, shape]) => {
            let dims = shape.values.iter().map(|&dim| usize::try_from(dim));
            let dims = dims.collect::<Result<Vec<_>, _>>();
            let dims = dims.map_err(|_| format!("the shape {:?}", shape.values))?;
            let shape = broadcast(&one.shape, &dims)?;
            let (count, many) = (
                shape.iter().try_fold(1usize, |all, &dim| all.checked_mul(dim)),
                one.values.len(),
            );
            match count {
                Some(count) if count <= most && (many == 1 || many == count) => Some(Known {
                    dtype: one.dtype,
                    shape,
                    values: one.values.iter().copied().cycle().take(count).collect(),
                }),
                _ => None,
            }
        }
        (Operator::ReduceProd, [one, ..]) if one.shape.len() <= 1 => {
            let product = one.values.iter().try_fold(1i64, |all, &value| all.checked_mul(value));
            let keep = operands.attributes.int("keepdims", 1)? != 0;
            Some(Known {
                dtype: one.dtype,
                shape: vec![1; usize::from(keep && one.shape.len() == 1)],
                values: vec![product.ok_or("integer arithmetic beyond 64 bits")?],
            })
        }
        (Operator::Cast, [one]) => cast(operands, one)?,
        (Operator::Range, [start, limit, step]) => Some(range(start, limit, step, most)?),
        (Operator::Where, [condition, left, right]) => {
            let pick = |values: &[i64]| Some(if values[0] != 0 { values[1] } else { values[2] });
            elementwise(&[condition, left, right], left.dtype, most, pick)?
        }
        (Operator::Not, [one]) => elementwise(&[one], Dtype::Bool, most, |values| Some(i64::from(values[0] == 0)))?,
        (Operator::Neg, [one]) => elementwise(&[one], one.dtype, most, |values| values[0].checked_neg())?,
        (_, [left, right]) if left.dtype == right.dtype => binary(operator, left, right, most)?,
        _ => None,
    };
    match result {
        Some(known) if known.values.len() <= most => known.tensor().map(Some),
        Some(known) => Err(format!(
            "a computed constant of {} elements, at most {most} are allowed",
            known.values.len()
        )),
        None => Ok(None),
    }
}

fn known_operand(operands: &Operands<'_>, at: usize, most: usize) -> Option<Known> {
    let id = operands.inputs.get(at).copied().flatten()?;
    let tensor = operands.graph.constants.get(&id)?;
    if tensor.shape().elements() > most {
        return None;
    }
    let values = match tensor.dtype() {
        Dtype::I64 => tensor.to_i64_vec().ok()?,
        Dtype::I32 | Dtype::Bool | Dtype::U8 => tensor.to_f64_vec().into_iter().map(|value| value as i64).collect(),
        _ => return None,
    };
    Some(Known {
        dtype: tensor.dtype(),
        shape: tensor.shape().dims().to_vec(),
        values,
    })
}

fn constant(operands: &Operands<'_>) -> Result<Tensor, String> {
    let text = |error: cloister_tensor::TensorError| error.to_string();
    let mut attributes = operands.attributes.0.iter();
    let (Some((name, value)), None) = (attributes.next(), attributes.next()) else {
        return Err("a constant has exactly one value".to_owned());
    };
    match (name.as_str(), value) {
        ("value", Attribute::Tensor(tensor)) => Ok(tensor.clone()),
        ("value_int", Attribute::Int(value)) => Tensor::from_i64(&[], vec![*value]).map_err(text),
        ("value_ints", Attribute::Ints(values)) => Tensor::from_i64(&[values.len()], values.clone()).map_err(text),
        ("value_float", Attribute::Float(value)) => Tensor::from_f32(&[], vec![*value]).map_err(text),
        ("value_floats", Attribute::Floats(values)) => Tensor::from_f32(&[values.len()], values.clone()).map_err(text),
        _ => Err(format!("a constant given as '{name}' is not supported")),
    }
}

fn shape(operands: &Operands<'_>) -> Result<Known, String> {
    let dims = &operands.get(0)?.shape;
    let rank = dims.len() as i64;
    let bound = |value: i64| if value < 0 { value.saturating_add(rank) } else { value }.clamp(0, rank) as usize;
    let start = bound(operands.attributes.int("start", 0)?);
    let end = bound(operands.attributes.int("end", i64::MAX)?).max(start);
    Ok(Known::list(dims[start..end].iter().map(|&dim| dim as i64).collect()))
}

fn filled(operands: &Operands<'_>, most: usize) -> Result<Tensor, String> {
    let asked = operands.ints(0)?.ok_or("operand 0 is missing")?;
    let dims = asked
        .iter()
        .map(|&dim| usize::try_from(dim))
        .collect::<Result<Vec<_>, _>>();
    let dims = dims.map_err(|_| format!("the shape {asked:?}"))?;
    let shape = Shape::new(&dims).map_err(|error| error.to_string())?;
    if shape.elements() > most {
        return Err(format!(
            "a computed constant of shape {asked:?}, at most {most} elements are allowed"
        ));
    }
    let (dtype, one) = match operands.attributes.0.get("value") {
        Some(Attribute::Tensor(tensor)) if tensor.shape().elements() == 1 => (tensor.dtype(), tensor.bytes().to_vec()),
        Some(_) => return Err("the value is not a tensor of one element".to_owned()),
        None => (Dtype::F32, vec![0; 4]),
    };
    Tensor::new(dtype, shape.clone(), one.repeat(shape.elements()).into()).map_err(|error| error.to_string())
}

fn gather(operands: &Operands<'_>, data: &Known, picks: &Known) -> Result<Option<Known>, String> {
    if data.shape.len() != 1 || operands.attributes.int("axis", 0)? != 0 {
        return Ok(None);
    }
    let size = data.values.len() as i64;
    let pick = |&at: &i64| {
        let at = if at < 0 { at.checked_add(size)? } else { at };
        usize::try_from(at).ok().and_then(|at| data.values.get(at)).copied()
    };
    let values: Option<Vec<i64>> = picks.values.iter().map(pick).collect();
    let values = values.ok_or_else(|| format!("an index outside the {size} elements"))?;
    Ok(Some(Known {
        dtype: data.dtype,
        shape: picks.shape.clone(),
        values,
    }))
}

fn slice(known: &[Known]) -> Option<Known> {
    let data = known.first()?;
    let single = |at: usize, default: i64| match known.get(at) {
        None => Some(default),
        Some(one) if one.values.len() == 1 => Some(one.values[0]),
        Some(_) => None,
    };
    if data.shape.len() != 1 || single(3, 0)? != 0 || single(4, 1)? != 1 {
        return None;
    }
    let size = data.values.len() as i64;
    let bound = |value: i64| if value < 0 { value.saturating_add(size) } else { value }.clamp(0, size) as usize;
    let (start, end) = (bound(single(1, 0)?), bound(single(2, size)?));
    let values = data.values[start..end.max(start)].to_vec();
    Some(Known {
        dtype: data.dtype,
        shape: vec![values.len()],
        values,
    })
}

fn cast(operands: &Operands<'_>, one: &Known) -> Result<Option<Known>, String> {
    let dtype = dtype_from_onnx(operands.attributes.int("to", 0)?);
    let values = match dtype {
        Some(Dtype::I64 | Dtype::F32) => one.values.clone(),
        Some(Dtype::I32) if one.values.iter().all(|&value| i32::try_from(value).is_ok()) => one.values.clone(),
        Some(Dtype::Bool) => one.values.iter().map(|&value| i64::from(value != 0)).collect(),
        _ => return Ok(None),
    };
    Ok(dtype.map(|dtype| Known {
        dtype,
        shape: one.shape.clone(),
        values,
    }))
}

/// Rows of float constants: exporters join the scales of a `Resize` so.
fn joined_floats(operands: &Operands<'_>, most: usize) -> Option<Tensor> {
    let mut values = Vec::new();
    for id in operands.inputs {
        let tensor = operands.graph.constants.get(&(*id)?)?;
        if tensor.dtype() != Dtype::F32 || tensor.shape().rank() != 1 || tensor.shape().elements() > most {
            return None;
        }
        values.extend(tensor.to_f32_vec().ok()?);
    }
    (!values.is_empty() && values.len() <= most)
        .then(|| Tensor::from_f32(&[values.len()], values).ok())
        .flatten()
}

/// Small float constants that are cast to integers: exporters write steps of ranges so.
fn whole_numbers(operands: &Operands<'_>, most: usize) -> Option<Known> {
    let id = operands.inputs.first().copied().flatten()?;
    let tensor = operands.graph.constants.get(&id)?;
    let to = dtype_from_onnx(operands.attributes.int("to", 0).ok()?)?;
    if tensor.dtype() != Dtype::F32 || !matches!(to, Dtype::I64 | Dtype::I32) || tensor.shape().elements() > most {
        return None;
    }
    let values = tensor.to_f64_vec();
    let exact = values.iter().all(|value| value.abs() < f64::from(1 << 24));
    exact.then(|| Known {
        dtype: to,
        shape: tensor.shape().dims().to_vec(),
        values: values.iter().map(|&value| value as i64).collect(),
    })
}

fn range(start: &Known, limit: &Known, step: &Known, most: usize) -> Result<Known, String> {
    let (&[start], &[limit], &[step]) = (&start.values[..], &limit.values[..], &step.values[..]) else {
        return Err("start, limit and step are single numbers".to_owned());
    };
    if step == 0 {
        return Err("a step of 0".to_owned());
    }
    let mut values = Vec::new();
    let mut at = start;
    while (step > 0 && at < limit) || (step < 0 && at > limit) {
        if values.len() >= most {
            return Err(format!("a range of more than {most} elements"));
        }
        values.push(at);
        at = at.checked_add(step).ok_or("a range beyond 64 bits")?;
    }
    Ok(Known::list(values))
}

fn binary(operator: Operator, left: &Known, right: &Known, most: usize) -> Result<Option<Known>, String> {
    let truth = |value: bool| Some(i64::from(value));
    let same = left.dtype;
    let operands = [left, right];
    match operator {
        Operator::Add => elementwise(&operands, same, most, |v| v[0].checked_add(v[1])),
        Operator::Sub => elementwise(&operands, same, most, |v| v[0].checked_sub(v[1])),
        Operator::Mul => elementwise(&operands, same, most, |v| v[0].checked_mul(v[1])),
        Operator::Div => elementwise(&operands, same, most, |v| v[0].checked_div(v[1])),
        Operator::Max => elementwise(&operands, same, most, |v| Some(v[0].max(v[1]))),
        Operator::Min => elementwise(&operands, same, most, |v| Some(v[0].min(v[1]))),
        // The sign of the divisor, as in Python; the C way is for floats.
        Operator::Mod => elementwise(&operands, same, most, |v| {
            let rest = v[0].checked_rem(v[1])?;
            Some(if rest != 0 && (rest < 0) != (v[1] < 0) {
                rest + v[1]
            } else {
                rest
            })
        }),
        Operator::Equal => elementwise(&operands, Dtype::Bool, most, |v| truth(v[0] == v[1])),
        Operator::Greater => elementwise(&operands, Dtype::Bool, most, |v| truth(v[0] > v[1])),
        Operator::Less => elementwise(&operands, Dtype::Bool, most, |v| truth(v[0] < v[1])),
        Operator::GreaterOrEqual => elementwise(&operands, Dtype::Bool, most, |v| truth(v[0] >= v[1])),
        Operator::LessOrEqual => elementwise(&operands, Dtype::Bool, most, |v| truth(v[0] <= v[1])),
        Operator::And => elementwise(&operands, Dtype::Bool, most, |v| truth(v[0] != 0 && v[1] != 0)),
        Operator::Or => elementwise(&operands, Dtype::Bool, most, |v| truth(v[0] != 0 || v[1] != 0)),
        _ => Ok(None),
    }
}

/// Applies `compute` to broadcast operands of rank 1 at most.
fn elementwise(
    operands: &[&Known],
    dtype: Dtype,
    most: usize,
    compute: impl Fn(&[i64]) -> Option<i64>,
) -> Result<Option<Known>, String> {
    let mut shape = Vec::new();
    for one in operands {
        shape = broadcast(&shape, &one.shape)?;
    }
    if shape.len() > 1 || shape.iter().product::<usize>() > most {
        return Ok(None);
    }
    let count = shape.iter().product();
    let mut values = Vec::with_capacity(count);
    for at in 0..count {
        let row: Vec<i64> = operands
            .iter()
            .map(|one| one.values[if one.values.len() == 1 { 0 } else { at }])
            .collect();
        values.push(compute(&row).ok_or("integer arithmetic beyond 64 bits, or a division by 0")?);
    }
    Ok(Some(Known { dtype, shape, values }))
}
