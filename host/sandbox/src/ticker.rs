//! The thread that lets running guests look at their deadline.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use wasmtime::Engine;

use crate::error::{ModuleErrorKind, Refusal};

#[derive(Default)]
struct Calls {
    running: usize,
    ended: bool,
}

type Shared = Arc<(Mutex<Calls>, Condvar)>;

fn lock(shared: &Shared) -> MutexGuard<'_, Calls> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Moves an engine's epoch on while a call runs, and sleeps otherwise.
pub(crate) struct Ticker {
    shared: Shared,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(crate) fn start(engine: Engine, tick: Duration) -> std::io::Result<Self> {
        let shared = Shared::default();
        let calls = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("sandbox-ticker".to_owned())
            .spawn(move || {
                let mut state = lock(&calls);
                while !state.ended {
                    if state.running == 0 {
                        state = calls.1.wait(state).unwrap_or_else(PoisonError::into_inner);
                    } else {
                        state = calls
                            .1
                            .wait_timeout(state, tick)
                            .unwrap_or_else(PoisonError::into_inner)
                            .0;
                        engine.increment_epoch();
                    }
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Ticks until the answer is dropped.
    pub(crate) fn run(&self) -> Running {
        lock(&self.shared).running += 1;
        self.shared.1.notify_all();
        Running {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        lock(&self.shared).ended = true;
        self.shared.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread's closure has nothing that could panic.
            let _ = thread.join();
        }
    }
}

/// A running call.
pub(crate) struct Running {
    shared: Shared,
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&self.shared).running -= 1;
    }
}

/// When a call has to be over.
#[derive(Debug)]
pub(crate) struct Deadline {
    end: Instant,
    limit: Duration,
    /// Set by whoever no longer wants what the call gives.
    stop: Option<Arc<AtomicBool>>,
}

impl Deadline {
    /// After `limit` or at `end`, whichever is earlier, or as soon as `stop` is set.
    pub(crate) fn within(limit: Duration, end: Option<Instant>, stop: Arc<AtomicBool>) -> Self {
        let mut deadline = Self::after(limit);
        if let Some(end) = end {
            deadline.end = deadline.end.min(end);
        }
        deadline.stop = Some(stop);
        deadline
    }

    /// When it is, if nobody gives time back.
    pub(crate) fn end(&self) -> Instant {
        self.end
    }

    pub(crate) fn after(limit: Duration) -> Self {
        let now = Instant::now();
        // A limit beyond what the clock can count is no limit in practice; a year is as good.
        let end = now.checked_add(limit).unwrap_or(now + Duration::from_secs(31_536_000));
        Self { end, limit, stop: None }
    }

    /// Time left.
    pub(crate) fn left(&self) -> Result<Duration, Refusal> {
        if self.stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(Refusal::new(
                ModuleErrorKind::Deadline,
                "nobody waits for the call any more",
            ));
        }
        match self.end.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(self.passed()),
        }
    }

    /// Gives back time that the host, not the guest, took.
    pub(crate) fn extend(&mut self, by: Duration) {
        self.end = self.end.checked_add(by).unwrap_or(self.end);
    }

    fn passed(&self) -> Refusal {
        let message = format!("the call took more than {:.3} s", self.limit.as_secs_f64());
        Refusal::new(ModuleErrorKind::Deadline, message)
    }
}
