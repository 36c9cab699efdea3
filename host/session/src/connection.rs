//! A connection whose peer was attested and permitted.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use cloister_attestation::PeerEvidence;
use cloister_policy::{Permit, Visit};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

use crate::lease::Lease;
use crate::local::Clock;

/// What the policy made of the peer.
#[derive(Clone, Debug)]
pub(crate) enum Admission {
    Node(Permit),
    Visitor(Visit),
}

/// Who is at the other end. Cheap to clone; travels in the extensions of every request of the connection.
#[derive(Clone, Debug)]
pub struct Peer {
    inner: Arc<PeerInner>,
}

#[derive(Debug)]
struct PeerInner {
    evidence: PeerEvidence,
    admission: Admission,
    address: SocketAddr,
    connection: [u8; 32],
    lease: Arc<Lease>,
    heard: AtomicU64,
}

impl Peer {
    /// A peer that is believed until then, in seconds since 1970, at an address, over the connection with that exporter.
    pub(crate) fn new(
        evidence: PeerEvidence,
        admission: Admission,
        (address, connection): (SocketAddr, [u8; 32]),
        until_unix_s: u64,
    ) -> Self {
        Self {
            inner: Arc::new(PeerInner {
                evidence,
                admission,
                address,
                connection,
                lease: Lease::new(until_unix_s),
                heard: AtomicU64::new(0),
            }),
        }
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.inner.lease
    }

    /// Until when it is believed, in seconds since 1970: its permit's end, or that of its last renewal.
    pub fn expires_unix_s(&self) -> u64 {
        self.inner.lease.until_unix_s()
    }

    /// Whether that time has come: nothing goes to it any more.
    pub fn expired(&self, now_unix_s: u64) -> bool {
        now_unix_s >= self.expires_unix_s()
    }

    /// What the peer showed, verified.
    pub fn evidence(&self) -> &PeerEvidence {
        &self.inner.evidence
    }

    /// The permit, if the peer is a node. Its own expiry is that of the first attestation: go by [`Peer::expired`].
    pub fn permit(&self) -> Option<&Permit> {
        match &self.inner.admission {
            Admission::Node(permit) => Some(permit),
            Admission::Visitor(_) => None,
        }
    }

    /// The visit, if the peer is a command line.
    pub fn visit(&self) -> Option<&Visit> {
        match &self.inner.admission {
            Admission::Node(_) => None,
            Admission::Visitor(visit) => Some(visit),
        }
    }

    /// How often something of it came in over this connection, authenticated by TLS. A peer that lives adds to it within
    /// [`crate::channel::KEEP_ALIVE`], whatever it is busy with.
    pub fn heard(&self) -> u64 {
        self.inner.heard.load(Ordering::Relaxed)
    }

    /// What names this connection: its TLS exporter, which both ends have and nobody else.
    pub fn connection(&self) -> &[u8; 32] {
        &self.inner.connection
    }

    /// Where it comes from (the proxy's address, behind a proxy).
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }
}

/// The stream behind an attestation: TLS with a peer that this side's policy permits. Only this crate makes one.
pub struct AttestedConnection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    clock: Clock,
    /// The listener's place, given back when the connection ends.
    place: Option<OwnedSemaphorePermit>,
}

impl AttestedConnection {
    pub(crate) fn new(stream: TlsStream<TcpStream>, peer: Peer, clock: Clock) -> Self {
        Self {
            stream,
            peer,
            clock,
            place: None,
        }
    }

    /// Takes up one of the listener's places until the connection ends.
    pub(crate) fn holding(mut self, place: OwnedSemaphorePermit) -> Self {
        self.place = Some(place);
        self
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Nothing is taken from, and nothing goes to, a peer that is not believed any more.
    fn believed(&self) -> io::Result<()> {
        if self.peer.expired((self.clock)()) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the peer's attestation has run out and was not renewed",
            ));
        }
        Ok(())
    }
}

impl std::fmt::Debug for AttestedConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AttestedConnection")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for AttestedConnection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.believed()?;
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.peer.inner.heard.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for AttestedConnection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.believed()?;
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.believed()?;
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl Connected for AttestedConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}
