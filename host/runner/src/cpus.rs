//! The processors that a runner keeps to.
//!
//! A matter of speed between processes of one machine, not of confinement: what runs there may ask for others again.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use rustix::thread::CpuSet;
use serde::{Deserialize, Serialize};

/// Longest list that is read.
const MAX_TEXT_BYTES: usize = 4096;

/// Processors by the kernel's numbers, as `0-3,8` writes them; at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cpus(BTreeSet<usize>);

/// Why a text is no list of processors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{piece:?} is no list of processors: {wanted}, such as \"0-3,8\"")]
pub struct CpusError {
    piece: String,
    wanted: String,
}

impl Cpus {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Has this thread, and every one that it starts from now on, run on these processors.
    ///
    /// Fails where this process may not have one of them, or the machine has no such.
    pub(crate) fn keep_to(&self) -> Result<(), String> {
        let refused = |cause: String| {
            format!(
                "the engine is to run on the processors {self}: {cause}; correct `cpus`, or what the operating system lets the \
                 node use"
            )
        };
        let mut wanted = CpuSet::new();
        self.0.iter().for_each(|&cpu| wanted.set(cpu));
        let set = rustix::thread::sched_setaffinity(None, &wanted);
        let seen = set
            .and_then(|()| rustix::thread::sched_getaffinity(None))
            .map_err(|error| match error {
                // What the kernel says where it knows none of them.
                rustix::io::Errno::INVAL => {
                    refused("this machine, or what the node may use of it, has none of them".into())
                }
                error => refused(error.to_string()),
            })?;
        // The kernel takes a list of which it has a part, and leaves the rest out.
        let missing: BTreeSet<usize> = self.0.iter().copied().filter(|&cpu| !seen.is_set(cpu)).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(refused(format!(
                "{} is not there, or not this process's",
                Self(missing)
            )))
        }
    }
}

impl FromStr for Cpus {
    type Err = CpusError;

    fn from_str(text: &str) -> Result<Self, CpusError> {
        let refuse = |piece: &str, wanted: &str| CpusError {
            piece: piece.chars().take(64).collect(),
            wanted: wanted.to_owned(),
        };
        if text.len() > MAX_TEXT_BYTES {
            return Err(refuse(text, &format!("at most {MAX_TEXT_BYTES} bytes are read")));
        }
        let highest = CpuSet::MAX_CPU - 1;
        let number = |piece: &str, digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.parse().ok().filter(|&cpu: &usize| plain && cpu <= highest);
            number.ok_or_else(|| {
                refuse(
                    piece,
                    &format!("numbers from 0 to {highest}, and ranges of them, are wanted"),
                )
            })
        };
        let mut cpus = BTreeSet::new();
        for piece in text.split(',').map(str::trim) {
            let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
            let (first, last) = (number(piece, first)?, number(piece, last)?);
            if first > last {
                return Err(refuse(piece, "the end of a range comes before its begin"));
            }
            for cpu in first..=last {
                if !cpus.insert(cpu) {
                    return Err(refuse(piece, &format!("{cpu} is named twice")));
                }
            }
        }
        Ok(Self(cpus))
    }
}

impl TryFrom<String> for Cpus {
    type Error = CpusError;

    fn try_from(text: String) -> Result<Self, CpusError> {
        text.parse()
    }
}

impl From<Cpus> for String {
    fn from(cpus: Cpus) -> Self {
        cpus.to_string()
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}
