//! The safetensors file format (<https://huggingface.co/docs/safetensors>): u64le header length, JSON header, raw data.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;

use bytes::Bytes;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as FileDtype, Metadata, TensorInfo};

use crate::limits::{at_most, check_name, shown};
use crate::{Dtype, ReadLimits, Shape, Tensor, TensorError, TensorMap};

const FORMAT: &str = "safetensors";

/// Bytes of the length that a file begins with.
const LENGTH_BYTES: usize = 8;

/// The header is padded to a multiple of this, so that data is aligned when the file is.
const ALIGNMENT: usize = 8;

/// Reads a file; the tensors share its bytes, nothing is copied.
///
/// # Errors
/// The file is not well formed, holds a type that is not a [`Dtype`], or is beyond `limits`.
pub fn read(file: Bytes, limits: &ReadLimits) -> Result<TensorMap, TensorError> {
    let (data_at, header) = read_header(&file, limits)?;
    let mut tensors = TensorMap::new();
    for (name, info) in header.tensors() {
        check_name(FORMAT, &name)?;
        let place = |reason: String| TensorError::Format {
            format: FORMAT,
            place: shown(&name),
            reason,
        };
        let dtype = from_file(info.dtype).ok_or_else(|| place(format!("type {:?} is not supported", info.dtype)))?;
        let shape = Shape::new(&info.shape).map_err(|error| place(error.to_string()))?;
        let (start, end) = info.data_offsets;
        let bytes = start
            .checked_add(data_at)
            .zip(end.checked_add(data_at))
            .filter(|&(start, end)| start <= end && end <= file.len())
            .map(|(start, end)| file.slice(start..end))
            .ok_or_else(|| place("its data lies outside the file".into()))?;
        let tensor = Tensor::new(dtype, shape, bytes).map_err(|error| place(error.to_string()))?;
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

/// The free-form text entries (`__metadata__`) of a file.
///
/// # Errors
/// The header is not well formed or beyond `limits`.
pub fn metadata(file: &[u8], limits: &ReadLimits) -> Result<BTreeMap<String, String>, TensorError> {
    let (_, header) = read_header(file, limits)?;
    Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// Writes tensors into memory; the bytes depend on nothing but the arguments.
///
/// # Errors
/// A name is empty, longer than [`crate::MAX_NAME_BYTES`], or the format's own `__metadata__`.
pub fn write(tensors: &TensorMap, metadata: &BTreeMap<String, String>) -> Result<Vec<u8>, TensorError> {
    let data: usize = tensors.values().map(|tensor| tensor.bytes().len()).sum();
    let mut file = Vec::with_capacity(data + 1024 + tensors.len() * 128);
    write_to(&mut file, tensors, metadata)?;
    Ok(file)
}

/// Writes tensors to `out` without putting the file together in memory first.
///
/// # Errors
/// As [`write()`], or `out` fails.
pub fn write_to(
    mut out: impl Write,
    tensors: &TensorMap,
    metadata: &BTreeMap<String, String>,
) -> Result<(), TensorError> {
    // As the reference implementation does: by falling alignment, then by name; so all data is aligned.
    let mut order: Vec<(&String, &Tensor)> = tensors.iter().collect();
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype().size_bytes()));
    let mut header = String::from("{");
    if !metadata.is_empty() {
        header.push_str("\"__metadata__\":");
        header.push_str(&json(metadata)?);
    }
    let mut at = 0usize;
    for (name, tensor) in &order {
        check_name(FORMAT, name)?;
        if name.as_str() == "__metadata__" {
            return Err(bad(
                "tensor names",
                "`__metadata__` is the format's own: rename the tensor",
            ));
        }
        if header.len() > 1 {
            header.push(',');
        }
        let end = at + tensor.bytes().len();
        header.push_str(&json(name)?);
        header.push_str(&format!(
            ":{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{at},{end}]}}",
            tensor.dtype(),
            json(tensor.shape().dims())?,
        ));
        at = end;
    }
    header.push('}');
    while !header.len().is_multiple_of(ALIGNMENT) {
        header.push(' ');
    }
    out.write_all(&(header.len() as u64).to_le_bytes())
        .map_err(TensorError::Write)?;
    out.write_all(header.as_bytes()).map_err(TensorError::Write)?;
    for (_, tensor) in order {
        out.write_all(tensor.bytes()).map_err(TensorError::Write)?;
    }
    Ok(())
}

fn read_header(file: &[u8], limits: &ReadLimits) -> Result<(usize, Metadata), TensorError> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(bad(
            "header",
            format!("the file has {} bytes, a header length takes 8", file.len()),
        ));
    };
    // Before anything is parsed: the header's size bounds what parsing may allocate.
    let length = u64::from_le_bytes(*length);
    at_most(FORMAT, "bytes of header", length, limits.max_header_bytes as u64)?;
    at_most(
        FORMAT,
        "bytes of tensors",
        (rest.len() as u64).saturating_sub(length),
        limits.max_bytes,
    )?;
    let (header_bytes, header) = SafeTensors::read_metadata(file).map_err(|error| bad("header", error.to_string()))?;
    let tensors: HashMap<String, &TensorInfo> = header.tensors();
    at_most(FORMAT, "tensors", tensors.len() as u64, limits.max_tensors as u64)?;
    Ok((LENGTH_BYTES + header_bytes, header))
}

fn bad(place: impl Into<String>, reason: impl Into<String>) -> TensorError {
    TensorError::Format {
        format: FORMAT,
        place: place.into(),
        reason: reason.into(),
    }
}

fn json<T: serde::Serialize + ?Sized>(value: &T) -> Result<String, TensorError> {
    serde_json::to_string(value).map_err(|error| TensorError::Write(error.into()))
}

fn from_file(dtype: FileDtype) -> Option<Dtype> {
    match dtype {
        FileDtype::F32 => Some(Dtype::F32),
        FileDtype::F64 => Some(Dtype::F64),
        FileDtype::F16 => Some(Dtype::F16),
        FileDtype::BF16 => Some(Dtype::Bf16),
        FileDtype::I64 => Some(Dtype::I64),
        FileDtype::I32 => Some(Dtype::I32),
        FileDtype::U8 => Some(Dtype::U8),
        FileDtype::BOOL => Some(Dtype::Bool),
        _ => None,
    }
}
