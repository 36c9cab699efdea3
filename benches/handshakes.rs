//! What attestation costs: a session with nothing remembered, sessions by the second at several quote latencies, and garbage.
//!
//! `cargo xtask bench handshakes`
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench ends where something is wrong, and prints what it measured"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloister_attestation::Verifier;
use cloister_attestation::session::{Action, Handshake, HandshakeInput, SelfInfo, Side};
use cloister_benches::{Table, median, timed};
use cloister_policy::{Appraiser, Expected};
use cloister_session::{ListenLimits, Listener, Local, Rate, SelfSide, SessionMemory, connect};
use cloister_testkit::attacker;
use cloister_testkit::world::{NOW, World, WorldNode, WorldOptions, dial};
use cloister_wire::encode_frame;
use cloister_wire::session::{Evidence, Hello};
use criterion::Criterion;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};

/// How long sessions are counted for at each latency.
const COUNTED_FOR: Duration = Duration::from_secs(5);
/// Diallers at a time, spread over this many nodes with a TD each.
const DIALLERS: usize = 64;
const NODES: usize = 8;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Table::default();
    let world = World::new(WorldOptions {
        workers: NODES,
        ..WorldOptions::default()
    });
    // Two threads, as the aim has it, whatever the machine has.
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("the runtime starts");
    for known in [true, false] {
        full_verification(&mut criterion, &mut table, &world, &runtime, known);
    }
    garbage(&mut criterion, &mut table, &world);
    by_the_second(&mut table, &world, &runtime);
    criterion.final_summary();
    table.print();
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(time.tv_sec.unsigned_abs(), nanoseconds)
}

/// As many sessions as anybody dials: the limits are not what is measured.
fn no_limits() -> ListenLimits {
    let as_often_as_you_like = Rate {
        burst: u32::MAX,
        every: Duration::from_nanos(1),
    };
    ListenLimits {
        arriving: 1024,
        arriving_by_address: 1024,
        handshakes: 256,
        nodes: 1 << 16,
        visitors: 1024,
        arrivals: as_often_as_you_like,
        sessions: as_often_as_you_like,
    }
}

/// What a node brings into sessions, with nothing remembered of peers; and, unless it is `known`, nothing of collateral and
/// platforms either.
fn fresh(node: &WorldNode, known: bool) -> Local {
    let mut local = Local {
        memory: SessionMemory::default(),
        ..node.local.clone()
    };
    if !known {
        let (root, collateral) = (local.verifier.root().clone(), local.verifier.collateral());
        local.verifier = Arc::new(Verifier::new(root, (*collateral).clone()));
    }
    local
}

async fn listening(local: Local) -> Listener {
    let refused = Arc::new(|error: &cloister_session::SessionError| println!("refused: {error}"));
    Listener::bind(local, "127.0.0.1:0", no_limits(), refused)
        .await
        .expect("loopback listens")
}

/// TLS and both layers, four quotes verified, two taken: each time at ends that remember no peer. Signatures of the quotes are
/// verified each time; those of certificates and collateral are `known` as on any session of a node but its first.
fn full_verification(criterion: &mut Criterion, table: &mut Table, world: &World, runtime: &Runtime, known: bool) {
    let name = match known {
        true => "both layers, full verification, both ends",
        false => "the same, the first that a process sees",
    };
    let (aggregator, worker) = (world.node("aggregator"), world.node("worker-a"));
    let mut spent = Vec::new();
    let mut group = criterion.benchmark_group("handshakes");
    group.sample_size(20);
    group.bench_function(format!("{name} (CPU)"), |bencher| {
        bencher.iter_custom(|iterations| {
            let one = |_| {
                let mut listener = runtime.block_on(listening(fresh(&aggregator, known)));
                let options = dial(&listener.address().to_string());
                let local = fresh(&worker, known);
                let before = cpu();
                let (dialled, accepted) =
                    runtime.block_on(async { tokio::join!(connect(&local, &options), listener.accept()) });
                let took = cpu().saturating_sub(before);
                drop((dialled.expect("both are accepted"), accepted));
                spent.push(took);
                took
            };
            (0..iterations).map(one).sum()
        });
    });
    group.finish();
    if let Some(spent) = median(&mut spent) {
        let ours = format!("{:.2} ms CPU", spent.as_secs_f64() * 1e3);
        table.row(name, ours, "-", "-", if known { "< 4 ms" } else { "-" });
    }
}

/// Sessions by the second, with collateral at hand, at three latencies of a quote.
fn by_the_second(table: &mut Table, world: &World, runtime: &Runtime) {
    // Who lists or tries the benches waits for no figures.
    if std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        return;
    }
    for (latency_ms, aim) in [(0, ">= 300 / s"), (30, "-"), (1000, "-")] {
        let (aggregator, taken) = world.node_counted("aggregator", latency_ms);
        let workers: Vec<WorldNode> = world
            .workers()
            .iter()
            .map(|name| world.node_counted(name, latency_ms).0)
            .collect();
        let done = Arc::new(AtomicU64::new(0));
        taken.store(0, Ordering::SeqCst);
        let took = runtime.block_on(async {
            let mut listener = listening(fresh(&aggregator, true)).await;
            let address = listener.address().to_string();
            let accepting = tokio::spawn(async move { while listener.accept().await.is_some() {} });
            let start = Instant::now();
            let diallers: Vec<_> = (0..DIALLERS)
                .map(|index| {
                    let (local, options) = (workers[index % NODES].local.clone(), dial(&address));
                    let done = Arc::clone(&done);
                    tokio::spawn(async move {
                        while start.elapsed() < COUNTED_FOR {
                            connect(&local, &options).await.expect("both are accepted");
                            done.fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            for dialler in diallers {
                dialler.await.expect("no dialler panics");
            }
            accepting.abort();
            start.elapsed()
        });
        let sessions = done.load(Ordering::SeqCst);
        let rate = format!("{:.0} / s", sessions as f64 / took.as_secs_f64());
        let shared = sessions as f64 / taken.load(Ordering::SeqCst).max(1) as f64;
        table.row(
            &format!("attested sessions, quotes take {latency_ms} ms, {DIALLERS} diallers, 2 threads"),
            rate,
            format!("{shared:.1} sessions a quote of the listener's"),
            "-",
            aim,
        );
    }
}

/// A listener's work on a peer whose evidence is worth nothing, TLS apart.
fn garbage(criterion: &mut Criterion, table: &mut Table, world: &World) {
    let (aggregator, victim) = (world.node("aggregator"), world.node("worker-a"));
    let claims = &victim.side.identity.claims;
    let random: Vec<u8> = (0..5000_u32)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let (forged, _) = attacker::certificate(&random, claims);
    let cases = [
        (
            "garbage refused: a certificate with a quote that is none",
            forged,
            random,
        ),
        // A recorded certificate of a member, and a quote that is genuine but of another session.
        (
            "garbage refused: a member's certificate, another session's quote",
            victim.side.identity.cert_der.clone(),
            stale_quote(&victim),
        ),
    ];
    for (name, cert_der, quote) in cases {
        let evidence = encode_frame(&Evidence {
            quote: quote.into(),
            claims: claims.clone(),
            credential: victim.side.identity.credential.clone(),
            ..Evidence::default()
        })
        .expect("it fits a frame");
        let hello = encode_frame(&hello_of(&victim)).expect("it fits a frame");
        let mut times = Vec::new();
        let mut group = criterion.benchmark_group("handshakes");
        group.sample_size(50);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let one = |_| {
                    let took = timed(|| refuse(&aggregator.local, &cert_der, &hello, &evidence));
                    times.push(took);
                    took
                };
                (0..iterations).map(one).sum()
            });
        });
        group.finish();
        if let Some(took) = median(&mut times) {
            table.row(name, format!("{:.1} us", took.as_secs_f64() * 1e6), "-", "-", "< 50 us");
        }
    }
}

fn stale_quote(node: &WorldNode) -> Vec<u8> {
    let runtime = Builder::new_current_thread().build().expect("the runtime starts");
    runtime.block_on(node.side.quotes.quote([9; 64])).expect("a quote")
}

fn hello_of(node: &WorldNode) -> Hello {
    let claims = &node.side.identity.node;
    Hello {
        version: 1,
        role: claims.role.to_string(),
        node: claims.node.clone(),
        nonce: Bytes::from_static(&[3; 32]),
        policy_digest: Bytes::copy_from_slice(claims.policy_digest.as_bytes()),
        visitor: false,
    }
}

/// The listener's end from the certificate to the refusal.
fn refuse(local: &Local, cert_der: &[u8], hello: &Bytes, evidence: &Bytes) {
    let SelfSide::Node(node) = &local.own else {
        unreachable!("a listener is a node")
    };
    let appraiser = Appraiser::new(Arc::clone(&local.policy)).expecting(Expected::default());
    let (mut handshake, _) = Handshake::new(HandshakeInput {
        side: Side::Server,
        own: SelfInfo::Node(Arc::clone(&node.identity)),
        exporter: [9; 32],
        peer_certificate: cert_der,
        verifier: Arc::clone(&local.verifier),
        verdicts: Arc::default(),
        appraiser: Arc::new(appraiser),
    })
    .expect("the certificate can be read");
    handshake.on_frame(&hello[4..], NOW).expect("the Hello is in order");
    let actions = handshake.on_frame(&evidence[4..], NOW).expect("a verdict");
    assert!(matches!(actions.last(), Some(Action::Refused(_))));
}
