//! One request at a time to something that may take long, or not come back at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::provider::ProviderError;

/// A kernel's or a service's one way to a quote. A request that is given up may still be under way inside the kernel, which
/// nothing can call back: until it ends, the next one is refused.
#[derive(Debug, Default)]
pub(super) struct Device {
    taken: Arc<AtomicBool>,
}

/// Free again when dropped, also should the request panic.
struct Turn(Arc<AtomicBool>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Device {
    /// Runs a request on a thread of its own, and waits for it no longer than `wait`.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        provider: &'static str,
        wait: Duration,
        request: impl FnOnce() -> Result<T, ProviderError> + Send + 'static,
    ) -> Result<T, ProviderError> {
        let failed = |cause: String| ProviderError::Failed { provider, cause };
        if self.taken.swap(true, Ordering::AcqRel) {
            return Err(failed("an earlier request has not come back yet".into()));
        }
        let turn = Turn(Arc::clone(&self.taken));
        let (tell, told) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("quote".to_owned()).spawn(move || {
            let turn = turn;
            let answer = request();
            // Free before the answer is there: whoever has it may ask again at once.
            drop(turn);
            // Whoever gave up does not hear of it.
            let _ = tell.send(answer);
        });
        thread.map_err(|error| failed(format!("no thread: {error}")))?;
        match told.recv_timeout(wait) {
            Ok(answer) => answer,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(failed(format!("it gave no answer in {:.0} s", wait.as_secs_f64())))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(failed("the thread that asks it has stopped".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_come_back_is_given_up_and_not_asked_again_meanwhile() {
        let device = Device::default();
        let (release, released) = mpsc::channel::<()>();
        let late = device.ask("slow", Duration::from_millis(20), move || {
            let _ = released.recv();
            Ok(())
        });
        assert!(late.unwrap_err().to_string().contains("no answer in"));
        let second = device.ask("slow", Duration::from_secs(5), || Ok(()));
        assert!(second.unwrap_err().to_string().contains("has not come back"));
        drop(release);
        while device.taken.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        device.ask("slow", Duration::from_secs(5), || Ok(())).unwrap();
    }

    #[test]
    fn a_request_that_panics_leaves_the_device_free() {
        let device = Device::default();
        let outcome: Result<(), _> = device.ask("odd", Duration::from_secs(5), || panic!("odd"));
        assert!(outcome.unwrap_err().to_string().contains("stopped"));
        while device.taken.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        device.ask("odd", Duration::from_secs(5), || Ok(())).unwrap();
    }
}
