//! Quotes one at a time, behind a bounded queue, and one quote for many sessions where they come in bursts.
//!
//! Kernels take up to a second a quote under one mutex, and hosts have crashed under many parallel requests. So a node asks
//! its provider for one quote at a time. What arrives while the device works waits; when it is free again, all sessions that
//! wait share one quote ([`cloister_attestation::session::batch`]): a burst of handshakes costs two quotes, not one each.
//! Nobody waits for a batch to fill: a session that finds the device free has a quote of its own at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_attestation::session::{BatchPath, MAX_BATCH, batch};
use cloister_attestation::{ProviderError, QuoteProvider};
use tokio::sync::oneshot;

/// Most requests that wait at one time.
const MAX_WAITING: usize = 256;
/// Of these, for visitors, who are anybody: nodes have the rest to themselves.
const MAX_WAITING_FOR_VISITORS: usize = 32;

/// Why there is no quote. Clonable: all sessions of a batch are told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QuoteError {
    /// The provider said no.
    #[error("{0}")]
    Provider(Arc<ProviderError>),
    /// Too many wait already.
    #[error("{waiting} requests wait for the quote device already; try again later")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The thread that asked the provider ended early.
    #[error("the thread that asks the quote provider has stopped")]
    Stopped,
}

/// A quote for one session.
#[derive(Clone, Debug)]
pub struct SessionQuote {
    /// The quote.
    pub quote: Arc<[u8]>,
    /// From the session's binding to what the quote is over.
    pub path: BatchPath,
}

/// Whom a session's quote is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    Node,
    Visitor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Over these 64 bytes and nothing else.
    Exact,
    /// Over these 64 bytes, or over a batch with them in it.
    Session(Audience),
}

struct Request {
    kind: Kind,
    report_data: [u8; 64],
    answer: oneshot::Sender<Result<SessionQuote, QuoteError>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Whether a thread takes requests off the queue.
    working: bool,
}

impl Queue {
    /// What the next quote serves: one exact request, or all sessions at the front.
    fn next(&mut self) -> Vec<Request> {
        // Whoever gave up while it waited needs none.
        self.waiting.retain(|request| !request.answer.is_closed());
        let exact = self.waiting.front().is_some_and(|request| request.kind == Kind::Exact);
        let sessions = self.waiting.iter().take_while(|request| request.kind != Kind::Exact);
        let count = if exact { 1 } else { sessions.take(MAX_BATCH).count() };
        self.waiting.drain(..count).collect()
    }
}

/// The node's one way to its quote provider. Clones share the queue.
#[derive(Clone)]
pub struct QuoteService {
    provider: Arc<dyn QuoteProvider>,
    queue: Arc<Mutex<Queue>>,
}

impl QuoteService {
    /// Puts the queue before a provider.
    pub fn new(provider: Arc<dyn QuoteProvider>) -> Self {
        Self {
            provider,
            queue: Arc::default(),
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

    /// A quote over exactly these 64 bytes.
    pub async fn quote(&self, report_data: [u8; 64]) -> Result<Vec<u8>, QuoteError> {
        Ok(self.ask(Kind::Exact, report_data).await?.quote.to_vec())
    }

    /// A quote for the session with this binding, perhaps shared with other sessions.
    pub(crate) async fn session(&self, binding: [u8; 64], audience: Audience) -> Result<SessionQuote, QuoteError> {
        self.ask(Kind::Session(audience), binding).await
    }

    async fn ask(&self, kind: Kind, report_data: [u8; 64]) -> Result<SessionQuote, QuoteError> {
        let (answer, answered) = oneshot::channel();
        let request = Request {
            kind,
            report_data,
            answer,
        };
        if self.enqueue(request)? {
            let service = self.clone();
            // Not the caller's to cancel: a request that reached the device runs to its end before the next one starts.
            tokio::task::spawn_blocking(move || service.work());
        }
        answered.await.map_err(|_| QuoteError::Stopped)?
    }

    /// Puts a request into the queue. Says whether somebody has to begin to work it off.
    fn enqueue(&self, request: Request) -> Result<bool, QuoteError> {
        let mut queue = self.lock();
        let visitors = Kind::Session(Audience::Visitor);
        let (waiting, most) = if request.kind == visitors {
            let waiting = queue.waiting.iter().filter(|waiting| waiting.kind == visitors).count();
            (waiting, MAX_WAITING_FOR_VISITORS)
        } else {
            (queue.waiting.len(), MAX_WAITING)
        };
        if waiting >= most {
            return Err(QuoteError::Busy { waiting });
        }
        queue.waiting.push_back(request);
        Ok(!std::mem::replace(&mut queue.working, true))
    }

    fn work(&self) {
        let mut turn = Turn {
            service: self,
            over: false,
        };
        loop {
            let requests = {
                let mut queue = self.lock();
                let requests = queue.next();
                if requests.is_empty() {
                    queue.working = false;
                    turn.over = true;
                    return;
                }
                requests
            };
            self.serve(requests);
        }
    }

    fn serve(&self, requests: Vec<Request>) {
        let bindings: Vec<[u8; 64]> = requests.iter().map(|request| request.report_data).collect();
        let (report_data, paths) = batch(&bindings);
        let quote = self
            .provider
            .quote(&report_data)
            .map(Arc::<[u8]>::from)
            .map_err(Arc::new);
        for (request, path) in requests.into_iter().zip(paths) {
            let quote = quote.clone().map_err(QuoteError::Provider);
            // Whoever gave up in the meantime does not hear of it.
            let _ = request.answer.send(quote.map(|quote| SessionQuote { quote, path }));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one thread's turn at the device. Should the provider panic, those whom it worked for are told by their dropped channels,
/// and another thread takes over for those who wait.
struct Turn<'a> {
    service: &'a QuoteService,
    over: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut queue = self.service.lock();
        let successor = tokio::runtime::Handle::try_current()
            .ok()
            .filter(|_| !queue.waiting.is_empty());
        queue.working = successor.is_some();
        match successor {
            Some(runtime) => {
                let service = self.service.clone();
                runtime.spawn_blocking(move || service.work());
            }
            // Nobody is left who could: their dropped channels tell them.
            None => queue.waiting.clear(),
        }
    }
}

impl std::fmt::Debug for QuoteService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QuoteService({})", self.name())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    /// A device that quotes when the test says so: the quote is the report data.
    struct Device {
        at_once: AtomicUsize,
        most: AtomicUsize,
        taken: AtomicUsize,
        go: Mutex<mpsc::Receiver<()>>,
    }

    impl Device {
        fn new() -> (Arc<Self>, mpsc::Sender<()>) {
            let (sender, go) = mpsc::channel();
            let device = Self {
                at_once: AtomicUsize::new(0),
                most: AtomicUsize::new(0),
                taken: AtomicUsize::new(0),
                go: Mutex::new(go),
            };
            (Arc::new(device), sender)
        }
    }

    impl QuoteProvider for Device {
        fn name(&self) -> &'static str {
            "device"
        }
        fn simulated(&self) -> bool {
            true
        }
        fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            self.taken.fetch_add(1, Ordering::SeqCst);
            let told = self.go.lock().unwrap().recv();
            self.at_once.fetch_sub(1, Ordering::SeqCst);
            assert!(told.is_ok(), "the device broke");
            Ok(report_data.to_vec())
        }
    }

    /// Waits until the device has begun with that many quotes, and that many requests wait behind it.
    async fn until(service: &QuoteService, device: &Device, taken: usize, waiting: usize) {
        while device.taken.load(Ordering::SeqCst) < taken || service.lock().waiting.len() < waiting {
            tokio::task::yield_now().await;
        }
    }

    fn ask(
        service: &QuoteService,
        index: u8,
        audience: Audience,
    ) -> tokio::task::JoinHandle<Result<SessionQuote, QuoteError>> {
        let service = service.clone();
        tokio::spawn(async move { service.session([index; 64], audience).await })
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_burst_of_sessions_shares_a_quote_and_the_device_works_alone() {
        let (device, go) = Device::new();
        let service = QuoteService::new(device.clone());
        let first = ask(&service, 200, Audience::Node);
        until(&service, &device, 1, 0).await;
        let burst: Vec<_> = (0..40).map(|index| ask(&service, index, Audience::Node)).collect();
        until(&service, &device, 1, 40).await;
        // An exact one behind them has a quote of its own.
        let exact = tokio::spawn({
            let service = service.clone();
            async move { service.quote([100; 64]).await }
        });
        until(&service, &device, 1, 41).await;
        (0..3).for_each(|_| go.send(()).unwrap());
        let first = first.await.unwrap().unwrap();
        assert_eq!((&first.quote[..], first.path), (&[200; 64][..], BatchPath::default()));
        for (index, session) in (0..).zip(burst) {
            let session = session.await.unwrap().unwrap();
            assert_eq!(session.path.report_data(&[index; 64])[..], session.quote[..]);
        }
        assert_eq!(exact.await.unwrap().unwrap(), [100; 64]);
        assert_eq!(device.taken.load(Ordering::SeqCst), 3);
        assert_eq!(device.most.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_queue_is_bounded_and_visitors_leave_room_for_nodes() {
        let (device, go) = Device::new();
        let service = QuoteService::new(device.clone());
        let running = ask(&service, 0, Audience::Visitor);
        until(&service, &device, 1, 0).await;
        let visitors: Vec<_> = (0..MAX_WAITING_FOR_VISITORS)
            .map(|_| ask(&service, 1, Audience::Visitor))
            .collect();
        until(&service, &device, 1, visitors.len()).await;
        let one_more = ask(&service, 2, Audience::Visitor).await.unwrap();
        assert!(matches!(one_more, Err(QuoteError::Busy { .. })));
        let nodes: Vec<_> = (0..MAX_WAITING - visitors.len())
            .map(|_| ask(&service, 3, Audience::Node))
            .collect();
        until(&service, &device, 1, MAX_WAITING).await;
        let one_more = ask(&service, 4, Audience::Node).await.unwrap();
        assert!(matches!(one_more, Err(QuoteError::Busy { waiting: MAX_WAITING })));
        (0..10).for_each(|_| go.send(()).unwrap());
        for task in [running].into_iter().chain(visitors).chain(nodes) {
            task.await.unwrap().unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_gave_up_costs_no_quote_and_a_device_that_breaks_is_tried_again() {
        let (device, go) = Device::new();
        let service = QuoteService::new(device.clone());
        let running = ask(&service, 0, Audience::Node);
        until(&service, &device, 1, 0).await;
        let given_up = ask(&service, 1, Audience::Node);
        until(&service, &device, 1, 1).await;
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        go.send(()).unwrap();
        running.await.unwrap().unwrap();
        drop(go);
        // The channel's end makes the device panic.
        assert!(matches!(
            ask(&service, 2, Audience::Node).await.unwrap(),
            Err(QuoteError::Stopped)
        ));
        assert!(matches!(
            ask(&service, 3, Audience::Node).await.unwrap(),
            Err(QuoteError::Stopped)
        ));
        assert_eq!(device.taken.load(Ordering::SeqCst), 3);
    }
}
