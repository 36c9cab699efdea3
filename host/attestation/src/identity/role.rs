//! What a node does in a federation.

use std::fmt;
use std::str::FromStr;

/// What a node does in a federation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Has data and trains on it.
    Worker,
    /// Aggregates the workers' updates.
    Aggregator,
    /// Holds keys and counters, and has the policy agreed.
    Manager,
    /// Answers inference requests.
    Server,
    /// Recomputes rounds.
    Auditor,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [
        Self::Worker,
        Self::Aggregator,
        Self::Manager,
        Self::Server,
        Self::Auditor,
    ];

    /// The role's text: lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Aggregator => "aggregator",
            Self::Manager => "manager",
            Self::Server => "server",
            Self::Auditor => "auditor",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("role {seen:?}, wanted one of worker, aggregator, manager, server, auditor")]
pub struct UnknownRole {
    seen: String,
}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| UnknownRole {
            seen: text.chars().take(32).collect(),
        })
    }
}

impl serde::Serialize for Role {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for Role {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}
