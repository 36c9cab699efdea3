//! A vault on a disk that somebody else writes to.

use std::fs;
use std::path::{Path, PathBuf};

use cloister_tests::{Run, cloister};
use tempfile::TempDir;

use super::refused;

/// Bytes in front of the segments of a sealed file, and of a segment with its tag (`host/vault/FORMAT.md`).
const HEADER_BYTES: usize = 120;
const SEGMENT_BYTES: usize = 65_536 + 16;

/// A vault with one file of three segments in its second version, and what it was before that.
struct Sealed {
    _folder: TempDir,
    vault: PathBuf,
    /// The vault as a whole before the file was sealed anew.
    older: PathBuf,
}

impl Sealed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sealed = Self {
            vault: folder.path().join("vault"),
            older: folder.path().join("older"),
            _folder: folder,
        };
        let key = sealed.beside("key");
        let made = cloister(["vault".as_ref(), "keygen".as_ref(), key.as_os_str()]).unwrap();
        assert_eq!(made.code, 0, "{}", made.stderr);
        let rows = sealed.beside("rows");
        for version in 0..2u8 {
            fs::write(&rows, vec![version; 3 * 65_536 - 7]).unwrap();
            if version == 0 {
                assert_eq!(sealed.run("init", &[]).code, 0);
            }
            let put = sealed.run("put", &["rows", "--from", rows.to_str().unwrap()]);
            assert_eq!(put.code, 0, "{}", put.stderr);
            if version == 0 {
                copy(&sealed.vault, &sealed.older);
            }
        }
        sealed
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.vault.with_file_name(name)
    }

    /// `cloister vault COMMAND` on it, with its key and record.
    fn run(&self, command: &str, rest: &[&str]) -> Run {
        let (key, seen) = (self.beside("key"), self.beside("last-seen"));
        let mut arguments = vec!["vault", command, self.vault.to_str().unwrap()];
        arguments.extend(rest);
        arguments.extend([
            "--key-file",
            key.to_str().unwrap(),
            "--last-seen",
            seen.to_str().unwrap(),
        ]);
        cloister(arguments).unwrap()
    }

    /// The one sealed file of a vault.
    fn blob(vault: &Path) -> PathBuf {
        let mut blobs = fs::read_dir(vault.join("blobs")).unwrap();
        blobs.next().unwrap().unwrap().path()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// What is done to the sealed file's bytes.
type Damage = fn(&mut Vec<u8>);

#[test]
fn a_vault_in_which_somebody_wrote_opens_no_more() {
    let sealed = Sealed::new();
    let blob = Sealed::blob(&sealed.vault);
    let whole = fs::read(&blob).unwrap();
    let verified = sealed.run("verify", &[]);
    assert_eq!(verified.code, 0, "{}", verified.stderr);
    let damages: [(&str, Damage, &[&str]); 6] = [
        (
            "a bit of a segment",
            |bytes| bytes[HEADER_BYTES + 9] ^= 1,
            &["damaged or was tampered with", "segment 0"],
        ),
        (
            "a bit of the last tag",
            |bytes| *bytes.last_mut().unwrap() ^= 0x80,
            &["damaged or was tampered with", "segment 2"],
        ),
        (
            "a bit of the header",
            |bytes| bytes[30] ^= 1,
            &["its header was changed"],
        ),
        (
            "cut amid a segment",
            |bytes| bytes.truncate(HEADER_BYTES + SEGMENT_BYTES + 11),
            &["damaged or was tampered with: it ends within a segment's tag"],
        ),
        (
            "cut behind a segment",
            |bytes| bytes.truncate(HEADER_BYTES + 2 * SEGMENT_BYTES),
            &["damaged or was tampered with: it holds 131072 bytes, but the index lists 196601"],
        ),
        (
            "two segments swapped",
            |bytes| {
                let (first, second) = bytes[HEADER_BYTES..].split_at_mut(SEGMENT_BYTES);
                first.swap_with_slice(&mut second[..SEGMENT_BYTES]);
            },
            &["damaged or was tampered with", "segment 0"],
        ),
    ];
    for (case, damage, wanted) in damages {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(&blob, bytes).unwrap();
        let named = [wanted, &[blob.file_name().unwrap().to_str().unwrap()]].concat();
        refused(case, &sealed.run("verify", &[]), 1, &named);
        let target = sealed.beside("opened");
        refused(
            case,
            &sealed.run("get", &["rows", "-o", target.to_str().unwrap()]),
            1,
            &named,
        );
        assert!(!target.exists(), "{case}: something was written all the same");
    }
    fs::write(&blob, whole).unwrap();
    assert_eq!(sealed.run("verify", &[]).code, 0);
}

#[test]
fn an_older_file_and_an_older_whole_vault_are_refused_with_the_versions() {
    let sealed = Sealed::new();
    let (blob, older) = (Sealed::blob(&sealed.vault), Sealed::blob(&sealed.older));
    let newest = fs::read(&blob).unwrap();
    fs::copy(older, &blob).unwrap();
    for (command, rest) in [("verify", &[][..]), ("get", &["rows"])] {
        refused(
            "an older file",
            &sealed.run(command, rest),
            1,
            &["its version is 2, but the index lists 3"],
        );
    }
    fs::write(&blob, newest).unwrap();
    assert_eq!(sealed.run("verify", &[]).code, 0);

    fs::rename(&sealed.vault, sealed.beside("newest")).unwrap();
    fs::rename(&sealed.older, &sealed.vault).unwrap();
    for (command, rest) in [("verify", &[][..]), ("get", &["rows"])] {
        let wanted = [
            "rolled back: its version is 2, but version 3 was seen before",
            "Put the newest copy back",
        ];
        refused("an older whole vault", &sealed.run(command, rest), 1, &wanted);
    }
}

#[test]
fn a_file_comes_out_to_a_device_and_a_folder_that_is_not_there_is_a_typing_error() {
    let sealed = Sealed::new();
    let run = sealed.run("get", &["rows", "-o", "/dev/null"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let target = sealed.beside("no/such/rows");
    let run = sealed.run("get", &["rows", "-o", target.to_str().unwrap()]);
    refused("no folder", &run, 2, &["there is no folder", "no/such", "mkdir -p"]);
}
