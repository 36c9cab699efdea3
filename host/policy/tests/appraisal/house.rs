//! A node of a small federation, and what it shows.

use std::sync::Arc;

use cloister_attestation::claims::make;
use cloister_attestation::identity::{CredentialFields, Role, SigningKey, endorse};
use cloister_attestation::measurement::{Entry, EntryRole, Measurement};
use cloister_attestation::session::{applicant_report_data, roster_report_data};
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use cloister_attestation::{
    Claims, Collateral, DetachedEvidence, NodeClaims, QuoteProvider as _, Refusal, RuntimeEvent, State, TrustRoot,
    VerifiedEvidence, VerifiedTd, Verifier, verify_applicant, verify_detached,
};
use cloister_policy::agreement::{Agreement, HostFile};
use cloister_policy::{Appraiser, Policy, draft};
use cloister_tensor::Digest;

use crate::common;

/// The time of all that happens.
pub(crate) const NOW: u64 = 1_800_000_000;

/// An authority and two participants.
pub(crate) struct House {
    dir: tempfile::TempDir,
    alpha: SigningKey,
    beta: SigningKey,
    root_key_id: [u8; 48],
}

/// What a node shows; the defaults are worker-a as the policy wants it.
pub(crate) struct Shown {
    pub(crate) node: NodeClaims,
    pub(crate) td: TdValues,
    pub(crate) endorsed_by_beta: bool,
    /// What its TD extends, and the log that it shows instead of the TD's own.
    pub(crate) events: Vec<RuntimeEvent>,
    pub(crate) log: Option<Vec<u8>>,
}

impl House {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        create_authority(dir.path(), NOW - 60).unwrap();
        let root_key_id = *TrustRoot::from_file(dir.path()).unwrap().key_id();
        Self {
            dir,
            alpha: SigningKey::generate().unwrap(),
            beta: SigningKey::generate().unwrap(),
            root_key_id,
        }
    }

    pub(crate) fn policy(&self, change: impl FnOnce(&mut Agreement)) -> Arc<Policy> {
        let mut agreement = common::digits(&self.alpha, &self.beta);
        let td = TdValues::default();
        let rules = &mut agreement.attestation;
        rules.root_key_id = self.root_key_id;
        (rules.mrtd, rules.rtmr0, rules.mrseam) = (vec![td.mrtd], vec![td.rtmr[0]], vec![td.mrseam]);
        (rules.rtmr1, rules.rtmr2, rules.mrconfigid) = (vec![td.rtmr[1]], vec![td.rtmr[2]], vec![td.mrconfigid]);
        rules.hosts = vec![HostFile {
            name: "cloister".into(),
            sha256: Digest::of(b"binary"),
        }];
        rules.allow_dynamic_platform = true;
        rules.allow_cached_keys = true;
        change(&mut agreement);
        Arc::new(Policy::parse(draft(&agreement).unwrap().as_bytes(), "digits.toml").unwrap())
    }

    fn shown(&self, policy: &Policy, node_key: &SigningKey) -> Shown {
        let mut entries = policy.expected_entries("worker-a", State::Member).unwrap();
        entries.push(Entry::new(EntryRole::Host, "cloister", Digest::of(b"binary")));
        entries.push(Entry::new(
            EntryRole::Compiled,
            "train-sgd",
            Digest::of(b"native code of this TD"),
        ));
        let node = NodeClaims {
            federation: "digits".into(),
            participant: "alpha".into(),
            node: "worker-a".into(),
            role: Role::Worker,
            state: State::Member,
            policy_digest: policy.digest(),
            node_key: node_key.public(),
            measurement: Measurement::new(entries).unwrap(),
        };
        Shown {
            node,
            td: TdValues::default(),
            endorsed_by_beta: false,
            events: Vec::new(),
            log: None,
        }
    }

    pub(crate) fn attest(
        &self,
        appraiser: &Appraiser,
        change: impl FnOnce(&mut Shown),
    ) -> Result<VerifiedEvidence, Refusal> {
        let node_key = SigningKey::generate().unwrap();
        let mut shown = self.shown(appraiser.policy(), &node_key);
        change(&mut shown);
        let node = &shown.node;
        let fields = CredentialFields {
            federation: node.federation.clone(),
            participant: node.participant.clone(),
            node: node.node.clone(),
            role: node.role,
            node_key: node.node_key,
            not_after_unix_s: NOW + 1000,
        };
        let credential = endorse(
            if shown.endorsed_by_beta {
                &self.beta
            } else {
                &self.alpha
            },
            fields,
        )
        .unwrap();
        let claims = make(&node_key, &[5; 32], node).unwrap();
        let digest = Claims::parse(&claims).unwrap().digest();
        let report_data = roster_report_data(&[1; 32], &digest, &node.measurement.root());
        let (quote, own_log) = self.quote(shown.td, &shown.events, &report_data);
        let credential = credential.to_text();
        let evidence = DetachedEvidence {
            quote: &quote,
            claims: &claims,
            credential: credential.as_bytes(),
            event_log: &shown.log.unwrap_or(own_log),
        };
        verify_detached(&evidence, &report_data, &self.verifier(), appraiser, NOW)
    }

    /// As [`Self::attest`], of a TD that shows no credential.
    pub(crate) fn apply(&self, policy: &Policy, change: impl FnOnce(&mut Shown)) -> Result<VerifiedTd, Refusal> {
        let node_key = SigningKey::generate().unwrap();
        let mut shown = self.shown(policy, &node_key);
        change(&mut shown);
        let claims = make(&node_key, &[5; 32], &shown.node).unwrap();
        let claims = Claims::parse(&claims).unwrap();
        let root = shown.node.measurement.root();
        let report_data = applicant_report_data(&[9; 32], &claims.digest(), &root, &[8; 32]);
        let (quote, own_log) = self.quote(shown.td, &shown.events, &report_data);
        let log = shown.log.unwrap_or(own_log);
        verify_applicant(&quote, claims, &log, &report_data, &self.verifier(), NOW)
    }

    /// A quote of a TD that extended these events, and its log.
    fn quote(&self, td: TdValues, events: &[RuntimeEvent], report_data: &[u8; 64]) -> (Vec<u8>, Vec<u8>) {
        let authority = SimulatedAuthority::load(self.dir.path()).unwrap();
        let td = SimulatedTd::new(&authority, td).unwrap();
        events.iter().for_each(|event| td.extend(event).unwrap());
        let log = td.event_log().unwrap().unwrap().to_bytes();
        (td.quote(report_data).unwrap(), log)
    }

    fn verifier(&self) -> Verifier {
        let collateral = Collateral::from_file(&self.dir.path().join("collateral.json")).unwrap();
        Verifier::new(TrustRoot::from_file(self.dir.path()).unwrap(), collateral)
    }

    /// The refusal of evidence changed so, under a policy changed so.
    pub(crate) fn refusal(&self, policy: impl FnOnce(&mut Agreement), shown: impl FnOnce(&mut Shown)) -> Refusal {
        self.attest(&Appraiser::new(self.policy(policy)), shown).unwrap_err()
    }
}
