//! Columns of images in Parquet files, as the Hugging Face hub stores them: a group `NAME` with a binary `bytes`.
//!
//! Such a column is read as one column a number: `NAME0..`, planes first (red, green, blue; one plane for grey images), each row
//! by row, so `img0..img3071` with the shape `[3, 32, 32]` for images of 32 x 32 in `img`. The first image says how large all
//! are.

use parquet::basic::Type;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::schema::types::ColumnDescriptor;

use crate::error::{DataError, Place, shown};
use crate::images::{self, ImageSize};
use crate::number::Raw;
use crate::parquet_reader::Part;
use crate::table::{Table, bad_cell};

/// Images decoded at a time.
const CHUNK_IMAGES: usize = 64;

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

/// The size of the first image of a column; `None` if it is no image.
pub(crate) fn first_size(mut reader: ColumnReaderImpl<ByteArrayType>, most: usize) -> Option<ImageSize> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    reader.read_records(1, Some(&mut levels), None, &mut values).ok()?;
    images::size_of(values.first()?.data(), most).ok()
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
        let at = Place {
            row: self.first_row + row + 1,
            line: None,
        };
        bad_cell(self.file, at, self.name, seen, self.size.wanted())
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
            if records == 0 {
                break;
            }
            let nulls = levels.iter().filter(|level| **level < self.level).count();
            if records != values.len() + nulls || done + records as u64 > self.rows {
                return Err(self.uneven(done + (values.len() + nulls).max(records) as u64));
            }
            self.table.grow(self.file, self.first_row + done + records as u64)?;
            let mut values = values.iter();
            for at in 0..records {
                let there = levels.get(at).is_none_or(|level| *level >= self.level);
                let written = match values.as_slice().first().filter(|_| there) {
                    Some(value) => {
                        values.next();
                        match self.table.takes(self.first_row + done) {
                            true => self.write(done, value.data()),
                            false => Ok(()),
                        }
                    }
                    None => Err(self.refuse(done, "null".to_owned())),
                };
                if let Err(error) = written {
                    self.table.damage(self.first_row + done, error)?;
                }
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
        let pixels = images::decoded(image, self.size).map_err(|seen| self.refuse(row, seen))?;
        for (element, targets) in self.wanted {
            let value = pixels.element(*element);
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
