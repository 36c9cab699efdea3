//! A cell's number, made into the bytes of an input's type.

use cloister_policy::InputType;
use cloister_tensor::Dtype;

/// A number as the file has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Raw {
    /// Whole, exact (i128 holds both i64 and u64).
    Whole(i128),
    /// Anything else.
    Real(f64),
}

impl Raw {
    /// Reads the text of a cell: a whole number or a decimal one, `1e-3` form allowed; surrounding spaces are ignored.
    pub(crate) fn parse(cell: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(cell).ok()?.trim_matches([' ', '\t']);
        // 39 digits hold every i128; longer ones are decimals, as a float reads them.
        if text.len() <= 39
            && let Ok(whole) = text.parse::<i128>()
        {
            return Some(Self::Whole(whole));
        }
        let real: f64 = text.parse().ok()?;
        // `parse` takes "nan" and "inf" and makes 1e999 infinite: none is a number to train on.
        real.is_finite().then_some(Self::Real(real))
    }

    /// The nearest f64: whole numbers beyond 2^53 are rounded.
    fn as_f64(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Real(real) => real,
        }
    }
}

impl std::fmt::Display for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(whole) => write!(f, "{whole}"),
            Self::Real(real) => write!(f, "{real}"),
        }
    }
}

/// The dtype of an input's tensors.
pub(crate) fn dtype_of(kind: InputType) -> Dtype {
    match kind {
        InputType::U8 => Dtype::U8,
        InputType::F32 => Dtype::F32,
        InputType::I64 => Dtype::I64,
    }
}

/// How a column's values are made: `raw * scale + offset`, then the type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conversion {
    pub(crate) kind: InputType,
    pub(crate) scale: f64,
    pub(crate) offset: f64,
}

impl Conversion {
    /// What a cell must hold, for an error.
    pub(crate) fn wanted(self) -> String {
        let what = match self.kind {
            InputType::U8 => "a whole number from 0 to 255",
            InputType::F32 => "a finite number that fits f32",
            InputType::I64 => "a whole number that fits i64",
        };
        if self.is_identity() {
            what.to_owned()
        } else {
            format!("{what} after * {} + {}", self.scale, self.offset)
        }
    }

    /// Writes the value's little-endian bytes into `out` (as long as the type); `None` if the type can't hold it.
    pub(crate) fn write(self, raw: Raw, out: &mut [u8]) -> Option<()> {
        match self.kind {
            InputType::F32 => {
                let value = self.real(raw) as f32;
                put(out, value.is_finite().then(|| value.to_le_bytes())?)
            }
            InputType::I64 => put(out, self.whole(raw)?.to_le_bytes()),
            InputType::U8 => put(out, [u8::try_from(self.whole(raw)?).ok()?]),
        }
    }

    /// Exactly 1 and 0, as the policy has them, mean untouched.
    fn is_identity(self) -> bool {
        self.scale == 1.0 && self.offset == 0.0
    }

    fn real(self, raw: Raw) -> f64 {
        if self.is_identity() {
            raw.as_f64()
        } else {
            raw.as_f64() * self.scale + self.offset
        }
    }

    /// The value as a whole number; exact where nothing is scaled.
    fn whole(self, raw: Raw) -> Option<i64> {
        if self.is_identity()
            && let Raw::Whole(whole) = raw
        {
            return i64::try_from(whole).ok();
        }
        let value = self.real(raw);
        // 2^63 is the first number beyond i64; below it the cast is exact.
        const BEYOND: f64 = 9_223_372_036_854_775_808.0;
        (value.fract() == 0.0 && (-BEYOND..BEYOND).contains(&value)).then_some(value as i64)
    }
}

fn put<const N: usize>(out: &mut [u8], bytes: [u8; N]) -> Option<()> {
    (out.len() == N).then(|| out.copy_from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn i64_of(text: &str) -> Option<i64> {
        let mut out = [0; 8];
        Conversion {
            kind: InputType::I64,
            scale: 1.0,
            offset: 0.0,
        }
        .write(Raw::parse(text.as_bytes())?, &mut out)?;
        Some(i64::from_le_bytes(out))
    }

    fn f32_of(text: &str, scale: f64, offset: f64) -> Option<f32> {
        let mut out = [0; 4];
        Conversion {
            kind: InputType::F32,
            scale,
            offset,
        }
        .write(Raw::parse(text.as_bytes())?, &mut out)?;
        Some(f32::from_le_bytes(out))
    }

    #[test]
    fn whole_numbers_are_exact() {
        assert_eq!(i64_of("9223372036854775807"), Some(i64::MAX));
        assert_eq!(i64_of("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(i64_of(" 7 "), Some(7));
        assert_eq!(i64_of("7.0"), Some(7));
        assert_eq!(i64_of("1e3"), Some(1000));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let broken = [
            "9223372036854775808",
            "-9223372036854775809",
            "9223372036854775808.0",
            "7.5",
            "1e999",
            "nan",
            "inf",
            "-inf",
        ];
        for text in broken.into_iter().chain(["", " ", "0x1f", "1_000", "1,5", "--1"]) {
            assert_eq!(i64_of(text), None, "{text:?}");
        }
        assert_eq!(i64_of(&"9".repeat(10_000)), None);
        assert_eq!(f32_of(&"9".repeat(10_000), 1.0, 0.0), None);
        assert_eq!(f32_of("1e39", 1.0, 0.0), None, "beyond f32");
    }

    #[test]
    fn a_byte_holds_a_byte() {
        let of = |raw| {
            let mut out = [7];
            let conversion = Conversion {
                kind: InputType::U8,
                scale: 1.0,
                offset: 0.0,
            };
            conversion.write(raw, &mut out).map(|()| out[0])
        };
        assert_eq!(
            (of(Raw::Whole(0)), of(Raw::Whole(255)), of(Raw::Real(9.0))),
            (Some(0), Some(255), Some(9))
        );
        for raw in [Raw::Whole(256), Raw::Whole(-1), Raw::Real(0.5), Raw::Real(f64::NAN)] {
            assert_eq!(of(raw), None);
        }
    }

    #[test]
    fn values_are_scaled_and_moved() {
        assert_eq!(f32_of("16", 0.0625, 0.0), Some(1.0));
        assert_eq!(f32_of("3", 2.0, -1.5), Some(4.5));
        assert_eq!(f32_of("1e300", 1e300, 0.0), None);
    }
}
