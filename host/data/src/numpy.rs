//! NumPy's files: one or two arrays one after another (`.npy`), or an archive of named ones (`.npz`).
//!
//! - NPY: as IDX, `label` for an array of one dimension, `p0..` for one of more (row-major); `numpy.save` twice into one open file
//!   writes two.
//! - NPZ: the name of an array of one dimension; the name and the element's number (`x0..x783`) for one of more. Arrays that
//!   no input reads may have other numbers of rows.

use std::io::Read;

use cloister_tensor::{ReadLimits, npy, npz};

use crate::arrays::{Array, Element, malformed, numbered, one_of_each, row_elements};
use crate::error::DataError;
use crate::limits::DataLimits;
use crate::source::Source;

/// The arrays of an NPY file.
pub(crate) fn npy_arrays(source: &Source, limits: &DataLimits) -> Result<Vec<Array>, DataError> {
    source.check_size(limits)?;
    let mut arrays: Vec<Array> = Vec::new();
    let mut at = 0_u64;
    while at < source.len() {
        let title = format!("array {}", arrays.len());
        let wrong = |problem: String| malformed(source, format!("{title}: {problem}"));
        let mut reader = source.reader(at);
        let header = npy::read_header(&mut reader).map_err(wrong)?;
        let first = reader.position();
        let Some((&rows, dims)) = header.dims.split_first() else {
            return Err(wrong("seen a single number, wanted rows".to_owned()));
        };
        let count = row_elements(source, dims, &title, limits)?;
        let columns = if dims.is_empty() {
            vec!["label".to_owned()]
        } else {
            numbered("p", count)
        };
        one_of_each(source, &arrays, &title, &columns)?;
        let (rows, stride) = (rows as u64, (count * header.dtype.size_bytes()) as u64);
        let end = rows.checked_mul(stride).and_then(|bytes| bytes.checked_add(first));
        at = match end {
            Some(end) if end <= source.len() => end,
            _ => {
                let left = source.len().saturating_sub(first);
                return Err(wrong(format!(
                    "seen {left} bytes of content, wanted {rows} rows of {stride} bytes"
                )));
            }
        };
        arrays.push(Array {
            title,
            columns,
            element: Element::Tensor(header.dtype),
            rows,
            source: source.clone(),
            first,
            stride,
        });
    }
    Ok(arrays)
}

/// The arrays of an NPZ file.
pub(crate) fn npz_arrays(source: &Source, limits: &DataLimits) -> Result<Vec<Array>, DataError> {
    source.check_size(limits)?;
    // An archive is unpacked in memory, beside the rows.
    if source.len() > limits.memory_bytes {
        return Err(DataError::TooMuch {
            file: source.name().to_owned(),
            what: "bytes of the archive",
            seen: source.len(),
            limit: limits.memory_bytes,
        });
    }
    let mut file = Vec::new();
    let read = source.reader(0).take(source.len()).read_to_end(&mut file);
    read.map_err(|error| DataError::Read {
        file: source.name().to_owned(),
        source: error,
    })?;
    let read_limits = ReadLimits {
        max_bytes: limits.memory_bytes,
        max_tensors: limits.columns,
        ..ReadLimits::default()
    };
    let tensors = npz::read(&file, &read_limits).map_err(|error| malformed(source, error.to_string()))?;
    drop(file);
    let mut arrays = Vec::with_capacity(tensors.len());
    let mut columns_left = limits.columns;
    for (name, tensor) in tensors {
        let title = format!("array {name}");
        let Some((&rows, dims)) = tensor.shape().dims().split_first() else {
            return Err(malformed(source, format!("{title}: seen a single number, wanted rows")));
        };
        let count = row_elements(source, dims, &title, limits)?;
        columns_left = columns_left.checked_sub(count).ok_or_else(|| DataError::TooMuch {
            file: source.name().to_owned(),
            what: "columns",
            seen: (limits.columns - columns_left + count) as u64,
            limit: limits.columns as u64,
        })?;
        arrays.push(Array {
            title,
            columns: if dims.is_empty() {
                vec![name.clone()]
            } else {
                numbered(&name, count)
            },
            element: Element::Tensor(tensor.dtype()),
            rows: rows as u64,
            source: Source::from_bytes(source.name(), tensor.bytes().clone()),
            first: 0,
            stride: (count * tensor.dtype().size_bytes()) as u64,
        });
    }
    Ok(arrays)
}
