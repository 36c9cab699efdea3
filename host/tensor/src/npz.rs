//! NPZ files: a ZIP archive of NumPy arrays, as `numpy.savez` and `numpy.savez_compressed` write them.

use std::io::{Cursor, Read, Write};

use bytes::Bytes;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use crate::limits::{at_most, check_name, shown};
use crate::{ReadLimits, Shape, Tensor, TensorError, TensorMap, npy};

const FORMAT: &str = "npz";

/// Deflate can't pack better than this, and no array says honestly that it did.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Above this, an archive needs 64-bit sizes.
const ZIP64_FROM: usize = u32::MAX as usize - 65_536;

/// Reads an archive.
///
/// # Errors
/// It is not well formed, holds a type that is not a [`crate::Dtype`] (pickled objects among them), or is beyond
/// `limits`: a small archive that unpacks without end stops at the size that its headers name.
pub fn read(file: &[u8], limits: &ReadLimits) -> Result<TensorMap, TensorError> {
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(|error| bad("archive", error.to_string()))?;
    at_most(FORMAT, "tensors", archive.len() as u64, limits.max_tensors as u64)?;
    if archive.has_duplicate_names() {
        return Err(bad("archive", "two arrays of the same name"));
    }
    let mut tensors = TensorMap::new();
    let mut left = limits.max_bytes;
    for index in 0..archive.len() {
        let mut entry = archive
            .by_index(index)
            .map_err(|error| bad(format!("entry {index}"), error.to_string()))?;
        let file_name = entry
            .name()
            .map_err(|error| bad(format!("entry {index}"), error.to_string()))?
            .into_owned();
        let name = file_name.strip_suffix(".npy").unwrap_or(&file_name).to_owned();
        check_name(FORMAT, &name)?;
        let place = |reason: String| bad(shown(&name), reason);
        let packed = entry.compressed_size();
        let header = npy::read_header(&mut entry).map_err(place)?;
        let shape = Shape::new(&header.dims).map_err(|error| place(error.to_string()))?;
        let length = shape.elements() * header.dtype.size_bytes();
        at_most(FORMAT, "bytes of tensors", length as u64, left)?;
        left -= length as u64;
        // Before memory is asked for: can the packed bytes hold what the header promises?
        if length as u64 > packed.saturating_mul(MAX_DEFLATE_RATIO) {
            return Err(place(format!("{length} bytes promised by {packed} packed ones")));
        }
        let mut data = vec![0; length];
        entry
            .read_exact(&mut data)
            .map_err(|error| place(format!("its data ends early: {error}")))?;
        // The checksum is compared when the end is reached.
        match entry.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => return Err(place("bytes after its data".into())),
            Err(error) => return Err(place(error.to_string())),
        }
        let tensor = Tensor::new(header.dtype, shape, Bytes::from(data)).map_err(|error| place(error.to_string()))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(place("an array of that name twice".into()));
        }
    }
    Ok(tensors)
}

/// Writes an archive, not packed; the bytes depend on nothing but `tensors`.
///
/// # Errors
/// A tensor is BF16, which NumPy does not have, or a name is empty or longer than [`crate::MAX_NAME_BYTES`].
pub fn write(tensors: &TensorMap) -> Result<Vec<u8>, TensorError> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, tensor) in tensors {
        check_name(FORMAT, name)?;
        let header = npy::header(tensor.dtype(), tensor.shape().dims()).ok_or_else(|| {
            bad(
                shown(name),
                format!("NumPy has no type for {}: write safetensors", tensor.dtype()),
            )
        })?;
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(tensor.bytes().len() > ZIP64_FROM);
        archive
            .start_file(format!("{name}.npy"), options)
            .map_err(|error| TensorError::Write(error.into()))?;
        archive.write_all(&header).map_err(TensorError::Write)?;
        archive.write_all(tensor.bytes()).map_err(TensorError::Write)?;
    }
    let file = archive.finish().map_err(|error| TensorError::Write(error.into()))?;
    Ok(file.into_inner())
}

fn bad(place: impl Into<String>, reason: impl Into<String>) -> TensorError {
    TensorError::Format {
        format: FORMAT,
        place: place.into(),
        reason: reason.into(),
    }
}
