//! The record of a round that the aggregator signs: digests only, no tensors.

use cloister_tensor::Digest;

use crate::transcript::{Transcript, TranscriptReader};

const LABEL: &str = "cloister/receipt/v2";
/// No receipt names more updates, or more nodes that fell out: there are no more members of a roster.
const MAX_NODES: u64 = 1024;
/// No receipt carries more numbers.
const MAX_METRICS: u64 = 4096;

/// One update that went into the aggregate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptUpdate {
    /// Whose.
    pub node: String,
    /// Rows behind it, as the worker's host counted them.
    pub rows: u64,
    /// Digest of manifest and bytes.
    pub digest: Digest,
    /// How many rounds the model that it was computed on had behind it.
    pub base: u64,
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
    /// What the aggregation keeps from this round to the next (an optimizer's slots), if it does.
    pub state: Option<Digest>,
    /// What was folded, in this order.
    pub updates: Vec<ReceiptUpdate>,
    /// Who fell out, in ascending order of names.
    pub drops: Vec<ReceiptDrop>,
    /// Numbers that the round gave, for instance `loss` and `accuracy`.
    pub metrics: Vec<(String, f64)>,
}

/// Bytes that are no receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes that are no receipt of the form {LABEL}")]
pub struct NoReceipt {
    /// How many.
    pub bytes: usize,
}

impl Receipt {
    /// Reads back what [`Self::signed_bytes`] gave. Takes the one encoding of each receipt and nothing else.
    ///
    /// # Errors
    /// Another label, a field that is missing, cut short or too long, or anything behind the last one.
    pub fn parse(signed_bytes: &[u8]) -> Result<Self, NoReceipt> {
        Self::read(signed_bytes).ok_or(NoReceipt {
            bytes: signed_bytes.len(),
        })
    }

    fn read(signed_bytes: &[u8]) -> Option<Self> {
        let mut fields = TranscriptReader::new(LABEL, signed_bytes)?;
        let receipt = Self {
            federation: fields.text()?,
            policy_digest: fields.digest()?,
            round: fields.number()?,
            attempt: fields.number()?.try_into().ok()?,
            roster_digest: fields.digest()?,
            previous: fields.optional_digest()?,
            model_before: fields.digest()?,
            model_after: fields.digest()?,
            state: fields.optional_digest()?,
            updates: fields.list(MAX_NODES, |fields| {
                Some(ReceiptUpdate {
                    node: fields.text()?,
                    rows: fields.number()?,
                    digest: fields.digest()?,
                    base: fields.number()?,
                })
            })?,
            drops: fields.list(MAX_NODES, |fields| {
                Some(ReceiptDrop {
                    node: fields.text()?,
                    code: fields.text()?,
                })
            })?,
            metrics: fields.list(MAX_METRICS, |fields| {
                Some((fields.text()?, f64::from_bits(fields.number()?)))
            })?,
        };
        fields.ended().then_some(receipt)
    }

    /// What is signed: "cloister/receipt/v2" and all fields in the order in which they stand here, text and digests
    /// behind their lengths, numbers as u64 big-endian, metrics as their IEEE 754 bits, lists behind their counts.
    pub fn signed_bytes(&self) -> Vec<u8> {
        self.transcript().into_bytes()
    }

    /// SHA-256 of the signed bytes: what the next receipt names.
    pub fn digest(&self) -> Digest {
        self.transcript().digest()
    }

    fn transcript(&self) -> Transcript {
        let mut transcript = Transcript::new(LABEL);
        transcript
            .text(&self.federation)
            .bytes(self.policy_digest.as_bytes())
            .number(self.round)
            .number(u64::from(self.attempt))
            .bytes(self.roster_digest.as_bytes())
            .optional_digest(self.previous.as_ref())
            .bytes(self.model_before.as_bytes())
            .bytes(self.model_after.as_bytes())
            .optional_digest(self.state.as_ref())
            .count(self.updates.len());
        for update in &self.updates {
            transcript
                .text(&update.node)
                .number(update.rows)
                .bytes(update.digest.as_bytes())
                .number(update.base);
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_digest() -> impl Strategy<Value = Digest> {
        any::<[u8; 32]>().prop_map(Digest::from_bytes)
    }

    fn any_receipt() -> impl Strategy<Value = Receipt> {
        let updates = prop::collection::vec((".{0,9}", any::<u64>(), any_digest(), any::<u64>()), 0..4);
        let drops = prop::collection::vec((".{0,9}", "[a-z-]{0,9}"), 0..4);
        let metrics = prop::collection::vec(("[a-z]{0,9}", any::<f64>()), 0..4);
        let digests = (
            any_digest(),
            any_digest(),
            prop::option::of(any_digest()),
            any_digest(),
            any_digest(),
            prop::option::of(any_digest()),
        );
        (".{0,9}", any::<(u64, u32)>(), digests, updates, drops, metrics).prop_map(
            |(federation, (round, attempt), digests, updates, drops, metrics)| Receipt {
                federation,
                policy_digest: digests.0,
                round,
                attempt,
                roster_digest: digests.1,
                previous: digests.2,
                model_before: digests.3,
                model_after: digests.4,
                state: digests.5,
                updates: updates
                    .into_iter()
                    .map(|(node, rows, digest, base)| ReceiptUpdate {
                        node,
                        rows,
                        digest,
                        base,
                    })
                    .collect(),
                drops: drops
                    .into_iter()
                    .map(|(node, code)| ReceiptDrop { node, code })
                    .collect(),
                metrics,
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_signed_is_read_back(receipt in any_receipt()) {
            let bytes = receipt.signed_bytes();
            // Compared by bytes: a metric may be NaN here, which equals nothing.
            prop_assert_eq!(Receipt::parse(&bytes).unwrap().signed_bytes(), bytes);
        }

        #[test]
        fn a_receipt_cut_short_or_with_something_behind_it_is_none(receipt in any_receipt(), cut: prop::sample::Index) {
            let mut bytes = receipt.signed_bytes();
            prop_assert!(Receipt::parse(&bytes[..cut.index(bytes.len())]).is_err());
            bytes.push(0);
            prop_assert!(Receipt::parse(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_the_receipts_parser_panic(bytes: Vec<u8>) {
            let labelled = [LABEL.as_bytes(), &bytes].concat();
            if let Ok(receipt) = Receipt::parse(&labelled) {
                prop_assert_eq!(receipt.signed_bytes(), labelled);
            }
        }
    }

    /// The test vector of `host/audit/FORMAT.md`, section 4.
    #[test]
    fn the_bytes_are_the_documented_ones() {
        let digest = |byte| Digest::from_bytes([byte; 32]);
        let receipt = Receipt {
            federation: "wards".to_owned(),
            policy_digest: digest(1),
            round: 2,
            attempt: 1,
            roster_digest: digest(2),
            previous: Some(digest(3)),
            model_before: digest(4),
            model_after: digest(5),
            state: Some(digest(7)),
            updates: vec![ReceiptUpdate {
                node: "ward-a".to_owned(),
                rows: 599,
                digest: digest(6),
                base: 1,
            }],
            drops: vec![ReceiptDrop {
                node: "ward-b".to_owned(),
                code: "late".to_owned(),
            }],
            metrics: vec![("loss".to_owned(), 0.5)],
        };
        let wanted = "4e661bf83a9f71c96fa3787592ebc6aac99e93c2179c20fcd068b9edf2629d18";
        assert_eq!(receipt.digest().to_string(), wanted);
    }

    #[test]
    fn a_list_that_announces_more_than_there_is_ends_at_once() {
        let mut bytes = Transcript::new(LABEL);
        bytes
            .text("f")
            .bytes(&[0; 32])
            .number(1)
            .number(1)
            .bytes(&[0; 32])
            .bytes(&[]);
        bytes.bytes(&[0; 32]).bytes(&[0; 32]).bytes(&[]).number(u64::MAX);
        assert!(Receipt::parse(&bytes.into_bytes()).is_err());
    }
}
