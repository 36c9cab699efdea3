//! A node that is asked to end does not wait for what its runner computes: nobody would take it. One that lost its lease is asked to.

use std::sync::{Arc, Mutex, PoisonError};

use cloister_runner::{Runner, RunnerKiller};
use tokio_util::sync::CancellationToken;

use crate::keeper::Keeper;
use crate::ui::{Exit, failed};

/// Asks the node to end once its manager says that this instance must not go on; on a task of the runtime that this is called in.
pub fn fence(keeper: &Keeper, cancel: &CancellationToken) {
    if let Some(link) = &keeper.link {
        let (link, lost, cancel) = (link.clone(), link.lost(), cancel.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = lost.cancelled() => cancel.cancel(),
                () = cancel.cancelled() => link.ask_to_end(),
            }
        });
    }
}

/// The node ends: its lease is free for the next instance.
///
/// # Errors
/// It did not end by itself: the manager stopped it.
pub fn give_lease_back(keeper: &Keeper) -> Result<(), miette::Report> {
    let Some(link) = &keeper.link else { return Ok(()) };
    if let Some(lost) = link.why_lost() {
        if lost.unanswered {
            tracing::warn!(
                "stopped; standing by until the manager answers, since it may have to hear what was seen of it: {}",
                lost.why
            );
            link.stand_by();
        }
        return Err(failed(
            Exit::Denied,
            format!(
                "stopped, since the manager lets this instance of {} not go on: {}",
                keeper.config.name, lost.why
            ),
            Some(
                "one instance of a node runs at a time, under the policy in force; start it again if no other one runs"
                    .into(),
            ),
        ));
    }
    link.give_back();
    Ok(())
}

/// Ends the node's runner once the node is asked to end. Clones share it.
#[derive(Clone, Debug)]
pub struct Ending {
    cancel: CancellationToken,
    runner: Arc<Mutex<Option<RunnerKiller>>>,
}

impl Ending {
    /// Watches from now on, on a task of the runtime that this is called in.
    pub fn watch(cancel: CancellationToken, runner: &Runner) -> Self {
        let ending = Self {
            cancel,
            runner: Arc::new(Mutex::new(runner.killer())),
        };
        let watching = ending.clone();
        tokio::spawn(async move {
            watching.cancel.cancelled().await;
            watching.kill();
        });
        ending
    }

    /// Whether the node is asked to end.
    pub fn asked(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Brings a runner that died back, so that the next round finds one; not where the node ends. Gives why it did not come.
    pub fn revive(&self, runner: &mut Runner) -> Option<cloister_runner::RunnerError> {
        if runner.pid().is_some() || self.asked() {
            return None;
        }
        let failed = runner.restart().err();
        *self.runner.lock().unwrap_or_else(PoisonError::into_inner) = runner.killer();
        if self.asked() {
            // The request came while it started.
            self.kill();
        }
        failed
    }

    fn kill(&self) {
        if let Some(killer) = &*self.runner.lock().unwrap_or_else(PoisonError::into_inner) {
            killer.kill();
        }
    }
}
