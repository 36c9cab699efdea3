//! How often an address may arrive, and one identity may have a session: the first costs this node a TLS handshake, the second
//! a quote.
//!
//! A bucket an identity, of tokens that come back with time. Identities are nodes by their node key, once their evidence
//! verified, and visitors by the participant that signed or, for nobody's, by address. So whoever floods spends its own
//! tokens, and members have theirs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloister_attestation::PeerEvidence;

/// Most identities remembered. Those whose bucket is full again are forgotten first: it makes no difference.
const MAX_IDENTITIES: usize = 4096;

/// How often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Sessions at once.
    pub burst: u32,
    /// One more after each of these.
    pub every: Duration,
}

/// Whose bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Identity {
    Node([u8; 32]),
    Participant(String),
    Address(IpAddr),
}

impl Identity {
    /// Of a peer whose evidence verified.
    pub(crate) fn of(peer: &PeerEvidence, address: IpAddr) -> Self {
        match peer {
            PeerEvidence::Td(td) => Self::Node(*td.node_key().as_bytes()),
            PeerEvidence::Visitor(visitor) => match visitor.participant() {
                Some(participant) => Self::Participant(participant.to_owned()),
                None => Self::Address(crate::crowd::network(address)),
            },
        }
    }
}

/// When each identity's bucket is full again: `full_at - burst * every` is when its first token was taken.
#[derive(Debug)]
pub(crate) struct Rates {
    rate: Rate,
    full_at: Mutex<HashMap<Identity, Instant>>,
}

impl Rates {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            full_at: Mutex::default(),
        }
    }

    /// Takes a token; else says how long until there is one.
    pub(crate) fn take(&self, identity: &Identity, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_IDENTITIES && !buckets.contains_key(identity) {
            buckets.retain(|_, full_at| *full_at > now);
            if buckets.len() >= MAX_IDENTITIES {
                return Err(self.rate.every);
            }
        }
        let full_at = buckets.get(identity).copied().unwrap_or(now).max(now) + self.rate.every;
        let most = now + self.rate.every * self.rate.burst.max(1);
        if full_at > most {
            return Err(full_at - most);
        }
        buckets.insert(identity.clone(), full_at);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 3,
        every: Duration::from_secs(10),
    };

    #[test]
    fn a_burst_then_one_at_a_time_and_nobody_pays_for_another() {
        let rates = Rates::new(RATE);
        let (one, other) = (Identity::Node([1; 32]), Identity::Participant("beta".into()));
        let start = Instant::now();
        for _ in 0..3 {
            rates.take(&one, start).unwrap();
        }
        assert_eq!(rates.take(&one, start), Err(Duration::from_secs(10)));
        rates.take(&other, start).unwrap();
        let later = start + Duration::from_secs(10);
        rates.take(&one, later).unwrap();
        assert!(rates.take(&one, later).is_err());
        let much_later = later + Duration::from_secs(1000);
        for _ in 0..3 {
            rates.take(&one, much_later).unwrap();
        }
        assert!(rates.take(&one, much_later).is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let rates = Rates::new(RATE);
        let start = Instant::now();
        let identity = |index: u32| Identity::Address(IpAddr::from(index.to_be_bytes()));
        for index in 0..MAX_IDENTITIES as u32 {
            rates.take(&identity(index), start).unwrap();
        }
        assert!(rates.take(&identity(u32::MAX), start).is_err());
        rates.take(&identity(0), start).unwrap();
        rates
            .take(&identity(u32::MAX), start + Duration::from_secs(11))
            .unwrap();
        assert!(rates.full_at.lock().unwrap().len() <= 2);
    }
}
