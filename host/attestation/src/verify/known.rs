//! Signatures under certificates, revocation lists and collateral, which come again with every quote.
//!
//! A node meets the same platforms and the same collateral in each session, and ten of the twelve signatures that dcap-qvl
//! verifies for a quote are the same bytes each time. Whether a signature verifies depends on key, message and signature
//! alone: remembering one that did changes no answer. What changes with time (dates, revocation, TCB levels) is looked at
//! for each quote, and so are the signatures of the quote itself, by the platform's key and by the attestation key.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest::{Context, SHA256};

/// Most signatures remembered: some ten for each platform family, two for each platform.
const MAX_SIGNATURES: usize = 1024;
/// How long, in seconds.
const MAX_AGE_S: u64 = 600;
/// Length of an enclave's report, the one part of a quote that could begin like a certificate.
const ENCLAVE_REPORT_BYTES: usize = 384;

/// Signatures that verified, bounded in number and age. Those that did not are not remembered: nobody could bound them.
#[derive(Debug, Default)]
pub(super) struct KnownSignatures {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// When each verified, seconds since 1970.
    since: HashMap<[u8; 32], u64>,
    /// Oldest first.
    order: VecDeque<[u8; 32]>,
}

thread_local! {
    // dcap-qvl takes cryptography as a type, not as a value: what it shall know stands here while it works.
    static AT_WORK: RefCell<Option<(Arc<KnownSignatures>, u64)>> = const { RefCell::new(None) };
}

/// Takes the signatures away again, also when the work panics.
struct Ended;

impl Drop for Ended {
    fn drop(&mut self) {
        AT_WORK.with_borrow_mut(Option::take);
    }
}

impl KnownSignatures {
    /// Does work in which [`verify`] knows these signatures, at a time.
    pub(super) fn during<T>(self: &Arc<Self>, now_unix_s: u64, work: impl FnOnce() -> T) -> T {
        AT_WORK.with_borrow_mut(|at_work| *at_work = Some((Arc::clone(self), now_unix_s)));
        let _ended = Ended;
        work()
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        *self.lock() = Known::default();
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Two lists that may differ by one entry at worst, which then ages.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self, key: &[u8; 32], now_unix_s: u64) -> bool {
        let since = self.lock().since.get(key).copied();
        // A clock that went back makes nothing younger.
        since.is_some_and(|since| (since..since.saturating_add(MAX_AGE_S)).contains(&now_unix_s))
    }

    fn remember(&self, key: [u8; 32], now_unix_s: u64) {
        let mut known = self.lock();
        if known.since.insert(key, now_unix_s).is_none() {
            known.order.push_back(key);
        }
        while known.order.len() > MAX_SIGNATURES {
            if let Some(oldest) = known.order.pop_front() {
                known.since.remove(&oldest);
            }
        }
    }
}

/// Whether a signature verifies: known, or by `fresh`.
pub(super) fn verify(key: &[u8], message: &[u8], signature: &[u8], fresh: impl FnOnce() -> bool) -> bool {
    let at_work = AT_WORK.with_borrow(Option::clone).filter(|_| comes_again(message));
    let Some((known, now_unix_s)) = at_work else {
        return fresh();
    };
    let name = name(key, message, signature);
    if known.holds(&name, now_unix_s) {
        return true;
    }
    let verified = fresh();
    if verified {
        known.remember(name, now_unix_s);
    }
    verified
}

/// Certificates and revocation lists are DER, TCB info and QE identity are JSON. What a quote signs is neither.
fn comes_again(message: &[u8]) -> bool {
    let der = match message {
        [0x30, 0x81, length, rest @ ..] => usize::from(*length) == rest.len(),
        [0x30, 0x82, high, low, rest @ ..] => usize::from(u16::from_be_bytes([*high, *low])) == rest.len(),
        [0x30, 0x83, high, middle, low, rest @ ..] => {
            u32::from_be_bytes([0, *high, *middle, *low]) as usize == rest.len()
        }
        _ => false,
    };
    let json = matches!(message, [b'{', .., b'}']);
    (der || json) && message.len() != ENCLAVE_REPORT_BYTES
}

fn name(key: &[u8], message: &[u8], signature: &[u8]) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    for part in [key, message, signature] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(hash.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const CERTIFICATE: &[u8] = &[0x30, 0x81, 2, 5, 0];

    /// Verifies, and says what came out and whether it was looked at afresh.
    fn asked(known: &Arc<KnownSignatures>, now: u64, message: &[u8], signature: &[u8], truth: bool) -> (bool, bool) {
        let looked = Cell::new(false);
        let verified = known.during(now, || {
            verify(b"key", message, signature, || {
                looked.set(true);
                truth
            })
        });
        (verified, looked.get())
    }

    #[test]
    fn only_the_very_bytes_that_verified_are_known() {
        let known = Arc::new(KnownSignatures::default());
        assert_eq!(asked(&known, 1000, CERTIFICATE, b"good", true), (true, true));
        assert_eq!(asked(&known, 1000, CERTIFICATE, b"good", false), (true, false));
        // What did not verify is looked at each time.
        assert_eq!(asked(&known, 1000, CERTIFICATE, b"bad", false), (false, true));
        assert_eq!(asked(&known, 1000, CERTIFICATE, b"bad", false), (false, true));
        assert_eq!(
            asked(&known, 1000, &[0x30, 0x81, 2, 5, 1], b"good", false),
            (false, true)
        );
        // No part may borrow bytes from its neighbour.
        assert_eq!(asked(&known, 1000, CERTIFICATE, b"", false), (false, true));
        assert_ne!(name(b"ab", b"c", b""), name(b"a", b"bc", b""));
        assert!(
            !verify(b"key", CERTIFICATE, b"good", || false),
            "nothing is known outside of the work"
        );
    }

    #[test]
    fn what_is_known_ages_and_makes_room_and_a_clock_that_goes_back_helps_nobody() {
        let known = Arc::new(KnownSignatures::default());
        asked(&known, 1000, CERTIFICATE, b"good", true);
        assert!(!asked(&known, 1000 + MAX_AGE_S - 1, CERTIFICATE, b"good", true).1);
        assert!(asked(&known, 999, CERTIFICATE, b"good", true).1);
        assert!(asked(&known, 1000 + 2 * MAX_AGE_S, CERTIFICATE, b"good", true).1);
        for index in 0..MAX_SIGNATURES as u64 + 9 {
            asked(&known, 5000, CERTIFICATE, &index.to_be_bytes(), true);
        }
        assert_eq!(known.lock().since.len(), MAX_SIGNATURES);
        assert!(asked(&known, 5000, CERTIFICATE, &0u64.to_be_bytes(), true).1);
        known.clear();
        assert!(asked(&known, 5000, CERTIFICATE, b"good", true).1);
    }

    #[test]
    fn signatures_of_a_quote_are_looked_at_each_time() {
        let known = Arc::new(KnownSignatures::default());
        let mut report = [0; ENCLAVE_REPORT_BYTES];
        let mut as_a_certificate = report;
        as_a_certificate[..4].copy_from_slice(&[0x30, 0x82, 1, 124]);
        report[48] = 0x11;
        let td = [4, 0, 2, 0, 0x81, 0, 0, 0];
        for message in [
            &report[..],
            &as_a_certificate[..],
            &td[..],
            &[0x30, 0x81, 3, 5, 0][..],
            b"",
            b"{",
        ] {
            assert_eq!(asked(&known, 1000, message, b"good", true), (true, true));
            assert_eq!(asked(&known, 1000, message, b"good", false), (false, true));
        }
    }
}
