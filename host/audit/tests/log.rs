//! Logs: what was appended is read back, and whatever anybody does to the file shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::io::Write as _;
use std::path::{Path, PathBuf};

use cloister_attestation::encoding::from_hex;
use cloister_attestation::identity::SigningKey;
use cloister_audit::{AuditError, Checkpoint, Contents, Log, MAX_LINE_BYTES, Reader, Subject};
use proptest::prelude::*;
use serde_json::json;

fn subject() -> Subject {
    Subject {
        federation: "wards".into(),
        node: "hub".into(),
    }
}

/// The first test key of RFC 8032, in a PKCS#8 file of version 1 (RFC 8410).
fn key() -> SigningKey {
    use base64::Engine as _;
    let seed: [u8; 32] = from_hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60").unwrap();
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend(seed);
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    SigningKey::from_pem(&format!(
        "-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"
    ))
    .unwrap()
}

struct Folder {
    _folder: tempfile::TempDir,
    log: PathBuf,
}

/// A log of that many rounds.
fn folder(rounds: u64) -> Folder {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("audit.jsonl");
    append(&log, 0..rounds);
    Folder { _folder: folder, log }
}

fn append(path: &Path, rounds: std::ops::Range<u64>) {
    let mut log = Log::open(path, subject(), &key(), &mut |_| ()).unwrap();
    for round in rounds {
        let what = json!({ "round": round, "by": "\",\"signature\":\"" });
        log.append("round", what, 1_800_000_000 + round, &key()).unwrap();
    }
}

fn verify(bytes: &[u8]) -> Result<Contents, AuditError> {
    Reader::new(subject()).verify(&mut &*bytes, &key().public())
}

#[test]
fn what_was_appended_is_read_back_and_a_log_goes_on_where_it_was() {
    let folder = folder(3);
    append(&folder.log, 3..5);
    let bytes = std::fs::read(&folder.log).unwrap();
    let mut rounds = Vec::new();
    let contents = Reader::new(subject())
        .entries(&mut bytes.as_slice(), &key().public(), &mut |entry| {
            rounds.push(entry.what["round"].as_u64().unwrap())
        })
        .unwrap();
    assert_eq!(rounds, [0, 1, 2, 3, 4]);
    assert_eq!((contents.lines, contents.whole_bytes), (5, bytes.len() as u64));
    assert_eq!(verify(&bytes).unwrap(), contents);
    // One writer at a time.
    let open = Log::open(&folder.log, subject(), &key(), &mut |_| ()).unwrap();
    assert_eq!(open.lines(), 5);
    assert!(matches!(
        Log::open(&folder.log, subject(), &key(), &mut |_| ()),
        Err(AuditError::InUse)
    ));
}

#[test]
fn the_vector_of_the_format_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    let mut log = Log::open(&path, subject(), &key(), &mut |_| ()).unwrap();
    log.append("measured", json!({ "state": "member" }), 1_800_000_000, &key())
        .unwrap();
    log.append("round", json!({ "round": 1 }), 1_800_000_060, &key())
        .unwrap();
    let document = include_str!("../FORMAT.md");
    for line in std::fs::read_to_string(&path).unwrap().lines() {
        assert!(
            document.contains(&format!("    {line}\n")),
            "FORMAT.md lacks the line\n    {line}"
        );
    }
}

#[test]
fn every_changed_byte_of_a_log_shows() {
    let bytes = std::fs::read(&folder(3).log).unwrap();
    for at in 0..bytes.len() {
        for change in [1, 0x20, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            // The last newline apart: without it the last line is one that was never acknowledged.
            match verify(&changed) {
                Err(_) => {}
                Ok(contents) => assert!(at + 1 == bytes.len() && contents.lines == 2, "byte {at}: {contents:?}"),
            }
        }
    }
}

#[test]
fn lines_removed_moved_added_or_of_another_node_show() {
    let bytes = std::fs::read(&folder(4).log).unwrap();
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    for order in [
        &[1, 2, 3][..],
        &[0, 2, 3],
        &[0, 2, 1, 3],
        &[0, 1, 1, 2, 3],
        &[0, 1, 2, 3, 3],
    ] {
        let picked = order.iter().map(|at| lines[*at]).collect::<Vec<_>>().concat();
        assert!(matches!(verify(&picked), Err(AuditError::Broken { .. })), "{order:?}");
    }
    let mut other = subject();
    other.node = "worker-a".into();
    let error = Reader::new(other)
        .verify(&mut bytes.as_slice(), &key().public())
        .unwrap_err();
    assert!(matches!(error, AuditError::Broken { line: 1, .. }), "{error}");
    let stranger = SigningKey::generate().unwrap();
    let error = Reader::new(subject())
        .verify(&mut bytes.as_slice(), &stranger.public())
        .unwrap_err();
    assert!(matches!(error, AuditError::Unsigned { line: 4 }), "{error}");
}

#[test]
fn a_node_adds_nothing_to_a_log_that_others_wrote_on() {
    let folder = folder(2);
    // A line that follows, but signed by whoever holds the disk.
    let forger = SigningKey::generate().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let forged = copy.path().join("audit.jsonl");
    let mut log = Log::open(&forged, subject(), &forger, &mut |_| ()).unwrap();
    for round in 0..2 {
        log.append("round", json!({ "round": round }), 1, &forger).unwrap();
    }
    drop(log);
    let before = std::fs::read(&folder.log).unwrap();
    let error = Log::open(&forged, subject(), &key(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, AuditError::Unsigned { line: 2 }), "{error}");
    // Half a line, which a crash left, goes; half a line in the middle does not.
    let mut file = std::fs::OpenOptions::new().append(true).open(&folder.log).unwrap();
    file.write_all(b"{\"index\":2,\"time_un").unwrap();
    assert_eq!(verify(&std::fs::read(&folder.log).unwrap()).unwrap().torn_bytes, 19);
    append(&folder.log, 2..3);
    let after = std::fs::read(&folder.log).unwrap();
    assert!(after.starts_with(&before) && verify(&after).unwrap().lines == 3);
}

#[test]
fn a_log_that_does_not_extend_a_checkpoint_is_told_from_one_that_does() {
    let first = folder(3);
    let bytes = std::fs::read(&first.log).unwrap();
    let kept = verify(&bytes).unwrap().last.unwrap();
    let kept = Checkpoint::parse(kept.to_text().as_bytes()).unwrap();
    append(&first.log, 3..6);
    let longer = std::fs::read(&first.log).unwrap();
    let extends = |bytes: &[u8], checkpoint: &Checkpoint| {
        let reader = Reader::new(subject()).extends(checkpoint.clone(), &key().public())?;
        reader.verify(&mut &*bytes, &key().public())
    };
    assert_eq!(extends(&longer, &kept).unwrap().lines, 6);
    assert_eq!(extends(&bytes, &kept).unwrap().lines, 3);
    // An older copy of the log, good in itself.
    let newest = verify(&longer).unwrap().last.unwrap();
    assert!(matches!(
        extends(&bytes, &newest),
        Err(AuditError::CutOff { lines: 3, wanted: 6 })
    ));
    assert!(matches!(
        extends(b"", &newest),
        Err(AuditError::CutOff { lines: 0, wanted: 6 })
    ));
    // The node itself began anew and says otherwise.
    let second = tempfile::tempdir().unwrap();
    let path = second.path().join("audit.jsonl");
    append(&path, 1..7);
    let other = std::fs::read(&path).unwrap();
    assert!(matches!(
        extends(&other, &kept),
        Err(AuditError::Forked { line: 3, .. })
    ));
    // Checkpoints that are none of this node.
    let mut forged = kept.clone();
    forged.lines = 2;
    assert!(matches!(
        extends(&longer, &forged),
        Err(AuditError::StrangeCheckpoint { .. })
    ));
    let mut strange = kept;
    strange.subject.node = "worker-a".into();
    assert!(matches!(
        extends(&longer, &strange),
        Err(AuditError::StrangeCheckpoint { .. })
    ));
}

#[test]
fn an_entry_that_is_too_long_is_refused_and_the_log_goes_on() {
    let folder = folder(1);
    let mut log = Log::open(&folder.log, subject(), &key(), &mut |_| ()).unwrap();
    let error = log
        .append("round", json!("x".repeat(MAX_LINE_BYTES)), 1, &key())
        .unwrap_err();
    assert!(matches!(error, AuditError::TooLong { .. }), "{error}");
    log.append("round", json!(1), 1, &key()).unwrap();
    assert_eq!(verify(&std::fs::read(&folder.log).unwrap()).unwrap().lines, 2);
    // A line without an end is not read into memory whole.
    assert!(matches!(
        verify(&vec![b'x'; 10 * MAX_LINE_BYTES]),
        Err(AuditError::Malformed { line: 1, .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), lines in 0_usize..3) {
        let mut whole = bytes.clone();
        for _ in 0..lines {
            whole.extend(b"\n{\"index\":0,\"time_unix_s\":1,\"event\":\"e\",\"what\":");
            whole.extend(&bytes);
        }
        let _ = verify(&whole);
        let _ = Checkpoint::parse(&bytes);
    }

    #[test]
    fn a_log_cut_anywhere_is_a_shorter_one_or_refused(cut in any::<prop::sample::Index>()) {
        let bytes = std::fs::read(&folder(4).log).unwrap();
        let kept = &bytes[..cut.index(bytes.len())];
        let contents = verify(kept).unwrap();
        prop_assert_eq!(contents.whole_bytes + contents.torn_bytes, kept.len() as u64);
        prop_assert!(contents.lines < 4);
    }
}
