//! Images as rows of a dataset: planes first (red, green, blue), each plane row by row.
//!
//! Brightness, contrast and standardisation are those of TensorFlow's `tf.image` on f32. Loops go by whole planes, as in
//! [`vector`](crate::vector), so that they compile to SIMD.

use crate::vector;

/// Size of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// 3 for colours, 1 for grey.
    pub planes: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
}

impl Size {
    /// Numbers of an image.
    pub fn elements(self) -> usize {
        self.planes * self.height * self.width
    }

    fn plane(self) -> usize {
        self.height * self.width
    }
}

/// A type that pixels are read in.
pub trait Pixel: Copy {
    /// The pixel as a number.
    fn to_f32(self) -> f32;
}

impl Pixel for u8 {
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

impl Pixel for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}

/// An image that is worked on.
#[derive(Debug)]
pub struct Image<'a> {
    size: Size,
    pixels: &'a mut [f32],
}

impl<'a> Image<'a> {
    /// An image over its pixels.
    ///
    /// # Panics
    /// There are more or fewer pixels than the size says.
    pub fn new(size: Size, pixels: &'a mut [f32]) -> Self {
        assert_eq!(pixels.len(), size.elements(), "pixels of an image of another size");
        Self { size, pixels }
    }

    /// Its pixels.
    pub fn pixels(&mut self) -> &mut [f32] {
        self.pixels
    }

    /// Takes its pixels out of `from`, an image of as many planes, from row `top` and column `left` on: a crop. Where it reaches
    /// beyond `from` (also above 0, with a negative `top` or `left`) stands `fill`: padding.
    ///
    /// # Panics
    /// `from` has other planes or another number of pixels than its size says.
    pub fn take(&mut self, from: &[impl Pixel], size: Size, top: i32, left: i32, fill: f32) {
        assert_eq!(from.len(), size.elements(), "pixels of an image of another size");
        assert_eq!(size.planes, self.size.planes, "an image of other planes");
        let (own, other) = (self.size, size);
        if own.plane() == 0 {
            return;
        }
        // Columns of the window that lie within `from`.
        let first = usize::try_from(-i64::from(left)).unwrap_or(0).min(own.width);
        let end = usize::try_from(other.width as i64 - i64::from(left)).unwrap_or(0);
        let end = end.clamp(first, own.width.max(first));
        for plane in 0..own.planes {
            let target = &mut self.pixels[plane * own.plane()..(plane + 1) * own.plane()];
            for (at, target) in target.chunks_exact_mut(own.width).enumerate() {
                let row = usize::try_from(at as i64 + i64::from(top))
                    .ok()
                    .filter(|&row| row < other.height);
                let Some(row) = row.filter(|_| first < end) else {
                    target.fill(fill);
                    continue;
                };
                let start = plane * other.plane() + row * other.width + (first as i64 + i64::from(left)) as usize;
                let source = &from[start..start + (end - first)];
                target[..first].fill(fill);
                for (target, source) in target[first..end].iter_mut().zip(source) {
                    *target = source.to_f32();
                }
                target[end..].fill(fill);
            }
        }
    }

    /// Turns it from left to right.
    pub fn flip(&mut self) {
        if self.size.width > 0 {
            self.pixels.chunks_exact_mut(self.size.width).for_each(<[f32]>::reverse);
        }
    }

    /// Adds `delta` to each pixel.
    pub fn brightness(&mut self, delta: f32) {
        vector::add(delta, self.pixels);
    }

    /// Moves each pixel away from its plane's mean: `(pixel - mean) * factor + mean`.
    pub fn contrast(&mut self, factor: f32) {
        if self.size.plane() == 0 {
            return;
        }
        for plane in self.pixels.chunks_exact_mut(self.size.plane()) {
            let mean = vector::sum(plane) / plane.len() as f32;
            vector::add(-mean, plane);
            vector::scale(factor, plane);
            vector::add(mean, plane);
        }
    }

    /// Mean 0 and variance 1: `(pixel - mean) / max(deviation, 1 / sqrt(count))`, so that an image of one colour becomes zeros.
    pub fn standardise(&mut self) {
        let count = self.pixels.len() as f32;
        if count == 0.0 {
            return;
        }
        let mean = vector::sum(self.pixels) / count;
        vector::add(-mean, self.pixels);
        let deviation = (vector::sum_of_squares(self.pixels) / count).sqrt();
        vector::scale(1.0 / deviation.max(1.0 / count.sqrt()), self.pixels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        planes: 3,
        height: 7,
        width: 5,
    };

    fn sample() -> Vec<u8> {
        (0..SIZE.elements()).map(|at| (at * 37 % 256) as u8).collect()
    }

    /// What stands at a place, pixel by pixel, without a thought for speed.
    fn naive(from: &[u8], plane: usize, row: i64, column: i64, fill: f32) -> f32 {
        let inside = (0..SIZE.height as i64).contains(&row) && (0..SIZE.width as i64).contains(&column);
        if inside {
            f32::from(from[(plane * SIZE.height + row as usize) * SIZE.width + column as usize])
        } else {
            fill
        }
    }

    #[test]
    fn a_window_is_a_crop_and_beyond_the_image_padding() {
        let from = sample();
        let floats: Vec<f32> = from.iter().map(|&pixel| f32::from(pixel)).collect();
        for (height, width) in [(7, 5), (3, 2), (1, 1), (11, 9)] {
            let size = Size {
                planes: 3,
                height,
                width,
            };
            for (top, left) in [
                (0, 0),
                (2, 1),
                (-2, -3),
                (5, 4),
                (-20, 0),
                (0, 30),
                (i32::MIN, i32::MAX),
            ] {
                let mut pixels = vec![9.5; size.elements()];
                Image::new(size, &mut pixels).take(&from, SIZE, top, left, -1.0);
                let mut again = vec![0.0; size.elements()];
                Image::new(size, &mut again).take(&floats, SIZE, top, left, -1.0);
                assert_eq!(pixels, again, "of bytes and of floats");
                for plane in 0..3 {
                    for row in 0..height {
                        for column in 0..width {
                            let seen = pixels[(plane * height + row) * width + column];
                            let (row, column) = (row as i64 + i64::from(top), column as i64 + i64::from(left));
                            assert_eq!(seen, naive(&from, plane, row, column, -1.0), "{size:?} {top} {left}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn two_flips_are_none() {
        let start: Vec<f32> = sample().into_iter().map(f32::from).collect();
        let mut pixels = start.clone();
        Image::new(SIZE, &mut pixels).flip();
        assert_eq!((pixels[0], pixels[4]), (start[4], start[0]));
        assert_ne!(pixels, start);
        Image::new(SIZE, &mut pixels).flip();
        assert_eq!(pixels, start);
    }

    #[test]
    fn light_contrast_and_standardisation_are_those_of_the_formulas() {
        for size in [
            SIZE,
            Size {
                planes: 3,
                height: 24,
                width: 24,
            },
            Size {
                planes: 1,
                height: 1,
                width: 1,
            },
        ] {
            let start: Vec<f32> = (0..size.elements()).map(|at| (at * 37 % 256) as f32).collect();
            let (delta, factor) = (-17.25_f32, 1.7_f32);
            let mut pixels = start.clone();
            let mut image = Image::new(size, &mut pixels);
            image.brightness(delta);
            image.contrast(factor);
            let wanted: Vec<f64> = start.iter().map(|&pixel| f64::from(pixel) + f64::from(delta)).collect();
            let wanted: Vec<f64> = wanted
                .chunks(size.plane())
                .flat_map(|plane| {
                    let mean = plane.iter().sum::<f64>() / plane.len() as f64;
                    plane.iter().map(move |pixel| (pixel - mean) * f64::from(factor) + mean)
                })
                .collect();
            near(image.pixels(), &wanted, 1e-3);
            image.standardise();
            let count = wanted.len() as f64;
            let mean = wanted.iter().sum::<f64>() / count;
            let variance = wanted.iter().map(|pixel| (pixel - mean).powi(2)).sum::<f64>() / count;
            let deviation = variance.sqrt().max(1.0 / count.sqrt());
            let wanted: Vec<f64> = wanted.iter().map(|pixel| (pixel - mean) / deviation).collect();
            near(image.pixels(), &wanted, 1e-4);
        }
    }

    fn near(seen: &[f32], wanted: &[f64], within: f64) {
        for (at, (seen, wanted)) in seen.iter().zip(wanted).enumerate() {
            assert!((f64::from(*seen) - wanted).abs() < within, "{at}: {seen} {wanted}");
        }
    }

    #[test]
    fn an_image_of_one_colour_becomes_zeros_and_none_stays_none() {
        let mut pixels = vec![200.0; SIZE.elements()];
        Image::new(SIZE, &mut pixels).standardise();
        assert!(pixels.iter().all(|&pixel| pixel == 0.0));
        let mut none = Image::new(
            Size {
                planes: 3,
                height: 0,
                width: 4,
            },
            &mut [],
        );
        none.take(&sample(), SIZE, 0, 0, 0.0);
        none.flip();
        none.contrast(2.0);
        none.standardise();
    }
}
