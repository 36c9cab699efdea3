//! Listening: a bounded number of handshakes at a time, a bounded number of connections after them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::session::Side;
use cloister_policy::{Appraiser, Expected};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::HANDSHAKE_S;
use crate::connection::AttestedConnection;
use crate::dial::finish;
use crate::error::SessionError;
use crate::local::{Local, SelfSide};
use crate::tls;

/// Called with every connection that was not let in.
pub type OnRefused = Arc<dyn Fn(&SessionError) + Send + Sync>;

/// How much a listener takes on at a time.
#[derive(Clone, Copy, Debug)]
pub struct ListenLimits {
    /// Handshakes that run; more wait in the kernel's queue.
    pub handshakes: usize,
    /// Attested connections that live; more are closed at once.
    pub connections: usize,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            handshakes: 32,
            connections: 512,
        }
    }
}

/// A listening node.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    connections: mpsc::Receiver<AttestedConnection>,
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    /// Listens on `HOST:PORT` (port 0: any). Must be called in a tokio runtime.
    pub async fn bind(
        local: Local,
        address: &str,
        limits: ListenLimits,
        on_refused: OnRefused,
    ) -> Result<Self, SessionError> {
        let no_listen = |source| SessionError::Listen {
            address: address.to_owned(),
            source,
        };
        if matches!(local.own, SelfSide::Visitor(_)) {
            return Err(SessionError::Own {
                cause: "a visitor dials only; a node in a TD listens".to_owned(),
            });
        }
        let (certificate, key) = local.tls_identity();
        let config = tls::server_config(certificate, key).map_err(|error| SessionError::Own {
            cause: error.to_string(),
        })?;
        let listener = TcpListener::bind(address).await.map_err(no_listen)?;
        let address = listener.local_addr().map_err(no_listen)?;
        let (sender, connections) = mpsc::channel(limits.handshakes.max(1));
        let acceptor = Acceptor {
            local: Arc::new(local),
            config: Arc::new(config),
            sender,
            handshakes: Arc::new(Semaphore::new(limits.handshakes.max(1))),
            places: Arc::new(Semaphore::new(limits.connections.max(1))),
            on_refused,
        };
        let task = tokio::spawn(acceptor.run(listener));
        Ok(Self {
            address,
            connections,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection that was let in; `None` once the listener has stopped.
    pub async fn accept(&mut self) -> Option<AttestedConnection> {
        self.connections.recv().await
    }

    /// The connections as `serve_with_incoming` takes them. Dropping the stream stops the listening.
    pub fn incoming(mut self) -> impl tokio_stream::Stream<Item = Result<AttestedConnection, SessionError>> {
        let (_, closed) = mpsc::channel(1);
        let connections = std::mem::replace(&mut self.connections, closed);
        Incoming {
            connections,
            _listener: self,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Incoming {
    connections: mpsc::Receiver<AttestedConnection>,
    _listener: Listener,
}

impl tokio_stream::Stream for Incoming {
    type Item = Result<AttestedConnection, SessionError>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.get_mut()
            .connections
            .poll_recv(cx)
            .map(|connection| connection.map(Ok))
    }
}

#[derive(Clone)]
struct Acceptor {
    local: Arc<Local>,
    config: Arc<ServerConfig>,
    sender: mpsc::Sender<AttestedConnection>,
    handshakes: Arc<Semaphore>,
    places: Arc<Semaphore>,
    on_refused: OnRefused,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let Ok(turn) = Arc::clone(&self.handshakes).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, address)) => {
                    let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                        tracing::warn!(%address, "closed at once: as many connections live as are allowed");
                        continue;
                    };
                    tokio::spawn(self.clone().handshake(stream, address, place, turn));
                }
                Err(error) => {
                    // For instance no file descriptors: others may end in the meantime.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn handshake(
        self,
        stream: TcpStream,
        address: SocketAddr,
        place: OwnedSemaphorePermit,
        turn: OwnedSemaphorePermit,
    ) {
        let attempt = tokio::time::timeout(Duration::from_secs(HANDSHAKE_S), self.attest(stream, address));
        let result = attempt.await.unwrap_or_else(|_| {
            Err(SessionError::TooSlow {
                address: address.to_string(),
                seconds: HANDSHAKE_S,
            })
        });
        drop(turn);
        match result {
            // A receiver that is gone means that the node stops.
            Ok(connection) => drop(self.sender.send(connection.holding(place)).await),
            Err(error) => (self.on_refused)(&error),
        }
    }

    async fn attest(&self, stream: TcpStream, address: SocketAddr) -> Result<AttestedConnection, SessionError> {
        let no_tls = |error: std::io::Error| SessionError::Tls {
            address: address.to_string(),
            cause: error.to_string(),
        };
        stream.set_nodelay(true).map_err(no_tls)?;
        let stream = TlsAcceptor::from(Arc::clone(&self.config))
            .accept(stream)
            .await
            .map_err(no_tls)?;
        let expected = Expected {
            visitors: true,
            ..Expected::default()
        };
        let appraiser = Arc::new(Appraiser::new(Arc::clone(&self.local.policy)).expecting(expected));
        finish(
            &self.local,
            stream.into(),
            Side::Server,
            appraiser,
            &address.to_string(),
        )
        .await
    }
}
