//! What the policy grants a module.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use cloister_tensor::Dtype;
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

    /// The range as a port of that type has it: both ends rounded to the type, as a module's own number is before it is compared.
    /// In f32 the number 0.1 is more than 0.1; it still is the end of `0..0.1`. No end becomes infinite by rounding.
    #[must_use]
    pub fn rounded_to(self, dtype: Dtype) -> Self {
        if dtype != Dtype::F32 {
            return self;
        }
        let round = |end: f64| {
            let rounded = end as f32;
            f64::from(if end.is_finite() {
                rounded.clamp(f32::MIN, f32::MAX)
            } else {
                rounded
            })
        };
        Self {
            min: round(self.min),
            max: round(self.max),
        }
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
    fn the_end_of_a_range_is_in_it_in_the_ports_type() {
        let range = ScalarRange { min: 0.0, max: 0.1 };
        let seen = f64::from(0.1_f32);
        assert!(!range.contains(seen), "in 64 bits the two differ");
        let rounded = range.rounded_to(Dtype::F32);
        assert!(rounded.contains(seen) && !rounded.contains(f64::from(0.1_f32.next_up())));
        assert_eq!(range.rounded_to(Dtype::I64), range);
        let wide = ScalarRange {
            min: -1e300,
            max: 1e300,
        }
        .rounded_to(Dtype::F32);
        assert!(wide.contains(f64::from(f32::MAX)) && !wide.contains(f64::INFINITY));
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
