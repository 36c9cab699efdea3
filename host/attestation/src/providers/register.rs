//! RTMR3 by the Linux kernel (Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest, Linux 6.16): an attribute that
//! gives the register when it is read, and extends it by the 48 bytes that are written.
//!
//! The kernel keeps no log. This one lies in a file that lives as long as the TD does, so that a node that starts again in the
//! same TD can still explain the register. An event is written down before it is extended: should the process die in between,
//! the log is one event ahead, and loses it again.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::encoding::hex;
use crate::event_log::{EventLog, MAX_EVENT_LOG_BYTES, RuntimeEvent, extended};
use crate::files;
use crate::provider::ProviderError;

/// The attribute's name in the folder of measurement registers.
const ATTRIBUTE: &str = "rtmr3:sha384";
const REGISTER: usize = 3;

/// RTMR3 and its log.
#[derive(Clone, Debug)]
pub(super) struct Register {
    attribute: PathBuf,
    log: PathBuf,
    provider: &'static str,
}

impl Register {
    /// The register in the kernel's folder of measurements, and the file of the log.
    pub(super) fn new(provider: &'static str, measurements: &Path, log: &Path) -> Self {
        Self {
            attribute: measurements.join(ATTRIBUTE),
            log: log.to_owned(),
            provider,
        }
    }

    /// Writes an event down and extends the register by it.
    pub(super) fn extend(&self, event: &RuntimeEvent) -> Result<(), ProviderError> {
        let value = self.value()?.ok_or_else(|| ProviderError::CannotExtend {
            provider: self.provider,
            cause: format!(
                "there is no {} (Linux 6.16 and newer in a TD have it)",
                self.attribute.display()
            ),
        })?;
        let mut file = self.open_log()?;
        let mut log = self.explaining(&mut file, &value)?;
        let before = log.to_bytes();
        log.push(event.to_event()).map_err(|error| self.failed(error))?;
        self.replace(&mut file, &log.to_bytes())?;
        let wanted = extended(&value, &event.digest());
        let extending = self.write(&event.digest()).and_then(|()| self.value());
        match extending {
            Ok(Some(seen)) if seen == wanted => Ok(()),
            Ok(seen) => Err(self.failed(format_args!(
                "after it was extended RTMR3 holds {}, wanted {}: something else extended it at the same time, or the kernel did \
                 not",
                seen.map_or_else(|| "nothing".to_owned(), |seen| hex(&seen)),
                hex(&wanted)
            ))),
            Err(error) => {
                self.replace(&mut file, &before)?;
                Err(error)
            }
        }
    }

    /// The log; `None` where there is no such register.
    pub(super) fn log(&self) -> Result<Option<EventLog>, ProviderError> {
        let Some(value) = self.value()? else { return Ok(None) };
        match files::read(&self.log, MAX_EVENT_LOG_BYTES as u64) {
            Ok(bytes) => EventLog::parse(&bytes).map(Some).map_err(|error| self.damaged(error)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok((value == [0; 48]).then(EventLog::default)),
            Err(error) => Err(self.io("read", &self.log, error)),
        }
    }

    /// The register; `None` where the kernel has none.
    fn value(&self) -> Result<Option<[u8; 48]>, ProviderError> {
        let mut value = Vec::new();
        let read = File::open(&self.attribute).and_then(|file| file.take(64).read_to_end(&mut value));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("read", &self.attribute, error)),
        }
        match value.try_into() {
            Ok(value) => Ok(Some(value)),
            Err(other) => {
                let error = Error::other(format!("{} bytes, wanted 48", other.len()));
                Err(self.io("read", &self.attribute, error))
            }
        }
    }

    fn write(&self, digest: &[u8; 48]) -> Result<(), ProviderError> {
        let open = OpenOptions::new().write(true).open(&self.attribute);
        // One write: the kernel takes 48 bytes at a time and no fewer.
        match open.and_then(|mut file| file.write(digest)) {
            Ok(count) if count == digest.len() => Ok(()),
            Ok(count) => {
                let error = Error::other(format!("{count} of 48 bytes were taken"));
                Err(self.io("extend", &self.attribute, error))
            }
            Err(error) => Err(self.io("extend", &self.attribute, error)),
        }
    }

    /// The log's file, for this process alone until it is closed.
    fn open_log(&self) -> Result<File, ProviderError> {
        let made = self.log.parent().map_or(Ok(()), |folder| {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)
        });
        let open = made.and_then(|()| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options.open(&self.log)
        });
        let file = open.map_err(|error| self.io("open", &self.log, error))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(self.failed(format_args!(
                "another process extends RTMR3 and holds {}; one node runs in a TD",
                self.log.display()
            ))),
            Err(TryLockError::Error(error)) => Err(self.io("lock", &self.log, error)),
        }
    }

    /// The log in the file, less an event that was written down and not extended; an error if it is not the register's.
    fn explaining(&self, file: &mut File, value: &[u8; 48]) -> Result<EventLog, ProviderError> {
        let mut bytes = Vec::new();
        let limit = MAX_EVENT_LOG_BYTES as u64 + 1;
        file.take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| self.io("read", &self.log, error))?;
        let log = EventLog::parse(&bytes).map_err(|error| self.damaged(error))?;
        if &log.replay(REGISTER) == value {
            return Ok(log);
        }
        let one_less = log.without_last();
        if &one_less.replay(REGISTER) == value {
            return Ok(one_less);
        }
        Err(self.failed(format_args!(
            "RTMR3 holds {}, which the {} events in {} do not explain: something else extended it. Start the TD anew",
            hex(value),
            log.events().len(),
            self.log.display()
        )))
    }

    fn replace(&self, file: &mut File, bytes: &[u8]) -> Result<(), ProviderError> {
        let written = file.seek(SeekFrom::Start(0)).and_then(|_| {
            file.write_all(bytes)?;
            file.set_len(bytes.len() as u64)?;
            file.sync_data()
        });
        written.map_err(|error| self.io("write", &self.log, error))
    }

    fn damaged(&self, cause: impl std::fmt::Display) -> ProviderError {
        self.failed(format_args!(
            "{} is no log ({cause}), so nothing explains RTMR3. Start the TD anew",
            self.log.display()
        ))
    }

    fn failed(&self, cause: impl std::fmt::Display) -> ProviderError {
        ProviderError::Failed {
            provider: self.provider,
            cause: cause.to_string(),
        }
    }

    fn io(&self, what: &'static str, path: &Path, source: Error) -> ProviderError {
        ProviderError::Io {
            what,
            path: path.display().to_string(),
            source,
            help: "RTMR3 is extended by root alone, and its log is written beside",
        }
    }
}
