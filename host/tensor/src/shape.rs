//! Shapes, bounded at the door.

use std::fmt;

use crate::TensorError;

/// Dimensions of a shape at most.
pub const MAX_RANK: usize = 8;

/// Elements of a shape at most (2^40).
pub const MAX_ELEMENTS: usize = 1 << 40;

/// The dimensions of a tensor, outermost first: at most [`MAX_RANK`], of at most [`MAX_ELEMENTS`] elements together.
/// A shape without dimensions is a scalar of one element; a dimension may be 0.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shape {
    rank: u8,
    dims: [usize; MAX_RANK],
}

impl Shape {
    /// Checks dimensions.
    ///
    /// # Errors
    /// More than [`MAX_RANK`] dimensions, or a product above [`MAX_ELEMENTS`] (dimensions of 0 are left out of that
    /// product, so that `[0, huge]` is refused too).
    pub fn new(dims: &[usize]) -> Result<Self, TensorError> {
        let refuse = |wanted: String| TensorError::Shape {
            dims: shorten(dims),
            wanted,
        };
        if dims.len() > MAX_RANK {
            return Err(refuse(format!("at most {MAX_RANK} dimensions")));
        }
        let mut product = 1usize;
        for &dim in dims {
            product = product
                .checked_mul(dim.max(1))
                .filter(|&product| product <= MAX_ELEMENTS)
                .ok_or_else(|| refuse(format!("at most {MAX_ELEMENTS} elements")))?;
        }
        let mut kept = [0; MAX_RANK];
        kept[..dims.len()].copy_from_slice(dims);
        Ok(Self {
            rank: dims.len() as u8,
            dims: kept,
        })
    }

    /// The shape `[1]`.
    pub const fn one() -> Self {
        let mut dims = [0; MAX_RANK];
        dims[0] = 1;
        Self { rank: 1, dims }
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..usize::from(self.rank)]
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// The number of elements: the product of the dimensions, 1 without any.
    pub fn elements(&self) -> usize {
        self.dims().iter().product()
    }
}

fn shorten(dims: &[usize]) -> String {
    let shown: Vec<String> = dims.iter().take(MAX_RANK + 1).map(ToString::to_string).collect();
    let more = if dims.len() > shown.len() { ", ..." } else { "" };
    format!("[{}{more}]", shown.join(", "))
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<&[usize]> for Shape {
    type Error = TensorError;

    fn try_from(dims: &[usize]) -> Result<Self, TensorError> {
        Self::new(dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        assert_eq!(Shape::new(&[]).unwrap().elements(), 1);
        assert_eq!(Shape::new(&[2, 0, 3]).unwrap().elements(), 0);
        assert_eq!(Shape::new(&[2, 3]).unwrap().to_string(), "[2, 3]");
        assert!(Shape::new(&[1; 8]).is_ok());
        assert!(Shape::new(&[1; 9]).is_err());
        assert!(Shape::new(&[1 << 40]).is_ok());
        assert!(Shape::new(&[1 << 40, 2]).is_err());
        assert!(Shape::new(&[usize::MAX, usize::MAX]).is_err());
        assert!(Shape::new(&[0, usize::MAX, 2]).is_err());
    }
}
