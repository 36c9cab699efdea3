//! Columns of JPEG images in Parquet files, as the Hugging Face hub stores them: a group `NAME` with a binary `bytes`.
//!
//! Such a column is read as one column a number: `NAME0..`, planes first (red, green, blue; one plane for grey images), each row
//! by row, so `img0..img3071` with the shape `[3, 32, 32]` for images of 32 x 32 in `img`. The first image says how large all
//! are. The decoder has no SIMD and no unsafe code, so that every machine sees the same pixels and commits to the same rows.

use parquet::basic::Type;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::schema::types::ColumnDescriptor;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::error::{DataError, Place, shown};
use crate::number::Raw;
use crate::parquet_reader::Part;
use crate::table::{Table, bad_cell};

/// Most bytes of one image's file.
const MAX_IMAGE_BYTES: usize = 16 << 20;

/// Images decoded at a time.
const CHUNK_IMAGES: usize = 64;

/// Scans of a progressive image; honest ones have about ten.
const MAX_SCANS: usize = 64;

/// The size of each image of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ImageSize {
    width: usize,
    height: usize,
    /// 3, or 1 for grey.
    planes: usize,
}

impl ImageSize {
    /// Numbers of one image.
    pub(crate) fn elements(self) -> usize {
        self.width * self.height * self.planes
    }
}

/// The name of the group, if a column may hold images.
pub(crate) fn group_name(column: &ColumnDescriptor) -> Option<&str> {
    match column.path().parts() {
        [name, bytes]
            if bytes == "bytes" && column.max_rep_level() == 0 && column.physical_type() == Type::BYTE_ARRAY =>
        {
            Some(name)
        }
        _ => None,
    }
}

/// The size of the first image of a column; `None` if it is no JPEG image.
pub(crate) fn first_size(mut reader: ColumnReaderImpl<ByteArrayType>, most: usize) -> Option<ImageSize> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    reader.read_records(1, Some(&mut levels), None, &mut values).ok()?;
    let size = size_of(values.first()?.data(), u16::MAX.into(), u16::MAX.into()).ok()?;
    (1..=most).contains(&size.elements()).then_some(size)
}

fn options(width: usize, height: usize) -> DecoderOptions {
    DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(width)
        .set_max_height(height)
        .jpeg_set_max_scans(MAX_SCANS)
}

fn size_of(file: &[u8], width: usize, height: usize) -> Result<ImageSize, String> {
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options(width, height));
    decoder.decode_headers().map_err(|error| format!("{error:?}"))?;
    let info = decoder.info().ok_or("no header")?;
    Ok(ImageSize {
        width: info.width.into(),
        height: info.height.into(),
        planes: if info.components == 1 { 1 } else { 3 },
    })
}

/// The pixels of an image, pixel by pixel.
fn decoded(file: &[u8], size: ImageSize) -> Result<Vec<u8>, String> {
    if file.len() > MAX_IMAGE_BYTES {
        return Err(format!("an image of {} bytes", file.len()));
    }
    let short = |error: String| {
        let cause: String = error.chars().take(80).collect();
        format!("no readable JPEG image ({cause})")
    };
    let seen = size_of(file, size.width, size.height).map_err(short)?;
    if seen != size {
        return Err(format!(
            "an image of {} x {}, {} planes",
            seen.width, seen.height, seen.planes
        ));
    }
    let colours = if size.planes == 1 {
        ColorSpace::Luma
    } else {
        ColorSpace::RGB
    };
    let options = options(size.width, size.height).jpeg_set_out_colorspace(colours);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    let pixels = decoder.decode().map_err(|error| short(format!("{error:?}")))?;
    if pixels.len() != size.elements() {
        return Err(format!("{} numbers in an image of {}", pixels.len(), size.elements()));
    }
    Ok(pixels)
}

/// One column of images of one row group on its way into the table.
pub(crate) struct ImageJob<'a> {
    pub(crate) file: &'a str,
    pub(crate) table: &'a mut Table,
    /// Name of the group.
    pub(crate) name: &'a str,
    pub(crate) size: ImageSize,
    /// Elements that inputs want, in the order of the columns, and where they go.
    pub(crate) wanted: &'a [Part<'a>],
    /// Level of a value that is there.
    pub(crate) level: i16,
    pub(crate) first_row: u64,
    pub(crate) rows: u64,
}

impl ImageJob<'_> {
    fn refuse(&self, row: u64, seen: String) -> DataError {
        let ImageSize { width, height, planes } = self.size;
        let at = Place {
            row: self.first_row + row + 1,
            line: None,
        };
        let wanted = format!("a JPEG image of {width} x {height} with {planes} planes, as the first one");
        bad_cell(self.file, at, self.name, seen, wanted)
    }

    pub(crate) fn fill(&mut self, mut reader: ColumnReaderImpl<ByteArrayType>) -> Result<(), DataError> {
        let (mut values, mut levels): (Vec<ByteArray>, Vec<i16>) = (Vec::new(), Vec::new());
        let mut done = 0_u64;
        loop {
            values.clear();
            levels.clear();
            // One more than is left, so that a column longer than its row group shows.
            let left = usize::try_from(self.rows - done).unwrap_or(usize::MAX);
            let most = left.saturating_add(1).min(CHUNK_IMAGES);
            let read = reader.read_records(most, Some(&mut levels), None, &mut values);
            let (records, _, _) = read.map_err(|error| {
                let cause: String = error.to_string().chars().take(200).collect();
                self.malformed(&format!("its pages are not readable: {cause}"))
            })?;
            if let Some(null) = levels.iter().position(|level| *level < self.level) {
                return Err(self.refuse(done + null as u64, "null".to_owned()));
            }
            if records == 0 {
                break;
            }
            if records != values.len() || done + records as u64 > self.rows {
                return Err(self.uneven(done + values.len().max(records) as u64));
            }
            self.table.grow(self.file, self.first_row + done + records as u64)?;
            for value in &values {
                self.write(done, value.data())?;
                done += 1;
            }
        }
        if done == self.rows {
            Ok(())
        } else {
            Err(self.uneven(done))
        }
    }

    fn write(&mut self, row: u64, image: &[u8]) -> Result<(), DataError> {
        let pixels = decoded(image, self.size).map_err(|seen| self.refuse(row, seen))?;
        let (area, planes) = (self.size.width * self.size.height, self.size.planes);
        for (element, targets) in self.wanted {
            let value = pixels[element % area * planes + element / area];
            for target in *targets {
                let written = self
                    .table
                    .write(self.first_row + row, *target, Raw::Whole(value.into()));
                if let Err(wanted) = written {
                    let at = Place {
                        row: self.first_row + row + 1,
                        line: None,
                    };
                    return Err(bad_cell(self.file, at, self.name, value.to_string(), wanted));
                }
            }
        }
        Ok(())
    }

    fn malformed(&self, problem: &str) -> DataError {
        DataError::Malformed {
            file: self.file.to_owned(),
            problem: format!(
                "column {}, rows from {}: {problem}",
                shown(self.name.as_bytes()),
                self.first_row + 1
            ),
        }
    }

    fn uneven(&self, seen: u64) -> DataError {
        self.malformed(&format!(
            "seen {seen} images, wanted {} as the row group says",
            self.rows
        ))
    }
}
