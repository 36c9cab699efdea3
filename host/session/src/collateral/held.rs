//! The collateral that a node works with, part by part, and the thread that renews it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cloister_attestation::{VerifiedCollateral, Verifier};

use super::store::{Part, Store, StoreError};
use crate::local::Clock;

/// Shortest and longest time between two renewals, in seconds.
const SHORTEST_S: u64 = 60;
const LONGEST_S: u64 = 6 * 3600;
/// When a part is asked for again that is missing, in seconds.
const MISSING_S: u64 = 300;

/// What a store gave, and the verifier that judges by it.
#[derive(Debug)]
pub struct Held {
    store: Arc<Store>,
    parts: BTreeMap<Part, VerifiedCollateral>,
    verifier: Verifier,
}

impl Held {
    /// Begins with what the cache has and, for what it has not, with what the store gets. What can't be had is told in the log:
    /// quotes of those platforms are refused until it is there.
    ///
    /// # Errors
    /// [`StoreError`] if there is nothing at all to begin with.
    pub async fn begin(store: Arc<Store>, now_unix_s: u64) -> Result<Self, StoreError> {
        let mut parts = BTreeMap::new();
        let mut failed = Vec::new();
        for part in store.parts() {
            let had = match store.cached(part, now_unix_s) {
                Some(cached) => Ok(cached),
                None => store.get(part, now_unix_s).await,
            };
            match had {
                Ok(verified) => drop(parts.insert(part, verified)),
                Err(error) => failed.push(error),
            }
        }
        if parts.is_empty() {
            return Err(failed.into_iter().next().unwrap_or(StoreError::NoFamily));
        }
        for error in failed {
            tracing::warn!(
                "some collateral is missing: {error}; quotes of these platforms are refused until it is there"
            );
        }
        let together = together(&parts)?;
        let verifier = Verifier::new(store.root().clone(), together.collateral().clone());
        Ok(Self { store, parts, verifier })
    }

    /// The verifier; what is renewed counts for it and its clones.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Gets every part anew. Gives what could not be had: of that, the older part stays and counts as long as it holds.
    pub async fn renew(&mut self, now_unix_s: u64) -> Vec<StoreError> {
        let mut failed = Vec::new();
        let mut changed = false;
        for part in self.store.parts() {
            match self.store.get(part, now_unix_s).await {
                Ok(new) => {
                    // What is the same as before forgets nobody's verdict.
                    let text = |verified: &VerifiedCollateral| verified.collateral().to_json();
                    changed |= self.parts.get(&part).map(text) != Some(text(&new));
                    self.parts.insert(part, new);
                }
                Err(error) => failed.push(error),
            }
        }
        match together(&self.parts) {
            Ok(together) if changed => self.verifier.replace_collateral(&together),
            Ok(_) => {}
            Err(error) => failed.push(error),
        }
        failed
    }

    /// Seconds until [`Held::renew`] is due: when half of the time is over that is left to the first part to end. A part that
    /// is missing, or a bundle that somebody may bring, is looked for sooner.
    fn until_renewal_s(&self, now_unix_s: u64) -> u64 {
        if self.store.is_bundle() {
            return SHORTEST_S;
        }
        let ends = self
            .parts
            .values()
            .flat_map(|verified| verified.collateral().dates())
            .map(|dates| dates.next_update_unix_s)
            .min()
            .unwrap_or(0);
        let longest = if self.parts.len() < self.store.parts().len() {
            MISSING_S
        } else {
            LONGEST_S
        };
        (ends.saturating_sub(now_unix_s) / 2).clamp(SHORTEST_S, longest)
    }
}

fn together(parts: &BTreeMap<Part, VerifiedCollateral>) -> Result<VerifiedCollateral, StoreError> {
    let all: Vec<_> = parts.values().cloned().collect();
    VerifiedCollateral::together(&all).ok_or(StoreError::TooMany { seen: all.len() })
}

/// Keeps a verifier's collateral new for as long as it is held.
#[derive(Debug)]
pub struct Refresher {
    stop: Sender<()>,
    thread: Option<JoinHandle<()>>,
}

impl Refresher {
    /// Fills a verifier with collateral, out of the cache or, where that has not all, out of the store's supply; then renews it
    /// in the background: out of a service when half of its time is over, at the latest every six hours; a bundle is
    /// looked at each minute. Blocks until the first is there.
    ///
    /// # Errors
    /// [`StoreError`] if there is no collateral to begin with.
    pub fn start(store: Arc<Store>, clock: Clock) -> Result<(Self, Verifier), StoreError> {
        let thread = |error: std::io::Error| StoreError::Thread {
            cause: error.to_string(),
        };
        let (first_tx, first_rx) = channel();
        let (stop, stopped) = channel();
        let worker = std::thread::Builder::new().name("collateral".into()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = first_tx.send(Err(thread(error)));
                    return;
                }
            };
            let mut held = match runtime.block_on(Held::begin(store, clock())) {
                Ok(held) => held,
                Err(error) => {
                    let _ = first_tx.send(Err(error));
                    return;
                }
            };
            if first_tx.send(Ok(held.verifier().clone())).is_err() {
                return;
            }
            let mut told = Vec::new();
            loop {
                let wait = Duration::from_secs(held.until_renewal_s(clock()));
                match stopped.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
                let failed = runtime.block_on(held.renew(clock()));
                let failed: Vec<_> = failed.iter().map(ToString::to_string).collect();
                // Said once, and not each minute.
                for error in failed.iter().filter(|error| !told.contains(*error)) {
                    tracing::warn!("collateral not renewed: {error}; what is there is used as long as it holds");
                }
                told = failed;
            }
        });
        let worker = worker.map_err(thread)?;
        let verifier = first_rx.recv().map_err(|_| StoreError::Thread {
            cause: "it ended early".into(),
        })??;
        Ok((
            Self {
                stop,
                thread: Some(worker),
            },
            verifier,
        ))
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        // A fetch in flight ends by its own timeouts; nobody waits for it.
        drop(self.thread.take());
    }
}
