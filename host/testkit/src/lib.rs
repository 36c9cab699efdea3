//! Attackers, faulty links and fakes, for tests alone: no part of a release depends on this crate.
//!
//! - [`world`]: a whole simulated federation in a temporary folder: authority, participants, policy, nodes.
//! - [`wards`]: three hospitals' policies, permits and visits, for what decides without a network.
//! - [`fakes`]: work that needs no runner, and a progress that remembers.
//! - [`steps`]: such work by gradients.
//! - [`link`]: links that delay and cut, and a CONNECT proxy.
//! - [`raw`]: a member that says whatever a test wants it to say.
//! - [`configfs`]: a file system that behaves as the kernel's configfs-tsm.
//! - [`measurements`]: one that behaves as the kernel's folder of measurement registers.
//! - [`device`]: what makes quotes behind the fakes.
//! - [`coco`]: a server that behaves as the API server of Confidential Containers.
//! - [`pccs`]: a server with the shape of a PCCS, honest or not; [`https`]: TLS in front of it.
//! - [`attacker`]: TLS with any certificate, and a relay that terminates it.
//!
//! Everything panics instead of returning errors: a test's set-up has nobody to report to.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "test code: a broken set-up ends the test"
)]

pub mod attacker;
pub mod coco;
pub mod configfs;
pub mod device;
pub mod fakes;
pub mod https;
pub mod kbs;
pub mod link;
pub mod measurements;
pub mod pccs;
pub mod raw;
pub mod steps;
pub mod wards;
pub mod world;
