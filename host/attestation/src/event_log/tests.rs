use cloister_tensor::Digest;
use proptest::prelude::*;
use sha2::{Digest as _, Sha384};

use super::*;
use crate::encoding::hex;
use crate::measurement::{Entry, EntryRole};

fn event(register: u32, kind: u32, digests: &[(u16, &[u8])], data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [register, kind, digests.len() as u32] {
        out.extend(number.to_le_bytes());
    }
    for (algorithm, digest) in digests {
        out.extend(algorithm.to_le_bytes());
        out.extend(*digest);
    }
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}

fn said(text: &str) -> RuntimeEvent {
    let mut words = text.splitn(3, ' ');
    let mut word = || words.next().unwrap();
    RuntimeEvent::new(word(), word(), word()).unwrap()
}

fn log_of(texts: &[&str]) -> EventLog {
    texts.iter().map(|text| said(text)).collect()
}

// The digest of the test vector in guest-components (attestation-agent, eventlog).
#[test]
fn an_event_is_extended_as_confidential_containers_extend_it() {
    assert_eq!(
        hex(&said("domain operation content").digest()),
        "dad5f0e226318ffa9839b75a472c6aa7fdb5834949d0a0a22990cf04d5692440fb00f3aa0609db7e49cd8d793f670d02"
    );
}

#[test]
fn policies_modules_and_graphs_are_extended_and_say_what_they_are() {
    let digest = Digest::of(b"x");
    for role in EntryRole::ALL {
        let event = RuntimeEvent::before(&Entry::new(role, "train sgd", digest));
        let wanted = [EntryRole::Policy, EntryRole::Module, EntryRole::Graph].contains(&role);
        assert_eq!(
            event.map(|event| event.to_string()),
            wanted.then(|| format!("cloister {role} train sgd {digest}"))
        );
    }
    let longest = Entry::new(EntryRole::Module, "x".repeat(96), digest);
    let longest = RuntimeEvent::before(&longest).unwrap();
    let (domain, operation, content) = (longest.domain(), longest.operation(), longest.content());
    assert_eq!(RuntimeEvent::new(domain, operation, content).as_ref(), Ok(&longest));
    for (domain, operation, content) in [
        ("", "b", "c"),
        ("a b", "b", "c"),
        ("a", "", "c"),
        ("a", "b", ""),
        ("a", "b", "c\nINIT"),
        ("a", "b", &"c".repeat(1024)),
    ] {
        assert_eq!(RuntimeEvent::new(domain, operation, content), Err(EventTextError));
    }
}

#[test]
fn a_log_of_firmware_and_runtime_events_is_replayed_register_by_register() {
    let digest = [7; 48];
    let mut bytes = EventLog::default().to_bytes();
    bytes.extend(event(1, 0x8000_0001, &[(0x0b, &[1; 32]), (0x0c, &digest)], b"variable"));
    bytes.extend(event(0, 1, &[], b"of the TD's first contents"));
    bytes.extend(event(2, EV_NO_ACTION, &[(0x0c, &[9; 48])], b"tells only"));
    let runtime = log_of(&["cloister policy digits 00", "github.com/x PullImage {}"]);
    bytes.extend(&runtime.to_bytes()[EventLog::default().to_bytes().len()..]);
    bytes.extend([0xff; 100]);
    let log = EventLog::parse(&bytes).unwrap();
    let texts: Vec<_> = log.events().iter().map(Event::text).collect();
    assert_eq!(
        texts,
        [
            None,
            Some("cloister policy digits 00"),
            Some("github.com/x PullImage {}")
        ]
    );
    let once: [u8; 48] = Sha384::new()
        .chain_update([0; 48])
        .chain_update(digest)
        .finalize()
        .into();
    assert_eq!(log.replay(0), once);
    assert_eq!(log.replay(1), [0; 48]);
    assert_eq!(log.replay(3), runtime.replay(3));
    assert_eq!(log.of_register(3), runtime);
    let backwards: EventLog = ["github.com/x PullImage {}", "cloister policy digits 00"]
        .map(said)
        .into_iter()
        .collect();
    assert_ne!(backwards.replay(3), log.replay(3), "the order counts");
}

#[test]
fn a_log_without_firmwares_table_begins_as_confidential_containers_begin_it() {
    // An event without action, whose data has no signature (guest-components, attester, utils).
    let mut bytes = [0u32.to_le_bytes(), EV_NO_ACTION.to_le_bytes()].concat();
    bytes.extend([0; 20]);
    bytes.extend(33u32.to_le_bytes());
    bytes.extend([0; 33]);
    bytes.extend(&log_of(&["a b c"]).to_bytes()[EventLog::default().to_bytes().len()..]);
    bytes.extend([0xff; 8]);
    assert_eq!(EventLog::parse(&bytes), Ok(log_of(&["a b c"])));
}

#[test]
fn a_text_that_is_not_what_was_extended_says_nothing() {
    let honest = said("cloister module train").to_event();
    let whole = event(4, honest.kind, &[(0x0c, &honest.digest)], &honest.data);
    assert_eq!(
        EventLog::parse(&whole).unwrap().events()[0].text(),
        Some("cloister module train")
    );
    for at in 0..honest.data.len() {
        let mut data = honest.data.clone();
        data[at] ^= 1;
        let log = EventLog::parse(&event(4, honest.kind, &[(0x0c, &honest.digest)], &data)).unwrap();
        assert_eq!(log.events()[0].text(), None, "byte {at}");
    }
    let digest: [u8; 48] = Sha384::digest(b"LEAA\x02\0\0\0\xff\xff").into();
    let log = EventLog::parse(&event(4, 6, &[(0x0c, &digest)], b"LEAA\x02\0\0\0\xff\xff")).unwrap();
    assert_eq!(log.events()[0].text(), None, "no UTF-8");
}

#[test]
fn broken_logs_say_where_and_what() {
    let sha384: (u16, &[u8]) = (0x0c, &[0; 48]);
    let whole = event(4, 1, &[sha384], b"abc");
    let numbers = |numbers: &[u32]| {
        numbers
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect::<Vec<u8>>()
    };
    let mut header = numbers(&[0, EV_NO_ACTION, 0, 0, 0, 0, 0]);
    header.extend(numbers(&[17]));
    header.extend(b"Spec ID Event02\0.");
    for (bytes, wanted) in [
        (
            whole[..whole.len() - 1].to_vec(),
            "ends inside an event's data at byte 66: 3 bytes wanted, 2",
        ),
        (vec![1], "ends inside a register at byte 0"),
        (event(5, 1, &[sha384], b""), "the register 5 at byte 0"),
        (numbers(&[1, 1, 9]), "the number of digests 9"),
        (numbers(&[1, 1, 0, 0]), "has 0 SHA-384 digests"),
        (event(1, 1, &[sha384, sha384], b""), "has 2 SHA-384 digests"),
        (event(1, 1, &[(0x10, &[0; 48])], b""), "algorithm 16"),
        (numbers(&[4, 1, 0, u32::MAX]), "ends inside an event's data"),
        (header, "Spec ID Event03"),
        (vec![0; MAX_EVENT_LOG_BYTES + 1], "wanted at most"),
        (event(1, 1, &[sha384], b"").repeat(MAX_EVENTS + 1), "more than 8192"),
    ] {
        let error = EventLog::parse(&bytes).unwrap_err().to_string();
        assert!(error.contains(wanted), "wanted {wanted:?} in {error}");
    }
}

#[test]
fn what_travels_is_shorter_than_what_is_read_and_may_be_absent() {
    assert_eq!(EventLog::parse_shown(&[]), Ok(None));
    let log: EventLog = std::iter::repeat_n(said("cloister module x"), 400).collect();
    let bytes = log.to_bytes();
    assert!(bytes.len() > MAX_SHOWN_LOG_BYTES && EventLog::parse(&bytes).is_ok());
    assert!(matches!(
        EventLog::parse_shown(&bytes),
        Err(EventLogError::TooLong {
            most: MAX_SHOWN_LOG_BYTES,
            ..
        })
    ));
}

#[test]
fn a_file_of_another_form_is_read_or_refused() {
    let digest = {
        let digest = Sha384::new().chain_update(0x0800_0001u32.to_le_bytes());
        hex(&digest.chain_update(b":app-id:\x0a").finalize())
    };
    let entry = |imr: u32, digest: &str, payload: &str| {
        format!(
            "{{\"imr\":{imr},\"event_type\":134217729,\"digest\":\"{digest}\",\"event\":\"app-id\",\"event_payload\":\"{payload}\"}}"
        )
    };
    let list = format!(" [{}]", entry(3, &digest, "0a"));
    let log = EventLog::parse_file(list.as_bytes()).unwrap();
    assert_eq!(log.events()[0].text(), Some("app-id 0a"));
    for report in [
        format!("{{\"event_log\":{list}}}"),
        format!("{{\"quote\":\"\",\"event_log\":{}}}", serde_json::json!(list)),
    ] {
        assert_eq!(EventLog::parse_file(report.as_bytes()).as_ref(), Ok(&log));
    }
    let other = format!("[{}]", entry(3, &digest, "0b"));
    assert_eq!(EventLog::parse_file(other.as_bytes()).unwrap().events()[0].text(), None);
    // An event that tells and extends nothing.
    let silent = list.replace("134217729", "3");
    assert_eq!(EventLog::parse_file(silent.as_bytes()), Ok(EventLog::default()));
    for (text, wanted) in [
        (format!("[{}]", entry(4, &digest, "0a")), "event 0: `imr` is 0 to 3"),
        (format!("[{}]", entry(3, "00", "0a")), "48 bytes"),
        (format!("[{}]", entry(3, &digest, "0")), "is hexadecimal"),
        ("[1]".to_owned(), "not JSON of events"),
        ("{}".to_owned(), "event_log"),
        ("[".repeat(100_000), "not JSON of events"),
        (format!("[{}]", ["1"; MAX_EVENT_LOG_BYTES].join(",")), "wanted at most"),
    ] {
        let error = EventLog::parse_file(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(wanted), "wanted {wanted:?} in {error}");
    }
    assert_eq!(
        EventLog::parse_file(&log_of(&["a b c"]).to_bytes()),
        Ok(log_of(&["a b c"]))
    );
}

proptest! {
    #[test]
    fn no_bytes_make_the_event_log_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = EventLog::parse_file(&bytes);
        let mut behind_a_header = EventLog::default().to_bytes();
        behind_a_header.extend(bytes);
        let _ = EventLog::parse(&behind_a_header);
    }

    #[test]
    fn what_is_written_is_read_again(texts in proptest::collection::vec("[a-z]{1,9} [a-z]{1,9} [a-z {}\":]{1,60}", 0..9), cut in 0usize..2000) {
        let log = log_of(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let bytes = log.to_bytes();
        prop_assert_eq!(EventLog::parse(&bytes), Ok(log.clone()));
        // A log that was cut off is shorter, or no log: it never replays to the same register.
        if cut < bytes.len() && let Ok(shorter) = EventLog::parse(&bytes[..cut]) {
            prop_assert!(shorter.events().len() < log.events().len());
            prop_assert_ne!(shorter.replay(3), log.replay(3));
        }
    }

    #[test]
    fn a_changed_byte_changes_the_register_or_breaks_the_log(at in 65usize..400, bit in 0u8..8) {
        let log = log_of(&["cloister policy p 00", "cloister graph g 01", "cloister module m 02"]);
        let mut bytes = log.to_bytes();
        let at = at.min(bytes.len() - 1);
        bytes[at] ^= 1 << bit;
        if let Ok(changed) = EventLog::parse(&bytes) {
            // What is not extended (a type, a text beside its digest) may differ, and then says nothing.
            let same_texts = changed.events().iter().all(|event| event.text().is_some());
            prop_assert!(changed.replay(3) != log.replay(3) || !same_texts || changed.of_register(3) != changed);
        }
    }
}
