//! Collateral by itself: what verifies, what is refused, and numbers that never go down.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

#[path = "../../../tests/vectors/folder.rs"]
mod real;

use std::sync::Arc;

use cloister_attestation::simulated::{
    Revocable, SimulatedAuthority, SimulatedTd, Standing, TdValues, create_authority, issue_collateral,
    reissue_collateral,
};
use cloister_attestation::{Collateral, QuoteProvider as _, TrustRoot, VerdictCache, Verifier, Watermarks};

const NOW: u64 = 1_795_132_800;
const DAY: u64 = 86_400;

struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        create_authority(&dir.path().join("sim"), NOW).unwrap();
        Self { dir }
    }

    fn root(&self) -> TrustRoot {
        TrustRoot::from_file(&self.dir.path().join("sim")).unwrap()
    }

    fn issued(&self, now: u64) -> serde_json::Value {
        reissue_collateral(&self.dir.path().join("sim"), now).unwrap();
        self.last()
    }

    /// Collateral with revocation lists of number 1, as Intel's are.
    fn issued_with_number_1(&self, now: u64, revoked: &[Revocable]) -> serde_json::Value {
        let standing = Standing {
            revoked: revoked.to_vec(),
            crl_number: Some(1),
            ..Standing::default()
        };
        issue_collateral(&self.dir.path().join("sim"), now, &standing).unwrap();
        self.last()
    }

    fn last(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.dir.path().join("sim/collateral.json")).unwrap()).unwrap()
    }
}

fn parse(json: &serde_json::Value) -> Collateral {
    Collateral::parse(json.to_string().as_bytes()).unwrap()
}

#[test]
fn every_part_has_to_be_signed_and_in_force() {
    let (authority, other) = (Authority::new(), Authority::new());
    let (json, strange) = (authority.issued(NOW), other.issued(NOW));
    let root = authority.root();
    assert!(parse(&json).verify(&root, NOW).is_ok());
    assert_eq!(
        Collateral::parse(parse(&json).to_json().as_bytes()).unwrap().to_json(),
        parse(&json).to_json()
    );
    for part in json.as_object().unwrap().keys() {
        let mut mixed = json.clone();
        mixed[part] = strange[part].clone();
        if mixed == json {
            continue; // QE identity and TCB info say the same in both; their signatures differ.
        }
        let refusal = parse(&mixed).verify(&root, NOW).unwrap_err();
        assert!(refusal.names("collateral.signature"), "{part}: {refusal}");
    }
    assert!(parse(&strange).verify(&root, NOW).is_err());
    assert!(
        parse(&json)
            .verify(&root, NOW - 120)
            .unwrap_err()
            .names("collateral.tcb_info")
    );
    assert!(
        parse(&json)
            .verify(&root, NOW + 40 * DAY)
            .unwrap_err()
            .names("collateral.crl")
    );
    let mut altered = json.clone();
    altered["tcb_info"] = json["tcb_info"]
        .as_str()
        .unwrap()
        .replace("OutOfDate", "UpToDate")
        .into();
    let refusal = parse(&altered).verify(&root, NOW).unwrap_err();
    assert!(refusal.to_string().contains("not its signer's"), "{refusal}");
}

#[test]
fn a_newer_revocation_list_than_the_time_asked_for_is_taken_and_its_date_is_the_floor() {
    let authority = Authority::new();
    let root = authority.root();
    let (mut json, later) = (authority.issued(NOW), authority.issued(NOW + DAY));
    for part in ["root_ca_crl", "pck_crl"] {
        json[part] = later[part].clone();
    }
    let collateral = parse(&json);
    let verified = collateral.verify(&root, NOW).unwrap();
    // What `max_clock_skew_s` and a node's clock go by: a clock at NOW is told to be a day behind.
    assert_eq!(verified.latest_issue_unix_s(), NOW + DAY - 60);
    let made = SimulatedAuthority::load(&authority.dir.path().join("sim")).unwrap();
    let td = SimulatedTd::new(&made, TdValues::default()).unwrap();
    let quote = td.quote(&[1; 64]).unwrap();
    let verifier = Verifier::new(root, collateral);
    let tcb = verifier.verify(&quote, &[1; 64], NOW).unwrap().tcb().clone();
    assert_eq!(tcb.latest_issue_unix_s, NOW + DAY - 60);
    assert!(verifier.examine(&quote, None, NOW).verdict.is_ok());
    // Its end counts as before.
    for (at, part) in [
        (NOW + 30 * DAY + 1, "collateral.tcb_info"),
        (NOW + 31 * DAY + 1, "collateral.crl"),
    ] {
        let refusal = verifier.verify(&quote, &[1; 64], at).unwrap_err();
        assert!(refusal.names(part), "{at}: {refusal}");
        assert_eq!(
            refusal.names("collateral.crl"),
            part == "collateral.crl",
            "{at}: {refusal}"
        );
    }
}

#[test]
fn numbers_never_go_down_and_the_floor_never_either() {
    let authority = Authority::new();
    let root = authority.root();
    let (old, new) = (authority.issued(NOW), authority.issued(NOW + DAY));
    let (old, new) = (
        parse(&old).verify(&root, NOW + DAY).unwrap(),
        parse(&new).verify(&root, NOW + DAY).unwrap(),
    );
    let mut marks = Watermarks::default();
    assert!(marks.admit(&old).unwrap());
    assert!(marks.admit(&new).unwrap());
    assert!(!marks.admit(&new).unwrap(), "nothing new");
    assert_eq!(marks.floor_unix_s(), NOW + DAY - 60);
    // A simulated authority numbers its lists by their dates.
    let refusal = marks.admit(&old).unwrap_err();
    for rule in ["collateral.pck_crl_number", "collateral.root_crl_number"] {
        assert!(refusal.names(rule), "{refusal}");
    }
    let again = Watermarks::parse(marks.to_json().as_bytes()).unwrap();
    assert_eq!(again, marks);
    let other = Authority::new();
    let strange = parse(&other.issued(NOW + DAY))
        .verify(&other.root(), NOW + DAY)
        .unwrap();
    assert!(marks.admit(&strange).unwrap_err().names("collateral.root_key_id"));
    assert!(marks.admit_references("digits", 3).unwrap() && !marks.admit_references("digits", 3).unwrap());
    assert!(
        marks
            .admit_references("digits", 2)
            .unwrap_err()
            .names("references.version")
    );
    for bad in ["", "{}", "[]", "{\"root_key_id\": 1}", &"9".repeat(1 << 20)] {
        assert!(Watermarks::parse(bad.as_bytes()).is_err());
    }
}

#[test]
fn of_two_lists_of_one_number_the_older_one_is_refused_by_its_date() {
    let authority = Authority::new();
    let root = authority.root();
    let old = authority.issued_with_number_1(NOW, &[]);
    let new = authority.issued_with_number_1(NOW + DAY, &[Revocable::Platform]);
    let admit = |marks: &mut Watermarks, json: &serde_json::Value| {
        let verified = parse(json).verify(&root, NOW + DAY).unwrap();
        marks.admit(&verified)
    };
    let mut marks = Watermarks::default();
    assert!(admit(&mut marks, &old).unwrap());
    assert!(admit(&mut marks, &new).unwrap());
    // Whoever brings the older list back un-revokes the platform. Each of the two lists is held by itself.
    for (list, part) in [("pck_crl", "pck_crl"), ("root_crl", "root_ca_crl")] {
        let mut back = new.clone();
        back[part] = old[part].clone();
        let refusal = admit(&mut marks, &back).unwrap_err();
        assert!(refusal.names(&format!("collateral.{list}_date")), "{refusal}");
        assert!(!refusal.names(&format!("collateral.{list}_number")), "{refusal}");
    }
    assert!(!admit(&mut marks, &new).unwrap(), "the same again is no step back");
    let again = Watermarks::parse(marks.to_json().as_bytes()).unwrap();
    assert_eq!(again, marks);
    // A file from before the dates were kept is read; it knows numbers alone until newer collateral comes.
    let mut before: serde_json::Value = serde_json::from_str(&marks.to_json()).unwrap();
    for field in ["root_crl_issued", "pck_crl_issued"] {
        assert!(before.as_object_mut().unwrap().remove(field).is_some());
    }
    let mut before = Watermarks::parse(before.to_string().as_bytes()).unwrap();
    assert!(admit(&mut before, &new).unwrap());
    assert!(admit(&mut before, &old).unwrap_err().names("collateral.pck_crl_date"));
}

#[test]
fn of_one_family_under_two_authorities_both_sets_are_kept() {
    // Another authority of the same names is the same one here: its list's issuer decides.
    let authority = Authority::new();
    let (first, second) = (authority.issued(NOW), authority.issued(NOW + 1));
    let one = Collateral::together([parse(&first), parse(&second)]).unwrap();
    assert_eq!(one.families().count(), 1, "the later of two counts");
    // The revocation list of the root stands in for one of another authority: its issuer has another name.
    let mut other = first.clone();
    other["pck_crl"] = first["root_ca_crl"].clone();
    for order in [[&first, &other], [&other, &first]] {
        let both = Collateral::together(order.map(parse)).unwrap();
        assert_eq!(both.families().count(), 2);
        let made = SimulatedAuthority::load(&authority.dir.path().join("sim")).unwrap();
        let quote = SimulatedTd::new(&made, TdValues::default())
            .unwrap()
            .quote(&[1; 64])
            .unwrap();
        let verifier = Verifier::new(authority.root(), both);
        assert!(
            verifier.verify(&quote, &[1; 64], NOW).is_ok(),
            "its own authority's set is found"
        );
        let verifier = Verifier::new(authority.root(), parse(&other));
        let refusal = verifier.verify(&quote, &[1; 64], NOW).unwrap_err();
        assert!(refusal.names("attestation.collateral"), "{refusal}");
        assert!(refusal.to_string().contains("PCK Platform CA"), "{refusal}");
    }
}

#[test]
fn real_collateral_verifies_at_its_time_alone() {
    let folder = real::folder();
    let root = TrustRoot::intel().unwrap();
    let mut marks = Watermarks::default();
    for (name, now) in [
        ("coll_B0C06F_eval17_2025-06.json", 1_750_332_747),
        ("coll_00806F_eval18_2026-01.json", 1_769_510_999),
        ("coll_90C06F_eval18_2026-02.json", 1_771_415_931),
        ("coll_90C06F_eval19_2026-06.json", 1_780_921_955),
        ("coll_00806F_eval19_2026-06.json", 1_782_810_739),
    ] {
        let collateral = Collateral::from_file(&folder.join("collateral").join(name)).unwrap();
        let verified = collateral
            .verify(&root, now)
            .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        marks
            .admit(&verified)
            .unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
        assert!(collateral.verify(&root, now + 400 * DAY).is_err(), "{name}");
    }
    let back = Collateral::from_file(&folder.join("collateral/coll_00806F_eval18_2026-01.json")).unwrap();
    let refusal = marks.admit(&back.verify(&root, 1_769_510_999).unwrap()).unwrap_err();
    assert!(refusal.names("collateral.evaluation_number"), "{refusal}");
}

#[test]
fn renewed_collateral_counts_for_every_clone_of_a_verifier_and_forgets_its_verdicts() {
    let authority = Authority::new();
    let root = authority.root();
    let old = parse(&authority.issued(NOW));
    let verifier = Arc::new(Verifier::new(root.clone(), old));
    let made = SimulatedAuthority::load(&authority.dir.path().join("sim")).unwrap();
    let quote = SimulatedTd::new(&made, TdValues::default())
        .unwrap()
        .quote(&[1; 64])
        .unwrap();
    let cache = VerdictCache::default();
    let verify = |now| cache.verify(&verifier, &[0; 32], &quote, &[1; 64], now);
    assert!(verify(NOW).is_ok());
    let later = NOW + 35 * DAY;
    assert!(verify(later).is_err(), "expired");
    assert!(verify(NOW).is_ok());
    let renewed = parse(&authority.issued(later)).verify(&root, later).unwrap();
    (*verifier).clone().replace_collateral(&renewed);
    assert!(verify(later).is_ok());
    assert_eq!(cache.len(), 1, "what the older collateral said is forgotten");
    assert!(verify(NOW).unwrap_err().names("collateral.tcb_info"));
}
