//! What evidence says besides the quote, in CBOR (RFC 8949), in the form of the interoperable RA-TLS format: a map of
//! text to byte strings, whose SHA-256 the quote's report data holds.
//!
//! | claim | value |
//! | --- | --- |
//! | `pubkey-hash` | CBOR array [1, SHA-256 of the TLS key's SubjectPublicKeyInfo]; 1 is sha-256 in IANA's named-information registry |
//! | `nonce` | SHA-256(`cloister/epoch/v1` \| policy digest), until a manager issues epochs |
//! | `cloister` | CBOR array [body, signature]: who the node is and what it runs, below |
//!
//! The body is a CBOR array [1, federation, participant, node, role, state, policy digest, node key, entries], entries
//! an array of [role, name, digest]. The signature is Ed25519 by the node key over `cloister/node/v1` |
//! lp(SHA-256 SPKI) | lp(nonce) | lp(body): so the node key, which a credential names, vouches for this TLS key.
//! Claims of other names are ignored, as the format asks; these three must be there once.

mod cbor;

use std::fmt;
use std::str::FromStr;

use ciborium::Value;
use cloister_tensor::Digest;

use crate::encoding::Layout;
use crate::identity::{PublicKey, Role, SigningKey, is_name};
use crate::measurement::{Entry, EntryRole, MAX_ENTRIES, Measurement, MeasurementError};

pub(crate) use cbor::{array, bytes, decode, encode};

/// Longest claims, in bytes.
pub const MAX_CLAIMS_BYTES: usize = 40 * 1024;

const PUBKEY_HASH: &str = "pubkey-hash";
const NONCE: &str = "nonce";
const CLOISTER: &str = "cloister";
/// sha-256 in IANA's named-information hash algorithm registry.
const SHA_256: u64 = 1;
const BODY_VERSION: u64 = 1;

/// How far a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Measures host and policy: a manager may give it the credential and the keys that the policy grants it.
    Applicant,
    /// Measures host, policy and its own data: it may fetch content.
    Bootstrap,
    /// Measures the modules and graphs of its role, too: it may join.
    Member,
}

impl State {
    /// The state's text in the claims.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applicant => "applicant",
            Self::Bootstrap => "bootstrap",
            Self::Member => "member",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = ClaimsError;

    fn from_str(text: &str) -> Result<Self, ClaimsError> {
        match text {
            "applicant" => Ok(Self::Applicant),
            "bootstrap" => Ok(Self::Bootstrap),
            "member" => Ok(Self::Member),
            _ => Err(ClaimsError::Value {
                claim: "state",
                wanted: "applicant, bootstrap or member",
            }),
        }
    }
}

/// Why bytes are no claims.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    /// Longer than claims can be.
    #[error("claims of {seen} bytes, wanted at most {MAX_CLAIMS_BYTES}")]
    TooLong {
        /// Their length, in bytes.
        seen: usize,
    },
    /// Not CBOR, or bytes behind it.
    #[error("the claims are not one CBOR item: {cause}")]
    Cbor {
        /// What the decoder said.
        cause: String,
    },
    /// A claim is missing or there twice.
    #[error("the claim {claim:?} is there {seen} times, wanted once")]
    Count {
        /// Its name.
        claim: &'static str,
        /// How often it is there.
        seen: usize,
    },
    /// A claim's value has another form.
    #[error("the claim {claim:?} has another form, wanted {wanted}")]
    Value {
        /// Its name.
        claim: &'static str,
        /// The form wanted.
        wanted: &'static str,
    },
    /// The entries are no measurement.
    #[error("the claims' entries: {0}")]
    Measurement(#[from] MeasurementError),
    /// The entries are not in the order that the root is computed in.
    #[error("the claims' entries are not sorted by role and name")]
    Unsorted,
}

/// Who a node says it is and what it says it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeClaims {
    /// The federation's name.
    pub federation: String,
    /// The participant the node belongs to.
    pub participant: String,
    /// The node's name.
    pub node: String,
    /// What it does.
    pub role: Role,
    /// How far it has come.
    pub state: State,
    /// SHA-256 of the policy file it works under.
    pub policy_digest: Digest,
    /// The node's public key; its credential names the same.
    pub node_key: PublicKey,
    /// What it runs.
    pub measurement: Measurement,
}

/// Claims as they were read; nothing here is believed before a quote commits to [`Claims::digest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// SHA-256 of the TLS key's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// The epoch's nonce.
    pub nonce: [u8; 32],
    /// Who and what.
    pub node: NodeClaims,
    /// The node key's signature.
    pub signature: [u8; 64],
    body: Vec<u8>,
    digest: Digest,
}

/// The nonce of claims until a manager issues epochs: SHA-256(`cloister/epoch/v1` | policy digest).
pub fn epoch_nonce(policy_digest: &Digest) -> [u8; 32] {
    *Digest::of(
        &Layout::new("cloister/epoch/v1")
            .raw(policy_digest.as_bytes())
            .into_bytes(),
    )
    .as_bytes()
}

/// Writes claims, signed with the node key. Gives their bytes.
pub fn make(node_key: &SigningKey, spki_sha256: &[u8; 32], node: &NodeClaims) -> Result<Vec<u8>, ClaimsError> {
    let entries = node.measurement.entries().iter().map(|entry| {
        array(vec![
            entry.role.as_str().into(),
            entry.name.as_str().into(),
            bytes(entry.digest.as_bytes()),
        ])
    });
    let body = encode(&array(vec![
        BODY_VERSION.into(),
        node.federation.as_str().into(),
        node.participant.as_str().into(),
        node.node.as_str().into(),
        node.role.as_str().into(),
        node.state.as_str().into(),
        bytes(node.policy_digest.as_bytes()),
        bytes(node.node_key.as_bytes()),
        array(entries.collect()),
    ]))?;
    let nonce = epoch_nonce(&node.policy_digest);
    let signature = node_key.sign(&signed_message(spki_sha256, &nonce, &body));
    let pubkey_hash = encode(&array(vec![SHA_256.into(), bytes(spki_sha256)]))?;
    let cloister = encode(&array(vec![bytes(&body), bytes(&signature)]))?;
    let claims = encode(&Value::Map(vec![
        (PUBKEY_HASH.into(), bytes(&pubkey_hash)),
        (NONCE.into(), bytes(&nonce)),
        (CLOISTER.into(), bytes(&cloister)),
    ]))?;
    if claims.len() > MAX_CLAIMS_BYTES {
        return Err(ClaimsError::TooLong { seen: claims.len() });
    }
    Ok(claims)
}

fn signed_message(spki_sha256: &[u8; 32], nonce: &[u8; 32], body: &[u8]) -> Vec<u8> {
    Layout::new("cloister/node/v1")
        .lp(spki_sha256)
        .lp(nonce)
        .lp(body)
        .into_bytes()
}

impl Claims {
    /// Reads claims off the wire.
    ///
    /// # Errors
    /// [`ClaimsError`] says what is wrong.
    pub fn parse(input: &[u8]) -> Result<Self, ClaimsError> {
        if input.len() > MAX_CLAIMS_BYTES {
            return Err(ClaimsError::TooLong { seen: input.len() });
        }
        let Value::Map(map) = decode(input)? else {
            return Err(ClaimsError::Value {
                claim: "claims",
                wanted: "a map of text to byte strings",
            });
        };
        let spki_sha256 = pubkey_hash(once(&map, PUBKEY_HASH)?)?;
        let nonce = fixed(once(&map, NONCE)?, NONCE, "32 bytes")?;
        let Ok([Value::Bytes(body), Value::Bytes(signature)]) = items::<2>(&decode(once(&map, CLOISTER)?)?) else {
            return Err(ClaimsError::Value {
                claim: CLOISTER,
                wanted: "[body, signature]",
            });
        };
        let signature = fixed(&signature, "signature", "64 bytes")?;
        let node = parse_body(&body)?;
        Ok(Self {
            spki_sha256,
            nonce,
            node,
            signature,
            body,
            digest: Digest::of(input),
        })
    }

    /// SHA-256 of the claims' bytes: what report data commits to.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether the node key signed the TLS key and the body.
    pub fn signed_by_node(&self) -> bool {
        self.node.node_key.verify(
            &signed_message(&self.spki_sha256, &self.nonce, &self.body),
            &self.signature,
        )
    }
}

fn once<'a>(map: &'a [(Value, Value)], claim: &'static str) -> Result<&'a [u8], ClaimsError> {
    let mut found = map
        .iter()
        .filter(|(name, _)| name.as_text() == Some(claim))
        .map(|(_, value)| value);
    match (found.next(), found.count()) {
        (Some(Value::Bytes(bytes)), 0) => Ok(bytes),
        (Some(_), 0) => Err(ClaimsError::Value {
            claim,
            wanted: "a byte string",
        }),
        (None, _) => Err(ClaimsError::Count { claim, seen: 0 }),
        (Some(_), more) => Err(ClaimsError::Count { claim, seen: more + 1 }),
    }
}

fn pubkey_hash(value: &[u8]) -> Result<[u8; 32], ClaimsError> {
    match items::<2>(&decode(value)?) {
        Ok([Value::Integer(algorithm), Value::Bytes(hash)]) if algorithm == SHA_256.into() => {
            fixed(&hash, PUBKEY_HASH, "a hash of 32 bytes")
        }
        _ => Err(ClaimsError::Value {
            claim: PUBKEY_HASH,
            wanted: "[1, SHA-256]",
        }),
    }
}

fn parse_body(body: &[u8]) -> Result<NodeClaims, ClaimsError> {
    let wanted = "[1, federation, participant, node, role, state, policy digest, node key, entries]";
    let value = decode(body)?;
    let Ok(
        [
            Value::Integer(version),
            Value::Text(federation),
            Value::Text(participant),
            Value::Text(node),
            Value::Text(role),
            Value::Text(state),
            Value::Bytes(policy),
            Value::Bytes(key),
            Value::Array(entries),
        ],
    ) = items::<9>(&value)
    else {
        return Err(ClaimsError::Value {
            claim: CLOISTER,
            wanted,
        });
    };
    if version != BODY_VERSION.into() {
        return Err(ClaimsError::Value {
            claim: CLOISTER,
            wanted: "version 1",
        });
    }
    if ![&federation, &participant, &node].into_iter().all(|name| is_name(name)) {
        return Err(ClaimsError::Value {
            claim: CLOISTER,
            wanted: "names of a-z, 0-9, '-', '_', '.'",
        });
    }
    let role = role.parse().map_err(|_| ClaimsError::Value {
        claim: "role",
        wanted: "a role",
    })?;
    let policy_digest = Digest::from_bytes(fixed(&policy, "policy digest", "32 bytes")?);
    let node_key = PublicKey::from_bytes(fixed(&key, "node key", "32 bytes")?);
    let measurement = parse_entries(&entries)?;
    Ok(NodeClaims {
        federation,
        participant,
        node,
        role,
        state: state.parse()?,
        policy_digest,
        node_key,
        measurement,
    })
}

fn parse_entries(entries: &[Value]) -> Result<Measurement, ClaimsError> {
    if entries.len() > MAX_ENTRIES {
        return Err(MeasurementError::TooMany { seen: entries.len() }.into());
    }
    let parsed: Vec<Entry> = entries.iter().map(parse_entry).collect::<Result<_, _>>()?;
    let measurement = Measurement::new(parsed.clone())?;
    if measurement.entries() == parsed {
        Ok(measurement)
    } else {
        Err(ClaimsError::Unsorted)
    }
}

fn parse_entry(entry: &Value) -> Result<Entry, ClaimsError> {
    let Ok([Value::Text(role), Value::Text(name), Value::Bytes(digest)]) = items::<3>(entry) else {
        return Err(ClaimsError::Value {
            claim: "entries",
            wanted: "[role, name, digest]",
        });
    };
    let role: EntryRole = role.parse()?;
    Ok(Entry::new(
        role,
        name,
        Digest::from_bytes(fixed(&digest, "entries", "digests of 32 bytes")?),
    ))
}

fn items<const N: usize>(value: &Value) -> Result<[Value; N], ()> {
    match value {
        Value::Array(items) if items.len() == N => items.clone().try_into().map_err(|_| ()),
        _ => Err(()),
    }
}

fn fixed<const N: usize>(bytes: &[u8], claim: &'static str, wanted: &'static str) -> Result<[u8; N], ClaimsError> {
    bytes.try_into().map_err(|_| ClaimsError::Value { claim, wanted })
}

#[cfg(test)]
mod tests;
