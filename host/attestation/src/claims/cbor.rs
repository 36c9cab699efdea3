//! CBOR in bounds: one item, no deeper than eight levels, nothing behind it.

use ciborium::Value;

use super::ClaimsError;

/// Deepest nesting that is followed.
const MAX_DEPTH: usize = 8;

/// Reads one CBOR item that takes the whole input.
pub(crate) fn decode(input: &[u8]) -> Result<Value, ClaimsError> {
    let mut rest = input;
    let value =
        ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH).map_err(|error| ClaimsError::Cbor {
            cause: error.to_string(),
        })?;
    if rest.is_empty() {
        Ok(value)
    } else {
        Err(ClaimsError::Cbor {
            cause: "bytes behind the item".into(),
        })
    }
}

/// Writes an item.
pub(crate) fn encode(value: &Value) -> Result<Vec<u8>, ClaimsError> {
    let mut out = Vec::new();
    ciborium::into_writer(value, &mut out).map_err(|error| ClaimsError::Cbor {
        cause: error.to_string(),
    })?;
    Ok(out)
}

/// A byte string.
pub(crate) fn bytes(bytes: &[u8]) -> Value {
    Value::Bytes(bytes.to_vec())
}

/// An array.
pub(crate) fn array(items: Vec<Value>) -> Value {
    Value::Array(items)
}
