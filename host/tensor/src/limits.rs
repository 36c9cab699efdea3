//! Limits on files of tensors.

use crate::TensorError;

/// Bytes of a tensor's name in a file at most.
pub const MAX_NAME_BYTES: usize = 512;

/// What a reader of a file of tensors accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Bytes of all tensors together, unpacked. Default 16 GiB.
    pub max_bytes: u64,
    /// Number of tensors. Default 65,536.
    pub max_tensors: usize,
    /// Bytes of the header (safetensors). Default 16 MiB.
    pub max_header_bytes: usize,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            max_bytes: 16 << 30,
            max_tensors: 65_536,
            max_header_bytes: 16 << 20,
        }
    }
}

/// Refuses `seen` above `limit`.
pub(crate) fn at_most(format: &'static str, what: &'static str, seen: u64, limit: u64) -> Result<(), TensorError> {
    if seen > limit {
        Err(TensorError::Limit {
            format,
            what,
            seen,
            limit,
        })
    } else {
        Ok(())
    }
}

/// Refuses names that are empty or too long.
pub(crate) fn check_name(format: &'static str, name: &str) -> Result<(), TensorError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(TensorError::Format {
            format,
            place: "tensor names".into(),
            reason: format!("a name of {} bytes, wanted 1 to {MAX_NAME_BYTES}", name.len()),
        });
    }
    Ok(())
}

/// A name cut down to what an error message may carry.
pub(crate) fn shown(name: &str) -> String {
    if name.len() <= 80 {
        format!("`{name}`")
    } else {
        format!("`{}...`", name.chars().take(60).collect::<String>())
    }
}
