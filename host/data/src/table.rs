//! The inputs of a dataset while and after a file is read: one run of tensor bytes an input, row after row.

use cloister_policy::dataset::{Damaged, DatasetSpec, InputSpec, Slice};
use cloister_tensor::Dtype;

use crate::error::{DataError, Place, shown};
use crate::limits::DataLimits;
use crate::number::{Conversion, Raw, dtype_of};

/// One input: how it is made and its rows.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// Shape of one row; empty for a scalar a row.
    pub(crate) shape: Vec<usize>,
    pub(crate) row_bytes: usize,
    /// Row-major, little-endian.
    pub(crate) bytes: Vec<u8>,
    columns: Vec<(String, Conversion)>,
}

/// Where a column's cell goes: an input and the element of its row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    input: usize,
    element: usize,
}

/// The columns of a file that inputs need, in the file's order, each with the places it goes to.
pub(crate) type Wanted = Vec<(usize, Vec<Target>)>;

/// All inputs of a dataset.
///
/// Readers count the rows of their file, from 0; what lies outside of the policy's slice is passed over here.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) inputs: Vec<Input>,
    /// Rows that are taken.
    pub(crate) rows: u64,
    pub(crate) skipped: Skipped,
    /// Rows of the file so far, taken or not.
    seen: u64,
    slice: Option<Slice>,
    row_bytes: u64,
    limits: DataLimits,
    damaged: Damaged,
    /// A bit for each row: whether it is left out.
    marks: Vec<u64>,
}

/// Rows that were left out because they can't be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// How many.
    pub rows: u64,
    /// What is wrong with the first of them, each with its place in the file.
    pub first: Vec<String>,
}

/// Damaged rows that are told in words; all are counted.
const TOLD_ROWS: usize = 8;

impl Table {
    /// An empty table as the policy describes it; refuses what no dataset can be.
    pub(crate) fn new(spec: &DatasetSpec, limits: &DataLimits) -> Result<Self, DataError> {
        let refuse = |input: &str, problem: String| DataError::Spec {
            dataset: spec.name.clone(),
            input: input.to_owned(),
            problem,
        };
        if spec.inputs.is_empty() {
            return Err(refuse(
                "(none)",
                "the dataset has no inputs, wanted at least one".to_owned(),
            ));
        }
        let mut inputs = Vec::with_capacity(spec.inputs.len());
        let mut row_bytes = 0_u64;
        for (name, input) in &spec.inputs {
            let input = Input::new(name, input, limits).map_err(|problem| refuse(name, problem))?;
            row_bytes = row_bytes.saturating_add(input.row_bytes as u64);
            inputs.push(input);
        }
        Ok(Self {
            inputs,
            rows: 0,
            skipped: Skipped::default(),
            seen: 0,
            slice: spec.slice,
            row_bytes,
            limits: *limits,
            damaged: spec.damaged,
            marks: Vec::new(),
        })
    }

    /// Finds the wanted columns in a file's header.
    pub(crate) fn resolve(&self, file: &str, header: &[String]) -> Result<Wanted, DataError> {
        let mut targets: Vec<Vec<Target>> = vec![Vec::new(); header.len()];
        for (index, input) in self.inputs.iter().enumerate() {
            for (element, (column, _)) in input.columns.iter().enumerate() {
                let mut found = header.iter().enumerate().filter(|(_, name)| *name == column);
                let Some((at, _)) = found.next() else {
                    return Err(missing(file, &input.name, column, header));
                };
                if found.next().is_some() {
                    return Err(DataError::Malformed {
                        file: file.to_owned(),
                        problem: format!(
                            "column {} stands in the header twice, wanted once",
                            shown(column.as_bytes())
                        ),
                    });
                }
                targets[at].push(Target { input: index, element });
            }
        }
        Ok(targets
            .into_iter()
            .enumerate()
            .filter(|(_, targets)| !targets.is_empty())
            .collect())
    }

    /// The place in the dataset of a row of the file; `None` if it does not belong to it.
    fn place(&self, row: u64) -> Option<u64> {
        match self.slice {
            None => Some(row),
            Some(slice) => (slice.first..slice.end).contains(&row).then(|| row - slice.first),
        }
    }

    /// Whether a row of the file belongs to the dataset: others need not be decoded.
    pub(crate) fn takes(&self, row: u64) -> bool {
        self.place(row).is_some()
    }

    /// Makes room for the file's rows up to `rows` in all, filled with zeros, within the limits.
    pub(crate) fn grow(&mut self, file: &str, rows: u64) -> Result<(), DataError> {
        self.seen = self.seen.max(rows);
        let rows = self
            .slice
            .map_or(rows, |slice| rows.clamp(slice.first, slice.end) - slice.first);
        let rows_limit = self.limits.rows.min(u64::from(u32::MAX));
        let too_much = |what, seen, limit| {
            Err(DataError::TooMuch {
                file: file.to_owned(),
                what,
                seen,
                limit,
            })
        };
        if rows > rows_limit {
            return too_much("rows", rows, rows_limit);
        }
        let bytes = rows.saturating_mul(self.row_bytes);
        if bytes > self.limits.memory_bytes {
            return too_much("bytes of the dataset in memory", bytes, self.limits.memory_bytes);
        }
        for input in &mut self.inputs {
            let len = usize::try_from(rows)
                .ok()
                .and_then(|rows| rows.checked_mul(input.row_bytes));
            let Some(len) = len else {
                return too_much("bytes of the dataset in memory", bytes, usize::MAX as u64);
            };
            if len > input.bytes.len() {
                input.bytes.resize(len, 0);
            }
        }
        self.rows = self.rows.max(rows);
        Ok(())
    }

    /// Writes a number to one place of a row that [`grow`](Self::grow) made; on refusal says what was wanted.
    pub(crate) fn write(&mut self, row: u64, target: Target, raw: Raw) -> Result<(), String> {
        let Some(row) = self.place(row) else { return Ok(()) };
        let input = &mut self.inputs[target.input];
        let conversion = input.columns[target.element].1;
        let size = input.dtype.size_bytes();
        let start = usize::try_from(row)
            .ok()
            .and_then(|row| row.checked_mul(input.row_bytes))
            .map(|row| row + target.element * size);
        let place = start.and_then(|start| input.bytes.get_mut(start..start + size));
        place
            .and_then(|place| conversion.write(raw, place))
            .ok_or_else(|| conversion.wanted())
    }

    /// A row, counted from 0, can't be read: the error, or, where the policy says so, the row is noted and left out in the end.
    pub(crate) fn damage(&mut self, row: u64, error: DataError) -> Result<(), DataError> {
        let Some(row) = self.place(row) else { return Ok(()) };
        if self.damaged == Damaged::Stop {
            return Err(error);
        }
        // Within the limit on rows.
        let (word, bit) = (usize::try_from(row / 64).unwrap_or(usize::MAX), 1 << (row % 64));
        if word >= self.marks.len() {
            self.marks.resize(word + 1, 0);
        }
        // A row may be damaged in several columns.
        if self.marks[word] & bit == 0 {
            self.marks[word] |= bit;
            self.skipped.rows += 1;
            if self.skipped.first.len() < TOLD_ROWS {
                self.skipped.first.push(error.to_string());
            }
        }
        Ok(())
    }

    fn is_marked(&self, row: usize) -> bool {
        self.marks.get(row / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// Moves the rows together that are not left out.
    fn close_gaps(&mut self) {
        if self.skipped.rows == 0 {
            return;
        }
        let rows = usize::try_from(self.rows).unwrap_or(usize::MAX);
        let kept: Vec<usize> = (0..rows).filter(|&row| !self.is_marked(row)).collect();
        for input in &mut self.inputs {
            let width = input.row_bytes;
            for (to, from) in kept.iter().enumerate() {
                input.bytes.copy_within(from * width..(from + 1) * width, to * width);
            }
            input.bytes.truncate(kept.len() * width);
        }
        self.rows = kept.len() as u64;
    }

    /// What the input behind a target wants of a cell.
    pub(crate) fn wanted(&self, target: Target) -> String {
        self.inputs[target.input].columns[target.element].1.wanted()
    }

    /// Ends the reading: leaves damaged rows out, gives back spare memory, refuses a file without the rows that are wanted.
    pub(crate) fn finish(mut self, file: &str) -> Result<Self, DataError> {
        if let Some(slice) = self.slice.filter(|slice| slice.end > self.seen) {
            return Err(DataError::Malformed {
                file: file.to_owned(),
                problem: format!(
                    "seen {} rows, wanted the rows {slice} of it (counted from 0)",
                    self.seen
                ),
            });
        }
        self.close_gaps();
        if self.rows == 0 && self.skipped.rows > 0 {
            return Err(DataError::Malformed {
                file: file.to_owned(),
                problem: format!(
                    "all {} rows are damaged; the first: {}",
                    self.skipped.rows, self.skipped.first[0]
                ),
            });
        }
        if self.rows == 0 {
            return Err(DataError::Malformed {
                file: file.to_owned(),
                problem: "seen no rows, wanted at least one".to_owned(),
            });
        }
        for input in &mut self.inputs {
            input.bytes.shrink_to_fit();
        }
        Ok(self)
    }
}

impl Input {
    fn new(name: &str, spec: &InputSpec, limits: &DataLimits) -> Result<Self, String> {
        let count = spec.columns.len();
        if count == 0 || count > limits.columns {
            return Err(format!("seen {count} columns, wanted 1 to {}", limits.columns));
        }
        let elements = spec
            .shape
            .iter()
            .try_fold(1_usize, |product, dim| product.checked_mul(*dim));
        if elements != Some(count) {
            return Err(format!(
                "shape {:?} does not hold the {count} columns, wanted as many elements as columns",
                spec.shape
            ));
        }
        if spec.scale.len() != count || spec.offset.len() != count {
            return Err(format!(
                "seen {} scales and {} offsets, wanted {count} as there are columns",
                spec.scale.len(),
                spec.offset.len()
            ));
        }
        let mut columns = Vec::with_capacity(count);
        for (column, (scale, offset)) in spec.columns.iter().zip(spec.scale.iter().zip(&spec.offset)) {
            if !(scale.is_finite() && offset.is_finite()) {
                return Err(format!(
                    "column {}: scale {scale} and offset {offset} must be finite numbers",
                    shown(column.as_bytes())
                ));
            }
            columns.push((
                column.clone(),
                Conversion {
                    kind: spec.dtype,
                    scale: *scale,
                    offset: *offset,
                },
            ));
        }
        let dtype = dtype_of(spec.dtype);
        let row_bytes = count * dtype.size_bytes();
        Ok(Self {
            name: name.to_owned(),
            dtype,
            shape: spec.shape.clone(),
            row_bytes,
            bytes: Vec::new(),
            columns,
        })
    }
}

/// The error of a cell.
pub(crate) fn bad_cell(file: &str, at: Place, column: &str, seen: String, wanted: String) -> DataError {
    DataError::Cell {
        file: file.to_owned(),
        at,
        column: column.to_owned(),
        seen,
        wanted,
    }
}

/// The error of a column that is not there, with the nearest one that is.
fn missing(file: &str, input: &str, column: &str, header: &[String]) -> DataError {
    // Names are cut for the comparison, which is quadratic in their lengths.
    let cut = |name: &str| name.chars().take(64).collect::<String>();
    let wanted = cut(column);
    let nearest = header
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&cut(name), &wanted), name))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= 1 + wanted.chars().count() / 3);
    let hint = match (nearest, header) {
        (Some((_, name)), _) => format!("; the nearest is {}", shown(name.as_bytes())),
        (None, [only]) if only.contains([';', '\t', '|']) => {
            "; the header is one column: cells must be separated by commas".to_owned()
        }
        _ => format!(
            "; the file has {} columns, `cloister data show` lists them",
            header.len()
        ),
    };
    DataError::MissingColumn {
        file: file.to_owned(),
        input: input.to_owned(),
        column: column.to_owned(),
        hint,
    }
}
