//! A runner that native code took over: what it tries to reach, and that it does not.
//!
//! The test program is the runner itself, which once it is confined does what its argument names: what is tried here is
//! tried inside the confinement of the real one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use cloister_runner::{Confinement, Death, Runner, RunnerError, RunnerOptions};
use common::*;

const SYSTEM_CALL: i32 = 31;
const TIME: i32 = 24;
const FILE_SIZE: i32 = 25;

/// How a runner ends that tries this, and what it said last.
fn tried_with(what: &str, change: impl FnOnce(&mut RunnerOptions)) -> (Death, String) {
    let mut options = options(&format!("try:{what}"));
    change(&mut options);
    let mut runner = Runner::start(options).unwrap();
    assert_eq!(runner.unconfined(), None, "this kernel has Landlock and seccomp");
    match runner.evaluate(&evaluate_request()) {
        Err(RunnerError::Died { how, stderr, .. }) => (how, stderr),
        other => panic!("{what}: {other:?}"),
    }
}

fn tried(what: &str) -> (Death, String) {
    tried_with(what, |_| {})
}

fn is_refused(what: &str) {
    let (how, words) = tried(what);
    assert_eq!(how, Death::Exited(40), "{what}: {words}");
    assert!(
        words.contains("Operation not permitted") || words.contains("Permission denied"),
        "{what}: {words}"
    );
}

fn ends_it(what: &str) {
    assert_eq!(tried(what).0, Death::Signal(SYSTEM_CALL), "{what}");
}

#[test]
fn no_file_can_be_opened_made_moved_or_listed() {
    for what in [
        "open",
        "open-own-memory",
        "create",
        "rename",
        "remove",
        "list-root",
        "list-libraries",
    ] {
        is_refused(what);
    }
}

#[test]
fn threads_that_were_there_before_are_confined_too() {
    is_refused("in-old-thread");
}

#[test]
fn no_quote_can_be_had_and_no_register_extended() {
    for what in ["tdx-device", "quote-entry", "runtime-register", "ioctl"] {
        is_refused(what);
    }
}

#[test]
fn no_network() {
    for what in ["tcp", "udp", "unix"] {
        ends_it(what);
    }
}

#[test]
fn no_other_program_and_no_other_process() {
    for what in ["exec", "fork", "ptrace", "read-keeper"] {
        ends_it(what);
    }
    for what in ["spawn", "clone-process", "kill-keeper", "signal-thread-of-keeper"] {
        is_refused(what);
    }
}

#[test]
fn no_other_view_of_the_system_and_no_way_into_the_kernel() {
    for what in ["io-uring", "unshare", "bpf", "userfault", "mount"] {
        ends_it(what);
    }
}

#[test]
fn what_was_taken_cannot_be_had_back() {
    for what in [
        "raise-limit",
        "live-without-keeper",
        "ignore-time-limit",
        "shared-memory",
    ] {
        is_refused(what);
    }
}

#[test]
fn memory_ends_at_its_limit() {
    let (how, words) = tried_with("memory", |options| options.limits.memory_bytes = 512 << 20);
    assert_eq!(how, Death::Exited(40), "{words}");
    assert!(words.contains("Cannot allocate memory"), "{words}");
    // A file in memory, larger than any tensor may be.
    assert_eq!(tried("memory-file").0, Death::Signal(FILE_SIZE));
}

#[test]
fn one_that_computes_though_nothing_is_asked_is_ended() {
    let mut runner = Runner::start(options("try:compute")).unwrap();
    let process = format!("/proc/{}", runner.pid().unwrap());
    let given_up = Instant::now() + Duration::from_secs(120);
    while Path::new(&process).exists() {
        assert!(Instant::now() < given_up, "it computes on");
        std::thread::sleep(Duration::from_millis(100));
    }
    match runner.evaluate(&evaluate_request()) {
        // The second limit's signal is SIGKILL.
        Err(RunnerError::Died { how, .. }) => assert!(matches!(how, Death::Signal(TIME | 9)), "{how}"),
        other => panic!("{other:?}"),
    }
    runner.restart().unwrap();
}

#[test]
fn with_openvino_folders_of_others_stay_closed() {
    let Some(dir) = std::env::var_os("CLOISTER_OPENVINO_DIR") else {
        eprintln!("SKIPPED: CLOISTER_OPENVINO_DIR is not set; `cargo xtask test` sets OpenVINO up and sets it");
        return;
    };
    // It may list the folder of its libraries, and so folders can be opened: this one not, and no file.
    for what in [
        "list-root",
        "list-libraries",
        "open",
        "create",
        "quote-entry",
        "tdx-device",
    ] {
        let (how, words) = tried_with(what, |options| {
            options.backend = cloister_runner::BackendChoice::OpenVino;
            options.openvino_dir = Some(dir.clone().into());
        });
        assert_eq!(how, Death::Exited(40), "{what}: {words}");
        assert!(
            words.contains("Operation not permitted") || words.contains("Permission denied"),
            "{what}: {words}"
        );
    }
}

#[test]
fn a_kernel_that_cannot_confine_it_is_an_error_or_is_told() {
    for (how, wanted) in [("without:landlock", "no Landlock"), ("without:seccomp", "seccomp")] {
        let mut options = options(how);
        match Runner::start(options.clone()) {
            Err(RunnerError::SetUp(message)) => {
                assert!(
                    message.contains(wanted) && message.contains("cannot be confined"),
                    "{message}"
                );
            }
            other => panic!("{how}: {other:?}"),
        }
        options.confinement = Confinement::WherePossible;
        let runner = Runner::start(options).unwrap();
        let open = runner.unconfined().unwrap();
        assert!(open.contains(wanted), "{open}");
    }
}

/// A component in its binary format: a type (an instance without exports), and an import of that type.
fn component_that_imports(interface: &str) -> Vec<u8> {
    let length = u8::try_from(interface.len()).unwrap();
    let mut component = b"\0asm\x0d\0\x01\0\x07\x03\x01\x42\x00".to_vec();
    component.extend([10, length + 5, 1, 0, length]);
    component.extend(interface.as_bytes());
    component.extend([5, 0]);
    // It exports what it imports, under the name that makes it a trainer.
    let export = b"cloister:federation/training@0.1.0";
    let length = u8::try_from(export.len()).unwrap();
    component.extend([11, length + 6, 1, 0, length]);
    component.extend(export);
    component.extend([5, 0, 0]);
    component
}

#[test]
fn a_guest_that_asks_for_the_system_is_not_loaded() {
    let mut runner = runner();
    for interface in [
        "wasi:filesystem/types@0.2.0",
        "wasi:filesystem/preopens@0.2.0",
        "wasi:sockets/tcp@0.2.0",
        "wasi:cli/environment@0.2.0",
        "wasi:clocks/wall-clock@0.2.0",
        "wasi:random/random@0.2.0",
        "wasi:http/outgoing-handler@0.2.0",
    ] {
        match runner.load_module("hostile", &component_that_imports(interface)) {
            Err(RunnerError::Module(error)) => assert!(error.message.contains(interface), "{error}"),
            other => panic!("{interface}: {other:?}"),
        }
    }
    assert!(runner.pid().is_some());
}
