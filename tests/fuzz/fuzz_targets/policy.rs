//! A policy and its signatures: TOML that everybody in the federation opens.
#![no_main]

use cloister_fuzz::{plant, repository_file};
use cloister_policy::{Policy, Signatures, explain, warnings};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../policies");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let policies = files.filter(|name| name.to_string_lossy().ends_with(".toml"));
    policies
        .map(|name| repository_file(&format!("policies/{}", name.to_string_lossy())))
        .collect()
}

fuzz_target!(init: plant("policy", seeds()), |data: &[u8]| {
    let _ = Signatures::parse(data, "fuzz.sigs");
    match Policy::parse(data, "fuzz.toml") {
        Ok(policy) => {
            let _ = (explain(&policy), warnings(&policy), policy.digest());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
