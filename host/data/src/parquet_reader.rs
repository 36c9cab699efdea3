//! Parquet: flat numeric columns, read column by column without Arrow.
//!
//! Read are BOOLEAN, INT32 and INT64 (signed or unsigned, any width), FLOAT and DOUBLE. Decimals, dates and times are
//! refused, since their integers mean something else than they say; so are lists, maps, other bytes and nulls.
//! JPEG and PNG images are read as one column a number (see [`parquet_images`](crate::parquet_images)).

use std::io::BufReader;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use crate::error::{DataError, Place, shown};
use crate::images::ImageSize;
use crate::limits::DataLimits;
use crate::number::Raw;
use crate::parquet_images::{self, ImageJob};
use crate::source::{Source, SourceReader};
use crate::summary::{ColumnKind, ColumnSummary, FileSummary};
use crate::table::{Table, Target, bad_cell};

/// Values decoded at a time.
const CHUNK_ROWS: usize = 8192;
const WANTED_TYPES: &str =
    "a flat column of BOOLEAN, INT32, INT64, FLOAT or DOUBLE that is a plain number, or a group of JPEG or PNG `bytes`";

/// Fills a table from a Parquet file.
pub(crate) fn read(source: &Source, table: Table, limits: &DataLimits) -> Result<Table, DataError> {
    guarded(source, || read_columns(source, table, limits))
}

/// The columns and rows of a Parquet file, by its own metadata.
pub(crate) fn summary(source: &Source, limits: &DataLimits) -> Result<FileSummary, DataError> {
    guarded(source, || {
        let reader = open(source, limits)?;
        let metadata = reader.metadata().file_metadata();
        let mut columns = Vec::new();
        for leaf in leaves(&reader, limits)? {
            let column = metadata.schema_descr().column(leaf.index);
            let kind = match (kind_of(&column), column.physical_type(), leaf.image) {
                (_, _, Some(_)) => ColumnKind::Whole,
                (Err(seen), _, None) => ColumnKind::Other(seen),
                (Ok(_), Type::FLOAT | Type::DOUBLE, None) => ColumnKind::Real,
                (Ok(_), _, None) => ColumnKind::Whole,
            };
            columns.extend(leaf.names().map(|name| ColumnSummary {
                name,
                kind: kind.clone(),
            }));
        }
        let rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
        Ok(FileSummary { columns, rows })
    })
}

/// Runs the decoder so that a panic in it (broken files reach some of its assertions) is an error like another.
fn guarded<T>(source: &Source, work: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(malformed(source, "the Parquet decoder gave up on it".to_owned())))
}

fn open(source: &Source, limits: &DataLimits) -> Result<SerializedFileReader<Chunks>, DataError> {
    source.check_size(limits)?;
    let reader =
        SerializedFileReader::new(Chunks(source.clone())).map_err(|error| broken(source, "the file", &error))?;
    let columns = reader.metadata().file_metadata().schema_descr().num_columns();
    if columns > limits.columns {
        let (seen, limit) = (columns as u64, limits.columns as u64);
        return Err(DataError::TooMuch {
            file: source.name().to_owned(),
            what: "columns",
            seen,
            limit,
        });
    }
    Ok(reader)
}

/// An element of a column that inputs want, and where it goes.
pub(crate) type Part<'a> = (usize, &'a [Target]);

/// A column of the file, and the columns that it is read as.
struct Leaf {
    index: usize,
    /// Its path; for images the name of their group.
    name: String,
    image: Option<ImageSize>,
}

impl Leaf {
    fn count(&self) -> usize {
        self.image.map_or(1, ImageSize::elements)
    }

    fn names(&self) -> impl Iterator<Item = String> {
        let (name, image) = (self.name.clone(), self.image.is_some());
        (0..self.count()).map(move |at| if image { format!("{name}{at}") } else { name.clone() })
    }
}

/// The file's columns, within the limit on what they are read as.
fn leaves(reader: &SerializedFileReader<Chunks>, limits: &DataLimits) -> Result<Vec<Leaf>, DataError> {
    let schema = reader.metadata().file_metadata().schema_descr();
    let mut left = limits.columns;
    let mut leaves = Vec::with_capacity(schema.num_columns());
    for (index, column) in schema.columns().iter().enumerate() {
        let mut leaf = Leaf {
            index,
            name: column.path().string(),
            image: None,
        };
        if let Some(name) = parquet_images::group_name(column)
            && reader.num_row_groups() > 0
            && let Ok(group) = reader.get_row_group(0)
            && let Ok(ColumnReader::ByteArrayColumnReader(values)) = group.get_column_reader(index)
            && let Some(size) = parquet_images::first_size(values, left)
        {
            leaf.name = name.to_owned();
            leaf.image = Some(size);
        }
        left = left.saturating_sub(leaf.count());
        leaves.push(leaf);
    }
    Ok(leaves)
}

fn read_columns(source: &Source, mut table: Table, limits: &DataLimits) -> Result<Table, DataError> {
    let reader = open(source, limits)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let leaves = leaves(&reader, limits)?;
    let header: Vec<String> = leaves.iter().flat_map(Leaf::names).collect();
    let wanted = table.resolve(source.name(), &header)?;
    // What inputs want of each column of the file: its elements and where they go.
    let mut first = 0;
    let mut parts: Vec<(&Leaf, Vec<Part<'_>>)> = Vec::new();
    for leaf in &leaves {
        let own = first..first + leaf.count();
        first = own.end;
        let targets: Vec<Part<'_>> = wanted
            .iter()
            .filter(|(column, _)| own.contains(column))
            .map(|(column, targets)| (column - own.start, &targets[..]))
            .collect();
        if !targets.is_empty() {
            parts.push((leaf, targets));
        }
    }
    let mut first_row = 0_u64;
    for index in 0..reader.num_row_groups() {
        let group = reader
            .get_row_group(index)
            .map_err(|error| broken(source, &format!("row group {index}"), &error))?;
        let rows = u64::try_from(group.metadata().num_rows())
            .map_err(|_| malformed(source, format!("row group {index}: seen a negative number of rows")))?;
        for (leaf, parts) in &parts {
            let descriptor = schema.column(leaf.index);
            let values = group.get_column_reader(leaf.index).map_err(|error| {
                let place = format!("column {}, rows from {}", shown(leaf.name.as_bytes()), first_row + 1);
                broken(source, &place, &error)
            })?;
            if let Some(size) = leaf.image {
                let mut job = ImageJob {
                    file: source.name(),
                    table: &mut table,
                    name: &leaf.name,
                    size,
                    wanted: parts,
                    level: descriptor.max_def_level(),
                    first_row,
                    rows,
                };
                let ColumnReader::ByteArrayColumnReader(values) = values else {
                    let problem = format!("column {}: it holds no bytes", shown(leaf.name.as_bytes()));
                    return Err(malformed(source, problem));
                };
                job.fill(values)?;
                continue;
            }
            let signed = kind_of(&descriptor).map_err(|seen| DataError::ColumnType {
                file: source.name().to_owned(),
                column: leaf.name.clone(),
                seen,
                wanted: WANTED_TYPES,
            })?;
            let mut job = ColumnJob {
                source,
                table: &mut table,
                name: &leaf.name,
                targets: parts.first().map_or(&[], |(_, targets)| targets),
                first_row,
                rows,
            };
            match values {
                ColumnReader::BoolColumnReader(values) => job.fill(values, |value| Raw::Whole(i128::from(value)))?,
                ColumnReader::Int32ColumnReader(values) if signed => {
                    job.fill(values, |value| Raw::Whole(i128::from(value)))?
                }
                ColumnReader::Int32ColumnReader(values) => {
                    job.fill(values, |value| Raw::Whole(i128::from(value.cast_unsigned())))?
                }
                ColumnReader::Int64ColumnReader(values) if signed => {
                    job.fill(values, |value| Raw::Whole(i128::from(value)))?
                }
                ColumnReader::Int64ColumnReader(values) => {
                    job.fill(values, |value| Raw::Whole(i128::from(value.cast_unsigned())))?
                }
                ColumnReader::FloatColumnReader(values) => job.fill(values, |value| Raw::Real(f64::from(value)))?,
                ColumnReader::DoubleColumnReader(values) => job.fill(values, Raw::Real)?,
                _ => {
                    return Err(malformed(
                        source,
                        format!("{}: its pages are of another type than its schema", job.place()),
                    ));
                }
            }
        }
        first_row = first_row.saturating_add(rows);
    }
    table.finish(source.name())
}

/// Whether a readable column is signed; or else what it is.
fn kind_of(column: &ColumnDescriptor) -> Result<bool, String> {
    if column.max_rep_level() > 0 || column.path().parts().len() > 1 {
        return Err("nested".to_owned());
    }
    let physical = column.physical_type();
    let refuse = || {
        Err(match column.logical_type_ref() {
            Some(logical) => format!("{physical} as {logical:?}"),
            None if column.converted_type() != ConvertedType::NONE => {
                format!("{physical} as {}", column.converted_type())
            }
            None => physical.to_string(),
        })
    };
    if !matches!(
        physical,
        Type::BOOLEAN | Type::INT32 | Type::INT64 | Type::FLOAT | Type::DOUBLE
    ) {
        return refuse();
    }
    match (column.logical_type_ref(), column.converted_type()) {
        (Some(LogicalType::Integer(integer)), _) => Ok(integer.is_signed),
        (None, ConvertedType::UINT_8 | ConvertedType::UINT_16 | ConvertedType::UINT_32 | ConvertedType::UINT_64) => {
            Ok(false)
        }
        (
            None,
            ConvertedType::NONE
            | ConvertedType::INT_8
            | ConvertedType::INT_16
            | ConvertedType::INT_32
            | ConvertedType::INT_64,
        ) => Ok(true),
        _ => refuse(),
    }
}

/// One column of one row group on its way into the table.
struct ColumnJob<'a> {
    source: &'a Source,
    table: &'a mut Table,
    name: &'a str,
    targets: &'a [Target],
    first_row: u64,
    rows: u64,
}

impl ColumnJob<'_> {
    fn place(&self) -> String {
        format!(
            "column {}, rows from {}",
            shown(self.name.as_bytes()),
            self.first_row + 1
        )
    }

    fn fill<T: DataType>(
        &mut self,
        mut reader: ColumnReaderImpl<T>,
        number: impl Fn(T::T) -> Raw,
    ) -> Result<(), DataError>
    where
        T::T: Copy,
    {
        let mut values: Vec<T::T> = Vec::new();
        let mut levels: Vec<i16> = Vec::new();
        let mut done = 0_u64;
        loop {
            values.clear();
            levels.clear();
            // One more than is left, so that a column longer than its row group shows.
            let most = usize::try_from(self.rows - done)
                .unwrap_or(usize::MAX)
                .saturating_add(1)
                .min(CHUNK_ROWS);
            let (records, _, _) = reader
                .read_records(most, Some(&mut levels), None, &mut values)
                .map_err(|error| broken(self.source, &self.place(), &error))?;
            if records == 0 {
                break;
            }
            let nulls = levels.iter().filter(|level| **level == 0).count();
            if records != values.len() + nulls || done + records as u64 > self.rows {
                return Err(self.uneven(done + (values.len() + nulls).max(records) as u64));
            }
            self.table
                .grow(self.source.name(), self.first_row + done + records as u64)?;
            let mut values = values.iter();
            for at in 0..records {
                let value = if levels.get(at) == Some(&0) {
                    None
                } else {
                    values.next()
                };
                let written = match value {
                    Some(value) => self.write(done, *value, number(*value)),
                    None => Err(self.bad(done, "null".to_owned(), self.table.wanted(self.targets[0]))),
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

    fn write(&mut self, row: u64, value: impl std::fmt::Debug, raw: Raw) -> Result<(), DataError> {
        for target in self.targets {
            let written = self.table.write(self.first_row + row, *target, raw);
            written.map_err(|wanted| self.bad(row, format!("{value:?}"), wanted))?;
        }
        Ok(())
    }

    fn bad(&self, row: u64, seen: String, wanted: String) -> DataError {
        let at = Place {
            row: self.first_row + row + 1,
            line: None,
        };
        bad_cell(self.source.name(), at, self.name, seen, wanted)
    }

    fn uneven(&self, seen: u64) -> DataError {
        malformed(
            self.source,
            format!(
                "{}: seen {seen} values, wanted {} as the row group says",
                self.place(),
                self.rows
            ),
        )
    }
}

fn malformed(source: &Source, problem: String) -> DataError {
    DataError::Malformed {
        file: source.name().to_owned(),
        problem,
    }
}

fn broken(source: &Source, what: &str, error: &ParquetError) -> DataError {
    let cause: String = error.to_string().chars().take(200).collect();
    malformed(source, format!("{what} is no readable Parquet: {cause}"))
}

/// A source as the decoder reads it.
struct Chunks(Source);

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<SourceReader>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        Ok(BufReader::new(self.0.reader(start)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        // Checked before memory is taken: a broken footer may ask for anything.
        if start.checked_add(length as u64).is_none_or(|end| end > self.0.len()) {
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} of a file of {} bytes",
                self.0.len()
            )));
        }
        let mut bytes = vec![0; length];
        std::io::Read::read_exact(&mut self.0.reader(start), &mut bytes)?;
        Ok(bytes.into())
    }
}
