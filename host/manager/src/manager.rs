//! The manager over its store: made once, later recovered and confirmed, then run turn by turn.

use std::path::Path;
use std::sync::Arc;

use cloister_attestation::identity::SigningKey;
use cloister_audit::{Chain, Checkpoint, Subject};
use cloister_policy::{Policy, Visit};
use cloister_tensor::Digest;
use serde_json::json;

use crate::agreement::{Equivocation, PolicyFile, PolicyStatus};
use crate::counter::{Commit, CounterId};
use crate::error::{OpenError, StoreError};
use crate::key::{RecordCipher, SecretKey};
use crate::recovery::{Recovery, RecoveryPlan, RecoveryShare, Remembered, SealedShare};
use crate::refused::Refused;
use crate::secret::SecretInfo;
use crate::state::State;
use crate::store::{About, Contents, Head, Opened, Store};
use crate::turn::{Done, Turn};
use crate::witness::{Mark, Quorum, Statement, StoreId, compare, confirm};

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
    /// How long a node's lease lasts unless it is renewed, in seconds.
    pub lease_s: u64,
}

impl Settings {
    fn subject(&self) -> Subject {
        Subject {
            federation: self.federation.clone(),
            node: self.node.clone(),
        }
    }
}

/// A manager that runs.
pub struct Manager {
    store: Store,
    state: State,
    head: Head,
    chain: Chain,
    key: Arc<SigningKey>,
    settings: Settings,
    /// A commit failed, or a turn did not come to its end: memory and disk may differ.
    failed: bool,
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
    /// changed nothing, and refused nothing, costs none. Time never goes back: an earlier one than was given before is taken for that.
    ///
    /// # Errors
    /// [`StoreError`]: what is on disk is not known then, and the manager does nothing more; start it again.
    pub fn turn<T>(&mut self, now_unix_s: u64, work: impl FnOnce(&mut Turn<'_>) -> T) -> Result<(T, Mark), StoreError> {
        if self.failed {
            return Err(StoreError::Failed);
        }
        // Until the commit stands; also where `work` panics.
        self.failed = true;
        let now_unix_s = now_unix_s.max(self.head.clock_unix_s);
        let mut turn = Turn {
            state: &mut self.state,
            chain: &mut self.chain,
            key: &self.key,
            now_unix_s,
            lease_s: self.settings.lease_s,
            done: Done::default(),
        };
        let value = work(&mut turn);
        let done = turn.end();
        self.head.clock_unix_s = now_unix_s;
        self.write(&done)?;
        self.failed = false;
        Ok((value, self.mark()))
    }

    fn write(&mut self, done: &Done) -> Result<(), StoreError> {
        let broken = done.broken.as_deref().or_else(|| done.changes.broken());
        if let Some(broken) = broken {
            return Err(StoreError::Audit(broken.to_owned()));
        }
        if done.changes.is_empty() && done.lines.is_empty() {
            return Ok(());
        }
        self.store
            .commit(&done.changes, &done.lines, &self.chain, &mut self.head)
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

    /// Where a counter stands.
    pub fn counter(&self, id: &CounterId) -> Option<&Commit> {
        self.state.counters.get(id)
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

/// A store that is open; there is no key yet, and nothing in it is believed.
#[derive(Debug)]
pub struct Locked {
    opened: Opened,
}

impl Locked {
    /// Opens a store, which no other process may have open.
    ///
    /// # Errors
    /// [`OpenError::Missing`], [`OpenError::InUse`], [`OpenError::Store`].
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Opened::open(path).map(|opened| Self { opened })
    }

    /// Whose store it says it is.
    pub fn federation(&self) -> &str {
        &self.opened.about.federation
    }

    /// Its identity.
    pub fn store(&self) -> StoreId {
        self.opened.about.store
    }

    /// How many shares it takes.
    pub fn threshold(&self) -> u8 {
        self.opened.about.recovery.threshold
    }

    /// The shares, each sealed to its holder.
    pub fn shares(&self) -> &[SealedShare] {
        &self.opened.about.recovery.shares
    }

    /// Whether these shares open it; nothing changes.
    ///
    /// # Errors
    /// [`crate::RecoveryError`] says which share is wrong, stale or missing.
    pub fn check(&self, shares: &[RecoveryShare]) -> Result<(), OpenError> {
        self.key(shares).map(|_| ())
    }

    fn key(&self, shares: &[RecoveryShare]) -> Result<SecretKey, OpenError> {
        let About {
            federation,
            store,
            recovery,
            ..
        } = &self.opened.about;
        Ok(recovery.combine(federation, store, shares)?)
    }

    /// Opens the store with enough shares, and reads and checks all of it.
    ///
    /// # Errors
    /// [`OpenError::Recovery`], [`OpenError::Other`], [`OpenError::Store`] where something is not what the manager wrote.
    pub fn recover(
        self,
        shares: &[RecoveryShare],
        settings: Settings,
        key: Arc<SigningKey>,
    ) -> Result<Loaded, OpenError> {
        let state_key = self.key(shares)?;
        same("the federation", self.federation(), &settings.federation)?;
        let said = shares
            .iter()
            .map(|share| (share.participant().to_owned(), share.remembered().clone()));
        let said = said.collect();
        let cipher = RecordCipher::new(self.store(), state_key).ok_or(StoreError::Cryptography)?;
        let mut state = State::new(&settings.federation, settings.anchor);
        let (store, contents) = Store::load(self.opened, cipher, settings.subject(), &mut state)?;
        let Contents { head, chain } = contents;
        same("the node", &head.node, &settings.node)?;
        same("the anchor", &head.anchor.to_string(), &settings.anchor.to_string())?;
        chain
            .verify(&key.public())
            .map_err(|error| StoreError::tampered("an audit log", error.to_string()))?;
        let complete = state.agreement.complete();
        complete.map_err(|why| StoreError::tampered("a chain of policies", why))?;
        let manager = Manager {
            store,
            state,
            head,
            chain,
            key,
            settings,
            failed: false,
        };
        Ok(Loaded { manager, said })
    }
}

fn same(what: &'static str, seen: &str, wanted: &str) -> Result<(), OpenError> {
    if seen == wanted {
        return Ok(());
    }
    Err(OpenError::Other {
        what,
        seen: seen.to_owned(),
        wanted: wanted.to_owned(),
    })
}

/// A manager whose state is whole in itself. Whether it is the newest, others have to say.
#[derive(Debug)]
pub struct Loaded {
    manager: Manager,
    /// What the holders of the shares remember.
    said: Vec<(String, Remembered)>,
}

impl Loaded {
    /// The state that is to be confirmed.
    pub fn mark(&self) -> Mark {
        self.manager.mark()
    }

    /// The policy that the state has in force: by it the witnesses are attested.
    pub fn policy(&self) -> Option<&Arc<Policy>> {
        self.manager.policy()
    }

    /// Whose word counts, and how many it takes; nothing where no policy is in force.
    pub fn quorum(&self) -> Option<Quorum> {
        self.manager.policy().map(|policy| Quorum::of(policy))
    }

    /// Starts the manager if a quorum of nodes confirms that it has seen nothing newer, and no holder of a share either.
    ///
    /// # Errors
    /// [`Refused::ManagerOlder`], [`Refused::ManagerForked`], [`Refused::ManagerOther`] by whoever knows better; [`Refused::NoQuorum`];
    /// [`Refused::NoPolicy`] where there are no nodes yet.
    pub fn confirm(self, statements: &[Statement], now_unix_s: u64) -> Result<Manager, (Box<Self>, Refused)> {
        match self.confirmed_by_nodes(statements, now_unix_s) {
            Ok(count) => self.start(json!({ "confirmed_by": "nodes", "count": count }), now_unix_s),
            Err(refused) => Err((Box::new(self), refused)),
        }
    }

    fn confirmed_by_nodes(&self, statements: &[Statement], now_unix_s: u64) -> Result<usize, Refused> {
        self.compare_with_holders()?;
        let policy = self.policy().ok_or(Refused::NoPolicy)?;
        let mut extends = |witness: &str, mark: &Mark| self.extends(witness, mark);
        let now_unix_s = now_unix_s.max(self.manager.head.clock_unix_s);
        confirm(
            &Quorum::of(policy),
            policy,
            statements,
            &self.mark(),
            now_unix_s,
            &mut extends,
        )
    }

    /// Starts the manager though no quorum of nodes is there, if as many holders of shares as it takes agree to that, and each remembers
    /// a state that this one continues. What was committed after the newest of those is not protected.
    ///
    /// # Errors
    /// As [`Loaded::confirm`]; [`Refused::NoQuorum`] names the holders who did not agree.
    pub fn confirm_without_nodes(self, now_unix_s: u64) -> Result<Manager, (Box<Self>, Refused)> {
        let agreed = |said: &&(String, Remembered)| said.1.without_nodes && said.1.newest.is_some();
        let count = self.said.iter().filter(agreed).count();
        let wanted = usize::from(self.manager.store.about.recovery.threshold);
        let refused = match self.compare_with_holders() {
            Ok(()) if count >= wanted => None,
            Ok(()) => Some(Refused::NoQuorum {
                confirmed: count,
                wanted,
                silent: self
                    .said
                    .iter()
                    .filter(|said| !agreed(said))
                    .map(|said| said.0.clone())
                    .collect(),
            }),
            Err(refused) => Some(refused),
        };
        match refused {
            None => self.start(json!({ "confirmed_by": "participants", "count": count }), now_unix_s),
            Some(refused) => Err((Box::new(self), refused)),
        }
    }

    fn compare_with_holders(&self) -> Result<(), Refused> {
        let remembered = self
            .said
            .iter()
            .filter_map(|(who, said)| Some((who, said.newest.as_ref()?)));
        for (who, newest) in remembered {
            compare(who.clone(), newest, &self.mark())?;
            self.extends(who, newest)?;
        }
        Ok(())
    }

    /// Whether this state continues the one that a witness saw: the audit log has the same line where that one's ended.
    fn extends(&self, witness: &str, saw: &Mark) -> Result<(), Refused> {
        let forked = || Refused::ManagerForked {
            witness: witness.to_owned(),
            version: saw.version,
        };
        let Some(index) = saw.lines.checked_sub(1) else {
            return Ok(());
        };
        let line = self.manager.lines(index, 1).map_err(|_| forked())?;
        let subject = self.manager.settings.subject();
        let here = line
            .first()
            .and_then(|line| Checkpoint::of_line(&subject, line.as_bytes()).ok());
        match here {
            Some(here) if here.lines == saw.lines && here.digest == saw.line => Ok(()),
            _ => Err(forked()),
        }
    }

    fn start(self, what: serde_json::Value, now_unix_s: u64) -> Result<Manager, (Box<Self>, Refused)> {
        let Self { mut manager, said } = self;
        let logged = manager.turn(now_unix_s, |turn| turn.log("manager-started", what));
        match logged {
            Ok(_) => Ok(manager),
            Err(error) => {
                let refused = Refused::CannotStart(error.to_string());
                Err((Box::new(Self { manager, said }), refused))
            }
        }
    }
}
