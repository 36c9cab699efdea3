//! Where quotes come from, and where what runs is extended into RTMR3 before.

use crate::event_log::{EventLog, RuntimeEvent};

/// Why a quote could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// A file or device could not be read.
    #[error("{what} {path}: {source}; {help}")]
    Io {
        /// What was done.
        what: &'static str,
        /// With which path.
        path: String,
        /// What the system said.
        source: std::io::Error,
        /// What to do about it.
        help: &'static str,
    },
    /// The provider answered with something else than a quote.
    #[error("the quote provider {provider} failed: {cause}")]
    Failed {
        /// Name of the provider.
        provider: &'static str,
        /// What went wrong.
        cause: String,
    },
    /// Nothing can be extended into RTMR3 here, or nothing keeps a log of it.
    #[error("{provider} extends nothing into RTMR3: {cause}")]
    CannotExtend {
        /// Name of the provider.
        provider: &'static str,
        /// Why.
        cause: String,
    },
    /// This machine has no provider.
    #[error("this machine gives no TDX quotes: {looked}")]
    Nowhere {
        /// What was looked for.
        looked: String,
    },
}

/// Gives quotes of the TD that this process runs in.
///
/// A quote can take a second, and real ones are taken one at a time: call it where waiting is allowed. Whoever reaches
/// a provider can have a quote over any report data, so nothing but the keeper does.
pub trait QuoteProvider: Send + Sync {
    /// The provider's name in logs: `simulated`, `configfs`, `coco`.
    fn name(&self) -> &'static str;

    /// Whether its quotes come from no hardware: each start says SIMULATED then.
    fn simulated(&self) -> bool;

    /// A quote over 64 bytes of report data.
    ///
    /// # Errors
    /// [`ProviderError`] if none can be had.
    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError>;

    /// Extends RTMR3 by an event, and writes the event into the log: nothing takes it back until the TD is started anew.
    ///
    /// # Errors
    /// [`ProviderError::CannotExtend`] where the platform can't, as by default; others if it failed.
    fn extend(&self, event: &RuntimeEvent) -> Result<(), ProviderError> {
        let _ = event;
        Err(ProviderError::CannotExtend {
            provider: self.name(),
            cause: "this provider has no way to do it".into(),
        })
    }

    /// The log of what was extended into RTMR3 since the TD was started, by whomsoever; `None` where none is kept.
    ///
    /// # Errors
    /// [`ProviderError`] if it can't be read.
    fn event_log(&self) -> Result<Option<EventLog>, ProviderError> {
        Ok(None)
    }
}
