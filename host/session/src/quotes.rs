//! Quotes one at a time, behind a bounded queue.
//!
//! Kernels take a second a quote under one mutex, and hosts have crashed under many parallel requests. So a node asks
//! its provider for one quote at a time, and refuses more waiters than fit the time of a handshake.

use std::sync::Arc;

use cloister_attestation::{ProviderError, QuoteProvider};
use tokio::sync::Semaphore;

/// Most requests that wait or run at one time.
const MAX_WAITING: usize = 64;

/// Why there is no quote.
#[derive(Debug, thiserror::Error)]
pub enum QuoteError {
    /// The provider said no.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// Too many wait already.
    #[error("{MAX_WAITING} requests wait for the quote device already; try again later")]
    Busy,
    /// The thread that asked the provider ended early.
    #[error("the thread that asks the quote provider has stopped")]
    Stopped,
}

/// The node's one way to its quote provider. Clones share the queue.
#[derive(Clone)]
pub struct QuoteService {
    provider: Arc<dyn QuoteProvider>,
    device: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl QuoteService {
    /// Puts the queue before a provider.
    pub fn new(provider: Arc<dyn QuoteProvider>) -> Self {
        Self {
            provider,
            device: Arc::new(Semaphore::new(1)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }

    /// The provider's name, for logs.
    pub fn name(&self) -> &'static str {
        self.provider.name()
    }

    /// Whether quotes come from a simulation.
    pub fn simulated(&self) -> bool {
        self.provider.simulated()
    }

    /// A quote over these 64 bytes. If the caller gives up, a request that reached the device still runs to its end
    /// before the next one starts.
    pub async fn quote(&self, report_data: [u8; 64]) -> Result<Vec<u8>, QuoteError> {
        let place = Arc::clone(&self.waiting)
            .try_acquire_owned()
            .map_err(|_| QuoteError::Busy)?;
        let device = Arc::clone(&self.device)
            .acquire_owned()
            .await
            .map_err(|_| QuoteError::Stopped)?;
        let provider = Arc::clone(&self.provider);
        let quote = tokio::task::spawn_blocking(move || {
            let quote = provider.quote(&report_data);
            drop((device, place));
            quote
        });
        Ok(quote.await.map_err(|_| QuoteError::Stopped)??)
    }
}

impl std::fmt::Debug for QuoteService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuoteService({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[derive(Default)]
    struct Slow {
        at_once: AtomicUsize,
        most: AtomicUsize,
    }

    impl QuoteProvider for Slow {
        fn name(&self) -> &'static str {
            "slow"
        }
        fn simulated(&self) -> bool {
            true
        }
        fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(2));
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            Ok(report_data.to_vec())
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_at_a_time_and_a_bounded_queue() {
        let provider = Arc::new(Slow::default());
        let service = QuoteService::new(provider.clone());
        let tasks: Vec<_> = (0..MAX_WAITING + 20)
            .map(|_| {
                let service = service.clone();
                tokio::spawn(async move { service.quote([1; 64]).await })
            })
            .collect();
        let mut busy = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(quote) => assert_eq!(quote, [1; 64]),
                Err(error) => {
                    assert!(matches!(error, QuoteError::Busy));
                    busy += 1;
                }
            }
        }
        assert!(busy <= 20);
        assert_eq!(provider.most.load(Ordering::SeqCst), 1);
        service.quote([2; 64]).await.unwrap();
    }
}
