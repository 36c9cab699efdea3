//! What nodes ask of a manager: credential, keys, leases, counters; and what they say of it.

use std::sync::Arc;

use cloister_attestation::session::applicant_report_data;
use cloister_attestation::{Claims, verify_applicant};
use cloister_manager::{CounterId, ExportNote, ReleaseRequest, SealedRelease, Step};
use cloister_policy::Permit;
use cloister_session::Peer;
use cloister_wire::manager as wire;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{ManagerService, refused, word, wrong};
use crate::manager::convert;
use crate::manager::standing::RUNNING;

/// Most bytes of a quote.
const MAX_QUOTE_BYTES: usize = 16 * 1024;

impl ManagerService {
    /// Judges a TD that shows no credential, and seals its own to it.
    pub(super) async fn admit(&self, peer: &Peer, request: wire::ApplyRequest) -> Result<wire::Sealed, Status> {
        if peer.permit().is_some() {
            let text = "who shows a credential needs none";
            return Err(word("has-credential", Code::PermissionDenied, text));
        }
        let recipient = convert::recipient(&request.recipient).map_err(wrong)?;
        if request.quote.len() > MAX_QUOTE_BYTES {
            return Err(wrong(format!(
                "a quote of {} bytes, at most {MAX_QUOTE_BYTES} are taken",
                request.quote.len()
            )));
        }
        let claims = Claims::parse(&request.claims).map_err(|error| wrong(error.to_string()))?;
        let connection = *peer.connection();
        let root = claims.node.measurement.root();
        let report_data = applicant_report_data(&connection, &claims.digest(), &root, recipient.as_bytes());
        let (policy, verifier, now) = (Arc::clone(&self.policy), Arc::clone(&self.verifier), (self.clock)());
        let _turn = self.verifying.acquire().await;
        let who = claims.node.node.clone();
        let judged = tokio::task::spawn_blocking(move || {
            let applicant = verify_applicant(&request.quote, claims, &request.event_log, &report_data, &verifier, now)?;
            policy.admit(&applicant, connection, now)
        });
        let admission = match judged.await {
            Ok(Ok(admission)) => admission,
            Ok(Err(refusal)) => {
                let reason = refusal.to_string();
                let told = reason.clone();
                let what = json!({ "node": who, "reason": reason });
                self.turn(move |turn| turn.note("applicant-refused", what)).await?;
                return Err(word("evidence", Code::PermissionDenied, &told));
            }
            Err(_) => return Err(Status::internal("the verification failed")),
        };
        let request = ReleaseRequest {
            sequence: 1,
            recipient,
            wanted: Vec::new(),
        };
        let (sealed, mark) = self
            .turn(move |turn| turn.release_credential(&admission, &request))
            .await?;
        Ok(answer(&sealed, &mark))
    }

    pub(super) async fn grants_of(&self, who: Permit) -> Result<wire::GrantsReply, Status> {
        let now = (self.clock)();
        let (granted, sealed) = self
            .look(move |manager| (manager.grants(&who, now), manager.sealed_modules()))
            .await?;
        let granted = granted.map_err(|error| refused(&error))?;
        let module = |(module, ciphertext): &(String, cloister_tensor::Digest)| wire::SealedModule {
            module: module.clone(),
            ciphertext: convert::bytes_of(ciphertext),
        };
        Ok(wire::GrantsReply {
            secrets: granted.iter().map(convert::secret).collect(),
            sealed_modules: sealed.iter().map(module).collect(),
        })
    }

    pub(super) async fn release_to(&self, who: Permit, request: wire::ReleaseRequest) -> Result<wire::Sealed, Status> {
        let wanted: Result<Vec<_>, _> = request.wanted.iter().map(convert::wanted).collect();
        let request = ReleaseRequest {
            sequence: request.sequence,
            recipient: convert::recipient(&request.recipient).map_err(wrong)?,
            wanted: wanted.map_err(wrong)?,
        };
        let (sealed, mark) = self.turn(move |turn| turn.release(&who, &request)).await?;
        Ok(answer(&sealed, &mark))
    }

    pub(super) async fn lease_to(&self, who: Permit, request: &wire::LeaseRequest) -> Result<wire::LeaseReply, Status> {
        let instance = convert::fixed(&request.instance, "an instance").map_err(wrong)?;
        let (lease, mark) = self.turn(move |turn| turn.lease(&who, &instance)).await?;
        Ok(wire::LeaseReply {
            token: lease.token,
            expires_unix_s: lease.expires_unix_s,
            lease_s: self.standing.lease_s(),
            mark: convert::mark_bytes(Some(&mark)),
        })
    }

    /// Where a vault's counter stands; a node that holds something else learns it here, and it is written down.
    pub(super) async fn newest_of(
        &self,
        who: Permit,
        request: wire::CounterRequest,
    ) -> Result<wire::CounterReply, Status> {
        let id = counter(&who, &request.vault)?;
        let holds = convert::version(request.holds.as_ref()).map_err(wrong)?;
        let asked = id.clone();
        // A refusal is the node's to tell, with both versions; the core has written it down.
        let (_, _) = self
            .standing
            .turn(move |turn| turn.prove_newest(&who, &asked, holds))
            .await?;
        let newest = self.look(move |manager| manager.counter(&id).copied()).await?;
        Ok(wire::CounterReply {
            newest: convert::version_bytes(newest.as_ref()),
        })
    }

    pub(super) async fn count_up(
        &self,
        who: Permit,
        request: wire::CommitRequest,
    ) -> Result<wire::CommitReply, Status> {
        let next = convert::version(request.next.as_ref()).map_err(wrong)?;
        let step = Step {
            counter: counter(&who, &request.vault)?,
            token: request.token,
            expected: convert::version(request.expected.as_ref()).map_err(wrong)?,
            next: next.ok_or_else(|| wrong("a commit without a next version".to_owned()))?,
        };
        let round = request.round.as_ref().map(convert::round).transpose().map_err(wrong)?;
        let (_, mark) = self
            .turn(move |turn| turn.commit_round(&who, &step, round.as_ref()))
            .await?;
        self.standing.seen(&mark).await?;
        Ok(wire::CommitReply {
            mark: convert::mark_bytes(Some(&mark)),
        })
    }

    /// Writes down that a model leaves; the node lets it go when this is on the disk.
    pub(super) async fn take_export(
        &self,
        who: Permit,
        request: wire::ExportNoteRequest,
    ) -> Result<wire::ExportNoteReply, Status> {
        let export = ExportNote {
            model: convert::digest(&request.model, "a model's digest").map_err(wrong)?,
            to: request.to,
            round: request.round,
        };
        let (_, mark) = self.turn(move |turn| turn.export(&who, &export)).await?;
        Ok(wire::ExportNoteReply {
            mark: convert::mark_bytes(Some(&mark)),
        })
    }

    /// Sends a node each state that is announced, and takes what it says that it remembers, until either end is gone.
    pub(super) fn watched_by(
        &self,
        peer: Peer,
        mut said: Streaming<wire::WitnessRequest>,
    ) -> ReceiverStream<Result<wire::WitnessReply, Status>> {
        let (tell, told) = mpsc::channel(1);
        let (standing, stopping) = (Arc::clone(&self.standing), self.stopping.clone());
        let clock = Arc::clone(&self.clock);
        let mut announced = standing.announcements().follow();
        announced.mark_changed();
        tokio::spawn(async move {
            loop {
                // The place is there before the mark is read: a node that reads slowly gets the newest one.
                let next = async {
                    let place = tell.reserve().await.ok()?;
                    announced.changed().await.ok()?;
                    Some((place, *announced.borrow_and_update()))
                };
                let (place, mark) = tokio::select! {
                    () = stopping.cancelled() => return,
                    request = said.message() => {
                        let Ok(Some(request)) = request else { return };
                        let Some(who) = peer.permit().filter(|_| !peer.expired(clock())) else { return };
                        match convert::mark(&request.mark) {
                            Ok(Some(mark)) => standing.announcements().heard(who.node(), &mark),
                            Ok(None) => {}
                            Err(_) => return,
                        }
                        continue;
                    }
                    Some(next) = next => next,
                    else => return,
                };
                if mark.is_some() {
                    place.send(Ok(wire::WitnessReply {
                        phase: RUNNING.to_owned(),
                        mark: convert::mark_bytes(mark.as_ref()),
                    }));
                }
            }
        });
        ReceiverStream::new(told)
    }

    /// What a node saw of this manager's state.
    pub(super) async fn hear(&self, who: Permit, request: &wire::WitnessRequest) -> Result<wire::WitnessReply, Status> {
        let newest = convert::mark(&request.mark).map_err(wrong)?;
        let phase = self.standing.hear(who, newest).await?;
        let mark = match phase {
            RUNNING => Some(self.look(|manager| manager.mark()).await?),
            _ => None,
        };
        Ok(wire::WitnessReply {
            phase: phase.to_owned(),
            mark: convert::mark_bytes(mark.as_ref()),
        })
    }
}

fn counter(who: &Permit, vault: &[u8]) -> Result<CounterId, Status> {
    let vault = convert::fixed(vault, "a vault's identity").map_err(wrong)?;
    Ok(CounterId {
        node: who.node().to_owned(),
        vault,
    })
}

fn answer(sealed: &SealedRelease, mark: &cloister_manager::Mark) -> wire::Sealed {
    wire::Sealed {
        sequence: sealed.sequence,
        sealed: sealed.sealed.to_bytes().into(),
        mark: convert::mark_bytes(Some(mark)),
    }
}
