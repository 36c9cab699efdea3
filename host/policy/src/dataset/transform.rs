//! What a dataset's rows go through before graphs see them, and what becomes of rows that can't be read.

use std::collections::BTreeMap;

use super::{InputType, MAX_INPUTS, MAX_RANK};
use crate::reader::{Fields, Node, Problem};

/// Most elements of one row of an input that a transform makes (64 MiB of f32).
pub const MAX_MADE_ELEMENTS: usize = 16 << 20;

/// The module that makes rows out of a dataset's rows, and what it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransformSpec {
    /// The module's name in the policy; its role is `transform`.
    pub module: String,
    /// The inputs that it makes, at least one; they take the place of read ones of the same name. Others pass by it.
    pub makes: BTreeMap<String, MadeSpec>,
}

/// An input that a transform makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeSpec {
    /// Shape of one row, without the batch dimension.
    pub shape: Vec<usize>,
    /// The elements' type, as graphs take it: f32 or i64.
    pub dtype: InputType,
}

/// What becomes of a row that can't be read: a cell that holds no number, an image that can't be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Damaged {
    /// The dataset is refused, and the row named.
    #[default]
    Stop,
    /// The row is left out, counted and named in the node's log. The commitment is to the rows that are left.
    Skip,
}

impl Damaged {
    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Skip => "skip",
        }
    }

    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, Problem> {
        let node = fields.optional("damaged");
        let damaged = node.map(|node| node.one_of(&[Self::Stop, Self::Skip], Self::as_str));
        Ok(damaged.transpose()?.unwrap_or_default())
    }
}

impl TransformSpec {
    /// Reads `transform` and `makes`, which stand together or not at all.
    pub(super) fn read(fields: &Fields<'_>) -> Result<Option<Self>, Problem> {
        match (fields.optional("transform"), fields.optional("makes")) {
            (None, None) => Ok(None),
            (Some(module), Some(makes)) => Ok(Some(Self {
                module: module.name()?,
                makes: read_makes(&makes)?,
            })),
            (Some(module), None) => Err(module.problem(
                "stands without `makes`, the inputs that the transform makes, e.g. { x = { shape = [3, 24, 24] } }",
            )),
            (None, Some(makes)) => Err(makes.problem("stands without `transform`, the module that makes these inputs")),
        }
    }
}

fn read_makes(node: &Node<'_>) -> Result<BTreeMap<String, MadeSpec>, Problem> {
    let mut makes = BTreeMap::new();
    for (name, node) in node.map(MAX_INPUTS)? {
        makes.insert(name, MadeSpec::read(&node)?);
    }
    if makes.is_empty() {
        return Err(node.problem("is empty; a transform makes at least one input"));
    }
    Ok(makes)
}

impl MadeSpec {
    fn read(node: &Node<'_>) -> Result<Self, Problem> {
        let fields = node.fields(&["shape", "dtype"])?;
        let list = fields.required("shape")?;
        let mut shape = Vec::new();
        for dimension in list.list(MAX_RANK)? {
            let dimension = dimension.integer(1..=MAX_MADE_ELEMENTS as u64)?;
            shape.push(usize::try_from(dimension).unwrap_or(usize::MAX));
        }
        let elements = shape
            .iter()
            .try_fold(1_usize, |product, dimension| product.checked_mul(*dimension));
        if elements.is_none_or(|elements| elements > MAX_MADE_ELEMENTS) {
            return Err(list.problem(format_args!(
                "is {shape:?}; a row has at most {MAX_MADE_ELEMENTS} elements"
            )));
        }
        let dtype = fields.optional("dtype");
        let dtype = dtype.map(|node| node.one_of(&[InputType::F32, InputType::I64], InputType::name));
        Ok(Self {
            shape,
            dtype: dtype.transpose()?.unwrap_or(InputType::F32),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::DatasetSpec;
    use crate::reader::PolicyError;

    fn parse(lines: &str) -> Result<DatasetSpec, PolicyError> {
        let text = format!(
            "name = \"t\"\ninputs = {{ x = {{ columns = \"p0..p11\", dtype = \"u8\" }}, labels = {{ column = \"y\", dtype = \"i64\" }} }}\n{lines}\n"
        );
        DatasetSpec::parse(text.as_bytes(), "spec.toml")
    }

    #[test]
    fn what_a_transform_makes_stands_in_the_place_of_what_was_read() {
        let plain = parse("").unwrap();
        assert_eq!((plain.transform.as_ref(), plain.damaged), (None, Damaged::Stop));
        assert_eq!(plain.fed()["x"], (&[12][..], InputType::U8));
        let spec = parse("transform = \"augment\"\nmakes = { x = { shape = [1, 2, 2] } }\ndamaged = \"skip\"").unwrap();
        assert_eq!(spec.damaged, Damaged::Skip);
        assert_eq!(spec.fed()["x"], (&[1, 2, 2][..], InputType::F32));
        assert_eq!(spec.fed()["labels"], (&[][..], InputType::I64), "others pass by");
    }

    #[test]
    fn halves_and_sizes_without_end_are_refused() {
        for (lines, wanted) in [
            ("transform = \"augment\"", "without `makes`"),
            ("makes = { x = { shape = [4] } }", "without `transform`"),
            ("transform = \"a\"\nmakes = {}", "at least one input"),
            ("transform = \"a\"\nmakes = { x = {} }", "shape"),
            ("transform = \"a\"\nmakes = { x = { shape = [0] } }", "from 1"),
            (
                "transform = \"a\"\nmakes = { x = { shape = [4096, 4096, 2] } }",
                "at most",
            ),
            (
                "transform = \"a\"\nmakes = { x = { shape = [4], dtype = \"u8\" } }",
                "f32, i64",
            ),
            (
                "transform = \"a b\"\nmakes = { x = { shape = [4] } }",
                "a name has letters",
            ),
            ("damaged = \"hide\"", "one of stop, skip is wanted"),
        ] {
            let error = parse(lines).unwrap_err().to_string();
            assert!(error.contains(wanted), "{lines}: {error}");
        }
    }
}
