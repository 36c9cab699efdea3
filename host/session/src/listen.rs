//! Listening: what is cheap comes first, and a stranger's silence costs nobody else anything.
//!
//! A connection is *arriving* until its peer is attested. Arriving connections are bounded in all and by address; one that
//! doesn't begin as TLS does, or says nothing for two seconds, is closed before it takes up one of the places in which
//! handshakes run. An attested one takes a place of nodes or a place of visitors: visitors can't crowd out members.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_attestation::PeerEvidence;
use cloister_attestation::session::Side;
use cloister_policy::{Appraiser, Expected};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;

use crate::connection::AttestedConnection;
use crate::crowd::{Crowd, CrowdPlace, network};
use crate::dial::finish;
use crate::error::SessionError;
use crate::local::{Local, SelfSide};
use crate::policies::{POLICIES_ALPN, PolicyBook};
use crate::rate::{Identity, Rate, Rates};
use crate::tls;
use crate::{FIRST_BYTES_S, HANDSHAKE_S, HELLO_S};

/// Called with every connection that was not let in.
pub type OnRefused = Arc<dyn Fn(&SessionError) + Send + Sync>;

/// How much a listener takes on at a time.
#[derive(Clone, Copy, Debug)]
pub struct ListenLimits {
    /// Connections that are not attested yet; more wait in the kernel's queue.
    pub arriving: usize,
    /// Of these, by address (of IPv6, by /64); more are closed at once.
    pub arriving_by_address: usize,
    /// How often an address (of IPv6, a /64) may arrive; more are closed at once. A TLS handshake costs before it is known whose.
    pub arrivals: Rate,
    /// Handshakes that run.
    pub handshakes: usize,
    /// Attested connections of nodes that live; more are closed at once.
    pub nodes: usize,
    /// Attested connections of visitors that live; more are closed at once.
    pub visitors: usize,
    /// How often one peer may have a session: each costs a quote.
    pub sessions: Rate,
}

impl Default for ListenLimits {
    fn default() -> Self {
        Self {
            arriving: 256,
            arriving_by_address: 16,
            arrivals: Rate {
                burst: 256,
                every: Duration::from_millis(20),
            },
            handshakes: 64,
            nodes: 512,
            visitors: 64,
            sessions: Rate {
                burst: 60,
                every: Duration::from_secs(1),
            },
        }
    }
}

/// How many are told the policies at a time.
const TELLING: usize = 8;

/// How a TLS handshake begins: content type 22, major version 3 (RFC 8446, section 5.1).
const TLS_HANDSHAKE: [u8; 2] = [22, 3];

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
        Self::bind_telling(local, address, limits, on_refused, None).await
    }

    /// As [`Listener::bind`]; with a book, as a manager: it tells those policies to who asks for them by their anchor, and lets
    /// nodes in that have not loaded their data yet.
    pub async fn bind_telling(
        local: Local,
        address: &str,
        limits: ListenLimits,
        on_refused: OnRefused,
        policies: Option<PolicyBook>,
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
        let mut config = tls::server_config(certificate, key).map_err(|error| SessionError::Own {
            cause: error.to_string(),
        })?;
        if policies.is_some() {
            config.alpn_protocols.push(POLICIES_ALPN.to_vec());
        }
        let listener = TcpListener::bind(address).await.map_err(no_listen)?;
        let address = listener.local_addr().map_err(no_listen)?;
        let (sender, connections) = mpsc::channel(limits.handshakes.max(1));
        let acceptor = Acceptor {
            local: Arc::new(local),
            config: Arc::new(config),
            sender,
            arriving: Arc::new(Semaphore::new(limits.arriving.max(1))),
            crowd: Crowd::new(limits.arriving_by_address.max(1)),
            handshakes: Arc::new(Semaphore::new(limits.handshakes.max(1))),
            nodes: Arc::new(Semaphore::new(limits.nodes.max(1))),
            visitors: Arc::new(Semaphore::new(limits.visitors.max(1))),
            arrivals: Arc::new(Rates::new(limits.arrivals)),
            rates: Arc::new(Rates::new(limits.sessions)),
            policies: policies.map(Arc::new),
            telling: Arc::new(Semaphore::new(TELLING)),
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
    arriving: Arc<Semaphore>,
    crowd: Crowd,
    handshakes: Arc<Semaphore>,
    nodes: Arc<Semaphore>,
    visitors: Arc<Semaphore>,
    arrivals: Arc<Rates>,
    rates: Arc<Rates>,
    policies: Option<Arc<PolicyBook>>,
    telling: Arc<Semaphore>,
    on_refused: OnRefused,
}

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let Ok(arrival) = Arc::clone(&self.arriving).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((_, address)) if self.too_often(address) => {
                    tracing::debug!(%address, "closed at once: it arrives more often than an address may");
                }
                Ok((stream, address)) => match self.crowd.enter(address.ip()) {
                    Ok(place) => drop(tokio::spawn(self.clone().receive(stream, address, (arrival, place)))),
                    Err(crowded) if crowded.first => tracing::warn!(
                        %address,
                        "closed at once: as many connections of this address arrive as are allowed; further ones go unsaid"
                    ),
                    Err(_) => {}
                },
                Err(error) => {
                    // For instance no file descriptors: others may end in the meantime.
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn too_often(&self, address: SocketAddr) -> bool {
        let whose = Identity::Address(network(address.ip()));
        self.arrivals.take(&whose, Instant::now()).is_err()
    }

    /// Lets a connection in, or says why not. `arrival` is given back with the last verdict.
    async fn receive(self, stream: TcpStream, address: SocketAddr, arrival: (OwnedSemaphorePermit, CrowdPlace)) {
        let attempt = tokio::time::timeout(Duration::from_secs(HANDSHAKE_S), self.attest(stream, address));
        let result = attempt.await.unwrap_or_else(|_| {
            Err(SessionError::TooSlow {
                address: address.to_string(),
                seconds: HANDSHAKE_S,
            })
        });
        drop(arrival);
        let connection = match result {
            Ok(Some(connection)) => connection,
            Ok(None) => return,
            Err(error) => return (self.on_refused)(&error),
        };
        let (places, whose) = match connection.peer().permit() {
            Some(_) => (&self.nodes, "nodes"),
            None => (&self.visitors, "visitors"),
        };
        match Arc::clone(places).try_acquire_owned() {
            // A receiver that is gone means that the node stops.
            Ok(place) => {
                self.local.memory.leases.admitted(connection.peer());
                drop(self.sender.send(connection.holding(place)).await);
            }
            Err(_) => tracing::warn!(%address, "closed: as many connections of {whose} live as are allowed"),
        }
    }

    /// A connection that was attested; none to one that asked for the policies alone.
    async fn attest(&self, stream: TcpStream, address: SocketAddr) -> Result<Option<AttestedConnection>, SessionError> {
        let no_tls = |error: std::io::Error| SessionError::Tls {
            address: address.to_string(),
            cause: error.to_string(),
        };
        stream.set_nodelay(true).map_err(no_tls)?;
        tokio::time::timeout(Duration::from_secs(FIRST_BYTES_S), begins_as_tls(&stream))
            .await
            .map_err(|_| SessionError::Silent {
                address: address.to_string(),
                seconds: FIRST_BYTES_S,
            })?
            .map_err(no_tls)?;
        // Never closed: both live as long as the acceptor.
        let turn = self.handshakes.acquire().await;
        let accepting = TlsAcceptor::from(Arc::clone(&self.config)).accept(stream);
        let mut stream = tokio::time::timeout(Duration::from_secs(HELLO_S), accepting)
            .await
            .map_err(|_| SessionError::TooSlow {
                address: address.to_string(),
                seconds: HELLO_S,
            })?
            .map_err(|error| tls::failed(&address.to_string(), &error))?;
        if let Some(policies) = &self.policies
            && stream.get_ref().1.alpn_protocol() == Some(POLICIES_ALPN)
        {
            // Strangers that read slowly are in the way of each other alone.
            drop(turn);
            let _place = self.telling.acquire().await;
            policies.tell(&mut stream).await.map_err(no_tls)?;
            return Ok(None);
        }
        let expected = Expected {
            visitors: true,
            applicants: self.policies.is_some(),
            ..Expected::default()
        };
        let appraiser = Arc::new(Appraiser::new(Arc::clone(&self.local.policy)).expecting(expected));
        let admit = |peer: &PeerEvidence| self.rates.take(&Identity::of(peer, address.ip()), Instant::now());
        let shown = address.to_string();
        let attested = finish(&self.local, stream.into(), Side::Server, appraiser, (&shown, &admit)).await;
        drop(turn);
        attested.map(Some)
    }
}

/// Waits for the first bytes, which stay in the stream, and compares them with a handshake record's of TLS.
async fn begins_as_tls(stream: &TcpStream) -> std::io::Result<()> {
    let mut first = [0; 2];
    let seen = stream.peek(&mut first).await?;
    match TLS_HANDSHAKE.starts_with(&first[..seen]) && seen > 0 {
        true => Ok(()),
        false => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "it does not begin as a TLS handshake does",
        )),
    }
}
