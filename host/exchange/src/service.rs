//! The gRPC service of a listening node: rounds for members, the content store for nodes and participants.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::State;
use cloister_attestation::identity::Role;
use cloister_policy::Policy;
use cloister_session::{Clock, Listener, Peer, channel};
use cloister_tensor::Digest;
use cloister_wire::MAX_MESSAGE_BYTES;
use cloister_wire::federation as wire;
use cloister_wire::federation::federation_server::{Federation, FederationServer};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::aggregator::AggregatorHandle;
use crate::content::{ContentKind, ContentStore, SendError, Submission, verify_submission};
use crate::convert;
use crate::error::ExchangeError;

/// Streams that a connection may have open at a time.
const MAX_STREAMS: u32 = 16;

/// How long running calls may take to end once the node stops.
pub const GRACE: Duration = Duration::from_secs(5);

/// How long a call waits for the next message that it can't do without, or for the next one to be taken.
const NEXT_MESSAGE: Duration = Duration::from_secs(60);

type Sending<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a listening node serves.
#[derive(Clone)]
pub struct FederationService {
    /// The agreement.
    pub policy: Arc<Policy>,
    /// The wall clock.
    pub clock: Clock,
    /// Modules, graphs and weights.
    pub store: ContentStore,
    /// The running rounds; none while the node still collects its content.
    pub aggregator: Option<AggregatorHandle>,
}

/// Serves a listener's connections until `stop` resolves; running calls then get [`GRACE`] to end.
pub async fn serve(
    listener: Listener,
    service: FederationService,
    stop: impl Future<Output = ()>,
) -> Result<(), ExchangeError> {
    let service = FederationServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let stopping = CancellationToken::new();
    let server = Server::builder()
        .initial_stream_window_size(channel::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(channel::CONNECTION_WINDOW_BYTES)
        .max_frame_size(channel::MAX_FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_keepalive_interval(Some(channel::KEEP_ALIVE))
        .http2_keepalive_timeout(Some(channel::KEEP_ALIVE_TIMEOUT))
        .add_service(service)
        .serve_with_incoming_shutdown(listener.incoming(), stopping.clone().cancelled_owned());
    let stopped = async {
        stop.await;
        stopping.cancel();
        tokio::time::sleep(GRACE).await;
    };
    let result = tokio::select! {
        result = server => result,
        // Whoever still holds a connection open then does not hold up the node's end.
        () = stopped => Ok(()),
    };
    result.map_err(|error| ExchangeError::Call {
        what: "serving".to_owned(),
        code: tonic::Code::Internal,
        message: error.to_string(),
    })
}

impl FederationService {
    /// Who calls. A request without a peer did not come over an attested session.
    fn peer<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("this call came over no attested session"))?;
        let now = (self.clock)();
        if peer.expired(now) {
            return Err(Status::permission_denied(
                "the permit of this session has expired; attest anew",
            ));
        }
        Ok(peer)
    }

    /// Nodes, and visitors that signed as a participant, see the store; strangers don't.
    fn known<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let peer = self.peer(request)?;
        let stranger = peer.visit().is_some_and(|visit| visit.participant().is_none());
        if stranger {
            return Err(Status::permission_denied(
                "a visitor without a participant's key may only look at this node's evidence; give --participant and --participant-key",
            ));
        }
        Ok(peer)
    }

    fn check_header(&self, peer: &Peer, header: &wire::SubmitHeader) -> Result<Digest, Status> {
        let digest = convert::digest(&header.digest, "a submission").map_err(|error| invalid(&error))?;
        let caller = participant(peer);
        if caller != Some(header.participant.as_str()) {
            return Err(Status::permission_denied(format!(
                "the submission is signed by {:?}, the session by {:?}; wanted one participant",
                convert::tame(&header.participant),
                caller.unwrap_or("nobody"),
            )));
        }
        let kind = ContentKind::parse(&header.kind)
            .ok_or_else(|| Status::invalid_argument("the kind is module, graph or weights"))?;
        if !self.store.names(kind, &header.name, &digest) {
            let wanted = match self.store.wanted_digest(kind, &header.name) {
                Some(wanted) => format!("it names {wanted}"),
                None => format!("it names no {} of that name", kind.as_str()),
            };
            let name = convert::tame(&header.name);
            return Err(Status::permission_denied(format!(
                "the policy does not name {} {name:?} with the digest {digest}; {wanted}",
                kind.as_str(),
            )));
        }
        if header.length == 0 || header.length > self.store.limit_bytes() {
            return Err(Status::invalid_argument(format!(
                "{} bytes submitted; taken are 1 to {}",
                header.length,
                self.store.limit_bytes()
            )));
        }
        let policy_digest = self.policy.digest();
        let submission = Submission {
            federation: &self.policy.name,
            policy_digest: &policy_digest,
            kind,
            name: &header.name,
            participant: &header.participant,
        };
        let key = self.policy.participant_key(&header.participant);
        if !key.is_some_and(|key| verify_submission(&key, &submission, &digest, &header.signature)) {
            return Err(Status::permission_denied(
                "the submission's signature does not verify under the participant's key of the policy",
            ));
        }
        Ok(digest)
    }
}

fn invalid(error: &ExchangeError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn internal(error: &ExchangeError) -> Status {
    // The peer gets no paths of this machine.
    tracing::error!(%error, "serving content");
    Status::internal("the node failed to serve this; its log says why")
}

#[tonic::async_trait]
impl Federation for FederationService {
    type MemberStream = Sending<wire::AggregatorMessage>;
    type FetchStream = Sending<wire::Chunk>;

    async fn member(
        &self,
        request: Request<Streaming<wire::MemberMessage>>,
    ) -> Result<Response<Self::MemberStream>, Status> {
        let peer = self.peer(&request)?;
        let Some(permit) = peer.permit().filter(|permit| permit.role() == Role::Worker) else {
            return Err(Status::permission_denied(
                "only workers that were attested take part in rounds",
            ));
        };
        if permit.state() != State::Member {
            return Err(Status::permission_denied(
                "a node in the state bootstrap fetches content only; it joins as a member, with modules and graphs measured",
            ));
        }
        let Some(aggregator) = &self.aggregator else {
            let missing: Vec<String> = self
                .store
                .missing()
                .await
                .into_iter()
                .map(|wanted| wanted.name)
                .collect();
            return Err(Status::unavailable(format!(
                "the aggregator still collects its content; missing {}",
                missing.join(", ")
            )));
        };
        let messages = request.into_inner();
        Ok(Response::new(Box::pin(aggregator.join(peer, messages).await?)))
    }

    async fn fetch(&self, request: Request<wire::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let peer = self.known(&request)?;
        let digest = convert::digest(&request.get_ref().digest, "a request").map_err(|error| invalid(&error))?;
        let turn = self.store.turn(participant(&peer).unwrap_or_default()).await;
        let object = self.store.object(&digest).await.map_err(|error| internal(&error))?;
        let object = object.ok_or_else(|| Status::not_found(format!("{digest} is not in the store")))?;
        let chunks = object.send(turn, NEXT_MESSAGE).map(|chunk| match chunk {
            Ok(data) => Ok(wire::Chunk { data }),
            Err(SendError::Store(error)) => Err(internal(&error)),
            Err(slow) => Err(Status::deadline_exceeded(slow.to_string())),
        });
        Ok(Response::new(Box::pin(chunks)))
    }

    async fn submit(
        &self,
        request: Request<Streaming<wire::SubmitPart>>,
    ) -> Result<Response<wire::SubmitReply>, Status> {
        let peer = self.known(&request)?;
        let mut parts = request.into_inner();
        let Some(wire::submit_part::Body::Header(header)) = next_part(&mut parts).await? else {
            return Err(Status::invalid_argument("a submission begins with its header"));
        };
        let digest = self.check_header(&peer, &header)?;
        let _turn = self.store.turn(&header.participant).await;
        let mut content = Vec::new();
        while let Some(part) = next_part(&mut parts).await? {
            let wire::submit_part::Body::Chunk(chunk) = part else {
                return Err(Status::invalid_argument("after its header a submission is chunks"));
            };
            if (content.len() + chunk.data.len()) as u64 > header.length {
                return Err(Status::invalid_argument(
                    "the submission is longer than its header says",
                ));
            }
            content.extend_from_slice(&chunk.data);
        }
        let stored = self
            .store
            .put(&digest, &content, &header.participant, &header.signature)
            .await;
        let stored = stored.map_err(|error| match error {
            ExchangeError::Digest { .. } => invalid(&error),
            other => internal(&other),
        })?;
        tracing::info!(kind = %header.kind, name = %header.name, %digest, participant = %header.participant, stored, "submission");
        Ok(Response::new(wire::SubmitReply { stored }))
    }

    async fn list(&self, request: Request<wire::ListRequest>) -> Result<Response<wire::ListReply>, Status> {
        self.known(&request)?;
        let mut entries = Vec::new();
        for wanted in self.store.wanted() {
            let stored = self.store.stored(&wanted.digest).await;
            entries.push(wire::ContentEntry {
                kind: wanted.kind.as_str().to_owned(),
                name: wanted.name.clone(),
                digest: convert::digest_bytes(&wanted.digest),
                length: stored.as_ref().map_or(0, |stored| stored.length),
                present: stored.is_some(),
                participant: stored.map(|stored| stored.participant).unwrap_or_default(),
            });
        }
        Ok(Response::new(wire::ListReply { entries }))
    }
}

/// The participant that a peer is or belongs to; none of a stranger.
fn participant(peer: &Peer) -> Option<&str> {
    let signed_as = peer.visit().and_then(|visit| visit.participant());
    signed_as.or_else(|| peer.permit().map(cloister_policy::Permit::participant))
}

/// The next part of a submission.
async fn next_part(parts: &mut Streaming<wire::SubmitPart>) -> Result<Option<wire::submit_part::Body>, Status> {
    let part = tokio::time::timeout(NEXT_MESSAGE, parts.message()).await;
    let part = part.map_err(|_| {
        Status::deadline_exceeded(format!(
            "no part of the submission came for {} s",
            NEXT_MESSAGE.as_secs()
        ))
    })??;
    part.map(|part| {
        part.body
            .ok_or_else(|| Status::invalid_argument("a part of a submission is empty"))
    })
    .transpose()
}
