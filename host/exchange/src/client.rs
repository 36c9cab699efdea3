//! The dialling end's calls: join, fetch, list, submit.

use bytes::Bytes;
use cloister_attestation::identity::SigningKey;
use cloister_attestation::time;
use cloister_session::{AttestedConnection, Peer, channel};
use cloister_tensor::Digest;
use cloister_wire::federation as wire;
use cloister_wire::federation::federation_client::FederationClient;
use cloister_wire::{MAX_CHUNK_BYTES, MAX_MESSAGE_BYTES};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::content::{Submission, submission_bytes};
use crate::convert;
use crate::error::ExchangeError;

/// Chunks that wait to be sent.
const SEND_QUEUE: usize = 4;

/// gRPC to a node over one attested connection.
#[derive(Clone, Debug)]
pub struct Client {
    inner: FederationClient<Channel>,
    peer: Peer,
}

/// What a node's content store says of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedContent {
    /// `module`, `graph` or `weights`.
    pub kind: String,
    /// As the policy names it.
    pub name: String,
    /// SHA-256.
    pub digest: Digest,
    /// Bytes, 0 while absent.
    pub length: u64,
    /// Whether it is there.
    pub present: bool,
    /// Who submitted it, empty while absent.
    pub participant: String,
}

impl Client {
    /// Starts HTTP/2 on the connection.
    pub async fn new(connection: AttestedConnection) -> Result<Self, ExchangeError> {
        let peer = connection.peer().clone();
        let inner = FederationClient::new(channel::channel(connection).await?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { inner, peer })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Opens the call of this member.
    pub(crate) async fn member(
        &mut self,
        node: &str,
        messages: mpsc::Receiver<wire::MemberMessage>,
    ) -> Result<tonic::Streaming<wire::AggregatorMessage>, ExchangeError> {
        let answer = self.inner.member(ReceiverStream::new(messages)).await;
        let refused = |status: tonic::Status| match wire::OtherInstance::decode(status.details()) {
            Ok(other) if status.code() == tonic::Code::AlreadyExists => ExchangeError::OtherInstance {
                node: node.to_owned(),
                since: time::format(other.since_unix_s),
            },
            _ => ExchangeError::call("joining", &status),
        };
        Ok(answer.map_err(refused)?.into_inner())
    }

    /// What the content store holds and what it still wants.
    pub async fn list(&mut self) -> Result<Vec<ListedContent>, ExchangeError> {
        let answer = self.inner.list(wire::ListRequest {}).await;
        let entries = answer
            .map_err(|status| ExchangeError::call("listing the content", &status))?
            .into_inner()
            .entries;
        let listed = |entry: wire::ContentEntry| {
            Ok(ListedContent {
                kind: convert::tame(&entry.kind),
                name: convert::tame(&entry.name),
                digest: convert::digest(&entry.digest, "a list of content")?,
                length: entry.length,
                present: entry.present,
                participant: convert::tame(&entry.participant),
            })
        };
        entries.into_iter().map(listed).collect()
    }

    /// Fetches one object of at most `limit_bytes`; what comes back has this digest.
    pub async fn fetch(&mut self, digest: &Digest, limit_bytes: u64) -> Result<Bytes, ExchangeError> {
        let what = || format!("fetching {digest}");
        let request = wire::FetchRequest {
            digest: convert::digest_bytes(digest),
        };
        let answer = self
            .inner
            .fetch(request)
            .await
            .map_err(|status| ExchangeError::call(what(), &status))?;
        let mut chunks = answer.into_inner();
        let mut content = Vec::new();
        while let Some(chunk) = chunks
            .message()
            .await
            .map_err(|status| ExchangeError::call(what(), &status))?
        {
            if (content.len() + chunk.data.len()) as u64 > limit_bytes {
                let cause = format!("more than {limit_bytes} bytes");
                return Err(ExchangeError::Message { what: "content", cause });
            }
            content.extend_from_slice(&chunk.data);
        }
        let seen = Digest::of(&content);
        if seen != *digest {
            let (seen, wanted) = (seen.to_string(), digest.to_string());
            return Err(ExchangeError::Digest {
                what: "content".to_owned(),
                seen,
                wanted,
            });
        }
        Ok(content.into())
    }

    /// Submits an object as a participant. Gives whether it was new there.
    pub async fn submit(
        &mut self,
        submission: &Submission<'_>,
        key: &SigningKey,
        content: Bytes,
    ) -> Result<bool, ExchangeError> {
        let digest = Digest::of(&content);
        let signature = key.sign(&submission_bytes(submission, &digest));
        let header = wire::SubmitHeader {
            kind: submission.kind.as_str().to_owned(),
            name: submission.name.to_owned(),
            digest: convert::digest_bytes(&digest),
            length: content.len() as u64,
            participant: submission.participant.to_owned(),
            signature: Bytes::copy_from_slice(&signature),
        };
        let (sender, receiver) = mpsc::channel(SEND_QUEUE);
        let feed = async move {
            let part = |body| wire::SubmitPart { body: Some(body) };
            let mut parts = vec![part(wire::submit_part::Body::Header(header))];
            let mut rest = content;
            while !rest.is_empty() {
                let data = rest.split_to(rest.len().min(MAX_CHUNK_BYTES));
                parts.push(part(wire::submit_part::Body::Chunk(wire::Chunk { data })));
            }
            for part in parts {
                if sender.send(part).await.is_err() {
                    return; // the peer has answered already: its answer says why
                }
            }
        };
        let what = || {
            format!(
                "submitting {} {:?} ({digest})",
                submission.kind.as_str(),
                submission.name
            )
        };
        let (answer, ()) = tokio::join!(self.inner.submit(ReceiverStream::new(receiver)), feed);
        Ok(answer
            .map_err(|status| ExchangeError::call(what(), &status))?
            .into_inner()
            .stored)
    }
}
