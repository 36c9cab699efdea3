//! What is in a file: its columns, the kind of each, and its rows. For the owner of the data.

use std::fmt;

use crate::arrays;
use crate::csv_reader::CsvLines;
use crate::dataset::Format;
use crate::error::DataError;
use crate::limits::DataLimits;
use crate::number::Raw;
use crate::source::Source;
use crate::{image_archive, numpy, parquet_reader};

/// What the cells of a column are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnKind {
    /// Whole numbers in every row.
    Whole,
    /// Numbers in every row.
    Real,
    /// Something else in at least one row; from Parquet: its type.
    Other(String),
}

impl fmt::Display for ColumnKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("whole numbers"),
            Self::Real => f.write_str("numbers"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// One column of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnSummary {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub kind: ColumnKind,
}

/// The columns and rows of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSummary {
    /// In the file's order.
    pub columns: Vec<ColumnSummary>,
    /// Rows, the header not counted.
    pub rows: u64,
}

impl FileSummary {
    /// Looks through a file within the limits.
    pub fn of(source: &Source, format: Format, limits: &DataLimits) -> Result<Self, DataError> {
        match format {
            Format::Csv => of_csv(source, limits),
            Format::Parquet => parquet_reader::summary(source, limits),
            Format::Npz => Ok(arrays::summary(&numpy::npz_arrays(source, limits)?)),
            Format::Npy => Ok(arrays::summary(&numpy::npy_arrays(source, limits)?)),
            Format::Idx => Ok(arrays::summary(&arrays::idx(source, limits)?)),
            Format::Cifar10 => Ok(arrays::summary(&arrays::cifar10(source, limits)?)),
            Format::Images => image_archive::summary(source, limits),
        }
    }
}

fn of_csv(source: &Source, limits: &DataLimits) -> Result<FileSummary, DataError> {
    let mut lines = CsvLines::open(source, limits)?;
    let header = lines.header()?;
    let mut kinds = vec![ColumnKind::Whole; header.len()];
    let mut rows = 0_u64;
    while let Some(cells) = lines.row(header.len())? {
        rows += 1;
        if rows > limits.rows {
            return Err(DataError::TooMuch {
                file: source.name().to_owned(),
                what: "rows",
                seen: rows,
                limit: limits.rows,
            });
        }
        for (index, kind) in kinds.iter_mut().enumerate() {
            if matches!(kind, ColumnKind::Other(_)) {
                continue;
            }
            match Raw::parse(cells.get(index)) {
                Some(Raw::Whole(_)) => {}
                Some(Raw::Real(_)) => *kind = ColumnKind::Real,
                None => *kind = ColumnKind::Other(format!("no number in row {rows}")),
            }
        }
    }
    let columns = header
        .into_iter()
        .zip(kinds)
        .map(|(name, kind)| ColumnSummary { name, kind })
        .collect();
    Ok(FileSummary { columns, rows })
}
