//! The protobuf wire format: just enough to read ONNX within limits and to write it canonically.
//!
//! Read by hand rather than through generated types, so that counts are checked before anything is allocated, and so
//! that a field this crate doesn't know is refused instead of skipped.

use crate::error::GraphError;

/// One field's content.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 1.
    Fixed64(u64),
    /// Wire type 2.
    Bytes(&'a [u8]),
    /// Wire type 5.
    Fixed32(u32),
}

/// A field as it stands in a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    pub(crate) content: Content<'a>,
    /// Offset of the field's content in the whole file.
    pub(crate) offset: usize,
}

/// Walks over the fields of one message.
#[derive(Clone, Debug)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Offset of `bytes` in the whole file.
    base: usize,
}

fn malformed(what: impl Into<String>, offset: usize) -> GraphError {
    GraphError::Malformed {
        what: what.into(),
        offset,
    }
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8], base: usize) -> Self {
        Self { bytes, at: 0, base }
    }

    fn varint(&mut self) -> Result<u64, GraphError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let Some(&byte) = self.bytes.get(self.at) else {
                return Err(malformed("the file ends within a number", self.base + self.at));
            };
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number longer than 64 bits", self.base + self.at))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], GraphError> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            let left = self.bytes.len() - self.at;
            return Err(malformed(
                format!("a field of {length} bytes where {left} are left"),
                self.base + self.at,
            ));
        };
        let piece = &self.bytes[self.at..end];
        self.at = end;
        Ok(piece)
    }

    /// The next field, or `None` at the end of the message.
    pub(crate) fn next(&mut self) -> Result<Option<Field<'a>>, GraphError> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).unwrap_or(0);
        if number == 0 {
            return Err(malformed("a field without a number", self.base + self.at));
        }
        let kind = key & 7;
        let length = if kind == 2 {
            usize::try_from(self.varint()?).unwrap_or(usize::MAX)
        } else {
            0
        };
        let offset = self.base + self.at;
        let content = match kind {
            0 => Content::Varint(self.varint()?),
            1 => Content::Fixed64(little_endian(self.take(8)?)),
            2 => Content::Bytes(self.take(length)?),
            5 => Content::Fixed32(little_endian(self.take(4)?) as u32),
            other => {
                return Err(malformed(
                    format!("field {number} has the unknown wire type {other}"),
                    offset,
                ));
            }
        };
        Ok(Some(Field {
            number,
            content,
            offset,
        }))
    }
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

impl<'a> Field<'a> {
    pub(crate) fn error(&self, what: impl Into<String>) -> GraphError {
        malformed(what, self.offset)
    }

    pub(crate) fn bytes(&self) -> Result<&'a [u8], GraphError> {
        match self.content {
            Content::Bytes(bytes) => Ok(bytes),
            _ => Err(self.error(format!("field {} is a number where bytes are wanted", self.number))),
        }
    }

    pub(crate) fn message(&self) -> Result<Fields<'a>, GraphError> {
        Ok(Fields::new(self.bytes()?, self.offset))
    }

    pub(crate) fn text(&self, limit: usize) -> Result<&'a str, GraphError> {
        let bytes = self.bytes()?;
        if bytes.len() > limit {
            return Err(GraphError::Limit {
                what: "bytes in a name or text",
                seen: bytes.len() as u64,
                limit: limit as u64,
            });
        }
        std::str::from_utf8(bytes).map_err(|_| self.error("a name that is not UTF-8"))
    }

    pub(crate) fn int(&self) -> Result<i64, GraphError> {
        match self.content {
            Content::Varint(value) => Ok(value as i64),
            _ => Err(self.error(format!("field {} is not an integer", self.number))),
        }
    }

    pub(crate) fn float(&self) -> Result<f32, GraphError> {
        match self.content {
            Content::Fixed32(bits) => Ok(f32::from_bits(bits)),
            _ => Err(self.error(format!("field {} is not a 32-bit float", self.number))),
        }
    }

    /// Appends a repeated integer, packed or not.
    pub(crate) fn ints_into(&self, values: &mut Vec<i64>, limit: usize) -> Result<(), GraphError> {
        match self.content {
            Content::Varint(value) => values.push(value as i64),
            Content::Bytes(bytes) => {
                let mut packed = Fields::new(bytes, self.offset);
                while packed.at < bytes.len() {
                    values.push(packed.varint()? as i64);
                    if values.len() > limit {
                        break;
                    }
                }
            }
            _ => return Err(self.error(format!("field {} is not a list of integers", self.number))),
        }
        within("numbers in one list", values.len(), limit)
    }

    /// Appends repeated numbers of `size` bytes each as little-endian bytes, packed or not.
    pub(crate) fn fixed_into(&self, bytes: &mut Vec<u8>, size: usize, limit: usize) -> Result<(), GraphError> {
        match self.content {
            Content::Fixed32(value) if size == 4 => bytes.extend_from_slice(&value.to_le_bytes()),
            Content::Fixed64(value) if size == 8 => bytes.extend_from_slice(&value.to_le_bytes()),
            Content::Bytes(packed) if packed.len() % size == 0 => {
                within("numbers in one list", bytes.len() / size + packed.len() / size, limit)?;
                bytes.extend_from_slice(packed);
            }
            _ => return Err(self.error(format!("field {} is not a list of {size}-byte numbers", self.number))),
        }
        within("numbers in one list", bytes.len() / size, limit)
    }
}

/// Checks a count against its limit.
pub(crate) fn within(what: &'static str, seen: usize, limit: usize) -> Result<(), GraphError> {
    if seen > limit {
        return Err(GraphError::Limit {
            what,
            seen: seen as u64,
            limit: limit as u64,
        });
    }
    Ok(())
}

/// Writes a message; fields in the order of the calls.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn push_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    pub(crate) fn int(&mut self, number: u32, value: i64) {
        self.push_varint(u64::from(number) << 3);
        self.push_varint(value as u64);
    }

    pub(crate) fn float(&mut self, number: u32, value: f32) {
        self.push_varint(u64::from(number) << 3 | 5);
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, number: u32, content: &[u8]) {
        self.push_varint(u64::from(number) << 3 | 2);
        self.push_varint(content.len() as u64);
        self.bytes.extend_from_slice(content);
    }

    pub(crate) fn message(&mut self, number: u32, content: Writer) {
        self.bytes(number, &content.bytes);
    }

    pub(crate) fn packed_ints(&mut self, number: u32, values: &[i64]) {
        let mut packed = Self::default();
        for &value in values {
            packed.push_varint(value as u64);
        }
        self.message(number, packed);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}
