//! Credentials: a participant's key says which node key is which node of which federation, and until when.
//!
//! The file is TOML:
//!
//! ```toml
//! format = 1
//! federation = "digits"
//! participant = "alpha"
//! node = "worker-a"
//! role = "worker"
//! node_key = "base64 of 32 bytes"
//! not_after_unix_s = 1795132800
//! signature = "base64 of 64 bytes"
//! ```
//!
//! The signature is the participant's Ed25519 over `cloister/credential/v1` | lp(federation) | lp(participant) |
//! lp(node) | lp(role) | lp(node key) | u64be not-after.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{MAX_NAME_BYTES, PublicKey, Role, SigningKey, is_name};
use crate::encoding::Layout;
use crate::refusal::FailedRule;

/// Longest credential, in bytes of its text.
pub const MAX_CREDENTIAL_BYTES: usize = 4096;

/// Why a text is no credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// Longer than a credential can be.
    #[error("a credential of {seen} bytes, wanted at most {MAX_CREDENTIAL_BYTES}")]
    TooLong {
        /// Its length, in bytes.
        seen: usize,
    },
    /// Not the TOML of a credential.
    #[error("this is no credential: {cause}; `cloister identity endorse` writes one")]
    Malformed {
        /// Line, column and what was wanted there.
        cause: String,
    },
    /// A format of another time.
    #[error("a credential of format {seen}, wanted 1")]
    Format {
        /// The format it says.
        seen: u32,
    },
    /// A name that is none.
    #[error("the credential's {field} is {seen:?}, wanted 1 to {MAX_NAME_BYTES} of a-z, 0-9, '-', '_', '.'")]
    Name {
        /// Which field.
        field: &'static str,
        /// What stood there, cut.
        seen: String,
    },
    /// The signature is not 64 bytes of base64.
    #[error("the credential's signature is not base64 of 64 bytes")]
    Signature,
}

/// What a credential says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFields {
    /// The federation's name, as in the policy.
    pub federation: String,
    /// The participant that endorses, as in the policy.
    pub participant: String,
    /// The node's name, as in the policy.
    pub node: String,
    /// What the node does.
    pub role: Role,
    /// The node's public key.
    pub node_key: PublicKey,
    /// Last second at which it holds, since 1970.
    pub not_after_unix_s: u64,
}

impl CredentialFields {
    fn message(&self) -> Vec<u8> {
        Layout::new("cloister/credential/v1")
            .lp(self.federation.as_bytes())
            .lp(self.participant.as_bytes())
            .lp(self.node.as_bytes())
            .lp(self.role.as_str().as_bytes())
            .lp(self.node_key.as_bytes())
            .raw(&self.not_after_unix_s.to_be_bytes())
            .into_bytes()
    }

    fn check(&self) -> Result<(), CredentialError> {
        for (field, text) in [
            ("federation", &self.federation),
            ("participant", &self.participant),
            ("node", &self.node),
        ] {
            if !is_name(text) {
                return Err(CredentialError::Name {
                    field,
                    seen: text.chars().take(64).collect(),
                });
            }
        }
        Ok(())
    }
}

/// A credential as it was read: its signature is looked at by [`Credential::verify`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// What it says.
    pub fields: CredentialFields,
    /// The participant's signature.
    pub signature: [u8; 64],
}

/// Endorses a node with its participant's key.
///
/// # Errors
/// [`CredentialError::Name`] if a name can't be one.
pub fn endorse(participant_key: &SigningKey, fields: CredentialFields) -> Result<Credential, CredentialError> {
    fields.check()?;
    let signature = participant_key.sign(&fields.message());
    Ok(Credential { fields, signature })
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    federation: String,
    participant: String,
    node: String,
    role: Role,
    node_key: PublicKey,
    not_after_unix_s: u64,
    signature: String,
}

impl Credential {
    /// Reads a credential file's text.
    ///
    /// # Errors
    /// [`CredentialError`] says what is wrong and where.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        if text.len() > MAX_CREDENTIAL_BYTES {
            return Err(CredentialError::TooLong { seen: text.len() });
        }
        let file: File = toml::from_str(text).map_err(|error| CredentialError::Malformed {
            cause: error.to_string(),
        })?;
        if file.format != 1 {
            return Err(CredentialError::Format { seen: file.format });
        }
        let signature = STANDARD
            .decode(&file.signature)
            .ok()
            .and_then(|bytes| bytes.try_into().ok());
        let fields = CredentialFields {
            federation: file.federation,
            participant: file.participant,
            node: file.node,
            role: file.role,
            node_key: file.node_key,
            not_after_unix_s: file.not_after_unix_s,
        };
        fields.check()?;
        Ok(Self {
            fields,
            signature: signature.ok_or(CredentialError::Signature)?,
        })
    }

    /// The credential file's text.
    pub fn to_text(&self) -> String {
        let CredentialFields {
            federation,
            participant,
            node,
            role,
            node_key,
            not_after_unix_s,
        } = &self.fields;
        let signature = STANDARD.encode(self.signature);
        format!(
            "# A participant endorses a node. Not secret: the node shows it to its peers.\n\
             format = 1\nfederation = \"{federation}\"\nparticipant = \"{participant}\"\nnode = \"{node}\"\n\
             role = \"{role}\"\nnode_key = \"{node_key}\"\nnot_after_unix_s = {not_after_unix_s}\n\
             signature = \"{signature}\"\n"
        )
    }

    /// Whether the participant's key signed it and it still holds. Gives every rule that failed.
    #[must_use]
    pub fn verify(&self, participant_key: &PublicKey, now_unix_s: u64) -> Vec<FailedRule> {
        let mut failed = Vec::new();
        if !participant_key.verify(&self.fields.message(), &self.signature) {
            failed.push(FailedRule::new(
                "credential.signature",
                "a signature that is not the participant's",
                format!("a signature by {} of {participant_key}", self.fields.participant),
            ));
        }
        if now_unix_s > self.fields.not_after_unix_s {
            failed.push(FailedRule::new(
                "credential.not_after",
                format!("expired at {} s since 1970", self.fields.not_after_unix_s),
                format!("one that holds at {now_unix_s}; `cloister identity endorse` writes a new one"),
            ));
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(node_key: PublicKey) -> CredentialFields {
        CredentialFields {
            federation: "digits".into(),
            participant: "alpha".into(),
            node: "worker-a".into(),
            role: Role::Worker,
            node_key,
            not_after_unix_s: 1000,
        }
    }

    #[test]
    fn a_credential_survives_its_text_and_verifies() {
        let (participant, node) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let credential = endorse(&participant, fields(node.public())).unwrap();
        let back = Credential::parse(&credential.to_text()).unwrap();
        assert_eq!(back, credential);
        assert!(back.verify(&participant.public(), 1000).is_empty());
        assert_eq!(back.verify(&participant.public(), 1001)[0].rule, "credential.not_after");
        assert_eq!(back.verify(&node.public(), 0)[0].rule, "credential.signature");
    }

    #[test]
    fn every_field_is_signed() {
        let key = SigningKey::generate().unwrap();
        let credential = endorse(&key, fields(key.public())).unwrap();
        let change: [fn(&mut CredentialFields); 6] = [
            |f| f.federation = "other".into(),
            |f| f.participant = "beta".into(),
            |f| f.node = "worker-b".into(),
            |f| f.role = Role::Aggregator,
            |f| f.node_key = PublicKey::from_bytes([1; 32]),
            |f| f.not_after_unix_s += 1,
        ];
        for change in change {
            let mut changed = credential.clone();
            change(&mut changed.fields);
            assert_eq!(changed.verify(&key.public(), 0).len(), 1);
        }
    }

    #[test]
    fn broken_files_are_refused_with_the_place() {
        let key = SigningKey::generate().unwrap();
        let text = endorse(&key, fields(key.public())).unwrap().to_text();
        let cases = [
            (text.replace("format = 1", "format = 2"), "format 2"),
            (text.replace("role = \"worker\"", "role = \"boss\""), "line 6"),
            (text.replace("node = \"worker-a\"", "node = \"../a\""), "node is"),
            (text.replace("signature = \"", "signature = \"AA"), "signature"),
            (text.replace("node_key", "nodekey"), "nodekey"),
            ("x".repeat(5000), "5000 bytes"),
        ];
        for (broken, says) in cases {
            let error = Credential::parse(&broken).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let mut bad = fields(key.public());
        bad.federation = "Digits\"".into();
        assert!(endorse(&key, bad).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = Credential::parse(&text);
        }
    }
}
