//! `cloister seal` and `cloister unseal`: what was sealed comes back whole, or not at all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use cloister_tensor::Digest;
use cloister_tests::{Run, cloister, words};

/// Runs the binary on a line of arguments in which `DIR` stands for the folder.
fn run(folder: &Path, line: &str) -> Run {
    let folder = folder.display().to_string();
    cloister(line.split_whitespace().map(|word| word.replace("DIR", &folder))).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

const SEAL: &str = "seal data DIR/rows.csv --out DIR/rows.sealed --key-out DIR/rows.key -o json";

#[test]
fn what_is_sealed_comes_back_with_its_key_alone() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let rows: Vec<u8> = (0..200_000_u32)
        .flat_map(|row| format!("{row},0.5,1\n").into_bytes())
        .collect();
    std::fs::write(dir.join("rows.csv"), &rows).unwrap();
    let sealed = run(dir, SEAL);
    assert_eq!(sealed.code, 0, "{}", sealed.stderr);
    let told = sealed.json().unwrap();
    let file = std::fs::read(dir.join("rows.sealed")).unwrap();
    assert_eq!(told["sha256"], Digest::of(&file).to_string());
    assert_eq!(told["content_sha256"], Digest::of(&rows).to_string());
    assert!(!file.windows(24).any(|window| window == &rows[..24]));
    let key = std::fs::metadata(dir.join("rows.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    // The same content again: another key, and another file.
    let again = run(
        dir,
        "seal data DIR/rows.csv --out DIR/again.sealed --key-out DIR/again.key",
    );
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_ne!(std::fs::read(dir.join("again.sealed")).unwrap(), file);

    let opened = run(
        dir,
        "unseal DIR/rows.sealed --key-file DIR/rows.key --out DIR/back.csv -o json",
    );
    assert_eq!(opened.code, 0, "{}", opened.stderr);
    assert_eq!(opened.json().unwrap()["kind"], "data");
    assert_eq!(std::fs::read(dir.join("back.csv")).unwrap(), rows);
    let other = run(
        dir,
        "unseal DIR/rows.sealed --key-file DIR/again.key --out DIR/none.csv",
    );
    assert_eq!(other.code, 1, "{}", other.stderr);
    assert!(
        words(&other.stderr).contains("does not open with this key"),
        "{}",
        other.stderr
    );
    assert_eq!(
        names(dir),
        [
            "again.key",
            "again.sealed",
            "back.csv",
            "rows.csv",
            "rows.key",
            "rows.sealed"
        ]
    );
}

#[test]
fn nothing_is_left_of_what_cannot_be_sealed_or_opened() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    std::fs::write(dir.join("rows.csv"), vec![b'7'; 150_000]).unwrap();
    let none = run(
        dir,
        "seal module DIR/none.wasm --out DIR/none.sealed --key-out DIR/none.key",
    );
    assert_eq!(none.code, 2, "{}", none.stderr);
    assert_eq!(run(dir, SEAL).code, 0);
    // Nothing is overwritten, neither the sealed file nor a key that opens another one.
    let before = std::fs::read(dir.join("rows.sealed")).unwrap();
    for line in [
        SEAL,
        "seal data DIR/rows.csv --out DIR/other.sealed --key-out DIR/rows.key",
        "unseal DIR/rows.sealed --key-file DIR/rows.key --out DIR/rows.csv",
    ] {
        let refused = run(dir, line);
        assert_eq!(refused.code, 2, "{line}: {}", refused.stderr);
        assert!(
            words(&refused.stderr).contains("is there already"),
            "{}",
            refused.stderr
        );
    }
    assert_eq!(std::fs::read(dir.join("rows.sealed")).unwrap(), before);
    // Cut short between two segments, changed in the last one, no parcel at all, other content than wanted.
    std::fs::write(dir.join("cut"), &before[..104 + 2 * 65_552]).unwrap();
    let mut changed = before.clone();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(dir.join("changed"), changed).unwrap();
    let other = format!("--sha256 {}", Digest::of(b"other"));
    for (file, more, code, wanted) in [
        ("cut", "", 1, "cut short"),
        ("changed", "", 1, "segment 2"),
        ("rows.csv", "", 2, "no sealed module or dataset"),
        ("rows.sealed", other.as_str(), 1, "was wanted"),
    ] {
        let refused = run(
            dir,
            &format!("unseal DIR/{file} --key-file DIR/rows.key --out DIR/plain {more}"),
        );
        assert_eq!(refused.code, code, "{file}: {}", refused.stderr);
        assert!(words(&refused.stderr).contains(wanted), "{file}: {}", refused.stderr);
    }
    assert_eq!(names(dir), ["changed", "cut", "rows.csv", "rows.key", "rows.sealed"]);
    std::fs::set_permissions(dir.join("rows.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
    let open = run(dir, "unseal DIR/rows.sealed --key-file DIR/rows.key --out DIR/plain");
    assert_eq!(open.code, 2, "{}", open.stderr);
    assert!(words(&open.stderr).contains("chmod 600"), "{}", open.stderr);
}
