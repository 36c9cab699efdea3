//! The runner's process: started with nothing but a socket, watched, ended.

use std::io::Read;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal};

use crate::channel::Channel;
use crate::error::{Death, RunnerError};
use crate::options::RunnerOptions;

/// Bytes of the end of standard error that are kept.
const LAST_WORDS_BYTES: usize = 2048;
/// How long an ended process may take to be gone.
const REAP: Duration = Duration::from_secs(10);
/// Processor time beyond what was allowed before the kernel ends the process.
const SPARE_CPU_S: u64 = 5;
/// How long what an ended process wrote may take to arrive: its pipe ends with it, and is read by another thread.
const WORDS: Duration = Duration::from_millis(500);

/// A running runner; dropping it ends the process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) channel: Channel,
    handle: Handle,
}

/// What ends a process and knows how it ended; cloning shares it.
#[derive(Clone, Debug)]
struct Handle {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    end: Arc<End>,
    words: Arc<Words>,
}

#[derive(Debug, Default)]
struct End {
    status: Mutex<Option<ExitStatus>>,
    known: Condvar,
}

/// The end of what the process wrote to standard error, and whether that is all of it.
#[derive(Debug, Default)]
struct Words {
    kept: Mutex<Kept>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    ended: bool,
}

/// Ends a runner from another thread, for instance when the node stops.
#[derive(Clone, Debug)]
pub struct RunnerKiller(Handle);

impl RunnerKiller {
    /// Ends the process at once; whoever waits for it gets [`RunnerError::Died`].
    pub fn kill(&self) {
        self.0.kill();
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }
}

impl Process {
    pub(crate) fn start(options: &RunnerOptions) -> Result<Self, RunnerError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| RunnerError::Start { what, source }
        };
        let (channel, socket) = Channel::pair().map_err(|error| failed("socket pair")(std::io::Error::other(error)))?;
        let mut command = Command::new(&options.exe);
        // The socket is the runner's standard input: inherited by it and by no other process that starts at the same time.
        command
            .args(&options.args)
            .env_clear()
            .current_dir("/")
            .process_group(0);
        command
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let (tell, told) = mpsc::sync_channel(1);
        // The runner asks the kernel to end it when the *thread* that started it ends: so that thread does nothing but wait.
        std::thread::Builder::new()
            .name("runner-watch".to_owned())
            .spawn(move || watch(command, &tell))
            .map_err(failed("thread"))?;
        let handle = told
            .recv()
            .map_err(|_| failed("thread")(std::io::ErrorKind::BrokenPipe.into()))?;
        let handle = handle.map_err(failed(&options.exe.display().to_string()))?;
        Ok(Self { channel, handle })
    }

    pub(crate) fn killer(&self) -> RunnerKiller {
        RunnerKiller(self.handle.clone())
    }

    /// Lets the process compute for this long on each processor, and a little more; the kernel ends one that goes on.
    ///
    /// A process that computes though nothing is asked of it is ended too: that is what a duration of zero means.
    pub(crate) fn allow_computing(&self, time: Duration) {
        self.handle.allow_computing(time);
    }

    /// How the process ended after its connection closed.
    pub(crate) fn death(&self) -> Death {
        // It may have closed the connection and live on.
        let status = self.handle.end.wait(Duration::from_secs(1));
        self.handle.kill();
        match status.map(|status| (status.code(), status.signal())) {
            Some((Some(code), _)) => Death::Exited(code),
            Some((None, Some(signal))) => Death::Signal(signal),
            _ => Death::Unknown,
        }
    }

    /// Ends the process and waits until it is gone.
    pub(crate) fn kill(&self) {
        self.handle.kill();
        self.handle.end.wait(REAP);
    }

    /// The end of the standard error of a process that has ended, on one line.
    pub(crate) fn last_words(&self) -> String {
        let words = &self.handle.words;
        let kept = words.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, _) = words
            .ended
            .wait_timeout_while(kept, WORDS, |kept| !kept.ended)
            .unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept.bytes);
        text.trim()
            .chars()
            .map(|symbol| if symbol.is_control() { ' ' } else { symbol })
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Handle {
    /// Sets the process's limit of processor time, from what it has used.
    fn allow_computing(&self, time: Duration) {
        let id = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        // One that is gone, or going, needs no limit.
        let (Some(id), Some(used)) = (id, cpu_time(self.pid)) else {
            return;
        };
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let more = time.saturating_mul(u32::try_from(processors).unwrap_or(u32::MAX));
        let seconds = used.saturating_add(more).as_secs().saturating_add(SPARE_CPU_S);
        let may_raise = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
        let limit = Rlimit {
            current: Some(seconds),
            // A process that blocks the signal of the first limit meets the second. Whoever may not raise a limit again
            // sets the first alone.
            maximum: may_raise.then(|| seconds.saturating_add(1)),
        };
        if let Err(error) = rustix::process::prlimit(Some(id), Resource::Cpu, limit) {
            tracing::debug!("the runner's processor time is not limited: {error}");
        }
    }

    fn kill(&self) {
        // Gone already is as good.
        let _ = pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }
}

impl End {
    fn wait(&self, time: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + time;
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        while status.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            status = self
                .known
                .wait_timeout(status, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        *status
    }
}

/// Processor time that a process has used.
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, spaces and parentheses too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // proc(5): utime and stime are the 14th and 15th field, and the 3rd stands first here.
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_millis(
        user.saturating_add(system).saturating_mul(1000) / per_second,
    ))
}

/// Starts the process, tells its handle, and waits for its end.
fn watch(mut command: Command, tell: &mpsc::SyncSender<std::io::Result<Handle>>) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = tell.send(Err(error));
            return;
        }
    };
    // The command holds the runner's end of the socket pair; while it is open here, the runner's death would not show.
    drop(command);
    let end = Arc::new(End::default());
    let words = Arc::new(Words::default());
    if let Some(pipe) = child.stderr.take() {
        let words = Arc::clone(&words);
        // Without this thread the runner's words are lost, and nothing else.
        let _ = std::thread::Builder::new()
            .name("runner-words".to_owned())
            .spawn(move || words.listen(pipe));
    }
    let pid = i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .unwrap_or(Pid::INIT);
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Handle {
            pid: child.id(),
            pidfd: Arc::new(pidfd),
            end: Arc::clone(&end),
            words,
        }),
        Err(error) => {
            let _ = child.kill();
            Err(error.into())
        }
    };
    let _ = tell.send(handle);
    let status = child.wait().ok();
    *end.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    end.known.notify_all();
}

impl Words {
    /// Keeps the end of what the process writes.
    fn listen(&self, mut pipe: ChildStderr) {
        let mut chunk = [0; 1024];
        while let Ok(count @ 1..) = pipe.read(&mut chunk) {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.bytes.extend_from_slice(&chunk[..count]);
            let spare = kept.bytes.len().saturating_sub(LAST_WORDS_BYTES);
            kept.bytes.drain(..spare);
        }
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.ended.notify_all();
    }
}
