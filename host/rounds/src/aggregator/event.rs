//! What goes into the aggregator's machine and what comes out.

use std::fmt;

use cloister_tensor::Digest;

use crate::receipt::ReceiptUpdate;
use crate::refusal::{DropReason, RuleSeen, UpdateRefusal};
use crate::roster::RosterEntry;

/// What happened. `node` is always the name that the sender's permit carries, never one that a message claims.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker asks to take part.
    Joined {
        /// Who.
        node: String,
        /// Its nonce for the roster.
        nonce: [u8; 32],
    },
    /// A worker showed its evidence for the roster, and the aggregator verified it.
    Evidence {
        /// Who.
        node: String,
        /// Which epoch it answers.
        epoch: u64,
        /// What it shows.
        entry: RosterEntry,
    },
    /// A worker's evidence for the roster was refused.
    EvidenceRefused {
        /// Whose.
        node: String,
        /// On what ground.
        rules: Vec<RuleSeen>,
    },
    /// A worker verified all others.
    Accepted {
        /// Who.
        node: String,
        /// Which epoch.
        epoch: u64,
        /// The roster that it saw.
        digest: Digest,
    },
    /// A worker refuses another one.
    RefusesMember {
        /// Who.
        node: String,
        /// Whom.
        refused: String,
        /// Why.
        rules: Vec<RuleSeen>,
    },
    /// A worker's update is computed.
    Ready {
        /// Whose.
        node: String,
        /// Of which round.
        round: u64,
        /// And attempt.
        attempt: u32,
        /// Rows behind it.
        rows: u64,
        /// Its digest.
        digest: Digest,
    },
    /// A worker's update is here, whole and checked.
    Received {
        /// Whose.
        node: String,
        /// Of which round.
        round: u64,
        /// And attempt.
        attempt: u32,
    },
    /// The aggregation let go of an update.
    Folded {
        /// Whose.
        node: String,
    },
    /// Something that a worker sent was refused outside this machine: bytes, lengths, messages out of turn.
    Refused {
        /// Who.
        node: String,
        /// Why.
        refusal: UpdateRefusal,
    },
    /// A worker's module failed.
    ModuleFailed {
        /// Whose.
        node: String,
        /// In which round.
        round: u64,
        /// And attempt.
        attempt: u32,
        /// Kind of the failure.
        code: String,
        /// Digest of the module.
        module: Option<Digest>,
    },
    /// A worker said that it leaves.
    Left {
        /// Who.
        node: String,
        /// Its reason.
        reason: String,
    },
    /// A worker's connection ended.
    Lost {
        /// Whose.
        node: String,
        /// How.
        cause: String,
    },
    /// The aggregate is there, checked and kept.
    Aggregated {
        /// Of which round.
        round: u64,
        /// And attempt.
        attempt: u32,
    },
    /// The aggregation gave no result.
    AggregateFailed {
        /// Of which round.
        round: u64,
        /// And attempt.
        attempt: u32,
        /// Why.
        cause: String,
    },
    /// Time went on.
    Tick,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Say why nothing happens.
    Wait(Waiting),
    /// Ask these members for evidence over the challenge.
    Challenge {
        /// The new epoch.
        epoch: u64,
        /// Members and their nonces, in ascending order.
        nonces: Vec<(String, [u8; 32])>,
        /// Over epoch and nonces.
        challenge: [u8; 32],
    },
    /// Send everybody's evidence to these members.
    Relay {
        /// The epoch.
        epoch: u64,
        /// Whose evidence, and to whom, in ascending order.
        members: Vec<String>,
        /// What each of them has to come to.
        digest: Digest,
    },
    /// Start a round: send the model to the participants, begin an aggregation.
    StartRound {
        /// Which, from 1.
        round: u64,
        /// Which attempt, from 1.
        attempt: u32,
        /// Who takes part, in ascending order.
        participants: Vec<String>,
        /// The roster in force.
        roster_digest: Digest,
    },
    /// Send the newest model to this member, to work on at its own pace.
    StartTask {
        /// Who.
        node: String,
        /// Number of the update that would come next.
        round: u64,
        /// Which attempt of this member at it, from 1.
        attempt: u32,
        /// The roster in force.
        roster_digest: Digest,
    },
    /// Let the aggregation apply this update alone.
    Apply {
        /// Whose.
        node: String,
        /// Rows behind it.
        rows: u64,
        /// Which update it makes, from 1.
        round: u64,
        /// Which attempt at that, from 1.
        attempt: u32,
    },
    /// Forget this member's update; it gets another task.
    LeaveOut {
        /// Whose.
        node: String,
        /// Its task.
        round: u64,
        /// And attempt.
        attempt: u32,
        /// Why.
        reason: DropReason,
    },
    /// The worker may send its update now.
    Grant {
        /// Who.
        node: String,
        /// Of which round.
        round: u64,
        /// And attempt.
        attempt: u32,
    },
    /// Hand the worker's update to the aggregation.
    Fold {
        /// Whose.
        node: String,
        /// Rows behind it.
        rows: u64,
    },
    /// All updates are folded: let the aggregation end.
    Close {
        /// Of which round.
        round: u64,
        /// And attempt.
        attempt: u32,
    },
    /// Give the attempt up: discard its updates and its aggregation.
    Abort {
        /// Which round.
        round: u64,
        /// Which attempt.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// A round is done: sign and send its receipt.
    RoundDone(RoundSummary),
    /// Take the node off.
    Drop {
        /// Whom.
        node: String,
        /// Why.
        reason: DropReason,
    },
    /// All rounds are done.
    Finish,
    /// So many workers misbehaved too often that the rest can't make a round: the federation stops.
    TooFew {
        /// Which round can't be run.
        round: u64,
        /// Who can't join again.
        barred: Vec<String>,
        /// How often each of them misbehaved.
        strikes: u32,
        /// Fewest updates of an aggregate.
        needed: usize,
    },
    /// The federation stops: the aggregation failed too often.
    Fail {
        /// In which round.
        round: u64,
        /// How often.
        failures: u32,
        /// The last cause.
        cause: String,
    },
}

/// Who and what made a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoundSummary {
    /// Which round.
    pub round: u64,
    /// Which attempt.
    pub attempt: u32,
    /// Updates in the order in which they were folded.
    pub updates: Vec<ReceiptUpdate>,
    /// Who fell out, in ascending order.
    pub drops: Vec<(String, DropReason)>,
}

/// Why the machine waits for members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Who is here.
    pub present: Vec<String>,
    /// Who is not.
    pub missing: Vec<String>,
    /// How many are needed.
    pub needed: usize,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "waiting for workers: {} here, {} needed",
            self.present.len(),
            self.needed
        )?;
        if self.present.len() >= self.needed && !self.missing.is_empty() {
            let missing = self.missing.join(", ");
            return write!(
                f,
                "; {missing} may still come, and those that are here verify each other before a round"
            );
        }
        if !self.missing.is_empty() {
            write!(f, "; missing {}", self.missing.join(", "))?;
        }
        Ok(())
    }
}
