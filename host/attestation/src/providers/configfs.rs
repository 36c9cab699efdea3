//! Quotes of the Linux kernel: configfs-tsm (Documentation/ABI/testing/configfs-tsm).
//!
//! An entry is a folder: report data is written to `inblob`, the quote is read from `outblob`. `generation` counts the writes:
//! any other number than 1 says that somebody else wrote to this entry, and the quote may be over their data. `provider` says
//! whose quotes these are: `tdx_guest`, and not SEV-SNP's or another kind.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::device::Device;
use super::register::Register;
use super::{QUOTE_WAIT, checked};
use crate::event_log::{EventLog, RuntimeEvent};
use crate::provider::{ProviderError, QuoteProvider};
use crate::quote::MAX_PADDED_QUOTE_BYTES;

const NAME: &str = "configfs";
/// Entries that are tried in a row when the kernel is busy or somebody wrote in between.
const ATTEMPTS: u32 = 5;
/// Pause before the second attempt; each later one is twice as long.
const PAUSE: Duration = Duration::from_millis(50);
/// Names that are tried for an entry: an ended process may have left some.
const NAMES: u32 = 64;
const MAX_ATTRIBUTE_BYTES: u64 = 64;

/// The kernel as a provider of quotes.
#[derive(Debug)]
pub struct Configfs {
    root: PathBuf,
    device: Device,
    wait: Duration,
    entries: Arc<AtomicU64>,
    register: Option<Register>,
}

impl Configfs {
    /// Entries are made in the folder `root`, usually `/sys/kernel/config/tsm/report`.
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            device: Device::default(),
            wait: QUOTE_WAIT,
            entries: Arc::default(),
            register: None,
        }
    }

    /// Extends RTMR3 in the kernel's folder of measurement registers, usually
    /// `/sys/devices/virtual/misc/tdx_guest/measurements`, and keeps the log in a file that the TD's end removes.
    #[must_use]
    pub fn with_register(mut self, measurements: &Path, log: &Path) -> Self {
        self.register = Some(Register::new(NAME, measurements, log));
        self
    }

    /// Waits this long for a quote, instead of [`QUOTE_WAIT`].
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }
}

impl QuoteProvider for Configfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn simulated(&self) -> bool {
        false
    }

    fn quote(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
        let (root, entries, data) = (self.root.clone(), Arc::clone(&self.entries), *report_data);
        self.device
            .ask(NAME, self.wait, move || attempts(&root, &entries, &data))
    }

    fn extend(&self, event: &RuntimeEvent) -> Result<(), ProviderError> {
        match &self.register {
            Some(register) => register.extend(event),
            None => Err(ProviderError::CannotExtend {
                provider: NAME,
                cause: "it was given no register".into(),
            }),
        }
    }

    fn event_log(&self) -> Result<Option<EventLog>, ProviderError> {
        self.register.as_ref().map_or(Ok(None), Register::log)
    }
}

/// Why an attempt gave no quote.
enum Trouble {
    /// Another attempt may do better.
    Again(&'static str),
    Fatal(ProviderError),
}

fn attempts(root: &Path, entries: &AtomicU64, report_data: &[u8; 64]) -> Result<Vec<u8>, ProviderError> {
    let mut pause = PAUSE;
    let mut last = "";
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(pause);
            pause *= 2;
        }
        match once(root, entries, report_data) {
            Ok(quote) => return checked(NAME, quote, report_data),
            Err(Trouble::Again(why)) => last = why,
            Err(Trouble::Fatal(error)) => return Err(error),
        }
    }
    Err(failed(format!("{ATTEMPTS} attempts gave no quote: {last}")))
}

fn once(root: &Path, entries: &AtomicU64, report_data: &[u8; 64]) -> Result<Vec<u8>, Trouble> {
    let entry = Entry::make(root, entries)?;
    let provider = entry.text("provider")?;
    if provider != "tdx_guest" {
        return Err(Trouble::Fatal(failed(format!(
            "the kernel's provider is {provider:?}, wanted \"tdx_guest\": this machine is no TDX guest"
        ))));
    }
    entry.write("inblob", report_data)?;
    let quote = entry.read("outblob", MAX_PADDED_QUOTE_BYTES as u64 + 1)?;
    match entry.text("generation")?.as_str() {
        "1" => Ok(quote),
        _ => Err(Trouble::Again(
            "somebody else wrote to the entry while its quote was made",
        )),
    }
}

fn failed(cause: String) -> ProviderError {
    ProviderError::Failed { provider: NAME, cause }
}

/// An entry, removed when dropped.
struct Entry(PathBuf);

impl Drop for Entry {
    fn drop(&mut self) {
        // It is of no use to anybody else; should it stay, the next one has another name.
        let _ = std::fs::remove_dir(&self.0);
    }
}

impl Entry {
    fn make(root: &Path, entries: &AtomicU64) -> Result<Self, Trouble> {
        for _ in 0..NAMES {
            let number = entries.fetch_add(1, Ordering::Relaxed);
            let path = root.join(format!("cloister-{}-{number}", std::process::id()));
            match DirBuilder::new().create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(trouble("make", &path, error)),
            }
        }
        Err(Trouble::Fatal(failed(format!(
            "{NAMES} names of entries in {} are taken",
            root.display()
        ))))
    }

    fn text(&self, attribute: &str) -> Result<String, Trouble> {
        let bytes = self.read(attribute, MAX_ATTRIBUTE_BYTES)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Up to `limit` bytes of an attribute.
    fn read(&self, attribute: &str, limit: u64) -> Result<Vec<u8>, Trouble> {
        let path = self.0.join(attribute);
        let mut bytes = Vec::new();
        let read = File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
        read.map_err(|error| trouble("read", &path, error))?;
        Ok(bytes)
    }

    fn write(&self, attribute: &str, bytes: &[u8]) -> Result<(), Trouble> {
        let path = self.0.join(attribute);
        let open = OpenOptions::new().write(true).open(&path);
        // One write: the kernel counts them.
        match open.and_then(|mut file| file.write(bytes)) {
            Ok(count) if count == bytes.len() => Ok(()),
            Ok(count) => Err(trouble(
                "write",
                &path,
                Error::other(format!("{count} of {} bytes were taken", bytes.len())),
            )),
            Err(error) => Err(trouble("write", &path, error)),
        }
    }
}

fn trouble(what: &'static str, path: &Path, source: Error) -> Trouble {
    match source.kind() {
        ErrorKind::ResourceBusy | ErrorKind::WouldBlock | ErrorKind::Interrupted => {
            Trouble::Again("the kernel says that the entry is busy")
        }
        _ => Trouble::Fatal(ProviderError::Io {
            what,
            path: path.display().to_string(),
            source,
            help: "quotes need root and configfs-tsm (Linux 6.7 and newer); in a pod of Confidential Containers its API server",
        }),
    }
}
