//! What a manager is at present: locked until enough participants handed their shares over, unconfirmed until enough nodes said
//! what they saw of it, and then running. One of several may also follow another one, which holds the state's key for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cloister_attestation::identity::SigningKey;
use cloister_manager::{
    Desk, Loaded, Locked, Manager, Mark, OpenError, PolicyFile, RecoveryPlan, RecoveryShare, Refused, SealedBox,
    SealedShare, SealingKey, SealingPublicKey, Settings, Statement, StoreError, Turn,
};
use cloister_policy::{Permit, Policy, Visit};
use cloister_session::Clock;
use cloister_tensor::Digest;
use cloister_wire::manager as wire;
use tokio::sync::{oneshot, watch};
use tonic::{Code, Status};

use super::convert;
use super::echo::Announcements;
use super::replication::Replication;
use super::service::word;

/// It waits for shares of the state's key.
pub const LOCKED: &str = "locked";
/// Its state is not what it wrote; somebody has to put back what is.
pub const UNREADABLE: &str = "unreadable";
/// It can read its state and waits for nodes to confirm that it is the newest.
pub const UNCONFIRMED: &str = "unconfirmed";
/// It answers.
pub const RUNNING: &str = "running";
/// One of several, which has no store yet.
pub const NEW: &str = "new";
/// One of several, which got the state's key and is sent the state.
pub const JOINING: &str = "joining";
/// One of several, which has a state that is confirmed and waits for others to hold it too.
pub const FOUNDING: &str = "founding";
/// One of several, which holds what the leading one commits.
pub const FOLLOWING: &str = "following";

enum Phase {
    Locked {
        locked: Box<Locked>,
        shares: Vec<RecoveryShare>,
    },
    Unconfirmed {
        loaded: Box<Loaded>,
        statements: BTreeMap<String, Statement>,
    },
    Running(Desk),
    /// One of several, by the word for what it does while another one answers.
    Apart(&'static str),
    /// One phase is becoming the next.
    Between,
    /// The shares opened it, and it is not what the manager wrote.
    Unreadable(String),
}

impl Phase {
    fn word(&self) -> &'static str {
        match self {
            Self::Locked { .. } | Self::Between => LOCKED,
            Self::Unreadable(_) => UNREADABLE,
            Self::Unconfirmed { .. } => UNCONFIRMED,
            Self::Running(_) => RUNNING,
            Self::Apart(word) => word,
        }
    }
}

/// A manager in one of its phases.
pub struct Standing {
    settings: Settings,
    /// Signs the audit log.
    key: Arc<SigningKey>,
    clock: Clock,
    /// Of this start of the TD: participants seal their shares to it.
    own: SealingKey,
    phase: Mutex<Phase>,
    in_force: watch::Sender<Option<Digest>>,
    /// The policies that were in force, as far as they are known without the state.
    chain: Mutex<Vec<Arc<PolicyFile>>>,
    /// The other managers, where there are several.
    replication: OnceLock<Arc<Replication>>,
    announcements: Announcements,
}

impl Standing {
    /// A manager whose store was just made.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn running(
        manager: Manager,
        settings: Settings,
        key: Arc<SigningKey>,
        clock: Clock,
    ) -> Result<Arc<Self>, OpenError> {
        let standing = Self::new(Phase::Between, settings, key, clock)?;
        standing.run(manager);
        Ok(standing)
    }

    /// One of several managers, without a store.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn apart(settings: Settings, key: Arc<SigningKey>, clock: Clock) -> Result<Arc<Self>, OpenError> {
        Self::new(Phase::Apart(NEW), settings, key, clock)
    }

    /// A manager whose store was opened, and can't be read yet.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn locked(
        locked: Locked,
        settings: Settings,
        key: Arc<SigningKey>,
        clock: Clock,
    ) -> Result<Arc<Self>, OpenError> {
        let phase = Phase::Locked {
            locked: Box::new(locked),
            shares: Vec::new(),
        };
        Self::new(phase, settings, key, clock)
    }

    fn new(phase: Phase, settings: Settings, key: Arc<SigningKey>, clock: Clock) -> Result<Arc<Self>, OpenError> {
        let own = SealingKey::generate().map_err(|error| OpenError::Recovery(error.into()))?;
        Ok(Arc::new(Self {
            settings,
            key,
            clock,
            own,
            phase: Mutex::new(phase),
            in_force: watch::Sender::new(None),
            chain: Mutex::default(),
            replication: OnceLock::new(),
            announcements: Announcements::default(),
        }))
    }

    /// Tells when another policy is in force, or known to be.
    pub fn in_force(&self) -> watch::Receiver<Option<Digest>> {
        self.in_force.subscribe()
    }

    /// The manager's node.
    pub fn node(&self) -> &str {
        &self.settings.node
    }

    /// For how long a lease is.
    pub fn lease_s(&self) -> u64 {
        self.settings.lease_s
    }

    /// Which phase it is in.
    pub fn phase(&self) -> &'static str {
        self.lock().word()
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // A phase is put in its place whole.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One of several from now on: a state that is confirmed is handed to them.
    pub fn replicate_by(&self, replication: Arc<Replication>) {
        // It is set once, before anything is served.
        let _ = self.replication.set(replication);
    }

    /// The others, where there are several.
    pub(super) fn replication(&self) -> Option<&Arc<Replication>> {
        self.replication.get()
    }

    /// What a manager of this node goes by.
    pub(super) fn settings(&self) -> (Settings, Arc<SigningKey>) {
        (self.settings.clone(), Arc::clone(&self.key))
    }

    /// Gives up waiting for shares or witnesses, since another manager hands the state over. Not while the state is being read.
    pub(super) fn set_apart(&self, word: &'static str) -> bool {
        let mut phase = self.lock();
        if matches!(&*phase, Phase::Between) {
            return false;
        }
        *phase = Phase::Apart(word);
        true
    }

    /// A store that is to be opened by shares after all.
    pub(super) fn lock_again(&self, locked: Locked) {
        *self.lock() = Phase::Locked {
            locked: Box::new(locked),
            shares: Vec::new(),
        };
    }

    fn run(&self, manager: Manager) {
        match self.replication.get() {
            Some(replication) => {
                self.know(manager.policy());
                *self.lock() = Phase::Apart(FOUNDING);
                replication.found(manager);
            }
            None => self.serve(manager),
        }
    }

    /// The manager answers from here on.
    pub(super) fn serve(&self, manager: Manager) {
        *self.chain() = manager.history().to_vec();
        let clock = Arc::clone(&self.clock);
        self.know(manager.policy());
        match Desk::open(manager, move || clock()) {
            // The thread ends with the last desk; nobody takes the manager back.
            Ok((desk, _)) => *self.lock() = Phase::Running(desk),
            Err(error) => tracing::error!("the manager's thread cannot start: {error}; start the manager again"),
        }
    }

    fn chain(&self) -> MutexGuard<'_, Vec<Arc<PolicyFile>>> {
        // A chain is put in its place whole.
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many policies are known to have been in force.
    pub(super) fn known_policies(&self) -> usize {
        self.chain().len()
    }

    /// Policies that prove themselves by their signatures: the newest is in force, whoever tells it.
    pub fn learn(&self, chain: Vec<Arc<PolicyFile>>) {
        if chain.len() > self.known_policies() {
            let newest = chain.last().map(|file| Arc::clone(&file.policy));
            *self.chain() = chain;
            self.know(newest.as_ref());
        }
    }

    fn know(&self, policy: Option<&Arc<Policy>>) {
        let digest = policy.map(|policy| policy.digest());
        self.in_force.send_if_modified(|known| {
            let other = *known != digest;
            *known = digest;
            other
        });
    }

    fn desk(&self) -> Result<Desk, Status> {
        match &*self.lock() {
            Phase::Running(desk) => Ok(desk.clone()),
            Phase::Unreadable(why) => Err(word("unreadable", Code::FailedPrecondition, why)),
            Phase::Apart(_) => Err(self.not_leading()),
            phase => {
                let text = match phase.word() {
                    LOCKED => "it was started again and waits for recovery shares: `cloister manager recover`",
                    _ => "it waits for nodes that confirm its state",
                };
                Err(word("not-running", Code::Unavailable, text))
            }
        }
    }

    fn not_leading(&self) -> Status {
        let leader = self.replication.get().and_then(|replication| replication.leader());
        let text = match leader {
            Some(leader) => format!("this manager follows; {} at {} leads", leader.name, leader.address),
            None => "too few of the managers can be reached; nothing is granted until more of them can".to_owned(),
        };
        word("not-leading", Code::Unavailable, &text)
    }

    /// Of several managers a turn that failed is no fault of the store's alone: another one may lead.
    fn failed(&self, error: &StoreError) -> Status {
        let Some(replication) = self.replication.get() else {
            tracing::error!(%error, "the store");
            return word("store", Code::Internal, "the manager's store failed; its log says why");
        };
        tracing::warn!(%error, "this manager gives up leading");
        replication.step_down();
        self.not_leading()
    }

    /// Something that is decided and on the disk when this comes back, with the state's mark after it.
    pub async fn turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Turn<'_>) -> T + Send + 'static,
    ) -> Result<(T, Mark), Status> {
        let (sender, done) = oneshot::channel();
        let told = self.desk()?.submit(work, move |result| {
            // Who asked may have gone.
            let _ = sender.send(result);
        });
        told.map_err(|_| busy())?;
        done.await.map_err(|_| busy())?.map_err(|error| self.failed(&error))
    }

    /// A look at the state, which is the newest.
    pub async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Manager) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (sender, done) = oneshot::channel();
        let told = self.desk()?.between(move |manager| {
            let _ = sender.send(manager.confirm().map(|()| work(manager)));
        });
        told.map_err(|_| busy())?;
        done.await.map_err(|_| busy())?.map_err(|error| self.failed(&error))
    }

    /// Work between turns that changes more than a turn may: its answer comes when it is on the disk.
    async fn between<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Manager) -> Result<T, OpenError> + Send + 'static,
    ) -> Result<T, Status> {
        let (sender, done) = oneshot::channel();
        let told = self.desk()?.between(move |manager| {
            // Who asked may have gone.
            let _ = sender.send(work(manager));
        });
        told.map_err(|_| busy())?;
        // A copy that fails is no fault of the state; where the state's own commit failed, the next turn says so.
        done.await.map_err(|_| busy())?.map_err(|error| {
            tracing::error!(%error, "between turns");
            word("store", Code::FailedPrecondition, &error.to_string())
        })
    }

    /// Copies the sealed state to a new file.
    pub(super) async fn backup(&self, to: PathBuf) -> Result<Mark, Status> {
        let now = (self.clock)();
        self.between(move |manager| manager.backup(&to, now)).await
    }

    /// Splits the recovery key anew where others are to hold its shares than do, or another number is to open it; `anew`: in any case. Gives
    /// whether it did.
    pub async fn split_for(&self, plan: RecoveryPlan, anew: bool) -> Result<bool, Status> {
        let now = (self.clock)();
        self.between(move |manager| {
            let (threshold, mut holders) = manager.holders();
            let mut planned: Vec<_> = plan.holders.iter().map(|holder| holder.participant.as_str()).collect();
            holders.sort_unstable();
            planned.sort_unstable();
            let split = anew || threshold != plan.threshold || holders != planned;
            if split {
                manager.split_anew(&plan, now)?;
            }
            Ok(split)
        })
        .await
    }

    /// Waits until the nodes that are there have seen that state, up to a quorum of them.
    pub async fn seen(&self, mark: &Mark) -> Result<(), Status> {
        let audience = || {
            let now = (self.clock)();
            self.look(move |manager| manager.audience(now))
        };
        let seen = self.announcements.wait(mark, audience).await?;
        seen.map_err(|missing| word("unseen", Code::Unavailable, &missing))
    }

    /// The states that are announced, and what nodes say of them.
    pub(super) fn announcements(&self) -> &Announcements {
        &self.announcements
    }

    /// Says so if another policy took effect.
    pub async fn look_for_change(&self) -> Result<(), Status> {
        let policy = self.look(|manager| manager.policy().cloned()).await?;
        self.know(policy.as_ref());
        Ok(())
    }

    /// The policies in force until now, as files, the founding one first; none while it can't read them.
    pub async fn policies(&self) -> Vec<Arc<PolicyFile>> {
        let running = self.look(|manager| manager.history().to_vec()).await;
        running.unwrap_or_else(|_| self.chain().clone())
    }

    /// What it waits for, as far as that is known in each phase.
    pub fn status(&self) -> wire::StatusReply {
        let phase = self.lock();
        let mut reply = wire::StatusReply {
            federation: self.settings.federation.clone(),
            node: self.settings.node.clone(),
            anchor: convert::bytes_of(&self.settings.anchor),
            phase: phase.word().to_owned(),
            ..wire::StatusReply::default()
        };
        match &*phase {
            Phase::Locked { locked, shares } => {
                reply.shares_wanted = locked.threshold().into();
                reply.shares_from = shares.iter().map(|share| share.participant().to_owned()).collect();
            }
            Phase::Unconfirmed { loaded, statements } => {
                reply.witnesses_wanted = loaded
                    .quorum()
                    .map_or(0, |quorum| u32::try_from(quorum.wanted()).unwrap_or(u32::MAX));
                reply.witnesses = statements.keys().cloned().collect();
            }
            Phase::Running(_) | Phase::Between | Phase::Unreadable(_) | Phase::Apart(_) => {}
        }
        if let Some(replication) = self.replication.get() {
            replication.tell(&mut reply);
        }
        reply
    }

    /// A participant's sealed share, and the key that the opened one is to be sealed to.
    pub fn share_of(&self, participant: &str) -> Result<(SealedShare, SealingPublicKey), Status> {
        let phase = self.lock();
        let Phase::Locked { locked, .. } = &*phase else {
            return Err(no_share());
        };
        let share = locked.shares().iter().find(|share| share.participant == participant);
        let share = share.ok_or_else(|| {
            word(
                "no-share",
                Code::PermissionDenied,
                "you hold no recovery share of this store",
            )
        })?;
        Ok((share.clone(), self.own.public()))
    }

    /// Takes a share; with enough of them the state is read.
    pub async fn take_share(self: &Arc<Self>, who: &Visit, sealed: &SealedBox) -> Result<&'static str, Status> {
        let denied = |error: &dyn std::fmt::Display| word("share", Code::PermissionDenied, &error.to_string());
        let share =
            RecoveryShare::receive(&self.settings.federation, sealed, &self.own).map_err(|error| denied(&error))?;
        if who.participant() != Some(share.participant()) {
            return Err(word(
                "share",
                Code::PermissionDenied,
                "the share is another participant's than the one that brings it",
            ));
        }
        let standing = Arc::clone(self);
        // Reading the state takes its time.
        let read = tokio::task::spawn_blocking(move || standing.add_share(share));
        let read = read.await.map_err(|_| Status::internal("reading the state failed"))?;
        read.map_err(|error| match error {
            Some(error) => denied(&error),
            None => no_share(),
        })?;
        Ok(self.phase())
    }

    fn add_share(&self, share: RecoveryShare) -> Result<(), Option<OpenError>> {
        let (locked, shares) = {
            let mut phase = self.lock();
            match std::mem::replace(&mut *phase, Phase::Between) {
                Phase::Locked { locked, mut shares } => {
                    shares.retain(|known| known.participant() != share.participant());
                    shares.push(share);
                    if shares.len() < usize::from(locked.threshold()) {
                        *phase = Phase::Locked { locked, shares };
                        return Ok(());
                    }
                    (locked, shares)
                }
                other => {
                    *phase = other;
                    return Err(None);
                }
            }
        };
        if let Err(error) = locked.check(&shares) {
            // Which share is wrong stands in the error; all holders are asked again.
            tracing::warn!("the state is not opened: {error}");
            *self.lock() = Phase::Locked {
                locked,
                shares: Vec::new(),
            };
            return Err(Some(error));
        }
        let (settings, key) = self.settings();
        let recovered = match self.replication.get() {
            Some(_) => locked.recover_replica(&shares, settings, key),
            None => locked.recover(&shares, settings, key),
        };
        match recovered {
            Ok(loaded) => {
                self.know(loaded.policy());
                self.confirm(Box::new(loaded), BTreeMap::new());
                Ok(())
            }
            Err(error) => {
                *self.lock() = Phase::Unreadable(error.to_string());
                tracing::error!("the state can't be read: {error}");
                Err(Some(error))
            }
        }
    }

    /// Tries whether what was said is enough; gives why it is not.
    fn confirm(&self, loaded: Box<Loaded>, statements: BTreeMap<String, Statement>) -> Option<Refused> {
        let said: Vec<_> = statements.values().cloned().collect();
        let now = (self.clock)();
        let confirmed = match loaded.confirm(&said, now) {
            // Where no node is left, the holders of the shares may have said that they answer for it.
            Err((loaded, Refused::NoQuorum { .. } | Refused::NoPolicy)) => loaded.confirm_without_nodes(now),
            confirmed => confirmed,
        };
        match confirmed {
            Ok(manager) => {
                tracing::info!("the state is confirmed to be the newest");
                self.run(manager);
                None
            }
            Err((loaded, refused)) => {
                tracing::info!("the state is not confirmed: {refused}");
                *self.lock() = Phase::Unconfirmed { loaded, statements };
                Some(refused)
            }
        }
    }

    /// Takes what a node saw of this manager, and gives the phase after it.
    pub async fn hear(self: &Arc<Self>, who: Permit, newest: Option<Mark>) -> Result<&'static str, Status> {
        let standing = Arc::clone(self);
        let heard = tokio::task::spawn_blocking(move || {
            let mut phase = standing.lock();
            match std::mem::replace(&mut *phase, Phase::Between) {
                Phase::Unconfirmed { loaded, mut statements } => {
                    drop(phase);
                    let statement = Statement { permit: who, newest };
                    statements.insert(statement.permit.node().to_owned(), statement);
                    standing.confirm(loaded, statements)
                }
                other => {
                    *phase = other;
                    None
                }
            }
        });
        match heard.await {
            Ok(None | Some(Refused::NoQuorum { .. })) => Ok(self.phase()),
            Ok(Some(refused)) => Err(word(refused.code(), Code::PermissionDenied, &refused.to_string())),
            Err(_) => Err(Status::internal("confirming the state failed")),
        }
    }
}

fn busy() -> Status {
    word("busy", Code::Unavailable, "it has too much to do; try again")
}

fn no_share() -> Status {
    word(
        "not-locked",
        Code::PermissionDenied,
        "the manager waits for no shares: it can read its state",
    )
}
