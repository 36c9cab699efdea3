//! Images as rows of numbers: JPEG and PNG, planes first (red, green, blue; one plane for grey images), each row by row.
//!
//! The JPEG decoder is used without SIMD and has no unsafe code then: every machine sees the same pixels and commits to the same rows. PNG
//! leaves no choice.

use std::io::Cursor;

use png::{ColorType, Transformations};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// Most bytes of one image's file.
pub(crate) const MAX_IMAGE_BYTES: usize = 16 << 20;
/// Scans of a progressive JPEG image; honest ones have about ten.
const MAX_SCANS: usize = 64;
/// Bytes that the PNG decoder takes beside the pixels.
const PNG_EXTRA_BYTES: usize = 1 << 20;

/// The size that all images of a column or an archive have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageSize {
    pub(crate) width: usize,
    pub(crate) height: usize,
    /// 3, or 1 for grey.
    pub(crate) planes: usize,
}

impl ImageSize {
    /// Numbers of one image.
    pub(crate) fn elements(self) -> usize {
        self.width.saturating_mul(self.height).saturating_mul(self.planes)
    }

    /// What is wanted of an image, for an error.
    pub(crate) fn wanted(self) -> String {
        let Self { width, height, planes } = self;
        format!("a JPEG or PNG image of {width} x {height} with {planes} planes, as the first one")
    }
}

/// The pixels of an image.
pub(crate) struct Pixels {
    size: ImageSize,
    /// Pixel by pixel, as decoders give them.
    bytes: Vec<u8>,
}

impl Pixels {
    /// A number of the image, counted planes first. The element lies within the image's size.
    pub(crate) fn element(&self, element: usize) -> u8 {
        let area = self.size.width * self.size.height;
        self.bytes[element % area * self.size.planes + element / area]
    }
}

/// The size of an image of at most `most` numbers; what is wrong where it is none.
pub(crate) fn size_of(file: &[u8], most: usize) -> Result<ImageSize, String> {
    let size = if is_png(file) {
        png_size(file)?
    } else {
        jpeg_size(file)?
    };
    if (1..=most).contains(&size.elements()) {
        Ok(size)
    } else {
        Err(format!("{}; at most {most} numbers are read of one", in_words(size)))
    }
}

/// The pixels of an image that has this size.
pub(crate) fn decoded(file: &[u8], size: ImageSize) -> Result<Pixels, String> {
    if file.len() > MAX_IMAGE_BYTES {
        return Err(format!("an image of {} bytes", file.len()));
    }
    let seen = size_of(file, size.elements().max(1)).map_err(|_| own_size(file))?;
    if seen != size {
        return Err(in_words(seen));
    }
    let bytes = if is_png(file) {
        png(file, size)?
    } else {
        jpeg(file, size)?
    };
    if bytes.len() == size.elements() {
        Ok(Pixels { size, bytes })
    } else {
        Err(format!("{} numbers in an image of {}", bytes.len(), size.elements()))
    }
}

/// Why an image has not the wanted size: another one, or none that can be read.
fn own_size(file: &[u8]) -> String {
    match size_of(file, usize::MAX) {
        Ok(size) => in_words(size),
        Err(error) => error,
    }
}

fn in_words(size: ImageSize) -> String {
    format!("an image of {} x {}, {} planes", size.width, size.height, size.planes)
}

fn unreadable(kind: &str, error: &dyn std::fmt::Display) -> String {
    let cause: String = error.to_string().chars().take(80).collect();
    format!("no readable {kind} image ({cause})")
}

fn is_png(file: &[u8]) -> bool {
    file.starts_with(b"\x89PNG\r\n\x1a\n")
}

fn jpeg_options() -> DecoderOptions {
    let most = usize::from(u16::MAX);
    DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(most)
        .set_max_height(most)
        .jpeg_set_max_scans(MAX_SCANS)
}

fn jpeg_size(file: &[u8]) -> Result<ImageSize, String> {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), jpeg_options());
    decoder
        .decode_headers()
        .map_err(|error| unreadable("JPEG", &format!("{error:?}")))?;
    let info = decoder.info().ok_or_else(|| unreadable("JPEG", &"no header"))?;
    Ok(ImageSize {
        width: info.width.into(),
        height: info.height.into(),
        planes: if info.components == 1 { 1 } else { 3 },
    })
}

fn jpeg(file: &[u8], size: ImageSize) -> Result<Vec<u8>, String> {
    let colours = if size.planes == 1 {
        ColorSpace::Luma
    } else {
        ColorSpace::RGB
    };
    let options = jpeg_options().jpeg_set_out_colorspace(colours);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder
        .decode()
        .map_err(|error| unreadable("JPEG", &format!("{error:?}")))
}

type PngReader<'a> = png::Reader<Cursor<&'a [u8]>>;

/// Palettes and grey of few bits become bytes, 16 bits become 8.
fn png_reader(file: &[u8], bytes: usize) -> Result<PngReader<'_>, String> {
    let limits = png::Limits {
        bytes: bytes.saturating_mul(8).saturating_add(PNG_EXTRA_BYTES),
    };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(file), limits);
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    decoder.ignore_checksums(false);
    decoder.read_info().map_err(|error| unreadable("PNG", &error))
}

fn png_size(file: &[u8]) -> Result<ImageSize, String> {
    let reader = png_reader(file, 0)?;
    let planes = match reader.output_color_type().0 {
        ColorType::Grayscale => 1,
        ColorType::Rgb => 3,
        _ => return Err("a PNG image with transparency; save it without".to_owned()),
    };
    let wide = |side: u32| usize::try_from(side).unwrap_or(usize::MAX);
    Ok(ImageSize {
        width: wide(reader.info().width),
        height: wide(reader.info().height),
        planes,
    })
}

fn png(file: &[u8], size: ImageSize) -> Result<Vec<u8>, String> {
    let mut reader = png_reader(file, size.elements())?;
    // The header's own size is the wanted one: nothing larger is taken.
    let mut pixels = vec![0; size.elements()];
    let frame = reader
        .next_frame(&mut pixels)
        .map_err(|error| unreadable("PNG", &error))?;
    pixels.truncate(frame.buffer_size());
    reader.finish().map_err(|error| unreadable("PNG", &error))?;
    Ok(pixels)
}
