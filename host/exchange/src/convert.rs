//! Messages to types and back. What comes off the wire is checked here, once.

use bytes::Bytes;
use cloister_attestation::{FailedRule, Refusal};
use cloister_rounds::receipt::{Receipt, ReceiptDrop, ReceiptUpdate};
use cloister_rounds::{Layout, LayoutError, RuleSeen, TensorSpec};
use cloister_tensor::{Digest, Dtype};
use cloister_wire::federation as wire;

use crate::error::ExchangeError;

/// Most metrics of an update or a receipt, and the longest name of one, in bytes.
const MAX_METRICS: usize = 64;
const MAX_METRIC_NAME: usize = 64;
/// Most rules of a refusal that are kept, and the longest text of one, in characters.
const MAX_RULES: usize = 64;
const MAX_RULE_CHARS: usize = 512;

/// A digest of exactly 32 bytes.
pub(crate) fn digest(bytes: &[u8], what: &'static str) -> Result<Digest, ExchangeError> {
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| ExchangeError::Message {
        what,
        cause: format!("{} bytes of digest, wanted 32", bytes.len()),
    })?;
    Ok(Digest::from_bytes(bytes))
}

/// A digest, or none for no bytes.
pub(crate) fn optional_digest(bytes: &[u8], what: &'static str) -> Result<Option<Digest>, ExchangeError> {
    if bytes.is_empty() {
        Ok(None)
    } else {
        digest(bytes, what).map(Some)
    }
}

/// A digest as bytes.
pub(crate) fn digest_bytes(digest: &Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

/// A layout as its manifest.
pub(crate) fn manifest(layout: &Layout) -> wire::Manifest {
    let entry = |spec: &TensorSpec| wire::ManifestEntry {
        name: spec.name.clone(),
        dtype: spec.dtype.name().to_owned(),
        shape: spec.shape.iter().map(|&dimension| dimension as u64).collect(),
    };
    wire::Manifest {
        entries: layout.specs().iter().map(entry).collect(),
    }
}

/// A manifest as a layout, if it is one and its tensors hold at most `limit_bytes`.
pub(crate) fn layout(manifest: Option<wire::Manifest>, limit_bytes: u64) -> Result<Layout, LayoutError> {
    let entries = manifest.unwrap_or_default().entries;
    let mut specs = Vec::with_capacity(entries.len());
    for entry in entries {
        let Some(dtype) = Dtype::from_name(&entry.dtype) else {
            return Err(LayoutError::Dtype {
                name: entry.name,
                dtype: entry.dtype.chars().take(16).collect(),
            });
        };
        let shape: Result<Vec<usize>, _> = entry
            .shape
            .iter()
            .map(|&dimension| usize::try_from(dimension))
            .collect();
        let shape = shape.map_err(|error| LayoutError::Shape {
            name: entry.name.clone(),
            cause: error.to_string(),
        })?;
        specs.push(TensorSpec {
            name: entry.name,
            dtype,
            shape,
        });
    }
    Layout::new(specs, limit_bytes)
}

/// Metrics of a peer: bounded, only finite values, tame names.
pub(crate) fn metrics(metrics: Vec<wire::Metric>) -> Vec<(String, f64)> {
    let tame = |metric: &wire::Metric| {
        metric.value.is_finite()
            && metric.name.len() <= MAX_METRIC_NAME
            && !metric.name.is_empty()
            && !metric.name.chars().any(char::is_control)
    };
    metrics
        .into_iter()
        .filter(tame)
        .take(MAX_METRICS)
        .map(|metric| (metric.name, metric.value))
        .collect()
}

/// Metrics as messages.
pub(crate) fn metric_messages(metrics: &[(String, f64)]) -> Vec<wire::Metric> {
    metrics
        .iter()
        .take(MAX_METRICS)
        .map(|(name, value)| wire::Metric {
            name: name.clone(),
            value: *value,
        })
        .collect()
}

/// A word of a peer: letters, digits and hyphens, at most 32.
pub(crate) fn word(text: &str) -> String {
    text.chars()
        .filter(|character| character.is_ascii_alphanumeric() || *character == '-')
        .take(32)
        .collect()
}

/// A peer's text without control characters, cut.
pub(crate) fn tame(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .take(MAX_RULE_CHARS)
        .collect()
}

/// A refusal's rules as messages.
pub(crate) fn rule_messages(refusal: &Refusal) -> Vec<wire::RefusedRule> {
    let message = |rule: &FailedRule| wire::RefusedRule {
        rule: tame(&rule.rule),
        seen: tame(&rule.seen),
        wanted: tame(&rule.wanted),
    };
    refusal.failed.iter().take(MAX_RULES).map(message).collect()
}

/// A refusal's rules as a peer tells them.
pub(crate) fn rules(messages: &[wire::RefusedRule]) -> Vec<RuleSeen> {
    let rule = |rule: &wire::RefusedRule| RuleSeen {
        rule: tame(&rule.rule),
        seen: tame(&rule.seen),
        wanted: tame(&rule.wanted),
    };
    messages.iter().take(MAX_RULES).map(rule).collect()
}

/// A refusal's rules for the rounds' records.
pub(crate) fn rules_seen(refusal: &Refusal) -> Vec<RuleSeen> {
    rules(&rule_messages(refusal))
}

/// A receipt as a message.
pub(crate) fn receipt_message(receipt: &Receipt) -> wire::Receipt {
    let update = |update: &ReceiptUpdate| wire::ReceiptUpdate {
        node: update.node.clone(),
        rows: update.rows,
        digest: digest_bytes(&update.digest),
        base: update.base,
    };
    let drop = |drop: &ReceiptDrop| wire::ReceiptDrop {
        node: drop.node.clone(),
        code: drop.code.clone(),
    };
    wire::Receipt {
        federation: receipt.federation.clone(),
        policy_digest: digest_bytes(&receipt.policy_digest),
        round: receipt.round,
        attempt: receipt.attempt,
        roster_digest: digest_bytes(&receipt.roster_digest),
        previous: receipt.previous.as_ref().map(digest_bytes).unwrap_or_default(),
        model_before: digest_bytes(&receipt.model_before),
        model_after: digest_bytes(&receipt.model_after),
        updates: receipt.updates.iter().map(update).collect(),
        drops: receipt.drops.iter().map(drop).collect(),
        metrics: metric_messages(&receipt.metrics),
        state: receipt.state.as_ref().map(digest_bytes).unwrap_or_default(),
    }
}

/// A receipt off the wire. Nothing is tamed: the signature is over what came.
pub(crate) fn receipt(message: wire::Receipt) -> Result<Receipt, ExchangeError> {
    const WHAT: &str = "a receipt";
    let updates: Result<Vec<_>, ExchangeError> = message
        .updates
        .into_iter()
        .map(|update| {
            Ok(ReceiptUpdate {
                node: update.node,
                rows: update.rows,
                digest: digest(&update.digest, WHAT)?,
                base: update.base,
            })
        })
        .collect();
    Ok(Receipt {
        federation: message.federation,
        policy_digest: digest(&message.policy_digest, WHAT)?,
        round: message.round,
        attempt: message.attempt,
        roster_digest: digest(&message.roster_digest, WHAT)?,
        previous: optional_digest(&message.previous, WHAT)?,
        model_before: digest(&message.model_before, WHAT)?,
        model_after: digest(&message.model_after, WHAT)?,
        state: optional_digest(&message.state, WHAT)?,
        updates: updates?,
        drops: message
            .drops
            .into_iter()
            .map(|drop| ReceiptDrop {
                node: drop.node,
                code: drop.code,
            })
            .collect(),
        metrics: message
            .metrics
            .into_iter()
            .map(|metric| (metric.name, metric.value))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message as _;

    fn any_entry() -> impl Strategy<Value = wire::ManifestEntry> {
        let dtype = prop::sample::select(vec!["F32", "I64", "BOOL", "F33", ""]);
        (".{0,6}", dtype, prop::collection::vec(any::<u64>(), 0..10)).prop_map(|(name, dtype, shape)| {
            wire::ManifestEntry {
                name,
                dtype: dtype.to_owned(),
                shape,
            }
        })
    }

    proptest! {
        /// Whatever a peer sends is a message within bounds, or none.
        #[test]
        fn any_bytes_are_a_message_or_none(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(message) = wire::UpdateReady::decode(&bytes[..]) {
                let _ = layout(message.manifest, 1 << 30);
                prop_assert!(metrics(message.metrics).iter().all(|(_, value)| value.is_finite()));
            }
            if let Ok(message) = wire::Receipt::decode(&bytes[..]) {
                let _ = receipt(message);
            }
            if let Ok(message) = wire::RosterRefused::decode(&bytes[..]) {
                prop_assert!(rules(&message.rules).len() <= MAX_RULES);
            }
        }

        #[test]
        fn a_manifest_stays_within_its_limit(entries in prop::collection::vec(any_entry(), 0..8)) {
            if let Ok(layout) = layout(Some(wire::Manifest { entries: entries.clone() }), 1 << 20) {
                prop_assert!(layout.wire_bytes() <= 1 << 20);
                prop_assert_eq!(manifest(&layout).entries, entries);
            }
        }
    }

    #[test]
    fn a_receipt_comes_back_as_it_was_signed() {
        let before = Receipt {
            federation: "f".to_owned(),
            policy_digest: Digest::of(b"p"),
            round: 3,
            attempt: 2,
            roster_digest: Digest::of(b"r"),
            previous: Some(Digest::of(b"before")),
            model_before: Digest::of(b"m2"),
            model_after: Digest::of(b"m3"),
            state: Some(Digest::of(b"slots")),
            updates: vec![ReceiptUpdate {
                node: "a".to_owned(),
                rows: 7,
                digest: Digest::of(b"u"),
                base: 1,
            }],
            drops: vec![ReceiptDrop {
                node: "b".to_owned(),
                code: "late".to_owned(),
            }],
            metrics: vec![("loss".to_owned(), 0.25)],
        };
        let after = receipt(receipt_message(&before)).unwrap();
        assert_eq!(after.signed_bytes(), before.signed_bytes());
        let mut cut = receipt_message(&before);
        cut.model_after.truncate(31);
        assert!(receipt(cut).is_err());
    }
}
