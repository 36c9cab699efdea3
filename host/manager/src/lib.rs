//! The policy manager's core: what was agreed, which keys go to whom, and that nothing goes back to what it was before.
//!
//! ```text
//! Manager::create ------------------------------------------------+
//! Locked::open --shares--> Loaded --witnesses--> Manager --turn--> answers, once they are on the disk
//! ```
//!
//! - *agreement*: policies are signed one by one, take effect when complete, follow each other, and are never forgotten;
//! - *release*: a node gets exactly the secrets that the policy in force grants it, sealed to its TD;
//! - *counters*: monotonic, compare and swap, behind a lease that fences a second instance off;
//! - *recovery*: the state is sealed under a key that n of m participants have to open;
//! - *freshness*: nodes remember the manager's newest state, and a quorum of them has to confirm it when it starts;
//! - *replicas*: what a commit writes is one sealed batch, which other managers' stores take as it is ([`Ledger`], [`Commits`]);
//! - *audit*: each change and each refusal is a line of a signed chain, in the same commit.
//!
//! No network and no clock in here: who asks is a [`Permit`](cloister_policy::Permit) or a [`Visit`](cloister_policy::Visit), which verified
//! evidence or a participant's signature alone can make, and the time is given to each turn. The store's bytes stand in `FORMAT.md`.
#![forbid(unsafe_code)]

mod agreement;
mod batch;
mod changes;
mod connections;
mod counter;
mod desk;
mod error;
mod file;
mod head;
mod key;
mod lease;
mod ledger;
mod manager;
mod notes;
mod opening;
mod recovery;
mod refusals;
mod refused;
mod release;
mod sealing;
mod secret;
mod secrets;
mod share;
mod standing;
mod state;
mod store;
mod turn;
mod witness;
mod writing;

pub use agreement::MAX_PROPOSALS;
pub use batch::{Batch, Commits, MAX_BATCH_BYTES, Position};
pub use connections::MAX_CONNECTIONS_OF_NODE;
pub use counter::{Commit, CounterId, MAX_COUNTERS_OF_NODE, NoCounter, Step};
pub use desk::{Busy, Desk, MAX_WAITING};
pub use error::{OpenError, StoreError};
pub use lease::Lease;
pub use ledger::Ledger;
pub use manager::{MAX_LINES, Manager, Settings};
pub use notes::{ExportNote, MAX_NOTES_A_MINUTE, RoundNote};
pub use opening::{Loaded, Locked};
pub use recovery::{MAX_HOLDERS, RecoveryError, RecoveryPlan};
pub use refused::Refused;
pub use release::{MAX_WANTED, ReleaseRequest, Released, SealedRelease, Wanted, open_release};
pub use sealing::{MAX_SEALED_BYTES, Purpose, Recipient, SealedBox, SealingError, SealingKey, SealingPublicKey};
pub use secret::{MAX_VALUE_BYTES, NewSecret, NoSecretId, SecretId, SecretInfo, SecretKind, SecretValue};
pub use secrets::{MAX_EPOCHS, MAX_SECRETS_OF_PARTICIPANT, MAX_VAULT_EPOCHS};
pub use share::{RecoveryShare, Remembered, SealedShare};
pub use standing::{Equivocation, PolicyFile, PolicyStanding, PolicyStatus};
pub use turn::Turn;
pub use witness::{Audience, Echoes, Mark, Quorum, Statement, StoreId, Unseen, Witness};
pub use writing::MAX_NOTE_BYTES;
