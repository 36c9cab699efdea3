//! The gRPC service of a manager: who calls is known from the session, what is answered is decided by the core.

mod backup;
mod nodes;
mod participants;
mod replicas;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use cloister_attestation::Verifier;
use cloister_attestation::identity::Role;
use cloister_exchange::service::GRACE;
use cloister_manager::{Manager, Mark, Refused, Turn};
use cloister_policy::{Permit, Policy, Visit};
use cloister_session::{Clock, Listener, Peer, channel};
use cloister_wire::MAX_MESSAGE_BYTES;
use cloister_wire::manager as wire;
use cloister_wire::manager::manager_server::{self, ManagerServer};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};

use super::REFUSED;
use super::convert::Wrong;
use super::standing::Standing;

/// Streams that a connection may have open at a time.
const MAX_STREAMS: u32 = 16;
/// Applicants whose quotes are verified at a time: each costs a chain of certificates.
const MAX_VERIFYING: usize = 4;

/// What a manager serves. Clones share it.
#[derive(Clone)]
pub struct ManagerService {
    /// The policy that sessions are judged by: the one in force, or the one proposed while none is.
    policy: Arc<Policy>,
    verifier: Arc<Verifier>,
    clock: Clock,
    standing: Arc<Standing>,
    /// The folder of the state, where copies of it are made.
    folder: PathBuf,
    verifying: Arc<Semaphore>,
    /// Copies of the state that are on their way.
    copying: Arc<Semaphore>,
    /// Ends the streams that would go on.
    stopping: CancellationToken,
}

impl ManagerService {
    /// A service over what the manager is at present; its state lies in that folder.
    pub fn new(
        policy: Arc<Policy>,
        verifier: Arc<Verifier>,
        clock: Clock,
        standing: Arc<Standing>,
        folder: PathBuf,
    ) -> Self {
        Self {
            policy,
            verifier,
            clock,
            standing,
            folder,
            verifying: Arc::new(Semaphore::new(MAX_VERIFYING)),
            copying: Arc::new(Semaphore::new(1)),
            stopping: CancellationToken::new(),
        }
    }

    /// Serves a listener's connections until `stop` resolves; running calls then get their time to end.
    ///
    /// # Errors
    /// The listening broke.
    pub async fn serve(
        self,
        listener: Listener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), tonic::transport::Error> {
        let stopping = self.stopping.clone();
        let service = ManagerServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let server = Server::builder()
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
        tokio::select! {
            result = server => result,
            () = stopped => Ok(()),
        }
    }

    /// Who calls. A request without a peer did not come over an attested session.
    fn peer<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("this call came over no attested session"))?;
        if peer.expired((self.clock)()) {
            return Err(word(
                "permit-ended",
                Code::PermissionDenied,
                "the permit of this session has ended; attest again",
            ));
        }
        Ok(peer)
    }

    /// A node that calls.
    fn node<T>(&self, request: &Request<T>) -> Result<Permit, Status> {
        let peer = self.peer(request)?;
        let permit = peer.permit().cloned();
        permit.ok_or_else(|| {
            word(
                "no-node",
                Code::PermissionDenied,
                "only a node with evidence and credential may ask for that",
            )
        })
    }

    /// Another manager of the policy that calls.
    fn manager<T>(&self, request: &Request<T>) -> Result<Permit, Status> {
        let permit = self.node(request)?;
        if permit.role() == Role::Manager && permit.node() != self.standing.node() {
            return Ok(permit);
        }
        let text = "only another manager of the policy may do that";
        Err(word("no-manager", Code::PermissionDenied, text))
    }

    /// A participant that calls.
    fn participant<T>(&self, request: &Request<T>) -> Result<Visit, Status> {
        let peer = self.peer(request)?;
        let visit = peer.visit().filter(|visit| visit.participant().is_some()).cloned();
        visit.ok_or_else(|| {
            let text = "only a participant may do that: give --participant and --participant-key";
            word("no-participant", Code::PermissionDenied, text)
        })
    }

    /// Something that is decided and on the disk when this comes back.
    async fn turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Turn<'_>) -> Result<T, Refused> + Send + 'static,
    ) -> Result<(T, Mark), Status> {
        let (done, mark) = self.standing.turn(work).await?;
        Ok((done.map_err(|error| refused(&error))?, mark))
    }

    async fn look<T: Send + 'static>(&self, work: impl FnOnce(&Manager) -> T + Send + 'static) -> Result<T, Status> {
        self.standing.look(work).await
    }
}

/// A refusal with its word.
pub(super) fn word(word: &'static str, code: Code, text: &str) -> Status {
    let mut status = Status::new(code, text);
    status
        .metadata_mut()
        .insert(REFUSED, tonic::metadata::MetadataValue::from_static(word));
    status
}

fn refused(error: &Refused) -> Status {
    word(error.code(), Code::PermissionDenied, &error.to_string())
}

fn wrong(error: Wrong) -> Status {
    word("bad-request", Code::InvalidArgument, &error)
}

#[tonic::async_trait]
impl manager_server::Manager for ManagerService {
    async fn status(&self, request: Request<wire::StatusRequest>) -> Result<Response<wire::StatusReply>, Status> {
        self.peer(&request)?;
        self.tell_status().await.map(Response::new)
    }

    async fn publish(&self, request: Request<wire::PublishRequest>) -> Result<Response<wire::PublishReply>, Status> {
        self.peer(&request)?;
        self.take_policy(request.into_inner()).await.map(Response::new)
    }

    async fn put_secret(
        &self,
        request: Request<wire::PutSecretRequest>,
    ) -> Result<Response<wire::PutSecretReply>, Status> {
        let who = self.participant(&request)?;
        self.put(who, request.into_inner()).await.map(Response::new)
    }

    async fn list_secrets(
        &self,
        request: Request<wire::ListSecretsRequest>,
    ) -> Result<Response<wire::ListSecretsReply>, Status> {
        let who = self.participant(&request)?;
        self.list(who).await.map(Response::new)
    }

    async fn remove_secret(
        &self,
        request: Request<wire::RemoveSecretRequest>,
    ) -> Result<Response<wire::RemoveSecretReply>, Status> {
        let who = self.participant(&request)?;
        self.remove(who, &request.get_ref().id).await.map(Response::new)
    }

    async fn consent(&self, request: Request<wire::ConsentRequest>) -> Result<Response<wire::ConsentReply>, Status> {
        let who = self.participant(&request)?;
        self.take_consent(who, request.get_ref()).await.map(Response::new)
    }

    async fn share(&self, request: Request<wire::ShareRequest>) -> Result<Response<wire::ShareReply>, Status> {
        let who = self.participant(&request)?;
        self.own_share(&who).map(Response::new)
    }

    async fn pass_on(&self, request: Request<wire::PassOnRequest>) -> Result<Response<wire::PassOnReply>, Status> {
        let who = self.participant(&request)?;
        self.take_share(who, request.into_inner()).await.map(Response::new)
    }

    async fn apply(&self, request: Request<wire::ApplyRequest>) -> Result<Response<wire::Sealed>, Status> {
        let peer = self.peer(&request)?;
        self.admit(&peer, request.into_inner()).await.map(Response::new)
    }

    async fn grants(&self, request: Request<wire::GrantsRequest>) -> Result<Response<wire::GrantsReply>, Status> {
        let who = self.node(&request)?;
        self.grants_of(who).await.map(Response::new)
    }

    async fn release(&self, request: Request<wire::ReleaseRequest>) -> Result<Response<wire::Sealed>, Status> {
        let who = self.node(&request)?;
        self.release_to(who, request.into_inner()).await.map(Response::new)
    }

    async fn lease(&self, request: Request<wire::LeaseRequest>) -> Result<Response<wire::LeaseReply>, Status> {
        let who = self.node(&request)?;
        self.lease_to(who, request.get_ref()).await.map(Response::new)
    }

    async fn give_back(
        &self,
        request: Request<wire::GiveBackRequest>,
    ) -> Result<Response<wire::GiveBackReply>, Status> {
        let who = self.node(&request)?;
        let token = request.get_ref().token;
        self.turn(move |turn| turn.give_back(&who, token)).await?;
        Ok(Response::new(wire::GiveBackReply {}))
    }

    async fn counter(&self, request: Request<wire::CounterRequest>) -> Result<Response<wire::CounterReply>, Status> {
        let who = self.node(&request)?;
        self.newest_of(who, request.into_inner()).await.map(Response::new)
    }

    async fn commit(&self, request: Request<wire::CommitRequest>) -> Result<Response<wire::CommitReply>, Status> {
        let who = self.node(&request)?;
        self.count_up(who, request.into_inner()).await.map(Response::new)
    }

    async fn note_export(
        &self,
        request: Request<wire::ExportNoteRequest>,
    ) -> Result<Response<wire::ExportNoteReply>, Status> {
        let who = self.node(&request)?;
        self.take_export(who, request.into_inner()).await.map(Response::new)
    }

    async fn witness(&self, request: Request<wire::WitnessRequest>) -> Result<Response<wire::WitnessReply>, Status> {
        let who = self.node(&request)?;
        self.hear(who, request.get_ref()).await.map(Response::new)
    }

    type BackupStream = ReceiverStream<Result<wire::BackupPiece, Status>>;

    async fn backup(&self, request: Request<wire::BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        self.participant(&request)?;
        self.copy_out().await.map(Response::new)
    }

    type WatchStream = ReceiverStream<Result<wire::WitnessReply, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<wire::WitnessRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.node(&request)?;
        let peer = self.peer(&request)?;
        Ok(Response::new(self.watched_by(peer, request.into_inner())))
    }

    async fn join(&self, request: Request<wire::JoinRequest>) -> Result<Response<wire::JoinReply>, Status> {
        let who = self.manager(&request)?;
        self.hand_over(&who, request.get_ref()).await.map(Response::new)
    }

    async fn take_part(
        &self,
        request: Request<wire::TakePartRequest>,
    ) -> Result<Response<wire::TakePartReply>, Status> {
        let who = self.manager(&request)?;
        self.let_take_part(&who, request.into_inner()).await.map(Response::new)
    }

    async fn replicate(
        &self,
        request: Request<wire::ReplicateRequest>,
    ) -> Result<Response<wire::ReplicateReply>, Status> {
        self.manager(&request)?;
        self.take_message(request.get_ref()).await.map(Response::new)
    }

    async fn audit(&self, request: Request<wire::AuditRequest>) -> Result<Response<wire::AuditReply>, Status> {
        let peer = self.peer(&request)?;
        if peer.permit().is_none() {
            self.participant(&request)?;
        }
        self.lines(request.get_ref()).await.map(Response::new)
    }
}
