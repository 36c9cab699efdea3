//! What a member holds the aggregator to: fresh rosters, a chain of receipts, its own update as it was sent.
#![allow(
    clippy::vec_init_then_push,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that panics says where; what is pushed reads as a story"
)]

use cloister_rounds::receipt::{Receipt, ReceiptUpdate};
use cloister_rounds::worker::{AggregatorFault, Chain, RoundHead, WorkerConfig};
use cloister_rounds::{Pace, RosterEntry, Worker, roster};
use cloister_tensor::Digest;

const NONCE: [u8; 32] = [4; 32];

fn entry(node: &str) -> RosterEntry {
    RosterEntry {
        node: node.to_owned(),
        claims_digest: Digest::of(node.as_bytes()),
        measurement_root: [2; 48],
    }
}

fn config() -> WorkerConfig {
    WorkerConfig {
        node: "b".to_owned(),
        federation: "f".to_owned(),
        policy_digest: Digest::of(b"policy"),
        needed: 2,
        rounds: 2,
        pace: Pace::Together,
        checkpoint_every: 1,
        initial_model: Some(Digest::of(b"model 0")),
    }
}

fn nonces() -> Vec<(String, [u8; 32])> {
    vec![("a".to_owned(), [1; 32]), ("b".to_owned(), NONCE)]
}

/// A member that accepted a roster of a and b.
fn member(chain: Chain) -> (Worker, Digest) {
    let mut worker = Worker::new(config(), NONCE, chain);
    let challenge = worker.challenged(1, &nonces()).unwrap();
    assert_eq!(challenge, roster::challenge(1, &nonces()).unwrap());
    let digest = worker.roster(1, &entry("agg"), &[entry("a"), entry("b")]).unwrap();
    (worker, digest)
}

fn head(round: u64, attempt: u32, roster_digest: Digest) -> RoundHead {
    let model_digest = Digest::of(format!("model {}", round - 1).as_bytes());
    RoundHead {
        round,
        attempt,
        roster_digest,
        model_digest,
        previous: None,
    }
}

fn receipt(head: &RoundHead, own: &[u8]) -> Receipt {
    let update = |node: &str, content: &[u8]| ReceiptUpdate {
        node: node.to_owned(),
        rows: 5,
        digest: Digest::of(content),
        base: head.round - 1,
    };
    Receipt {
        federation: "f".to_owned(),
        policy_digest: Digest::of(b"policy"),
        round: head.round,
        attempt: head.attempt,
        roster_digest: head.roster_digest,
        previous: head.previous,
        model_before: head.model_digest,
        model_after: Digest::of(format!("model {}", head.round).as_bytes()),
        state: None,
        updates: vec![update("a", b"of a"), update("b", own)],
        drops: Vec::new(),
        metrics: vec![("loss".to_owned(), 0.5)],
    }
}

/// A member that sent its update of round 1.
fn uploaded() -> (Worker, RoundHead) {
    let (mut worker, roster) = member(Chain::default());
    let head = head(1, 1, roster);
    worker.round_start(head).unwrap();
    worker.trained(Digest::of(b"of b"));
    worker.granted(1, 1).unwrap();
    (worker, head)
}

#[test]
fn two_rounds_and_the_end() {
    let (mut worker, first) = uploaded();
    let one = receipt(&first, b"of b");
    worker.result(&one).unwrap();
    assert!(matches!(
        worker.finished(Some(one.digest())),
        Err(AggregatorFault::OutOfTurn { .. })
    ));
    let second = RoundHead {
        previous: Some(one.digest()),
        ..head(2, 1, first.roster_digest)
    };
    worker.round_start(second).unwrap();
    worker.trained(Digest::of(b"of b again"));
    worker.granted(2, 1).unwrap();
    let two = receipt(&second, b"of b again");
    worker.result(&two).unwrap();
    assert!(worker.finished(Some(one.digest())).is_err());
    worker.finished(Some(two.digest())).unwrap();
    assert_eq!(worker.chain().last.round, 2);
}

#[test]
fn a_challenge_without_the_own_nonce_is_old() {
    let mut worker = Worker::new(config(), NONCE, Chain::default());
    for wrong in [
        vec![],
        vec![("b".to_owned(), [9; 32])],
        nonces().into_iter().rev().collect(),
    ] {
        assert!(matches!(
            worker.challenged(1, &wrong),
            Err(AggregatorFault::Challenge { epoch: 1 })
        ));
    }
    worker.challenged(2, &nonces()).unwrap();
    assert!(matches!(
        worker.challenged(2, &nonces()),
        Err(AggregatorFault::Backwards { .. })
    ));
}

#[test]
fn a_roster_of_strangers_or_without_oneself() {
    let fresh = || {
        let mut worker = Worker::new(config(), NONCE, Chain::default());
        worker.challenged(1, &nonces()).unwrap();
        worker
    };
    let aggregator = entry("agg");
    assert!(matches!(
        fresh().roster(1, &aggregator, &[entry("a")]),
        Err(AggregatorFault::LeftOut { .. })
    ));
    let strangers = [entry("b"), entry("c")];
    assert!(matches!(
        fresh().roster(1, &aggregator, &strangers),
        Err(AggregatorFault::Members { .. })
    ));
    let twice = [entry("b"), entry("b")];
    assert!(matches!(
        fresh().roster(1, &aggregator, &twice),
        Err(AggregatorFault::Members { .. })
    ));
    assert!(fresh().roster(2, &aggregator, &[entry("a"), entry("b")]).is_err());
    // Another aggregator TD makes another roster.
    let members = [entry("a"), entry("b")];
    assert_ne!(
        fresh().roster(1, &aggregator, &members),
        fresh().roster(1, &entry("other"), &members)
    );
}

#[test]
fn another_model_roster_or_chain_is_refused() {
    let (mut worker, roster) = member(Chain::default());
    let other = Digest::of(b"other");
    assert!(matches!(
        worker.round_start(RoundHead {
            model_digest: other,
            ..head(1, 1, roster)
        }),
        Err(AggregatorFault::Digest {
            what: "the initial model",
            ..
        })
    ));
    assert!(matches!(
        worker.round_start(head(1, 1, other)),
        Err(AggregatorFault::Digest { what: "the roster", .. })
    ));
    assert!(worker.round_start(head(3, 1, roster)).is_err());
    // After a reconnect the chain still holds.
    let (mut before, first) = uploaded();
    let one = receipt(&first, b"of b");
    before.result(&one).unwrap();
    let (mut worker, roster) = member(before.chain().clone());
    assert!(matches!(
        worker.round_start(head(1, 1, roster)),
        Err(AggregatorFault::Backwards { .. })
    ));
    assert!(matches!(
        worker.round_start(head(2, 1, roster)),
        Err(AggregatorFault::Digest {
            what: "the receipt before",
            ..
        })
    ));
    let right = RoundHead {
        previous: Some(one.digest()),
        ..head(2, 1, roster)
    };
    assert!(
        worker
            .round_start(RoundHead {
                model_digest: other,
                ..right
            })
            .is_err()
    );
    worker.round_start(right).unwrap();
}

#[test]
fn a_receipt_that_changes_anything_is_refused() {
    let (mut worker, head) = uploaded();
    let good = receipt(&head, b"of b");
    let mut bad = Vec::new();
    bad.push(receipt(&head, b"changed"));
    bad.push(Receipt {
        federation: "g".to_owned(),
        ..good.clone()
    });
    bad.push(Receipt {
        policy_digest: Digest::of(b"x"),
        ..good.clone()
    });
    bad.push(Receipt {
        roster_digest: Digest::of(b"x"),
        ..good.clone()
    });
    bad.push(Receipt {
        model_before: Digest::of(b"x"),
        ..good.clone()
    });
    bad.push(Receipt {
        previous: Some(Digest::of(b"x")),
        ..good.clone()
    });
    let mut stale = good.clone();
    stale.updates[0].base = 1;
    bad.push(stale);
    bad.push(Receipt {
        attempt: 2,
        ..good.clone()
    });
    bad.push(Receipt {
        updates: good.updates[1..].to_vec(),
        ..good.clone()
    });
    bad.push(Receipt {
        updates: vec![good.updates[0].clone(), good.updates[0].clone()],
        ..good.clone()
    });
    for receipt in &bad {
        assert!(worker.result(receipt).is_err(), "{receipt:?}");
        assert_ne!(receipt.digest(), good.digest());
    }
    worker.result(&good).unwrap();
    assert!(worker.result(&good).is_err());
}

#[test]
fn messages_out_of_turn() {
    let mut worker = Worker::new(config(), NONCE, Chain::default());
    assert!(worker.round_start(head(1, 1, Digest::of(b"r"))).is_err());
    assert!(worker.granted(1, 1).is_err());
    let (mut worker, roster) = member(Chain::default());
    let first = head(1, 1, roster);
    assert!(worker.result(&receipt(&first, b"of b")).is_err());
    worker.round_start(first).unwrap();
    assert!(worker.granted(1, 1).is_err());
    assert!(worker.round_start(first).is_err());
    // A later attempt replaces the one that runs.
    worker.round_start(head(1, 2, roster)).unwrap();
    worker.trained(Digest::of(b"of b"));
    assert!(worker.granted(1, 1).is_err());
    worker.granted(1, 2).unwrap();
}
