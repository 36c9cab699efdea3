//! The dialling end's calls: participants' and nodes'.

use bytes::Bytes;
use cloister_manager::{
    Commit, ExportNote, Lease, Mark, NewSecret, ReleaseRequest, RoundNote, SealedBox, SealedRelease, SealingPublicKey,
    SecretId, SecretInfo, Step,
};
use cloister_session::{AttestedConnection, Peer, channel};
use cloister_tensor::Digest;
use cloister_wire::MAX_MESSAGE_BYTES;
use cloister_wire::manager as wire;
use cloister_wire::manager::manager_client::ManagerClient;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Streaming};

use super::convert::{self, Wrong};
use super::error::ManagerError;

type Answer<T> = Result<Response<T>, tonic::Status>;

/// gRPC to a manager over one attested connection.
#[derive(Clone, Debug)]
pub struct Client {
    inner: ManagerClient<Channel>,
    peer: Peer,
}

/// What a TD shows that applies for its credential.
pub struct Application {
    /// A quote over this connection, the claims and the recipient's key.
    pub quote: Vec<u8>,
    /// Who it wants to be, and what it runs.
    pub claims: Bytes,
    /// The log of RTMR3; empty without one.
    pub event_log: Bytes,
    /// Its key for this one request.
    pub recipient: SealingPublicKey,
}

/// What a manager would give a node.
#[derive(Debug)]
pub struct Grants {
    /// The secrets, without their values.
    pub secrets: Vec<SecretInfo>,
    /// Every module that is sealed, by name, with the digest of its sealed file.
    pub sealed_modules: Vec<(String, Digest)>,
}

/// A participant's sealed share, and the key that it is to be passed on to.
#[derive(Debug)]
pub struct OwnShare {
    /// The share as the manager keeps it: `SealedShare` as JSON.
    pub share: Vec<u8>,
    /// Key of the manager's TD, of this start of it.
    pub recipient: SealingPublicKey,
}

impl Client {
    /// Starts HTTP/2 on the connection.
    pub async fn new(connection: AttestedConnection) -> Result<Self, ManagerError> {
        let peer = connection.peer().clone();
        let inner = ManagerClient::new(channel::channel(connection).await?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { inner, peer })
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What the manager knows and waits for.
    pub async fn status(&mut self) -> Result<wire::StatusReply, ManagerError> {
        answer("its status", self.inner.status(wire::StatusRequest {}).await)
    }

    /// Brings a policy and signatures under it.
    pub async fn publish(&mut self, policy: Vec<u8>, signatures: Vec<u8>) -> Result<wire::PublishReply, ManagerError> {
        let request = wire::PublishRequest {
            policy: policy.into(),
            signatures: signatures.into(),
        };
        answer("a policy", self.inner.publish(request).await)
    }

    /// Puts a secret, new or in the place of an older one.
    pub async fn put_secret(&mut self, secret: NewSecret) -> Result<SecretInfo, ManagerError> {
        let reply = answer("a secret", self.inner.put_secret(convert::put(secret)).await)?;
        valid("a secret", convert::info(&reply.secret.unwrap_or_default()))
    }

    /// The participant's own secrets.
    pub async fn list_secrets(&mut self) -> Result<Vec<SecretInfo>, ManagerError> {
        let reply = answer(
            "a list of secrets",
            self.inner.list_secrets(wire::ListSecretsRequest {}).await,
        )?;
        infos(&reply.secrets)
    }

    /// Removes a secret.
    pub async fn remove_secret(&mut self, id: &SecretId) -> Result<(), ManagerError> {
        let request = wire::RemoveSecretRequest { id: id.to_string() };
        answer("the removal of a secret", self.inner.remove_secret(request).await).map(|_| ())
    }

    /// Consents to what a sealed module may do, or with no access takes that back.
    pub async fn consent(&mut self, module: &Digest, access: &str) -> Result<(), ManagerError> {
        let request = wire::ConsentRequest {
            module: convert::bytes_of(module),
            access: access.to_owned(),
        };
        answer("consent", self.inner.consent(request).await).map(|_| ())
    }

    /// Asks for the credential that the participant left for this TD.
    pub async fn apply(&mut self, application: Application) -> Result<SealedRelease, ManagerError> {
        let request = wire::ApplyRequest {
            quote: application.quote.into(),
            claims: application.claims,
            event_log: application.event_log,
            recipient: Bytes::copy_from_slice(application.recipient.as_bytes()),
        };
        let reply = answer("this node's credential", self.inner.apply(request).await)?;
        sealed(&reply).map(|(sealed, _)| sealed)
    }

    /// What this node may ask for.
    pub async fn grants(&mut self) -> Result<Grants, ManagerError> {
        let reply = answer("what it grants", self.inner.grants(wire::GrantsRequest {}).await)?;
        let module = |module: &wire::SealedModule| {
            Ok((
                module.module.clone(),
                convert::digest(&module.ciphertext, "the digest of a sealed file")?,
            ))
        };
        let modules: Result<_, Wrong> = reply.sealed_modules.iter().map(module).collect();
        Ok(Grants {
            secrets: infos(&reply.secrets)?,
            sealed_modules: valid("a list of sealed modules", modules)?,
        })
    }

    /// Asks for keys, sealed to the key in the request.
    pub async fn release(&mut self, request: &ReleaseRequest) -> Result<(SealedRelease, Option<Mark>), ManagerError> {
        let request = wire::ReleaseRequest {
            sequence: request.sequence,
            recipient: Bytes::copy_from_slice(request.recipient.as_bytes()),
            wanted: request.wanted.iter().map(convert::wanted_bytes).collect(),
        };
        sealed(&answer("keys", self.inner.release(request).await)?)
    }

    /// Takes or renews this instance's lease; gives for how many seconds it is, too.
    pub async fn lease(&mut self, instance: &[u8; 16]) -> Result<(Lease, u64, Option<Mark>), ManagerError> {
        let request = wire::LeaseRequest {
            instance: Bytes::copy_from_slice(instance),
        };
        let reply = answer("a lease", self.inner.lease(request).await)?;
        let lease = Lease {
            token: reply.token,
            expires_unix_s: reply.expires_unix_s,
        };
        Ok((lease, reply.lease_s, valid("a mark", convert::mark(&reply.mark))?))
    }

    /// Ends this instance's lease.
    pub async fn give_back(&mut self, token: u64) -> Result<(), ManagerError> {
        answer(
            "a lease back",
            self.inner.give_back(wire::GiveBackRequest { token }).await,
        )
        .map(|_| ())
    }

    /// The newest version of a vault that was confirmed.
    pub async fn counter(&mut self, vault: &[u8; 16], holds: Option<&Commit>) -> Result<Option<Commit>, ManagerError> {
        let request = wire::CounterRequest {
            vault: Bytes::copy_from_slice(vault),
            holds: convert::version_bytes(holds),
        };
        let reply = answer("a counter", self.inner.counter(request).await)?;
        valid("a counter", convert::version(reply.newest.as_ref()))
    }

    /// Has the manager write down that a model leaves.
    pub async fn note_export(&mut self, export: &ExportNote) -> Result<Option<Mark>, ManagerError> {
        let request = wire::ExportNoteRequest {
            to: export.to.clone(),
            round: export.round,
            model: convert::bytes_of(&export.model),
        };
        let reply = answer("an export", self.inner.note_export(request).await)?;
        valid("a mark", convert::mark(&reply.mark))
    }

    /// Counts a vault up, and tells the round that is sealed by it.
    pub async fn commit(
        &mut self,
        vault: &[u8; 16],
        step: &Step,
        round: Option<&RoundNote>,
    ) -> Result<Option<Mark>, ManagerError> {
        let request = wire::CommitRequest {
            vault: Bytes::copy_from_slice(vault),
            token: step.token,
            expected: convert::version_bytes(step.expected.as_ref()),
            next: convert::version_bytes(Some(&step.next)),
            round: round.map(convert::round_bytes),
        };
        let reply = answer("a commit", self.inner.commit(request).await)?;
        valid("a mark", convert::mark(&reply.mark))
    }

    /// Says what was seen of the manager's state; gives whether it runs, and then where it stands.
    pub async fn witness(&mut self, newest: Option<&Mark>) -> Result<(bool, Option<Mark>), ManagerError> {
        let request = wire::WitnessRequest {
            mark: convert::mark_bytes(newest),
        };
        let reply = answer("a witness's statement", self.inner.witness(request).await)?;
        Ok((
            reply.phase == super::standing::RUNNING,
            valid("a mark", convert::mark(&reply.mark))?,
        ))
    }

    /// Watches the states that the manager announces; what the node remembers goes there by `saw`.
    pub async fn watch(&mut self, saw: mpsc::Receiver<Mark>) -> Result<Watched, ManagerError> {
        let said = ReceiverStream::new(saw).map(|mark| wire::WitnessRequest {
            mark: convert::mark_bytes(Some(&mark)),
        });
        answer("the states of the manager", self.inner.watch(said).await).map(Watched)
    }

    /// The participant's recovery share, sealed to it.
    pub async fn share(&mut self) -> Result<OwnShare, ManagerError> {
        let reply = answer("a recovery share", self.inner.share(wire::ShareRequest {}).await)?;
        Ok(OwnShare {
            share: reply.share.to_vec(),
            recipient: valid("its key", convert::recipient(&reply.recipient))?,
        })
    }

    /// Passes the opened share on to the manager's TD; gives what the manager then is.
    pub async fn pass_on(&mut self, sealed: &SealedBox) -> Result<String, ManagerError> {
        let request = wire::PassOnRequest {
            sealed: sealed.to_bytes().into(),
        };
        Ok(answer("a recovery share", self.inner.pass_on(request).await)?.phase)
    }

    /// Another manager asks the one that leads for the state's key; gives what it sent.
    pub async fn join(&mut self, recipient: &SealingPublicKey) -> Result<wire::JoinReply, ManagerError> {
        let request = wire::JoinRequest {
            recipient: Bytes::copy_from_slice(recipient.as_bytes()),
        };
        answer("the state's key", self.inner.join(request).await)
    }

    /// It asks to take part.
    pub async fn take_part(&mut self, replica: u64, address: &str) -> Result<(), ManagerError> {
        let address = address.to_owned();
        let request = wire::TakePartRequest { replica, address };
        answer("a replica", self.inner.take_part(request).await).map(|_| ())
    }

    /// Brings a message of another replica, and gives the answer.
    pub async fn replicate(&mut self, message: Vec<u8>) -> Result<Bytes, ManagerError> {
        let message = message.into();
        let request = wire::ReplicateRequest { message };
        Ok(answer("a message between managers", self.inner.replicate(request).await)?.message)
    }

    /// A copy of the sealed state, piece by piece, into `sink`; gives its length.
    pub async fn backup(&mut self, sink: &mut impl std::io::Write) -> Result<u64, ManagerError> {
        let what = "a backup";
        let mut pieces = answer(what, self.inner.backup(wire::BackupRequest {}).await)?;
        let (mut got, mut length) = (0, 0);
        while let Some(piece) = pieces
            .message()
            .await
            .map_err(|status| ManagerError::call(what, &status))?
        {
            got += piece.piece.len() as u64;
            length = piece.length;
            let kept = sink.write_all(&piece.piece);
            kept.map_err(|error| ManagerError::Ended(format!("the backup can't be written: {error}")))?;
        }
        if got == 0 || got != length {
            let cause = format!("{got} bytes of {length} came");
            return Err(ManagerError::Message { what, cause });
        }
        Ok(length)
    }

    /// Lines of the audit log, and its newest checkpoint.
    pub async fn audit(&mut self, from: u64, count: u32) -> Result<wire::AuditReply, ManagerError> {
        answer(
            "its audit log",
            self.inner.audit(wire::AuditRequest { from, count }).await,
        )
    }
}

/// The states that a manager announces.
#[derive(Debug)]
pub struct Watched(Streaming<wire::WitnessReply>);

impl Watched {
    /// The next one.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn next(&mut self) -> Result<Mark, ManagerError> {
        let ended = || ManagerError::Ended("it announces nothing more".to_owned());
        let what = "a mark";
        let next = self
            .0
            .message()
            .await
            .map_err(|status| ManagerError::call(what, &status))?;
        let mark = valid(what, convert::mark(&next.ok_or_else(ended)?.mark))?;
        mark.ok_or_else(ended)
    }
}

fn answer<T>(what: &'static str, answer: Answer<T>) -> Result<T, ManagerError> {
    answer
        .map(Response::into_inner)
        .map_err(|status| ManagerError::call(what, &status))
}

fn valid<T>(what: &'static str, read: Result<T, Wrong>) -> Result<T, ManagerError> {
    read.map_err(|cause| ManagerError::Message { what, cause })
}

fn infos(secrets: &[wire::Secret]) -> Result<Vec<SecretInfo>, ManagerError> {
    valid("a list of secrets", secrets.iter().map(convert::info).collect())
}

fn sealed(reply: &wire::Sealed) -> Result<(SealedRelease, Option<Mark>), ManagerError> {
    let read = SealedBox::from_bytes(&reply.sealed).map_err(|error| error.to_string());
    let sealed = SealedRelease {
        sequence: reply.sequence,
        sealed: valid("sealed keys", read)?,
    };
    Ok((sealed, valid("a mark", convert::mark(&reply.mark))?))
}
