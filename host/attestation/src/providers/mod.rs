//! Providers of quotes on real machines: the Linux kernel by configfs-tsm, and the API server of Confidential Containers.
//!
//! [`find`] takes the one that is there. A provider waits for a bounded time, takes a bounded answer, and hands on nothing
//! but a TDX quote over exactly what was asked.

mod coco;
mod configfs;
mod device;
mod http;
mod register;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use coco::Coco;
pub use configfs::Configfs;

use crate::encoding::hex;
use crate::provider::{ProviderError, QuoteProvider};
use crate::quote::{MAX_QUOTE_BYTES, Quote};

/// How long a quote may take. Kernels poll the host for it, a second a poll.
pub const QUOTE_WAIT: Duration = Duration::from_secs(30);

/// Where providers are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Folder of configfs-tsm reports.
    pub configfs: PathBuf,
    /// The API server of Confidential Containers, on the pod's loopback interface.
    pub coco: SocketAddr,
    /// Folder of the kernel's measurement registers.
    pub measurements: PathBuf,
    /// Where the log of RTMR3 is kept that the kernel does not keep. It has to be gone when the TD is.
    pub event_log: PathBuf,
}

impl Default for Places {
    /// `/sys/kernel/config/tsm/report`, `127.0.0.1:8006`, `/sys/devices/virtual/misc/tdx_guest/measurements` and
    /// `/run/cloister/rtmr3.eventlog`.
    fn default() -> Self {
        Self {
            configfs: PathBuf::from("/sys/kernel/config/tsm/report"),
            coco: SocketAddr::from(([127, 0, 0, 1], 8006)),
            measurements: PathBuf::from("/sys/devices/virtual/misc/tdx_guest/measurements"),
            event_log: PathBuf::from("/run/cloister/rtmr3.eventlog"),
        }
    }
}

impl Places {
    /// The kernel as a provider, with its register.
    pub fn kernel(&self) -> Configfs {
        Configfs::new(&self.configfs).with_register(&self.measurements, &self.event_log)
    }

    /// The pod's API server as a provider.
    pub fn pod(&self) -> Coco {
        Coco::new(self.coco)
    }
}

/// The provider that this machine has. Inside a pod of Confidential Containers that is the API server, which keeps the
/// runtime log; elsewhere the kernel.
///
/// # Errors
/// [`ProviderError::Nowhere`] with what was looked for if there is none.
pub fn find(places: &Places) -> Result<Arc<dyn QuoteProvider>, ProviderError> {
    if Coco::answers(places.coco) {
        return Ok(Arc::new(places.pod()));
    }
    if places.configfs.is_dir() {
        return Ok(Arc::new(places.kernel()));
    }
    Err(ProviderError::Nowhere {
        looked: format!(
            "no server at {} (Confidential Containers) and no folder {} (Linux 6.7 and newer in a TD, with configfs mounted)",
            places.coco,
            places.configfs.display()
        ),
    })
}

/// A provider's answer: a TDX quote over the report data that was asked for.
fn checked(provider: &'static str, quote: Vec<u8>, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
    let failed = |cause: String| ProviderError::Failed { provider, cause };
    if quote.len() > MAX_QUOTE_BYTES {
        return Err(failed(format!(
            "its quote has {} bytes or more, at most {MAX_QUOTE_BYTES} are taken",
            quote.len()
        )));
    }
    let parsed = Quote::parse(&quote).map_err(|error| failed(format!("what it gave is no TDX quote: {error}")))?;
    if &parsed.report.report_data != report_data {
        return Err(failed(format!(
            "its quote is over {}, asked for {}",
            hex(&parsed.report.report_data),
            hex(report_data)
        )));
    }
    Ok(quote)
}
