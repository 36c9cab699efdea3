//! Detached signatures: `NAME.toml.sigs` beside `NAME.toml`, so that a signature changes no byte of what it signs.
//!
//! A participant signs `cloister/policy-signature/v1` | lp(federation) | lp(participant) | lp(SHA-256 of the policy file)
//! with Ed25519 (lp: u32 length, big endian). The file is TOML, one `[[signature]]` a participant, with `participant`,
//! `public_key` and `signature` (both base64).

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::{PublicKey, SigningKey};

use crate::policy::Policy;
use crate::reader::{Node, PolicyError, Problem, all, read_document};
use crate::warnings::placeholders;

const MAX_SIGNATURES: usize = 1024;

/// A participant's signature under a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Who signed.
    pub participant: String,
    /// With which key.
    pub public_key: PublicKey,
    /// The signature.
    pub signature: [u8; 64],
}

/// Why signatures were not made or not taken.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// The file of signatures does not parse.
    #[error(transparent)]
    Unreadable(#[from] PolicyError),
    /// Somebody signed who is not in the policy.
    #[error("{participant:?} signed, but the policy has no participant of that name; remove the signature")]
    Stranger {
        /// The name that stands at the signature.
        participant: String,
    },
    /// Somebody wants to sign who is not in the policy.
    #[error("the policy has no participant {participant:?}; it has {}", known.join(", "))]
    NoParticipant {
        /// The name that was given.
        participant: String,
        /// The policy's participants.
        known: Vec<String>,
    },
    /// A participant signed with another key than the policy's.
    #[error(
        "{participant:?} signed with the key {seen}, but the policy says {wanted}; sign with the key that the policy has"
    )]
    OtherKey {
        /// The participant.
        participant: String,
        /// The key that signed.
        seen: PublicKey,
        /// The key in the policy.
        wanted: PublicKey,
    },
    /// A participant signed twice.
    #[error("{participant:?} signed twice; keep one signature")]
    Twice {
        /// The participant.
        participant: String,
    },
    /// A signature is not over this policy.
    #[error(
        "the signature of {participant:?} is not over this policy (SHA-256 {policy}): it was changed after signing; sign again"
    )]
    Wrong {
        /// The participant.
        participant: String,
        /// Digest of the policy at hand.
        policy: cloister_tensor::Digest,
    },
    /// Under Intel's root no template runs: a register of zeros would anchor nothing.
    #[error("zeros stand for {}; fill in what is meant (`cloister policy draft`) before anybody signs", what.join(", "))]
    Placeholder {
        /// What is zeros.
        what: Vec<String>,
    },
    /// Under Intel's root as many have to sign as the policy says.
    #[error("{signed} of the {wanted} signatures that it takes are there, none by {}; participants sign with `cloister policy sign` (unsigned policies run under a simulated root only)", missing.join(", "))]
    Missing {
        /// How many good signatures there are.
        signed: usize,
        /// How many the policy asks for.
        wanted: u32,
        /// Those whose signature is wanted.
        missing: Vec<String>,
    },
}

impl Signature {
    /// Signs a policy as one of its participants.
    ///
    /// # Errors
    /// [`SignatureError::NoParticipant`] or [`SignatureError::OtherKey`] if the policy does not know participant or key.
    pub fn sign(policy: &Policy, participant: &str, key: &SigningKey) -> Result<Self, SignatureError> {
        Self::sign_as(policy, policy, participant, key)
    }

    /// Signs a policy as a participant of `electorate`, the policy before it: who leaves, or changes its key, agrees to that.
    ///
    /// # Errors
    /// [`SignatureError::NoParticipant`] or [`SignatureError::OtherKey`] if `electorate` does not know participant or key.
    pub fn sign_as(
        policy: &Policy,
        electorate: &Policy,
        participant: &str,
        key: &SigningKey,
    ) -> Result<Self, SignatureError> {
        let public_key = key.public();
        if electorate.participant_key(participant).is_none() {
            return Err(SignatureError::NoParticipant {
                participant: participant.to_owned(),
                known: electorate.participants.iter().map(|known| known.name.clone()).collect(),
            });
        }
        known(electorate, participant, public_key)?;
        let signature = key.sign(&message(policy, participant));
        Ok(Self {
            participant: participant.to_owned(),
            public_key,
            signature,
        })
    }

    /// Whether it is over that policy, by the key that stands beside it.
    pub(crate) fn is_over(&self, policy: &Policy) -> bool {
        self.public_key
            .verify(&message(policy, &self.participant), &self.signature)
    }
}

fn known(policy: &Policy, participant: &str, seen: PublicKey) -> Result<(), SignatureError> {
    let participant = participant.to_owned();
    match policy.participant_key(&participant) {
        None => Err(SignatureError::Stranger { participant }),
        Some(wanted) if wanted != seen => Err(SignatureError::OtherKey {
            participant,
            seen,
            wanted,
        }),
        Some(_) => Ok(()),
    }
}

fn message(policy: &Policy, participant: &str) -> Vec<u8> {
    let layout = Layout::new("cloister/policy-signature/v1");
    layout
        .lp(policy.name.as_bytes())
        .lp(participant.as_bytes())
        .lp(policy.digest().as_bytes())
        .into_bytes()
}

/// The signatures beside a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatures {
    signatures: Vec<Signature>,
}

impl Signatures {
    /// Parses a file of signatures; whether they are good is for [`SignedPolicy::new`] to say.
    ///
    /// # Errors
    /// [`PolicyError`] with file, line and column.
    pub fn parse(bytes: &[u8], file: &str) -> Result<Self, PolicyError> {
        let signatures = read_document(bytes, file, &["signature"], |top| {
            all(top.list("signature", MAX_SIGNATURES)?.iter().map(read_signature))
        })?;
        Ok(Self { signatures })
    }

    /// The signatures.
    pub fn iter(&self) -> impl Iterator<Item = &Signature> {
        self.signatures.iter()
    }

    /// Adds a signature; it takes the place of an older one by the same participant and key.
    pub fn add(&mut self, signature: Signature) {
        self.signatures
            .retain(|other| other.participant != signature.participant || other.public_key != signature.public_key);
        self.signatures.push(signature);
    }

    /// Adds those of another copy of the file that this one has not.
    pub fn merge(&mut self, other: &Self) {
        for signature in &other.signatures {
            if !self.signatures.contains(signature) && self.signatures.len() < MAX_SIGNATURES {
                self.signatures.push(signature.clone());
            }
        }
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut text = String::from("# Signatures of the policy beside this file; made by `cloister policy sign`.\n");
        for signature in &self.signatures {
            text.push_str(&format!(
                "\n[[signature]]\nparticipant = \"{}\"\npublic_key = \"{}\"\nsignature = \"{}\"\n",
                signature.participant,
                signature.public_key,
                STANDARD.encode(signature.signature)
            ));
        }
        text
    }
}

fn read_signature(node: &Node<'_>) -> Result<Signature, Problem> {
    let fields = node.fields(&["participant", "public_key", "signature"])?;
    let key = fields.required("public_key")?;
    let public_key = key
        .text(128)?
        .parse()
        .map_err(|error| key.problem(format_args!("is no key: {error}")))?;
    let signature = fields.required("signature")?;
    let bytes = STANDARD
        .decode(signature.text(128)?)
        .ok()
        .and_then(|bytes| bytes.try_into().ok());
    Ok(Signature {
        participant: fields.required("participant")?.party_name()?,
        public_key,
        signature: bytes.ok_or_else(|| signature.problem("is no Ed25519 signature: 64 bytes in base64 are wanted"))?,
    })
}

/// A policy that nodes may run: signed by as many participants as it says, or simulated.
#[derive(Clone, Debug)]
pub struct SignedPolicy {
    policy: Arc<Policy>,
    signers: Vec<String>,
}

impl SignedPolicy {
    /// Verifies every signature given. Under Intel's root as many participants must have signed as the policy says; under a
    /// simulated root nobody has to. A policy that follows another may carry signatures by keys of that one: they have to be
    /// over this policy, and count for nothing here (see [`crate::Ballot`]).
    ///
    /// # Errors
    /// [`SignatureError`] for a wrong signature or for too few.
    pub fn new(policy: Policy, signatures: &Signatures) -> Result<Self, SignatureError> {
        let mut signers: Vec<String> = Vec::new();
        let mut seen: Vec<(&str, PublicKey)> = Vec::new();
        for signature in signatures.iter() {
            let participant = || signature.participant.clone();
            let ours = known(&policy, &signature.participant, signature.public_key);
            let counts = ours.is_ok();
            if policy.predecessor.is_none() {
                ours?;
            }
            if !signature.is_over(&policy) {
                return Err(SignatureError::Wrong {
                    participant: participant(),
                    policy: policy.digest(),
                });
            }
            let who = (signature.participant.as_str(), signature.public_key);
            if seen.contains(&who) {
                return Err(SignatureError::Twice {
                    participant: participant(),
                });
            }
            seen.push(who);
            if counts {
                signers.push(participant());
            }
        }
        let names = policy.participants.iter().map(|participant| participant.name.clone());
        let missing: Vec<_> = names.filter(|name| !signers.contains(name)).collect();
        let wanted = policy.consent.threshold;
        if signers.len() < wanted as usize && !policy.attestation.simulated {
            return Err(SignatureError::Missing {
                signed: signers.len(),
                wanted,
                missing,
            });
        }
        let what = placeholders(&policy);
        if !what.is_empty() && !policy.attestation.simulated {
            return Err(SignatureError::Placeholder { what });
        }
        Ok(Self {
            policy: Arc::new(policy),
            signers,
        })
    }

    /// The policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// The participants who signed.
    pub fn signers(&self) -> &[String] {
        &self.signers
    }
}
