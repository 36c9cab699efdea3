//! A session with both layers, TLS and attestation both ways, over loopback, beside TLS with the same certificates.
//!
//! `cargo xtask bench handshake`
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a bench ends where something is wrong, and prints what it measured"
)]

use std::sync::Arc;
use std::time::Duration;

use cloister_benches::{Table, timed};
use cloister_session::{ListenLimits, Listener, Rate, connect, tls};
use cloister_testkit::attacker::tls_dial;
use cloister_testkit::world::{World, WorldNode, WorldOptions, dial};
use criterion::Criterion;
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut table = Table::default();
    handshakes(&mut criterion, &mut table);
    criterion.final_summary();
    table.print();
}

/// Accepts attested sessions and drops them.
async fn attested(node: WorldNode) -> String {
    let refused = Arc::new(|error: &cloister_session::SessionError| println!("refused: {error}"));
    // One worker dials more often than a listener takes from one.
    let limits = ListenLimits {
        sessions: Rate {
            burst: u32::MAX,
            every: Duration::from_nanos(1),
        },
        arrivals: Rate {
            burst: u32::MAX,
            every: Duration::from_nanos(1),
        },
        ..ListenLimits::default()
    };
    let mut listener = Listener::bind(node.local, "127.0.0.1:0", limits, refused)
        .await
        .expect("loopback listens");
    let address = listener.address().to_string();
    tokio::spawn(async move { while listener.accept().await.is_some() {} });
    address
}

/// Accepts TLS with the same certificate and stops there.
async fn tls_only(node: &WorldNode) -> String {
    let identity = &node.side.identity;
    let config = tls::server_config(&identity.cert_der, &identity.key_pkcs8).expect("the certificate serves");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback listens");
    let address = listener.local_addr().expect("it has an address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move { drop(acceptor.accept(stream).await) });
        }
    });
    address
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

fn handshakes(criterion: &mut Criterion, table: &mut Table) {
    let runtime = Runtime::new().expect("the runtime starts");
    let world = World::new(WorldOptions::default());
    let (aggregator, worker) = (world.node("aggregator"), world.node("worker-a"));
    let both_layers = dial(&runtime.block_on(attested(aggregator.clone())));
    let one_layer = runtime.block_on(tls_only(&aggregator));
    let (mut count, mut spent, mut wall) = (0_u32, Duration::ZERO, Duration::ZERO);
    let mut group = criterion.benchmark_group("handshake");
    group.sample_size(20);
    let ours = || {
        let before = cpu();
        let took = timed(|| {
            runtime
                .block_on(connect(&worker.local, &both_layers))
                .expect("both are accepted")
        });
        (count, spent, wall) = (count + 1, spent + cpu().saturating_sub(before), wall + took);
        took
    };
    let reference = || {
        let identity = &worker.side.identity;
        let dialled = tls_dial(&one_layer, &identity.cert_der, &identity.key_pkcs8);
        timed(|| runtime.block_on(dialled).expect("TLS comes up"))
    };
    table.side_by_side(
        &mut group,
        "handshake: TLS and attestation / TLS alone",
        "-",
        ours,
        reference,
    );
    group.finish();
    if count > 0 {
        let per_second = f64::from(count) / wall.as_secs_f64();
        let cpu_ms = spent.as_secs_f64() * 1e3 / f64::from(count);
        table.row(
            "handshakes, one after the other",
            format!("{per_second:.0} / s"),
            format!("{cpu_ms:.2} ms CPU, both ends"),
            "-",
            "-",
        );
    }
}
