//! A copy of the sealed state for a participant to keep.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cloister_wire::manager as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::{ManagerService, word};

/// Bytes of one message.
const PIECE_BYTES: usize = 1 << 20;
/// How long a participant may leave a piece lying.
const NEXT_PIECE: Duration = Duration::from_secs(60);

impl ManagerService {
    /// Makes a copy and sends it; one at a time, and each costs the disk as much as the state is large for that long.
    pub(super) async fn copy_out(&self) -> Result<ReceiverStream<Result<wire::BackupPiece, Status>>, Status> {
        let busy = |_| {
            word(
                "busy",
                Code::Unavailable,
                "a backup is being made; ask again when it is done",
            )
        };
        let turn = Arc::clone(&self.copying).try_acquire_owned().map_err(busy)?;
        let failed = |error: &std::io::Error| {
            tracing::error!(%error, "making a backup");
            word("store", Code::Internal, "the backup failed; the manager's log says why")
        };
        let folder = tempfile::Builder::new().prefix("backup-").tempdir_in(&self.folder);
        let folder = folder.map_err(|error| failed(&error))?;
        let path = folder.path().join("state.redb");
        // In a task of its own: who hangs up meanwhile leaves the place taken until the copy that it asked for is made.
        let (standing, to) = (Arc::clone(&self.standing), path.clone());
        let made = tokio::spawn(async move { standing.backup(to).await.map(|_| (turn, folder)) });
        let (turn, folder) = made.await.map_err(|_| Status::internal("the backup failed"))??;
        let mut file = std::fs::File::open(&path).map_err(|error| failed(&error))?;
        let length = file.metadata().map_err(|error| failed(&error))?.len();
        let (send, pieces) = mpsc::channel(1);
        tokio::spawn(async move {
            let _turn = turn;
            let _folder = folder;
            loop {
                let read = tokio::task::spawn_blocking(move || {
                    let mut piece = Vec::with_capacity(PIECE_BYTES);
                    let read = file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece);
                    read.map(|_| (file, piece))
                });
                let piece = match read.await {
                    Ok(Ok((again, piece))) => {
                        file = again;
                        piece
                    }
                    Ok(Err(error)) => return drop(send.send_timeout(Err(failed(&error)), NEXT_PIECE).await),
                    Err(_) => return,
                };
                if piece.is_empty() {
                    return;
                }
                let piece = Bytes::from(piece);
                // One that takes nothing more has gone.
                if send
                    .send_timeout(Ok(wire::BackupPiece { piece, length }), NEXT_PIECE)
                    .await
                    .is_err()
                {
                    return;
                }
            }
        });
        Ok(ReceiverStream::new(pieces))
    }
}
