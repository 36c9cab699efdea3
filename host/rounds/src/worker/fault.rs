//! What a member holds against its aggregator.

/// What the aggregator did that no honest aggregator does. The member leaves with this as its reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AggregatorFault {
    /// A message that has no place here.
    #[error("the aggregator sent {seen} while the member was {state}")]
    OutOfTurn {
        /// What came.
        seen: &'static str,
        /// What the member was doing.
        state: &'static str,
    },
    /// The member's own nonce is missing or changed, or the list is out of order.
    #[error(
        "the roster challenge of epoch {epoch} does not hold this member's nonce in an ordered list; it may be old evidence"
    )]
    Challenge {
        /// The epoch.
        epoch: u64,
    },
    /// Epochs and rounds only go up.
    #[error("the aggregator went back: {what} {seen} after {last}")]
    Backwards {
        /// Epoch or round.
        what: &'static str,
        /// What came.
        seen: u64,
        /// What was last.
        last: u64,
    },
    /// Back behind what the aggregator had to seal.
    #[error(
        "the aggregator, started anew, went back too far: it begins round {seen} after {last}, and had to seal round {sealed}; its vault may \
         have been put back"
    )]
    WentBack {
        /// The round that it begins.
        seen: u64,
        /// The last one that this member has a receipt of.
        last: u64,
        /// The one behind which it may go on at the earliest.
        sealed: u64,
    },
    /// Receipts come one by one.
    #[error("the aggregator sent the receipt of round {seen} where that of round {wanted} is next")]
    Skipped {
        /// What came.
        seen: u64,
        /// What was next.
        wanted: u64,
    },
    /// Not the members that were challenged.
    #[error("the roster of epoch {epoch} names {node:?}, who was not challenged or stands out of order")]
    Members {
        /// The epoch.
        epoch: u64,
        /// Whom.
        node: String,
    },
    /// The member is missing from the roster.
    #[error("the roster of epoch {epoch} leaves this member out")]
    LeftOut {
        /// The epoch.
        epoch: u64,
    },
    /// Something names another digest than it has to.
    #[error("round {round}: {what} is {seen}, wanted {wanted}")]
    Digest {
        /// The round.
        round: u64,
        /// Which digest.
        what: &'static str,
        /// As sent.
        seen: String,
        /// As known.
        wanted: String,
    },
    /// The receipt leaves out the update that was taken, or changes it.
    #[error("the receipt of round {round} does not show this member's update as it was sent")]
    Update {
        /// The round.
        round: u64,
    },
    /// An update was applied that was computed on a model of which the policy says that it is too old, or that there was not yet.
    #[error(
        "the receipt of round {round} shows an update of {node} on the model after round {base}; the policy wants one of the last {most} \
         before it"
    )]
    Base {
        /// The round.
        round: u64,
        /// Whose update.
        node: String,
        /// The round whose model it was computed on.
        base: u64,
        /// How far back it may lie.
        most: u64,
    },
    /// Updates that are to be applied alone came together.
    #[error("the receipt of round {round} shows {seen} updates; where each is applied alone there is one")]
    NotAlone {
        /// The round.
        round: u64,
        /// How many.
        seen: usize,
    },
    /// The receipt names too few updates.
    #[error("the receipt of round {round} shows {seen} updates; the policy wants at least {wanted}")]
    TooFew {
        /// The round.
        round: u64,
        /// How many.
        seen: usize,
        /// How many are needed.
        wanted: usize,
    },
}
