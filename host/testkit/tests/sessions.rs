//! What sessions cost and how long they are believed: bursts, rates, renewal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloister_session::{AttestedConnection, ListenLimits, Listener, Local, Peer, Rate, SessionError, connect};
use cloister_testkit::world::{NOW, World, WorldOptions, dial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_diallers_shares_the_listeners_quotes() {
    let world = World::new(WorldOptions::default());
    let (aggregator, taken) = world.node_counted("aggregator", 300);
    let listening = world.serve(aggregator.local, None).await;
    assert_eq!(taken.swap(0, Ordering::SeqCst), 1, "its certificate's");
    let sessions: Vec<_> = (0..12)
        .map(|_| {
            let (local, options) = (world.visitor(Some("beta")), dial(&listening.address));
            tokio::spawn(async move { connect(&local, &options).await })
        })
        .collect();
    for session in sessions {
        // Each verified its own place in the shared quote.
        session.await.unwrap().unwrap();
    }
    let taken = taken.load(Ordering::SeqCst);
    assert!(taken < 12, "{taken} quotes for 12 sessions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_has_its_share_of_sessions_and_others_have_theirs() {
    let world = World::new(WorldOptions::default());
    let limits = ListenLimits {
        sessions: Rate {
            burst: 2,
            every: Duration::from_secs(3600),
        },
        ..ListenLimits::default()
    };
    let (aggregator, taken) = world.node_counted("aggregator", 0);
    let listening = world.serve_within(aggregator.local, None, limits).await;
    let eager = world.node("worker-a");
    for _ in 0..2 {
        connect(&eager.local, &dial(&listening.address)).await.unwrap();
    }
    let before = taken.load(Ordering::SeqCst);
    let error = connect(&eager.local, &dial(&listening.address)).await.unwrap_err();
    assert!(matches!(error, SessionError::PeerBusy { .. }), "{error}");
    assert!(error.passing() && error.refusal().is_none(), "later it may come again");
    assert_eq!(taken.load(Ordering::SeqCst), before, "it cost no quote");
    let other = world.node("worker-b");
    connect(&other.local, &dial(&listening.address)).await.unwrap();
}

/// A world whose permits last a minute, with a clock that the test sets.
struct Clocked {
    world: World,
    now: Arc<AtomicU64>,
    listener: Listener,
    worker: Local,
}

impl Clocked {
    async fn new() -> Self {
        let world = World::new(WorldOptions {
            attestation: "permit_max_s = 60".to_owned(),
            ..WorldOptions::default()
        });
        let now = Arc::new(AtomicU64::new(NOW));
        let own = Arc::clone(&now);
        let clocked = |local: Local| {
            let now = Arc::clone(&own);
            Local {
                clock: Arc::new(move || now.load(Ordering::SeqCst)),
                ..local
            }
        };
        let aggregator = clocked(world.node("aggregator").local);
        let worker = clocked(world.node("worker-a").local);
        let listener = Listener::bind(aggregator, "127.0.0.1:0", ListenLimits::default(), Arc::new(|_| {}))
            .await
            .unwrap();
        Self {
            world,
            now,
            listener,
            worker,
        }
    }

    async fn session(&mut self) -> (AttestedConnection, AttestedConnection) {
        let options = dial(&self.listener.address().to_string());
        let (dialled, accepted) = tokio::join!(connect(&self.worker, &options), self.listener.accept());
        (dialled.unwrap(), accepted.unwrap())
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_connection_is_attested_anew_and_goes_on() {
    let mut clocked = Clocked::new().await;
    let (mut dialled, mut accepted) = clocked.session().await;
    let ends: [Peer; 2] = [dialled.peer().clone(), accepted.peer().clone()];
    assert!(ends.iter().all(|peer| peer.expires_unix_s() == NOW + 60));
    clocked.now.store(NOW + 50, Ordering::SeqCst);
    // The second session is the renewal's; nobody has to take it for the first to be believed longer.
    until("both ends believe longer", || {
        ends.iter().all(|peer| peer.expires_unix_s() == NOW + 110)
    })
    .await;
    clocked.now.store(NOW + 90, Ordering::SeqCst);
    dialled.write_all(b"still here").await.unwrap();
    dialled.flush().await.unwrap();
    let mut heard = [0; 10];
    accepted.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_not_attested_anew_in_time_is_cut_off() {
    let mut clocked = Clocked::new().await;
    let (mut dialled, mut accepted) = clocked.session().await;
    // Nobody listens any more, so no renewal comes about.
    let address = clocked.listener.address();
    let Clocked {
        world: _world,
        now,
        listener,
        ..
    } = clocked;
    drop(listener);
    until("the listener is gone", || {
        std::net::TcpStream::connect(address).is_err()
    })
    .await;
    now.store(NOW + 61, Ordering::SeqCst);
    assert!(accepted.peer().expired(NOW + 61));
    let error = dialled.write_all(b"a gradient").await.unwrap_err();
    assert!(error.to_string().contains("was not renewed"), "{error}");
    let error = accepted.read_u8().await.unwrap_err();
    assert!(error.to_string().contains("was not renewed"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visitors_session_ends_with_its_time() {
    let mut clocked = Clocked::new().await;
    let visitor = Local {
        clock: Arc::clone(&clocked.worker.clock),
        ..clocked.world.visitor(None)
    };
    let options = dial(&clocked.listener.address().to_string());
    let (dialled, accepted) = tokio::join!(connect(&visitor, &options), clocked.listener.accept());
    let (_dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    clocked.now.store(NOW + 61, Ordering::SeqCst);
    assert!(accepted.write_all(b"x").await.is_err());
}
