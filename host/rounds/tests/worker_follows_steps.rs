//! What a member holds the aggregator to where each update is applied alone: every receipt in order, its own once and as it was sent,
//! and no way back behind what had to be sealed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics says where")]

use cloister_rounds::receipt::{Receipt, ReceiptUpdate};
use cloister_rounds::worker::{AggregatorFault, Chain, RoundHead, WorkerConfig};
use cloister_rounds::{Pace, RosterEntry, Worker};
use cloister_tensor::Digest;

const NONCE: [u8; 32] = [4; 32];
const EVERY: u64 = 10;

fn entry(node: &str) -> RosterEntry {
    RosterEntry {
        node: node.to_owned(),
        claims_digest: Digest::of(node.as_bytes()),
        measurement_root: [2; 48],
    }
}

/// A member b that accepted a roster of a and b, which this instance of the aggregator relayed.
fn member(instance: &str, pace: Pace, chain: Chain) -> (Worker, Digest) {
    let config = WorkerConfig {
        node: "b".to_owned(),
        federation: "f".to_owned(),
        policy_digest: Digest::of(b"policy"),
        needed: 1,
        rounds: 100,
        pace,
        checkpoint_every: EVERY,
        initial_model: Some(model("", 0)),
    };
    let mut worker = Worker::new(config, NONCE, chain);
    let nonces = [("a".to_owned(), [1; 32]), ("b".to_owned(), NONCE)];
    worker.challenged(1, &nonces).unwrap();
    let roster = worker.roster(1, &entry(instance), &[entry("a"), entry("b")]).unwrap();
    (worker, roster)
}

const ALONE: Pace = Pace::Alone { max_staleness: 3 };

fn model(branch: &str, round: u64) -> Digest {
    Digest::of(format!("model {branch} {round}").as_bytes())
}

/// The aggregator of the test: what it has told so far.
struct Told {
    roster: Digest,
    branch: &'static str,
    round: u64,
    last: Option<Digest>,
    model: Digest,
}

impl Told {
    fn nothing(roster: Digest) -> Self {
        Self {
            roster,
            branch: "",
            round: 0,
            last: None,
            model: model("", 0),
        }
    }

    fn head(&self) -> RoundHead {
        RoundHead {
            round: self.round + 1,
            attempt: 1,
            roster_digest: self.roster,
            model_digest: self.model,
            previous: self.last,
        }
    }

    /// The next receipt, of this node's update.
    fn receipt(&self, node: &str, content: &[u8], base: u64) -> Receipt {
        Receipt {
            federation: "f".to_owned(),
            policy_digest: Digest::of(b"policy"),
            round: self.round + 1,
            attempt: 1,
            roster_digest: self.roster,
            previous: self.last,
            model_before: self.model,
            model_after: model(self.branch, self.round + 1),
            state: Some(Digest::of(b"slots")),
            updates: vec![ReceiptUpdate {
                node: node.to_owned(),
                rows: 5,
                digest: Digest::of(content),
                base,
            }],
            drops: Vec::new(),
            metrics: Vec::new(),
        }
    }

    fn told(&mut self, receipt: &Receipt) {
        self.round = receipt.round;
        self.last = Some(receipt.digest());
        self.model = receipt.model_after;
    }

    /// Applies updates of `a` until so many are done, and tells the member.
    fn go_to(&mut self, round: u64, worker: &mut Worker) {
        while self.round < round {
            let receipt = self.receipt("a", b"of a", self.round);
            worker.result(&receipt).unwrap();
            self.told(&receipt);
        }
    }
}

/// A member that trains on the initial model.
fn training() -> (Worker, Told) {
    let (mut worker, roster) = member("agg", ALONE, Chain::default());
    let told = Told::nothing(roster);
    worker.round_start(told.head()).unwrap();
    (worker, told)
}

#[test]
fn receipts_of_others_come_while_it_trains_and_its_own_once_after_it_sent_it() {
    let (mut worker, mut told) = training();
    told.go_to(2, &mut worker);
    // Its own is in no receipt before it was sent.
    let own = told.receipt("b", b"of b", 0);
    assert!(matches!(worker.result(&own), Err(AggregatorFault::Update { round: 3 })));
    worker.trained(Digest::of(b"of b"));
    assert!(worker.result(&own).is_err());
    worker.granted(1, 1).unwrap();
    for (content, base) in [(b"else".as_slice(), 0), (b"of b", 1)] {
        assert!(worker.result(&told.receipt("b", content, base)).is_err());
    }
    worker.result(&own).unwrap();
    told.told(&own);
    // A second time it is nobody's update.
    assert!(matches!(
        worker.result(&told.receipt("b", b"of b", 0)),
        Err(AggregatorFault::Update { round: 4 })
    ));
    worker.round_start(told.head()).unwrap();
    assert_eq!(worker.chain().last.round, 3);
}

#[test]
fn an_update_that_was_left_out_is_in_no_receipt_later() {
    let (mut worker, mut told) = training();
    told.go_to(2, &mut worker);
    worker.trained(Digest::of(b"of b"));
    // Left out: another task, on the newest model.
    worker.round_start(told.head()).unwrap();
    assert!(worker.result(&told.receipt("b", b"of b", 0)).is_err());
    worker.trained(Digest::of(b"of b, again"));
    worker.granted(3, 1).unwrap();
    worker.result(&told.receipt("b", b"of b, again", 2)).unwrap();
}

#[test]
fn receipts_out_of_order_of_another_chain_too_stale_or_of_two_updates_are_refused() {
    let (mut worker, mut told) = training();
    told.go_to(1, &mut worker);
    let good = told.receipt("a", b"of a", 1);
    let other = Digest::of(b"other");
    let skipped = Receipt {
        round: 3,
        ..good.clone()
    };
    assert!(matches!(
        worker.result(&skipped),
        Err(AggregatorFault::Skipped { seen: 3, wanted: 2 })
    ));
    let mut together = good.clone();
    together.updates.push(together.updates[0].clone());
    assert!(matches!(
        worker.result(&together),
        Err(AggregatorFault::NotAlone { .. })
    ));
    for wrong in [
        Receipt {
            previous: Some(other),
            ..good.clone()
        },
        Receipt {
            model_before: other,
            ..good.clone()
        },
        Receipt {
            roster_digest: other,
            ..good.clone()
        },
        Receipt {
            policy_digest: other,
            ..good.clone()
        },
        Receipt {
            updates: Vec::new(),
            ..good.clone()
        },
    ] {
        assert!(worker.result(&wrong).is_err(), "{wrong:?}");
    }
    // On a model that is not there yet, or too old.
    assert!(matches!(
        worker.result(&told.receipt("a", b"of a", 2)),
        Err(AggregatorFault::Base { base: 2, .. })
    ));
    worker.result(&good).unwrap();
    told.told(&good);
    told.go_to(5, &mut worker);
    assert!(matches!(
        worker.result(&told.receipt("a", b"of a", 1)),
        Err(AggregatorFault::Base { base: 1, most: 3, .. })
    ));
    worker.result(&told.receipt("a", b"of a", 2)).unwrap();
}

#[test]
fn a_task_that_skips_a_receipt_or_is_on_another_model_is_refused() {
    let (mut worker, mut told) = training();
    told.go_to(1, &mut worker);
    worker.trained(Digest::of(b"of b"));
    let right = told.head();
    let skips = RoundHead { round: 3, ..right };
    assert!(matches!(
        worker.round_start(skips),
        Err(AggregatorFault::Skipped { seen: 3, wanted: 2 })
    ));
    let other = RoundHead {
        model_digest: Digest::of(b"other"),
        ..right
    };
    assert!(matches!(
        worker.round_start(other),
        Err(AggregatorFault::Digest { what: "the model", .. })
    ));
    worker.round_start(right).unwrap();
}

/// A member that has seen 25 rounds of the instance "agg".
fn after_25() -> (Chain, Told, Told) {
    let (mut worker, mut told) = training();
    told.go_to(20, &mut worker);
    let sealed = Told { ..told };
    let mut told = Told { branch: "", ..sealed };
    told.go_to(25, &mut worker);
    (worker.chain().clone(), sealed, told)
}

#[test]
fn an_aggregator_that_was_started_anew_goes_back_to_what_was_sealed_and_no_further() {
    let (chain, sealed, told) = after_25();
    // The very same instance goes back no step.
    let (mut worker, roster) = member("agg", ALONE, chain.clone());
    let head = RoundHead {
        roster_digest: roster,
        ..sealed.head()
    };
    assert!(matches!(
        worker.round_start(head),
        Err(AggregatorFault::Backwards { seen: 21, last: 25, .. })
    ));
    // Another one does, to the round that the policy had it seal.
    let (mut worker, roster) = member("anew", ALONE, chain.clone());
    let anew = |head: RoundHead| RoundHead {
        roster_digest: roster,
        ..head
    };
    let further = RoundHead {
        round: 20,
        ..anew(sealed.head())
    };
    assert!(matches!(
        worker.round_start(further),
        Err(AggregatorFault::WentBack {
            seen: 20,
            last: 25,
            sealed: 20
        })
    ));
    for wrong in [
        RoundHead {
            previous: told.last,
            ..anew(sealed.head())
        },
        RoundHead {
            model_digest: told.model,
            ..anew(sealed.head())
        },
    ] {
        assert!(
            matches!(worker.round_start(wrong), Err(AggregatorFault::Digest { .. })),
            "{wrong:?}"
        );
    }
    assert_eq!(worker.round_start(anew(sealed.head())).unwrap(), 5);
    // From there another branch begins, and is followed.
    let mut branch = Told {
        roster,
        branch: "anew",
        ..sealed
    };
    branch.go_to(31, &mut worker);
    assert_eq!(worker.chain().last.model, Some(model("anew", 31)));
    // A member that comes later finds the branch already there.
    let (mut late, roster) = member("anew", ALONE, chain);
    let head = RoundHead {
        round: 23,
        attempt: 1,
        roster_digest: roster,
        model_digest: model("anew", 22),
        previous: Some(Digest::of(b"receipt 22 of the branch")),
    };
    assert_eq!(late.round_start(head).unwrap(), 3);
}

#[test]
fn rounds_of_all_members_go_back_by_the_same_rule() {
    let pace = Pace::Together;
    let (mut worker, roster) = member("agg", pace, Chain::default());
    let mut told = Told::nothing(roster);
    let mut sealed = None;
    for round in 1..=12 {
        worker.round_start(told.head()).unwrap();
        worker.trained(Digest::of(b"of b"));
        worker.granted(round, 1).unwrap();
        let receipt = told.receipt("b", b"of b", round - 1);
        worker.result(&receipt).unwrap();
        told.told(&receipt);
        if round == EVERY {
            sealed = Some(told.head());
        }
    }
    let (mut worker, roster) = member("anew", pace, worker.chain().clone());
    let sealed = RoundHead {
        roster_digest: roster,
        ..sealed.unwrap()
    };
    let further = RoundHead { round: EVERY, ..sealed };
    assert!(matches!(
        worker.round_start(further),
        Err(AggregatorFault::WentBack { sealed: 10, .. })
    ));
    assert_eq!(worker.round_start(sealed).unwrap(), 2);
}

#[test]
fn the_end_comes_after_the_last_receipt_whatever_the_member_is_at() {
    let (mut worker, mut told) = training();
    told.go_to(99, &mut worker);
    assert!(worker.finished(told.last).is_err());
    told.go_to(100, &mut worker);
    assert!(worker.finished(Some(Digest::of(b"other"))).is_err());
    worker.finished(told.last).unwrap();
}
