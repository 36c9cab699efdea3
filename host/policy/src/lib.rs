//! The agreement of a federation: parsed at the edge into bounded types, signed, explained, and applied: verified evidence
//! goes in, a permit or the list of rules that failed comes out.
//!
//! ```text
//! bytes --Policy::parse--> Policy --SignedPolicy::new--> what a node runs under
//!                             |
//! VerifiedEvidence --permit---+--> Permit, or a Refusal with each rule, what was seen and what was wanted
//! ```
//!
//! Nothing in here touches a file, a clock or the network.
#![forbid(unsafe_code)]

pub mod agreement;
pub mod anchor;
mod appraise;
pub mod dataset;
mod diff;
mod draft;
mod explain;
mod history;
mod parse;
mod permit;
mod policy;
mod reader;
pub mod references;
mod runtime;
mod signatures;
mod succession;
mod warnings;

pub use agreement::{Agreement, Consent, ModuleRole, TensorAccess};
pub use appraise::{Appraiser, Expected};
pub use dataset::{Damaged, DatasetSpec, InputSpec, InputType, MadeSpec, Slice, TransformSpec};
pub use diff::{Area, Change, diff};
pub use draft::{attestation_from_quote, draft};
pub use explain::explain;
pub use history::{DoubleSigner, Fork, History, MAX_VERSIONS, Version, follow};
pub use parse::FORMAT;
pub use permit::{Admission, Permit, Visit};
pub use policy::Policy;
pub use reader::{PolicyError, Problem, Scalar};
pub use references::{Reference, ReferenceError, ReferenceValues, SignedReferences};
pub use signatures::{Signature, SignatureError, Signatures, SignedPolicy};
pub use succession::{Ballot, Standing, Tally, Vote, broken_rules};
pub use warnings::{Loose, Warning, WarningKind, warnings};
