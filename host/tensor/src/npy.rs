//! One array in NumPy's format (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>):
//! magic, version, header length, a Python dictionary literal, raw data.

use crate::Dtype;

const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Bytes of a header's dictionary at most; NumPy's own reader stops at 10,000.
pub(crate) const MAX_HEADER_BYTES: usize = 10_000;

/// Data begins on a multiple of this.
const ALIGNMENT: usize = 64;

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub struct Header {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, row-major.
    pub dims: Vec<usize>,
}

/// Reads the header off the front of `from`, which is left at the data.
///
/// # Errors
/// In words: it is no such header, or of an array that is not read (big-endian, column by column, objects).
pub fn read_header(mut from: impl std::io::Read) -> Result<Header, String> {
    let mut front = [0; 8];
    from.read_exact(&mut front)
        .map_err(|error| format!("cannot read its header: {error}"))?;
    let [magic @ .., major, _minor] = &front;
    if magic != MAGIC {
        return Err("it does not begin as a NumPy array does".into());
    }
    let length = match major {
        1 => {
            let mut length = [0; 2];
            from.read_exact(&mut length)
                .map_err(|error| format!("cannot read its header: {error}"))?;
            usize::from(u16::from_le_bytes(length))
        }
        2 | 3 => {
            let mut length = [0; 4];
            from.read_exact(&mut length)
                .map_err(|error| format!("cannot read its header: {error}"))?;
            u32::from_le_bytes(length) as usize
        }
        other => return Err(format!("array format version {other}, wanted 1 to 3")),
    };
    if length > MAX_HEADER_BYTES {
        return Err(format!("a header of {length} bytes, wanted at most {MAX_HEADER_BYTES}"));
    }
    let mut text = vec![0; length];
    from.read_exact(&mut text)
        .map_err(|error| format!("cannot read its header: {error}"))?;
    parse(std::str::from_utf8(&text).map_err(|_| "its header is not text".to_owned())?)
}

/// The header of an array, padded so that what follows it is aligned; `None` if NumPy has no such type.
pub(crate) fn header(dtype: Dtype, dims: &[usize]) -> Option<Vec<u8>> {
    let shape = match dims {
        [] => "()".to_owned(),
        [only] => format!("({only},)"),
        more => format!(
            "({})",
            more.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
    };
    let mut text = format!(
        "{{'descr': '{}', 'fortran_order': False, 'shape': {shape}, }}",
        descr(dtype)?
    );
    let front = MAGIC.len() + 2 + 2;
    while !(front + text.len() + 1).is_multiple_of(ALIGNMENT) {
        text.push(' ');
    }
    text.push('\n');
    let mut header = Vec::with_capacity(front + text.len());
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&[1, 0]);
    header.extend_from_slice(&u16::try_from(text.len()).ok()?.to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    Some(header)
}

fn descr(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F32 => Some("<f4"),
        Dtype::F64 => Some("<f8"),
        Dtype::F16 => Some("<f2"),
        Dtype::I64 => Some("<i8"),
        Dtype::I32 => Some("<i4"),
        Dtype::U8 => Some("|u1"),
        Dtype::Bool => Some("|b1"),
        Dtype::Bf16 => None,
    }
}

fn from_descr(text: &str) -> Result<Dtype, String> {
    let found = match text {
        "|i1" | "<u2" | "<u4" | "<u8" | "<i2" => None,
        "<u1" => Some(Dtype::U8),
        "<b1" => Some(Dtype::Bool),
        _ => Dtype::ALL.into_iter().find(|&dtype| descr(dtype) == Some(text)),
    };
    found.ok_or_else(|| {
        let advice = if text.starts_with('>') {
            "save it in little-endian order"
        } else {
            "convert it with .astype to float32, float64, float16, int64, int32, uint8 or bool"
        };
        format!(
            "element type '{}' is not supported: {advice}",
            text.chars().take(20).collect::<String>()
        )
    })
}

/// Parses the one dictionary that NumPy writes: three keys, in any order, each once.
fn parse(text: &str) -> Result<Header, String> {
    let mut scan = Scan(text.trim_end_matches(['\n', ' ', '\0']));
    let (mut dtype, mut order, mut dims) = (None, None, None);
    scan.take("{")?;
    while !scan.skip("}") {
        let key = scan.quoted()?;
        scan.take(":")?;
        let fresh = match key {
            "descr" => dtype.replace(from_descr(scan.quoted()?)?).is_none(),
            "fortran_order" => order.replace(scan.boolean()?).is_none(),
            "shape" => dims.replace(scan.tuple()?).is_none(),
            _ => {
                return Err(format!(
                    "unknown header key '{}'",
                    key.chars().take(20).collect::<String>()
                ));
            }
        };
        if !fresh {
            return Err(format!("header key '{key}' twice"));
        }
        if !scan.skip(",") {
            scan.take("}")?;
            break;
        }
    }
    if !scan.rest().is_empty() {
        return Err("text after its header".into());
    }
    let (Some(dtype), Some(fortran), Some(dims)) = (dtype, order, dims) else {
        return Err("its header lacks descr, fortran_order or shape".into());
    };
    if fortran && dims.len() > 1 {
        return Err("it is stored column by column: save np.ascontiguousarray of it".into());
    }
    Ok(Header { dtype, dims })
}

struct Scan<'a>(&'a str);

impl<'a> Scan<'a> {
    fn rest(&mut self) -> &'a str {
        self.0 = self.0.trim_start_matches([' ', '\n', '\t']);
        self.0
    }

    fn skip(&mut self, token: &str) -> bool {
        let rest = self.rest().strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn take(&mut self, token: &str) -> Result<(), String> {
        if self.skip(token) {
            Ok(())
        } else {
            Err(format!("its header is malformed: wanted {token:?}"))
        }
    }

    fn quoted(&mut self) -> Result<&'a str, String> {
        let quote = if self.skip("'") {
            '\''
        } else {
            self.take("\"")?;
            '"'
        };
        let (inside, rest) = self
            .0
            .split_once(quote)
            .ok_or("its header is malformed: a text without an end")?;
        self.0 = rest;
        Ok(inside)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        if self.skip("True") {
            return Ok(true);
        }
        self.take("False").map(|()| false)
    }

    fn tuple(&mut self) -> Result<Vec<usize>, String> {
        self.take("(")?;
        let mut dims = Vec::new();
        while !self.skip(")") {
            if dims.len() == crate::MAX_RANK {
                return Err(format!("more than {} dimensions", crate::MAX_RANK));
            }
            let rest = self.rest();
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let dim = rest[..digits]
                .parse()
                .map_err(|_| "its header is malformed: wanted a dimension".to_owned())?;
            dims.push(dim);
            self.0 = rest[digits..].strip_prefix('L').unwrap_or(&rest[digits..]);
            if !self.skip(",") {
                self.take(")")?;
                break;
            }
        }
        Ok(dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_headers_read_back() {
        for dims in [&[][..], &[3], &[2, 3], &[0], &[1, 2, 3, 4, 5, 6, 7, 8]] {
            for dtype in Dtype::ALL {
                let Some(bytes) = header(dtype, dims) else {
                    assert_eq!(dtype, Dtype::Bf16);
                    continue;
                };
                assert_eq!(bytes.len() % ALIGNMENT, 0);
                assert_eq!(
                    read_header(&bytes[..]).unwrap(),
                    Header {
                        dtype,
                        dims: dims.to_vec()
                    }
                );
            }
        }
    }

    #[test]
    fn broken_headers_are_refused() {
        for (text, said) in [
            ("", "malformed"),
            ("{", "malformed"),
            ("{}", "lacks"),
            ("{'descr': '<f4', 'fortran_order': False}", "lacks"),
            (
                "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}",
                "twice",
            ),
            (
                "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
                "not supported",
            ),
            (
                "{'descr': '>f4', 'fortran_order': False, 'shape': (1,)}",
                "little-endian",
            ),
            (
                "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3)}",
                "ascontiguousarray",
            ),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "dimension"),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,)}",
                "dimension",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}",
                "more than 8",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} import os",
                "after its header",
            ),
            (
                "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}",
                "unknown header key",
            ),
            ("{'descr': '<f4", "without an end"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
