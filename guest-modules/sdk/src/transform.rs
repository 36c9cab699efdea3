//! What a transform works with: the rows of a batch, and a seed.

use crate::bindings::transform::exports::cloister::federation::transforming as world;
use crate::failure::log_panics;
use crate::image::{Image, Size};
use crate::random::Random;
use crate::{Failure, Result};

pub use world::{Array, Elements};

/// Runs a transform's function; [`export_transform!`](crate::export_transform) calls it.
pub fn call(batch: world::Batch, transform: impl FnOnce(&Batch, &mut Random) -> Result<Made>) -> Result<Vec<Array>> {
    log_panics();
    let mut random = Random::new(batch.seed);
    transform(&Batch { inner: batch }, &mut random).map(|made| made.arrays)
}

/// Some rows of a dataset, as they were read.
pub struct Batch {
    inner: world::Batch,
}

impl Batch {
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.inner.rows as usize
    }

    /// The input of this name.
    ///
    /// # Errors
    /// The dataset has no such input.
    pub fn array(&self, name: &str) -> Result<&Array> {
        self.inner
            .arrays
            .iter()
            .find(|array| array.name == name)
            .ok_or_else(|| {
                let known: Vec<_> = self.inner.arrays.iter().map(|array| array.name.as_str()).collect();
                Failure::dataset(format!("no input `{name}`; the dataset has {}", known.join(", ")))
            })
    }

    /// The input of this name as images, planes first: rows of the shape `[planes, height, width]`, bytes or floats.
    ///
    /// # Errors
    /// There is no such input, or it has another shape or type.
    pub fn images(&self, name: &str) -> Result<Images<'_>> {
        let array = self.array(name)?;
        let wrong = |seen: String| {
            Failure::dataset(format!(
                "input `{name}`: seen {seen}, wanted bytes or floats of shape [rows, planes, height, width]"
            ))
        };
        let [_, planes, height, width] = array.shape[..] else {
            return Err(wrong(format!("the shape {:?}", array.shape)));
        };
        let size = Size {
            planes: planes as usize,
            height: height as usize,
            width: width as usize,
        };
        match &array.elements {
            Elements::Bytes(pixels) => Ok(Images {
                size,
                pixels: Pixels::Bytes(pixels),
            }),
            Elements::Floats(pixels) => Ok(Images {
                size,
                pixels: Pixels::Floats(pixels),
            }),
            Elements::Integers(_) => Err(wrong("integers".to_owned())),
        }
    }
}

/// Images as they were read.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    size: Size,
    pixels: Pixels<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Pixels<'a> {
    Bytes(&'a [u8]),
    Floats(&'a [f32]),
}

impl Images<'_> {
    /// Size of each.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Takes the window from `top` and `left` on of the image of a row into another ([`Image::take`]).
    ///
    /// # Panics
    /// There is no such row, or the other image has other planes.
    pub fn window(&self, row: usize, into: &mut Image<'_>, top: i32, left: i32, fill: f32) {
        let range = row * self.size.elements()..(row + 1) * self.size.elements();
        match self.pixels {
            Pixels::Bytes(pixels) => into.take(&pixels[range], self.size, top, left, fill),
            Pixels::Floats(pixels) => into.take(&pixels[range], self.size, top, left, fill),
        }
    }
}

/// What a transform makes: some inputs, for all rows of the batch.
#[derive(Default)]
pub struct Made {
    arrays: Vec<Array>,
}

impl Made {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an input of any type; `shape` begins with the rows.
    #[must_use]
    pub fn array(mut self, name: &str, shape: Vec<u32>, elements: Elements) -> Self {
        self.arrays.push(Array {
            name: name.to_owned(),
            shape,
            elements,
        });
        self
    }

    /// Adds an input of images, one a row. `make` fills each of them, in the order of the rows; they start as zeros.
    ///
    /// # Errors
    /// That of `make`.
    pub fn images(
        self,
        name: &str,
        rows: usize,
        size: Size,
        mut make: impl FnMut(usize, &mut Image<'_>) -> Result<()>,
    ) -> Result<Self> {
        let mut pixels = vec![0.0; rows * size.elements()];
        for (row, pixels) in pixels.chunks_exact_mut(size.elements().max(1)).enumerate() {
            make(row, &mut Image::new(size, pixels))?;
        }
        let shape = [rows, size.planes, size.height, size.width];
        Ok(self.array(
            name,
            shape.iter().map(|&dim| dim as u32).collect(),
            Elements::Floats(pixels),
        ))
    }
}
