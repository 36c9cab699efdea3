//! What entries do: each batch goes into the ledger as it is.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_manager::{Batch, Ledger, StoreError};
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{
    Entry, EntryPayload, LogId, OptionalSend, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
};

use crate::log::on_disk;
use crate::member::{Member, Taken, Types};

/// The ledger as openraft sees it. Where it stands in the log is known in memory only, as the log is.
#[derive(Clone)]
pub(crate) struct Machine {
    ledger: Arc<Ledger>,
    /// Where copies lie while they are sent or received; they are sealed.
    folder: PathBuf,
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, Member>,
}

impl Machine {
    pub(crate) fn new(ledger: Arc<Ledger>, folder: &Path) -> Self {
        Self {
            ledger,
            folder: folder.to_path_buf(),
            applied: None,
            membership: StoredMembership::default(),
        }
    }

    fn meta(&self) -> SnapshotMeta<u64, Member> {
        let (term, index) = self.applied.map_or((0, 0), |id| (id.leader_id.term, id.index));
        SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: format!("{term}-{index}"),
        }
    }

    /// A file without a name: it is gone with whoever has it open.
    fn scratch(&self) -> Result<File, StoreError> {
        tempfile::tempfile_in(&self.folder).map_err(io("made"))
    }
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> StoreError {
    move |cause| StoreError::Io {
        what,
        cause: cause.to_string(),
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    /// The state is on the disk at any time, so there is nothing to build: the log before it may go, and who needs a copy gets the
    /// state of that moment.
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        let machine = self.clone();
        let file = on_disk(move || machine.scratch()).await;
        let file = file.map_err(|error| StorageIOError::write_snapshot(None, &error))?;
        Ok(Snapshot {
            meta: self.meta(),
            snapshot: Box::new(tokio::fs::File::from_std(file)),
        })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, Member>), StorageError<u64>> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Taken>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (mut batches, mut last, mut membership) = (Vec::new(), None, None);
        for entry in entries {
            batches.push(match entry.payload {
                EntryPayload::Normal(payload) => Batch::from_bytes(&payload.0),
                EntryPayload::Membership(members) => {
                    membership = Some(StoredMembership::new(Some(entry.log_id), members));
                    None
                }
                EntryPayload::Blank => None,
            });
            last = Some(entry.log_id);
        }
        let Some(last) = last else {
            return Ok(Vec::new());
        };
        let ledger = Arc::clone(&self.ledger);
        let taken = if batches.iter().any(Option::is_some) {
            on_disk(move || ledger.apply(&batches, last.index))
                .await
                .map_err(|error| StorageIOError::apply(last, &error))?
        } else {
            vec![false; batches.len()]
        };
        self.applied = Some(last);
        if let Some(membership) = membership {
            self.membership = membership;
        }
        Ok(taken.into_iter().map(Taken).collect())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<tokio::fs::File>, StorageError<u64>> {
        let machine = self.clone();
        let file = on_disk(move || machine.scratch()).await;
        let file = file.map_err(|error| StorageIOError::write_snapshot(None, &error))?;
        Ok(Box::new(tokio::fs::File::from_std(file)))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, Member>,
        snapshot: Box<tokio::fs::File>,
    ) -> Result<(), StorageError<u64>> {
        let (ledger, file) = (Arc::clone(&self.ledger), snapshot.into_std().await);
        let restored = on_disk(move || {
            let mut file = file;
            file.rewind().map_err(io("read"))?;
            ledger.restore(&mut BufReader::new(file))
        });
        restored
            .await
            .map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), &error))?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        if self.applied.is_none() {
            return Ok(None);
        }
        let machine = self.clone();
        let copied = on_disk(move || {
            let mut file = machine.scratch()?;
            let mut buffered = BufWriter::new(&mut file);
            machine.ledger.copy_to(&mut buffered)?;
            buffered.flush().map_err(io("copied"))?;
            drop(buffered);
            file.rewind().map_err(io("copied"))?;
            Ok(file)
        });
        let file = copied
            .await
            .map_err(|error| StorageIOError::read_snapshot(None, &error))?;
        Ok(Some(Snapshot {
            meta: self.meta(),
            snapshot: Box::new(tokio::fs::File::from_std(file)),
        }))
    }
}
