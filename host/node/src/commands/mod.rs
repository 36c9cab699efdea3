//! One file a subcommand: parse, call the crate that does it, render.

pub mod audit;
mod audit_receipt;
pub mod data;
pub mod graph;
pub mod graph_run;
mod graph_sample;
mod graph_show;
pub mod identity;
mod image_layout;
pub mod module;
pub mod module_inspect;
pub mod module_submit;
pub mod peer;
pub mod policy;
mod policy_attestation;
mod policy_draft;
mod policy_draft_fault;
mod policy_graphs;
mod policy_image;
mod policy_reference;
mod policy_succession;
pub mod quote;
mod quote_collateral;
mod quote_shown;
mod quote_verify;
pub mod seal;
pub mod vault;
