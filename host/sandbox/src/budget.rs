//! How many bytes of tensors the host keeps for a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{ModuleErrorKind, Refusal};

/// The bytes that a call may have in tensors.
#[derive(Debug)]
pub(crate) struct Budget {
    used: Arc<AtomicU64>,
    limit: u64,
}

impl Budget {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            used: Arc::default(),
            limit,
        }
    }

    /// Takes `bytes` out of the budget, until the charge is dropped. To be called before the bytes are there.
    pub(crate) fn charge(&self, bytes: u64, what: &str) -> Result<Arc<Charge>, Refusal> {
        let used = self.used.load(Ordering::Relaxed);
        match used.checked_add(bytes) {
            Some(sum) if sum <= self.limit => {
                // A call runs on one thread: nothing came in between.
                self.used.store(sum, Ordering::Relaxed);
                Ok(Arc::new(Charge {
                    used: Arc::clone(&self.used),
                    bytes,
                }))
            }
            _ => Err(Refusal::new(
                ModuleErrorKind::Memory,
                format!(
                    "{what} takes {bytes} bytes and {used} are in use: wanted at most {} in all; drop tensors that are no \
                     longer needed, or raise `tensor_memory_mib` in the policy",
                    self.limit
                ),
            )),
        }
    }
}

/// A part of a [`Budget`]; goes back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_add_up_and_go_back() {
        let budget = Budget::new(100);
        let first = budget.charge(60, "a").unwrap();
        assert_eq!(budget.charge(41, "b").unwrap_err().kind, ModuleErrorKind::Memory);
        assert!(budget.charge(u64::MAX, "c").is_err());
        let again = Arc::clone(&first);
        drop(first);
        assert!(budget.charge(41, "d").is_err());
        drop(again);
        assert!(budget.charge(100, "e").is_ok());
    }
}
