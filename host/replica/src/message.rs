//! What replicas send each other, in CBOR: one message and its answer.

use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use openraft::{SnapshotMeta, Vote};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::ReplicaError;
use crate::member::{Member, Payload, Types};

/// Largest message: the largest batch, and what is around it.
pub const MAX_MESSAGE_BYTES: usize = cloister_manager::MAX_BATCH_BYTES + (64 << 10);
/// How deep a message may be nested.
const MAX_DEPTH: usize = 32;

/// A message, to one start of a replica.
#[derive(Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) to: u64,
    pub(crate) message: Message,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Message {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<u64>),
    Copy(CopyPart),
}

/// A part of a copy of the state.
#[derive(Serialize, Deserialize)]
pub(crate) struct CopyPart {
    vote: Vote<u64>,
    meta: SnapshotMeta<u64, Member>,
    offset: u64,
    data: Payload,
    done: bool,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Reply {
    Append(Result<AppendEntriesResponse<u64>, RaftError<u64>>),
    Vote(Result<VoteResponse<u64>, RaftError<u64>>),
    Copy(Result<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>>),
}

impl From<InstallSnapshotRequest<Types>> for CopyPart {
    fn from(request: InstallSnapshotRequest<Types>) -> Self {
        Self {
            vote: request.vote,
            meta: request.meta,
            offset: request.offset,
            data: Payload(request.data.into()),
            done: request.done,
        }
    }
}

impl From<CopyPart> for InstallSnapshotRequest<Types> {
    fn from(part: CopyPart) -> Self {
        Self {
            vote: part.vote,
            meta: part.meta,
            offset: part.offset,
            data: part.data.0.to_vec(),
            done: part.done,
        }
    }
}

/// The bytes of a message.
pub(crate) fn encode(message: &impl Serialize) -> Result<Vec<u8>, ReplicaError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).map_err(|error| ReplicaError::Message(error.to_string()))?;
    Ok(bytes)
}

/// A message out of its bytes; nothing may follow it.
pub(crate) fn decode<T: DeserializeOwned>(mut bytes: &[u8]) -> Result<T, ReplicaError> {
    let no = |why: String| ReplicaError::Message(why);
    if bytes.len() > MAX_MESSAGE_BYTES {
        return Err(no(format!(
            "{} bytes; at most {MAX_MESSAGE_BYTES} are taken",
            bytes.len()
        )));
    }
    let message =
        ciborium::de::from_reader_with_recursion_limit(&mut bytes, MAX_DEPTH).map_err(|error| no(error.to_string()))?;
    if bytes.is_empty() {
        Ok(message)
    } else {
        Err(no("something follows it".to_owned()))
    }
}
