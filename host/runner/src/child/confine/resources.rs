//! How much of the machine the process may take.

use rustix::process::{Resource, Rlimit};

use crate::options::RunnerLimits;

/// Address space beyond what is in use at the start and the memory that is allowed: wasmtime reserves 4 GiB and a guard for
/// each linear memory, of which few bytes are ever touched.
const RESERVATIONS_BYTES: u64 = 96 << 30;
/// Open descriptors: the socket, standard error, and what comes beside requests.
const DESCRIPTORS: u64 = 1024;

/// Sets the limits; the process can't raise them, since the system call is filtered.
pub(super) fn limit(limits: &RunnerLimits) -> Result<(), String> {
    let largest_file = limits.tensor_bytes.max(limits.file_bytes);
    let space = in_use()?
        .saturating_add(limits.memory_bytes)
        .saturating_add(RESERVATIONS_BYTES);
    for (what, resource, value) in [
        // Private memory that can be written: heaps, stacks of threads, linear memories as far as they are grown.
        ("RLIMIT_DATA", Resource::Data, limits.memory_bytes),
        ("RLIMIT_AS", Resource::As, space),
        // Shared memory is a file to the kernel.
        ("RLIMIT_FSIZE", Resource::Fsize, largest_file),
        ("RLIMIT_NOFILE", Resource::Nofile, DESCRIPTORS),
        ("RLIMIT_MEMLOCK", Resource::Memlock, 0),
        ("RLIMIT_MSGQUEUE", Resource::Msgqueue, 0),
    ] {
        let before = rustix::process::getrlimit(resource).maximum;
        let value = Some(before.map_or(value, |before| before.min(value)));
        let limit = Rlimit {
            current: value,
            maximum: value,
        };
        rustix::process::setrlimit(resource, limit).map_err(|error| format!("{what}: {error}"))?;
    }
    Ok(())
}

/// Bytes of address space in use.
fn in_use() -> Result<u64, String> {
    let text = std::fs::read_to_string("/proc/self/statm").map_err(|error| format!("/proc/self/statm: {error}"))?;
    let pages: Option<u64> = text.split_whitespace().next().and_then(|pages| pages.parse().ok());
    let pages = pages.ok_or("/proc/self/statm holds no number")?;
    Ok(pages.saturating_mul(rustix::param::page_size() as u64))
}
