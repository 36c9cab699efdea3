//! What a keeper verifies with, and when: collateral that is fetched and renewed, and a clock that does not go back behind what
//! was seen.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use cloister_attestation::{TrustRoot, Verifier, simulated, time};
use cloister_policy::Policy;
use cloister_session::Clock;
use cloister_session::collateral::{Client, PlatformFamily, Refresher, Source, Store, Supply};

use super::config::{CollateralSource, NodeConfig};
use crate::ui::{Exit, fail, failed, now_unix_s, unreadable};

/// What the clock says when it can't be believed: the last second of the year 9999, at which nothing holds any more.
const NEVER_UNIX_S: u64 = 253_402_300_799;

/// The collateral of a node that fetches it.
pub struct Fetched {
    /// The verifier, whose collateral is renewed.
    pub verifier: Verifier,
    /// Cache and watermarks.
    pub store: Arc<Store>,
    /// Renews it for as long as it is held.
    pub refresher: Refresher,
}

/// Fetches what the section `[collateral]` names, or takes it from its cache or its bundle. Blocks; not to be called on an async
/// thread.
pub fn fetch(
    source: &CollateralSource,
    config: &NodeConfig,
    policy: &Policy,
    root: &TrustRoot,
) -> Result<Fetched, miette::Report> {
    let supply = match (&source.url, &source.bundle) {
        (Some(url), _) => service(url, source, config, policy)?,
        (None, Some(bundle)) => Supply::Bundle(bundle.clone()),
        (None, None) => return Err(no_source()),
    };
    let store = Store::open(&source.cache, root.clone(), supply).map_err(|error| fail(Exit::Failed, error))?;
    let store = Arc::new(store);
    let clock = clock(store.floor_unix_s(), policy.attestation.max_clock_skew_s)?;
    let (refresher, verifier) =
        Refresher::start(Arc::clone(&store), clock).map_err(|error| fail(Exit::Failed, error))?;
    Ok(Fetched {
        verifier,
        store,
        refresher,
    })
}

/// Collateral is wanted, and nothing says whence.
pub fn no_source() -> miette::Report {
    failed(
        Exit::Usage,
        "the node file names no source of collateral, without which no peer's quote can be verified",
        Some("add [collateral] with `cache` and `url` (a PCCS, or Intel's PCS) or `bundle` (a file of `cloister quote collateral`)".into()),
    )
}

/// A service, and the families that it is asked for: those that the node file names with their authority, and of the policy's
/// those that it does not name, which are then under the platforms' authority.
fn service(
    url: &str,
    source: &CollateralSource,
    config: &NodeConfig,
    policy: &Policy,
) -> Result<Supply, miette::Report> {
    let proxy = config.proxy.as_deref().map(str::parse).transpose();
    let client = Client::new(&Source {
        url: url.to_owned(),
        authorities: source.authorities.clone(),
        proxy: proxy.map_err(unreadable)?,
    });
    let named = source.platforms.iter().map(|text| text.parse::<PlatformFamily>());
    let mut families = named
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| failed(Exit::Usage, format!("[collateral] platforms: {error}"), None))?;
    let simulated = policy.attestation.simulated.then_some(simulated::FMSPC);
    for fmspc in policy.attestation.fmspc.iter().copied().chain(simulated) {
        if families.iter().all(|family| family.fmspc != fmspc) {
            families.push(fmspc.into());
        }
    }
    families.sort_unstable();
    families.dedup();
    Ok(Supply::Service {
        client: client.map_err(unreadable)?,
        families,
    })
}

/// The wall clock, held to what was seen: it starts at no less than the floor (the newest date in collateral that verified),
/// and goes on at least as the monotonic clock does. Where the wall clock is behind by more than the skew, no time is told at
/// which anything holds: every peer is refused until it is right again.
pub fn clock(floor_unix_s: u64, max_skew_s: u64) -> Result<Clock, miette::Report> {
    let held = Held::start(now_unix_s(), floor_unix_s, max_skew_s).map_err(|behind_s| {
        failed(
            Exit::Failed,
            format!(
                "the clock is {behind_s} s behind {}, when collateral was issued that this node has verified",
                time::format(floor_unix_s)
            ),
            Some("set the clock; the policy's `max_clock_skew_s` says how far it may be off".into()),
        )
    })?;
    let start = Instant::now();
    let told = AtomicBool::new(false);
    let held = Mutex::new(held);
    Ok(Arc::new(move || {
        // Plain numbers stand behind the lock: they are whole at any time.
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        match held.tell(now_unix_s(), start.elapsed().as_secs()) {
            Ok(now) => {
                told.store(false, Ordering::Relaxed);
                now
            }
            Err(behind_s) => {
                if !told.swap(true, Ordering::Relaxed) {
                    tracing::error!("the clock went back by {behind_s} s: peers are refused until it is right again");
                }
                NEVER_UNIX_S
            }
        }
    }))
}

/// A moment that was reached, in the wall clock's seconds and in the monotonic clock's.
struct Held {
    unix_s: u64,
    elapsed_s: u64,
    max_skew_s: u64,
}

impl Held {
    fn start(wall_unix_s: u64, floor_unix_s: u64, max_skew_s: u64) -> Result<Self, u64> {
        let behind_s = floor_unix_s.saturating_sub(wall_unix_s);
        if behind_s > max_skew_s {
            return Err(behind_s);
        }
        Ok(Self {
            unix_s: wall_unix_s.max(floor_unix_s),
            elapsed_s: 0,
            max_skew_s,
        })
    }

    /// The time, or by how many seconds the wall clock is too far behind.
    fn tell(&mut self, wall_unix_s: u64, elapsed_s: u64) -> Result<u64, u64> {
        let least = self.unix_s.saturating_add(elapsed_s.saturating_sub(self.elapsed_s));
        let behind_s = least.saturating_sub(wall_unix_s);
        if behind_s > self.max_skew_s {
            return Err(behind_s);
        }
        if wall_unix_s > least {
            (self.unix_s, self.elapsed_s) = (wall_unix_s, elapsed_s);
        }
        Ok(wall_unix_s.max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_goes_back_and_refuses_where_it_is_set_back() {
        let mut held = Held::start(1000, 900, 60).unwrap();
        assert_eq!(held.tell(1010, 10), Ok(1010));
        assert_eq!(
            held.tell(990, 20),
            Ok(1020),
            "a little behind: the monotonic clock goes on"
        );
        assert_eq!(held.tell(900, 30), Err(130));
        assert_eq!(held.tell(1035, 40), Ok(1040), "set right again");
        assert_eq!(held.tell(5000, 41), Ok(5000), "forwards it may go, and then not back");
        assert_eq!(held.tell(1042, 42), Err(3959));
    }

    #[test]
    fn no_start_behind_what_was_seen() {
        assert!(matches!(Held::start(1000, 1061, 60), Err(61)));
        assert_eq!(Held::start(1000, 1060, 60).map(|held| held.unix_s).ok(), Some(1060));
        assert!(clock(NEVER_UNIX_S, 60).is_err());
        let clock = clock(0, 60).unwrap();
        assert!(clock() >= 1_700_000_000);
    }
}
