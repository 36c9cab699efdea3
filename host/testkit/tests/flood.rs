//! Strangers who take up a listener's places: members get in all the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::net::SocketAddr;

use cloister_session::{ListenLimits, Rate, SessionError, connect};
use cloister_testkit::world::{World, WorldOptions, dial};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

/// A connection from another address of this machine than the members have.
async fn stranger(address: &str, first: &[u8]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.66:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(address.parse::<SocketAddr>().unwrap()).await.unwrap();
    // It may have been closed already: then it holds no place, which is as well.
    let _ = stream.write_all(first).await;
    stream
}

async fn member_gets_in_among(first: &[u8]) {
    let world = World::new(WorldOptions::default());
    let aggregator = world.serve(world.node("aggregator").local, None).await;
    let mut held = Vec::new();
    for _ in 0..400 {
        held.push(stranger(&aggregator.address, first).await);
    }
    let worker = world.node("worker-a");
    // Where the strangers held all places, this would end after its ten seconds.
    connect(&worker.local, &dial(&aggregator.address)).await.unwrap();
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_gets_in_among_connections_that_say_nothing() {
    member_gets_in_among(b"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_gets_in_among_connections_that_talk_rubbish() {
    member_gets_in_among(b"GET / HTTP/1.1\r\nHost: cloister\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_gets_in_among_tls_handshakes_that_never_go_on() {
    // The head of a record of 512 bytes, of which none follow.
    member_gets_in_among(&[22, 3, 1, 2, 0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_says_nothing_is_closed_long_before_a_handshake_would_be() {
    let world = World::new(WorldOptions::default());
    let aggregator = world.serve(world.node("aggregator").local, None).await;
    let silent = stranger(&aggregator.address, b"").await;
    silent.readable().await.unwrap();
    let mut bytes = [0; 1];
    assert_eq!(silent.try_read(&mut bytes).unwrap(), 0, "closed without a byte");
    loop {
        if let Some(line) = aggregator.refused.lock().unwrap().first() {
            let wanted = SessionError::Silent {
                address: silent.local_addr().unwrap().to_string(),
                seconds: cloister_session::FIRST_BYTES_S,
            };
            assert_eq!(*line, wanted.to_string());
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_arrives_too_often_is_closed_at_once_and_others_are_not() {
    let world = World::new(WorldOptions::default());
    let limits = ListenLimits {
        arrivals: Rate {
            burst: 3,
            every: std::time::Duration::from_secs(3600),
        },
        ..ListenLimits::default()
    };
    let aggregator = world.serve_within(world.node("aggregator").local, None, limits).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(stranger(&aggregator.address, &[22, 3, 1, 2, 0]).await);
    }
    let one_more = stranger(&aggregator.address, b"").await;
    one_more.readable().await.unwrap();
    assert_eq!(one_more.try_read(&mut [0; 1]).unwrap(), 0, "closed without a byte");
    let said = aggregator.refused.lock().unwrap().clone();
    assert!(said.is_empty(), "before its first byte was due: {said:?}");
    let worker = world.node("worker-a");
    connect(&worker.local, &dial(&aggregator.address)).await.unwrap();
}
