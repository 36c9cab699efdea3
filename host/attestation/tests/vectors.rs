//! Real quotes with the collateral of their time: each must get the verdict that its manifest names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

use std::io::Write as _;
use std::path::PathBuf;

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

fn folder() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors/tdx");
    let folder = std::env::var_os("CLOISTER_TEST_VECTORS").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    folder.join("manifest.json").exists().then_some(folder)
}

#[test]
fn every_real_quote_gets_its_verdict() {
    let Some(folder) = folder() else {
        // Past the test harness, which would swallow it: a skipped test is said aloud.
        let note = b"SKIPPED: no real quotes here; set CLOISTER_TEST_VECTORS to a folder with their manifest.json\n";
        std::io::stderr().write_all(note).unwrap();
        return;
    };
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: Manifest = serde_json::from_str(&manifest).unwrap();
    assert!(!manifest.vectors.is_empty());
    let mut wrong = Vec::new();
    for vector in &manifest.vectors {
        let quote = std::fs::read(folder.join(&vector.quote)).unwrap();
        let parsed = Quote::parse(&quote).unwrap();
        assert_eq!(
            (parsed.version, parsed.report.debug()),
            (vector.quote_version, vector.td_debug),
            "{}",
            vector.id
        );
        let collateral = Collateral::from_file(&folder.join(&vector.collateral)).unwrap();
        let verifier = Verifier::new(TrustRoot::intel().unwrap(), collateral).allow_debug(vector.allow_debug);
        let verdict = verifier.verify(&quote, &parsed.report.report_data, vector.now);
        let good = match (&verdict, vector.verdict.strip_prefix("ERR ")) {
            (Ok(verified), None) => verified.tcb().status == vector.verdict && !verified.simulated(),
            (Err(refusal), Some(reason)) => refusal.to_string().contains(reason),
            _ => false,
        };
        if !good {
            wrong.push(format!("{}: wanted {}, got {verdict:?}", vector.id, vector.verdict));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{} real quotes got their verdicts", manifest.vectors.len());
}
