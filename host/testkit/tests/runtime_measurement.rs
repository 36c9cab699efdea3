//! RTMR3 and its log, against what extends the register: a file system that behaves as the kernel's measurement registers, a
//! server that behaves as that of Confidential Containers, and the simulator.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::providers::{Coco, Configfs};
use cloister_attestation::simulated::SimulatedTd;
use cloister_attestation::{EventLog, ProviderError, Quote, QuoteProvider, RuntimeEvent};
use cloister_testkit::coco::{Manner, serve};
use cloister_testkit::{configfs, device, measurements};

fn said(content: &str) -> RuntimeEvent {
    RuntimeEvent::new("cloister", "module", content).unwrap()
}

fn rtmr3(provider: &dyn QuoteProvider) -> [u8; 48] {
    let quote = provider.quote(&[0x5a; 64]).unwrap();
    Quote::parse(&quote).unwrap().report.rtmr[3]
}

fn texts(log: &EventLog) -> Vec<&str> {
    log.events().iter().map(|event| event.text().unwrap()).collect()
}

/// Two events are extended, and the log says so and gives the register that quotes show.
fn extends_and_explains(provider: &dyn QuoteProvider) {
    assert_eq!(rtmr3(provider), [0; 48]);
    provider.extend(&said("a 00")).unwrap();
    provider.extend(&said("b \"{}\" 01")).unwrap();
    let log = provider.event_log().unwrap().unwrap();
    assert_eq!(texts(&log), ["cloister module a 00", "cloister module b \"{}\" 01"]);
    assert_eq!(log.replay(3), rtmr3(provider));
    assert_eq!(EventLog::parse_shown(&log.to_bytes()), Ok(Some(log)));
}

// --- the kernel

struct Kernel {
    td: Arc<SimulatedTd>,
    reports: configfs::Mounted,
    registers: measurements::Mounted,
    folder: tempfile::TempDir,
}

impl Kernel {
    /// Nothing where no file system can be mounted.
    fn new(fault: measurements::Fault) -> Option<Self> {
        let td = device::td();
        Some(Self {
            reports: configfs::mount_before(Arc::clone(&td), configfs::Fault::None)?,
            registers: measurements::mount(Arc::clone(&td), fault)?,
            td,
            folder: tempfile::tempdir().unwrap(),
        })
    }

    fn log_file(&self) -> PathBuf {
        self.folder.path().join("run/rtmr3.eventlog")
    }

    /// A process of its own, as far as the provider knows.
    fn provider(&self) -> Configfs {
        Configfs::new(self.reports.path()).with_register(self.registers.path(), &self.log_file())
    }

    fn fails(&self, wanted: &str) {
        let error = self.provider().extend(&said("x 00")).unwrap_err();
        assert!(error.to_string().contains(wanted), "wanted {wanted:?} in {error}");
    }
}

#[test]
fn the_kernel_extends_and_the_log_explains_its_quotes() {
    let Some(kernel) = Kernel::new(measurements::Fault::None) else {
        return;
    };
    extends_and_explains(&kernel.provider());
    // A node that starts again in the same TD goes on with the log.
    let again = kernel.provider();
    again.extend(&said("c 02")).unwrap();
    let log = again.event_log().unwrap().unwrap();
    assert_eq!((log.events().len(), log.replay(3)), (3, rtmr3(&again)));
}

#[test]
fn an_event_that_was_written_down_and_not_extended_is_dropped() {
    let Some(kernel) = Kernel::new(measurements::Fault::None) else {
        return;
    };
    let provider = kernel.provider();
    provider.extend(&said("a 00")).unwrap();
    let ahead: EventLog = [said("a 00"), said("b 01")].into_iter().collect();
    std::fs::write(kernel.log_file(), ahead.to_bytes()).unwrap();
    provider.extend(&said("c 02")).unwrap();
    let log = provider.event_log().unwrap().unwrap();
    assert_eq!(texts(&log), ["cloister module a 00", "cloister module c 02"]);
    assert_eq!(log.replay(3), rtmr3(&provider));
}

#[test]
fn a_register_that_the_log_does_not_explain_is_not_extended_further() {
    let Some(kernel) = Kernel::new(measurements::Fault::None) else {
        return;
    };
    kernel.provider().extend(&said("a 00")).unwrap();
    let before = kernel.td.rtmr3();
    std::fs::write(kernel.log_file(), b"no log").unwrap();
    kernel.fails("is no log");
    std::fs::remove_file(kernel.log_file()).unwrap();
    assert_eq!(kernel.provider().event_log().unwrap(), None);
    kernel.fails("the 0 events in");
    kernel.td.extend_rtmr3(&[1; 48]);
    let log: EventLog = [said("a 00")].into_iter().collect();
    std::fs::write(kernel.log_file(), log.to_bytes()).unwrap();
    kernel.fails("something else extended it. Start the TD anew");
    assert_ne!(kernel.td.rtmr3(), before);
    assert_eq!(std::fs::read(kernel.log_file()).unwrap(), log.to_bytes());
}

#[test]
fn a_kernel_that_does_not_extend_is_found_out() {
    use measurements::Fault;
    for (fault, wanted) in [
        (Fault::ReadOnly, "extend "),
        (Fault::Deaf, "after it was extended RTMR3 holds 0000"),
        (Fault::Raced, "something else extended it at the same time"),
        (Fault::Short, "32 bytes, wanted 48"),
    ] {
        let Some(kernel) = Kernel::new(fault) else { return };
        kernel.fails(wanted);
        if fault == Fault::ReadOnly {
            // What was not extended is not in the log.
            assert_eq!(kernel.provider().event_log().unwrap().unwrap().events(), []);
        }
    }
}

#[test]
fn a_kernel_without_the_register_says_so_and_quotes_go_on() {
    let Some(reports) = configfs::mount(configfs::Fault::None) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    for provider in [
        Configfs::new(reports.path()),
        Configfs::new(reports.path()).with_register(folder.path(), &log),
    ] {
        let error = provider.extend(&said("a 00")).unwrap_err();
        assert!(matches!(error, ProviderError::CannotExtend { .. }), "{error}");
        assert_eq!(provider.event_log().unwrap(), None);
        assert_eq!(rtmr3(&provider), [0; 48]);
    }
    assert!(!Path::exists(&log));
}

#[test]
fn two_nodes_in_one_td_do_not_mix_their_logs() {
    let Some(kernel) = Kernel::new(measurements::Fault::None) else {
        return;
    };
    kernel.provider().extend(&said("a 00")).unwrap();
    let other = std::fs::OpenOptions::new().write(true).open(kernel.log_file()).unwrap();
    other.lock().unwrap();
    kernel.fails("another process extends RTMR3");
    drop(other);
    kernel.provider().extend(&said("b 01")).unwrap();
}

// --- Confidential Containers

#[test]
fn the_pods_agent_extends_and_its_log_explains_its_quotes() {
    let (server, seen) = serve(Manner::Honest);
    extends_and_explains(&Coco::new(server));
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen.iter().filter(|line| line.starts_with("POST /aa/aael ")).count(),
        2,
        "{seen:?}"
    );
}

#[test]
fn an_agent_that_keeps_no_log_gives_none() {
    let (server, _) = serve(Manner::WithoutLog);
    let provider = Coco::new(server);
    provider.extend(&said("a 00")).unwrap();
    assert_eq!(provider.event_log().unwrap(), None);
    assert_eq!(rtmr3(&provider), [0; 48]);
}

#[test]
fn an_agent_that_cannot_extend_says_why() {
    for (status, words) in [
        (404, ""),
        (405, ""),
        (
            500,
            "TDX Attester: Cannot extend runtime\u{1b}[31m measurement on this system",
        ),
    ] {
        let (server, _) = serve(Manner::Extends(status, words));
        let error = Coco::new(server).extend(&said("a 00")).unwrap_err();
        assert!(matches!(error, ProviderError::CannotExtend { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!("status {status}")) && !text.contains('\u{1b}'),
            "{text}"
        );
    }
    let (server, _) = serve(Manner::Stalls(Duration::from_secs(30)));
    let provider = Coco::new(server).with_wait(Duration::from_millis(300));
    provider.extend(&said("a 00")).unwrap();
    assert!(provider.event_log().unwrap_err().to_string().contains("no answer in"));
}

#[test]
fn a_log_that_is_none_is_an_error() {
    for (log, wanted) in [
        ("*** no base64 ***", "its log is not base64"),
        ("AQID", "ends inside a register"),
        ("", ""),
    ] {
        let (server, _) = serve(Manner::Log(log));
        match Coco::new(server).event_log() {
            Err(error) => assert!(error.to_string().contains(wanted), "wanted {wanted:?} in {error}"),
            Ok(read) => assert_eq!((log, read), ("", Some(EventLog::default()))),
        }
    }
}

// --- the simulator

#[test]
fn the_simulator_extends_and_its_log_explains_its_quotes() {
    let td = device::td();
    extends_and_explains(&*td);
    // What a program extends past the host, no log explains.
    td.extend_rtmr3(&[1; 48]);
    assert_ne!(td.event_log().unwrap().unwrap().replay(3), rtmr3(&*td));
}
