//! `cloister policy from-image`: what a policy has to hold for an image, and images that are none.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

use std::fs;
use std::path::Path;

use cloister_tests::{Run, cloister, words};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha384};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Stores content as a layout does; its descriptor.
fn blob(layout: &Path, content: &Value) -> Value {
    let bytes = serde_json::to_vec(content).unwrap();
    let digest = hex(&Sha256::digest(&bytes));
    fs::write(layout.join("blobs/sha256").join(&digest), &bytes).unwrap();
    json!({ "mediaType": "application/json", "digest": format!("sha256:{digest}"), "size": bytes.len() })
}

/// A folder with an image `oci` of no layers that runs `/cloister worker`; the image's digest.
fn image() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let layout = folder.path().join("oci");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let config = json!({ "architecture": "amd64", "os": "linux",
        "config": { "Entrypoint": ["/cloister"], "Cmd": ["worker"], "Env": ["PATH=/usr/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [] } });
    let config = blob(&layout, &config);
    let manifest = blob(&layout, &json!({ "schemaVersion": 2, "config": config, "layers": [] }));
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    (folder, digest)
}

/// Runs the command on the folder's image, into its `out`.
fn from_image(folder: &Path, repository: &str, more: &[&str]) -> Run {
    let path = |name: &str| folder.join(name).display().to_string();
    let (layout, out) = (path("oci"), path("out"));
    let always = [
        "policy",
        "from-image",
        &layout,
        "--repository",
        repository,
        "--out-dir",
        &out,
        "-o",
        "json",
    ];
    cloister(always.iter().chain(more)).unwrap()
}

#[test]
fn what_is_printed_is_the_hash_of_the_initdata_that_lets_this_image_start() {
    let (folder, digest) = image();
    let made = from_image(folder.path(), "registry.example.org/cloister", &[]);
    assert_eq!(made.code, 0, "{}", made.stderr);
    let made = made.json().unwrap();
    assert_eq!(made["image"], format!("registry.example.org/cloister@{digest}"));
    assert_eq!(made["arguments"], json!(["/cloister", "worker"]));
    assert_eq!(made["environment"], json!(["PATH=/usr/bin"]));
    let initdata = fs::read(folder.path().join("out/initdata.toml")).unwrap();
    assert_eq!(made["mrconfigid"], hex(&Sha384::digest(&initdata)));
    let parsed: toml::Table = toml::from_str(std::str::from_utf8(&initdata).unwrap()).unwrap();
    let policy = fs::read_to_string(folder.path().join("out/agent-policy.rego")).unwrap();
    assert_eq!(parsed["data"]["policy.rego"].as_str(), Some(policy.as_str()));
    for text in [digest.as_str(), "\"/cloister\"", "\"worker\"", "\"PATH=/usr/bin\""] {
        assert!(policy.contains(text), "{policy}");
    }

    // An archive of the layout is the same image.
    archive(folder.path(), |_| {});
    let again = from_image(folder.path(), "registry.example.org/cloister", &[]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    assert_eq!(again.json().unwrap()["mrconfigid"], made["mrconfigid"]);

    // Another command line is another TD.
    let other = from_image(
        folder.path(),
        "registry.example.org/cloister",
        &["--argument", "/bin/sh"],
    );
    assert_eq!(other.code, 0, "{}", other.stderr);
    assert_ne!(other.json().unwrap()["mrconfigid"], made["mrconfigid"]);
}

#[test]
fn what_is_no_image_or_names_none_ends_with_2_and_writes_nothing() {
    let refused = |folder: &Path, repository: &str, wanted: &str| {
        let run = from_image(folder, repository, &[]);
        assert_eq!(run.code, 2, "{wanted}: {}{}", run.stdout, run.stderr);
        assert!(words(&run.stderr).contains(wanted), "{wanted}: {}", run.stderr);
        assert!(!folder.join("out").exists(), "{wanted}");
    };
    for repository in ["", "a b", "a\"b", "a'''b", "a\nb", "a@sha256:00", "A"] {
        refused(image().0.path(), repository, "the workload's image");
    }
    let changed = |change: &dyn Fn(&Path), wanted: &str| {
        let (folder, _) = image();
        change(&folder.path().join("oci"));
        refused(folder.path(), "r", wanted);
    };
    changed(
        &|layout| fs::remove_file(layout.join("index.json")).unwrap(),
        "cannot be read",
    );
    changed(
        &|layout| fs::remove_dir_all(layout.join("blobs")).unwrap(),
        "cannot be read",
    );
    changed(
        &|layout| {
            fs::remove_dir_all(layout).unwrap();
            fs::write(layout, "no archive either").unwrap();
        },
        "as an archive",
    );
    changed(
        &|layout| fs::write(layout.join("index.json"), "{}").unwrap(),
        "no image in the OCI layout",
    );
    changed(
        &|layout| {
            let outside = json!({ "manifests": [{ "digest": "sha256:../../../../etc/passwd" }] });
            fs::write(layout.join("index.json"), outside.to_string()).unwrap();
        },
        "is no SHA-256 digest",
    );
    changed(
        &|layout| {
            for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
                let path = blob.unwrap().path();
                let mut bytes = fs::read(&path).unwrap();
                bytes.push(b' ');
                fs::write(&path, bytes).unwrap();
            }
        },
        "it has the digest",
    );
}

/// Puts an archive of the layout in its place, with what else is written into it behind.
fn archive(folder: &Path, more: impl FnOnce(&mut Builder<fs::File>)) {
    let (layout, packed) = (folder.join("oci"), folder.join("packed"));
    let mut builder = Builder::new(fs::File::create(&packed).unwrap());
    builder.append_dir_all(".", &layout).unwrap();
    more(&mut builder);
    builder.into_inner().unwrap();
    fs::remove_dir_all(&layout).unwrap();
    fs::rename(packed, layout).unwrap();
}

/// A header of an entry, with a name and a size that no builder would write.
fn header(name: &str, kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

#[test]
fn an_archive_that_could_mean_something_else_to_another_reader_is_refused() {
    let refused = |wanted: &str, more: &dyn Fn(&mut Builder<fs::File>)| {
        let (folder, _) = image();
        archive(folder.path(), more);
        let run = from_image(folder.path(), "registry.example.org/cloister", &[]);
        assert_eq!(run.code, 2, "{wanted}: {}{}", run.stdout, run.stderr);
        assert!(words(&run.stderr).contains(wanted), "{wanted}: {}", run.stderr);
        assert!(!folder.path().join("out").exists(), "{wanted}");
    };
    let entry = |name: &'static str, kind: EntryType, content: &'static [u8]| {
        move |builder: &mut Builder<fs::File>| {
            builder
                .append(&header(name, kind, content.len() as u64), content)
                .unwrap();
        }
    };
    let file = EntryType::Regular;
    refused("lies outside of it", &entry("../index.json", file, b"{}"));
    refused("lies outside of it", &entry("blobs/../../x", file, b"{}"));
    refused("lies outside of it", &entry("/etc/passwd", file, b"x"));
    refused("is in it twice", &entry("index.json", file, b"{}"));
    refused("is in it twice", &entry("./index.json", file, b"{}"));
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Char,
        EntryType::Fifo,
        EntryType::GNUSparse,
    ] {
        refused("is neither a file nor a folder", &entry("other", kind, b""));
    }
    // A longer name, or another size, for the entry behind it.
    refused(
        "is neither a file nor a folder",
        &entry("other", EntryType::GNULongName, b"index.json"),
    );
    refused(
        "changes names or sizes",
        &entry("other", EntryType::XHeader, b"19 path=index.json\n"),
    );
    refused(
        "changes names or sizes",
        &entry("other", EntryType::XGlobalHeader, b"10 size=1\n"),
    );
    refused(
        "changes names or sizes",
        &entry("other", EntryType::XHeader, b"no record"),
    );
    refused("as an archive", &|builder| {
        let mut broken = header("other", file, 0);
        broken.set_cksum();
        broken.as_mut_bytes()[0] ^= 1;
        builder.append(&broken, std::io::empty()).unwrap();
    });
    for size in [u64::MAX, u64::MAX / 2] {
        refused("as an archive", &|builder| {
            builder.append(&header("layer", file, size), std::io::empty()).unwrap();
            builder.append(&header("behind", file, 0), std::io::empty()).unwrap();
        });
    }
    refused("entries", &|builder| {
        for _ in 0..5000 {
            builder
                .append(&header("folder", EntryType::Directory, 0), std::io::empty())
                .unwrap();
        }
    });
}

#[test]
fn documents_of_an_archive_are_small_and_whole_and_layers_may_be_of_any_size() {
    // Sizes are said, not written: nothing may be read for them.
    let with_index = |size: u64, cut: bool| {
        let (folder, _) = image();
        fs::remove_file(folder.path().join("oci/index.json")).unwrap();
        archive(folder.path(), |builder| {
            builder
                .append(&header("index.json", EntryType::Regular, size), std::io::empty())
                .unwrap();
        });
        if cut {
            let packed = fs::OpenOptions::new()
                .write(true)
                .open(folder.path().join("oci"))
                .unwrap();
            packed.set_len(packed.metadata().unwrap().len() - 1024).unwrap();
        }
        from_image(folder.path(), "registry.example.org/cloister", &[])
    };
    for (run, wanted) in [
        (with_index(1 << 40, false), "wanted at most"),
        (with_index(4096, true), "is cut off"),
    ] {
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(words(&run.stderr).contains(wanted), "{wanted}: {}", run.stderr);
    }
    let (folder, _) = image();
    archive(folder.path(), |builder| {
        builder
            .append(
                &header("blobs/sha256/layer", EntryType::Regular, 1 << 40),
                std::io::empty(),
            )
            .unwrap();
    });
    let run = from_image(folder.path(), "registry.example.org/cloister", &[]);
    assert_eq!(run.code, 0, "{}", run.stderr);
}
