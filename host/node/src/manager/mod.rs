//! The network around the manager's core (`cloister_manager`): its service and its client over attested sessions, and a node's
//! way to everything that it does not have in files.
//!
//! ```text
//! node: address + anchor --policies--> policy --apply--> credential --session--> keys, lease, counters   (apply, link)
//! participant's command line --session--> secrets, signatures, shares                                    (client)
//! manager's TD: service --Desk--> cloister_manager                                                       (service)
//! nodes that are there see each state of a commit before it is answered                                   (echo)
//! managers in twos and threes: cloister_replica between attested TDs                                     (replication)
//! ```

pub mod apply;
pub mod client;
mod convert;
pub mod counter;
mod echo;
mod error;
pub mod link;
pub mod recipients;
pub mod replication;
pub mod service;
pub mod standing;

pub use error::ManagerError;

/// The metadata key under which a refusal's word travels.
const REFUSED: &str = "cloister-refused";
