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
use crate::quote::{MAX_PADDED_QUOTE_BYTES, MAX_QUOTE_BYTES, Quote};

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

/// A provider's answer: a TDX quote over the report data that was asked for, without padding.
fn checked(provider: &'static str, mut quote: Vec<u8>, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
    let failed = |cause: String| ProviderError::Failed { provider, cause };
    let too_long = |most: usize, seen: usize| {
        let cause = format!("its quote has {seen} bytes or more, at most {most} are taken");
        if seen > most { Err(failed(cause)) } else { Ok(()) }
    };
    let no_quote = |error| failed(format!("what it gave is no TDX quote: {error}"));
    too_long(MAX_PADDED_QUOTE_BYTES, quote.len())?;
    // Padding is of no use to anybody, and would travel twice in each handshake.
    let length = Quote::without_padding(&quote).map_err(no_quote)?.len();
    quote.truncate(length);
    too_long(MAX_QUOTE_BYTES, length)?;
    let parsed = Quote::parse(&quote).map_err(no_quote)?;
    if &parsed.report.report_data != report_data {
        return Err(failed(format!(
            "its quote is over {}, asked for {}",
            hex(&parsed.report.report_data),
            hex(report_data)
        )));
    }
    Ok(quote)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};

    #[test]
    fn padding_is_cut_before_a_quotes_length_counts() {
        let dir = tempfile::tempdir().unwrap();
        create_authority(&dir.path().join("sim"), 1_795_132_800).unwrap();
        let authority = SimulatedAuthority::load(&dir.path().join("sim")).unwrap();
        let td = SimulatedTd::new(&authority, TdValues::default()).unwrap();
        let data = [7; 64];
        let bare = td.quote(&data).unwrap();
        let padded = |length: usize| {
            let mut quote = bare.clone();
            quote.resize(length, 0);
            quote
        };
        for length in [bare.len(), bare.len() + 1, 8_000, MAX_PADDED_QUOTE_BYTES] {
            assert_eq!(checked("test", padded(length), &data).unwrap(), bare, "{length}");
        }
        let told = |quote| checked("test", quote, &data).unwrap_err().to_string();
        let error = told(padded(MAX_PADDED_QUOTE_BYTES + 1));
        assert!(error.contains("at most 65536"), "{error}");
        let mut other = padded(8_000);
        other[7_999] = 1;
        assert!(told(other).contains("that are not padding"));
        // A quote that is long by itself: signature data of 17,000 bytes.
        let mut long = bare[..636].to_vec();
        long[632..].copy_from_slice(&17_000u32.to_le_bytes());
        long.resize(636 + 17_000, 0);
        assert!(told(long).contains("at most 16384"));
        for cut in [0, 47, 631, 635, 636, bare.len() - 1] {
            assert!(told(bare[..cut].to_vec()).contains("is no TDX quote"), "{cut}");
        }
    }
}
