//! Verification of a quote beside dcap-qvl's own, with the same cryptography, and refusal of garbage.
//!
//! `cargo xtask bench verification`; a simulated quote and two real ones.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench ends where something is wrong, and prints what it measured"
)]

#[path = "../tests/vectors/folder.rs"]
mod real;

use std::hint::black_box;

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use cloister_attestation::{Collateral, Quote, QuoteProvider as _, TrustRoot, Verifier};
use criterion::{BatchSize, Criterion};
use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteCollateralV3, QuotePolicy};
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};

const NOW: u64 = 1_795_132_800;

/// dcap-qvl over aws-lc-rs, as Cloister has it.
struct Direct;

impl Config for Direct {
    type X509 = dcap_qvl::x509::X509CertBackend;
    type SigEncoder = dcap_qvl::signature::DerSigEncoder;
    type Crypto = Self;
}

impl CryptoProvider for Direct {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        &P256
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        digest(&SHA256, data).as_ref().try_into().expect("32 bytes")
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        digest(&SHA384, data).as_ref().try_into().expect("48 bytes")
    }
}

#[derive(Debug)]
struct P256;

impl SignatureVerificationAlgorithm for P256 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key);
        key.verify(message, signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA256
    }
}

/// A quote, the collateral of its platform and a time at which it verifies.
struct Case {
    name: &'static str,
    quote: Vec<u8>,
    json: Vec<u8>,
    root: TrustRoot,
    now: u64,
}

fn cases() -> Vec<Case> {
    let folder = tempfile::tempdir().expect("a folder");
    create_authority(folder.path(), NOW).expect("an authority");
    let authority = SimulatedAuthority::load(folder.path()).expect("its keys");
    let td = SimulatedTd::new(&authority, TdValues::default()).expect("a TD");
    let mut cases = vec![Case {
        name: "simulated",
        quote: td.quote(&[7; 64]).expect("a quote"),
        json: std::fs::read(folder.path().join("collateral.json")).expect("its collateral"),
        root: authority.root().clone(),
        now: NOW,
    }];
    let vectors = real::folder();
    for (name, quote, collateral, now) in [
        (
            "v4",
            "v4_td10_uptodate.quote",
            "coll_B0C06F_eval17_2025-06.json",
            1_750_332_747,
        ),
        (
            "v5",
            "v5_td15_uptodate.quote",
            "coll_90C06F_eval18_2026-02_gotcb.json",
            1_771_414_935,
        ),
    ] {
        cases.push(Case {
            name,
            quote: std::fs::read(vectors.join(quote)).expect("the manifest's quote"),
            json: std::fs::read(vectors.join("collateral").join(collateral)).expect("its collateral"),
            root: TrustRoot::intel().expect("Intel's root"),
            now,
        });
    }
    cases
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for case in cases() {
        let collateral = Collateral::parse(&case.json).expect("collateral");
        let verifier = Verifier::new(case.root.clone(), collateral);
        let report_data = Quote::parse(&case.quote).expect("a quote").report.report_data;
        let mut group = criterion.benchmark_group(format!("verification/{}", case.name));
        group.bench_function("cloister", |bench| {
            bench.iter(|| {
                verifier
                    .verify(black_box(&case.quote), &report_data, case.now)
                    .expect("it verifies")
            });
        });
        // The first quote that a verifier sees: no signature of a certificate is known.
        group.bench_function("cloister/first", |bench| {
            bench.iter_batched(
                || Verifier::new(case.root.clone(), Collateral::parse(&case.json).expect("collateral")),
                |verifier| {
                    let verified = verifier.verify(black_box(&case.quote), &report_data, case.now);
                    (verified.expect("it verifies"), verifier)
                },
                BatchSize::SmallInput,
            );
        });
        let direct = QuoteVerifier::<Direct>::new_with_config(case.root.der().to_vec());
        let collateral: QuoteCollateralV3 = serde_json::from_slice(&case.json).expect("collateral");
        let policy = QuotePolicy::claims_only(case.now);
        group.bench_function("dcap-qvl", |bench| {
            bench.iter(|| {
                direct
                    .verify_with_policy(black_box(&case.quote), &collateral, case.now, &policy)
                    .expect("it verifies")
            });
        });
        let mut cut = case.quote.clone();
        cut.truncate(cut.len() / 2);
        for (name, garbage, wanted) in [
            ("zeros", vec![0; 8000], report_data),
            (
                "noise",
                (0u32..8000)
                    .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
                    .collect(),
                report_data,
            ),
            ("cut", cut, report_data),
            ("other-report-data", case.quote.clone(), [1; 64]),
        ] {
            group.bench_function(format!("refusal/{name}"), |bench| {
                bench.iter(|| {
                    verifier
                        .verify(black_box(&garbage), &wanted, case.now)
                        .expect_err("it is refused")
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
