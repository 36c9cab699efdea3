//! Group commit: a thread that owns the manager, takes all work that waits, and writes it with one commit.

use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::error::StoreError;
use crate::manager::Manager;
use crate::turn::Turn;
use crate::witness::Mark;

/// Most work that waits; more is turned away.
pub const MAX_WAITING: usize = 1024;
/// Most work of one commit, so that the first does not wait for all others.
const MAX_TOGETHER: usize = 512;

/// The desk takes no more work at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// As much waits as may.
    #[error("the manager has {MAX_WAITING} requests waiting; ask again in a moment")]
    Full,
    /// The manager has ended.
    #[error("the manager has ended")]
    Ended,
}

/// Work of a turn, with whom to answer.
trait Work: Send {
    fn run(&mut self, turn: &mut Turn<'_>);
    fn answer(self: Box<Self>, committed: Result<Mark, StoreError>);
}

struct Typed<T, W, D> {
    work: Option<W>,
    value: Option<T>,
    done: D,
}

impl<T, W, D> Work for Typed<T, W, D>
where
    T: Send,
    W: FnOnce(&mut Turn<'_>) -> T + Send,
    D: FnOnce(Result<(T, Mark), StoreError>) + Send,
{
    fn run(&mut self, turn: &mut Turn<'_>) {
        self.value = self.work.take().map(|work| work(turn));
    }

    fn answer(self: Box<Self>, committed: Result<Mark, StoreError>) {
        let Self { value, done, .. } = *self;
        done(committed.and_then(|mark| Ok((value.ok_or(StoreError::Failed)?, mark))));
    }
}

enum Job {
    Turn(Box<dyn Work>),
    Look(Box<dyn FnOnce(&mut Manager) + Send>),
}

/// Where work for the manager is handed in, from any thread.
#[derive(Clone)]
pub struct Desk {
    jobs: SyncSender<Job>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Desk(..)")
    }
}

impl Desk {
    /// Starts the thread. It ends when all desks are gone, and gives the manager back then; `clock` gives it the time, in seconds since
    /// 1970.
    ///
    /// # Errors
    /// The system starts no thread.
    pub fn open(
        manager: Manager,
        clock: impl FnMut() -> u64 + Send + 'static,
    ) -> std::io::Result<(Self, JoinHandle<Manager>)> {
        let (jobs, waiting) = sync_channel(MAX_WAITING);
        let thread = std::thread::Builder::new().name("manager".to_owned());
        let thread = thread.spawn(move || serve(manager, &waiting, clock))?;
        Ok((Self { jobs }, thread))
    }

    /// Hands work in. `done` is called on the desk's thread, after the commit that has it: with what it gave, or with why nothing is known
    /// to be on disk. It must not wait for anything.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Turn<'_>) -> T + Send + 'static,
        done: impl FnOnce(Result<(T, Mark), StoreError>) + Send + 'static,
    ) -> Result<(), Busy> {
        let (work, value) = (Some(work), None);
        self.send(Job::Turn(Box::new(Typed { work, value, done })))
    }

    /// Hands in work between turns: to look at what is there, to make a backup, to split the recovery key anew.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn between(&self, work: impl FnOnce(&mut Manager) + Send + 'static) -> Result<(), Busy> {
        self.send(Job::Look(Box::new(work)))
    }

    fn send(&self, job: Job) -> Result<(), Busy> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Busy::Full,
            TrySendError::Disconnected(_) => Busy::Ended,
        })
    }
}

fn serve(mut manager: Manager, waiting: &Receiver<Job>, mut clock: impl FnMut() -> u64) -> Manager {
    let mut together: VecDeque<Box<dyn Work>> = VecDeque::new();
    let mut look = None;
    loop {
        if together.is_empty() && look.is_none() {
            match waiting.recv() {
                Ok(Job::Turn(work)) => together.push_back(work),
                Ok(Job::Look(next)) => look = Some(next),
                Err(_) => return manager,
            }
        }
        // A look wants to see what was handed in before it.
        while look.is_none() && together.len() < MAX_TOGETHER {
            match waiting.try_recv() {
                Ok(Job::Turn(work)) => together.push_back(work),
                Ok(Job::Look(next)) => look = Some(next),
                Err(_) => break,
            }
        }
        if together.is_empty() {
            if let Some(look) = look.take() {
                look(&mut manager);
            }
            continue;
        }
        let mut run = 0;
        let committed = manager.turn(clock(), |turn| {
            for work in &mut together {
                work.run(turn);
                run += 1;
                if turn.is_full() {
                    break;
                }
            }
        });
        let committed = committed.map(|((), mark)| mark);
        together.drain(..run).for_each(|work| work.answer(committed.clone()));
    }
}
