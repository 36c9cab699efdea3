//! A table of the document, by its keys.

use std::fmt;
use std::ops::RangeInclusive;

use toml_edit::TableLike;

use super::{Kind, Node, Problem, Source, start};

/// A table of the document.
pub(crate) struct Fields<'t> {
    pub(super) source: &'t Source<'t>,
    pub(super) path: String,
    pub(super) at: usize,
    pub(super) table: &'t dyn TableLike,
}

impl<'t> Fields<'t> {
    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    pub(super) fn key_at(&self, key: &str) -> usize {
        self.table
            .get_key_value(key)
            .map_or(self.at, |(key, _)| start(key.span(), self.at))
    }

    /// The value under a key, if there is one.
    pub(crate) fn optional(&self, key: &str) -> Option<Node<'t>> {
        let item = self.table.get(key)?;
        let at = start(item.span(), self.key_at(key));
        Some(Node {
            source: self.source,
            path: self.path_of(key),
            at,
            kind: Kind::Item(item),
        })
    }

    /// The value under a key that has to be there.
    pub(crate) fn required(&self, key: &str) -> Result<Node<'t>, Problem> {
        self.optional(key)
            .ok_or_else(|| self.problem(format_args!("has no `{key}`; it is needed here")))
    }

    /// A problem with the table as a whole.
    pub(crate) fn problem(&self, message: impl fmt::Display) -> Problem {
        let subject = if self.path.is_empty() {
            "the document".to_owned()
        } else {
            format!("`{}`", self.path)
        };
        Problem {
            path: self.path.clone(),
            ..self.source.problem(self.at, format!("{subject} {message}"))
        }
    }

    /// The elements of an optional list.
    pub(crate) fn list(&self, key: &str, max: usize) -> Result<Vec<Node<'t>>, Problem> {
        self.optional(key).map_or_else(|| Ok(Vec::new()), |node| node.list(max))
    }

    /// An optional whole number with its default.
    pub(crate) fn integer(&self, key: &str, range: RangeInclusive<u64>, default: u64) -> Result<u64, Problem> {
        self.optional(key).map_or(Ok(default), |node| node.integer(range))
    }
}
