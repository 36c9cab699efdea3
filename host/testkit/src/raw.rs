//! A member that says whatever a test wants it to say, over an attested connection of its own.

use bytes::Bytes;
use cloister_attestation::session::roster_report_data;
use cloister_rounds::{Layout, roster};
use cloister_session::{channel, connect};
use cloister_tensor::{Digest, TensorMap};
use cloister_wire::federation::federation_client::FederationClient;
use cloister_wire::federation::{self as wire, aggregator_message, member_message};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::world::{WorldNode, dial};

/// The two streams of a member's call.
pub struct RawMember {
    node: WorldNode,
    out: mpsc::Sender<wire::MemberMessage>,
    inbound: Streaming<wire::AggregatorMessage>,
    nonce: [u8; 32],
    aggregator: cloister_rounds::RosterEntry,
    challenge: [u8; 32],
}

impl RawMember {
    /// Connects as this node and joins.
    pub async fn join(node: &WorldNode, address: &str) -> Result<Self, Status> {
        let connection = connect(&node.local, &dial(address)).await.expect("an honest handshake");
        let cloister_attestation::PeerEvidence::Td(evidence) = connection.peer().evidence() else {
            panic!("no TD")
        };
        let aggregator = cloister_rounds::RosterEntry {
            node: evidence.node().to_owned(),
            claims_digest: evidence.claims_digest(),
            measurement_root: *evidence.measurement().root().as_bytes(),
        };
        let mut client = FederationClient::new(channel::channel(connection).await.unwrap())
            .max_decoding_message_size(8 << 20)
            .max_encoding_message_size(8 << 20);
        let (out, queue) = mpsc::channel(16);
        let nonce = [9; 32];
        let join = member_message::Body::Join(wire::Join {
            nonce: Bytes::copy_from_slice(&nonce),
        });
        out.send(wire::MemberMessage { body: Some(join) }).await.unwrap();
        let inbound = client.member(ReceiverStream::new(queue)).await?.into_inner();
        Ok(Self {
            node: node.clone(),
            out,
            inbound,
            nonce,
            aggregator,
            challenge: [0; 32],
        })
    }

    /// Sends.
    pub async fn say(&self, body: member_message::Body) {
        let _ = self.out.send(wire::MemberMessage { body: Some(body) }).await;
    }

    /// The next message but for waiting; `None` at the end.
    pub async fn hear(&mut self) -> Option<aggregator_message::Body> {
        loop {
            match self.inbound.message().await {
                Ok(Some(wire::AggregatorMessage {
                    body: Some(aggregator_message::Body::Waiting(_)),
                })) => {}
                Ok(Some(message)) => return message.body,
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Evidence over a challenge, of this node, with this quote's report data.
    pub async fn evidence(&self, epoch: u64, challenge: &[u8; 32]) -> wire::RosterEvidence {
        let identity = &self.node.side.identity;
        let report_data = roster_report_data(
            challenge,
            &Digest::of(&identity.claims),
            &identity.node.measurement.root(),
        );
        let quote = self.node.side.quotes.quote(report_data).await.unwrap();
        wire::RosterEvidence {
            epoch,
            node: identity.node.node.clone(),
            quote: quote.into(),
            claims: identity.claims.clone(),
            credential: identity.credential.clone(),
            event_log: identity.event_log.clone(),
        }
    }

    /// Hears the challenge: epoch and challenge.
    pub async fn challenged(&mut self) -> (u64, [u8; 32]) {
        let Some(aggregator_message::Body::RosterChallenge(challenge)) = self.hear().await else {
            panic!("no challenge")
        };
        let nonces: Vec<(String, [u8; 32])> = challenge
            .nonces
            .iter()
            .map(|nonce| (nonce.node.clone(), nonce.nonce.as_ref().try_into().unwrap()))
            .collect();
        assert!(nonces.iter().any(|(_, nonce)| *nonce == self.nonce));
        self.challenge = roster::challenge(challenge.epoch, &nonces).unwrap();
        (challenge.epoch, self.challenge)
    }

    /// Takes part in the roster as an honest member does.
    pub async fn roster(&mut self) {
        let (epoch, challenge) = self.challenged().await;
        let evidence = self.evidence(epoch, &challenge).await;
        self.say(member_message::Body::RosterEvidence(evidence)).await;
        let Some(aggregator_message::Body::Roster(roster)) = self.hear().await else {
            panic!("no roster")
        };
        let entries: Vec<_> = roster
            .members
            .iter()
            .map(|member| {
                let claims = cloister_attestation::Claims::parse(&member.claims).unwrap();
                cloister_rounds::RosterEntry {
                    node: member.node.clone(),
                    claims_digest: claims.digest(),
                    measurement_root: *claims.node.measurement.root().as_bytes(),
                }
            })
            .collect();
        let digest = roster::digest(epoch, &self.challenge, &self.aggregator, &entries).unwrap();
        let accepted = wire::RosterAccepted {
            epoch,
            roster_digest: Bytes::copy_from_slice(digest.as_bytes()),
        };
        self.say(member_message::Body::RosterAccepted(accepted)).await;
    }

    /// Hears a round's start and the model behind it; gives the start.
    pub async fn round(&mut self) -> wire::RoundStart {
        let start = loop {
            match self.hear().await {
                Some(aggregator_message::Body::RoundStart(start)) => break start,
                Some(_) => {}
                None => panic!("the call ended before a round"),
            }
        };
        let bytes: u64 = start
            .manifest
            .iter()
            .flat_map(|manifest| &manifest.entries)
            .map(|entry| 4 * entry.shape.iter().product::<u64>())
            .sum();
        let mut received = 0;
        while received < bytes {
            let Some(aggregator_message::Body::ModelChunk(chunk)) = self.hear().await else {
                panic!("no model")
            };
            received += chunk.data.len() as u64;
        }
        start
    }

    /// Announces an update with these tensors.
    pub async fn announce(&self, round: u64, attempt: u32, rows: u64, update: &TensorMap) {
        let entries = update.iter().map(|(name, tensor)| wire::ManifestEntry {
            name: name.clone(),
            dtype: tensor.dtype().name().to_owned(),
            shape: tensor.shape().dims().iter().map(|&d| d as u64).collect(),
        });
        let digest = Layout::model_digest(update).unwrap();
        let ready = wire::UpdateReady {
            round,
            attempt,
            rows,
            manifest: Some(wire::Manifest {
                entries: entries.collect(),
            }),
            digest: Bytes::copy_from_slice(digest.as_bytes()),
            metrics: Vec::new(),
            train_s: 0.0,
        };
        self.say(member_message::Body::UpdateReady(ready)).await;
    }

    /// Waits for the grant.
    pub async fn granted(&mut self) {
        while let Some(body) = self.hear().await {
            if matches!(body, aggregator_message::Body::Grant(_)) {
                return;
            }
            assert!(
                !matches!(body, aggregator_message::Body::Dropped(_)),
                "dropped instead of granted: {body:?}"
            );
        }
        panic!("the call ended before a grant");
    }

    /// Sends bytes of an update.
    pub async fn chunk(&self, data: impl Into<Bytes>) {
        self.say(member_message::Body::UpdateChunk(wire::Chunk { data: data.into() }))
            .await;
    }

    /// Sends a whole update.
    pub async fn upload(&self, update: &TensorMap) {
        let whole: Vec<u8> = update.values().flat_map(|tensor| tensor.bytes().to_vec()).collect();
        self.chunk(whole).await;
    }

    /// Reads until the aggregator drops this member; gives code and reason.
    pub async fn dropped(&mut self) -> (String, String) {
        while let Some(body) = self.hear().await {
            if let aggregator_message::Body::Dropped(dropped) = body {
                return (dropped.code, dropped.reason);
            }
        }
        panic!("the call ended without a word");
    }
}
