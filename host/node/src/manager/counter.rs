//! The vault's counter in the manager: a commit counts when the manager has confirmed it.
//!
//! A commit goes to the manager while the node goes on, and at most one is on its way: the next one, and whoever lets something out
//! (`settle`), waits for its answer first. So a vault is ahead of the manager by at most one commit, of which nothing was told.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use cloister_manager::Commit;
use cloister_tensor::Digest;
use cloister_vault::{CommitCounter, Seen, VaultError, VaultKeys};

use super::error::ManagerError;
use super::link::Link;

/// Commits that may be on their way.
const WINDOW: u64 = 1;

/// The counter of one vault.
pub struct ManagerCounter {
    link: Link,
    subject: [u8; 16],
    confirmed: Option<Commit>,
    /// The commit that is on its way, and where its answer comes.
    pending: Option<(Commit, Receiver<Result<(), ManagerError>>)>,
    /// How many commits were confirmed, and how long the node waited for that, all in all.
    confirmations: (u64, Duration),
}

impl Drop for ManagerCounter {
    fn drop(&mut self) {
        let (commits, waited) = self.confirmations;
        if commits > 0 {
            let ms = waited.as_secs_f64() * 1e3;
            tracing::info!(
                "the vault's counter: {commits} commits confirmed, for which this node waited {ms:.1} ms in all"
            );
        }
    }
}

impl ManagerCounter {
    /// The counter of the node's vault under the policy of that digest: another folder under the same policy is not another vault.
    pub fn new(link: Link, policy: &Digest) -> Self {
        let mut subject = [0; 16];
        subject.copy_from_slice(&policy.as_bytes()[..16]);
        Self {
            link,
            subject,
            confirmed: None,
            pending: None,
            confirmations: (0, Duration::ZERO),
        }
    }

    fn failed(&self, error: &ManagerError) -> VaultError {
        VaultError::NotConfirmed {
            record: self.place(),
            what: error.to_string(),
        }
    }

    fn settle_pending(&mut self) -> Result<(), VaultError> {
        let Some((commit, answer)) = self.pending.take() else {
            return Ok(());
        };
        let gone = || Err(ManagerError::Ended("its thread ended".to_owned()));
        let since = Instant::now();
        let answer = answer.recv().unwrap_or_else(|_| gone());
        answer.map_err(|error| self.failed(&error))?;
        self.confirmations.0 += 1;
        self.confirmations.1 += since.elapsed();
        self.confirmed = Some(commit);
        Ok(())
    }
}

/// What the manager keeps of a commit: which vault, and its index.
fn commit_of(seen: &Seen) -> Commit {
    let mut bytes = b"cloister/vault-commit/v1".to_vec();
    bytes.extend_from_slice(&seen.vault);
    bytes.extend_from_slice(&seen.index);
    Commit {
        version: seen.version,
        digest: Digest::of(&bytes),
    }
}

impl CommitCounter for ManagerCounter {
    fn place(&self) -> String {
        format!("the manager at {}", self.link.address())
    }

    fn newest(&mut self, _keys: &VaultKeys, found: Option<&Seen>) -> Result<Option<Seen>, VaultError> {
        let held = found.map(commit_of);
        let newest = self.link.counter(self.subject, held);
        self.confirmed = newest.map_err(|error| self.failed(&error))?;
        let confirmed = self.confirmed.map_or(0, |newest| newest.version);
        if let Some(found) = found
            && found.version > confirmed.saturating_add(WINDOW)
        {
            return Err(VaultError::BadRecord {
                record: self.place(),
                what: format!(
                    "it confirmed version {confirmed}, and the vault is at {}: more than the {WINDOW} commit that can be on its way",
                    found.version
                ),
            });
        }
        let Some(newest) = self.confirmed else {
            return Ok(None);
        };
        let Some(found) = found else {
            // Nothing is at hand where something was: its version is all that can be told.
            return Ok(Some(Seen {
                vault: [0; 16],
                version: newest.version,
                index: [0; 32],
            }));
        };
        let same = Some(newest) == held;
        Ok(Some(Seen {
            vault: found.vault,
            version: newest.version,
            index: if same { found.index } else { [0; 32] },
        }))
    }

    fn remember(&mut self, _keys: &VaultKeys, seen: &Seen) -> Result<(), VaultError> {
        self.settle_pending()?;
        let next = commit_of(seen);
        let answer = self.link.begin_commit(self.subject, (self.confirmed, next));
        self.pending = Some((next, answer));
        Ok(())
    }

    fn settle(&mut self) -> Result<(), VaultError> {
        self.settle_pending()
    }
}
