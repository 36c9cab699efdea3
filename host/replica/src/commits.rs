//! A leading manager's commits: they stand when most replicas have kept them.

use std::sync::Arc;
use std::time::Duration;

use cloister_manager::{Batch, Commits, Ledger, MAX_BATCH_BYTES, Position, StoreError};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::log::Log;
use crate::member::{Payload, Raft};

/// How long a leader waits for most of the others. What takes longer may stand or not; the state is read again then.
const PATIENCE: Duration = Duration::from_secs(10);
/// The log in memory is cut when it holds more.
const LOG_BYTES: usize = 64 << 20;

/// Where a leading manager's commits go. It is called on the manager's own thread, which waits.
pub(crate) struct ToReplicas {
    pub(crate) raft: Raft,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) log: Log,
    pub(crate) runtime: Handle,
}

impl Commits for ToReplicas {
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        let bytes = batch.to_bytes();
        if bytes.len() > MAX_BATCH_BYTES {
            return Err(StoreError::TooLarge(bytes.len()));
        }
        self.runtime.block_on(async {
            let written = self.raft.client_write(Payload(bytes.into()));
            let written = timeout(PATIENCE, written).await;
            let written = written.map_err(|_| not("most managers do not answer"))?;
            let written = written.map_err(|error| not(&error.to_string()))?;
            if self.log.bytes() > LOG_BYTES {
                let cut = self.raft.trigger().snapshot().await;
                cut.map_err(|error| not(&error.to_string()))?;
            }
            if written.data.0 {
                Ok(())
            } else {
                Err(not("another state is the newest"))
            }
        })
    }

    fn confirm(&mut self, at: &Position) -> Result<(), StoreError> {
        // A timer is made within the runtime.
        let asked = async { timeout(PATIENCE, self.raft.ensure_linearizable()).await };
        let asked = self.runtime.block_on(asked);
        let asked = asked.map_err(|_| not("most managers do not answer"))?;
        asked.map_err(|error| not(&error.to_string()))?;
        if self.ledger.position().as_ref() == Some(at) {
            Ok(())
        } else {
            Err(not("another state is the newest"))
        }
    }
}

fn not(why: &str) -> StoreError {
    StoreError::NotLeading(why.to_owned())
}
