//! What a node runs: a sorted list of entries and its root.
//!
//! Root = SHA-384(`cloister/measurement/v1` | u32be count | for each entry: lp(role) | lp(name) | digest), the entries
//! sorted bytewise by (role, name). The list travels in the claims; a verifier computes the root anew and compares
//! entry by entry.

use std::fmt;
use std::str::FromStr;

use cloister_tensor::Digest;
use sha2::{Digest as _, Sha384};

use crate::encoding::{Layout, hex};

/// Most entries of a measurement.
pub const MAX_ENTRIES: usize = 256;
/// Longest name of an entry, in bytes.
pub const MAX_NAME_BYTES: usize = 96;

/// What an entry is a digest of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryRole {
    /// The host: binary, native libraries, security-relevant settings of the node.
    Host,
    /// The policy file's exact bytes.
    Policy,
    /// A WebAssembly component.
    Module,
    /// A training or evaluation graph.
    Graph,
    /// Commitment of a dataset.
    Data,
    /// Native code made in this TD out of a module. Shown; compared only if the policy fixes the instruction set.
    Compiled,
}

impl EntryRole {
    /// Every role.
    pub const ALL: [Self; 6] = [
        Self::Host,
        Self::Policy,
        Self::Module,
        Self::Graph,
        Self::Data,
        Self::Compiled,
    ];

    /// The role's text in the root and in the claims.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Policy => "policy",
            Self::Module => "module",
            Self::Graph => "graph",
            Self::Data => "data",
            Self::Compiled => "compiled",
        }
    }
}

impl fmt::Display for EntryRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EntryRole {
    type Err = MeasurementError;

    fn from_str(text: &str) -> Result<Self, MeasurementError> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or_else(|| MeasurementError::Role {
            seen: text.chars().take(32).collect(),
        })
    }
}

impl serde::Serialize for EntryRole {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One thing that a node runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Entry {
    /// What it is.
    pub role: EntryRole,
    /// Its name, 1 to 96 bytes, as in the policy.
    pub name: String,
    /// SHA-256 of its content.
    pub digest: Digest,
}

impl Entry {
    /// An entry.
    pub fn new(role: EntryRole, name: impl Into<String>, digest: Digest) -> Self {
        Self {
            role,
            name: name.into(),
            digest,
        }
    }

    fn key(&self) -> (&[u8], &[u8]) {
        (self.role.as_str().as_bytes(), self.name.as_bytes())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.role, self.name, self.digest)
    }
}

/// Why entries are no measurement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MeasurementError {
    /// More entries than a measurement may have.
    #[error("a measurement of {seen} entries, wanted at most {MAX_ENTRIES}")]
    TooMany {
        /// How many there were.
        seen: usize,
    },
    /// A name is empty, too long or holds control characters.
    #[error("a measurement entry {role} named {name:?}, wanted 1 to {MAX_NAME_BYTES} bytes without control characters")]
    Name {
        /// Role of the entry.
        role: EntryRole,
        /// The name, cut.
        name: String,
    },
    /// Two entries have the same role and name.
    #[error("the measurement has {role} {name} twice, wanted each role and name once")]
    Twice {
        /// Role of both.
        role: EntryRole,
        /// Name of both.
        name: String,
    },
    /// A role that is none.
    #[error("a measurement entry of role {seen:?}, wanted one of host, policy, module, graph, data, compiled")]
    Role {
        /// What stood there, cut.
        seen: String,
    },
}

/// SHA-384 over a measurement.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MeasurementRoot([u8; 48]);

impl MeasurementRoot {
    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 48] {
        &self.0
    }
}

impl fmt::Display for MeasurementRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for MeasurementRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for MeasurementRoot {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a node runs: sorted, without duplicates, at most [`MAX_ENTRIES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measurement {
    entries: Vec<Entry>,
    root: MeasurementRoot,
}

impl Measurement {
    /// Sorts the entries and computes the root.
    ///
    /// # Errors
    /// [`MeasurementError`] for too many entries, a bad name, or a role and name that come twice.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, MeasurementError> {
        if entries.len() > MAX_ENTRIES {
            return Err(MeasurementError::TooMany { seen: entries.len() });
        }
        for entry in &entries {
            if entry.name.is_empty() || entry.name.len() > MAX_NAME_BYTES || entry.name.chars().any(char::is_control) {
                let name = entry.name.chars().take(MAX_NAME_BYTES).collect();
                return Err(MeasurementError::Name { role: entry.role, name });
            }
        }
        entries.sort_by(|a, b| a.key().cmp(&b.key()));
        if let Some([twice, _]) = entries.array_windows().find(|[a, b]| a.key() == b.key()) {
            return Err(MeasurementError::Twice {
                role: twice.role,
                name: twice.name.clone(),
            });
        }
        let root = root(&entries);
        Ok(Self { entries, root })
    }

    /// The entries, sorted bytewise by (role, name).
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of that role and name.
    pub fn get(&self, role: EntryRole, name: &str) -> Option<&Entry> {
        self.entries
            .iter()
            .find(|entry| entry.role == role && entry.name == name)
    }

    /// SHA-384 over the entries.
    pub fn root(&self) -> MeasurementRoot {
        self.root
    }
}

fn root(entries: &[Entry]) -> MeasurementRoot {
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let layout = Layout::new("cloister/measurement/v1").raw(&count.to_be_bytes());
    let layout = entries.iter().fold(layout, |layout, entry| {
        layout
            .lp(entry.role.as_str().as_bytes())
            .lp(entry.name.as_bytes())
            .raw(entry.digest.as_bytes())
    });
    MeasurementRoot(Sha384::digest(layout.into_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(role: EntryRole, name: &str, content: &[u8]) -> Entry {
        Entry::new(role, name, Digest::of(content))
    }

    // Computed apart from this code: python3 -c with hashlib.sha384 over the layout in the module's heading.
    #[test]
    fn the_root_is_the_documented_one() {
        let measurement = Measurement::new(vec![
            entry(EntryRole::Policy, "digits", b"policy"),
            entry(EntryRole::Host, "cloister", b"binary"),
        ])
        .unwrap();
        assert_eq!(measurement.entries()[0].role, EntryRole::Host);
        assert_eq!(measurement.root().to_string(), ROOT);
    }

    const ROOT: &str =
        "3f4f4cb017fce58c00eb0bb9b63a5417d9db3cf929b1194f5796392cbf82460dee58616e669f7b8f219a5de5c9956db2";

    #[test]
    fn order_does_not_matter_and_content_does() {
        let a = entry(EntryRole::Module, "train", b"1");
        let b = entry(EntryRole::Graph, "train", b"2");
        let one = Measurement::new(vec![a.clone(), b.clone()]).unwrap();
        let two = Measurement::new(vec![b.clone(), a]).unwrap();
        assert_eq!(one, two);
        let other = Measurement::new(vec![entry(EntryRole::Module, "train", b"x"), b]).unwrap();
        assert_ne!(one.root(), other.root());
    }

    #[test]
    fn bad_lists_are_refused() {
        let twice = vec![entry(EntryRole::Module, "a", b"1"), entry(EntryRole::Module, "a", b"2")];
        assert!(matches!(Measurement::new(twice), Err(MeasurementError::Twice { .. })));
        let many = (0..257)
            .map(|i| entry(EntryRole::Module, &i.to_string(), b""))
            .collect();
        assert!(matches!(
            Measurement::new(many),
            Err(MeasurementError::TooMany { seen: 257 })
        ));
        for name in ["", "a\nb", &"x".repeat(97)] {
            let named = vec![entry(EntryRole::Data, name, b"")];
            assert!(matches!(Measurement::new(named), Err(MeasurementError::Name { .. })));
        }
        assert!("hosts".parse::<EntryRole>().is_err());
    }
}
