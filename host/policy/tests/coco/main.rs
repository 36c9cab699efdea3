//! `examples/coco`: what ties the host to hardware in Confidential Containers, and what would not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod agent;
mod initdata;
mod pods;
mod requests;

use std::path::PathBuf;

use cloister_policy::anchor::Anchor;

const ROLES: [&str; 2] = ["aggregator", "worker"];

fn file(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn initdata(role: &str) -> String {
    file(&format!("examples/coco/{role}/initdata.toml"))
}

fn anchor(role: &str) -> Anchor {
    Anchor::parse(&initdata(role)).unwrap()
}
