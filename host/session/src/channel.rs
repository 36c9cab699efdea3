//! gRPC over a connection that was dialled and attested.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::connection::AttestedConnection;
use crate::error::SessionError;

/// HTTP/2 window of a stream, in bytes: a model's chunks are pushed without waiting for round trips.
pub const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// HTTP/2 window of a connection, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Largest HTTP/2 frame taken, in bytes.
pub const MAX_FRAME_BYTES: u32 = 1024 * 1024;
/// How often an idle connection is probed, so that a dead peer is noticed: something of a peer that lives comes in at least as often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// How long a probe may go unanswered.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A gRPC channel over exactly this connection. When it ends, calls fail: a new connection has to be attested anew, so
/// nothing reconnects behind the caller's back.
pub async fn channel(connection: AttestedConnection) -> Result<Channel, SessionError> {
    let mut once = Some(connection);
    let connector = service_fn(move |_: Uri| {
        let connection = once.take();
        async move {
            connection.map(TokioIo::new).ok_or_else(|| {
                std::io::Error::new(
                    std::io::ErrorKind::NotConnected,
                    "the attested session has ended; dial a new one",
                )
            })
        }
    });
    Endpoint::from_static("http://cloister.invalid")
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(MAX_FRAME_BYTES)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(|error| SessionError::Http {
            cause: format!("{error:?}"),
        })
}
