//! The augmentation of the reference workload: a random window, flip, light and contrast, then mean 0 and variance 1 a picture. For an
//! evaluation (`augment = false`) the window in the middle, standardised alike.

use cloister_guest::transform_prelude::*;

cloister_guest::settings! {
    struct Settings {
        /// The dataset's input with the pictures, 0 to 255, planes first; what is made has the same name.
        input: String = "x",
        /// Height and width of what is made.
        size: u32 = 24,
        /// Random window, flip, light and contrast; without: the window in the middle, for evaluations.
        augment: bool = true,
        /// Whether every other picture is turned from left to right.
        flip: bool = true,
        /// The most that is added to, or taken from, each pixel.
        brightness: f64 = 63.0,
        /// The smallest factor of contrast.
        contrast_low: f64 = 0.2,
        /// The largest factor of contrast.
        contrast_high: f64 = 1.8,
    }
}

fn transform(batch: &Batch, random: &mut Random) -> Result<Made> {
    let settings = Settings::read()?;
    let images = batch.images(&settings.input)?;
    let (from, side) = (images.size(), settings.size as usize);
    if side == 0 || side > from.height.min(from.width) {
        return Err(Failure::setting(format!(
            "size = {side}: wanted 1 to {}, pictures are {} x {}",
            from.height.min(from.width),
            from.height,
            from.width
        )));
    }
    let made = Size {
        height: side,
        width: side,
        ..from
    };
    let (down, right) = ((from.height - side) as u32, (from.width - side) as u32);
    let light = settings.brightness as f32;
    let (low, high) = (settings.contrast_low as f32, settings.contrast_high as f32);
    Made::new().images(&settings.input, batch.rows(), made, |row, image| {
        if settings.augment {
            let (top, left) = (random.below(down + 1), random.below(right + 1));
            images.window(row, image, top as i32, left as i32, 0.0);
            if random.chance(0.5) && settings.flip {
                image.flip();
            }
            image.brightness(random.between(-light, light));
            image.contrast(random.between(low, high));
        } else {
            images.window(row, image, (down / 2) as i32, (right / 2) as i32, 0.0);
        }
        image.standardise();
        Ok(())
    })
}

cloister_guest::export_transform!(transform);
