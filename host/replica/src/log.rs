//! The log: in memory, from the start of this replica on. Its batches are written to the disk too before they count, for the day when all
//! managers are down at once; nothing of that is read by Raft again.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_manager::Ledger;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{Entry, EntryPayload, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote};

use crate::member::Types;

/// The log of one start of a replica. Clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    ledger: Arc<Ledger>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<u64, Entry<Types>>,
    purged: Option<LogId<u64>>,
    vote: Option<Vote<u64>>,
    bytes: usize,
}

impl Log {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        let inner = Arc::default();
        Self { ledger, inner }
    }

    /// How much the entries in memory hold.
    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is whole before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(entry: &Entry<Types>) -> usize {
    match &entry.payload {
        EntryPayload::Normal(payload) => payload.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// Works with the disk, on a thread that may wait.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, cloister_manager::StoreError> + Send + 'static,
) -> Result<T, io::Error> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?;
    done.map_err(io::Error::other)
}

fn not_written(error: &io::Error) -> StorageError<u64> {
    StorageIOError::write_logs(error).into()
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, StorageError<u64>> {
        let inner = self.lock();
        Ok(inner.entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let inner = self.lock();
        let last = inner.entries.last_key_value().map(|(_, entry)| entry.log_id);
        Ok(LogState {
            last_purged_log_id: inner.purged,
            last_log_id: last.or(inner.purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    /// A vote binds this start of the replica, which ends with its memory.
    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        self.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        Ok(self.lock().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batches = Vec::new();
        {
            let mut inner = self.lock();
            for entry in entries {
                if let EntryPayload::Normal(payload) = &entry.payload {
                    batches.push((entry.log_id.index, payload.0.to_vec()));
                }
                inner.bytes += bytes_of(&entry);
                inner.entries.insert(entry.log_id.index, entry);
            }
        }
        if !batches.is_empty() {
            let ledger = Arc::clone(&self.ledger);
            let kept = on_disk(move || ledger.keep(&batches)).await;
            kept.map_err(|error| not_written(&error))?;
        }
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId<u64>) -> Result<(), StorageError<u64>> {
        let (ledger, from) = (Arc::clone(&self.ledger), from.index);
        let taken_back = on_disk(move || ledger.take_back(from)).await;
        taken_back.map_err(|error| not_written(&error))?;
        let mut inner = self.lock();
        let gone = inner.entries.split_off(&from);
        inner.bytes -= gone.values().map(bytes_of).sum::<usize>();
        Ok(())
    }

    async fn purge(&mut self, through: LogId<u64>) -> Result<(), StorageError<u64>> {
        let mut inner = self.lock();
        let kept = inner.entries.split_off(&(through.index + 1));
        let gone = std::mem::replace(&mut inner.entries, kept);
        inner.bytes -= gone.values().map(bytes_of).sum::<usize>();
        inner.purged = Some(through);
        Ok(())
    }
}
