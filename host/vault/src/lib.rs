//! Sealed storage: files that only the holder of the vault key can read, change, mix or roll back unseen.
//!
//! The byte layout stands in `FORMAT.md` beside this crate, with test vectors. In short: each file has a key of its own, derived
//! from the vault key and a fresh salt at every rewrite and bound to the vault, the file's name, its version and the key epoch;
//! the header commits to that key; the content is AES-256-GCM in segments of 64 KiB that can be read at random; an authenticated
//! index lists the version of every file, so that versions can't be mixed. A whole older vault shows only against something
//! outside of it ([`CommitCounter`]); without one the vault says [`Freshness::NotProven`].
//!
//! A commit is atomic: a crash at any instant leaves the old or the new version of the vault.
#![forbid(unsafe_code)]

mod cipher;
mod error;
mod format;
mod index;
mod key;
mod name;
mod parcel;
mod reader;
mod seal;
mod seen;
mod store;

pub use cipher::Cipher;
pub use error::VaultError;
pub use format::{HEADER_BYTES, Header, READ_AHEAD_BYTES, SEGMENT_BYTES, VaultId};
pub use index::{Entry, Index};
pub use key::{VaultKey, VaultKeys};
pub use name::FileName;
pub use parcel::{PARCEL_HEADER_BYTES, ParcelError, ParcelKind, is_parcel, open_parcel, seal_parcel};
pub use reader::SealedReader;
pub use seal::{Subject, seal};
pub use seen::{CommitCounter, LastSeenFile, Seen};
pub use store::{Access, Freshness, Vault};
