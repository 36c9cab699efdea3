//! Long connections are attested anew: how long a peer's evidence is believed, and how it is shown again.
//!
//! A connection is believed as long as its permit: at most the policy's `permit_max_s`. In the last quarter of that time the
//! end that dialled opens a second session to the same peer, with new nonces, quotes, verdicts and today's collateral, both
//! ways; when both ends accept and the peer shows the claims (so the TLS key) of the first, both ends believe the first
//! connection for another term, and the second is closed. A peer that is refused then, or does not come back in time, loses
//! the first connection as well. No message of the session protocol is needed for that, and the rounds on the first
//! connection go on meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use cloister_attestation::PeerEvidence;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;

use crate::connection::Peer;
use crate::dial::{DialOptions, connect_once};
use crate::local::{Clock, Local};

/// Until when a peer is believed, in seconds since 1970. Whoever holds it keeps the renewal going.
#[derive(Debug)]
pub(crate) struct Lease {
    until_unix_s: watch::Sender<u64>,
}

impl Lease {
    pub(crate) fn new(until_unix_s: u64) -> Arc<Self> {
        Arc::new(Self {
            until_unix_s: watch::Sender::new(until_unix_s),
        })
    }

    pub(crate) fn until_unix_s(&self) -> u64 {
        *self.until_unix_s.borrow()
    }

    fn extend(&self, until_unix_s: u64) {
        self.until_unix_s.send_if_modified(|until| {
            // One that has ended stays so: its streams may have been cut in the meantime.
            let longer = *until != 0 && until_unix_s > *until;
            if longer {
                *until = until_unix_s;
            }
            longer
        });
    }

    fn end(&self) {
        self.until_unix_s.send_replace(0);
    }
}

/// The leases of a listener's live connections, by the claims that their peers showed.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    by_claims: Mutex<HashMap<[u8; 32], Vec<Weak<Lease>>>>,
}

impl Leases {
    /// A node was let in: its other connections are believed as long as this one.
    pub(crate) fn admitted(&self, peer: &Peer) {
        let PeerEvidence::Td(evidence) = peer.evidence() else {
            return;
        };
        let mut leases = self.by_claims.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as connections live: those of closed ones go.
        leases.retain(|_, of_peer| {
            of_peer.retain(|lease| lease.strong_count() > 0);
            !of_peer.is_empty()
        });
        let of_peer = leases.entry(*evidence.claims_digest().as_bytes()).or_default();
        for lease in of_peer.iter().filter_map(Weak::upgrade) {
            lease.extend(peer.expires_unix_s());
        }
        of_peer.push(Arc::downgrade(peer.lease()));
    }
}

/// What the dialler's renewal knows of the connection; it does not keep the connection alive.
struct Renewal {
    local: Local,
    options: DialOptions,
    claims_digest: [u8; 32],
    lease: Weak<Lease>,
    gone: watch::Receiver<u64>,
}

/// Keeps a dialled connection attested until it is closed.
pub(crate) fn keep(local: &Local, options: &DialOptions, peer: &Peer) {
    let PeerEvidence::Td(evidence) = peer.evidence() else {
        return;
    };
    let renewal = Renewal {
        local: local.clone(),
        options: options.clone(),
        claims_digest: *evidence.claims_digest().as_bytes(),
        lease: Arc::downgrade(peer.lease()),
        gone: peer.lease().until_unix_s.subscribe(),
    };
    tokio::spawn(renewal.run());
}

/// What to do about a connection that was attested for `term_s` and is believed until then.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    Wait(Duration),
    Renew,
    Over,
}

/// The wall clock is looked at again and again: a host that moves it moves no deadline by more than a pause.
fn due(now_unix_s: u64, until_unix_s: u64, term_s: u64) -> Due {
    match until_unix_s.saturating_sub(now_unix_s) {
        0 => Due::Over,
        left if left <= term_s / 4 => Due::Renew,
        _ => Due::Wait(Duration::from_secs((term_s / 60).clamp(1, 30))),
    }
}

impl Renewal {
    async fn run(mut self) {
        let term_s = self.local.policy.attestation.permit_max_s;
        let clock: Clock = Arc::clone(&self.local.clock);
        loop {
            let until = *self.gone.borrow_and_update();
            let pause = match due(clock(), until, term_s) {
                Due::Over => return,
                Due::Wait(pause) => pause,
                Due::Renew => {
                    if self.renew().await {
                        continue;
                    }
                    Duration::from_secs((term_s / 60).clamp(1, 30))
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.gone.changed() => {
                    if changed.is_err() {
                        return; // closed
                    }
                }
            }
        }
    }

    /// Shows and sees evidence anew. Says whether that settled the matter.
    async fn renew(&self) -> bool {
        let address = &self.options.address;
        let dialled = connect_once(&self.local, &self.options).await;
        let Some(lease) = self.lease.upgrade() else {
            return true;
        };
        let mut fresh = match dialled {
            Ok(fresh) => fresh,
            Err(error) if error.refusal().is_some() => {
                tracing::warn!(%error, "{address} was attested anew and refused: its connection ends");
                lease.end();
                return true;
            }
            Err(error) => {
                tracing::info!(%error, "{address} could not be attested anew yet");
                return false;
            }
        };
        let same = match fresh.peer().evidence() {
            PeerEvidence::Td(evidence) => evidence.claims_digest().as_bytes() == &self.claims_digest,
            PeerEvidence::Visitor(_) => false,
        };
        if same {
            lease.extend(fresh.peer().expires_unix_s());
            tracing::debug!("{address} was attested anew");
        } else {
            tracing::warn!("another node, or the same one started anew, answers at {address}: the old connection ends");
            lease.end();
        }
        // Nothing depends on how it is closed.
        let _ = tokio::time::timeout(Duration::from_secs(1), fresh.shutdown()).await;
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_in_the_last_quarter() {
        assert_eq!(due(1000, 4600, 3600), Due::Wait(Duration::from_secs(30)));
        assert_eq!(due(3700, 4600, 3600), Due::Renew);
        assert_eq!(due(4600, 4600, 3600), Due::Over);
        assert_eq!(due(9999, 0, 3600), Due::Over);
        assert_eq!(due(1000, 1060, 60), Due::Wait(Duration::from_secs(1)));
    }

    #[test]
    fn a_lease_grows_and_once_ended_stays_so() {
        let lease = Lease::new(100);
        lease.extend(50);
        assert_eq!(lease.until_unix_s(), 100);
        lease.extend(150);
        assert_eq!(lease.until_unix_s(), 150);
        lease.end();
        lease.extend(200);
        assert_eq!(lease.until_unix_s(), 0);
    }
}
