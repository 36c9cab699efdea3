//! Managers in twos and threes: one leads, the others hold the same state, sealed as the leader's disk has it, and one of them goes on when
//! the leader dies. The agreement among them is Raft by `openraft`; what is ours is what it stores, how it speaks, and who takes part.
//!
//! ```text
//! Desk -> Manager::turn -> Batch -> [Commits] -> Raft: kept by most replicas -> applied by each Ledger -> answer
//! ```
//!
//! - A log entry is one [`Batch`](cloister_manager::Batch): what the leader's turn writes, sealed. It names the state that it follows, and every
//!   replica takes it on that state alone, so that what two leaders made of one state can't both take effect. Nothing is computed
//!   again: time, randomness and audit lines are the leader's.
//! - **A disk is never believed.** Raft rests on votes and logs that a server remembers through a restart; here the disk is the operator's,
//!   who may put back an older one. So who takes part is a *start* of a replica, named by a random number that lives in its TD's memory
//!   ([`ReplicaId`]): votes and the log count from there only. A replica that starts again is a new member. It begins with nothing, gets
//!   the whole state from the leader, and takes the place of its predecessor by a change of membership that most of the others have to
//!   agree to. What lies on disks is for the day when all managers are down at once; then participants and witnesses speak, as for a manager alone.
//! - A leader answers only what most replicas have kept on their disks; where nothing was changed it asks them whether it still leads. One that
//!   is cut off answers nothing.
#![forbid(unsafe_code)]

mod commits;
mod error;
mod link;
mod log;
mod machine;
mod member;
mod message;
mod replica;

pub use error::ReplicaError;
pub use link::{Links, Sent};
pub use member::{Member, ReplicaId, Shown, Standing};
pub use message::MAX_MESSAGE_BYTES;
pub use replica::{Pace, Place, Replica};
