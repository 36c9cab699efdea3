//! What can go wrong with a dataset, in words for the one who owns it.

use std::fmt;
use std::io;

use cloister_tensor::TensorError;

/// Why a dataset can't be read or a batch can't be made.
///
/// A message shows at most the one cell it speaks of, cut to 40 characters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file can't be read.
    #[error("{file}: cannot read the file")]
    Read {
        /// The name the source was given.
        file: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file is not what its format says.
    #[error("{file}: {problem}")]
    Malformed {
        /// The name the source was given.
        file: String,
        /// What is wrong, where, and what was wanted.
        problem: String,
    },
    /// A limit is passed.
    #[error("{file}: {what}: seen {seen}, at most {limit} are allowed")]
    TooMuch {
        /// The name the source was given.
        file: String,
        /// What is counted, with its unit.
        what: &'static str,
        /// How many were seen (for a growing count: when it was stopped).
        seen: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// An input of the policy can't be made as described.
    #[error("dataset {dataset}, input {input}: {problem}")]
    Spec {
        /// The dataset's name.
        dataset: String,
        /// The input's name.
        input: String,
        /// What is wrong and what was wanted.
        problem: String,
    },
    /// A wanted column is not in the file.
    #[error("{file}: no column {column:?}, which input {input} needs{hint}")]
    MissingColumn {
        /// The name the source was given.
        file: String,
        /// The input that needs the column.
        input: String,
        /// The wanted column.
        column: String,
        /// The nearest known column, or what else may be wrong.
        hint: String,
    },
    /// A wanted column has a type that holds no plain numbers.
    #[error("{file}: column {column:?} is {seen}, wanted {wanted}")]
    ColumnType {
        /// The name the source was given.
        file: String,
        /// The column.
        column: String,
        /// The type in the file.
        seen: String,
        /// The types that are read.
        wanted: &'static str,
    },
    /// A row has more or fewer cells than the header.
    #[error("{file}: {at}: seen {seen} cells, wanted {wanted} as in the header")]
    Ragged {
        /// The name the source was given.
        file: String,
        /// The row.
        at: Place,
        /// Its cells.
        seen: usize,
        /// The header's cells.
        wanted: usize,
    },
    /// A cell does not hold the number that its input needs.
    #[error("{file}: {at}, column {column:?}: seen {seen}, wanted {wanted}")]
    Cell {
        /// The name the source was given.
        file: String,
        /// The row.
        at: Place,
        /// The column.
        column: String,
        /// The cell, cut short.
        seen: String,
        /// What the input's dtype takes.
        wanted: String,
    },
    /// An image of an archive can't be read, or is not like the others.
    #[error("{file}: {at}, image {image:?}: seen {seen}, wanted {wanted}")]
    Image {
        /// The name the source was given.
        file: String,
        /// The row.
        at: Place,
        /// Its name in the archive.
        image: String,
        /// What it is.
        seen: String,
        /// What all are.
        wanted: String,
    },
    /// A batch can't be made.
    #[error("dataset {dataset}: {problem}")]
    Batch {
        /// The dataset's name.
        dataset: String,
        /// What is wrong and what was wanted.
        problem: String,
    },
    /// A tensor of a batch can't be made.
    #[error("dataset {dataset}, input {input}: no tensor can be made of the batch")]
    Tensor {
        /// The dataset's name.
        dataset: String,
        /// The input's name.
        input: String,
        /// The tensor's reason.
        #[source]
        source: TensorError,
    },
}

/// A row of a file: counted from 1, the header not counted; CSV has lines as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Row, from 1.
    pub row: u64,
    /// Line of the file, from 1, where the format has lines.
    pub line: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {}", self.row)?;
        self.line.map_or(Ok(()), |line| write!(f, " (line {line})"))
    }
}

/// A cell's text for an error: quoted, control characters escaped, at most 40 characters.
pub(crate) fn shown(cell: &[u8]) -> String {
    const MAX_CHARS: usize = 40;
    let text = String::from_utf8_lossy(&cell[..cell.len().min(4 * MAX_CHARS)]);
    let cut: String = text.chars().take(MAX_CHARS).collect();
    let dots = if cut.len() < text.len() || cell.len() > 4 * MAX_CHARS {
        "..."
    } else {
        ""
    };
    format!("{cut:?}{dots}")
}
