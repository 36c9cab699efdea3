//! Shared set-up of the fuzz targets: a simulated authority, a node under it, real quotes, and the seeds that
//! each target plants into its corpus before it starts.
//!
//! Nothing here is random from run to run but keys: what a target finds, its input alone reproduces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a fuzz target that can't be set up ends"
)]

#[path = "../vectors/folder.rs"]
mod real;

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use cloister_attestation::claims::NodeClaims;
use cloister_attestation::identity::{Credential, CredentialFields, PublicKey, Role, SigningKey, endorse};
use cloister_attestation::measurement::{Entry, EntryRole, Measurement};
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use cloister_attestation::{Appraise, Collateral, FailedRule, RaTlsIdentity, State, VerifiedEvidence, Verifier};
use cloister_tensor::Digest;

/// The time of the simulated world, in seconds since 1970.
pub const NOW: u64 = 1_795_132_800;

/// Writes seeds to the target's folder below `CLOISTER_FUZZ_CORPUS`, if that is set.
pub fn plant(target: &str, seeds: impl IntoIterator<Item = Vec<u8>>) {
    let Some(corpus) = std::env::var_os("CLOISTER_FUZZ_CORPUS") else {
        return;
    };
    let folder = PathBuf::from(corpus).join(target);
    std::fs::create_dir_all(&folder).unwrap();
    for (index, seed) in seeds.into_iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{index:02}")), seed).unwrap();
    }
}

/// One authority and its participant.
pub struct World {
    folder: PathBuf,
    authority: SimulatedAuthority,
    /// Verifies under the authority's root.
    pub verifier: Arc<Verifier>,
    participant: SigningKey,
}

/// The world of this process.
pub static WORLD: LazyLock<World> = LazyLock::new(World::new);

impl World {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("cloister-fuzz-{}", std::process::id()));
        create_authority(&folder, NOW).unwrap();
        let authority = SimulatedAuthority::load(&folder).unwrap();
        let collateral = Collateral::from_file(&folder).unwrap();
        Self {
            verifier: Arc::new(Verifier::new(authority.root().clone(), collateral)),
            authority,
            folder,
            participant: SigningKey::generate().unwrap(),
        }
    }

    /// The authority's collateral, JSON.
    pub fn collateral(&self) -> Vec<u8> {
        std::fs::read(self.folder.join("collateral.json")).unwrap()
    }

    /// The authority.
    pub fn authority(&self) -> &SimulatedAuthority {
        &self.authority
    }

    /// An ordinary TD.
    pub fn td(&self) -> SimulatedTd {
        SimulatedTd::new(&self.authority, TdValues::default()).unwrap()
    }

    /// A node that the policy lets in.
    pub fn node(&self, name: &str, role: Role) -> (SimulatedTd, Arc<RaTlsIdentity>) {
        let td = self.td();
        let key = SigningKey::generate().unwrap();
        let measurement = vec![Entry::new(EntryRole::Host, "cloister", Digest::of(b"host"))];
        let claims = NodeClaims {
            federation: "digits".into(),
            participant: "alpha".into(),
            node: name.into(),
            role,
            state: State::Member,
            policy_digest: Digest::of(b"policy"),
            node_key: key.public(),
            measurement: Measurement::new(measurement).unwrap(),
        };
        let credential = self.credential(&claims).to_text();
        let identity = RaTlsIdentity::from_claims(&td, &key, claims, credential.into(), NOW).unwrap();
        (td, Arc::new(identity))
    }

    fn credential(&self, claims: &NodeClaims) -> Credential {
        let fields = CredentialFields {
            federation: claims.federation.clone(),
            participant: claims.participant.clone(),
            node: claims.node.clone(),
            role: claims.role,
            node_key: claims.node_key,
            not_after_unix_s: NOW + 1000,
        };
        endorse(&self.participant, fields).unwrap()
    }

    /// A policy that knows participant alpha and lets everything in that verified.
    pub fn policy(&self) -> Arc<dyn Appraise> {
        Arc::new(Lenient(self.participant.public()))
    }
}

struct Lenient(PublicKey);

impl Appraise for Lenient {
    fn basis(&self) -> [u8; 32] {
        [0; 32]
    }

    fn participant_key(&self, participant: &str) -> Option<PublicKey> {
        (participant == "alpha").then_some(self.0)
    }

    fn appraise(&self, _evidence: &VerifiedEvidence, _now_unix_s: u64) -> Vec<FailedRule> {
        Vec::new()
    }
}

#[derive(serde::Deserialize)]
struct Manifest {
    vectors: Vec<Vector>,
}

#[derive(serde::Deserialize)]
struct Vector {
    quote: String,
    collateral: String,
    now: u64,
}

/// A real quote with the collateral of its time.
pub struct RealQuote {
    /// The quote.
    pub quote: Vec<u8>,
    /// Its collateral, JSON.
    pub collateral: Vec<u8>,
    /// When the two fit, in seconds since 1970.
    pub now_unix_s: u64,
}

/// The real quotes of `tests/vectors/tdx`, or of the folder that `CLOISTER_TEST_VECTORS` names.
pub fn real_quotes() -> Vec<RealQuote> {
    let folder = real::folder();
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let manifest: Manifest = serde_json::from_slice(&read("manifest.json")).unwrap();
    let real = |vector: Vector| RealQuote {
        quote: read(&vector.quote),
        collateral: read(&vector.collateral),
        now_unix_s: vector.now,
    };
    manifest.vectors.into_iter().map(real).collect()
}

/// The real event log beside them, in dstack's form.
pub fn real_event_log() -> Vec<u8> {
    std::fs::read(real::folder().join("dstack_event_log.json")).unwrap()
}

/// A file of the repository.
pub fn repository_file(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}
