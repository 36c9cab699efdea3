//! Attacks on attestation, one file a class. Each tells what the attacker has and wants, tries it over real connections, and
//! then shows that an honest worker gets in where the attacker did not.
//!
//! The attacker holds a genuine TD of its own on a genuine platform of the federation's root: it can have a quote over any
//! report data that it likes. It is the network: every connection passes through its hands. It may be a participant, with a
//! credential for its own node. It has not the others' keys, nor quotes of their TDs over report data of its choice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod arena;

mod claim_stripping;
mod collateral_downgrade;
mod digest_order;
mod diversion;
mod event_log;
mod flood;
mod interception;
mod key_substitution;
mod mixed_claims;
mod one_layer;
mod reflection;
mod relay;
mod renegotiated_policy;
mod replay;
mod resumption;
mod root_substitution;
mod unmeasured_guest;
