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
    assert!(
        policy.contains(&digest) && policy.contains(r#"["/cloister","worker"]"#),
        "{policy}"
    );

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
