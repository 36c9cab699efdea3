//! Reference values: who may vouch for registers, how many have to, until when; and what a quote drafts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

mod common;

use cloister_attestation::identity::SigningKey;
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use cloister_attestation::{Collateral, Examination, FailedRule, QuoteProvider as _, TrustRoot, Verifier};
use cloister_policy::agreement::{ReferenceRules, ReferenceSigner};
use cloister_policy::anchor::{Anchor, Workload};
use cloister_policy::{
    Policy, Reference, ReferenceError, ReferenceValues, Signatures, SignedReferences, attestation_from_quote, draft,
    warnings,
};

const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;

struct Bench {
    dir: tempfile::TempDir,
    alpha: SigningKey,
    beta: SigningKey,
    vendor: SigningKey,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        create_authority(dir.path(), NOW - 60).unwrap();
        let key = || SigningKey::generate().unwrap();
        Self {
            dir,
            alpha: key(),
            beta: key(),
            vendor: key(),
        }
    }

    /// A policy that lists the default TD, and takes references that two of alpha, beta and a vendor sign.
    fn policy(&self) -> Policy {
        let mut agreement = common::digits(&self.alpha, &self.beta);
        let td = TdValues::default();
        let rules = &mut agreement.attestation;
        rules.root_key_id = *TrustRoot::from_file(self.dir.path()).unwrap().key_id();
        (rules.mrtd, rules.rtmr1, rules.rtmr2) = (vec![td.mrtd], vec![td.rtmr[1]], vec![td.rtmr[2]]);
        (rules.allow_dynamic_platform, rules.allow_cached_keys) = (true, true);
        let signer = |name: &str, key: &SigningKey| ReferenceSigner {
            name: name.to_owned(),
            public_key: key.public(),
        };
        rules.references = Some(ReferenceRules {
            signers: vec![
                signer("alpha", &self.alpha),
                signer("beta", &self.beta),
                signer("vendor", &self.vendor),
            ],
            threshold: 2,
        });
        let text = draft(&agreement).unwrap();
        let policy = Policy::parse(text.as_bytes(), "digits.toml").unwrap();
        assert_eq!(policy.agreement(), &agreement, "what was drafted is what was meant");
        policy
    }

    fn examined(&self, change: impl FnOnce(&mut TdValues)) -> Examination {
        let mut values = TdValues::default();
        change(&mut values);
        let authority = SimulatedAuthority::load(self.dir.path()).unwrap();
        let quote = SimulatedTd::new(&authority, values).unwrap().quote(&[1; 64]).unwrap();
        let collateral = Collateral::from_file(self.dir.path()).unwrap();
        Verifier::new(authority.root().clone(), collateral).examine(&quote, None, NOW)
    }
}

fn values(federation: &str, version: u64, references: &[Reference]) -> ReferenceValues {
    let text = ReferenceValues::to_text(federation, version, references, &[]);
    let values = ReferenceValues::parse(text.as_bytes(), "references.toml").unwrap();
    assert_eq!(values.references, references);
    values
}

/// A new kernel: another RTMR1 and RTMR2.
fn kernel(until_unix_s: u64) -> Reference {
    let mut registers = [const { Vec::new() }; 6];
    registers[2] = vec![[0xb1; 48]];
    registers[3] = vec![[0xb2; 48]];
    Reference {
        name: "linux-6.12.9".into(),
        until_unix_s,
        registers,
    }
}

fn patched(td: &mut TdValues) {
    (td.rtmr[1], td.rtmr[2]) = ([0xb1; 48], [0xb2; 48]);
}

fn signed(bench: &Bench, values: &ReferenceValues, by: &[(&str, &SigningKey)]) -> Signatures {
    let mut signatures = Signatures::default();
    for (name, key) in by {
        signatures.add(values.sign(&bench.policy(), name, key).unwrap());
    }
    Signatures::parse(signatures.to_text().as_bytes(), "references.toml.sigs").unwrap()
}

fn names(failed: &[FailedRule]) -> Vec<&str> {
    failed.iter().map(|rule| rule.rule.as_str()).collect()
}

#[test]
fn a_new_kernel_needs_reference_values_and_no_new_agreement() {
    let bench = Bench::new();
    let policy = bench.policy();
    let (old, new) = (bench.examined(|_| ()), bench.examined(patched));
    assert!(policy.appraise_examined(&old, None, NOW).is_empty());
    assert_eq!(
        names(&policy.appraise_examined(&new, None, NOW)),
        ["attestation.rtmr1", "attestation.rtmr2"]
    );

    let until = (NOW / DAY + 30) * DAY;
    let values = values("digits", 1, &[kernel(until)]);
    let signatures = signed(&bench, &values, &[("alpha", &bench.alpha), ("vendor", &bench.vendor)]);
    let digest = policy.digest();
    let policy = policy
        .clone()
        .with_references(SignedReferences::new(values, &signatures, &policy).unwrap());
    assert_eq!(policy.digest(), digest, "the agreement stays the same");
    assert!(
        policy.appraise_examined(&old, None, NOW).is_empty(),
        "old and new overlap"
    );
    assert!(policy.appraise_examined(&new, None, NOW).is_empty());
    assert!(
        policy
            .appraise_examined(&new, None, until - 1)
            .iter()
            .all(|rule| !rule.rule.contains("rtmr"))
    );
    let ended = policy.appraise_examined(&new, None, until);
    assert!(names(&ended).contains(&"attestation.references"), "{ended:?}");
    // Half of the new kernel is no kernel that anybody vouched for, nor is the new one under another firmware.
    let half = bench.examined(|td| td.rtmr[1] = [0xb1; 48]);
    assert_eq!(names(&policy.appraise_examined(&half, None, NOW)).len(), 1);
    let firmware = bench.examined(|td| {
        patched(td);
        td.mrtd = [9; 48];
    });
    assert_eq!(
        names(&policy.appraise_examined(&firmware, None, NOW)),
        ["attestation.mrtd"]
    );
}

#[test]
fn enough_of_the_named_signers_have_to_sign_these_bytes() {
    let bench = Bench::new();
    let policy = bench.policy();
    let document = values("digits", 1, &[kernel((NOW / DAY + 1) * DAY)]);
    let one = signed(&bench, &document, &[("beta", &bench.beta)]);
    let error = SignedReferences::new(document.clone(), &one, &policy).unwrap_err();
    assert!(
        matches!(error, ReferenceError::TooFew { seen: 1, wanted: 2, .. }),
        "{error}"
    );
    let stranger = SigningKey::generate().unwrap();
    assert!(matches!(
        document.sign(&policy, "alpha", &stranger),
        Err(ReferenceError::Stranger { .. })
    ));
    assert!(matches!(
        document.sign(&policy, "gamma", &bench.alpha),
        Err(ReferenceError::Stranger { .. })
    ));
    let two = signed(&bench, &document, &[("alpha", &bench.alpha), ("beta", &bench.beta)]);
    let later = values("digits", 1, &[kernel((NOW / DAY + 40) * DAY)]);
    let error = SignedReferences::new(later, &two, &policy).unwrap_err();
    assert!(matches!(error, ReferenceError::Wrong { .. }), "{error}");
    let other = values("others", 1, &[kernel((NOW / DAY + 1) * DAY)]);
    assert!(matches!(
        other.sign(&policy, "alpha", &bench.alpha),
        Err(ReferenceError::OtherFederation { .. })
    ));
    let text = two.to_text();
    let twice = format!("{text}\n{}", &text[text.find("[[").unwrap()..]);
    let twice = Signatures::parse(twice.as_bytes(), "s").unwrap();
    assert!(matches!(
        SignedReferences::new(document.clone(), &twice, &policy),
        Err(ReferenceError::Twice { .. })
    ));
    let mut agreement = policy.agreement().clone();
    agreement.attestation.references = None;
    let closed = Policy::parse(draft(&agreement).unwrap().as_bytes(), "p").unwrap();
    assert!(matches!(
        SignedReferences::new(document, &two, &closed),
        Err(ReferenceError::NotWanted)
    ));
}

#[test]
fn what_is_no_document_says_where() {
    for (text, wanted) in [
        ("", "format"),
        (
            "format = 2\nfederation = \"d\"\nversion = 1\nreference = []",
            "is not 1",
        ),
        ("format = 1\nfederation = \"d\"\nversion = 0\nreference = []", "version"),
        (
            "format = 1\nfederation = \"d\"\nversion = 1\n[[reference]]\nname = \"x\"\nnot_after = 2027-01-01",
            "names no register",
        ),
        (
            "format = 1\nfederation = \"d\"\nversion = 1\n[[reference]]\nname = \"x\"\nrtmr9 = []",
            "did you mean `rtmr0`",
        ),
        (
            "format = 1\nfederation = \"d\"\nversion = 1\n[[reference]]\nname = \"x\"\nnot_after = 2027-01-01\nmrtd = [\"00\"]",
            "96 hexadecimal digits",
        ),
    ] {
        let error = ReferenceValues::parse(text.as_bytes(), "r.toml")
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted) && error.contains("r.toml"), "{error}");
    }
    let zero = format!(
        "format = 1\nfederation = \"d\"\nversion = 1\n[[reference]]\nname = \"x\"\nnot_after = 2027-01-01\nmrtd = [\"{}\"]",
        "0".repeat(96)
    );
    assert!(ReferenceValues::parse(zero.as_bytes(), "r").is_err());
}

#[test]
fn signers_are_participants_or_have_a_key_of_their_own() {
    let bench = Bench::new();
    let text = draft(bench.policy().agreement()).unwrap();
    for (from, to, wanted) in [
        ("], threshold = 2", "], threshold = 4", "from 1 to 3"),
        ("], threshold = 2", "], threshold = 0", "from 1 to 3"),
        ("signers = [\"alpha\"", "signers = [\"gamma\"", "no such participant"),
        (
            "signers = [\"alpha\", \"beta\"",
            "signers = [\"alpha\", \"alpha\"",
            "second time",
        ),
    ] {
        assert!(text.contains(from), "{text}");
        let error = Policy::parse(text.replace(from, to).as_bytes(), "p")
            .unwrap_err()
            .to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_quote_drafts_a_section_that_takes_it_and_nothing_else() {
    let bench = Bench::new();
    let examined = bench.examined(|td| td.mrconfigid = [3; 48]);
    let section = attestation_from_quote(examined.verdict.as_ref().unwrap());
    let whole = draft(bench.policy().agreement()).unwrap();
    let (head, rest) = whole.split_once("[attestation]").unwrap();
    let release = rest.split_once("\n# Who gets").unwrap().1;
    let (_, section) = section.split_once("[attestation]").unwrap();
    let text = format!("{head}[attestation]{section}\n# Who gets{release}");
    let policy = Policy::parse(text.as_bytes(), "drafted.toml").unwrap_or_else(|error| panic!("{error}"));
    let failed = policy.appraise_examined(&examined, None, NOW);
    assert!(failed.is_empty(), "{failed:?}");
    let changes: [fn(&mut TdValues); 8] = [
        |td| td.mrtd = [8; 48],
        |td| td.rtmr[0] = [8; 48],
        |td| td.rtmr[3] = [8; 48],
        |td| td.mrseam = [8; 48],
        |td| td.mrconfigid = [8; 48],
        |td| td.mrowner = [8; 48],
        |td| td.attributes[3] |= 0x40,
        |td| td.xfam[0] ^= 4,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let other = bench.examined(|td| {
            td.mrconfigid = [3; 48];
            change(td);
        });
        assert_eq!(policy.appraise_examined(&other, None, NOW).len(), 1, "change {number}");
    }
    assert!(
        warnings(&policy)
            .iter()
            .any(|warning| warning.kind.as_str() == "simulated")
    );
}

#[test]
fn a_hash_of_initdata_in_reference_values_needs_its_anchor_as_in_a_policy() {
    let bench = Bench::new();
    let anchored = |image: char| {
        let image = format!("registry.example.org/cloister@sha256:{}", image.to_string().repeat(64));
        let workload = Workload::new(image, vec!["/cloister".into()], Vec::new()).unwrap();
        Anchor::new(workload, String::new(), String::new()).unwrap()
    };
    let (own, new) = (anchored('0'), anchored('1'));
    let mut agreement = bench.policy().agreement().clone();
    (agreement.attestation.mrconfigid, agreement.attestation.anchors) = (vec![own.mrconfigid()], vec![own.clone()]);
    let policy = Policy::parse(draft(&agreement).unwrap().as_bytes(), "digits.toml").unwrap();
    let document = |hash: [u8; 48], anchors: &[Anchor]| {
        let mut reference = kernel((NOW / DAY + 30) * DAY);
        reference.registers[5] = vec![hash];
        let text = ReferenceValues::to_text("digits", 1, &[reference], anchors);
        let values = ReferenceValues::parse(text.as_bytes(), "references.toml").unwrap();
        assert_eq!(values.anchors, anchors);
        values
    };
    let signed = |values: ReferenceValues| {
        let mut signatures = Signatures::default();
        for (name, key) in [("alpha", &bench.alpha), ("beta", &bench.beta)] {
            signatures.add(values.sign(&policy, name, key)?);
        }
        SignedReferences::new(values, &signatures, &policy)
    };
    signed(document(own.mrconfigid(), &[])).unwrap();
    signed(document(new.mrconfigid(), std::slice::from_ref(&new))).unwrap();
    for (hash, anchors) in [
        (new.mrconfigid(), vec![]),
        (new.mrconfigid(), vec![anchored('2')]),
        ([7; 48], vec![new]),
    ] {
        let error = signed(document(hash, &anchors)).unwrap_err();
        assert!(matches!(error, ReferenceError::Unexplained { .. }), "{error}");
    }
}
