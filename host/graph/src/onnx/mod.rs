//! ONNX files: reading within limits, writing canonically.

mod read;
mod wire;
mod write;

pub(crate) use read::read;
pub(crate) use write::{Batch, write};

use cloister_tensor::Dtype;

/// Versions of the default operator set that can be read: those whose definitions of every operator in [`Operator`](crate::Operator) were
/// compared with what is computed here. 25 to 28 (ONNX 1.23) bring types that no tensor here has, windows of `Attention` and the stash of
/// `Range`, which are refused as attributes, and the mode of `SpaceToDepth`.
pub(crate) const OPSETS: std::ops::RangeInclusive<i64> = 13..=28;
/// Version of the default operator set that is written: what OpenVINO and tract both read.
pub(crate) const WRITTEN_OPSET: i64 = 17;
/// Version of the file format that is written.
pub(crate) const WRITTEN_IR_VERSION: i64 = 8;

const DTYPES: [(i64, Dtype); 8] = [
    (1, Dtype::F32),
    (2, Dtype::U8),
    (6, Dtype::I32),
    (7, Dtype::I64),
    (9, Dtype::Bool),
    (10, Dtype::F16),
    (11, Dtype::F64),
    (16, Dtype::Bf16),
];

/// The element type of an ONNX `TensorProto.DataType`.
pub(crate) fn dtype_from_onnx(number: i64) -> Option<Dtype> {
    DTYPES.iter().find(|entry| entry.0 == number).map(|entry| entry.1)
}

/// The ONNX `TensorProto.DataType` of an element type.
pub(crate) fn dtype_to_onnx(dtype: Dtype) -> i64 {
    DTYPES.iter().find(|entry| entry.1 == dtype).map_or(0, |entry| entry.0)
}
