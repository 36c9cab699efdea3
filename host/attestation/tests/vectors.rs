//! Real quotes with the collateral of their time: each must get the verdict that its manifest names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

#[path = "../../../tests/vectors/folder.rs"]
mod real;

use std::path::{Path, PathBuf};

use cloister_attestation::{Collateral, Quote, TrustRoot, Verifier};

#[derive(serde::Deserialize)]
struct Manifest {
    vectors: Vec<Vector>,
}

#[derive(serde::Deserialize)]
struct Vector {
    id: String,
    quote: String,
    quote_version: u16,
    td_debug: bool,
    collateral: String,
    now: u64,
    allow_debug: bool,
    verdict: String,
}

/// The folder and its vectors.
fn vectors() -> (PathBuf, Vec<Vector>) {
    let folder = real::folder();
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
    assert!(!manifest.vectors.is_empty());
    (folder, manifest.vectors)
}

impl Vector {
    fn quote(&self, folder: &Path) -> Vec<u8> {
        std::fs::read(folder.join(&self.quote)).unwrap()
    }

    fn verifier(&self, folder: &Path) -> Verifier {
        let collateral = Collateral::from_file(&folder.join(&self.collateral)).unwrap();
        Verifier::new(TrustRoot::intel().unwrap(), collateral).allow_debug(self.allow_debug)
    }
}

#[test]
fn every_real_quote_gets_its_verdict() {
    let (folder, vectors) = vectors();
    let mut wrong = Vec::new();
    for vector in &vectors {
        let quote = vector.quote(&folder);
        let parsed = Quote::parse(&quote).unwrap();
        assert_eq!(
            (parsed.version, parsed.report.debug()),
            (vector.quote_version, vector.td_debug),
            "{}",
            vector.id
        );
        let verifier = vector.verifier(&folder);
        let verdict = verifier.verify(&quote, &parsed.report.report_data, vector.now);
        let examined = verifier.examine(&quote, None, vector.now);
        let good = match (&verdict, vector.verdict.strip_prefix("ERR ")) {
            (Ok(verified), None) => {
                verified.tcb().status == vector.verdict
                    && !verified.simulated()
                    && examined.verdict.as_ref() == Ok(verified)
            }
            (Err(refusal), Some(reason)) => {
                let all = examined.verdict.unwrap_err();
                refusal.to_string().contains(reason)
                    && all.to_string().contains(reason)
                    && refusal.failed.iter().all(|failed| all.names(&failed.rule))
            }
            _ => false,
        };
        if !good {
            wrong.push(format!("{}: wanted {}, got {verdict:?}", vector.id, vector.verdict));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} real quotes got their verdicts", vectors.len());
}

#[test]
fn a_refusal_shows_what_could_be_read_and_every_rule_that_failed() {
    let (folder, vectors) = vectors();
    let find = |id: &str| vectors.iter().find(|vector| vector.id == id).unwrap();
    let vector = find("v4_td10_uptodate_expired");
    let examined = vector
        .verifier(&folder)
        .examine(&vector.quote(&folder), Some(&[7; 64]), vector.now);
    let refusal = examined.verdict.unwrap_err();
    for rule in [
        "quote.report_data",
        "collateral.tcb_info",
        "collateral.qe_identity",
        "collateral.crl",
    ] {
        assert!(refusal.names(rule), "{rule}: {refusal}");
    }
    assert!(!refusal.names("quote.verification"), "said twice: {refusal}");
    assert_eq!(examined.quote_version, Some(4));
    assert_eq!(examined.platform.unwrap().fmspc, [0xb0, 0xc0, 0x6f, 0, 0, 0]);
    assert_eq!(
        examined.chain_root_key_id.as_ref(),
        Some(TrustRoot::intel().unwrap().key_id())
    );
    // A debug TD is refused, and the rest of it is told even so.
    let debug = find("v4_td10_debug_reject");
    let examined = debug.verifier(&folder).examine(&debug.quote(&folder), None, debug.now);
    let refusal = examined.verdict.unwrap_err();
    assert_eq!(refusal.failed.len(), 1, "{refusal}");
    assert_eq!(examined.tcb.unwrap().status, "UpToDate");
    // What ends in the middle still shows its TD.
    let cut = &debug.quote(&folder)[..700];
    let examined = debug.verifier(&folder).examine(cut, None, debug.now);
    assert!(examined.verdict.is_err() && examined.td.unwrap().debug());
}

/// A bit at each byte, another one at each.
fn flip(quote: &[u8], at: usize) -> Vec<u8> {
    let mut flipped = quote.to_vec();
    flipped[at] ^= 1 << (at * 5 % 8);
    flipped
}

#[test]
fn no_flipped_bit_of_a_real_quote_is_let_in() {
    let (folder, vectors) = vectors();
    let accepted = vectors.iter().filter(|vector| !vector.verdict.starts_with("ERR "));
    let mut tried = 0;
    for (number, vector) in accepted.enumerate() {
        let (quote, verifier) = (vector.quote(&folder), vector.verifier(&folder));
        // Every byte of the first quote, every seventh of the others: which byte it is decides, not whose.
        let step = if number == 0 { 1 } else { 7 };
        for at in (0..quote.len()).step_by(step) {
            let flipped = verifier.examine(&flip(&quote, at), None, vector.now);
            assert!(flipped.verdict.is_err(), "{}: byte {at} is not looked at", vector.id);
            tried += 1;
        }
    }
    assert!(tried > 5000, "only {tried}");
}

#[test]
fn no_cut_and_no_addition_is_let_in_but_zeros() {
    let (folder, vectors) = vectors();
    for vector in vectors.iter().filter(|vector| !vector.verdict.starts_with("ERR ")) {
        let (quote, verifier) = (vector.quote(&folder), vector.verifier(&folder));
        let end = Quote::parse(&quote).unwrap().bytes.len();
        for len in (0..end).step_by(13).chain([end - 1]) {
            assert!(
                verifier.examine(&quote[..len], None, vector.now).verdict.is_err(),
                "{len} bytes"
            );
        }
        let mut padded = quote[..end].to_vec();
        padded.resize(9000, 0);
        let examined = verifier.examine(&padded, None, vector.now);
        assert!(examined.verdict.is_ok() && examined.padding_bytes == 9000 - end);
        for at in [end, end + 1, 8999] {
            let mut dirty = padded.clone();
            dirty[at] = 1;
            let refusal = verifier.examine(&dirty, None, vector.now).verdict.unwrap_err();
            assert!(refusal.to_string().contains("not padding"), "{refusal}");
        }
        padded.resize(20_000, 0);
        assert!(verifier.examine(&padded, None, vector.now).verdict.is_err());
    }
}

#[test]
fn damaged_collateral_lets_nothing_else_in() {
    let (folder, vectors) = vectors();
    let vector = &vectors[0];
    let (quote, honest) = (vector.quote(&folder), vector.verifier(&folder));
    let honest = honest.examine(&quote, None, vector.now).verdict.unwrap();
    let json = std::fs::read(folder.join(&vector.collateral)).unwrap();
    let mut refused = 0;
    for at in (0..json.len()).step_by(11) {
        let Ok(collateral) = Collateral::parse(&flip(&json, at)) else {
            refused += 1;
            continue;
        };
        let verifier = Verifier::new(TrustRoot::intel().unwrap(), collateral);
        match verifier.examine(&quote, None, vector.now).verdict {
            // White space, the case of hexadecimal, a chain that nothing is judged by.
            Ok(verified) => assert_eq!(verified, honest, "byte {at}"),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 800, "only {refused} of {}", json.len() / 11);
    for len in (0..json.len()).step_by(101) {
        assert!(Collateral::parse(&json[..len]).is_err(), "{len} bytes");
    }
}
