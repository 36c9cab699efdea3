//! The attestation handshake over a TLS stream that has just come up.

use std::sync::Arc;

use cloister_attestation::session::{Action, Handshake, HandshakeError, HandshakeInput, Side};
use cloister_attestation::{Appraise, PeerEvidence};
use cloister_wire::FrameReader;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::error::SessionError;
use crate::local::{Local, SelfSide};

/// Most bytes read and thrown away after a refusal, so that the peer still gets the verdict.
const LINGER_BYTES: usize = 256 * 1024;

/// What TLS knows of the connection.
pub(crate) struct Channel<'a> {
    pub(crate) side: Side,
    pub(crate) exporter: [u8; 32],
    pub(crate) peer_certificate: &'a [u8],
    pub(crate) address: &'a str,
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
        appraiser,
    };
    let failed = |error: HandshakeError| match error {
        HandshakeError::PeerRefused(refusal) => SessionError::RefusedByPeer {
            address: address.to_owned(),
            refusal,
        },
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
    loop {
        let mut more = Vec::new();
        for action in actions {
            match action {
                Action::Send(frame) => stream.write_all(&frame).await.map_err(broken)?,
                Action::NeedQuote(report_data) => {
                    stream.flush().await.map_err(broken)?;
                    let quote = take_quote(local, *report_data, address).await?;
                    more.extend(handshake.provide_quote(&quote, &[]).map_err(failed)?);
                }
                Action::Done(evidence) => {
                    stream.flush().await.map_err(broken)?;
                    return Ok(*evidence);
                }
                Action::Refused(refusal) => {
                    linger(stream).await;
                    let who = String::new();
                    return Err(SessionError::RefusedPeer {
                        address: address.to_owned(),
                        who,
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
        let frame = read_frame(stream, &mut frames, address).await?;
        actions = handshake.on_frame(&frame, (local.clock)()).map_err(failed)?;
    }
}

async fn take_quote(local: &Local, report_data: [u8; 64], address: &str) -> Result<Vec<u8>, SessionError> {
    match &local.own {
        SelfSide::Node(node) => node
            .quotes
            .quote(report_data)
            .await
            .map_err(|source| SessionError::Quote {
                address: address.to_owned(),
                source,
            }),
        SelfSide::Visitor(_) => Err(SessionError::Own {
            cause: "a visitor has no TD and no quote".to_owned(),
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
