//! A dataset in memory.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use cloister_policy::dataset::DatasetSpec;
use cloister_tensor::{Digest, Dtype};

use crate::batches::{BatchOrder, Batches};
use crate::commitment;
use crate::error::DataError;
use crate::limits::DataLimits;
use crate::source::Source;
use crate::table::{Input, Skipped, Table};
use crate::{arrays, csv_reader, image_archive, numpy, parquet_reader};

/// The format of a dataset's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Comma-separated values with a header line.
    Csv,
    /// Apache Parquet, flat numeric columns.
    Parquet,
    /// NumPy arrays in an archive: `label` or `x0..x783` for arrays `label [N]` and `x [N, 784]`.
    Npz,
    /// IDX (MNIST): an array of images (columns `p0..`), one of labels (`label`), or one after the other.
    Idx,
    /// One NumPy array, or one of images (columns `p0..`) and one of labels (`label`) one after the other.
    Npy,
    /// Images in a ZIP archive, in one folder a class: columns `label` and `p0..`, planes first.
    Images,
    /// CIFAR-10's binary files, one or several after another: columns `label` and `p0..p3071` (`[3, 32, 32]`).
    Cifar10,
}

impl Format {
    /// The format that a file's name ends with (`.csv`, `.parquet`, `.npz`, `.npy`, `.idx` or `-ubyte`, `.bin`, `.zip`), upper or
    /// lower case.
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        if name.ends_with("-ubyte") {
            return Some(Self::Idx);
        }
        match name.rsplit_once('.')?.1 {
            "bin" => Some(Self::Cifar10),
            "zip" => Some(Self::Images),
            extension => extension.parse().ok(),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Csv => "csv",
            Self::Parquet => "parquet",
            Self::Npz => "npz",
            Self::Npy => "npy",
            Self::Images => "images",
            Self::Idx => "idx",
            Self::Cifar10 => "cifar10",
        })
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "csv" => Ok(Self::Csv),
            "parquet" => Ok(Self::Parquet),
            "npz" => Ok(Self::Npz),
            "npy" => Ok(Self::Npy),
            "images" => Ok(Self::Images),
            "idx" => Ok(Self::Idx),
            "cifar10" => Ok(Self::Cifar10),
            other => Err(UnknownFormat(other.chars().take(40).collect())),
        }
    }
}

/// A word that names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seen the format {0:?}, wanted csv, parquet, npz, npy, idx, cifar10 or images")]
pub struct UnknownFormat(String);

/// The rows of a dataset as its inputs have them, shared by all that read it; cloning is cheap.
#[derive(Clone, Debug)]
pub struct Dataset {
    rows: Arc<Rows>,
    spec: Arc<DatasetSpec>,
    skipped: Arc<Skipped>,
}

#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) name: String,
    pub(crate) inputs: Vec<Input>,
    pub(crate) count: u32,
}

impl Dataset {
    /// Reads a whole file by the policy's description of the dataset, within the limits.
    pub fn open(source: &Source, format: Format, spec: &DatasetSpec, limits: &DataLimits) -> Result<Self, DataError> {
        let table = Table::new(spec, limits)?;
        let table = match format {
            Format::Csv => csv_reader::read(source, table, limits)?,
            Format::Parquet => parquet_reader::read(source, table, limits)?,
            Format::Npz => arrays::fill(source, &numpy::npz_arrays(source, limits)?, table)?,
            Format::Npy => arrays::fill(source, &numpy::npy_arrays(source, limits)?, table)?,
            Format::Idx => arrays::fill(source, &arrays::idx(source, limits)?, table)?,
            Format::Cifar10 => arrays::fill(source, &arrays::cifar10(source, limits)?, table)?,
            Format::Images => image_archive::read(source, table, limits)?,
        };
        let count = u32::try_from(table.rows).map_err(|_| DataError::TooMuch {
            file: source.name().to_owned(),
            what: "rows",
            seen: table.rows,
            limit: u64::from(u32::MAX),
        })?;
        let rows = Arc::new(Rows {
            name: spec.name.clone(),
            inputs: table.inputs,
            count,
        });
        Ok(Self {
            rows,
            spec: Arc::new(spec.clone()),
            skipped: Arc::new(table.skipped),
        })
    }

    /// The name that the policy gives it.
    pub fn name(&self) -> &str {
        &self.rows.name
    }

    /// How many rows it has, at least 1; those that were left out are not among them.
    pub fn rows(&self) -> u64 {
        u64::from(self.rows.count)
    }

    /// The rows that were left out because they can't be read (`damaged = "skip"`).
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// The description that it was read by.
    pub fn spec(&self) -> &DatasetSpec {
        &self.spec
    }

    /// Bytes that its rows take in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.rows.inputs.iter().map(|input| input.bytes.len() as u64).sum()
    }

    /// The salted commitment that the policy names; see [`commitment`] for its bytes.
    pub fn commitment(&self, salt: &[u8; commitment::SALT_BYTES]) -> Digest {
        commitment::commit(&self.spec, &self.rows, salt)
    }

    /// The first value of an input of whole numbers that is outside of `0..count`, and its row, counted from 1. `None` if all are in it,
    /// or if the dataset has no such input.
    pub fn first_outside(&self, input: &str, count: usize) -> Option<(u64, i64)> {
        let input = self
            .rows
            .inputs
            .iter()
            .find(|known| known.name == input && known.dtype == Dtype::I64)?;
        let per_row = (input.row_bytes / size_of::<i64>()).max(1);
        let (values, _) = input.bytes.as_chunks::<8>();
        let values = values.iter().map(|bytes| i64::from_le_bytes(*bytes));
        let (at, value) = values
            .enumerate()
            .find(|(_, value)| usize::try_from(*value).map_or(true, |value| value >= count))?;
        Some(((at / per_row) as u64 + 1, value))
    }

    /// All rows once, in batches.
    pub fn batches(&self, order: BatchOrder) -> Result<Batches, DataError> {
        Batches::new(Arc::clone(&self.rows), order)
    }
}
