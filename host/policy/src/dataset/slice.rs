//! Which rows of a file are a dataset.

use std::fmt;

use crate::reader::{Fields, Problem};

/// A run of rows of a file, counted from 0 in the file's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The first row that belongs to it.
    pub first: u64,
    /// The row behind the last that belongs to it; above `first`.
    pub end: u64,
}

/// Longest text: two numbers of 64 bits.
const MAX_TEXT: usize = 42;

impl Slice {
    /// Reads `FIRST..END`. `None` where it is not that, or holds no row.
    pub fn parse(text: &str) -> Option<Self> {
        let (first, end) = text.split_once("..")?;
        let number = |digits: &str| {
            digits
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| digits.parse().ok())
        };
        let (first, end) = (number(first)??, number(end)??);
        (first < end).then_some(Self { first, end })
    }

    /// How many rows it has.
    pub fn rows(self) -> u64 {
        self.end - self.first
    }

    pub(super) fn read(fields: &Fields<'_>) -> Result<Option<Self>, Problem> {
        let Some(node) = fields.optional("slice") else {
            return Ok(None);
        };
        let text = node.text(MAX_TEXT)?;
        let wrong = || {
            node.problem(format_args!(
                "is {text:?}; rows of the file are written FIRST..END, counted from 0, without the last, e.g. \"0..25000\""
            ))
        };
        Self::parse(text).map(Some).ok_or_else(wrong)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::DatasetSpec;

    #[test]
    fn rows_are_written_from_the_first_to_behind_the_last() {
        let slice = Slice::parse("25000..50000").unwrap();
        assert_eq!((slice.first, slice.end, slice.rows()), (25_000, 50_000, 25_000));
        assert_eq!(slice.to_string(), "25000..50000");
        for text in [
            "",
            "5",
            "..5",
            "5..",
            "5..5",
            "6..5",
            "0..=5",
            "-1..5",
            "+1..5",
            "0..99999999999999999999",
            "0 .. 5",
        ] {
            assert_eq!(Slice::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_is_none_is_told_with_its_place() {
        let spec = |slice: &str| {
            let text = format!("name = \"t\"\ninputs.x = {{ column = \"a\" }}\nslice = {slice}\n");
            DatasetSpec::parse(text.as_bytes(), "spec.toml").map_err(|error| error.to_string())
        };
        assert_eq!(spec("\"0..8\"").unwrap().slice, Slice::parse("0..8"));
        for (slice, wanted) in [
            ("\"8..0\"", "FIRST..END"),
            ("8", "a string is wanted"),
            ("\"everything\"", "\"0..25000\""),
        ] {
            let error = spec(slice).unwrap_err();
            assert!(error.starts_with("spec.toml:3:") && error.contains(wanted), "{error}");
        }
    }
}
