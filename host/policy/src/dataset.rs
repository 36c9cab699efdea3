//! What the policy says about a dataset's form: which columns become which input of a graph, and how.
//!
//! A row's value on column `c` enters the graph as `raw * scale[c] + offset[c]`, computed in 64-bit floats and rounded once
//! to the input's type. Where the dataset names a transform, the inputs that it makes stand in the place of those.

mod slice;
mod transform;

use std::collections::BTreeMap;

pub use slice::Slice;
pub use transform::{Damaged, MAX_MADE_ELEMENTS, MadeSpec, TransformSpec};

use crate::reader::{Fields, Node, PolicyError, Problem, read_document};

/// Most columns that one input takes.
pub const MAX_COLUMNS: usize = 65_536;
/// Most inputs of a dataset.
pub const MAX_INPUTS: usize = 64;
/// Longest name of a column, in bytes.
pub const MAX_COLUMN_BYTES: usize = 256;
const MAX_RANK: usize = 7;

/// The type of an input's elements. Graphs take f32 and i64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputType {
    /// A whole number from 0 to 255, in one byte: pixels on their way to a transform. Scale and offset are 1 and 0.
    U8,
    /// 32-bit float.
    F32,
    /// 64-bit signed integer; labels are of this type. Scale and offset are 1 and 0, and every value must be whole.
    I64,
}

impl InputType {
    /// The name in a policy.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::F32 => "f32",
            Self::I64 => "i64",
        }
    }
}

/// One input of a graph: its columns and what becomes of their values.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// The columns' names in row-major order of `shape`; ranges such as `p0..p63` are written out.
    pub columns: Vec<String>,
    /// Shape of one row, without the batch dimension; its product is the number of columns. Empty: one value a row.
    pub shape: Vec<usize>,
    /// The elements' type.
    pub dtype: InputType,
    /// Factors, one a column.
    pub scale: Vec<f64>,
    /// Summands, one a column.
    pub offset: Vec<f64>,
}

/// A dataset's form.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetSpec {
    /// The dataset's name, by which modules ask for it.
    pub name: String,
    /// The graph's inputs by name; at least one.
    pub inputs: BTreeMap<String, InputSpec>,
    /// What makes rows out of its rows before graphs see them, if anything does.
    pub transform: Option<TransformSpec>,
    /// The rows of the file that are the dataset, if not all.
    pub slice: Option<Slice>,
    /// What becomes of rows that can't be read.
    pub damaged: Damaged,
}

/// The keys of a dataset's form.
const KEYS: [&str; 6] = ["name", "inputs", "slice", "transform", "makes", "damaged"];

impl DatasetSpec {
    /// Parses a specification that stands in a file of its own: `name = "train"` and `inputs = { ... }` (or `[inputs.x]`), and,
    /// where they are wanted, `slice`, `transform`, `makes` and `damaged`.
    ///
    /// # Errors
    /// Whatever is unknown, missing, of another type or above a limit, with its line and column in `file`.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, PolicyError> {
        read_document(bytes, file, &KEYS, |fields| Ok(Self::read(fields)?))
    }

    /// Shape of a row and type of each input as graphs get it: made by the transform, or as it was read.
    pub fn fed(&self) -> BTreeMap<&str, (&[usize], InputType)> {
        let read = self.inputs.iter();
        let mut fed: BTreeMap<_, _> = read
            .map(|(name, input)| (name.as_str(), (input.shape.as_slice(), input.dtype)))
            .collect();
        let makes = self.transform.iter().flat_map(|transform| &transform.makes);
        fed.extend(makes.map(|(name, made)| (name.as_str(), (made.shape.as_slice(), made.dtype))));
        fed
    }

    /// Reads a dataset's form out of a table that may have other keys.
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, Problem> {
        let name = fields.required("name")?.name()?;
        let node = fields.required("inputs")?;
        let mut inputs = BTreeMap::new();
        for (input, node) in node.map(MAX_INPUTS)? {
            inputs.insert(input, InputSpec::read(&node)?);
        }
        if inputs.is_empty() {
            return Err(
                node.problem("is empty; a dataset has at least one input, e.g. { x = { columns = \"p0..p63\" } }")
            );
        }
        Ok(Self {
            name,
            inputs,
            slice: Slice::read(fields)?,
            transform: TransformSpec::read(fields)?,
            damaged: Damaged::read(fields)?,
        })
    }
}

impl InputSpec {
    /// Number of elements of one row.
    pub fn elements(&self) -> usize {
        self.columns.len()
    }

    fn read(node: &Node<'_>) -> Result<Self, Problem> {
        let fields = node.fields(&["columns", "column", "shape", "dtype", "scale", "offset"])?;
        let (columns, default_shape) = match (fields.optional("columns"), fields.optional("column")) {
            (Some(columns), None) => {
                let columns = read_columns(&columns)?;
                let shape = vec![columns.len()];
                (columns, shape)
            }
            (None, Some(column)) => (vec![column.text(MAX_COLUMN_BYTES)?.to_owned()], Vec::new()),
            (Some(_), Some(column)) => return Err(column.problem("stands beside `columns`; keep one of the two")),
            (None, None) => {
                return Err(
                    fields.problem("has neither `columns` (a list, or a range such as \"p0..p63\") nor `column`")
                );
            }
        };
        let shape = match fields.optional("shape") {
            None => default_shape,
            Some(node) => read_shape(&node, columns.len())?,
        };
        let dtype = match fields.optional("dtype") {
            None => InputType::F32,
            Some(node) => match node.text(16)? {
                "u8" => InputType::U8,
                "f32" => InputType::F32,
                "i64" => InputType::I64,
                other => return Err(node.problem(format_args!("is {other:?}; \"f32\", \"i64\" or \"u8\" is wanted"))),
            },
        };
        let scale = read_per_column(&fields, "scale", columns.len(), 1.0)?;
        let offset = read_per_column(&fields, "offset", columns.len(), 0.0)?;
        let identity = scale.iter().all(|scale| *scale == 1.0) && offset.iter().all(|offset| *offset == 0.0);
        if dtype != InputType::F32 && !identity {
            return Err(fields
                .problem("scales or shifts whole numbers; leave `scale` and `offset` out, or take dtype = \"f32\""));
        }
        Ok(Self {
            columns,
            shape,
            dtype,
            scale,
            offset,
        })
    }
}

fn read_shape(node: &Node<'_>, columns: usize) -> Result<Vec<usize>, Problem> {
    let mut shape = Vec::new();
    for dimension in node.list(MAX_RANK)? {
        shape.push(usize::try_from(dimension.integer(1..=MAX_COLUMNS as u64)?).unwrap_or(usize::MAX));
    }
    let elements = shape
        .iter()
        .try_fold(1_usize, |product, dimension| product.checked_mul(*dimension));
    if elements != Some(columns) {
        return Err(node.problem(format_args!(
            "is {shape:?}, but there are {columns} columns; their product must be the same"
        )));
    }
    Ok(shape)
}

fn read_per_column(fields: &Fields<'_>, key: &str, columns: usize, default: f64) -> Result<Vec<f64>, Problem> {
    let Some(node) = fields.optional(key) else {
        return Ok(vec![default; columns]);
    };
    if !node.is_list() {
        return Ok(vec![node.number()?; columns]);
    }
    let numbers = node
        .list(columns)?
        .iter()
        .map(Node::number)
        .collect::<Result<Vec<_>, _>>()?;
    if numbers.len() == columns {
        return Ok(numbers);
    }
    Err(node.problem(format_args!(
        "has {} numbers for {columns} columns; give one number, or one for each column",
        numbers.len()
    )))
}

fn read_columns(node: &Node<'_>) -> Result<Vec<String>, Problem> {
    let mut columns = Vec::new();
    if node.is_list() {
        for element in node.list(MAX_COLUMNS)? {
            expand(&element, &mut columns)?;
        }
    } else {
        expand(node, &mut columns)?;
    }
    if columns.is_empty() {
        return Err(node.problem("is empty; at least one column is wanted"));
    }
    let mut sorted: Vec<_> = columns.iter().collect();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(node.problem(format_args!("names the column {:?} twice", pair[0])));
    }
    Ok(columns)
}

/// Appends a column, or all the columns of a range `PREFIXm..PREFIXn` (both ends included).
fn expand(node: &Node<'_>, columns: &mut Vec<String>) -> Result<(), Problem> {
    let text = node.text(2 * MAX_COLUMN_BYTES + 2)?;
    let Some((first, last)) = text.split_once("..") else {
        if text.len() > MAX_COLUMN_BYTES {
            return Err(node.problem(format_args!(
                "has {} bytes; at most {MAX_COLUMN_BYTES} are allowed",
                text.len()
            )));
        }
        return push_columns(node, columns, std::iter::once(text.to_owned()), 1);
    };
    let wrong = || {
        node.problem(format_args!(
            "is {text:?}; a range is written PREFIXm..PREFIXn with m <= n, e.g. \"p0..p63\""
        ))
    };
    let (prefix, from) = split_number(first).ok_or_else(wrong)?;
    let (last_prefix, to) = split_number(last).ok_or_else(wrong)?;
    if prefix != last_prefix || from > to || prefix.len() > MAX_COLUMN_BYTES - 10 {
        return Err(wrong());
    }
    let count = usize::try_from(to - from).unwrap_or(usize::MAX).saturating_add(1);
    push_columns(
        node,
        columns,
        (from..=to).map(|number| format!("{prefix}{number}")),
        count,
    )
}

fn push_columns(
    node: &Node<'_>,
    columns: &mut Vec<String>,
    new: impl Iterator<Item = String>,
    count: usize,
) -> Result<(), Problem> {
    if columns.len().saturating_add(count) > MAX_COLUMNS {
        return Err(node.problem(format_args!(
            "comes to more than {MAX_COLUMNS} columns, the most that one input takes"
        )));
    }
    columns.extend(new);
    Ok(())
}

/// Splits `p63` into `p` and 63; numbers with leading zeros are refused, since `p01` and `p1` are two columns.
pub(crate) fn split_number(text: &str) -> Option<(&str, u32)> {
    let digits = text.len() - text.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (prefix, number) = text.split_at_checked(digits)?;
    if number.is_empty() || (number.len() > 1 && number.starts_with('0')) || number.len() > 9 {
        return None;
    }
    Some((prefix, number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DatasetSpec, PolicyError> {
        DatasetSpec::parse(text.as_bytes(), "spec.toml")
    }

    #[test]
    fn a_range_of_columns_is_written_out() {
        let spec = parse(
            "name = \"train\"\n[inputs]\nx = { columns = \"p0..p63\", shape = [1, 8, 8], dtype = \"f32\", scale = 0.0625 }\n\
             labels = { column = \"label\", dtype = \"i64\" }\n",
        )
        .unwrap();
        let x = &spec.inputs["x"];
        assert_eq!(
            (x.columns.len(), x.columns[0].as_str(), x.columns[63].as_str()),
            (64, "p0", "p63")
        );
        assert_eq!(x.shape, [1, 8, 8]);
        assert_eq!((x.scale[63], x.offset[0]), (0.0625, 0.0));
        assert_eq!(
            (spec.inputs["labels"].shape.len(), spec.inputs["labels"].dtype),
            (0, InputType::I64)
        );
    }

    #[test]
    fn lists_mix_names_and_ranges_and_scale_by_column() {
        let spec =
            parse("name = \"t\"\ninputs.x = { columns = [\"age\", \"p8..p10\"], scale = [1, 2, 3, 4.5] }\n").unwrap();
        assert_eq!(spec.inputs["x"].columns, ["age", "p8", "p9", "p10"]);
        assert_eq!(spec.inputs["x"].scale, [1.0, 2.0, 3.0, 4.5]);
        assert_eq!(spec.inputs["x"].shape, [4]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (inputs, wanted) in [
            ("x = { columns = \"p9..p3\" }", "m <= n"),
            ("x = { columns = \"p0..q3\" }", "PREFIXm..PREFIXn"),
            ("x = { columns = \"p00..p3\" }", "PREFIXm..PREFIXn"),
            ("x = { columns = \"p0..p99999999\" }", "more than 65536 columns"),
            ("x = { columns = [\"a\", \"a\"] }", "twice"),
            ("x = { columns = [] }", "is empty"),
            ("x = { column = \"a\", columns = [\"a\"] }", "keep one"),
            ("x = { }", "neither"),
            ("x = { columns = \"p0..p3\", shape = [3] }", "4 columns"),
            (
                "x = { columns = \"p0..p3\", scale = [1, 2] }",
                "2 numbers for 4 columns",
            ),
            ("x = { column = \"a\", dtype = \"f23\" }", "\"f32\", \"i64\" or \"u8\""),
            ("x = { column = \"a\", dtype = \"u8\", offset = 1 }", "whole numbers"),
            ("x = { column = \"a\", dtype = \"i64\", scale = 2 }", "whole numbers"),
            ("x = { column = \"a\", shap = [1] }", "did you mean `shape`"),
            ("x = { column = \"a\", scale = nan }", "finite"),
        ] {
            let error = parse(&format!("name = \"t\"\n[inputs]\n{inputs}\n"))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("spec.toml:3:"), "{error}");
            assert!(error.contains(wanted), "{inputs}: {error}");
        }
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused(text in "\\PC{0,200}") {
            let _ = DatasetSpec::parse(text.as_bytes(), "spec.toml");
        }

        #[test]
        fn any_range_is_taken_or_refused(from in ".{0,12}", to in ".{0,12}") {
            let text = format!("name = \"t\"\ninputs.x.columns = '{from}..{to}'");
            if let Ok(spec) = DatasetSpec::parse(text.as_bytes(), "spec.toml") {
                prop_assert!(spec.inputs["x"].columns.len() <= MAX_COLUMNS);
            }
        }
    }
}
