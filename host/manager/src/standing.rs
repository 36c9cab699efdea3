//! How far a policy has come, and what is held against who signed two of which only one can follow.

use std::sync::Arc;

use cloister_attestation::identity::PublicKey;
use cloister_policy::{Ballot, Policy, Signatures};
use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};

/// A policy with its exact bytes and the signatures under it.
#[derive(Clone, Debug)]
pub struct PolicyFile {
    /// The policy.
    pub policy: Arc<Policy>,
    /// The file's bytes: what nodes measure and participants sign.
    pub bytes: Arc<[u8]>,
    /// The signatures.
    pub signatures: Signatures,
    /// When it took effect, in seconds since 1970; nothing while it is proposed.
    pub in_force_unix_s: Option<u64>,
}

/// How far a policy has come.
#[derive(Clone, Debug)]
pub enum PolicyStanding {
    /// It is proposed; the ballot says whose signatures are missing.
    Proposed(Ballot),
    /// It is the one in force.
    InForce,
    /// It was in force.
    Superseded,
}

/// A policy and how far it has come.
#[derive(Clone, Debug)]
pub struct PolicyStatus {
    /// SHA-256 of its file.
    pub digest: Digest,
    /// Its version.
    pub version: u64,
    /// How far it has come.
    pub standing: PolicyStanding,
}

/// A signature under each of two policies of which only one can follow: proof against who made them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Equivocation {
    /// Who signed both.
    pub participant: String,
    /// With which key.
    pub public_key: PublicKey,
    /// The policy that both follow; nothing if both found the federation.
    pub after: Option<Digest>,
    /// The policy that was signed first, and the signature (base64).
    pub first: (Digest, String),
    /// The other.
    pub second: (Digest, String),
}
