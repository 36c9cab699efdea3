//! A model on its way out of the federation: to a participant that the policy names, or to such a participant's TD.
//!
//! ```text
//! aggregator's TD: vault --package--> sealed under keys of its own, these sealed to the recipient, all signed by the node
//! participant: `cloister unseal` with its own key          another TD: `cloister vault receive`, attested before it is sealed to
//! ```

pub mod deliver;
pub mod package;
