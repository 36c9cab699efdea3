//! Numbers for the round's report.

/// Reports a number; the last value of a name counts. Names are 1 to 64 characters out of `a-z 0-9 . _ - /`; a value that is not
/// finite ends the call.
pub fn report(name: &str, value: f64) {
    crate::bindings::trainer::cloister::federation::metrics::report(name, value);
}
