//! What participants ask of a manager: agreement, secrets, recovery, the log.

use cloister_manager::{Equivocation, Manager, PolicyStanding, PolicyStatus, Refused, SealedBox};
use cloister_policy::{Policy, Signatures, TensorAccess, Visit};
use cloister_tensor::Digest;
use cloister_wire::manager as wire;
use tonic::{Code, Status};

use super::{ManagerService, refused, word, wrong};
use crate::manager::convert;

/// Most lines of the audit log that are told at once; a line has at most 64 KiB, a message 4 MiB.
const MAX_LINES: usize = 1000;
/// Bytes of lines after which no further one is told.
const MAX_LINES_BYTES: usize = 2 << 20;
/// Longest policy and longest file of signatures, in bytes.
const MAX_POLICY_BYTES: usize = 1 << 20;

impl ManagerService {
    pub(super) async fn tell_status(&self) -> Result<wire::StatusReply, Status> {
        let mut reply = self.standing.status();
        if reply.phase == crate::manager::standing::RUNNING {
            let (policies, equivocations, mark) = self
                .look(|manager| {
                    let chain = manager.history().iter();
                    let in_force = chain.filter_map(|file| manager.status(&file.policy.digest()));
                    let policies = in_force.chain(manager.proposals());
                    let policies: Vec<_> = policies.map(|status| standing(&status)).collect();
                    let told: Vec<_> = manager.equivocations().iter().map(in_words).collect();
                    (policies, told, manager.mark())
                })
                .await?;
            reply.policies = policies;
            reply.equivocations = equivocations;
            reply.mark = convert::mark_bytes(Some(&mark));
        }
        Ok(reply)
    }

    /// Takes a policy and each signature under it that counts.
    pub(super) async fn take_policy(&self, request: wire::PublishRequest) -> Result<wire::PublishReply, Status> {
        if request.policy.len().max(request.signatures.len()) > MAX_POLICY_BYTES {
            return Err(wrong(format!(
                "a policy, and its signatures, have at most {MAX_POLICY_BYTES} bytes each"
            )));
        }
        let policy = Policy::parse(&request.policy, "the policy").map_err(|error| wrong(error.to_string()))?;
        let signatures =
            Signatures::parse(&request.signatures, "its signatures").map_err(|error| wrong(error.to_string()))?;
        let digest = policy.digest();
        let bytes = request.policy;
        let (taken, _) = self
            .turn(move |turn| {
                let (mut taken, mut last) = (0, None);
                for signature in signatures.iter() {
                    let signed = match turn.sign(digest, signature.clone()) {
                        Err(Refused::UnknownPolicy(_)) => turn.propose(&bytes, signature.clone()),
                        signed => signed,
                    };
                    match signed {
                        Ok(_) => taken += 1,
                        Err(error) => last = Some(error),
                    }
                }
                match last {
                    // What counted stays; what did not is told if it was all there was.
                    Some(error) if taken == 0 => Err(error),
                    _ => Ok(taken),
                }
            })
            .await?;
        self.standing.look_for_change().await?;
        let standing = self.look(move |manager| status_of(manager, &digest)).await?;
        Ok(wire::PublishReply { standing, taken })
    }

    pub(super) async fn put(
        &self,
        who: Visit,
        request: wire::PutSecretRequest,
    ) -> Result<wire::PutSecretReply, Status> {
        let secret = convert::new_secret(request).map_err(wrong)?;
        let (info, _) = self.turn(move |turn| turn.put(&who, secret)).await?;
        Ok(wire::PutSecretReply {
            secret: Some(convert::secret(&info)),
        })
    }

    pub(super) async fn list(&self, who: Visit) -> Result<wire::ListSecretsReply, Status> {
        let infos = self.look(move |manager| manager.secrets(&who)).await?;
        let infos = infos.map_err(|error| refused(&error))?;
        Ok(wire::ListSecretsReply {
            secrets: infos.iter().map(convert::secret).collect(),
        })
    }

    pub(super) async fn remove(&self, who: Visit, id: &str) -> Result<wire::RemoveSecretReply, Status> {
        let id = convert::secret_id(id).map_err(wrong)?;
        if who.participant() != Some(id.owner.as_str()) {
            return Err(wrong(format!("{id} is another participant's; each removes its own")));
        }
        self.turn(move |turn| turn.remove(&who, &id.name)).await?;
        Ok(wire::RemoveSecretReply {})
    }

    pub(super) async fn take_consent(
        &self,
        who: Visit,
        request: &wire::ConsentRequest,
    ) -> Result<wire::ConsentReply, Status> {
        let module = convert::digest(&request.module, "the digest of a module").map_err(wrong)?;
        let access = TensorAccess::ALL
            .into_iter()
            .find(|access| access.as_str() == request.access);
        if access.is_none() && !request.access.is_empty() {
            return Err(wrong("the access is read, write, read-write or handles".to_owned()));
        }
        self.turn(move |turn| turn.consent(&who, module, access)).await?;
        Ok(wire::ConsentReply {})
    }

    pub(super) fn own_share(&self, who: &Visit) -> Result<wire::ShareReply, Status> {
        let participant = who.participant().unwrap_or_default();
        let (share, recipient) = self.standing.share_of(participant)?;
        Ok(wire::ShareReply {
            share: serde_json::to_vec(&share).unwrap_or_default().into(),
            recipient: bytes::Bytes::copy_from_slice(recipient.as_bytes()),
        })
    }

    pub(super) async fn take_share(
        &self,
        who: Visit,
        request: wire::PassOnRequest,
    ) -> Result<wire::PassOnReply, Status> {
        let sealed = SealedBox::from_bytes(&request.sealed).map_err(|error| wrong(error.to_string()))?;
        let phase = self.standing.take_share(&who, &sealed).await?;
        Ok(wire::PassOnReply {
            phase: phase.to_owned(),
        })
    }

    pub(super) async fn lines(&self, request: &wire::AuditRequest) -> Result<wire::AuditReply, Status> {
        let (from, count) = (request.from, (request.count as usize).min(MAX_LINES));
        let (lines, checkpoint) = self
            .look(move |manager| {
                let checkpoint = manager.checkpoint().map(|checkpoint| checkpoint.to_text());
                (manager.lines(from, count), checkpoint.unwrap_or_default())
            })
            .await?;
        let mut lines = lines.map_err(|error| {
            tracing::error!(%error, "reading the audit log");
            word("store", Code::Internal, "the manager's store failed; its log says why")
        })?;
        let mut bytes = 0;
        lines.retain(|line| {
            bytes += line.len();
            bytes <= MAX_LINES_BYTES
        });
        Ok(wire::AuditReply { lines, checkpoint })
    }
}

fn status_of(manager: &Manager, digest: &Digest) -> Option<wire::PolicyStanding> {
    manager.status(digest).map(|status| standing(&status))
}

fn in_words(equivocation: &Equivocation) -> String {
    let Equivocation {
        participant,
        public_key,
        first,
        second,
        ..
    } = equivocation;
    format!(
        "{participant} (key {public_key}) signed {} and {}, of which only one can take effect",
        first.0, second.0
    )
}

/// Who signed, and who did not.
fn standing(status: &PolicyStatus) -> wire::PolicyStanding {
    let (mut signed, mut missing) = (Vec::new(), Vec::new());
    let word = match &status.standing {
        PolicyStanding::InForce => "in-force",
        PolicyStanding::Superseded => "superseded",
        PolicyStanding::Proposed(ballot) => {
            let before = ballot.before.iter().flat_map(|tally| &tally.votes);
            for vote in ballot.own.votes.iter().chain(before) {
                let list = match vote.standing {
                    cloister_policy::Standing::Signed => &mut signed,
                    _ => &mut missing,
                };
                if !list.contains(&vote.participant) {
                    list.push(vote.participant.clone());
                }
            }
            "proposed"
        }
    };
    wire::PolicyStanding {
        digest: convert::bytes_of(&status.digest),
        version: status.version,
        standing: word.to_owned(),
        signed,
        missing,
    }
}
