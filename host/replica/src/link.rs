//! How replicas reach each other.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use openraft::error::{
    InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, RemoteError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};

use crate::member::{Member, Types};
use crate::message::{Envelope, MAX_MESSAGE_BYTES, Message, Reply, decode, encode};

/// An answer that is on its way.
pub type Sent = Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>>;

/// Sends messages to other replicas: over attested sessions in which each end has verified that the other is a manager of the
/// policy. A message that is not answered may be lost, late, or repeated.
pub trait Links: Send + Sync + 'static {
    /// Sends one message to a replica, and waits for its answer.
    fn send(&self, to: &Member, message: Vec<u8>) -> Sent;
}

/// openraft's way to the links.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) links: Arc<dyn Links>,
    pub(crate) own: u64,
}

/// To one start of one replica.
pub(crate) struct Way {
    links: Arc<dyn Links>,
    own: u64,
    to: u64,
    member: Member,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: u64, node: &Member) -> Way {
        Way {
            links: Arc::clone(&self.links),
            own: self.own,
            to: target,
            member: node.clone(),
        }
    }
}

type Failed<E> = RPCError<u64, Member, E>;

impl Way {
    async fn ask<E: std::error::Error>(
        &self,
        bytes: Vec<u8>,
        (kind, option): (RPCTypes, RPCOption),
    ) -> Result<Reply, Failed<E>> {
        let patience = option.hard_ttl();
        let unreachable = |why: String| RPCError::Unreachable(Unreachable::new(&io::Error::other(why)));
        match tokio::time::timeout(patience, self.links.send(&self.member, bytes)).await {
            Err(_) => Err(RPCError::Timeout(Timeout {
                action: kind,
                id: self.own,
                target: self.to,
                timeout: patience,
            })),
            Ok(Err(why)) => Err(unreachable(why)),
            Ok(Ok(bytes)) => decode(&bytes).map_err(|error| RPCError::Network(NetworkError::new(&error))),
        }
    }

    fn bytes<E: std::error::Error>(&self, message: Message) -> Result<Vec<u8>, Failed<E>> {
        let envelope = Envelope { to: self.to, message };
        encode(&envelope).map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }

    fn remote<E: std::error::Error>(&self, error: E) -> Failed<E> {
        RPCError::RemoteError(RemoteError::new(self.to, error))
    }
}

fn other<E: std::error::Error>() -> Failed<E> {
    let error = io::Error::other("the answer is to something else");
    RPCError::Network(NetworkError::new(&error))
}

impl RaftNetwork<Types> for Way {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed<RaftError<u64>>> {
        let entries = request.entries.len();
        let bytes = self.bytes(Message::Append(request))?;
        if bytes.len() > MAX_MESSAGE_BYTES && entries > 1 {
            let fewer = (entries / 2) as u64;
            return Err(RPCError::PayloadTooLarge(PayloadTooLarge::new_entries_hint(fewer)));
        }
        match self.ask(bytes, (RPCTypes::AppendEntries, option)).await? {
            Reply::Append(reply) => reply.map_err(|error| self.remote(error)),
            _ => Err(other()),
        }
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<RaftError<u64, InstallSnapshotError>>> {
        let bytes = self.bytes(Message::Copy(request.into()))?;
        match self.ask(bytes, (RPCTypes::InstallSnapshot, option)).await? {
            Reply::Copy(reply) => reply.map_err(|error| self.remote(error)),
            _ => Err(other()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed<RaftError<u64>>> {
        let bytes = self.bytes(Message::Vote(request))?;
        match self.ask(bytes, (RPCTypes::Vote, option)).await? {
            Reply::Vote(reply) => reply.map_err(|error| self.remote(error)),
            _ => Err(other()),
        }
    }
}
