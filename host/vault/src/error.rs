//! What can go wrong with a vault, and what to do about it.

use std::path::{Path, PathBuf};

/// Why a vault did not do what was asked. Nothing is written when one of these is returned, but for what [`Self::Io`] says.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The system refused.
    #[error("{what} {path}: {cause}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        #[source]
        cause: std::io::Error,
    },
    /// The source of a new file could not be read to its end. The vault still holds the old version.
    #[error("the content for {name} could not be read: {cause}; the vault is unchanged")]
    Source {
        /// The file in the vault.
        name: String,
        /// The source's error.
        #[source]
        cause: std::io::Error,
    },
    /// There is no vault here.
    #[error("{0} holds no vault; `cloister vault init` makes one")]
    NoVault(PathBuf),
    /// There is something here already.
    #[error("{0} is not empty; a new vault wants an empty or missing folder")]
    NotEmpty(PathBuf),
    /// Another process writes to the vault.
    #[error("the vault {0} is in use by another process; wait for it to end")]
    InUse(PathBuf),
    /// The key opens nothing here, or the header was changed.
    #[error(
        "{path} does not open with this key: it belongs to another vault, file or version, or its header was changed"
    )]
    WrongKey {
        /// The sealed file.
        path: PathBuf,
    },
    /// A sealed file is not what was sealed.
    #[error("{path} is damaged or was tampered with: {what}")]
    Tampered {
        /// The sealed file.
        path: PathBuf,
        /// What doesn't fit.
        what: String,
    },
    /// The whole vault is older than what was seen before.
    #[error(
        "the vault {path} was rolled back: its version is {found}, but version {seen} was seen before ({record}). \
         Put the newest copy back"
    )]
    RolledBack {
        /// The vault.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The version seen before.
        seen: u64,
        /// Where that is recorded.
        record: String,
    },
    /// The vault has another history than the one that was seen.
    #[error(
        "the vault {path} is at version {version} like the record in {record}, but with other content: it is a copy that went its own way"
    )]
    Forked {
        /// The vault.
        path: PathBuf,
        /// The version of both.
        version: u64,
        /// Where the other history is recorded.
        record: String,
    },
    /// A new vault is to be made where one was.
    #[error(
        "no vault is at {path}, but version {seen} of one was seen before ({record}). Restore it; for a new vault, name another record"
    )]
    Gone {
        /// The vault's folder.
        path: PathBuf,
        /// The version on record.
        seen: u64,
        /// The record.
        record: String,
    },
    /// The record of the last seen version does not belong to this vault and key.
    #[error("{record} is not a last-seen record of this vault: {what}")]
    BadRecord {
        /// The record.
        record: String,
        /// What doesn't fit.
        what: String,
    },
    /// What keeps the record can't be asked or told.
    #[error("the vault's version is not confirmed by {record}: {what}")]
    NotConfirmed {
        /// Who keeps it.
        record: String,
        /// Why not.
        what: String,
    },
    /// There is no file of this name.
    #[error("the vault holds no file {name}{}", nearest.as_ref().map_or(String::new(), |near| format!("; did you mean {near}?")))]
    NoFile {
        /// The name.
        name: String,
        /// A file whose name is near.
        nearest: Option<String>,
    },
    /// Not a name for a file.
    #[error("{name:?} is no name for a file in a vault: {what}")]
    BadName {
        /// The name, cut to a bounded length.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A limit is reached.
    #[error("{what}: at most {limit}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A key file can't be used.
    #[error("the key file {path} {what}")]
    KeyFile {
        /// The key file.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// The vault was opened for reading.
    #[error("the vault {0} was opened for reading only")]
    ReadOnly(PathBuf),
    /// The operating system gives no randomness.
    #[error("no randomness from the operating system: {0}")]
    Randomness(String),
}

impl VaultError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |cause| Self::Io { what, path, cause }
    }

    pub(crate) fn tampered(path: &Path, what: impl Into<String>) -> Self {
        Self::Tampered {
            path: path.to_path_buf(),
            what: what.into(),
        }
    }
}
