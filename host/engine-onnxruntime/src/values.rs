//! Tensors of ours as the library's, and the other way round.

use std::borrow::Cow;

use bytemuck::{AnyBitPattern, NoUninit};
use bytes::Bytes;
use cloister_graph::Port;
use cloister_tensor::{Dtype, Shape, Tensor};
use half::{bf16, f16};
use ort::session::SessionInputValue;

use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef};

/// The elements of an input: where they lie, or copied to where their type may lie.
pub(crate) enum Lent<'a> {
    F32(Cow<'a, [f32]>),
    F64(Cow<'a, [f64]>),
    F16(Cow<'a, [f16]>),
    Bf16(Cow<'a, [bf16]>),
    I64(Cow<'a, [i64]>),
    I32(Cow<'a, [i32]>),
    U8(&'a [u8]),
    Bool(Vec<bool>),
}

pub(crate) fn lent(tensor: &Tensor) -> Lent<'_> {
    let bytes = tensor.bytes().as_ref();
    match tensor.dtype() {
        Dtype::F32 => Lent::F32(elements(bytes)),
        Dtype::F64 => Lent::F64(elements(bytes)),
        Dtype::F16 => Lent::F16(elements(bytes)),
        Dtype::Bf16 => Lent::Bf16(elements(bytes)),
        Dtype::I64 => Lent::I64(elements(bytes)),
        Dtype::I32 => Lent::I32(elements(bytes)),
        Dtype::U8 => Lent::U8(bytes),
        Dtype::Bool => Lent::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
    }
}

fn elements<T: AnyBitPattern + NoUninit>(bytes: &[u8]) -> Cow<'_, [T]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(elements) => Cow::Borrowed(elements),
        Err(_) => {
            let elements = bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned);
            Cow::Owned(elements.collect())
        }
    }
}

/// The library's view of an input.
pub(crate) fn view<'a>(lent: &'a Lent<'a>, shape: &[usize]) -> Result<SessionInputValue<'a>, ort::Error> {
    fn over<'a, T>(shape: &[usize], data: &'a [T]) -> Result<SessionInputValue<'a>, ort::Error>
    where
        T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
    {
        TensorRef::from_array_view((shape.to_vec(), data)).map(Into::into)
    }
    match lent {
        Lent::F32(data) => over(shape, data),
        Lent::F64(data) => over(shape, data),
        Lent::F16(data) => over(shape, data),
        Lent::Bf16(data) => over(shape, data),
        Lent::I64(data) => over(shape, data),
        Lent::I32(data) => over(shape, data),
        Lent::U8(data) => over(shape, data),
        Lent::Bool(data) => over(shape, data),
    }
}

/// One of the library's tensors, seen as bytes.
struct Plain {
    value: DynValue,
    dtype: Dtype,
}

impl AsRef<[u8]> for Plain {
    fn as_ref(&self) -> &[u8] {
        fn bytes<T: PrimitiveTensorElementType + NoUninit>(value: &DynValue) -> &[u8] {
            // Nothing, where the value is of another type: its length then tells.
            value
                .try_extract_tensor::<T>()
                .map_or(&[], |(_, data)| bytemuck::cast_slice(data))
        }
        match self.dtype {
            Dtype::F32 => bytes::<f32>(&self.value),
            Dtype::F64 => bytes::<f64>(&self.value),
            Dtype::F16 => bytes::<f16>(&self.value),
            Dtype::Bf16 => bytes::<bf16>(&self.value),
            Dtype::I64 => bytes::<i64>(&self.value),
            Dtype::I32 => bytes::<i32>(&self.value),
            Dtype::U8 => bytes::<u8>(&self.value),
            Dtype::Bool => bytes::<bool>(&self.value),
        }
    }
}

/// An output as ours, in the library's memory; copied where that is an input's, which lives for the run alone.
pub(crate) fn taken(port: &Port, value: DynValue, inputs: &[&Tensor]) -> Result<Tensor, String> {
    let seen = value.dtype().tensor_type().and_then(dtype);
    if seen != Some(port.dtype) {
        return Err(format!("is {}, wanted {}", value.dtype(), port.dtype));
    }
    let shape = Shape::new(&port.shape).map_err(|error| error.to_string())?;
    let plain = Plain {
        value,
        dtype: port.dtype,
    };
    let place = plain.as_ref().as_ptr_range();
    let is_input = |input: &&Tensor| {
        let of = input.bytes().as_ptr_range();
        place.start < of.end && of.start < place.end
    };
    let bytes = if inputs.iter().any(is_input) {
        Bytes::copy_from_slice(plain.as_ref())
    } else {
        Bytes::from_owner(plain)
    };
    Tensor::new(port.dtype, shape, bytes).map_err(|error| error.to_string())
}

/// Our name of the library's type, for those that we have.
pub(crate) const fn dtype(seen: TensorElementType) -> Option<Dtype> {
    Some(match seen {
        TensorElementType::Float32 => Dtype::F32,
        TensorElementType::Float64 => Dtype::F64,
        TensorElementType::Float16 => Dtype::F16,
        TensorElementType::Bfloat16 => Dtype::Bf16,
        TensorElementType::Int64 => Dtype::I64,
        TensorElementType::Int32 => Dtype::I32,
        TensorElementType::Uint8 => Dtype::U8,
        TensorElementType::Bool => Dtype::Bool,
        _ => return None,
    })
}
