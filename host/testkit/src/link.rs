//! Links that are no good: they delay, they cut, they want CONNECT first.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a link does to its connections.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Waits this long before it passes on each piece.
    pub delay: Duration,
    /// Cuts a connection after this many bytes from the dialler; 0 is never.
    pub cut_after: u64,
    /// Cuts only this many connections, then behaves.
    pub cuts: usize,
    /// Wants an HTTP CONNECT before anything.
    pub connect: bool,
}

/// A forwarding link on loopback.
pub struct Link {
    /// Where it listens.
    pub address: String,
    /// Connections that it took.
    pub connections: Arc<AtomicUsize>,
    frozen: Arc<AtomicUsize>,
    target: Arc<Mutex<String>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Forwards to `target` (with CONNECT: to whatever it names) with these faults.
    pub async fn open(target: &str, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let target = Arc::new(Mutex::new(target.to_owned()));
        let to = Arc::clone(&target);
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let frozen = Arc::new(AtomicUsize::new(0));
        let below = Arc::clone(&frozen);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let cut_after = if number < faults.cuts { faults.cut_after } else { 0 };
                let passing = Passing {
                    faults: Faults { cut_after, ..faults },
                    number,
                    frozen: Arc::clone(&below),
                };
                let target = to.lock().unwrap().clone();
                tokio::spawn(forward(stream, target, passing));
            }
        });
        Self {
            address,
            connections,
            frozen,
            target,
            task,
        }
    }

    /// Connections from now on go there.
    pub fn redirect(&self, target: &str) {
        *self.target.lock().unwrap() = target.to_owned();
    }

    /// The connections so far stay open, and nothing passes on them any more.
    pub fn freeze(&self) {
        self.frozen
            .store(self.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

/// One connection of a link.
#[derive(Clone)]
struct Passing {
    faults: Faults,
    number: usize,
    /// Connections below this number are frozen.
    frozen: Arc<AtomicUsize>,
}

async fn forward(mut near: TcpStream, mut target: String, passing: Passing) {
    if passing.faults.connect {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let Some(("CONNECT", named)) = head
            .split_once(' ')
            .map(|(method, rest)| (method, rest.split(' ').next().unwrap()))
        else {
            let _ = near.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n").await;
            return;
        };
        target = named.to_owned();
        near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            .await
            .unwrap();
    }
    let Ok(far) = TcpStream::connect(&target).await else {
        return;
    };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let sent = Arc::new(AtomicU64::new(0));
    let up = pump(near_read, far_write, &passing, Some(sent));
    let down = pump(far_read, near_write, &passing, None);
    // Whichever direction ends first, by a cut or by a close, takes the other with it.
    tokio::select! { () = up => {}, () = down => {} }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    passing: &Passing,
    sent: Option<Arc<AtomicU64>>,
) {
    let faults = passing.faults;
    let mut piece = vec![0; 64 * 1024];
    loop {
        let Ok(read @ 1..) = from.read(&mut piece).await else {
            return;
        };
        while passing.number < passing.frozen.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if !faults.delay.is_zero() {
            tokio::time::sleep(faults.delay).await;
        }
        if let Some(sent) = &sent {
            let total = sent.fetch_add(read as u64, Ordering::SeqCst) + read as u64;
            if faults.cut_after > 0 && total > faults.cut_after {
                return;
            }
        }
        if to.write_all(&piece[..read]).await.is_err() {
            return;
        }
    }
}
