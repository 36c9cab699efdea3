//! Opening a manager's store: shares make the key, reading it makes a state that is whole, and witnesses make it the newest.

use std::path::Path;
use std::sync::Arc;

use cloister_attestation::identity::SigningKey;
use cloister_audit::Checkpoint;
use cloister_policy::Policy;
use serde_json::json;

use crate::error::{OpenError, StoreError};
use crate::file::guarded;
use crate::head::About;
use crate::key::{RecordCipher, SecretKey};
use crate::ledger::apply_waiting;
use crate::manager::{Manager, Settings};
use crate::refused::Refused;
use crate::share::{RecoveryShare, Remembered, SealedShare};
use crate::state::State;
use crate::store::{Contents, Opened, Store, read_head};
use crate::witness::{Mark, Quorum, Statement, StoreId, compare, confirm};

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
        self.recovered(shares, settings, key, false)
    }

    /// As [`Locked::recover`], for the store of a replica: what waited there is applied first, and any of the managers may have written it.
    ///
    /// # Errors
    /// As [`Locked::recover`].
    pub fn recover_replica(
        self,
        shares: &[RecoveryShare],
        settings: Settings,
        key: Arc<SigningKey>,
    ) -> Result<Loaded, OpenError> {
        self.recovered(shares, settings, key, true)
    }

    fn recovered(
        self,
        shares: &[RecoveryShare],
        settings: Settings,
        key: Arc<SigningKey>,
        replica: bool,
    ) -> Result<Loaded, OpenError> {
        let state_key = self.key(shares)?;
        same("the federation", self.federation(), &settings.federation)?;
        let said = shares
            .iter()
            .map(|share| (share.participant().to_owned(), share.remembered().clone()));
        let said = said.collect();
        let cipher = RecordCipher::new(self.store(), state_key).ok_or(StoreError::Cryptography)?;
        let manager = read_whole(self.opened, cipher, settings, key, replica)?;
        Ok(Loaded { manager, said })
    }
}

/// Reads and checks a whole store. Of a replica's the log goes by the name of the manager that made it, and others signed its lines: what
/// vouches for them is the state's seal.
pub(crate) fn read_whole(
    opened: Opened,
    cipher: RecordCipher,
    mut settings: Settings,
    key: Arc<SigningKey>,
    replica: bool,
) -> Result<Manager, OpenError> {
    guarded(|| apply_waiting(&opened.file, &cipher))?;
    if replica {
        settings.node = guarded(|| read_head(&opened.file, &cipher))?.node;
    }
    let mut state = State::new(&settings.federation, settings.anchor);
    let (store, contents) = Store::load(opened, cipher, settings.subject(), &mut state)?;
    let Contents { head, chain } = contents;
    same("the node", &head.node, &settings.node)?;
    same("the anchor", &head.anchor.to_string(), &settings.anchor.to_string())?;
    if !replica {
        chain
            .verify(&key.public())
            .map_err(|error| StoreError::tampered("an audit log", error.to_string()))?;
    }
    let complete = state.agreement.complete();
    complete.map_err(|why| StoreError::tampered("a chain of policies", why))?;
    Ok(Manager {
        store,
        state,
        head,
        chain,
        key,
        settings,
        failed: false,
    })
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
