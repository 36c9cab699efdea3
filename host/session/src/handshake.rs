//! The attestation handshake over a TLS stream that has just come up.

use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::ratls::PeerCertificate;
use cloister_attestation::session::{Action, Handshake, HandshakeError, HandshakeInput, Side};
use cloister_attestation::{Appraise, PeerEvidence, Refusal};
use cloister_wire::FrameReader;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::HELLO_S;
use crate::error::SessionError;
use crate::local::{Local, SelfSide};
use crate::quotes::{Audience, QuoteError, SessionQuote};

/// Most bytes read and thrown away after a refusal, so that the peer still gets the verdict.
const LINGER_BYTES: usize = 256 * 1024;

/// Rules by which a listener says that it has no time: the dialler may try again.
const BUSY: &str = "session.busy";
const RATE: &str = "session.rate";

/// Asked before this end takes a quote for a peer that verified: [`Refusal`] if it has had too many.
pub(crate) type Admit<'a> = &'a (dyn Fn(&PeerEvidence) -> Result<(), Duration> + Send + Sync);

/// What TLS knows of the connection.
pub(crate) struct Channel<'a> {
    pub(crate) side: Side,
    pub(crate) exporter: [u8; 32],
    pub(crate) peer_certificate: &'a [u8],
    pub(crate) address: &'a str,
    pub(crate) admit: Admit<'a>,
}

/// Runs both layers to the end. On a refusal the peer is told every rule before the error comes back.
pub(crate) async fn attest<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    local: &Local,
    appraiser: Arc<dyn Appraise>,
    channel: Channel<'_>,
) -> Result<PeerEvidence, SessionError> {
    let address = channel.address;
    let input = HandshakeInput {
        side: channel.side,
        own: local.self_info(),
        exporter: channel.exporter,
        peer_certificate: channel.peer_certificate,
        verifier: Arc::clone(&local.verifier),
        verdicts: Arc::clone(&local.memory.verdicts),
        appraiser,
    };
    let failed = |error: HandshakeError| match error {
        HandshakeError::PeerRefused(refusal) => refused_by_peer(address, refusal),
        other => SessionError::Broken {
            address: address.to_owned(),
            cause: other.to_string(),
        },
    };
    let broken = |error: std::io::Error| SessionError::Broken {
        address: address.to_owned(),
        cause: error.to_string(),
    };
    let (mut handshake, mut actions) = Handshake::new(input).map_err(failed)?;
    let mut frames = FrameReader::new();
    // The first frame is the Hello, for which nobody needs time.
    let mut hello_due = Some(Duration::from_secs(HELLO_S));
    loop {
        let mut more = Vec::new();
        for action in actions {
            match action {
                Action::Send(frame) => stream.write_all(&frame).await.map_err(broken)?,
                Action::NeedQuote(binding) => {
                    stream.flush().await.map_err(broken)?;
                    let answer = match take_quote(local, *binding, &handshake, &channel).await? {
                        Ok(quote) => handshake.provide_quote(&quote.quote, &quote.path),
                        Err(refusal) => handshake.refuse(refusal),
                    };
                    more.extend(answer.map_err(failed)?);
                }
                Action::Done(evidence) => {
                    stream.flush().await.map_err(broken)?;
                    return Ok(*evidence);
                }
                Action::Refused(refusal) => {
                    linger(stream).await;
                    let certificate = PeerCertificate::parse(channel.peer_certificate).ok();
                    return Err(SessionError::RefusedPeer {
                        address: address.to_owned(),
                        who: String::new(),
                        claimed: certificate.and_then(|certificate| certificate.claimed()).map(Box::new),
                        refusal,
                    });
                }
            }
        }
        if !more.is_empty() {
            actions = more;
            continue;
        }
        stream.flush().await.map_err(broken)?;
        let frame = match hello_due.take() {
            None => read_frame(stream, &mut frames, address).await?,
            Some(limit) => tokio::time::timeout(limit, read_frame(stream, &mut frames, address))
                .await
                .map_err(|_| SessionError::TooSlow {
                    address: address.to_owned(),
                    seconds: HELLO_S,
                })??,
        };
        actions = handshake.on_frame(&frame, (local.clock)()).map_err(failed)?;
    }
}

fn refused_by_peer(address: &str, refusal: Refusal) -> SessionError {
    let address = address.to_owned();
    match &refusal.failed[..] {
        [reason] if reason.rule == BUSY || reason.rule == RATE => SessionError::PeerBusy {
            address,
            reason: reason.clone(),
        },
        _ => SessionError::RefusedByPeer { address, refusal },
    }
}

/// A quote for this session; a refusal where the peer has had its share or too many others wait, which it is told.
async fn take_quote(
    local: &Local,
    binding: [u8; 64],
    handshake: &Handshake,
    channel: &Channel<'_>,
) -> Result<Result<SessionQuote, Refusal>, SessionError> {
    let SelfSide::Node(node) = &local.own else {
        return Err(SessionError::Own {
            cause: "a visitor has no TD and no quote".to_owned(),
        });
    };
    let mut audience = Audience::Node;
    if let Some(peer) = handshake.verified_peer() {
        if matches!(peer, PeerEvidence::Visitor(_)) {
            audience = Audience::Visitor;
        }
        if let Err(wait) = (channel.admit)(peer) {
            let wanted = format!("fewer; try again in {} s", wait.as_secs() + 1);
            return Ok(Err(Refusal::one(RATE, "more sessions than one peer may have", wanted)));
        }
    }
    match node.quotes.session(binding, audience).await {
        Ok(quote) => Ok(Ok(quote)),
        Err(error @ QuoteError::Busy { .. }) if channel.side == Side::Server => {
            Ok(Err(Refusal::one(BUSY, error, "a moment when fewer do")))
        }
        Err(source) => Err(SessionError::Quote {
            address: channel.address.to_owned(),
            source,
        }),
    }
}

/// Reads one frame and not a byte behind it: what follows the last frame is HTTP/2.
async fn read_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    frames: &mut FrameReader,
    address: &str,
) -> Result<bytes::Bytes, SessionError> {
    let broken = |cause: String| SessionError::Broken {
        address: address.to_owned(),
        cause,
    };
    loop {
        if let Some(frame) = frames.next_frame().map_err(|error| broken(error.to_string()))? {
            return Ok(frame);
        }
        let missing = frames.missing().map_err(|error| broken(error.to_string()))?;
        let mut piece = vec![0; missing];
        let read = stream
            .read(&mut piece)
            .await
            .map_err(|error| broken(error.to_string()))?;
        if read == 0 {
            return Err(broken("the peer closed the connection without a verdict".to_owned()));
        }
        frames.feed(&piece[..read]);
    }
}

/// Closes so that the verdict arrives: bytes of the peer that nobody read would turn the close into a reset.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut rest = stream.take(LINGER_BYTES as u64);
    let mut piece = [0; 4096];
    while matches!(rest.read(&mut piece).await, Ok(read) if read > 0) {}
}
