//! The manager over its store: made once, then run turn by turn.

use std::path::Path;
use std::sync::Arc;

use cloister_attestation::identity::SigningKey;
use cloister_audit::{Chain, Checkpoint, Subject};
use cloister_policy::{Permit, Policy, Visit};
use cloister_tensor::Digest;
use serde_json::json;

use crate::batch::Position;
use crate::counter::{Commit, CounterId};
use crate::error::{OpenError, StoreError};
use crate::head::{About, Head};
use crate::key::{RecordCipher, SecretKey};
use crate::lease::LeaseTime;
use crate::recovery::{Recovery, RecoveryPlan};
use crate::refused::Refused;
use crate::release::{self, Book};
use crate::secret::{SecretInfo, SecretKind};
use crate::share::SealedShare;
use crate::standing::{Equivocation, PolicyFile, PolicyStatus};
use crate::state::State;
use crate::store::{Store, position};
use crate::turn::{Done, Turn};
use crate::witness::{Audience, Mark, Quorum, StoreId};

/// Most audit lines that are given out at once.
pub const MAX_LINES: usize = 4096;

/// Whose manager it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The federation's name.
    pub federation: String,
    /// The manager's node.
    pub node: String,
    /// The founders' keys and threshold ([`Policy::anchor`]): whose policy may be the first.
    pub anchor: Digest,
    /// How long a node's lease lasts unless it is renewed, in seconds. A clock that is set back by no more stands still.
    pub lease_s: u64,
}

impl Settings {
    pub(crate) fn subject(&self) -> Subject {
        Subject {
            federation: self.federation.clone(),
            node: self.node.clone(),
        }
    }
}

/// A manager that runs.
pub struct Manager {
    pub(crate) store: Store,
    pub(crate) state: State,
    pub(crate) head: Head,
    pub(crate) chain: Chain,
    pub(crate) key: Arc<SigningKey>,
    pub(crate) settings: Settings,
    /// A commit failed, or a turn did not come to its end: memory and disk may differ.
    pub(crate) failed: bool,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Manager({:?} of {:?}, version {})",
            self.settings.node, self.settings.federation, self.head.version
        )
    }
}

impl Manager {
    /// Makes a manager with a new, empty store. The shares that open it again are in the store, sealed, and are given out: each holder
    /// keeps its own, and the state's mark with it.
    ///
    /// # Errors
    /// [`OpenError::Exists`], [`OpenError::Recovery`] for a plan that can't be, [`OpenError::Store`].
    pub fn create(
        path: &Path,
        settings: Settings,
        key: Arc<SigningKey>,
        plan: &RecoveryPlan,
        now_unix_s: u64,
    ) -> Result<Self, OpenError> {
        plan.check(&settings.federation, None)?;
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| StoreError::Cryptography)?;
        let id = StoreId::from_bytes(id);
        let state_key = SecretKey::generate().ok_or(StoreError::Cryptography)?;
        let recovery = Recovery::split(&settings.federation, &id, 1, plan, |recovery, bound_to| {
            recovery.wrap(&state_key, bound_to)
        })?;
        let about = About::new(settings.federation.clone(), id, recovery);
        let cipher = RecordCipher::new(id, state_key).ok_or(StoreError::Cryptography)?;
        let mut manager = Self {
            store: Store::create(path, about, cipher)?,
            state: State::new(&settings.federation, settings.anchor),
            head: Head::new(settings.node.clone(), settings.anchor),
            chain: Chain::new(settings.subject()),
            key,
            settings,
            failed: false,
        };
        let holders: Vec<_> = plan.holders.iter().map(|holder| &holder.participant).collect();
        let what = json!({ "store": id, "epoch": 1, "threshold": plan.threshold, "holders": holders });
        manager.turn(now_unix_s, |turn| turn.log("manager-made", what))?;
        Ok(manager)
    }

    /// Does work, and commits it: what `work` gives comes out only when all that it changed is on the disk, in one commit. Work that
    /// changed nothing, and refused nothing, costs none. Leave is judged by the time that is given here, as it was made by that; leases go by
    /// one that stands still where this one is set back a little ([`Settings::lease_s`]), and follows it where it is set back by more.
    ///
    /// # Errors
    /// [`StoreError`]: what is on disk is not known then, and the manager does nothing more; start it again.
    pub fn turn<T>(&mut self, now_unix_s: u64, work: impl FnOnce(&mut Turn<'_>) -> T) -> Result<(T, Mark), StoreError> {
        if self.failed {
            return Err(StoreError::Failed);
        }
        // Until the commit stands; also where `work` panics.
        self.failed = true;
        let leases = self.lease_time(now_unix_s);
        let mut turn = Turn {
            state: &mut self.state,
            chain: &mut self.chain,
            key: &self.key,
            now_unix_s,
            leases,
            done: Done::default(),
        };
        let value = work(&mut turn);
        let done = turn.end();
        self.head.clock_unix_s = leases.now_unix_s;
        self.write(&done)?;
        self.failed = false;
        Ok((value, self.mark()))
    }

    /// A clock that jumped forwards and back again must not stop everything for as long as it jumped: so time stands still for as long as a
    /// lease lasts at most, and leases that end later than one that is taken now are of the time that never was.
    fn lease_time(&self, given_unix_s: u64) -> LeaseTime {
        let (clock_unix_s, lease_s) = (self.head.clock_unix_s, self.settings.lease_s);
        let back_s = clock_unix_s.saturating_sub(given_unix_s);
        LeaseTime {
            now_unix_s: if back_s <= lease_s {
                given_unix_s.max(clock_unix_s)
            } else {
                given_unix_s
            },
            lease_s,
        }
    }

    fn write(&mut self, done: &Done) -> Result<(), StoreError> {
        let broken = done.broken.as_deref().or_else(|| done.changes.broken());
        if let Some(broken) = broken {
            return Err(StoreError::Audit(broken.to_owned()));
        }
        if done.changes.is_empty() && done.lines.is_empty() {
            return self.store.confirm(&self.head);
        }
        self.store
            .commit(&done.changes, &done.lines, &self.chain, &mut self.head)
    }

    /// Makes sure that this is still the newest state, before what was read from it is told. A manager alone knows that; one of
    /// several asks the others.
    ///
    /// # Errors
    /// [`StoreError::NotLeading`], [`StoreError::Failed`].
    pub fn confirm(&mut self) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Failed);
        }
        self.store.confirm(&self.head)
    }

    /// Which state this is.
    pub fn position(&self) -> Position {
        position(&self.head)
    }

    /// The state after the last commit.
    pub fn mark(&self) -> Mark {
        self.store.mark(&self.head, &self.chain)
    }

    /// The policy in force.
    pub fn policy(&self) -> Option<&Arc<Policy>> {
        self.state.agreement.active()
    }

    /// All policies that took effect, the founding one first.
    pub fn history(&self) -> &[Arc<PolicyFile>] {
        self.state.agreement.chain()
    }

    /// A policy that took effect or is proposed, with its bytes and signatures.
    pub fn policy_file(&self, digest: &Digest) -> Option<&PolicyFile> {
        self.state.agreement.file(digest)
    }

    /// How far a policy has come, and whose signatures are missing.
    pub fn status(&self, digest: &Digest) -> Option<PolicyStatus> {
        self.state.agreement.status(digest)
    }

    /// The policies that are proposed.
    pub fn proposals(&self) -> impl Iterator<Item = PolicyStatus> {
        self.state.agreement.proposals()
    }

    /// Who signed two policies of which only one can follow.
    pub fn equivocations(&self) -> &[Equivocation] {
        self.state.agreement.equivocations()
    }

    /// A participant's own secrets, without their values.
    ///
    /// # Errors
    /// [`Refused::NoPolicy`], [`Refused::NoParticipant`].
    pub fn secrets(&self, who: &Visit) -> Result<Vec<SecretInfo>, Refused> {
        let policy = self.policy().ok_or(Refused::NoPolicy)?;
        let known = who.participant().filter(|name| policy.participant_key(name).is_some());
        let participant = known.ok_or(Refused::NoParticipant)?;
        Ok(self.state.secrets.of(participant).collect())
    }

    /// What the policy in force grants a node that has the sealed files, without the values.
    ///
    /// # Errors
    /// [`Refused`] by who asks.
    pub fn grants(&self, who: &Permit, now_unix_s: u64) -> Result<Vec<SecretInfo>, Refused> {
        let policy = self.policy().map(Arc::as_ref);
        let asker = release::asker(policy, who.into(), now_unix_s)?;
        let policy = policy.ok_or(Refused::NoPolicy)?;
        let book = Book {
            policy,
            secrets: &self.state.secrets,
        };
        Ok(book.granted(&asker))
    }

    /// The modules that are sealed, each with the digest of its current sealed file: in the open they lie nowhere.
    pub fn sealed_modules(&self) -> Vec<(String, Digest)> {
        let all = self.state.secrets.all();
        let modules = all.filter_map(|(_, secret)| match &secret.kind {
            SecretKind::Module { module } => Some((module.clone(), secret.epochs.last()?.ciphertext?)),
            _ => None,
        });
        modules.collect()
    }

    /// Where a counter stands.
    pub fn counter(&self, id: &CounterId) -> Option<&Commit> {
        self.state.counters.get(id)
    }

    /// Who has to have seen a state before what it says is told: the nodes that hold a lease, and whose word counts. Nobody while no
    /// policy is in force.
    pub fn audience(&self, now_unix_s: u64) -> Audience {
        let held = self.state.leases.held(self.lease_time(now_unix_s));
        self.policy()
            .map_or_else(Audience::default, |policy| Audience::of(&Quorum::of(policy), held))
    }

    /// Audit lines from that index on, at most [`MAX_LINES`]: together, a newline behind each, they are the log that `cloister audit` reads.
    ///
    /// # Errors
    /// [`StoreError`] if one can't be read, or is not what was written there.
    pub fn lines(&self, from: u64, limit: usize) -> Result<Vec<String>, StoreError> {
        self.store.lines(from, limit.min(MAX_LINES))
    }

    /// The last audit line as a checkpoint.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        self.chain.checkpoint()
    }

    /// The recovery shares, each sealed to its holder.
    pub fn shares(&self) -> &[SealedShare] {
        &self.store.about.recovery.shares
    }

    /// How many shares open the state, and who holds one.
    pub fn holders(&self) -> (u8, Vec<&str>) {
        let recovery = &self.store.about.recovery;
        let holders = recovery.shares.iter().map(|share| share.participant.as_str());
        (recovery.threshold, holders.collect())
    }

    /// Splits a new recovery key; every share of before is stale from then on. Copies of the store that were made before open with those
    /// still: nothing can change what somebody has.
    ///
    /// # Errors
    /// [`OpenError::Recovery`] for a plan that can't be, or that does not fit the policy in force; [`OpenError::Store`].
    pub fn split_anew(&mut self, plan: &RecoveryPlan, now_unix_s: u64) -> Result<&[SealedShare], OpenError> {
        if self.failed {
            return Err(StoreError::Failed.into());
        }
        let federation = &self.settings.federation;
        plan.check(federation, self.policy().map(Arc::as_ref))?;
        let (id, epoch) = (self.store.about.store, self.store.about.recovery.epoch + 1);
        let cipher = self.store.cipher();
        let recovery = Recovery::split(federation, &id, epoch, plan, |recovery, bound_to| {
            cipher.wrapped_under(recovery, bound_to)
        })?;
        let holders: Vec<_> = plan.holders.iter().map(|holder| &holder.participant).collect();
        let what = json!({ "epoch": epoch, "threshold": plan.threshold, "holders": holders });
        self.store.about.recovery = recovery;
        self.turn(now_unix_s, |turn| turn.log("recovery-split", what))?;
        Ok(self.shares())
    }

    /// Copies the store to a new file, sealed as it is. Opening the copy takes the same shares, and witnesses who have seen nothing newer.
    ///
    /// # Errors
    /// [`OpenError::Exists`], [`OpenError::Store`].
    pub fn backup(&mut self, to: &Path, now_unix_s: u64) -> Result<Mark, OpenError> {
        let version = self.head.version + 1;
        self.turn(now_unix_s, |turn| turn.log("backup", json!({ "version": version })))?;
        self.store.copy(to)?;
        Ok(self.mark())
    }
}
