//! The record of a round that the aggregator signs: digests only, no tensors.

use cloister_tensor::Digest;

use crate::transcript::Transcript;

/// One update that went into the aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptUpdate {
    /// Whose.
    pub node: String,
    /// Rows behind it, as the worker's host counted them.
    pub rows: u64,
    /// Digest of manifest and bytes.
    pub digest: Digest,
}

/// One node that took no part to the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptDrop {
    /// Which.
    pub node: String,
    /// Why, in a word ([`crate::DropReason::code`]).
    pub code: String,
}

/// The record of one round. Each names the digest of the one before: a chain from the first round on.
#[derive(Clone, Debug, PartialEq)]
pub struct Receipt {
    /// Name of the federation.
    pub federation: String,
    /// The policy it runs under.
    pub policy_digest: Digest,
    /// Which round, from 1.
    pub round: u64,
    /// Which attempt at it, from 1.
    pub attempt: u32,
    /// The roster under which it ran.
    pub roster_digest: Digest,
    /// Digest of the receipt before, none for the first.
    pub previous: Option<Digest>,
    /// Model that the workers started from.
    pub model_before: Digest,
    /// The aggregate.
    pub model_after: Digest,
    /// What was folded, in this order.
    pub updates: Vec<ReceiptUpdate>,
    /// Who fell out, in ascending order of names.
    pub drops: Vec<ReceiptDrop>,
    /// Numbers that the round gave, for instance `loss` and `accuracy`.
    pub metrics: Vec<(String, f64)>,
}

impl Receipt {
    /// What is signed: "cloister/receipt/v1" and all fields in the order in which they stand here, text and digests
    /// behind their lengths, numbers as u64 big-endian, metrics as their IEEE 754 bits, lists behind their counts.
    pub fn signed_bytes(&self) -> Vec<u8> {
        self.transcript().into_bytes()
    }

    /// SHA-256 of the signed bytes: what the next receipt names.
    pub fn digest(&self) -> Digest {
        self.transcript().digest()
    }

    fn transcript(&self) -> Transcript {
        let mut transcript = Transcript::new("cloister/receipt/v1");
        transcript
            .text(&self.federation)
            .bytes(self.policy_digest.as_bytes())
            .number(self.round)
            .number(u64::from(self.attempt))
            .bytes(self.roster_digest.as_bytes())
            .bytes(
                self.previous
                    .as_ref()
                    .map_or(&[], |digest| digest.as_bytes().as_slice()),
            )
            .bytes(self.model_before.as_bytes())
            .bytes(self.model_after.as_bytes())
            .count(self.updates.len());
        for update in &self.updates {
            transcript
                .text(&update.node)
                .number(update.rows)
                .bytes(update.digest.as_bytes());
        }
        transcript.count(self.drops.len());
        for drop in &self.drops {
            transcript.text(&drop.node).text(&drop.code);
        }
        transcript.count(self.metrics.len());
        for (name, value) in &self.metrics {
            transcript.text(name).number(value.to_bits());
        }
        transcript
    }
}
