//! What the sandbox loads and what it refuses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that panics says where, and a skipped one says so"
)]

mod common;

use cloister_sandbox::{ModuleErrorKind, Sandbox, SandboxLimits, SettingType, World, inspect};
use common::guest;

#[test]
fn says_what_a_module_is() {
    let Some(file) = guest("train-sgd") else { return };
    let seen = inspect(&file).unwrap();
    assert_eq!((seen.world, seen.problem.as_deref()), (Some(World::Trainer), None));
    assert_eq!(seen.size_bytes, file.len());
    assert_eq!(seen.exports, ["cloister:federation/training@0.1.0"]);
    assert!(
        seen.imports
            .iter()
            .all(|name| World::Trainer.imports().contains(&name.as_str())),
        "{:?}",
        seen.imports
    );
    assert_eq!(seen.settings["schedule"].choices, ["constant", "step", "cosine"]);
    assert_eq!(seen.settings["learning_rate"].ty, SettingType::Number);
    assert_eq!(seen.settings["epochs"].doc, "Passes over the rows in a round.");
    let Some(file) = guest("aggregate-fedavg") else { return };
    assert_eq!(inspect(&file).unwrap().world, Some(World::Aggregator));
}

#[test]
fn refuses_what_is_broken() {
    let sandbox = common::sandbox();
    for file in [
        &b""[..],
        b"text",
        b"\0asm\x01\0\0\0",
        b"\0asm\x0d\0\x01\0\xff\xff\xff\xff",
    ] {
        let error = sandbox.load("broken", file).err().unwrap();
        assert_eq!(error.kind, ModuleErrorKind::Invalid, "{error}");
    }
    let error = sandbox.load("empty", b"\0asm\x0d\0\x01\0").err().unwrap();
    assert_eq!(error.kind, ModuleErrorKind::World, "{error}");
    let small = Sandbox::new(SandboxLimits {
        component_bytes: 4,
        ..SandboxLimits::default()
    })
    .unwrap();
    let error = small.load("large", b"\0asm\x0d\0\x01\0").err().unwrap();
    assert!(error.message.contains("8 bytes, wanted at most 4"), "{error}");
}

#[test]
fn refuses_flipped_bits_and_cut_files() {
    let Some(file) = guest("aggregate-fedavg") else { return };
    let sandbox = common::sandbox();
    for end in (0..file.len()).step_by(file.len() / 7) {
        assert!(sandbox.load("cut", &file[..end]).is_err(), "cut at {end}");
    }
    // A flipped bit may leave a module that is valid; it must never take the host down.
    for at in (8..file.len()).step_by(file.len() / 40) {
        let mut flipped = file.clone();
        flipped[at] ^= 0x10;
        let _ = inspect(&flipped);
        drop(sandbox.load("flipped", &flipped));
    }
}

#[test]
fn refuses_another_version_by_name() {
    let Some(file) = guest("aggregate-fedavg") else { return };
    // The version stands in the names of imports and exports.
    let mut other = file.clone();
    let (from, to) = (
        &b"federation/aggregation@0.1.0"[..],
        &b"federation/aggregation@0.7.0"[..],
    );
    let mut at = 0;
    while let Some(found) = other[at..].windows(from.len()).position(|window| window == from) {
        at += found;
        other[at..at + to.len()].copy_from_slice(to);
    }
    let error = common::sandbox().load("newer", &other).err().unwrap();
    assert_eq!(error.kind, ModuleErrorKind::World, "{error}");
    assert!(
        error
            .message
            .contains("speaks cloister:federation@0.7.0; this host speaks cloister:federation@0.1.0"),
        "{error}"
    );
}
