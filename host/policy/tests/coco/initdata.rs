//! The shipped initdata, and initdata that ties the host to nothing.

use cloister_policy::Policy;
use cloister_policy::anchor::{Anchor, AnchorError, Workload};

use super::{ROLES, file, initdata};

#[test]
fn the_shipped_initdata_is_what_is_written_for_its_workload() {
    for role in ROLES {
        let anchor = Anchor::parse(&initdata(role)).unwrap();
        assert_eq!(
            anchor.workload().agent_policy(),
            file(&format!("examples/coco/{role}/agent-policy.rego"))
        );
        assert_eq!(anchor.attestation_agent(), file("examples/coco/aa.toml"));
        assert_eq!(anchor.data_hub(), file("examples/coco/cdh.toml"));
        assert!(anchor.workload().arguments().iter().any(|argument| argument == role));
    }
}

#[test]
fn the_template_of_a_policy_names_the_hash_of_the_shipped_initdata() {
    let policy = Policy::parse(file("policies/coco.toml").as_bytes(), "coco.toml").unwrap();
    for role in ROLES {
        let anchor = Anchor::parse(&initdata(role)).unwrap();
        assert!(policy.attestation.mrconfigid.contains(&anchor.mrconfigid()), "{role}");
        assert!(policy.attestation.anchors.contains(&anchor), "{role}");
    }
}

#[test]
fn initdata_changed_by_one_byte_is_refused_or_has_another_hash() {
    let text = initdata("worker");
    let honest = Anchor::parse(&text).unwrap().mrconfigid();
    for at in (0..text.len()).step_by(7).chain([text.len() - 1]) {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        let Ok(changed) = String::from_utf8(bytes) else {
            continue;
        };
        if let Ok(anchor) = Anchor::parse(&changed) {
            assert_ne!(anchor.mrconfigid(), honest, "byte {at}");
        }
    }
    for changed in [format!("{text}\n"), format!(" {text}"), text.replace("\n\n", "\n")] {
        assert!(Anchor::parse(&changed).is_err());
    }
}

#[test]
fn an_agent_policy_that_lets_a_second_container_start_is_refused() {
    let text = initdata("worker");
    let end = "'''\n";
    let open = text.strip_suffix(end).unwrap();
    for (forged, shown) in [
        (
            format!("{open}CreateContainerRequest if input.OCI.Process.Args == [\"/attacker\"]\n{end}"),
            "lines",
        ),
        (
            text.replace(
                "default CreateContainerRequest := false",
                "default CreateContainerRequest := true",
            ),
            "CreateContainerRequest := true",
        ),
        (
            text.replace(
                "default ExecProcessRequest := false",
                "default ExecProcessRequest := true",
            ),
            "ExecProcessRequest := true",
        ),
        (
            text.replace("default SetPolicyRequest := false", "default SetPolicyRequest := true"),
            "SetPolicyRequest := true",
        ),
        (
            text.replace("default CopyFileRequest := false", "default CopyFileRequest := true"),
            "CopyFileRequest := true",
        ),
        (text.replace("workload := {", "workload := { "), "workload"),
        (text.replace("workload := ", "work := "), "names no workload"),
    ] {
        assert_ne!(forged, text);
        let error = Anchor::parse(&forged).unwrap_err();
        assert!(
            matches!(&error, AnchorError::AgentPolicy { difference } if difference.contains(shown)),
            "{shown}: {error}"
        );
    }
}

#[test]
fn workloads_without_a_digest_or_with_smuggled_lines_are_refused() {
    let digest = format!("registry.example.org/cloister@sha256:{}", "0".repeat(64));
    let words = |word: &str| vec![word.to_owned()];
    for (image, arguments, environment) in [
        ("registry.example.org/cloister:latest".to_owned(), words("a"), vec![]),
        (format!("@sha256:{}", "0".repeat(64)), words("a"), vec![]),
        (digest.clone(), vec![], vec![]),
        (
            digest.clone(),
            words("a\n}\ndefault ExecProcessRequest := true"),
            vec![],
        ),
        (digest.clone(), words("a"), words("no variable")),
        (digest.clone(), vec!["a".to_owned(); 1000], vec![]),
        (digest.clone(), words(&"a".repeat(501)), vec![]),
    ] {
        assert!(Workload::new(image, arguments, environment).is_err());
    }
    assert!(Workload::new(digest.clone(), words("'''"), vec![]).is_err());
    // Words of a program in Rego stay words.
    let odd = words("\"]} CreateContainerRequest if true '' \\u0027");
    let workload = Workload::new(digest, odd, vec![]).unwrap();
    let anchor = Anchor::new(workload, String::new(), String::new()).unwrap();
    assert_eq!(Anchor::parse(&anchor.initdata()), Ok(anchor));
}
