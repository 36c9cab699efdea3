//! Values whose type the document chooses.

use std::fmt;

use toml_edit::Value;

/// A value of a module's settings.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// `true` or `false`.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// A finite number.
    Float(f64),
    /// A string of 1 to 1024 bytes without control characters.
    Text(String),
}

impl fmt::Display for Scalar {
    /// As TOML writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Boolean(flag) => write!(f, "{flag}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Float(number) => write!(f, "{number:?}"),
            Self::Text(text) => write!(f, "{}", Value::from(text.as_str())),
        }
    }
}
