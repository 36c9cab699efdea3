//! **Event log forged.** A node whose TD extended RTMR3 by what it ran shows a log beside its quotes. An attacker with a genuine
//! TD and a credential runs a module of its own first, and then shows another log than what was extended: without that event, in
//! another order, with one more, or with the digest that the policy wants to see. What was extended can't be taken back; a log that
//! does not replay to the quoted register completely, or names what the policy does not, is refused by listener and dialler.

use bytes::Bytes;
use cloister_attestation::event_log::MAX_SHOWN_LOG_BYTES;
use cloister_attestation::measurement::{EntryRole, Measurement};
use cloister_attestation::{EventLog, PeerEvidence, RuntimeEvent, State};
use cloister_session::connect;
use cloister_tensor::Digest;
use cloister_testkit::world::{NodeChange, dial};

use crate::arena::{Arena, Raw, evidence, refusal, refused_for, session_report_data};

const RTMR3: &str = "attestation.rtmr3";
const EVENTS: &str = "attestation.rtmr3_events";

async fn arena() -> Arena {
    Arena::with("rtmr3 = \"log\"\nrtmr3_events = [\"guest-agent Pull image\"]").await
}

fn event(domain: &str, operation: &str, content: &str) -> RuntimeEvent {
    RuntimeEvent::new(domain, operation, content).unwrap()
}

fn evil() -> RuntimeEvent {
    event("cloister", "module", &format!("evil {}", Digest::of(b"evil")))
}

fn log(events: &[RuntimeEvent]) -> Option<Bytes> {
    Some(events.iter().cloned().collect::<EventLog>().to_bytes().into())
}

impl Arena {
    /// What both ends say of a worker that was changed so: the rule that refuses it.
    async fn refuses(&self, what: &str, rule: &str, change: impl FnOnce(&mut NodeChange)) {
        let node = self.world.node_with("worker-b", State::Member, change);
        let error = self.dial_as(&node).await.unwrap_err();
        assert!(refusal(&error).names(rule), "{what}: {error}");
    }

    /// A worker that shows its log gets in, and finds the aggregator's.
    async fn honest_logs(&self) {
        let worker = self.world.node("worker-a");
        let session = connect(&worker.local, &dial(&self.aggregator.address)).await.unwrap();
        let PeerEvidence::Td(peer) = session.peer().evidence() else {
            panic!("an aggregator without a TD")
        };
        let log = peer.event_log().unwrap();
        assert_eq!(log.replay(3), peer.td().rtmr[3]);
        let texts: Vec<_> = log.events().iter().map(|event| event.text().unwrap()).collect();
        assert!(
            texts
                .iter()
                .any(|text| text.starts_with("cloister module aggregate-fedavg ")),
            "{texts:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_extended_cannot_be_left_out_moved_or_renamed() {
    let arena = arena().await;
    arena
        .refuses("no log", RTMR3, |change| change.log = Some(Bytes::new()))
        .await;
    arena
        .refuses("a module of its own, shown", EVENTS, |change| {
            change.events.insert(0, evil())
        })
        .await;
    arena
        .refuses("a module of its own, left out", RTMR3, |change| {
            change.log = log(&change.events);
            change.events.insert(0, evil());
        })
        .await;
    arena
        .refuses("the last event left out", RTMR3, |change| {
            change.log = log(&change.events[..change.events.len() - 1]);
        })
        .await;
    arena
        .refuses("an event more than was extended", RTMR3, |change| {
            let more = [&change.events[..], &change.events[..1]].concat();
            change.log = log(&more);
        })
        .await;
    arena
        .refuses("another order", RTMR3, |change| {
            let mut moved = change.events.clone();
            moved.swap(0, 1);
            change.log = log(&moved);
        })
        .await;
    arena
        .refuses(
            "the digest that the policy wants, under another's text",
            RTMR3,
            |change| {
                let wanted = change.events.clone();
                change.events[0] = evil();
                change.log = log(&wanted);
            },
        )
        .await;
    arena
        .refuses(
            "the text that the policy wants, beside another's digest",
            EVENTS,
            |change| {
                // The log's bytes, with the digest that was extended written over the first event's.
                let mut forged = log(&change.events).unwrap().to_vec();
                change.events[0] = evil();
                let header = EventLog::default().to_bytes().len();
                forged[header + 14..header + 62].copy_from_slice(&evil().digest());
                change.log = Some(forged.into());
            },
        )
        .await;
    arena
        .refuses("an event of nobody's", EVENTS, |change| {
            change.events.push(event("guest-agent", "Pull", "another image"));
        })
        .await;
    arena
        .refuses("no log at all, but bytes", "event_log", |change| {
            change.log = Some(Bytes::from_static(&[4, 0, 0]));
        })
        .await;
    arena
        .refuses("more than a log may have", "event_log", |change| {
            change.log = Some(vec![0; MAX_SHOWN_LOG_BYTES + 1].into());
        })
        .await;
    arena.honest_logs().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_claims_name_has_to_be_in_the_log_and_the_other_way_round() {
    let arena = arena().await;
    // Claims a module that it never extended.
    arena
        .refuses("not extended", EVENTS, |change| {
            change.events.retain(|event| event.operation() != "module");
        })
        .await;
    // Extended it, and left it out of its claims: the measurement tells.
    arena
        .refuses("not claimed", "measurement.module.train-sgd", |change| {
            let entries = change.claims.measurement.entries().iter();
            let rest = entries.filter(|entry| entry.role != EntryRole::Module);
            change.claims.measurement = Measurement::new(rest.cloned().collect()).unwrap();
        })
        .await;
    // What the policy lets a guest's agent extend, and a second start in the same TD, change nothing.
    let again = arena.world.node_with("worker-b", State::Member, |change| {
        let own = change.events.clone();
        change.events.insert(0, event("guest-agent", "Pull", "image"));
        change.events.extend(own);
    });
    arena.dial_as(&again).await.unwrap();
    arena.honest_logs().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_stripped_off_on_the_way_or_of_another_node_is_refused() {
    let arena = arena().await;
    let (own, other) = (arena.world.node("worker-b"), arena.world.node("aggregator"));
    let identity = &own.side.identity;
    for stolen in [Bytes::new(), other.side.identity.event_log.clone()] {
        let mut raw = Raw::of(&arena.aggregator.address, identity).await;
        let report_data = session_report_data(&raw.bound(identity));
        let mut shown = evidence(identity, own.side.quotes.quote(report_data).await.unwrap());
        shown.event_log = stolen;
        refused_for(raw.show(&shown).await, RTMR3);
    }
    // A dialler asks the same of a listener.
    let silent = arena
        .world
        .node_with("aggregator", State::Member, |change| change.log = Some(Bytes::new()));
    let listening = arena.world.serve(silent.local, None).await;
    let worker = arena.world.node("worker-a");
    let error = connect(&worker.local, &dial(&listening.address)).await.unwrap_err();
    assert!(refusal(&error).names(RTMR3), "{error}");
    arena.honest_logs().await;
}
