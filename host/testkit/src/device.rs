//! What makes quotes in the real format behind the fakes of the kernel and of Confidential Containers.

use std::sync::Arc;

use cloister_attestation::QuoteProvider as _;
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};

/// A simulated TD under an authority of its own.
pub fn td() -> Arc<SimulatedTd> {
    let dir = tempfile::tempdir().unwrap();
    create_authority(&dir.path().join("sim"), 1_790_000_000).unwrap();
    let authority = SimulatedAuthority::load(&dir.path().join("sim")).unwrap();
    Arc::new(SimulatedTd::new(&authority, TdValues::default()).unwrap())
}

/// A quote over what was written, zero-padded as the real ones pad it.
pub fn quote(td: &SimulatedTd, data: &[u8]) -> Vec<u8> {
    let mut report_data = [0; 64];
    report_data[..data.len()].copy_from_slice(data);
    td.quote(&report_data).unwrap()
}

/// Says aloud that a test is skipped.
pub(crate) fn not_mounted<T>(error: &std::io::Error) -> Option<T> {
    eprintln!("SKIPPED: a FUSE file system cannot be mounted here ({error}); it needs /dev/fuse and root");
    None
}
