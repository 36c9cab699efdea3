//! Files of arrays: every number lies at a place that a few header bytes tell. CIFAR-10's binary files, IDX (MNIST), and NumPy's
//! ([`numpy`](crate::numpy)).
//!
//! Their elements are columns like those of a CSV file, so a policy names them the same way and the same numbers give the
//! same commitment:
//!
//! - CIFAR-10: `label`, and `p0..p3071` in the order of the file (red, green, blue plane, each row by row: shape `[3, 32, 32]`).
//!   A training file may be the five official ones one after another (`cat data_batch_*.bin > train.bin`).
//! - IDX: `label` for an array of one dimension, `p0..` for one of more (row-major). A file may hold one of each, one after
//!   another (`cat train-images-idx3-ubyte train-labels-idx1-ubyte > train.idx`).

use std::io::{self, BufReader, Read};

use cloister_tensor::Dtype;

use crate::error::{DataError, Place};
use crate::limits::DataLimits;
use crate::number::Raw;
use crate::source::Source;
use crate::summary::{ColumnKind, ColumnSummary, FileSummary};
use crate::table::{Table, Target, bad_cell};

/// A CIFAR-10 record: a label and three planes of 32 x 32 pixels.
const CIFAR_PIXELS: usize = 3 * 32 * 32;
const CIFAR_RECORD: u64 = 1 + CIFAR_PIXELS as u64;
const CIFAR_CLASSES: i128 = 10;

/// Most dimensions of an array.
const MAX_RANK: usize = 8;

/// How a number is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    U8,
    /// At most this many values, from 0.
    Label(i128),
    I8,
    I16Be,
    I32Be,
    F32Be,
    F64Be,
    /// Little-endian, as tensors have it.
    Tensor(Dtype),
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::Label(_) | Self::I8 => 1,
            Self::I16Be => 2,
            Self::I32Be | Self::F32Be => 4,
            Self::F64Be => 8,
            Self::Tensor(dtype) => dtype.size_bytes(),
        }
    }

    fn is_real(self) -> bool {
        match self {
            Self::F32Be | Self::F64Be => true,
            Self::Tensor(dtype) => dtype.is_float(),
            _ => false,
        }
    }

    /// The number in exactly [`Self::bytes`] bytes; what was seen where it is none.
    fn read(self, bytes: &[u8]) -> Result<Raw, String> {
        let short = || "too few bytes".to_owned();
        let array = || -> Result<[u8; 8], String> {
            let mut all = [0; 8];
            all.get_mut(..bytes.len()).ok_or_else(short)?.copy_from_slice(bytes);
            Ok(all)
        };
        let all = array()?;
        let (two, four) = ([all[0], all[1]], [all[0], all[1], all[2], all[3]]);
        let real = |value: f64| {
            if value.is_finite() {
                Ok(Raw::Real(value))
            } else {
                Err(value.to_string())
            }
        };
        match self {
            Self::U8 => Ok(Raw::Whole(all[0].into())),
            Self::Label(classes) => match i128::from(all[0]) {
                label if label < classes => Ok(Raw::Whole(label)),
                label => Err(format!("the label {label}")),
            },
            Self::I8 => Ok(Raw::Whole(i8::from_be_bytes([all[0]]).into())),
            Self::I16Be => Ok(Raw::Whole(i16::from_be_bytes(two).into())),
            Self::I32Be => Ok(Raw::Whole(i32::from_be_bytes(four).into())),
            Self::F32Be => real(f32::from_be_bytes(four).into()),
            Self::F64Be => real(f64::from_be_bytes(all)),
            Self::Tensor(Dtype::U8 | Dtype::Bool) => Ok(Raw::Whole(all[0].into())),
            Self::Tensor(Dtype::I32) => Ok(Raw::Whole(i32::from_le_bytes(four).into())),
            Self::Tensor(Dtype::I64) => Ok(Raw::Whole(i64::from_le_bytes(all).into())),
            Self::Tensor(Dtype::F32) => real(f32::from_le_bytes(four).into()),
            Self::Tensor(Dtype::F64) => real(f64::from_le_bytes(all)),
            Self::Tensor(other) => Err(format!("an element of type {other}")),
        }
    }
}

/// An array within a file: `rows` times `count` numbers.
#[derive(Debug)]
pub(crate) struct Array {
    /// As errors name it.
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) element: Element,
    pub(crate) rows: u64,
    pub(crate) source: Source,
    /// Byte of the first row, and bytes from one row to the next.
    pub(crate) first: u64,
    pub(crate) stride: u64,
}

/// The columns of some arrays; their rows are those of the longest.
pub(crate) fn summary(arrays: &[Array]) -> FileSummary {
    let columns = arrays.iter().flat_map(|array| {
        let kind = if array.element.is_real() {
            ColumnKind::Real
        } else {
            ColumnKind::Whole
        };
        array.columns.iter().map(move |name| ColumnSummary {
            name: name.clone(),
            kind: kind.clone(),
        })
    });
    FileSummary {
        columns: columns.collect(),
        rows: arrays.iter().map(|array| array.rows).max().unwrap_or(0),
    }
}

pub(crate) fn malformed(source: &Source, problem: String) -> DataError {
    DataError::Malformed {
        file: source.name().to_owned(),
        problem,
    }
}

pub(crate) fn numbered(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|at| format!("{name}{at}")).collect()
}

/// The arrays of a CIFAR-10 file.
pub(crate) fn cifar10(source: &Source, limits: &DataLimits) -> Result<Vec<Array>, DataError> {
    source.check_size(limits)?;
    if !source.len().is_multiple_of(CIFAR_RECORD) {
        let (seen, whole) = (source.len(), source.len() / CIFAR_RECORD);
        return Err(malformed(
            source,
            format!(
                "seen {seen} bytes, {whole} records and a rest; wanted records of {CIFAR_RECORD} bytes (a label and 3 x 32 x 32 \
                 pixels), as in CIFAR-10's binary version"
            ),
        ));
    }
    let rows = source.len() / CIFAR_RECORD;
    let array = |title: &str, columns, element, first| Array {
        title: title.to_owned(),
        columns,
        element,
        rows,
        source: source.clone(),
        first,
        stride: CIFAR_RECORD,
    };
    Ok(vec![
        array("the labels", vec!["label".to_owned()], Element::Label(CIFAR_CLASSES), 0),
        array("the pixels", numbered("p", CIFAR_PIXELS), Element::U8, 1),
    ])
}

/// The elements of a row, within the limit on columns.
pub(crate) fn row_elements(
    source: &Source,
    dims: &[usize],
    title: &str,
    limits: &DataLimits,
) -> Result<usize, DataError> {
    let count = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    match count {
        Some(0) => Err(malformed(
            source,
            format!("{title}: seen rows of shape {dims:?}, which hold nothing"),
        )),
        Some(count) if count <= limits.columns => Ok(count),
        _ => Err(DataError::TooMuch {
            file: source.name().to_owned(),
            what: "elements in a row",
            seen: count.map_or(u64::MAX, |count| count as u64),
            limit: limits.columns as u64,
        }),
    }
}

/// The arrays of an IDX file.
pub(crate) fn idx(source: &Source, limits: &DataLimits) -> Result<Vec<Array>, DataError> {
    source.check_size(limits)?;
    let mut arrays: Vec<Array> = Vec::new();
    let mut at = 0_u64;
    while at < source.len() {
        let title = format!("array {}", arrays.len());
        let early = |error: io::Error| malformed(source, format!("{title}: its header ends early: {error}"));
        let mut reader = source.reader(at);
        let mut magic = [0; 4];
        reader.read_exact(&mut magic).map_err(early)?;
        let [0, 0, kind, rank] = magic else {
            let problem = format!("{title}: seen the first bytes {magic:?}, wanted 0, 0, a type and a rank as in IDX");
            return Err(malformed(source, problem));
        };
        let element = match kind {
            0x08 => Element::U8,
            0x09 => Element::I8,
            0x0b => Element::I16Be,
            0x0c => Element::I32Be,
            0x0d => Element::F32Be,
            0x0e => Element::F64Be,
            other => {
                return Err(malformed(
                    source,
                    format!("{title}: seen the type {other:#04x}, wanted 0x08 to 0x0e"),
                ));
            }
        };
        let rank = usize::from(rank);
        if !(1..=MAX_RANK).contains(&rank) {
            return Err(malformed(
                source,
                format!("{title}: seen {rank} dimensions, wanted 1 to {MAX_RANK}"),
            ));
        }
        let mut dims = Vec::with_capacity(rank);
        for _ in 0..rank {
            let mut dim = [0; 4];
            reader.read_exact(&mut dim).map_err(early)?;
            dims.push(u32::from_be_bytes(dim) as usize);
        }
        let count = row_elements(source, &dims[1..], &title, limits)?;
        let columns = if rank == 1 {
            vec!["label".to_owned()]
        } else {
            numbered("p", count)
        };
        one_of_each(source, &arrays, &title, &columns)?;
        let (rows, stride) = (dims[0] as u64, (count * element.bytes()) as u64);
        let first = at + 4 + 4 * rank as u64;
        let end = rows.checked_mul(stride).and_then(|bytes| bytes.checked_add(first));
        match end {
            Some(end) if end <= source.len() => at = end,
            _ => {
                let left = source.len().saturating_sub(first);
                let problem = format!("{title}: seen {left} bytes of content, wanted {rows} rows of {stride} bytes");
                return Err(malformed(source, problem));
            }
        }
        arrays.push(Array {
            title,
            columns,
            element,
            rows,
            source: source.clone(),
            first,
            stride,
        });
    }
    Ok(arrays)
}

/// Refuses a second array like one before: of one dimension, or of several.
pub(crate) fn one_of_each(source: &Source, arrays: &[Array], title: &str, columns: &[String]) -> Result<(), DataError> {
    let like = |array: &&Array| (array.columns.len() == 1) == (columns.len() == 1);
    match arrays.iter().find(like) {
        None => Ok(()),
        Some(other) => Err(malformed(
            source,
            format!(
                "{title}: a second one like {}; a file holds one array of several dimensions, one of one dimension, or both",
                other.title
            ),
        )),
    }
}

/// Takes the wanted columns out of the arrays, which must have as many rows as each other.
pub(crate) fn fill(source: &Source, arrays: &[Array], mut table: Table) -> Result<Table, DataError> {
    let header: Vec<String> = arrays.iter().flat_map(|array| array.columns.iter().cloned()).collect();
    let wanted = table.resolve(source.name(), &header)?;
    let mut columns = 0;
    let mut first: Option<&Array> = None;
    for array in arrays {
        let own = columns..columns + array.columns.len();
        columns = own.end;
        let own: Vec<(usize, &[Target])> = wanted
            .iter()
            .filter(|(column, _)| own.contains(column))
            .map(|(column, targets)| (column - own.start, &targets[..]))
            .collect();
        if own.is_empty() {
            continue;
        }
        match first {
            Some(other) if other.rows != array.rows => {
                let problem = format!(
                    "{} has {} rows, {} has {}; wanted as many",
                    other.title, other.rows, array.title, array.rows
                );
                return Err(malformed(source, problem));
            }
            Some(_) => {}
            None => table.grow(source.name(), array.rows)?,
        }
        first = Some(first.unwrap_or(array));
        take(array, &own, &mut table)?;
    }
    table.finish(source.name())
}

/// Reads an array row by row.
fn take(array: &Array, wanted: &[(usize, &[Target])], table: &mut Table) -> Result<(), DataError> {
    let file = array.source.name();
    let size = array.element.bytes();
    let mut reader = BufReader::with_capacity(64 << 10, array.source.reader(array.first));
    let mut row = vec![0; array.columns.len() * size];
    let gap = array.stride.saturating_sub(row.len() as u64);
    for at in 0..array.rows {
        let read = reader.read_exact(&mut row).and_then(|()| {
            // Behind the last row there may be no gap.
            io::copy(&mut (&mut reader).take(gap), &mut io::sink())
        });
        read.map_err(|error| DataError::Read {
            file: file.to_owned(),
            source: error,
        })?;
        if table.takes(at)
            && let Err(error) = take_row(array, &row, at, wanted, table)
        {
            table.damage(at, error)?;
        }
    }
    Ok(())
}

/// Writes a row's numbers.
fn take_row(
    array: &Array,
    row: &[u8],
    at: u64,
    wanted: &[(usize, &[Target])],
    table: &mut Table,
) -> Result<(), DataError> {
    let size = array.element.bytes();
    for (column, targets) in wanted {
        let number = array.element.read(&row[column * size..(column + 1) * size]);
        for target in *targets {
            let written = match &number {
                Ok(raw) => table
                    .write(at, *target, *raw)
                    .map_err(|wanted| (format!("{raw}"), wanted)),
                Err(seen) => Err((seen.clone(), array.wanted(table.wanted(*target)))),
            };
            written.map_err(|(seen, wanted)| {
                let place = Place {
                    row: at + 1,
                    line: None,
                };
                bad_cell(array.source.name(), place, &array.columns[*column], seen, wanted)
            })?;
        }
    }
    Ok(())
}

impl Array {
    fn wanted(&self, of_input: String) -> String {
        match self.element {
            Element::Label(classes) => format!("a class from 0 to {}", classes - 1),
            _ => of_input,
        }
    }
}
