//! Who a node is: Ed25519 keys, roles, and the credential with which a participant endorses a node.

mod credential;
mod key;
mod role;

pub use credential::{Credential, CredentialError, CredentialFields, MAX_CREDENTIAL_BYTES, endorse};
pub use key::{KeyError, PublicKey, SigningKey};
pub use role::{Role, UnknownRole};

/// Longest name of a federation, participant or node, in bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// Whether a text can name a federation, a participant or a node: 1 to 64 bytes of lower-case letters, digits,
/// `-`, `_` and `.`, beginning with a letter or digit.
pub fn is_name(text: &str) -> bool {
    let first = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    let rest = text
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
    first && rest && text.len() <= MAX_NAME_BYTES
}
