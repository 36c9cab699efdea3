//! What the policy grants a module.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a trainer may do with tensors. By default it may hold handles, pass them on, and nothing more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TensorAccess {
    /// It may read the bytes of any tensor, rows of the dataset among them.
    pub read: bool,
    /// It may make tensors of bytes of its own, and its update is accepted whatever made it.
    pub write: bool,
}

impl TensorAccess {
    /// Handles only: the default.
    pub const HANDLES: Self = Self {
        read: false,
        write: false,
    };
}

impl fmt::Display for TensorAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.read, self.write) {
            (false, false) => "handles",
            (true, false) => "read",
            (false, true) => "write",
            (true, true) => "read-write",
        })
    }
}

/// A text that is no [`TensorAccess`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tensor_access = \"{seen}\": wanted \"handles\", \"read\", \"write\" or \"read-write\"")]
pub struct UnknownTensorAccess {
    seen: String,
}

impl FromStr for TensorAccess {
    type Err = UnknownTensorAccess;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (read, write) = match text {
            "handles" => (false, false),
            "read" => (true, false),
            "write" => (false, true),
            "read-write" => (true, true),
            _ => {
                return Err(UnknownTensorAccess {
                    seen: text.chars().take(64).collect(),
                });
            }
        };
        Ok(Self { read, write })
    }
}

impl TryFrom<String> for TensorAccess {
    type Error = UnknownTensorAccess;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TensorAccess> for String {
    fn from(access: TensorAccess) -> Self {
        access.to_string()
    }
}

/// The values that a module may give a scalar port, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScalarRange {
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl ScalarRange {
    /// Whether `value` lies in the range; NaN lies in none.
    pub fn contains(&self, value: f64) -> bool {
        self.min <= value && value <= self.max
    }
}

/// All that the policy grants a trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Grants {
    /// Reading and making tensors.
    pub tensor_access: TensorAccess,
    /// Scalar ports by name (`learning_rate`, `step`, ...) with the range that the module may set them in. A scalar port that
    /// is not listed cannot be set.
    pub scalars: BTreeMap<String, ScalarRange>,
    /// Output ports of one element (`loss`, `correct`, ...) that the module may read.
    pub reads: BTreeSet<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_reads_and_prints_alike() {
        for text in ["handles", "read", "write", "read-write"] {
            assert_eq!(text.parse::<TensorAccess>().unwrap().to_string(), text);
        }
        assert!("all".parse::<TensorAccess>().is_err());
        assert_eq!(TensorAccess::default(), TensorAccess::HANDLES);
    }

    #[test]
    fn no_range_holds_nan() {
        let range = ScalarRange { min: 0.0, max: 1.0 };
        assert!(range.contains(0.0) && range.contains(1.0) && !range.contains(1.1) && !range.contains(f64::NAN));
        assert!(
            !ScalarRange {
                min: f64::NEG_INFINITY,
                max: f64::INFINITY
            }
            .contains(f64::NAN)
        );
    }
}
