//! Lines for the log of the node that runs the module.

use crate::bindings::trainer::cloister::federation::log::{Level, write};

/// For whoever looks for a fault.
pub fn debug(message: &str) {
    write(Level::Debug, message);
}

/// For whoever follows the training.
pub fn info(message: &str) {
    write(Level::Info, message);
}

/// Something is odd.
pub fn warn(message: &str) {
    write(Level::Warn, message);
}

/// Something went wrong.
pub fn error(message: &str) {
    write(Level::Error, message);
}
