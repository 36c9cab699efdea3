//! What a round computes: the node's part, called by the drivers on a thread where it may block.

use std::borrow::Cow;
use std::sync::Arc;

use cloister_attestation::identity::PublicKey;
use cloister_rounds::{NoReceipt, Receipt};
use cloister_tensor::{Digest, TensorMap};
use tokio::sync::mpsc;

/// The node's own part failed; the federation can't go on here.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
pub struct WorkError {
    /// What was done.
    pub what: Cow<'static, str>,
    /// Why it failed.
    pub cause: String,
}

impl WorkError {
    /// A failure in words.
    pub fn new(what: impl Into<Cow<'static, str>>, cause: impl std::fmt::Display) -> Self {
        Self {
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}

/// A module failed. Peers get the code and the digest; the message stays with the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} failed ({code}): {message}", .module.map_or("the training".to_owned(), |digest| format!("module {digest}")))]
pub struct ModuleFailure {
    /// Kind, a word such as `trap` or `deadline`.
    pub code: String,
    /// Digest of the module.
    pub module: Option<Digest>,
    /// For the log and the errors of this node: what the module says, among others.
    pub message: String,
}

/// Which round is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundInfo {
    /// From 1.
    pub round: u64,
    /// How many there are.
    pub rounds: u64,
    /// Attempt, from 1.
    pub attempt: u32,
    /// Seed of the round, the same for all members.
    pub seed: u64,
    /// How many trainings of this member went before in this federation. At the aggregator, how many rounds.
    pub step: u64,
}

/// One worker's update, on its way into the aggregate.
#[derive(Clone, Debug)]
pub struct WorkerUpdate {
    /// Whose.
    pub node: String,
    /// Rows behind it.
    pub rows: u64,
    /// The tensors: layout, length, digest and finiteness are checked.
    pub tensors: TensorMap,
}

/// The round was given up while its updates were awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the round was given up")]
pub struct RoundGivenUp;

pub(crate) enum FoldMessage {
    Update(Box<WorkerUpdate>),
    End,
}

/// The updates of a round in ascending order of node names. Asking for the next one says that the one before is folded
/// and its memory free.
pub struct UpdateStream {
    updates: mpsc::UnboundedReceiver<FoldMessage>,
    folded: Box<dyn FnMut(String) + Send>,
    given: Option<String>,
}

impl UpdateStream {
    pub(crate) fn new(updates: mpsc::UnboundedReceiver<FoldMessage>, folded: Box<dyn FnMut(String) + Send>) -> Self {
        Self {
            updates,
            folded,
            given: None,
        }
    }

    /// A stream over updates at hand.
    pub fn of(updates: Vec<WorkerUpdate>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        for update in updates {
            // The receiver lives in this function.
            let _ = sender.send(FoldMessage::Update(Box::new(update)));
        }
        let _ = sender.send(FoldMessage::End);
        Self::new(receiver, Box::new(|_| {}))
    }

    /// Blocks until the next update is there; `None` after the last. Not to be called on an async thread.
    #[expect(clippy::should_implement_trait, reason = "fallible, and blocking on purpose")]
    pub fn next(&mut self) -> Result<Option<WorkerUpdate>, RoundGivenUp> {
        if let Some(node) = self.given.take() {
            (self.folded)(node);
        }
        match self.updates.blocking_recv() {
            Some(FoldMessage::Update(update)) => {
                self.given = Some(update.node.clone());
                Ok(Some(*update))
            }
            Some(FoldMessage::End) => Ok(None),
            None => Err(RoundGivenUp),
        }
    }
}

/// What an aggregation and evaluation gave.
#[derive(Clone, Debug, Default)]
pub struct Aggregate {
    /// The next model, of the same layout.
    pub model: TensorMap,
    /// Numbers for the receipt, `loss` and `accuracy` first.
    pub metrics: Vec<(String, f64)>,
    /// Digest of what is kept for the next one (an optimizer's slots), if anything is.
    pub state: Option<Digest>,
}

/// A round's record, to be kept before it is announced.
#[derive(Clone, Debug)]
pub struct RoundRecord {
    /// What is signed.
    pub receipt: Receipt,
    /// Ed25519 by the aggregator's node key over [`Receipt::signed_bytes`].
    pub signature: [u8; SIGNATURE_BYTES],
}

/// Bytes of an Ed25519 signature.
const SIGNATURE_BYTES: usize = 64;

impl RoundRecord {
    /// No file with a record is larger.
    pub const MAX_BYTES: u64 = 1 << 20;

    /// As a file: what is signed, then the signature (`host/audit/FORMAT.md`, section 4).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.receipt.signed_bytes();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads such a file. Whether the signature is good is not looked at.
    ///
    /// # Errors
    /// What stands before the last 64 bytes is no receipt.
    pub fn parse(bytes: &[u8]) -> Result<Self, NoReceipt> {
        let (signed, &signature) = bytes.split_last_chunk().ok_or(NoReceipt { bytes: bytes.len() })?;
        let receipt = Receipt::parse(signed)?;
        Ok(Self { receipt, signature })
    }

    /// Whether the node with this key signed it.
    pub fn signed_by(&self, key: &PublicKey) -> bool {
        key.verify(&self.receipt.signed_bytes(), &self.signature)
    }
}

/// The aggregator's part.
pub trait AggregatorWork: Send + 'static {
    /// Folds the updates into a new model. An error is the aggregation module's: the round is tried again. What is kept for the next one
    /// counts from [`Self::keep`] on.
    fn aggregate(
        &mut self,
        round: &RoundInfo,
        model: &TensorMap,
        updates: &mut UpdateStream,
    ) -> Result<Aggregate, WorkError>;

    /// Evaluates the new model on what the policy grants, where it is due; gives metrics to put before those of the aggregation.
    fn evaluate(&mut self, round: &RoundInfo, model: &TensorMap) -> Result<Vec<(String, f64)>, WorkError>;

    /// Keeps model and receipt, sealed where the policy has it. Called before the receipt goes out; an error stops the federation.
    fn keep(&mut self, record: &RoundRecord, model: &TensorMap) -> Result<(), WorkError>;
}

/// What a worker's training gave.
#[derive(Clone, Debug, Default)]
pub struct LocalUpdate {
    /// All tensors of the model.
    pub tensors: TensorMap,
    /// Rows that the host counted.
    pub rows: u64,
    /// Numbers that the module reports to the aggregator: of the graphs' scalar outputs what the policy's `reads` lets it see, or
    /// anything, where the policy grants it `read`.
    pub metrics: Vec<(String, f64)>,
}

/// The worker's part.
pub trait WorkerWork: Send + 'static {
    /// Trains on the model of this round.
    fn train(&mut self, round: &RoundInfo, model: TensorMap) -> Result<LocalUpdate, ModuleFailure>;

    /// Where this worker writes receipts down; asked for once. They may come while it trains.
    fn ledger(&self) -> Arc<dyn Ledger>;
}

/// Writes receipts down, on a thread where it may block.
pub trait Ledger: Send + Sync + 'static {
    /// A round is done; its receipt was checked. An error ends the worker's part.
    fn round_done(&self, record: &RoundRecord) -> Result<(), WorkError>;
}
