//! Why an update is not taken and why a node no longer takes part.

use std::fmt;

use cloister_tensor::Digest;

use crate::layout::LayoutError;

/// Why an update was refused. Nothing of a refused update reaches an aggregate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateRefusal {
    /// More or fewer bytes than the layout holds.
    #[error("the update has the wrong length: seen {seen} bytes, wanted {wanted}")]
    WrongLength {
        /// Bytes that came, or would have come with the piece that was refused.
        seen: u64,
        /// Bytes of the model's layout.
        wanted: u64,
    },
    /// Other tensors than the model's.
    #[error("the update does not fit the model: {0}")]
    WrongLayout(#[from] LayoutError),
    /// Other bytes than announced.
    #[error("the update's digest is {seen}, announced was {wanted}")]
    WrongDigest {
        /// Of the bytes that came.
        seen: Digest,
        /// As announced.
        wanted: Digest,
    },
    /// A NaN or an infinity.
    #[error("the update holds a NaN or an infinity in tensor {tensor:?} at element {index}; wanted finite numbers")]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
        /// Which element, from 0.
        index: usize,
    },
    /// Rows that the worker cannot have.
    #[error("the update counts {seen} rows; wanted 1 to {wanted}")]
    WrongRows {
        /// As announced.
        seen: u64,
        /// Most rows.
        wanted: u64,
    },
    /// A second update of the same round.
    #[error("a second update of {node} in round {round}; one is taken")]
    Twice {
        /// The sender.
        node: String,
        /// The round.
        round: u64,
    },
    /// Not asked for at this time.
    #[error("{node} sent {seen} out of turn; wanted: {wanted}")]
    OutOfTurn {
        /// The sender.
        node: String,
        /// What it sent.
        seen: String,
        /// What would have been taken.
        wanted: String,
    },
    /// After the last round.
    #[error("an update of {node} came after the end of the federation")]
    AfterEnd {
        /// The sender.
        node: String,
    },
}

impl UpdateRefusal {
    /// A word for receipts and logs of other nodes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::WrongLength { .. } => "wrong-length",
            Self::WrongLayout(_) => "wrong-layout",
            Self::WrongDigest { .. } => "wrong-digest",
            Self::NotFinite { .. } => "not-finite",
            Self::WrongRows { .. } => "wrong-rows",
            Self::Twice { .. } => "twice",
            Self::OutOfTurn { .. } => "out-of-turn",
            Self::AfterEnd { .. } => "after-end",
        }
    }
}

/// One rule of a verdict: what was seen, what was wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSeen {
    /// Name of the rule.
    pub rule: String,
    /// What the evidence showed.
    pub seen: String,
    /// What would have been taken.
    pub wanted: String,
}

impl fmt::Display for RuleSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: seen {}, wanted {}", self.rule, self.seen, self.wanted)
    }
}

/// Why a node, or its update, has no part in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// It did not answer in time.
    Late {
        /// What it was to send.
        wanted: &'static str,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// Its connection ended.
    Gone {
        /// How, as far as this side knows.
        cause: String,
    },
    /// It said that it leaves.
    Left {
        /// Its reason.
        reason: String,
    },
    /// Its module failed.
    ModuleFailed {
        /// Kind of the failure, a word.
        code: String,
        /// Digest of the module.
        module: Option<Digest>,
    },
    /// What it sent was refused.
    Refused(UpdateRefusal),
    /// Its roster evidence was refused.
    Evidence {
        /// On what ground.
        rules: Vec<RuleSeen>,
    },
    /// It refuses a member that the others take.
    RefusesMember {
        /// Whom.
        node: String,
        /// On what ground.
        rules: Vec<RuleSeen>,
    },
    /// Its update was computed on too old a model.
    Stale {
        /// How many updates had been applied since.
        behind: u64,
        /// How many may be.
        most: u64,
    },
    /// The aggregation failed with its update.
    NotApplied {
        /// How.
        cause: String,
    },
    /// It accepted another roster than the one that was relayed.
    OtherRoster {
        /// Digest that it named.
        seen: Digest,
        /// Digest of the roster.
        wanted: Digest,
    },
}

impl DropReason {
    /// A word for receipts and for other nodes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Late { .. } => "late",
            Self::Gone { .. } => "gone",
            Self::Left { .. } => "left",
            Self::ModuleFailed { .. } => "module-failed",
            Self::Refused(refusal) => refusal.code(),
            Self::Evidence { .. } => "evidence",
            Self::RefusesMember { .. } => "refuses-member",
            Self::Stale { .. } => "stale",
            Self::NotApplied { .. } => "not-applied",
            Self::OtherRoster { .. } => "other-roster",
        }
    }

    /// Whether the node itself did what no honest node does (as opposed to being slow or cut off).
    pub fn misbehaved(&self) -> bool {
        match self {
            Self::Late { .. }
            | Self::Gone { .. }
            | Self::Left { .. }
            | Self::Stale { .. }
            | Self::NotApplied { .. } => false,
            Self::ModuleFailed { .. }
            | Self::Refused(_)
            | Self::Evidence { .. }
            | Self::RefusesMember { .. }
            | Self::OtherRoster { .. } => true,
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late { wanted, waited_ms } => {
                write!(f, "late: no {wanted} after {:.1} s", *waited_ms as f64 / 1000.0)
            }
            Self::Gone { cause } => write!(f, "gone: {cause}"),
            Self::Left { reason } => write!(f, "left: {reason}"),
            Self::ModuleFailed {
                code,
                module: Some(digest),
            } => write!(f, "its module failed ({code}), module {digest}"),
            Self::ModuleFailed { code, module: None } => write!(f, "its training failed ({code})"),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Evidence { rules } => {
                write!(f, "its roster evidence was refused")?;
                rules.iter().try_for_each(|rule| write!(f, "; {rule}"))
            }
            Self::RefusesMember { node, rules } => {
                write!(f, "refuses {node}")?;
                rules.iter().try_for_each(|rule| write!(f, "; {rule}"))
            }
            Self::Stale { behind, most } => {
                write!(f, "its update is {behind} updates behind, at most {most} are taken")
            }
            Self::NotApplied { cause } => write!(f, "its update could not be applied: {cause}"),
            Self::OtherRoster { seen, wanted } => write!(f, "accepted the roster {seen}, relayed was {wanted}"),
        }
    }
}
