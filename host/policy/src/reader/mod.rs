//! Reads a TOML document into bounded types; whatever is wrong is told with file, line and column.
//!
//! The policy's text is hostile input: its length, its depth (by the TOML parser), and every string, number and list in it
//! have a limit, and a key that nobody knows is an error that names the nearest known one.

mod date;
mod fields;
mod problem;
mod scalar;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};

use cloister_attestation::encoding::from_hex;
use cloister_tensor::Digest;
pub(crate) use date::date_before;
use date::days_since_1970;
pub(crate) use fields::Fields;
pub use problem::{PolicyError, Problem};
pub use scalar::Scalar;
use toml_edit::{Document, Item, TableLike, Value};

/// Longest document that is read, in bytes.
pub(crate) const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// The text that spans point into.
pub(crate) struct Source<'t> {
    text: &'t str,
}

impl Source<'_> {
    /// A problem at a byte offset of the text.
    pub(crate) fn problem(&self, at: usize, message: impl Into<String>) -> Problem {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
        let column = before.get(line_start..).unwrap_or("").chars().count() + 1;
        Problem {
            line,
            column,
            path: String::new(),
            message: message.into(),
        }
    }
}

/// Parses `bytes` as TOML and gives its top table to `read`.
pub(crate) fn read_document<T>(
    bytes: &[u8],
    file: &str,
    known: &[&str],
    read: impl FnOnce(&Fields<'_>) -> Result<T, Vec<Problem>>,
) -> Result<T, PolicyError> {
    let alone = |problem: Problem| PolicyError::new(file, vec![problem]);
    if bytes.len() > MAX_DOCUMENT_BYTES {
        let message = format!(
            "the file has {} bytes; at most {MAX_DOCUMENT_BYTES} are read",
            bytes.len()
        );
        return Err(alone(Problem {
            line: 1,
            column: 1,
            path: String::new(),
            message,
        }));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let valid = bytes
                .get(..error.valid_up_to())
                .and_then(|head| std::str::from_utf8(head).ok())
                .unwrap_or("");
            let source = Source { text: valid };
            return Err(alone(
                source.problem(valid.len(), "the file is not UTF-8 text; write it as TOML in UTF-8"),
            ));
        }
    };
    let source = Source { text };
    let document = Document::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        alone(source.problem(at, format!("not TOML: {}", error.message().replace('\n', ", "))))
    })?;
    let node = Node {
        source: &source,
        path: String::new(),
        at: 0,
        kind: Kind::Item(document.as_item()),
    };
    let fields = node.fields(known).map_err(alone)?;
    read(&fields).map_err(|problems| PolicyError::new(file, problems))
}

enum Kind<'t> {
    Item(&'t Item),
    Value(&'t Value),
    Table(&'t dyn TableLike),
}

/// A value of the document together with its place.
pub(crate) struct Node<'t> {
    source: &'t Source<'t>,
    path: String,
    at: usize,
    kind: Kind<'t>,
}

fn start(span: Option<Range<usize>>, otherwise: usize) -> usize {
    span.map_or(otherwise, |span| span.start)
}

impl<'t> Node<'t> {
    /// A problem at this value.
    pub(crate) fn problem(&self, message: impl fmt::Display) -> Problem {
        let message = if self.path.is_empty() {
            message.to_string()
        } else {
            format!("`{}` {message}", self.path)
        };
        Problem {
            path: self.path.clone(),
            ..self.source.problem(self.at, message)
        }
    }

    fn value(&self) -> Option<&'t Value> {
        match self.kind {
            Kind::Item(item) => item.as_value(),
            Kind::Value(value) => Some(value),
            Kind::Table(_) => None,
        }
    }

    fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Item(item) => item.type_name(),
            Kind::Value(value) => value.type_name(),
            Kind::Table(_) => "table",
        }
    }

    fn wanted(&self, what: &str) -> Problem {
        self.problem(format_args!(
            "is {} {}; {what} is wanted",
            article(self.type_name()),
            self.type_name()
        ))
    }

    /// A string of 1 to `max` bytes without control characters.
    pub(crate) fn text(&self, max: usize) -> Result<&'t str, Problem> {
        let text = self
            .value()
            .and_then(Value::as_str)
            .ok_or_else(|| self.wanted("a string"))?;
        if text.is_empty() {
            return Err(self.problem("is empty"));
        }
        if text.len() > max {
            return Err(self.problem(format_args!("has {} bytes; at most {max} are allowed", text.len())));
        }
        if text.chars().any(char::is_control) {
            return Err(self.problem("has a control character in it"));
        }
        Ok(text)
    }

    /// A text of several lines, of at most `max` bytes.
    pub(crate) fn document(&self, max: usize) -> Result<&'t str, Problem> {
        let text = self
            .value()
            .and_then(Value::as_str)
            .ok_or_else(|| self.wanted("a string"))?;
        if text.len() > max {
            return Err(self.problem(format_args!("has {} bytes; at most {max} are allowed", text.len())));
        }
        Ok(text)
    }

    /// A name: 1 to 64 characters of `a-z A-Z 0-9 . _ - @`, beginning with a letter or a digit.
    pub(crate) fn name(&self) -> Result<String, Problem> {
        let text = self.text(64)?;
        if valid_name(text) {
            return Ok(text.to_owned());
        }
        Err(self.problem(format_args!(
            "is {text:?}; a name has letters, digits, `.`, `_`, `-` and `@`, and begins with a letter or a digit"
        )))
    }

    /// The name of a federation, a participant or a node: as [`Node::name`], but lower case and without `@`.
    pub(crate) fn party_name(&self) -> Result<String, Problem> {
        let text = self.text(cloister_attestation::identity::MAX_NAME_BYTES)?;
        if cloister_attestation::identity::is_name(text) {
            return Ok(text.to_owned());
        }
        Err(self.problem(format_args!(
            "is {text:?}; such a name has lower-case letters, digits, `.`, `_` and `-`, and begins with a letter or a digit"
        )))
    }

    /// A SHA-256 digest.
    pub(crate) fn digest(&self) -> Result<Digest, Problem> {
        let text = self.text(128)?;
        text.parse()
            .map_err(|error| self.problem(format_args!("is {text:?}: {error}")))
    }

    /// `N` bytes in hexadecimal.
    pub(crate) fn bytes<const N: usize>(&self) -> Result<[u8; N], Problem> {
        let text = self.text(256)?;
        from_hex(text).ok_or_else(|| self.problem(format_args!("is {text:?}; {} hexadecimal digits are wanted", 2 * N)))
    }

    /// One of the words that `name` gives for `values`.
    pub(crate) fn one_of<T: Copy>(&self, values: &[T], name: impl Fn(T) -> &'static str) -> Result<T, Problem> {
        let text = self.text(256)?;
        if let Some(found) = values.iter().find(|value| name(**value) == text) {
            return Ok(*found);
        }
        let words: Vec<_> = values.iter().map(|value| name(*value)).collect();
        Err(match nearest(text, &words) {
            Some(near) => self.problem(format_args!("is {text:?}; did you mean {near:?}?")),
            None => self.problem(format_args!("is {text:?}; one of {} is wanted", words.join(", "))),
        })
    }

    /// A date without a time: the first second after that day in UTC, in seconds since 1970.
    pub(crate) fn end_of_day_unix_s(&self) -> Result<u64, Problem> {
        let datetime = self
            .value()
            .and_then(Value::as_datetime)
            .filter(|when| when.time.is_none());
        let date = datetime
            .and_then(|when| when.date)
            .ok_or_else(|| self.wanted("a date such as 2027-01-31"))?;
        let days = days_since_1970(date.year.into(), date.month.into(), date.day.into());
        u64::try_from(days + 1)
            .map(|days| days * 86_400)
            .map_err(|_| self.problem("is before 1970"))
    }

    /// A whole number within `range`.
    pub(crate) fn integer(&self, range: RangeInclusive<u64>) -> Result<u64, Problem> {
        let number = self
            .value()
            .and_then(Value::as_integer)
            .ok_or_else(|| self.wanted("a whole number"))?;
        match u64::try_from(number) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(self.problem(format_args!(
                "is {number}; a whole number from {} to {} is wanted",
                range.start(),
                range.end()
            ))),
        }
    }

    /// A finite number; whole numbers are taken too.
    pub(crate) fn number(&self) -> Result<f64, Problem> {
        let value = self.value().ok_or_else(|| self.wanted("a number"))?;
        #[allow(
            clippy::cast_precision_loss,
            reason = "integers beyond 2^53 lose their last bits here, as anywhere"
        )]
        let number = value
            .as_float()
            .or_else(|| value.as_integer().map(|whole| whole as f64));
        let number = number.ok_or_else(|| self.wanted("a number"))?;
        if number.is_finite() {
            Ok(number)
        } else {
            Err(self.problem(format_args!("is {number}; a finite number is wanted")))
        }
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&self) -> Result<bool, Problem> {
        self.value()
            .and_then(Value::as_bool)
            .ok_or_else(|| self.wanted("`true` or `false`"))
    }

    /// A whole number within `range` that fits 32 bits.
    pub(crate) fn integer_u32(&self, range: RangeInclusive<u64>) -> Result<u32, Problem> {
        let number = self.integer(range)?;
        u32::try_from(number).map_err(|_| self.problem(format_args!("is {number}; it has to fit 32 bits")))
    }

    /// The value as a setting: a boolean, a whole number, a finite float or a string.
    pub(crate) fn scalar(&self) -> Result<Scalar, Problem> {
        match self.value() {
            Some(Value::Boolean(flag)) => Ok(Scalar::Boolean(*flag.value())),
            Some(Value::Integer(number)) => Ok(Scalar::Integer(*number.value())),
            Some(Value::Float(_)) => self.number().map(Scalar::Float),
            Some(Value::String(_)) => Ok(Scalar::Text(self.text(1024)?.to_owned())),
            _ => Err(self.wanted("a number, a string, `true` or `false`")),
        }
    }

    /// Whether the value is a list.
    pub(crate) fn is_list(&self) -> bool {
        self.value().is_some_and(Value::is_array) || matches!(self.kind, Kind::Item(item) if item.is_array_of_tables())
    }

    /// Whether the value is a table.
    pub(crate) fn is_table(&self) -> bool {
        self.table().is_ok()
    }

    /// The elements of a list with at most `max` of them; `[[tables]]` are taken as a list of tables.
    pub(crate) fn list(&self, max: usize) -> Result<Vec<Node<'t>>, Problem> {
        let element = |index: usize, at: usize, kind| Node {
            source: self.source,
            path: format!("{}[{index}]", self.path),
            at,
            kind,
        };
        let nodes: Vec<_> = if let Some(array) = self.value().and_then(Value::as_array) {
            let values = array.iter().take(max + 1).enumerate();
            values
                .map(|(index, value)| element(index, start(value.span(), self.at), Kind::Value(value)))
                .collect()
        } else if let Kind::Item(Item::ArrayOfTables(tables)) = self.kind {
            let tables = tables.iter().take(max + 1).enumerate();
            tables
                .map(|(index, table)| element(index, start(table.span(), self.at), Kind::Table(table)))
                .collect()
        } else {
            return Err(self.wanted("a list"));
        };
        if nodes.len() > max {
            return Err(self.problem(format_args!("has more than {max} entries, the most that are allowed")));
        }
        Ok(nodes)
    }

    fn table(&self) -> Result<&'t dyn TableLike, Problem> {
        let table = match self.kind {
            Kind::Item(item) => item.as_table_like(),
            Kind::Value(value) => value.as_inline_table().map(|table| table as &dyn TableLike),
            Kind::Table(table) => Some(table),
        };
        table.ok_or_else(|| self.wanted("a table"))
    }

    /// The fields of a table that may have the keys `known` and no others.
    pub(crate) fn fields(&self, known: &[&str]) -> Result<Fields<'t>, Problem> {
        let fields = Fields {
            source: self.source,
            path: self.path.clone(),
            at: self.at,
            table: self.table()?,
        };
        for (key, _) in fields.table.iter() {
            if !known.contains(&key) {
                let at = fields.key_at(key);
                let key = fields.path_of(&key.chars().take(64).collect::<String>());
                let last = key.rsplit('.').next().unwrap_or(&key);
                let message = match nearest(last, known) {
                    Some(near) => format!("unknown key `{key}`; did you mean `{near}`?"),
                    None => format!("unknown key `{key}`; known here: {}", known.join(", ")),
                };
                return Err(Problem {
                    path: key,
                    ..self.source.problem(at, message)
                });
            }
        }
        Ok(fields)
    }

    /// All the entries of a table whose keys the document chooses: names (see [`Node::name`]), at most `max`.
    pub(crate) fn map(&self, max: usize) -> Result<BTreeMap<String, Node<'t>>, Problem> {
        let table = self.table()?;
        let fields = Fields {
            source: self.source,
            path: self.path.clone(),
            at: self.at,
            table,
        };
        let mut entries = BTreeMap::new();
        for (key, item) in table.iter() {
            let at = fields.key_at(key);
            if !valid_name(key) || key.len() > 64 {
                let shown: String = key.chars().take(64).collect();
                let message = format!("`{}` has the key {shown:?}, which is no name", self.path);
                return Err(Problem {
                    path: self.path.clone(),
                    ..self.source.problem(at, message)
                });
            }
            if entries.len() == max {
                return Err(self.problem(format_args!("has more than {max} entries, the most that are allowed")));
            }
            let at = start(item.span(), at);
            let node = Node {
                source: self.source,
                path: fields.path_of(key),
                at,
                kind: Kind::Item(item),
            };
            entries.insert(key.to_owned(), node);
        }
        Ok(entries)
    }
}

/// Keeps what could be read, or gives every problem met.
pub(crate) fn all<T>(results: impl IntoIterator<Item = Result<T, Problem>>) -> Result<Vec<T>, Vec<Problem>> {
    let (mut values, mut problems) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => values.push(value),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(values) } else { Err(problems) }
}

impl From<Problem> for Vec<Problem> {
    fn from(problem: Problem) -> Self {
        vec![problem]
    }
}

/// Whether `text` may serve as a name: `a-z A-Z 0-9 . _ - @`, beginning with a letter or a digit.
pub(crate) fn valid_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@'))
}

/// The entry of `known` that `word` most likely stands for.
pub(crate) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let scored = known
        .iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), *candidate));
    scored
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min()
        .map(|(_, candidate)| candidate)
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_named() {
        assert_eq!(nearest("quorom", &["quorum", "count"]), Some("quorum"));
        assert_eq!(nearest("zzz", &["quorum", "count"]), None);
    }
}
