//! Drafts outside simulation, which have to say what ties the host to hardware.

use std::path::Path;

use cloister_tests::{Run, cloister, words};

use super::{MADE, draft_under, folder};

/// Runs `policy draft` under Intel's root.
fn draft_outside_simulation(folder: &Path, more: &[&str]) -> Run {
    let folder_text = folder.display().to_string();
    let value = |register: &str, digit: &str| format!("{register}={}", digit.repeat(96));
    let mut more: Vec<String> = more.iter().map(|&argument| argument.to_owned()).collect();
    for (register, digit) in [("mrtd", "1"), ("rtmr0", "2"), ("rtmr1", "3"), ("mrseam", "4")] {
        more.extend(["--accept".to_owned(), value(register, digit)]);
    }
    more.extend(["--host".to_owned(), format!("cloister={folder_text}/mlp.onnx")]);
    more.extend(MADE.map(str::to_owned));
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    draft_under(folder, None, &more)
}

#[test]
fn a_draft_outside_simulation_needs_an_anchor_and_says_how_to_give_it() {
    let folder = folder();
    let initdata = cloister_tests::root().join("examples/coco/worker/initdata.toml");
    let initdata = format!("initdata={}", initdata.display());
    let root_file_system = format!("rtmr2={}", "5".repeat(96));
    // Initdata alone is none: the root file system, in which the agent is that keeps to it, is whoever boots the kernel's.
    for more in [&[][..], &["--anchor", &initdata]] {
        let without = draft_outside_simulation(folder.path(), more);
        assert_eq!(without.code, 2, "{}", without.stderr);
        let told = words(&without.stderr);
        assert!(
            told.contains("--anchor rtmr2=HEX") && told.contains("initdata=FILE"),
            "{told}"
        );
    }
    for (anchors, wanted) in [
        (
            ["--anchor", root_file_system.as_str(), "--anchor", initdata.as_str()].as_slice(),
            "[[attestation.anchor]]",
        ),
        (&["--anchor", &root_file_system], &root_file_system[6..]),
    ] {
        let drafted = draft_outside_simulation(folder.path(), anchors);
        assert_eq!(drafted.code, 0, "{anchors:?}: {}", drafted.stderr);
        let policy = std::fs::read_to_string(folder.path().join("policy.toml")).unwrap();
        assert!(
            policy.contains(wanted) && policy.contains("simulated = false"),
            "{policy}"
        );
        let path = folder.path().join("policy.toml").display().to_string();
        let checked = cloister(["policy", "check", &path]).unwrap();
        assert_eq!(checked.code, 0, "{}{}", checked.stdout, checked.stderr);
    }
    for (anchor, wanted) in [
        ("initdata=/nowhere", "/nowhere"),
        ("initdata=DIR/mlp.onnx", "mlp.onnx"),
        ("rtmr2=00", "96 hexadecimal digits"),
        ("mrtd=00", "initdata=FILE"),
        ("rtmr2", "initdata=FILE"),
    ] {
        let refused = draft_outside_simulation(folder.path(), &["--anchor", anchor]);
        assert_eq!(refused.code, 2, "{anchor}: {}", refused.stderr);
        assert!(words(&refused.stderr).contains(wanted), "{anchor}: {}", refused.stderr);
    }
}
