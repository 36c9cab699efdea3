//! From one TD to another: the listening one shows its evidence and a key, what is sealed to that key comes piece by piece.

use std::collections::HashMap;
use std::future::Future;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cloister_manager::{SealingError, SealingKey, SealingPublicKey};
use cloister_policy::Policy;
use cloister_session::{AttestedConnection, Clock, Listener, Peer, SessionError, channel};
use cloister_wire::export::export_client::ExportClient;
use cloister_wire::export::export_server::{self, ExportServer};
use cloister_wire::{MAX_MESSAGE_BYTES, export as wire};
use tempfile::NamedTempFile;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use super::package::{self, Recipient, Statement};

/// Bytes of a piece.
const PIECE_BYTES: usize = 1 << 20;
/// Exports that may be on their way at a time.
const MAX_COMING: usize = 4;
/// One of which nothing came for so long makes room.
const IDLE: Duration = Duration::from_secs(60);

/// What was received.
#[derive(Clone, Debug)]
pub struct Received {
    /// What it says of itself.
    pub statement: Statement,
    /// The files.
    pub files: Vec<PathBuf>,
}

struct Coming {
    file: NamedTempFile,
    written: u64,
    last: Instant,
}

/// A TD that waits for one export. Clones share it.
#[derive(Clone)]
pub struct Receiver {
    inner: Arc<Inner>,
}

struct Inner {
    policy: Arc<Policy>,
    clock: Clock,
    node: String,
    folder: PathBuf,
    limit: u64,
    /// Of this start of the TD.
    own: SealingKey,
    coming: Mutex<HashMap<[u8; 32], Coming>>,
    received: watch::Sender<Option<Received>>,
}

impl Receiver {
    /// The node of that name, which opens what is for it into `folder`; no export of more than `limit` bytes is taken.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new(
        (policy, clock): (Arc<Policy>, Clock),
        node: &str,
        (folder, limit): (PathBuf, u64),
    ) -> Result<Self, SealingError> {
        Ok(Self {
            inner: Arc::new(Inner {
                policy,
                clock,
                node: node.to_owned(),
                folder,
                limit,
                own: SealingKey::generate()?,
                coming: Mutex::default(),
                received: watch::Sender::new(None),
            }),
        })
    }

    /// Serves a listener's connections until an export was opened, and gives it; nothing, if `stop` resolves before.
    ///
    /// # Errors
    /// The listening broke.
    pub async fn serve(
        self,
        listener: Listener,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Received>, tonic::transport::Error> {
        let mut received = self.inner.received.subscribe();
        let service = ExportServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let ending = CancellationToken::new();
        let server = Server::builder()
            .max_frame_size(channel::MAX_FRAME_BYTES)
            .http2_keepalive_interval(Some(channel::KEEP_ALIVE))
            .http2_keepalive_timeout(Some(channel::KEEP_ALIVE_TIMEOUT))
            .add_service(service)
            .serve_with_incoming_shutdown(listener.incoming(), ending.clone().cancelled_owned());
        let server = tokio::spawn(server);
        tokio::select! {
            _ = received.wait_for(Option::is_some) => {}
            () = stop => {}
        }
        ending.cancel();
        // The answer to the last piece is still on its way.
        let ended = tokio::time::timeout(Duration::from_secs(2), server).await;
        if let Ok(Ok(ended)) = ended {
            ended?;
        }
        let received = received.borrow().clone();
        Ok(received)
    }

    fn coming(&self) -> MutexGuard<'_, HashMap<[u8; 32], Coming>> {
        // An export is taken out whole and put back whole.
        self.inner.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peer<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("this call came over no attested session"))?;
        if peer.expired((self.inner.clock)()) {
            return Err(Status::permission_denied("this session has ended; dial again"));
        }
        Ok(peer)
    }

    /// Writes a piece; gives the whole once the last one is there.
    fn write(&self, connection: [u8; 32], piece: &wire::Piece) -> Result<Option<NamedTempFile>, Status> {
        let not_offered =
            || Status::failed_precondition("nothing was offered on this connection, or it was idle too long");
        let mut coming = self.coming().remove(&connection).ok_or_else(not_offered)?;
        if piece.offset != coming.written || piece.content.len() > PIECE_BYTES {
            return Err(Status::invalid_argument("a piece out of order, or larger than 1 MiB"));
        }
        coming.written = coming.written.saturating_add(piece.content.len() as u64);
        if coming.written > self.inner.limit {
            return Err(Status::resource_exhausted(format!(
                "more than {} bytes, the largest export of this federation's model",
                self.inner.limit
            )));
        }
        let written = coming.file.write_all(&piece.content);
        written.map_err(|error| Status::internal(format!("it cannot be kept: {error}")))?;
        if piece.last {
            return Ok(Some(coming.file));
        }
        coming.last = Instant::now();
        self.coming().insert(connection, coming);
        Ok(None)
    }

    /// Opens what came.
    fn open(&self, connection: [u8; 32], mut file: NamedTempFile) -> Result<(), Status> {
        let Inner {
            policy,
            node,
            folder,
            own,
            ..
        } = &*self.inner;
        let me = Recipient::Node {
            name: node.clone(),
            connection,
        };
        file.as_file_mut()
            .seek(SeekFrom::Start(0))
            .map_err(|error| Status::internal(error.to_string()))?;
        let (statement, files) = package::open(file.as_file_mut(), policy, (&me, own), folder).map_err(|error| {
            tracing::warn!("an export was refused: {error}");
            Status::permission_denied(error.to_string())
        })?;
        self.inner.received.send_replace(Some(Received { statement, files }));
        Ok(())
    }
}

#[tonic::async_trait]
impl export_server::Export for Receiver {
    async fn offer(&self, request: Request<wire::OfferRequest>) -> Result<Response<wire::OfferReply>, Status> {
        let connection = *self.peer(&request)?.connection();
        let file = NamedTempFile::new_in(&self.inner.folder);
        let file = file.map_err(|error| Status::internal(format!("it cannot be kept: {error}")))?;
        let mut coming = self.coming();
        coming.retain(|_, one| one.last.elapsed() < IDLE);
        if coming.len() >= MAX_COMING && !coming.contains_key(&connection) {
            return Err(Status::unavailable("others deliver; try again"));
        }
        let (written, last) = (0, Instant::now());
        coming.insert(connection, Coming { file, written, last });
        drop(coming);
        Ok(Response::new(wire::OfferReply {
            recipient: Bytes::copy_from_slice(self.inner.own.public().as_bytes()),
        }))
    }

    async fn deliver(&self, request: Request<wire::Piece>) -> Result<Response<wire::DeliverReply>, Status> {
        let connection = *self.peer(&request)?.connection();
        let (own, piece) = (self.clone(), request.into_inner());
        let done = tokio::task::spawn_blocking(move || match own.write(connection, &piece)? {
            Some(whole) => own.open(connection, whole).map(|()| true),
            None => Ok(false),
        });
        let opened = done.await.map_err(|_| Status::internal("opening it failed"))??;
        Ok(Response::new(wire::DeliverReply { opened }))
    }
}

/// Why an export did not get to its TD.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// No attested connection.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The other end did not take it.
    #[error("{address} did not take the export: {message}")]
    NotTaken {
        /// Where.
        address: String,
        /// What it says.
        message: String,
    },
    /// It cannot be read.
    #[error("the export cannot be read: {0}")]
    Read(#[from] std::io::Error),
}

/// A dialled TD that takes exports.
pub struct Delivery {
    client: ExportClient<Channel>,
    address: String,
    /// Its key.
    pub key: SealingPublicKey,
}

impl Delivery {
    /// Asks for the key to seal to.
    ///
    /// # Errors
    /// [`DeliverError`].
    pub async fn offer(connection: AttestedConnection, address: &str) -> Result<Self, DeliverError> {
        let mut client = ExportClient::new(channel::channel(connection).await?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let not_taken = |message: String| DeliverError::NotTaken {
            address: address.to_owned(),
            message,
        };
        let offered = client.offer(wire::OfferRequest {}).await;
        let offered = offered.map_err(|status| not_taken(tame(&status)))?.into_inner();
        let key: Result<[u8; 32], _> = offered.recipient.as_ref().try_into();
        let key = key.map_err(|_| not_taken(format!("a key of {} bytes", offered.recipient.len())))?;
        let (address, key) = (address.to_owned(), SealingPublicKey::from_bytes(key));
        Ok(Self { client, address, key })
    }

    /// Delivers what was sealed to that key.
    ///
    /// # Errors
    /// [`DeliverError`].
    pub async fn deliver(&mut self, file: &mut NamedTempFile) -> Result<(), DeliverError> {
        let file = file.as_file_mut();
        let bytes = file.metadata()?.len();
        file.seek(SeekFrom::Start(0))?;
        let mut offset = 0;
        loop {
            let mut content = Vec::with_capacity(PIECE_BYTES);
            let count = Read::by_ref(file).take(PIECE_BYTES as u64).read_to_end(&mut content)?;
            let last = offset + count as u64 >= bytes;
            let content = content.into();
            let piece = wire::Piece { offset, content, last };
            let told = self.client.deliver(piece).await;
            let told = told.map_err(|status| tame(&status)).map(Response::into_inner);
            let address = self.address.clone();
            let not_taken = |message: String| DeliverError::NotTaken { address, message };
            match told {
                Ok(told) if last && !told.opened => return Err(not_taken("it did not open it".into())),
                Ok(_) if last => return Ok(()),
                Ok(_) => offset += count as u64,
                Err(message) => return Err(not_taken(message)),
            }
        }
    }
}

fn tame(status: &Status) -> String {
    let kept = status.message().chars().filter(|one| !one.is_control());
    kept.take(2000).collect()
}
