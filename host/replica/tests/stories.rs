//! What replicas do when one is cut off, put back, or when all are down: one story each.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod cluster;
#[path = "../../manager/tests/support/mod.rs"]
mod support;

use cloister_manager::*;
use cloister_replica::ReplicaError;
use cloister_testkit::wards::{NOW, WardsPolicy};
use cluster::{Cluster, copied};
use serde_json::json;
use support::House;

async fn of(names: &[&str]) -> Cluster {
    let house = House::new();
    let manager = house.manager(&WardsPolicy::default());
    let cluster = Cluster::found(house, manager, names, 1).await;
    for name in &names[1..] {
        cluster.join(name).await;
    }
    cluster
}

async fn note(cluster: &Cluster, event: &'static str) -> Mark {
    let (done, mark) = cluster.surely(move |turn| turn.note(event, json!({}))).await;
    done.unwrap();
    mark
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_managers_the_one_that_is_cut_off_answers_nothing_and_neither_does_the_other() {
    let cluster = of(&["safe", "vault"]).await;
    let before = note(&cluster, "together").await;
    let (name, led) = cluster.leader().await;
    let other = cluster.seat(if name == "safe" { "vault" } else { "safe" });
    cluster.net.cut.lock().unwrap().insert(name);
    let told = led.turn(&cluster.house, |turn| turn.note("alone", json!({}))).await;
    assert!(told.is_err(), "a commit that one of two has stands for nothing");
    let read = led.with(&cluster.house, |manager| manager.confirm()).await;
    assert!(
        read.is_err(),
        "who is cut off does not know whether it reads the newest"
    );
    let alone = other
        .replica
        .lead(cluster.house.settings(), cluster.house.key.clone(), 2)
        .await;
    assert!(alone.is_err(), "{alone:?}");
    cluster.net.cut.lock().unwrap().clear();
    let after = note(&cluster, "together-again").await;
    assert!(after.version > before.version);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founder_serves_only_when_most_of_the_managers_take_part() {
    let cluster = of(&["safe"]).await;
    let safe = cluster.seat("safe");
    let early = safe
        .replica
        .lead(cluster.house.settings(), cluster.house.key.clone(), 2);
    let early = early.await;
    assert!(
        matches!(early, Err(ReplicaError::TooFew { have: 1, wanted: 2 })),
        "{early:?}"
    );
    cluster.join("vault").await;
    note(&cluster, "two").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_an_old_disk_has_no_voice_until_the_others_give_it_the_state() {
    let cluster = of(&["safe", "vault", "chest"]).await;
    let early = note(&cluster, "early").await;
    cluster.held("chest", early.version).await;
    // The operator keeps the disk of the third, and puts it back later.
    let kept = cluster.house.wards.folder().join("kept.redb");
    let earlier = cluster.seat("chest").replica.id();
    cluster.kill("chest").await;
    copied(&cluster.disk("chest"), &kept);
    cluster.join("chest").await;
    let mark = note(&cluster, "late").await;
    cluster.kill("chest").await;
    copied(&kept, &cluster.disk("chest"));
    let lay = cluster.start("chest").await.unwrap();
    assert!(lay.version < mark.version, "it is an old disk");

    // Now another one dies: what is left is one, and who would vote by an old disk. Nothing is granted, and nobody is elected.
    let chest = cluster.seat("chest");
    assert_ne!(chest.replica.id(), earlier);
    cluster.kill("vault").await;
    let safe = cluster.seat("safe");
    let told = safe.turn(&cluster.house, |turn| turn.note("too-few", json!({}))).await;
    assert!(told.is_err(), "{told:?}");
    assert!(!chest.replica.leads() && chest.replica.standing().replicas.is_empty());
    let asked = chest
        .replica
        .lead(cluster.house.settings(), cluster.house.key.clone(), 1)
        .await;
    assert!(asked.is_err(), "{asked:?}");
    assert_eq!(
        chest.replica.ledger().position(),
        None,
        "what lay on its disk counts for nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_put_back_gets_the_newest_state_and_its_earlier_start_is_out() {
    let cluster = of(&["safe", "vault", "chest"]).await;
    let early = note(&cluster, "early").await;
    cluster.held("chest", early.version).await;
    cluster.kill("chest").await;
    let kept = cluster.house.wards.folder().join("kept.redb");
    copied(&cluster.disk("chest"), &kept);
    cluster.join("chest").await;
    let late = note(&cluster, "late").await;
    let before = cluster.seat("chest").replica.id();
    cluster.kill("chest").await;
    copied(&kept, &cluster.disk("chest"));
    let lay = cluster.join("chest").await.unwrap();
    assert!(lay.version < late.version);
    let (_, leader) = cluster.leader().await;
    let replicas = leader.replica.standing().replicas;
    assert_eq!(replicas.len(), 3, "{replicas:?}");
    assert!(replicas.iter().all(|one| one.id != before && one.votes), "{replicas:?}");
    cluster.held("chest", late.version).await;
    // A message for the start that made promises before is for nobody.
    let refused = cluster.seat("chest").replica.receive(b"\xa0").await;
    assert!(matches!(refused, Err(ReplicaError::Message(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_are_down_at_once_most_disks_have_all_that_was_answered() {
    let cluster = of(&["safe", "vault", "chest"]).await;
    let mut mark = note(&cluster, "first").await;
    for _ in 0..5 {
        mark = note(&cluster, "more").await;
    }
    for name in &cluster.names {
        cluster.kill(name).await;
    }
    let mut have = 0;
    for name in &cluster.names {
        let locked = Locked::open(&cluster.disk(name)).unwrap();
        let house = &cluster.house;
        let without_nodes = true;
        let remembered = Remembered {
            newest: Some(mark),
            without_nodes,
        };
        let shares = ["alpha", "beta"].map(|name| house.share(&locked, name, &remembered));
        let loaded = locked
            .recover_replica(&shares, house.settings(), house.key.clone())
            .unwrap();
        // Who lacks something that a participant saw is refused, as a manager alone is.
        match loaded.confirm_without_nodes(NOW) {
            Ok(manager) => {
                assert!(manager.position().version > mark.version);
                have += 1;
            }
            Err((_, refused)) => assert_eq!(refused.code(), "manager-older"),
        }
    }
    assert!(have >= 2, "{have} of 3 disks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_handed_to_another_replica_opens_nothing() {
    let cluster = of(&["safe"]).await;
    let ledger = cluster.seat("safe").replica.ledger().clone();
    let (own, other) = (SealingKey::generate().unwrap(), SealingKey::generate().unwrap());
    let handed = ledger.hand_over(&own.public(), b"vault").unwrap();
    let path = cluster.house.wards.folder().join("new.redb");
    for (key, context) in [(&other, b"vault"), (&own, b"chest")] {
        let refused = Ledger::receive(&path, "wards", &handed, (key, context));
        assert!(matches!(refused, Err(OpenError::Recovery(_))), "{refused:?}");
    }
    assert!(!path.exists());
    // And a store of another manager is left alone.
    let house = House::new();
    drop(house.made());
    let refused = Ledger::receive(&house.path, "wards", &handed, (&own, b"vault"));
    assert!(matches!(refused, Err(OpenError::Other { .. })), "{refused:?}");
}
