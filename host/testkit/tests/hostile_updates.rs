//! Members that were attested and then send what no honest host sends.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics says where")]

use std::sync::Arc;

use bytes::Bytes;
use cloister_attestation::EventLog;
use cloister_exchange::worker;
use cloister_tensor::{Tensor, TensorMap};
use cloister_testkit::fakes::{AddingWork, AveragingWork, Remembered, add};
use cloister_testkit::raw::RawMember;
use cloister_testkit::world::{World, WorldOptions, small_model};
use cloister_wire::federation::{self as wire, aggregator_message, member_message};

/// What a test's member does once it is in a round; gives the code and text it was dropped with.
async fn dropped_after<F, Fut>(rounds: u32, attack: F) -> (String, String, Remembered)
where
    F: FnOnce(RawMember, wire::RoundStart) -> Fut,
    Fut: Future<Output = (String, String)>,
{
    let world = World::new(WorldOptions {
        workers: 3,
        quorum: 2,
        rounds,
        ..WorldOptions::default()
    });
    let progress = Remembered::default();
    let mut aggregator = world.aggregator(small_model(1.0), Arc::new(progress.clone())).await;
    let driver = aggregator.driver.take().unwrap();
    let rounds = tokio::spawn(driver.run(Box::new(AveragingWork::default())));
    let honest: Vec<_> = ["worker-b", "worker-c"]
        .map(|name| {
            let options = world.worker_options(&world.node(name), &aggregator.address, Arc::new(Remembered::default()));
            tokio::spawn(worker::run(options, Box::new(AddingWork::new(1.0, 10))))
        })
        .into();
    let mut member = RawMember::join(&world.node("worker-a"), &aggregator.address)
        .await
        .unwrap();
    member.roster().await;
    let start = member.round().await;
    let (code, reason) = attack(member, start).await;
    // Whatever the attacker did, the others finish.
    rounds.await.unwrap().unwrap();
    for worker in honest {
        assert!(worker.await.unwrap().unwrap().finished);
    }
    (code, reason, progress)
}

fn finite() -> TensorMap {
    add(&small_model(1.0), 1.0)
}

fn with(name: &str, shape: &[usize], value: f32) -> TensorMap {
    let mut update = finite();
    let values = vec![value; shape.iter().product()];
    update.insert(name.to_owned(), Tensor::from_f32(shape, values).unwrap());
    update
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_of_wrong_length() {
    let (code, reason, progress) = dropped_after(1, |mut member, start| async move {
        member
            .announce(start.round, start.attempt, 10, &with("bias", &[4], 0.0))
            .await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "wrong-length");
    assert!(reason.contains("seen 76 bytes, wanted 72"), "{reason}");
    assert!(
        progress
            .lines()
            .contains("dropped worker-a: the update has the wrong length"),
        "{}",
        progress.lines()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_goes_on_behind_its_length() {
    let (code, reason, _) = dropped_after(1, |mut member, start| async move {
        member.announce(start.round, start.attempt, 10, &finite()).await;
        member.granted().await;
        member.chunk(vec![0; 80]).await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "wrong-length", "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_of_other_tensors() {
    let (code, reason, _) = dropped_after(1, |mut member, start| async move {
        member
            .announce(start.round, start.attempt, 10, &with("zeal", &[3], 0.0))
            .await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "wrong-layout");
    assert!(reason.contains("zeal"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_with_nan() {
    let (code, reason, _) = dropped_after(1, |mut member, start| async move {
        let update = with("bias", &[3], f32::NAN);
        member.announce(start.round, start.attempt, 10, &update).await;
        member.granted().await;
        member.upload(&update).await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "not-finite");
    assert!(reason.contains("tensor \"bias\" at element 0"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_bytes_than_announced() {
    let (code, _, _) = dropped_after(1, |mut member, start| async move {
        member.announce(start.round, start.attempt, 10, &finite()).await;
        member.granted().await;
        member.upload(&with("bias", &[3], 5.0)).await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "wrong-digest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_twice() {
    let (code, reason, _) = dropped_after(1, |mut member, start| async move {
        member.announce(start.round, start.attempt, 10, &finite()).await;
        member.announce(start.round, start.attempt, 10, &finite()).await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "twice");
    assert!(reason.contains("a second update of worker-a in round 1"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_out_of_turn() {
    let (code, reason, _) = dropped_after(1, |mut member, start| async move {
        member.announce(start.round + 1, start.attempt, 10, &finite()).await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "out-of-turn");
    assert!(
        reason.contains("wanted: an answer to a round that was started"),
        "{reason}"
    );
    // Bytes without a grant.
    let (code, reason, _) = dropped_after(1, |mut member, _| async move {
        member.upload(&finite()).await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "out-of-turn", "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_without_rows() {
    let (code, _, _) = dropped_after(1, |mut member, start| async move {
        member.announce(start.round, start.attempt, 0, &finite()).await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "wrong-rows");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_after_the_end_is_refused_as_that() {
    let (code, reason, progress) = dropped_after(1, |mut member, start| async move {
        member.announce(start.round, start.attempt, 10, &finite()).await;
        member.granted().await;
        member.upload(&finite()).await;
        loop {
            match member.hear().await {
                Some(aggregator_message::Body::Finish(_)) => break,
                Some(_) => {}
                None => panic!("no end"),
            }
        }
        member.announce(start.round + 1, 1, 10, &finite()).await;
        member.dropped().await
    })
    .await;
    assert_eq!(code, "after-end");
    assert!(
        reason.contains("worker-a came after the end of the federation"),
        "{reason}"
    );
    assert!(progress.lines().contains("all 1 rounds are done"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roster_evidence_that_is_stale_or_anothers() {
    for stale in [true, false] {
        let world = World::new(WorldOptions {
            workers: 3,
            quorum: 2,
            rounds: 1,
            ..WorldOptions::default()
        });
        let progress = Remembered::default();
        let mut aggregator = world.aggregator(small_model(1.0), Arc::new(progress.clone())).await;
        let driver = aggregator.driver.take().unwrap();
        let rounds = tokio::spawn(driver.run(Box::new(AveragingWork::default())));
        for name in ["worker-b", "worker-c"] {
            let options = world.worker_options(&world.node(name), &aggregator.address, Arc::new(Remembered::default()));
            tokio::spawn(worker::run(options, Box::new(AddingWork::new(1.0, 10))));
        }
        let mut member = RawMember::join(&world.node("worker-a"), &aggregator.address)
            .await
            .unwrap();
        let (epoch, challenge) = member.challenged().await;
        let mut evidence = member.evidence(epoch, &if stale { [1; 32] } else { challenge }).await;
        if !stale {
            evidence.node = "worker-b".to_owned();
        }
        member.say(member_message::Body::RosterEvidence(evidence)).await;
        let (code, reason) = member.dropped().await;
        assert_eq!(code, "evidence", "{reason}");
        let rule = if stale { "quote.report_data" } else { "roster.node" };
        assert!(reason.contains(rule), "{reason}");
        rounds.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roster_evidence_whose_log_does_not_explain_rtmr3() {
    for stripped in [true, false] {
        let world = World::new(WorldOptions {
            workers: 3,
            quorum: 2,
            rounds: 1,
            attestation: "rtmr3 = \"log\"".to_owned(),
            ..WorldOptions::default()
        });
        let progress = Remembered::default();
        let mut aggregator = world.aggregator(small_model(1.0), Arc::new(progress.clone())).await;
        let driver = aggregator.driver.take().unwrap();
        let rounds = tokio::spawn(driver.run(Box::new(AveragingWork::default())));
        for name in ["worker-b", "worker-c"] {
            let options = world.worker_options(&world.node(name), &aggregator.address, Arc::new(Remembered::default()));
            tokio::spawn(worker::run(options, Box::new(AddingWork::new(1.0, 10))));
        }
        let mut member = RawMember::join(&world.node("worker-a"), &aggregator.address)
            .await
            .unwrap();
        let (epoch, challenge) = member.challenged().await;
        let mut evidence = member.evidence(epoch, &challenge).await;
        let log = EventLog::parse_shown(&evidence.event_log).unwrap().unwrap();
        evidence.event_log = if stripped {
            Bytes::new()
        } else {
            log.without_last().to_bytes().into()
        };
        member.say(member_message::Body::RosterEvidence(evidence)).await;
        let (code, reason) = member.dropped().await;
        assert_eq!(code, "evidence", "{reason}");
        assert!(reason.contains("attestation.rtmr3"), "{reason}");
        // The others, whose logs explain it, verify each other and go on.
        rounds.await.unwrap().unwrap();
    }
}
