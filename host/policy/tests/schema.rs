//! The schema: drafts come back as they were, broken files say where and what, and no text makes the parser panic.
#![allow(clippy::unwrap_used, reason = "helpers of tests stand outside of #[test] functions")]

mod common;

use std::path::Path;

use cloister_attestation::State;
use cloister_attestation::identity::{Role, SigningKey};
use cloister_attestation::measurement::EntryRole;
use cloister_policy::agreement::{HostFile, Precision, Rtmr3, TcbStatus};
use cloister_policy::{
    Policy, Signature, SignatureError, Signatures, SignedPolicy, TensorAccess, diff, draft, explain, warnings,
};
use cloister_tensor::Digest;
use proptest::prelude::*;

fn sample() -> String {
    let key = |seed: u8| SigningKey::from_pem(&pem(seed)).unwrap();
    draft(&common::digits(&key(1), &key(2))).unwrap()
}

/// A PKCS#8 file of version 1 around a seed (RFC 8410), so that tests are the same each time.
fn pem(seed: u8) -> String {
    use base64::Engine as _;
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([seed; 32]);
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

#[test]
fn a_draft_comes_back_as_it_was() {
    let (alpha, beta) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let mut agreement = common::digits(&alpha, &beta);
    agreement.modules[0].nodes = Some(vec!["worker-a".into(), "worker-b".into()]);
    agreement.modules[0].tensor_access = TensorAccess::ReadWrite;
    (agreement.version, agreement.predecessor) = (2, Some(Digest::of(b"before")));
    agreement.consent.immutable = true;
    let rules = &mut agreement.attestation;
    rules.mrtd = vec![[1; 48], [2; 48]];
    rules.rtmr3 = Rtmr3::Log {
        others: vec!["github.com/x PullImage {\"image\": \"a\"}".into()],
    };
    rules.tcb_statuses.push(TcbStatus {
        status: "OutOfDate".into(),
        until_unix_s: Some(1_798_761_600),
    });
    rules.advisories_denied = vec!["INTEL-SA-00001".into()];
    rules.fmspc = vec![*b"SIMULA"];
    rules.hosts = vec![HostFile {
        name: "cloister".into(),
        sha256: Digest::of(b"binary"),
    }];
    agreement.datasets[0].spec.inputs.get_mut("x").unwrap().scale[3] = 1e-3;
    let text = draft(&agreement).unwrap();
    assert!(
        text.contains("columns = \"p0..p63\"") && text.contains("until = 2026-12-31"),
        "{text}"
    );
    let policy = Policy::parse(text.as_bytes(), "draft.toml").unwrap();
    assert_eq!(policy.agreement(), &agreement);
    assert_eq!(policy.digest(), Digest::of(text.as_bytes()));
    let words = explain(&policy).join("\n");
    assert!(
        words.contains("RTMR3 has to be what an event log explains completely") && words.contains("PullImage"),
        "{words}"
    );
}

#[test]
fn each_node_measures_what_its_role_runs() {
    let policy = Policy::parse(sample().as_bytes(), "p.toml").unwrap();
    let names = |node: &str, state| -> Vec<String> {
        let entries = policy.expected_entries(node, state).unwrap().into_iter();
        entries.map(|entry| format!("{} {}", entry.role, entry.name)).collect()
    };
    assert_eq!(names("worker-a", State::Bootstrap), ["policy digits", "data train"]);
    let member = [
        "policy digits",
        "data train",
        "module train-sgd",
        "graph train",
        "graph train@23",
    ];
    assert_eq!(names("worker-b", State::Member), member);
    assert_eq!(
        names("hub", State::Member),
        [
            "policy digits",
            "data test",
            "module fedavg",
            "graph evaluate",
            "graph evaluate@23"
        ]
    );
    assert!(policy.expected_entries("nobody", State::Member).is_none());
    assert_eq!(
        policy.expected_entries("hub", State::Member).unwrap()[0].role,
        EntryRole::Policy
    );
    assert_eq!(policy.nodes_with(Role::Worker).count(), 2);
}

#[test]
fn broken_policies_say_where_and_what() {
    let whole = sample();
    for (from, to, wanted) in [
        ("format = 1", "format = 2", "is not 1"),
        ("version = 1", "version = 2", "`predecessor` is missing"),
        (
            "version = 1",
            "version = 1\npredecessor = \"0000000000000000000000000000000000000000000000000000000000000000\"",
            "is the founding policy",
        ),
        ("threshold = 2", "threshold = 1", "more than half have to sign"),
        ("threshold = 2", "threshold = 3", "is 3 of 2 participants"),
        ("immutable = false", "imutable = false", "did you mean `immutable`?"),
        ("[rounds]", "[runds]", "unknown key `runds`; did you mean `rounds`?"),
        (
            "quorum = 2",
            "quorom = 2",
            "unknown key `rounds.quorom`; did you mean `quorum`?",
        ),
        ("quorum = 2", "quorum = 3", "has 2 workers"),
        ("quorum = 2", "quorum = \"2\"", "a whole number is wanted"),
        (
            "min_workers_per_aggregate = 2",
            "min_workers_per_aggregate = 1",
            "from 2 to 1024",
        ),
        (
            "min_workers_per_aggregate = 2",
            "#",
            "below min_workers_per_aggregate = 3",
        ),
        (
            "mode = \"averaging\"",
            "mode = \"asynchron\"",
            "did you mean \"asynchronous\"?",
        ),
        (
            "mode = \"averaging\"",
            "mode = \"asynchronous\"",
            "a policy says so: min_workers_per_aggregate = 1",
        ),
        (
            "mode = \"averaging\"",
            "mode = \"synchronous\"\nmax_staleness = 3",
            "has no meaning where mode = \"synchronous\"",
        ),
        ("evaluate_every = 1", "evaluate_every = 0", "from 1 to 1000000"),
        (
            "participant = \"beta\"",
            "participant = \"bets\"",
            "did you mean \"beta\"?",
        ),
        (
            "role = \"aggregator\"\nparticipant",
            "role = \"agregator\"\nparticipant",
            "did you mean \"aggregator\"?",
        ),
        ("node = \"worker-b\"", "node = \"worker-c\"", "did you mean \"worker-"),
        ("node = \"worker-b\"", "node = \"worker-a\"", "a second dataset"),
        ("batch = 23", "batch = 24", "behind the `@` stands its batch"),
        ("name = \"worker-b\"", "name = \"Worker B\"", "lower-case"),
        ("name = \"worker-b\"", "name = \"worker-a\"", "a second time"),
        ("simulated = true", "simulated = false", "a policy names one root"),
        (
            "simulated = true",
            "simulated = true\nrtmr3 = [\"00\"]",
            "not TOML: duplicate key",
        ),
        ("rtmr3 = \"zero\"", "rtmr3 = [\"00\"]", "a policy can't list values"),
        (
            "rtmr3 = \"zero\"",
            "rtmr3 = \"any\"\nrtmr3_events = [\"agent Pull x\"]",
            "which nothing asks for without",
        ),
        (
            "rtmr3 = \"zero\"",
            "rtmr3 = \"log\"\nrtmr3_events = [\"cloister module x\"]",
            "an event of this host's own",
        ),
        (
            "tcb_statuses = [\"UpToDate\"]",
            "tcb_statuses = [\"UptoDate\"]",
            "did you mean \"UpToDate\"?",
        ),
        ("tcb_statuses = [\"UpToDate\"]", "tcb_statuses = []", "no TD is let in"),
        (
            "mask = \"ffffffffffffffff\"",
            "mask = \"feffffffffffffff\"",
            "lets debug TDs in",
        ),
        (
            "recipients = [\"alpha\"]",
            "recipients = [\"gamma\"]",
            "no [[participant]]",
        ),
        ("count = 20", "count = 0", "from 1 to 1000000"),
        ("precision = \"f32\"", "precision = \"f16\"", "did you mean \"bf16\"?"),
        (
            "precision = \"f32\"",
            "precison = \"f32\"",
            "unknown key `compute.precison`; did you mean `precision`?",
        ),
        ("call_s = 120", "call_s = 999", "more than the round's"),
        (
            "tensor_access = \"handles\"",
            "tensor_access = \"handle\"",
            "did you mean \"handles\"?",
        ),
        ("min = 0.0", "min = 2.0", "above the maximum"),
        ("[release]", "[release", "not TOML"),
        ("name = \"digits\"", "name = \"\\u0007\"", "control character"),
        (
            "role = \"trainer\"",
            "role = \"transform\"",
            "0 modules of the role trainer",
        ),
    ] {
        assert!(whole.contains(from), "{from}");
        let error = Policy::parse(whole.replacen(from, to, 1).as_bytes(), "p.toml")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("p.toml:") && error.contains(wanted),
            "{from} -> {to}: {error}"
        );
    }
    let line = whole.lines().position(|line| line.starts_with("quorum")).unwrap() + 1;
    let error = Policy::parse(whole.replace("quorum = 2", "quorum = 9").as_bytes(), "p.toml").unwrap_err();
    assert_eq!((error.problems()[0].line, error.problems()[0].column), (line, 10));
    assert!(
        Policy::parse(b"format = 1\nname = \"\xff\"", "p.toml")
            .unwrap_err()
            .to_string()
            .starts_with("p.toml:2:9: ")
    );
    assert!(Policy::parse(&vec![b'#'; (1 << 20) + 1], "p.toml").is_err());
}

#[test]
fn what_graphs_compute_in_is_agreed_on() {
    let text = sample();
    let exact = Policy::parse(text.as_bytes(), "p.toml").unwrap();
    assert_eq!(exact.compute.precision, Precision::F32);
    let silent = text.replace("precision = \"f32\"", "#");
    assert_eq!(
        Policy::parse(silent.as_bytes(), "p.toml").unwrap().compute,
        exact.compute
    );
    let coarse = text.replace("precision = \"f32\"", "precision = \"bf16\"");
    let coarse = Policy::parse(coarse.as_bytes(), "p.toml").unwrap();
    assert_eq!(coarse.compute.precision, Precision::Bf16);
    // Members measure the digest of the whole file, and with it this.
    assert_ne!(coarse.digest(), exact.digest());
    assert_eq!(
        Policy::parse(draft(coarse.agreement()).unwrap().as_bytes(), "again")
            .unwrap()
            .agreement(),
        coarse.agreement()
    );
    assert!(explain(&exact).contains(&"Graphs compute in f32.".to_owned()));
    assert!(explain(&coarse).iter().any(|line| line.contains("off by 3e-3 to 0.3")));
    let warned = |policy| {
        warnings(policy)
            .iter()
            .any(|warning| warning.kind.as_str() == "coarse-precision")
    };
    assert_eq!([warned(&exact), warned(&coarse)], [false, true]);
    let changes = diff(&exact, &coarse);
    assert_eq!(changes.len(), 1, "{changes:#?}");
    assert_eq!(changes[0].text, "precision: f32 becomes bf16");
    assert!(changes[0].concern.is_some() && diff(&coarse, &exact)[0].concern.is_none());
}

#[test]
fn outside_simulation_nothing_is_left_open() {
    let whole = sample();
    let key_id = whole.lines().find(|line| line.starts_with("root_key_id")).unwrap();
    let open = whole
        .replace("simulated = true", "simulated = false")
        .replace(key_id, "");
    let error = Policy::parse(open.as_bytes(), "p.toml").unwrap_err().to_string();
    for wanted in [
        "`mrtd`",
        "`rtmr0`",
        "`rtmr1`",
        "`mrseam`",
        "`rtmr2`, so it anchors the host nowhere",
        "from-quote",
        "`hosts`",
    ] {
        assert!(error.contains(wanted), "{wanted} in {error}");
    }
}

#[test]
fn initdata_alone_anchors_nothing_outside_simulation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies/coco.toml");
    let whole = std::fs::read_to_string(path).unwrap();
    assert!(Policy::parse(whole.as_bytes(), "coco.toml").is_ok());
    let line = |key: &str| whole.lines().find(|line| line.starts_with(key)).unwrap();
    // MRTD, RTMR0, RTMR1, MRSEAM and the initdata are listed: whoever runs the machine chooses the command line, and with it the
    // agent that should keep to the initdata.
    for key in ["mrtd", "rtmr0", "rtmr1", "rtmr2", "mrseam"] {
        let without = whole.replace(line(key), "");
        let error = Policy::parse(without.as_bytes(), "coco.toml").unwrap_err().to_string();
        assert!(error.contains(&format!("lists no `{key}`")), "{error}");
        assert_eq!(key == "rtmr2", error.contains("init= or debug console"), "{error}");
        // Reference values may have it instead; without them no TD passes.
        let rules =
            "crl_max_age_s = 86400\nreferences = { signers = [\"north\"], threshold = 1 }\n\n[[attestation.anchor]]";
        let referred = without.replacen("\n[[attestation.anchor]]", rules, 1);
        assert!(Policy::parse(referred.as_bytes(), "coco.toml").is_ok(), "{key}");
    }
    // Without initdata it is zeros alone, and its words say so.
    let strict = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies/strict.toml");
    let strict = Policy::parse(&std::fs::read(strict).unwrap(), "strict.toml").unwrap();
    assert!(explain(&strict).join("\n").contains("MRCONFIGID has to be zero"));
    let coco = Policy::parse(whole.as_bytes(), "coco.toml").unwrap();
    let words = explain(&coco).join("\n");
    assert!(
        words.contains("RTMR2 (1)") && words.contains("which RTMR2 stands for"),
        "{words}"
    );
}

#[test]
fn the_templates_parse_and_say_what_they_are() {
    for (file, kinds) in [
        (
            "simulation.toml",
            [
                "simulated",
                "two-worker-aggregate",
                "any-platform",
                "any-host",
                "placeholder",
            ]
            .as_slice(),
        ),
        (
            "coco.toml",
            &[
                "placeholder",
                "any-rtmr3",
                "any-family",
                "any-machine",
                "any-evaluation-number",
                "platform-flags",
                "smt",
            ],
        ),
        ("strict.toml", &["placeholder"]),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../policies").join(file);
        let policy = Policy::parse(&std::fs::read(path).unwrap(), file).unwrap_or_else(|error| panic!("{error}"));
        let seen: Vec<_> = warnings(&policy).iter().map(|warning| warning.kind.as_str()).collect();
        assert_eq!(seen, kinds, "{file}");
        let again = Policy::parse(draft(policy.agreement()).unwrap().as_bytes(), "again").unwrap();
        assert_eq!(again.agreement(), policy.agreement());
        let unsigned = SignedPolicy::new(policy, &Signatures::default());
        assert_eq!(unsigned.is_ok(), file == "simulation.toml");
    }
}

#[test]
fn updates_that_are_applied_alone_or_not_sealed_are_said_aloud() {
    let text = sample()
        .replace("mode = \"averaging\"", "mode = \"asynchronous\"\nmax_staleness = 5")
        .replace("min_workers_per_aggregate = 2", "min_workers_per_aggregate = 1")
        .replace("checkpoint_every = 1", "checkpoint_every = 8");
    let policy = Policy::parse(text.as_bytes(), "p.toml").unwrap();
    let found = warnings(&policy);
    let said = |kind: &str| {
        found
            .iter()
            .find(|warning| warning.kind.as_str() == kind)
            .unwrap()
            .text
            .clone()
    };
    assert!(said("lone-updates").contains("applied alone"));
    assert!(
        said("unsealed-rounds").contains("undo up to 7 rounds"),
        "{}",
        said("unsealed-rounds")
    );
    let words = explain(&policy).join("\n");
    assert!(
        words.contains("as it comes, ALONE, unless it is more than 5 steps behind"),
        "{words}"
    );
    assert!(
        words.contains("sealed after every 8th, and the last and evaluated after each"),
        "{words}"
    );
    let rounds = &policy.rounds;
    let sealed: Vec<_> = (1..=20).filter(|round| rounds.seals(*round)).collect();
    assert_eq!(sealed, [8, 16, 20]);
    // It comes back from its own draft, and stands out against the policy that it follows.
    let again = Policy::parse(draft(policy.agreement()).unwrap().as_bytes(), "again").unwrap();
    assert_eq!(again.agreement(), policy.agreement());
    let before = Policy::parse(sample().as_bytes(), "before.toml").unwrap();
    let grave: Vec<_> = diff(&before, &policy)
        .into_iter()
        .filter_map(|change| change.concern)
        .collect();
    assert!(grave.iter().any(|concern| concern.contains("gradients")), "{grave:?}");
    assert!(
        grave.iter().any(|concern| concern.contains("undo more rounds")),
        "{grave:?}"
    );
}

#[test]
fn warnings_name_what_deserves_a_second_thought() {
    let policy = Policy::parse(
        sample()
            .replace("\"handles\"", "\"read-write\"")
            .replace("rows = 599", "rows = 600")
            .as_bytes(),
        "p.toml",
    )
    .unwrap();
    let kinds: Vec<_> = warnings(&policy).iter().map(|warning| warning.kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "simulated",
            "two-worker-aggregate",
            "tensor-access",
            "any-platform",
            "any-host",
            "remainder",
            "remainder",
            "remainder"
        ]
    );
}

#[test]
fn signatures_are_over_these_bytes_by_these_keys() {
    let (alpha, beta) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let text = draft(&common::digits(&alpha, &beta)).unwrap();
    let policy = Policy::parse(text.as_bytes(), "p.toml").unwrap();
    let mut signatures = Signatures::default();
    signatures.add(Signature::sign(&policy, "alpha", &alpha).unwrap());
    signatures.add(Signature::sign(&policy, "alpha", &alpha).unwrap());
    signatures.add(Signature::sign(&policy, "beta", &beta).unwrap());
    let read = Signatures::parse(signatures.to_text().as_bytes(), "p.toml.sigs").unwrap();
    assert_eq!(read, signatures);
    assert_eq!(
        SignedPolicy::new(policy.clone(), &read).unwrap().signers(),
        ["alpha", "beta"]
    );
    let changed = Policy::parse(format!("{text}\n").as_bytes(), "p.toml").unwrap();
    assert!(matches!(
        SignedPolicy::new(changed, &read),
        Err(SignatureError::Wrong { .. })
    ));
    assert!(matches!(
        Signature::sign(&policy, "alpha", &beta),
        Err(SignatureError::OtherKey { .. })
    ));
    assert!(matches!(
        Signature::sign(&policy, "gamma", &beta),
        Err(SignatureError::NoParticipant { .. })
    ));
    assert!(
        SignedPolicy::new(policy, &Signatures::default())
            .unwrap()
            .signers()
            .is_empty()
    );
    let broken = signatures.to_text().replacen("signature = \"", "signature = \"!", 1);
    assert!(
        Signatures::parse(broken.as_bytes(), "p.toml.sigs")
            .unwrap_err()
            .to_string()
            .contains("64 bytes")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Policy::parse(&bytes, "p.toml");
        let _ = Signatures::parse(&bytes, "p.toml.sigs");
    }

    #[test]
    fn a_policy_with_a_piece_replaced_is_taken_or_refused(at in 0..5000_usize, len in 0..30_usize, with in "\\PC{0,12}") {
        let mut text = sample();
        let start = (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        let end = (start + len).min(text.len());
        let end = (end..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap();
        text.replace_range(start..end, &with);
        if let Err(error) = Policy::parse(text.as_bytes(), "p.toml") {
            prop_assert!(!error.problems().is_empty());
            let lines = text.lines().count() + 1;
            prop_assert!(error.problems().iter().all(|problem| (1..=lines).contains(&problem.line)));
        }
    }
}
