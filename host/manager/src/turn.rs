//! A turn: any number of operations that become one durable commit, their audit lines with them.

use std::sync::Arc;

use cloister_attestation::identity::{MAX_NAME_BYTES, SigningKey};
use cloister_audit::Chain;
use cloister_policy::{Admission, Permit, Policy, Signature, TensorAccess, Visit};
use cloister_tensor::{Digest, Digester};
use serde_json::{Value, json};

use crate::agreement::Agreement;
use crate::changes::Changes;
use crate::counter::{Commit, CounterId, Step};
use crate::lease::{Lease, LeaseTime};
use crate::notes::{RoundNote, may_note};
use crate::refused::Refused;
use crate::release::{self, Book, MAX_WANTED, ReleaseRequest, SealedRelease};
use crate::secret::{NewSecret, SecretId, SecretInfo};
use crate::standing::{PolicyStanding, PolicyStatus};
use crate::state::State;

/// A turn takes no more work from here on: with the largest piece of work it still fits into a batch.
const FULL_BYTES: usize = 1 << 20;

/// Whose refusals are counted where nobody showed who asks.
const NOBODY: &str = "";

/// Operations that are committed together. Each takes effect at once for the next ones of the turn, and nothing of it is to be told to
/// anybody before the turn is committed: [`crate::Manager::turn`] gives out what the operations gave only then.
pub struct Turn<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) chain: &'a mut Chain,
    pub(crate) key: &'a SigningKey,
    pub(crate) now_unix_s: u64,
    pub(crate) leases: LeaseTime,
    pub(crate) done: Done,
}

/// What a turn leaves to be written.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) changes: Changes,
    pub(crate) lines: Vec<(u64, String)>,
    /// Why a line could not be made.
    pub(crate) broken: Option<String>,
    steps: u64,
    stepped: Digester,
}

impl Turn<'_> {
    // --- agreement

    /// The policy in force.
    pub fn policy(&self) -> Option<&Arc<Policy>> {
        self.state.agreement.active()
    }

    /// Proposes a policy that can follow the one in force, or found the federation. It has to come with the signature of one who has a
    /// say in it; who brings it does not matter.
    ///
    /// # Errors
    /// As [`Turn::sign`], and [`Refused::NoPolicyFile`], [`Refused::OtherFounders`], [`Refused::CannotFollow`], [`Refused::Full`].
    pub fn propose(&mut self, file: &[u8], signature: Signature) -> Result<PolicyStatus, Refused> {
        let digest = Digest::of(file);
        self.signing(digest, signature, |agreement, signature, now, changes| {
            agreement.propose(file, signature, now, changes)
        })
    }

    /// Adds a signature to a proposed policy, which takes effect with the last one that it takes. A signature that is there already, or comes
    /// when the policy is in force, changes nothing.
    ///
    /// # Errors
    /// [`Refused::UnknownPolicy`], [`Refused::BadSignature`], [`Refused::TakenBack`], [`Refused::CannotTakeEffect`];
    /// [`Refused::Equivocation`] if the signer signed another policy after the same one, which is recorded.
    pub fn sign(&mut self, policy: Digest, signature: Signature) -> Result<PolicyStatus, Refused> {
        self.signing(policy, signature, |agreement, signature, now, changes| {
            agreement.sign(policy, signature, now, changes)
        })
    }

    /// Who brings a signature is nobody in particular: what is written into the log is what verified and is new, and refusals of all such
    /// requests share one count.
    fn signing(
        &mut self,
        digest: Digest,
        signature: Signature,
        work: impl FnOnce(&mut Agreement, Signature, u64, &mut Changes) -> Result<(PolicyStatus, bool), Refused>,
    ) -> Result<PolicyStatus, Refused> {
        let by: String = signature.participant.chars().take(MAX_NAME_BYTES).collect();
        let agreement = &mut self.state.agreement;
        let known = agreement.file(&digest).is_some();
        let double = agreement.equivocations().len();
        let result = work(agreement, signature, self.now_unix_s, &mut self.done.changes);
        if let Err(Refused::Equivocation { key, signed, .. }) = &result
            && self.state.agreement.equivocations().len() > double
        {
            let what = json!({ "participant": by, "public_key": key, "signed": signed, "refused": digest });
            self.log("equivocation", what);
        }
        let (status, new) = self.or_logged(NOBODY, "sign", result)?;
        if !known {
            let what = json!({ "policy": digest, "version": status.version, "by": by });
            self.log("proposed", what);
        }
        if new {
            self.log("signed", json!({ "policy": digest, "participant": by }));
        }
        if new
            && matches!(status.standing, PolicyStanding::InForce)
            && let Some(file) = self.state.agreement.chain().last()
        {
            let signers: Vec<_> = file.signatures.iter().map(|one| one.participant.clone()).collect();
            let what = json!({
                "policy": digest,
                "name": file.policy.name,
                "version": file.policy.version,
                "signed_by": signers,
                "simulated": file.policy.attestation.simulated,
            });
            self.log("agreement", what);
        }
        Ok(status)
    }

    /// A participant takes its signature under a proposed policy back; then it may sign another one.
    ///
    /// # Errors
    /// [`Refused::InForce`], [`Refused::UnknownPolicy`], [`Refused::NoParticipant`].
    pub fn take_back(&mut self, who: &Visit, policy: Digest) -> Result<(), Refused> {
        let by = who.participant().unwrap_or_default().to_owned();
        let (agreement, changes) = (&mut self.state.agreement, &mut self.done.changes);
        let result = match who.participant() {
            None => Err(Refused::NoParticipant),
            Some(participant) => agreement.take_back(participant, policy, changes),
        };
        self.or_logged(&by, "take back", result)?;
        self.log("taken-back", json!({ "policy": policy, "participant": by }));
        Ok(())
    }

    // --- secrets

    /// Puts a secret, or the next epoch of one that is there.
    ///
    /// # Errors
    /// [`Refused::NoParticipant`], [`Refused::NotYours`], [`Refused::BadName`], [`Refused::BadSize`], [`Refused::DigestMissing`],
    /// [`Refused::OtherKind`], [`Refused::SealedAggregator`], [`Refused::Full`], [`Refused::NoMoreEpochs`].
    pub fn put(&mut self, who: &Visit, secret: NewSecret) -> Result<SecretInfo, Refused> {
        let now = self.now_unix_s;
        let result = self.as_participant(who, |state, policy, owner, changes| {
            state.secrets.put(policy, owner, secret, now, changes)
        });
        let info = self.or_logged(named(who), "put a secret", result)?;
        let what = json!({
            "secret": info.id,
            "for": info.kind,
            "epoch": info.epoch,
            "ciphertext": info.ciphertext,
            "plaintext": info.plaintext,
        });
        self.log("secret-put", what);
        Ok(info)
    }

    /// Removes one of the participant's secrets with all its epochs.
    ///
    /// # Errors
    /// [`Refused::NoParticipant`], [`Refused::NoSecret`], also for another's.
    pub fn remove(&mut self, who: &Visit, name: &str) -> Result<(), Refused> {
        let result = self.as_participant(who, |state, _, owner, changes| {
            let (owner, name) = (owner.to_owned(), name.to_owned());
            let id = SecretId { owner, name };
            state.secrets.remove(&id, changes).map(|()| id)
        });
        let id = self.or_logged(named(who), "remove a secret", result)?;
        self.log("secret-removed", json!({ "secret": id }));
        Ok(())
    }

    /// An owner of data lets a sealed module of that SHA-256 have that access to tensors; nothing takes it back, for releases to come.
    ///
    /// # Errors
    /// [`Refused::NoParticipant`], [`Refused::Full`].
    pub fn consent(&mut self, who: &Visit, module: Digest, access: Option<TensorAccess>) -> Result<(), Refused> {
        let result = self.as_participant(who, |state, _, participant, changes| {
            state.secrets.consent(participant, module, access, changes)
        });
        self.or_logged(named(who), "consent", result)?;
        let access = access.map(TensorAccess::as_str);
        let what = json!({ "participant": named(who), "module": module, "access": access });
        self.log("consent", what);
        Ok(())
    }

    fn as_participant<T>(
        &mut self,
        who: &Visit,
        work: impl FnOnce(&mut State, &Policy, &str, &mut Changes) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let policy = self.policy().cloned().ok_or(Refused::NoPolicy)?;
        let known = who.participant().filter(|name| policy.participant_key(name).is_some());
        let participant = known.ok_or(Refused::NoParticipant)?;
        work(self.state, &policy, participant, &mut self.done.changes)
    }

    // --- release

    /// Releases the secrets that a node asks for, sealed to its TD: all of them, or none. Each request number counts once in a connection.
    ///
    /// # Errors
    /// [`Refused`] by what the policy in force grants, who asks, the sealed files at hand, and consents.
    pub fn release(&mut self, who: &Permit, request: &ReleaseRequest) -> Result<SealedRelease, Refused> {
        self.meet(who);
        let result = self.try_release(who, request);
        let (sealed, released) = self.or_logged(who.node(), "release", result)?;
        let what = json!({
            "node": who.node(),
            "participant": who.participant(),
            "role": who.role().as_str(),
            "sequence": request.sequence,
            "secrets": released,
        });
        self.log("released", what);
        Ok(sealed)
    }

    /// Releases to a TD without a credential the one that its participant left for it, sealed to that TD, and nothing else.
    ///
    /// # Errors
    /// As [`Turn::release`], and [`Refused::NoCredential`].
    pub fn release_credential(&mut self, who: &Admission, request: &ReleaseRequest) -> Result<SealedRelease, Refused> {
        let result = self.try_release_credential(who, request);
        let (sealed, id) = self.or_logged(who.node(), "release credential", result)?;
        let what = json!({ "node": who.node(), "participant": who.participant(), "secret": id });
        self.log("credential-released", what);
        Ok(sealed)
    }

    fn try_release_credential(
        &mut self,
        who: &Admission,
        request: &ReleaseRequest,
    ) -> Result<(SealedRelease, SecretId), Refused> {
        let state = &mut *self.state;
        let asker = release::asker(state.agreement.active().map(Arc::as_ref), who.into(), self.now_unix_s)?;
        state.connections.count(&asker, request.sequence)?;
        let policy = state.agreement.active().ok_or(Refused::NoPolicy)?;
        let book = Book {
            policy,
            secrets: &state.secrets,
        };
        let (id, secret, epochs) = book.credential(&asker)?;
        let sealed = release::seal(&asker, request, &[(&id, secret, epochs)])?;
        Ok((sealed, id))
    }

    fn try_release(&mut self, who: &Permit, request: &ReleaseRequest) -> Result<(SealedRelease, Vec<Value>), Refused> {
        let now = self.now_unix_s;
        let state = &mut *self.state;
        let asker = release::asker(state.agreement.active().map(Arc::as_ref), who.into(), now)?;
        state.connections.count(&asker, request.sequence)?;
        let (seen, limit) = (request.wanted.len(), MAX_WANTED);
        if seen == 0 {
            return Err(Refused::NothingWanted);
        }
        if seen > limit {
            let what = "secrets are asked for";
            return Err(Refused::TooMuch { what, seen, limit });
        }
        let policy = state.agreement.active().ok_or(Refused::NoPolicy)?;
        let book = Book {
            policy,
            secrets: &state.secrets,
        };
        let granted = request.wanted.iter().map(|wanted| {
            let (secret, epochs) = book.decide(&asker, wanted)?;
            Ok((&wanted.id, secret, epochs))
        });
        let granted = granted.collect::<Result<Vec<_>, Refused>>()?;
        let told = granted.iter().map(|(id, _, epochs)| {
            let last = epochs.last();
            json!({ "secret": id, "epoch": last.map(|last| last.epoch), "ciphertext": last.and_then(|last| last.ciphertext) })
        });
        let told = told.collect();
        Ok((release::seal(&asker, request, &granted)?, told))
    }

    // --- counters and leases

    /// Gives one instance of a node the lease, or renews it. `instance` is random, made by the instance at its start.
    ///
    /// # Errors
    /// [`Refused::LeaseHeld`] while another instance has it.
    pub fn lease(&mut self, who: &Permit, instance: &[u8; 16]) -> Result<Lease, Refused> {
        let time = self.leases;
        let result = self.as_node(who, |state, node, changes| {
            state.leases.take(node, Digest::of(instance), time, changes)
        });
        let (lease, new) = self.or_refused(who.node(), "lease", result)?;
        if new {
            self.settle(who.node(), "lease");
            let what = json!({ "node": who.node(), "token": lease.token });
            self.log("lease", what);
        }
        Ok(lease)
    }

    /// Ends a lease before its time.
    ///
    /// # Errors
    /// [`Refused::Fenced`] if it does not hold.
    pub fn give_back(&mut self, who: &Permit, token: u64) -> Result<(), Refused> {
        let time = self.leases;
        let result = self.as_node(who, |state, node, changes| {
            state.leases.give_back(node, token, time, changes)
        });
        self.or_logged(who.node(), "give back a lease", result)
    }

    /// Counts up: compare and swap. The step that was taken last is answered again, since its first answer may have been lost.
    ///
    /// # Errors
    /// [`Refused::Stale`] with where the counter stands, [`Refused::NotAhead`], [`Refused::Fenced`], [`Refused::NotYourCounter`].
    pub fn commit(&mut self, who: &Permit, step: &Step) -> Result<Commit, Refused> {
        self.commit_round(who, step, None)
    }

    /// Counts up as [`Turn::commit`] does, and writes down which round an aggregator sealed by it.
    ///
    /// # Errors
    /// As [`Turn::commit`]; [`Refused::NotItsToNote`] of a round that another node tells.
    pub fn commit_round(&mut self, who: &Permit, step: &Step, round: Option<&RoundNote>) -> Result<Commit, Refused> {
        let time = self.leases;
        let result = self.as_node(who, |state, node, changes| {
            round.map_or(Ok(()), |_| may_note(who))?;
            own(&step.counter, node)?;
            state.leases.holds(node, step.token, time)?;
            state.counters.step(step, changes)
        });
        let (commit, new) = self.or_logged(who.node(), "commit", result)?;
        if new {
            self.done.steps += 1;
            let counter = step.counter.to_string();
            let length = (counter.len() as u32).to_be_bytes();
            let version = commit.version.to_be_bytes();
            for part in [&length[..], counter.as_bytes(), &version, commit.digest.as_bytes()] {
                self.done.stepped.update(part);
            }
            if let Some(RoundNote { round, model, receipt }) = round {
                let what = json!({
                    "node": who.node(), "round": round, "model": model, "receipt": receipt, "vault_version": commit.version,
                });
                self.log("round", what);
            }
        }
        Ok(commit)
    }

    /// Whether what the node holds is the newest that was confirmed.
    ///
    /// # Errors
    /// [`Refused::Stale`] with what is stale and what was expected; [`Refused::Unconfirmed`] of what lies ahead.
    pub fn prove_newest(&mut self, who: &Permit, counter: &CounterId, held: Option<Commit>) -> Result<(), Refused> {
        let result = self.as_node(who, |state, node, _| {
            own(counter, node)?;
            state.counters.prove_newest(counter, held)
        });
        self.or_logged(who.node(), "prove newest", result)
    }

    pub(crate) fn as_node<T>(
        &mut self,
        who: &Permit,
        work: impl FnOnce(&mut State, &str, &mut Changes) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        self.meet(who);
        let policy = self.state.agreement.active().map(Arc::as_ref);
        let asker = release::asker(policy, who.into(), self.now_unix_s)?;
        work(self.state, asker.node(), &mut self.done.changes)
    }

    /// Whether as much is to be written as goes into one commit: further work waits for the next one.
    pub(crate) fn is_full(&self) -> bool {
        let lines: usize = self.done.lines.iter().map(|(_, line)| line.len()).sum();
        self.done.changes.bytes() + lines > FULL_BYTES
    }

    /// Ends the turn: one line for all steps of counters, which alone would fill the log.
    pub(crate) fn end(mut self) -> Done {
        if self.done.steps > 0 {
            let digest = std::mem::take(&mut self.done.stepped).finish();
            let what = json!({ "steps": self.done.steps, "digest": digest });
            self.log("counters", what);
        }
        self.done
    }
}

fn named(who: &Visit) -> &str {
    who.participant().unwrap_or_default()
}

fn own(counter: &CounterId, node: &str) -> Result<(), Refused> {
    if counter.node == node {
        return Ok(());
    }
    let (counter, node) = (counter.clone(), node.to_owned());
    Err(Refused::NotYourCounter { counter, node })
}
