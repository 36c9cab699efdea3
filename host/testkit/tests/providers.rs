//! Providers of quotes against what they talk to: a file system that behaves as the kernel's configfs, and a server that
//! behaves as that of Confidential Containers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use std::sync::Arc;
use std::time::Duration;

use cloister_attestation::providers::{Coco, Configfs, Places, find};
use cloister_attestation::{ProviderError, Quote, QuoteProvider};
use cloister_testkit::coco::Manner;
use cloister_testkit::configfs::{Fault, mount};
use cloister_testkit::device;

const DATA: [u8; 64] = [0x5a; 64];

fn report_data(quote: &[u8]) -> [u8; 64] {
    Quote::parse(quote).unwrap().report.report_data
}

fn words(error: &ProviderError) -> String {
    error.to_string()
}

// --- the kernel

#[test]
fn the_kernel_gives_a_quote_and_its_entry_is_gone() {
    let Some(mounted) = mount(Fault::None) else { return };
    let provider = Configfs::new(mounted.path());
    assert_eq!((provider.name(), provider.simulated()), ("configfs", false));
    for data in [DATA, [0; 64], [0xff; 64]] {
        assert_eq!(report_data(&provider.quote(&data).unwrap()), data);
    }
    assert_eq!(mounted.entries(|entries| (entries.made(), entries.left())), (3, 0));
}

#[test]
fn what_a_host_pads_a_quote_with_stays_with_the_provider() {
    let td = device::td();
    let bare = device::quote(&td, &DATA);
    for length in [8_000, 60_000] {
        let mut padded = device::quote(&td, &DATA);
        padded.resize(length, 0);
        let Some(mounted) = mount(Fault::Gives(padded)) else {
            return;
        };
        let quote = Configfs::new(mounted.path()).quote(&DATA).unwrap();
        assert_eq!((quote.len(), report_data(&quote)), (bare.len(), DATA), "{length}");
    }
}

#[test]
fn a_quote_into_which_somebody_wrote_is_thrown_away() {
    let Some(mounted) = mount(Fault::Raced(2)) else { return };
    assert_eq!(
        report_data(&Configfs::new(mounted.path()).quote(&DATA).unwrap()),
        DATA,
        "the third entry had it to itself"
    );
    assert_eq!(mounted.entries(|entries| (entries.made(), entries.left())), (3, 0));
    let Some(mounted) = mount(Fault::Raced(usize::MAX)) else {
        return;
    };
    let error = Configfs::new(mounted.path()).quote(&DATA).unwrap_err();
    assert!(words(&error).contains("somebody else wrote to the entry"), "{error}");
    assert_eq!(mounted.entries(|entries| (entries.made(), entries.left())), (5, 0));
}

#[test]
fn a_busy_kernel_is_asked_again_and_not_for_ever() {
    let Some(mounted) = mount(Fault::Busy(2)) else { return };
    assert_eq!(report_data(&Configfs::new(mounted.path()).quote(&DATA).unwrap()), DATA);
    let Some(mounted) = mount(Fault::Busy(usize::MAX)) else {
        return;
    };
    let error = Configfs::new(mounted.path()).quote(&DATA).unwrap_err();
    assert!(words(&error).contains("busy"), "{error}");
    assert_eq!(mounted.entries(|entries| (entries.made(), entries.left())), (5, 0));
}

#[test]
fn another_kind_of_machine_gives_no_quote() {
    for kind in ["sev_guest", "arm_cca_guest", ""] {
        let Some(mounted) = mount(Fault::Provider(kind)) else {
            return;
        };
        let error = Configfs::new(mounted.path()).quote(&DATA).unwrap_err();
        assert!(words(&error).contains("wanted \"tdx_guest\""), "{error}");
        assert_eq!(mounted.entries(|entries| entries.left()), 0);
    }
}

#[test]
fn what_is_no_quote_or_over_other_data_is_refused() {
    let other = device::quote(&device::td(), &[1; 64]);
    for (bytes, wanted) in [
        (other, "asked for 5a5a"),
        (b"not a quote".to_vec(), "is no TDX quote"),
        (Vec::new(), "is no TDX quote"),
        (vec![4; 1 << 20], "at most 65536"),
    ] {
        let Some(mounted) = mount(Fault::Gives(bytes)) else {
            return;
        };
        let error = Configfs::new(mounted.path()).quote(&DATA).unwrap_err();
        assert!(words(&error).contains(wanted), "wanted {wanted:?} in {error}");
    }
}

#[test]
fn a_host_that_does_not_answer_is_given_up_and_the_device_is_not_asked_twice() {
    let Some(mounted) = mount(Fault::Slow(Duration::from_secs(2))) else {
        return;
    };
    let provider = Configfs::new(mounted.path()).with_wait(Duration::from_millis(100));
    assert!(words(&provider.quote(&DATA).unwrap_err()).contains("no answer in"));
    assert!(words(&provider.quote(&DATA).unwrap_err()).contains("has not come back"));
    assert_eq!(mounted.entries(|entries| entries.made()), 1);
}

#[test]
fn without_rights_or_configfs_it_is_said_what_to_do() {
    let Some(mounted) = mount(Fault::Closed) else { return };
    let error = Configfs::new(mounted.path()).quote(&DATA).unwrap_err();
    assert!(words(&error).contains("quotes need root and configfs-tsm"), "{error}");
    let error = Configfs::new("/nowhere".as_ref()).quote(&DATA).unwrap_err();
    assert!(words(&error).contains("/nowhere"), "{error}");
}

// --- Confidential Containers

#[test]
fn the_pods_server_gives_a_quote() {
    let (server, seen) = cloister_testkit::coco::serve(Manner::Honest);
    let provider = Coco::new(server);
    assert_eq!((provider.name(), provider.simulated()), ("coco", false));
    assert_eq!(report_data(&provider.quote(&DATA).unwrap()), DATA);
    let seen = seen.lock().unwrap();
    assert!(
        seen[0].starts_with("GET /aa/evidence?runtime_data=WlpaWlpa") && seen[0].contains("&encoding=base64 "),
        "{seen:?}"
    );
}

#[test]
fn an_older_server_that_takes_the_text_for_the_data_is_found_out() {
    let (server, _) = cloister_testkit::coco::serve(Manner::WithoutEncoding);
    let error = Coco::new(server).quote(&DATA).unwrap_err();
    assert!(words(&error).contains("asked for 5a5a"), "{error}");
}

#[test]
fn every_wrong_answer_is_an_error_that_says_what() {
    let evidence = |quote: &str| Manner::Body(format!("{{\"quote\":{quote:?}}}").into_bytes());
    for (manner, wanted) in [
        (
            Manner::Status(403, "only loopback"),
            "the pod's own loopback interface alone only loopback",
        ),
        (Manner::Status(404, ""), "it serves no evidence"),
        (
            Manner::Status(500, "quote\u{1b}[31m failed"),
            "status 500 quote [31m failed",
        ),
        (Manner::Body(Vec::new()), "not that of a TD"),
        (Manner::Body(b"{\"svn\":\"1\"}".to_vec()), "missing field `quote`"),
        (Manner::Body(vec![b'['; 100_000]), "not that of a TD"),
        (evidence("*** no base64 ***"), "is not base64"),
        (evidence("AAAA"), "is no TDX quote"),
        (Manner::Body(vec![b' '; 4 << 20]), "more than 2097152 bytes"),
        (Manner::Raw(Vec::new()), "ends within its head"),
        (
            Manner::Raw(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec()),
            "ends within its head",
        ),
        (
            Manner::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"quote\":\"AA".to_vec()),
            "99 were announced",
        ),
        (
            Manner::Raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_vec()),
            "in chunks",
        ),
        (
            Manner::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_vec()),
            "no number",
        ),
        (Manner::Raw(b"SSH-2.0-OpenSSH\r\n\r\n".to_vec()), "no HTTP"),
        (Manner::Raw(vec![0xff; 5000]), "ends within its head"),
        (Manner::Stalls(Duration::from_secs(30)), "no answer in"),
        (Manner::Drips, "no answer in"),
    ] {
        let shown = format!("{manner:?}").chars().take(80).collect::<String>();
        let (server, _) = cloister_testkit::coco::serve(manner);
        let provider = Coco::new(server).with_wait(Duration::from_millis(500));
        let error = provider.quote(&DATA).unwrap_err();
        assert!(words(&error).contains(wanted), "{shown}: wanted {wanted:?} in {error}");
    }
}

// --- which one

#[test]
fn the_pods_server_goes_before_the_kernel_and_nothing_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let (server, _) = cloister_testkit::coco::serve(Manner::Honest);
    let name = |places: &Places| find(places).map(|provider: Arc<dyn QuoteProvider>| provider.name());
    let mut places = Places {
        configfs: folder.path().to_owned(),
        coco: server,
        ..Places::default()
    };
    assert_eq!(name(&places).unwrap(), "coco");
    places.coco = nobody;
    assert_eq!(name(&places).unwrap(), "configfs");
    places.configfs = folder.path().join("missing");
    let error = name(&places).unwrap_err();
    assert!(
        words(&error).contains("missing") && words(&error).contains("gives no TDX quotes"),
        "{error}"
    );
}
