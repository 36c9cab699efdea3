//! Ends runs at their deadlines, from a thread that otherwise sleeps.
//!
//! An inference that another thread of the library's runs, while this one waits with a time limit, costs two changes of
//! threads a step: some tens of microseconds each where processors idle in a virtual machine. So an inference runs in the thread
//! that asks for it, and the rare one that lasts too long is cancelled from here.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A run that was cancelled and has not ended is cancelled again after this: it may not have begun the first time.
const AGAIN: Duration = Duration::from_millis(10);

/// A run that can be cancelled from another thread.
pub trait Cancel: Send + Sync {
    /// Asks the run to end soon; does nothing if none is under way.
    fn cancel(&self);
}

/// The thread and what it watches. It is started with the first run that has a deadline.
#[derive(Default)]
pub struct Watchdog {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    runs: Vec<Run>,
    last: u64,
    /// When the thread wakes by itself; `None` while it has nothing to wait for.
    wakes_at: Option<Instant>,
    ended: bool,
}

struct Run {
    number: u64,
    deadline: Instant,
    run: Arc<dyn Cancel>,
}

/// A run that is being watched; dropping it ends the watch.
#[must_use = "the watch ends when it is dropped"]
pub struct Watch<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Watchdog {
    /// Cancels `run` from `deadline` on until the answer is dropped.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn watch(&self, run: Arc<dyn Cancel>, deadline: Instant) -> std::io::Result<Watch<'_>> {
        self.start()?;
        let mut state = self.shared.lock();
        state.last += 1;
        let number = state.last;
        state.runs.push(Run { number, deadline, run });
        // Mostly the thread already sleeps until some earlier run's deadline, and is left to.
        if state.wakes_at.is_none_or(|wakes_at| deadline < wakes_at) {
            self.shared.changed.notify_one();
        }
        Ok(Watch {
            shared: &self.shared,
            number,
        })
    }

    fn start(&self) -> std::io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let started = std::thread::Builder::new().name("engine-watchdog".to_owned());
            *thread = Some(started.spawn(move || shared.guard())?);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runs = self.shared.lock().runs.len();
        f.debug_struct("Watchdog").field("runs", &runs).finish_non_exhaustive()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Its closure has nothing that could panic.
            let _ = thread.join();
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // The thread cancels under the same lock: after this, no cancellation of this run is to come.
        self.shared.lock().runs.retain(|run| run.number != self.number);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every state is sound, so one that a panic left behind is too.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn guard(&self) {
        let mut state = self.lock();
        while !state.ended {
            let now = Instant::now();
            let next = state.runs.iter().map(|run| {
                if run.deadline <= now {
                    run.run.cancel();
                    now + AGAIN
                } else {
                    run.deadline
                }
            });
            let next = next.min();
            state.wakes_at = next;
            state = match next {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(at) => {
                    let time = at.saturating_duration_since(now);
                    let woken = self.changed.wait_timeout(state, time);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counted(AtomicU32);

    impl Cancel for Counted {
        fn cancel(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn until(what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() && begin.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(what());
    }

    #[test]
    fn only_what_is_late_is_cancelled_and_again_until_it_ends() {
        let watchdog = Watchdog::default();
        let (late, early) = (Arc::new(Counted::default()), Arc::new(Counted::default()));
        let now = Instant::now();
        let one = watchdog.watch(early.clone(), now + Duration::from_secs(3600)).unwrap();
        let other = watchdog.watch(late.clone(), now + Duration::from_millis(1)).unwrap();
        until(|| late.0.load(Ordering::Relaxed) >= 2);
        drop((one, other));
        let seen = late.0.load(Ordering::Relaxed);
        // A later run is watched by the same thread, which sleeps until the first one's deadline.
        let next = watchdog.watch(early.clone(), now).unwrap();
        until(|| early.0.load(Ordering::Relaxed) >= 1);
        drop(next);
        assert_eq!(late.0.load(Ordering::Relaxed), seen, "cancelled after its end");
    }
}
