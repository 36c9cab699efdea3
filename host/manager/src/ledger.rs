//! A replica's store: it takes what a leading manager committed, sealed as it is, and can become that manager.
//!
//! Whoever follows reads nothing of the state: batches are written as they come, each on the one state that it follows. To lead is
//! to read everything, as after a restart. Batches that may still be taken back lie beside the state, so that a loss of
//! all managers at once loses nothing that was answered.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_attestation::encoding::Layout;
use cloister_attestation::identity::SigningKey;
use redb::{Durability, ReadableTable as _, TableDefinition, TableError};
use zeroize::Zeroizing;

use crate::batch::{Batch, Commits, Position};
use crate::error::{OpenError, StoreError};
use crate::file::{File, guarded};
use crate::key::{RecordCipher, SecretKey};
use crate::manager::{Manager, Settings};
use crate::opening::read_whole;
use crate::sealing::{Purpose, SealedBox, SealingError, SealingKey, SealingPublicKey};
use crate::store::{self, LINES, RECORDS, TOP};
use crate::witness::StoreId;

/// Batches that were not applied yet, by their place in the log.
const WAITING: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("waiting");
/// Largest value of a table that a copy may bring.
const MAX_VALUE_BYTES: usize = 8 << 20;
/// What a copy begins with.
const COPY: &[u8; 16] = b"cloister-copy/v1";

/// The store of one replica, with its key.
pub struct Ledger {
    file: Arc<File>,
    store: StoreId,
    federation: String,
    key: SecretKey,
    position: Mutex<Option<Position>>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({} of {:?})", self.store, self.federation)
    }
}

impl Ledger {
    /// The store of a manager that ran alone until now, whose state was confirmed.
    ///
    /// # Errors
    /// [`StoreError::Failed`] of one whose last commit failed.
    pub fn of(manager: Manager) -> Result<Self, StoreError> {
        if manager.failed {
            return Err(StoreError::Failed);
        }
        let position = manager.position();
        let federation = manager.settings.federation.clone();
        let (file, about, cipher) = manager.store.into_parts();
        Ok(Self {
            file,
            store: about.store,
            federation,
            key: cipher.into_key(),
            position: Mutex::new(Some(position)),
        })
    }

    /// A replica's store, with the key that a leading manager handed over. What lies there already is of the same store; it is not
    /// believed, and is replaced by the first copy that comes.
    ///
    /// # Errors
    /// [`OpenError::Recovery`] for a key that is another's, [`OpenError::Other`] where another store lies, [`OpenError::Store`].
    pub fn receive(
        path: &Path,
        federation: &str,
        handed: &SealedBox,
        (own, context): (&SealingKey, &[u8]),
    ) -> Result<Self, OpenError> {
        let plain = own.open(Purpose::Replica, &handed_to(federation, context), handed);
        let plain = plain.map_err(crate::RecoveryError::from)?;
        let parts = plain.split_first_chunk::<16>();
        let parts = parts.and_then(|(store, key)| Some((StoreId::from_bytes(*store), SecretKey::from_slice(key)?)));
        let (store, key) = parts.ok_or(crate::RecoveryError::NoShare { bytes: plain.len() })?;
        let file = if path.exists() {
            File::open(path)?
        } else {
            File::create(path)?
        };
        let ledger = Self {
            file: Arc::new(file),
            store,
            federation: federation.to_owned(),
            key,
            position: Mutex::new(None),
        };
        if let Some(about) = guarded(|| ledger.about())?
            && about.store != store
        {
            return Err(OpenError::Other {
                what: "another manager",
                seen: about.store.to_string(),
                wanted: store.to_string(),
            });
        }
        Ok(ledger)
    }

    /// Hands the state's key to another replica's TD: sealed to a key that it made for this, and bound to who it is.
    ///
    /// # Errors
    /// [`SealingError`].
    pub fn hand_over(&self, to: &SealingPublicKey, context: &[u8]) -> Result<SealedBox, SealingError> {
        let mut plain = Zeroizing::new(Vec::with_capacity(48));
        plain.extend_from_slice(self.store.as_bytes());
        plain.extend_from_slice(self.key.as_bytes());
        to.seal(Purpose::Replica, &handed_to(&self.federation, context), &plain)
    }

    /// The newest state that this disk holds, with what waits on it, if all of it is whole: what a replica compares before it joins a
    /// manager that has not served yet. Nothing is said by a disk without a state.
    ///
    /// # Errors
    /// [`StoreError`] where something is not what a manager wrote.
    pub fn lies_at(&self) -> Result<Option<Position>, StoreError> {
        guarded(|| {
            if self.about()?.is_none() {
                return Ok(None);
            }
            let cipher = self.cipher()?;
            let head = store::read_head(&self.file, &cipher)?;
            let mut position = Position {
                version: head.version,
                digest: head.digest,
            };
            for batch in waiting(&self.file)? {
                if batch.base == position {
                    position = batch.after;
                }
            }
            Ok(Some(position))
        })
    }

    /// The state that was applied last in this run.
    pub fn position(&self) -> Option<Position> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Position>> {
        // A position is copied whole.
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cipher(&self) -> Result<RecordCipher, StoreError> {
        RecordCipher::new(self.store, self.key.copied()).ok_or(StoreError::Cryptography)
    }

    fn about(&self) -> Result<Option<crate::head::About>, StoreError> {
        match self.file.read()?.open_table(TOP) {
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            _ => store::about(&self.file).map(Some),
        }
    }

    /// Writes batches down before they count: they are on the disk when this comes back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn keep(&self, batches: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
        guarded(|| {
            let write = self.file.write()?;
            {
                let mut waiting = write.open_table(WAITING).map_err(StoreError::io("written"))?;
                for (index, batch) in batches {
                    waiting.insert(index, &batch[..]).map_err(StoreError::io("written"))?;
                }
            }
            write.commit().map_err(StoreError::io("written"))
        })
    }

    /// Takes back what was kept from that place on: another leader decided otherwise.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn take_back(&self, from: u64) -> Result<(), StoreError> {
        guarded(|| {
            let write = self.file.write()?;
            {
                let mut waiting = write.open_table(WAITING).map_err(StoreError::io("written"))?;
                waiting
                    .retain_in(from.., |_, _| false)
                    .map_err(StoreError::io("written"))?;
            }
            write.commit().map_err(StoreError::io("written"))
        })
    }

    /// Applies batches in their order; says of each whether it followed the state, or was passed over. What waited up to that place
    /// waits no more. It needs no fsync: what was kept is on the disk, and is applied again after a loss of power.
    ///
    /// # Errors
    /// [`StoreError`]: the replica has to end then.
    pub fn apply(&self, batches: &[Option<Batch>], through: u64) -> Result<Vec<bool>, StoreError> {
        guarded(|| {
            let mut position = self.lock();
            let mut at = *position;
            let mut write = self.file.write()?;
            write
                .set_durability(Durability::None)
                .map_err(StoreError::io("written"))?;
            let mut taken = Vec::with_capacity(batches.len());
            for batch in batches {
                let follows = batch.as_ref().filter(|batch| Some(batch.base) == at);
                if let Some(batch) = follows {
                    store::write_batch(&write, batch)?;
                    at = Some(batch.after);
                }
                taken.push(follows.is_some());
            }
            {
                let mut waiting = write.open_table(WAITING).map_err(StoreError::io("written"))?;
                waiting
                    .retain_in(..=through, |_, _| false)
                    .map_err(StoreError::io("written"))?;
            }
            write.commit().map_err(StoreError::io("written"))?;
            *position = at;
            Ok(taken)
        })
    }

    /// Copies the state, sealed as it is, to another replica.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn copy_to(&self, to: &mut dyn Write) -> Result<(), StoreError> {
        guarded(|| {
            let read = self.file.read()?;
            let mut put = |parts: &[&[u8]]| {
                let mut parts = parts.iter();
                parts
                    .try_for_each(|part| to.write_all(part))
                    .map_err(StoreError::io("copied"))
            };
            let position = self.position().ok_or(StoreError::Failed)?;
            put(&[COPY, &position.version.to_be_bytes(), position.digest.as_bytes()])?;
            macro_rules! copied {
                ($code:literal, $table:expr, $key:expr) => {
                    let table = read.open_table($table).map_err(StoreError::io("read"))?;
                    for entry in table.iter().map_err(StoreError::io("read"))? {
                        let (key, value) = entry.map_err(StoreError::io("read"))?;
                        let (key, value) = (key.value(), value.value());
                        let key: Vec<u8> = $key(key);
                        let [of_key, of_value] = [key.len(), value.len()].map(|length| (length as u32).to_be_bytes());
                        put(&[&[$code], &of_key, &key, &of_value, value])?;
                    }
                };
            }
            copied!(1, TOP, |key: &str| key.as_bytes().to_vec());
            copied!(2, RECORDS, |key: &[u8]| key.to_vec());
            copied!(3, LINES, |key: u64| key.to_be_bytes().to_vec());
            put(&[&[0]])
        })
    }

    /// Takes a copy in the place of all that lies here, in one commit.
    ///
    /// # Errors
    /// [`StoreError`] where it is no copy; what was there stays then.
    pub fn restore(&self, from: &mut dyn Read) -> Result<(), StoreError> {
        guarded(|| {
            let mut position = self.lock();
            let mut reader = CopyReader(from);
            if reader.array()? != *COPY {
                return Err(no_copy("it does not begin as one"));
            }
            let after = Position {
                version: u64::from_be_bytes(reader.array()?),
                digest: cloister_tensor::Digest::from_bytes(reader.array()?),
            };
            let write = self.file.write()?;
            for table in ["top", "records", "lines", "waiting"] {
                delete(&write, table)?;
            }
            {
                let mut top = write.open_table(TOP).map_err(StoreError::io("written"))?;
                let mut records = write.open_table(RECORDS).map_err(StoreError::io("written"))?;
                let mut lines = write.open_table(LINES).map_err(StoreError::io("written"))?;
                write.open_table(WAITING).map_err(StoreError::io("written"))?;
                loop {
                    let [table] = reader.array()?;
                    if table == 0 {
                        break;
                    }
                    let (key, value) = (reader.part(1024)?, reader.part(MAX_VALUE_BYTES)?);
                    let value = &value[..];
                    let done = match table {
                        1 => {
                            let key = str::from_utf8(&key).map_err(|_| no_copy("a name is no text"))?;
                            top.insert(key, value).map(drop)
                        }
                        2 => records.insert(&key[..], value).map(drop),
                        3 => {
                            let key = key.try_into().map_err(|_| no_copy("a line has no place"))?;
                            lines.insert(u64::from_be_bytes(key), value).map(drop)
                        }
                        _ => return Err(no_copy("it has a table that no store has")),
                    };
                    done.map_err(StoreError::io("written"))?;
                }
            }
            write.commit().map_err(StoreError::io("written"))?;
            *position = Some(after);
            Ok(())
        })
    }

    /// Reads and checks the whole state, and makes the manager that leads over it: what it commits goes to `commits`.
    ///
    /// # Errors
    /// [`OpenError::Other`], [`OpenError::Store`] where something is not what a manager wrote.
    pub fn lead(
        &self,
        settings: Settings,
        key: Arc<SigningKey>,
        commits: Box<dyn Commits>,
    ) -> Result<Manager, OpenError> {
        let about = guarded(|| self.about())?.ok_or(OpenError::Missing)?;
        let opened = store::Opened {
            file: Arc::clone(&self.file),
            about,
        };
        let mut manager = read_whole(opened, self.cipher()?, settings, key, true)?;
        if Some(manager.position()) != self.position() {
            let why = "another state lies in it than the one that was replicated";
            return Err(StoreError::tampered("a head", why).into());
        }
        manager.store.send_to(commits);
        Ok(manager)
    }
}

/// What waited when everything stopped is part of what was answered: it is applied before a store is read.
pub(crate) fn apply_waiting(file: &File, cipher: &RecordCipher) -> Result<(), StoreError> {
    let waiting = waiting(file)?;
    if waiting.is_empty() {
        return Ok(());
    }
    let head = store::read_head(file, cipher)?;
    let mut at = Position {
        version: head.version,
        digest: head.digest,
    };
    let write = file.write()?;
    for batch in waiting {
        if batch.base == at {
            store::write_batch(&write, &batch)?;
            at = batch.after;
        }
    }
    delete(&write, "waiting")?;
    write.commit().map_err(StoreError::io("written"))
}

fn waiting(file: &File) -> Result<Vec<Batch>, StoreError> {
    let read = file.read()?;
    let table = match read.open_table(WAITING) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
        table => table.map_err(StoreError::io("read"))?,
    };
    let mut found = Vec::new();
    for entry in table.iter().map_err(StoreError::io("read"))? {
        let (_, bytes) = entry.map_err(StoreError::io("read"))?;
        let batch = Batch::from_bytes(bytes.value());
        found.push(batch.ok_or_else(|| StoreError::tampered("a batch", "it is none"))?);
    }
    Ok(found)
}

fn delete(write: &redb::WriteTransaction, table: &str) -> Result<(), StoreError> {
    let deleted = match table {
        "top" => write.delete_table(TOP),
        "records" => write.delete_table(RECORDS),
        "lines" => write.delete_table(LINES),
        _ => write.delete_table(WAITING),
    };
    deleted.map(drop).map_err(StoreError::io("written"))
}

fn handed_to(federation: &str, context: &[u8]) -> Vec<u8> {
    Layout::new("").lp(federation.as_bytes()).lp(context).into_bytes()
}

fn no_copy(why: &str) -> StoreError {
    StoreError::tampered("a copy of the state", why)
}

/// A copy that is being read.
struct CopyReader<'a>(&'a mut dyn Read);

impl CopyReader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let mut array = [0; N];
        self.0.read_exact(&mut array).map_err(StoreError::io("copied"))?;
        Ok(array)
    }

    fn part(&mut self, most: usize) -> Result<Vec<u8>, StoreError> {
        let length = u32::from_be_bytes(self.array()?) as usize;
        if length > most {
            return Err(no_copy("a part of it is too long"));
        }
        let mut part = vec![0; length];
        self.0.read_exact(&mut part).map_err(StoreError::io("copied"))?;
        Ok(part)
    }
}
