//! Leases, so that of two instances of a node one alone counts.

use std::collections::BTreeMap;

use cloister_tensor::Digest;
use serde::{Deserialize, Serialize};

use crate::changes::Changes;
use crate::refused::Refused;

/// A node's leave to count up, for one of its instances at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The fencing token: a later lease has a higher one, and steps with a lower one are refused.
    pub token: u64,
    /// When it ends unless it is renewed before, in seconds since 1970 by the manager's clock.
    pub expires_unix_s: u64,
}

/// What leases are judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseTime {
    pub(crate) now_unix_s: u64,
    pub(crate) lease_s: u64,
}

impl LeaseTime {
    /// When a lease ends that is taken or renewed now.
    fn expiry_unix_s(self) -> u64 {
        self.now_unix_s.saturating_add(self.lease_s)
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    instance: Digest,
    token: u64,
    expires_unix_s: u64,
}

impl Held {
    /// One that ends later than it could if it were renewed now was given by a clock that jumped, and was set back since.
    fn lasts(&self, time: LeaseTime) -> bool {
        time.now_unix_s < self.expires_unix_s && self.expires_unix_s <= time.expiry_unix_s()
    }
}

/// All leases, by node.
#[derive(Debug, Default)]
pub(crate) struct Leases(BTreeMap<String, Held>);

impl Leases {
    pub(crate) const PREFIX: &str = "lease/";

    pub(crate) fn read(&mut self, node: &str, content: &[u8]) -> Result<(), String> {
        let held = serde_json::from_slice(content).map_err(|error| error.to_string())?;
        self.0.insert(node.to_owned(), held);
        Ok(())
    }

    /// Gives the instance the lease, or renews it. The second value says whether it is a new one.
    pub(crate) fn take(
        &mut self,
        node: &str,
        instance: Digest,
        time: LeaseTime,
        changes: &mut Changes,
    ) -> Result<(Lease, bool), Refused> {
        let before = self.0.get(node).copied();
        let alive = before.filter(|held| held.lasts(time));
        if let Some(other) = alive.filter(|held| held.instance != instance) {
            return Err(Refused::LeaseHeld {
                node: node.to_owned(),
                until_unix_s: other.expires_unix_s,
            });
        }
        // An instance whose lease ended may have been fenced meanwhile by nobody; it gets a new token all the same.
        let token = match alive {
            Some(own) => own.token,
            None => before.map_or(0, |held| held.token) + 1,
        };
        let held = Held {
            instance,
            token,
            expires_unix_s: time.expiry_unix_s(),
        };
        self.0.insert(node.to_owned(), held);
        changes.put(format!("{}{node}", Self::PREFIX), &held);
        let expires_unix_s = held.expires_unix_s;
        Ok((Lease { token, expires_unix_s }, alive.is_none()))
    }

    /// Ends a lease, so that another instance need not wait.
    pub(crate) fn give_back(
        &mut self,
        node: &str,
        token: u64,
        time: LeaseTime,
        changes: &mut Changes,
    ) -> Result<(), Refused> {
        self.holds(node, token, time)?;
        if let Some(held) = self.0.get_mut(node) {
            held.expires_unix_s = time.now_unix_s;
            changes.put(format!("{}{node}", Self::PREFIX), held);
        }
        Ok(())
    }

    /// The nodes that hold a lease.
    pub(crate) fn held(&self, time: LeaseTime) -> impl Iterator<Item = &str> {
        let alive = self.0.iter().filter(move |(_, held)| held.lasts(time));
        alive.map(|(node, _)| node.as_str())
    }

    /// Whether that token is the newest, and its lease has not ended.
    pub(crate) fn holds(&self, node: &str, token: u64, time: LeaseTime) -> Result<(), Refused> {
        let held = self.0.get(node);
        let newest = held.map_or(0, |held| held.token);
        match held {
            Some(held) if held.token == token && held.lasts(time) => Ok(()),
            _ => Err(Refused::Fenced {
                node: node.to_owned(),
                seen: token,
                newest,
            }),
        }
    }
}
