//! Length-prefixed strings and hexadecimal text: how everything that is hashed or signed here is laid out.

use std::fmt::Write as _;

/// A message to hash or to sign: a domain, then fields, each behind its length as u32, big endian (written `lp(x)` in
/// the layouts of this crate). Two different lists of fields never give the same bytes.
#[derive(Clone, Debug)]
pub struct Layout {
    bytes: Vec<u8>,
}

impl Layout {
    /// Starts with the domain's bytes as they are, such as `cloister/session/v1`.
    pub fn new(domain: &str) -> Self {
        Self {
            bytes: domain.as_bytes().to_vec(),
        }
    }

    /// Adds `lp(field)`. Fields here are at most a few kilobytes; beyond u32 the length saturates, which no other
    /// list of fields can imitate.
    #[must_use]
    pub fn lp(mut self, field: &[u8]) -> Self {
        let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(field);
        self
    }

    /// Adds a field of fixed length without a prefix.
    #[must_use]
    pub fn raw(mut self, field: &[u8]) -> Self {
        self.bytes.extend_from_slice(field);
        self
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Reads hexadecimal of exactly `N` bytes, either case. `None` for anything else.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    from_hex_vec(text)?.try_into().ok()
}

/// Reads hexadecimal of any length, either case. `None` for anything else.
pub fn from_hex_vec(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|&[high, low]| Some((nibble(high)? << 4) | nibble(low)?))
        .collect()
}

fn nibble(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_cannot_slide_into_each_other() {
        let one = Layout::new("x").lp(b"ab").lp(b"c").into_bytes();
        let two = Layout::new("x").lp(b"a").lp(b"bc").into_bytes();
        assert_ne!(one, two);
        assert_eq!(one, b"x\0\0\0\x02ab\0\0\0\x01c");
    }

    #[test]
    fn hex_goes_both_ways_and_refuses_the_rest() {
        assert_eq!(from_hex::<3>(&hex(&[0, 0xab, 0x7f])), Some([0, 0xab, 0x7f]));
        assert_eq!(from_hex::<1>("AB"), Some([0xab]));
        assert_eq!(from_hex::<2>("ab"), None);
        assert_eq!(from_hex_vec("abc"), None);
        assert_eq!(from_hex_vec("zz"), None);
        assert_eq!(from_hex_vec("+1"), None);
    }
}
