//! The tensor itself.

use std::fmt;

use bytes::Bytes;

use crate::{Dtype, Shape, TensorError};

/// Elements of a type in a shape, as little-endian bytes that are shared rather than copied when a tensor is cloned.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: Dtype,
    shape: Shape,
    bytes: Bytes,
}

impl Tensor {
    /// Puts a tensor together.
    ///
    /// # Errors
    /// The length is not what the type and shape take, or a byte of a boolean is neither 0 nor 1.
    pub fn new(dtype: Dtype, shape: Shape, bytes: Bytes) -> Result<Self, TensorError> {
        // No overflow: MAX_ELEMENTS is 2^40 and an element takes 8 bytes at most.
        let wanted = shape.elements() * dtype.size_bytes();
        if bytes.len() != wanted {
            return Err(TensorError::Length {
                dtype,
                shape,
                seen: bytes.len(),
                wanted,
            });
        }
        if dtype == Dtype::Bool
            && let Some(at) = bytes.iter().position(|&byte| byte > 1)
        {
            return Err(TensorError::Boolean { at, seen: bytes[at] });
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// A tensor of f32 elements; the vector is taken over, not copied.
    ///
    /// # Errors
    /// The shape is out of bounds or has another number of elements.
    pub fn from_f32(dims: &[usize], values: Vec<f32>) -> Result<Self, TensorError> {
        Self::new(Dtype::F32, Shape::new(dims)?, Bytes::from_owner(Elements(values)))
    }

    /// A tensor of f64 elements.
    ///
    /// # Errors
    /// As [`Tensor::from_f32`].
    pub fn from_f64(dims: &[usize], values: Vec<f64>) -> Result<Self, TensorError> {
        Self::new(Dtype::F64, Shape::new(dims)?, Bytes::from_owner(Elements(values)))
    }

    /// A tensor of i64 elements.
    ///
    /// # Errors
    /// As [`Tensor::from_f32`].
    pub fn from_i64(dims: &[usize], values: Vec<i64>) -> Result<Self, TensorError> {
        Self::new(Dtype::I64, Shape::new(dims)?, Bytes::from_owner(Elements(values)))
    }

    /// One f32, of shape `[1]`.
    pub fn scalar_f32(value: f32) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: Shape::one(),
            bytes: Bytes::copy_from_slice(&value.to_le_bytes()),
        }
    }

    /// One i64, of shape `[1]`.
    pub fn scalar_i64(value: i64) -> Self {
        Self {
            dtype: Dtype::I64,
            shape: Shape::one(),
            bytes: Bytes::copy_from_slice(&value.to_le_bytes()),
        }
    }

    /// A tensor of zeros.
    pub fn zeros(dtype: Dtype, shape: Shape) -> Self {
        let bytes = Bytes::from(vec![0; shape.elements() * dtype.size_bytes()]);
        Self { dtype, shape, bytes }
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The elements' bytes, row by row, little-endian.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The elements' bytes, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The same elements in another shape.
    ///
    /// # Errors
    /// The other shape has another number of elements.
    pub fn reshaped(self, shape: Shape) -> Result<Self, TensorError> {
        Self::new(self.dtype, shape, self.bytes)
    }

    /// The f32 elements in place; `None` for another type or for bytes that do not lie on a multiple of 4.
    pub fn as_f32(&self) -> Option<&[f32]> {
        (self.dtype == Dtype::F32)
            .then(|| bytemuck::try_cast_slice(&self.bytes).ok())
            .flatten()
    }

    /// The elements as f32, widening F16 and BF16.
    ///
    /// # Errors
    /// The elements are of another type.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>, TensorError> {
        match self.dtype {
            Dtype::F32 => Ok(self.chunks().map(f32::from_le_bytes).collect()),
            Dtype::F16 => Ok(self
                .chunks()
                .map(|two| half::f16::from_le_bytes(two).to_f32())
                .collect()),
            Dtype::Bf16 => Ok(self
                .chunks()
                .map(|two| half::bf16::from_le_bytes(two).to_f32())
                .collect()),
            seen => Err(TensorError::Type {
                seen,
                wanted: "F32, F16 or BF16",
            }),
        }
    }

    /// The elements as f64, from any type.
    pub fn to_f64_vec(&self) -> Vec<f64> {
        match self.dtype {
            Dtype::F64 => self.chunks().map(f64::from_le_bytes).collect(),
            Dtype::F32 => self.chunks().map(|four| f64::from(f32::from_le_bytes(four))).collect(),
            Dtype::F16 => self
                .chunks()
                .map(|two| half::f16::from_le_bytes(two).to_f64())
                .collect(),
            Dtype::Bf16 => self
                .chunks()
                .map(|two| half::bf16::from_le_bytes(two).to_f64())
                .collect(),
            Dtype::I64 => self.chunks().map(|eight| i64::from_le_bytes(eight) as f64).collect(),
            Dtype::I32 => self.chunks().map(|four| f64::from(i32::from_le_bytes(four))).collect(),
            Dtype::U8 | Dtype::Bool => self.bytes.iter().map(|&byte| f64::from(byte)).collect(),
        }
    }

    /// The elements as i64.
    ///
    /// # Errors
    /// The elements are not integers.
    pub fn to_i64_vec(&self) -> Result<Vec<i64>, TensorError> {
        match self.dtype {
            Dtype::I64 => Ok(self.chunks().map(i64::from_le_bytes).collect()),
            Dtype::I32 => Ok(self.chunks().map(|four| i64::from(i32::from_le_bytes(four))).collect()),
            Dtype::U8 | Dtype::Bool => Ok(self.bytes.iter().map(|&byte| i64::from(byte)).collect()),
            seen => Err(TensorError::Type {
                seen,
                wanted: "an integer type",
            }),
        }
    }

    /// The first element as f64; `None` if there is none.
    pub fn first_f64(&self) -> Option<f64> {
        let size = self.dtype.size_bytes();
        let bytes = (self.bytes.len() >= size).then(|| self.bytes.slice(..size))?;
        Self {
            dtype: self.dtype,
            shape: Shape::one(),
            bytes,
        }
        .to_f64_vec()
        .first()
        .copied()
    }

    /// The index of the first element that is NaN or infinite; `None` if all are finite (integers always are).
    pub fn first_not_finite(&self) -> Option<usize> {
        if let Some(values) = self.as_f32() {
            return values.iter().position(|value| !value.is_finite());
        }
        if !self.dtype.is_float() {
            return None;
        }
        self.to_f64_vec().iter().position(|value| !value.is_finite())
    }

    fn chunks<const N: usize>(&self) -> impl Iterator<Item = [u8; N]> {
        self.bytes.as_chunks::<N>().0.iter().copied()
    }
}

impl fmt::Debug for Tensor {
    // Values stay out of logs: a tensor may hold somebody's rows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {})", self.dtype, self.shape)
    }
}

/// A vector of numbers, seen as bytes: keeps its allocation and with it its alignment.
struct Elements<T>(Vec<T>);

impl<T: bytemuck::NoUninit> AsRef<[u8]> for Elements<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        let shape = Shape::new(&[2, 3]).unwrap();
        assert!(Tensor::new(Dtype::F32, shape.clone(), Bytes::from(vec![0; 24])).is_ok());
        for bad in [0, 1, 23, 25, 48] {
            let error = Tensor::new(Dtype::F32, shape.clone(), Bytes::from(vec![0; bad])).unwrap_err();
            assert!(error.to_string().contains("takes 24 bytes"), "{error}");
        }
        assert!(Tensor::from_f32(&[2], vec![1.0]).is_err());
    }

    #[test]
    fn booleans_are_zero_or_one() {
        let shape = Shape::new(&[3]).unwrap();
        assert!(Tensor::new(Dtype::Bool, shape.clone(), Bytes::from_static(&[0, 1, 1])).is_ok());
        let error = Tensor::new(Dtype::Bool, shape, Bytes::from_static(&[0, 1, 2])).unwrap_err();
        assert_eq!(error.to_string(), "element 2 of a BOOL tensor is 2: wanted 0 or 1");
    }

    #[test]
    fn values_come_back() {
        let tensor = Tensor::from_f32(&[2, 2], vec![1.0, -2.5, 0.0, 4.0]).unwrap();
        assert_eq!(tensor.as_f32().unwrap(), [1.0, -2.5, 0.0, 4.0]);
        assert_eq!(tensor.to_f32_vec().unwrap(), [1.0, -2.5, 0.0, 4.0]);
        assert_eq!(tensor.first_f64(), Some(1.0));
        assert!(tensor.to_i64_vec().is_err());
        assert_eq!(Tensor::scalar_i64(-7).to_i64_vec().unwrap(), [-7]);
        assert_eq!(Tensor::scalar_f32(0.5).shape().dims(), [1]);
        let half = Tensor::new(
            Dtype::Bf16,
            Shape::new(&[1]).unwrap(),
            Bytes::from_static(&[0x80, 0x3f]),
        )
        .unwrap();
        assert_eq!(half.to_f32_vec().unwrap(), [1.0]);
        assert_eq!(Tensor::from_f32(&[0], vec![]).unwrap().first_f64(), None);
    }

    #[test]
    fn clones_share_bytes() {
        let tensor = Tensor::from_f32(&[2], vec![1.0, 2.0]).unwrap();
        assert_eq!(tensor.clone().bytes().as_ptr(), tensor.bytes().as_ptr());
    }

    #[test]
    fn unaligned_bytes_read_the_same() {
        let mut bytes = vec![0u8];
        bytes.extend(1.5f32.to_le_bytes());
        bytes.extend(f32::NAN.to_le_bytes());
        let tensor = Tensor::new(Dtype::F32, Shape::new(&[2]).unwrap(), Bytes::from(bytes).slice(1..)).unwrap();
        assert_eq!(tensor.to_f32_vec().unwrap()[0], 1.5);
        assert_eq!(tensor.first_not_finite(), Some(1));
    }

    #[test]
    fn debug_shows_no_values() {
        assert_eq!(format!("{:?}", Tensor::scalar_f32(42.0)), "Tensor(F32 [1])");
    }
}
