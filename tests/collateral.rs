//! Collateral, reference values and sections drafted from quotes, by the built binary against a server with the shape of a PCCS.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::fs;
use std::path::{Path, PathBuf};

use cloister_testkit::pccs::{Mood, Pccs};
use cloister_tests::federation::Federation;
use cloister_tests::{Run, cloister, root};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// A simulated authority, and a quote under it.
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        bench.good(&["quote", "authority", "DIR/sim"]);
        bench.quote("good.quote", &[]);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs the binary; `DIR` in an argument stands for the folder.
    fn run(&self, arguments: &[&str]) -> Run {
        let folder = self.dir.path().display().to_string();
        cloister(arguments.iter().map(|argument| argument.replace("DIR", &folder))).unwrap()
    }

    fn good(&self, arguments: &[&str]) -> Run {
        let run = self.run(arguments);
        assert_eq!(run.code, 0, "{arguments:?}: {}{}", run.stdout, run.stderr);
        run
    }

    fn quote(&self, name: &str, more: &[&str]) {
        let output = format!("DIR/{name}");
        let data = "5a".repeat(64);
        let mut arguments = vec![
            "quote",
            "make",
            "--simulated",
            "DIR/sim",
            "--report-data",
            &data,
            "-o",
            &output,
        ];
        arguments.extend(more);
        self.good(&arguments);
    }

    fn pccs(&self) -> Pccs {
        Pccs::start(&fs::read_to_string(self.path("sim/collateral.json")).unwrap())
    }

    /// A policy with that section, in the place of the template's.
    fn policy(&self, section: &str) {
        let template = fs::read_to_string(root().join("policies/simulation.toml")).unwrap();
        let begin = template.find("[attestation]").unwrap();
        let end = begin + template[begin..].find("\n[release]").unwrap();
        let text = format!("{}{section}\n{}", &template[..begin], &template[end..]);
        fs::write(self.path("policy.toml"), text).unwrap();
    }
}

#[test]
fn a_bundle_is_fetched_and_verifies_without_a_network() {
    let bench = Bench::new();
    let pccs = bench.pccs();
    let fetch = |mood: Mood, more: &[&str]| {
        pccs.mood(mood);
        let mut arguments = vec![
            "quote",
            "collateral",
            "--url",
            pccs.url(),
            "--root",
            "DIR/sim",
            "-o",
            "DIR/out.json",
        ];
        arguments.extend(more);
        bench.run(&arguments)
    };
    let run = fetch(Mood::Honest, &["DIR/good.quote"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("\"evaluation_number\": 1"), "{}", run.stdout);
    bench.good(&[
        "quote",
        "verify",
        "DIR/good.quote",
        "--root",
        "DIR/sim",
        "--collateral",
        "DIR/out.json",
    ]);
    assert_eq!(fetch(Mood::Der, &["--fmspc", "53494D554C41"]).code, 0);
    fs::remove_file(bench.path("out.json")).unwrap();
    for (mood, more, code, wanted) in [
        (Mood::Status(404, None), &["DIR/good.quote"][..], 1, "404"),
        (Mood::Html, &["DIR/good.quote"], 1, "not what the API promises"),
        (Mood::Honest, &["--fmspc", "010203040506"], 1, "wanted 010203040506"),
        (Mood::Honest, &["DIR/good.quote", "--at", "4000000000"], 3, "expired"),
        (
            Mood::Honest,
            &["DIR/good.quote", "--root", "intel"],
            2,
            "used multiple times",
        ),
        (Mood::Honest, &[], 2, "no platform family"),
        (Mood::Honest, &["DIR/sim/root.der"], 2, "quote"),
    ] {
        let run = fetch(mood.clone(), more);
        assert_eq!(run.code, code, "{mood:?} {more:?}: {}", run.stderr);
        assert!(run.stderr.contains(wanted), "{mood:?} {more:?}: {}", run.stderr);
        assert!(
            !bench.path("out.json").exists(),
            "nothing is written that does not verify"
        );
    }
}

#[test]
fn a_known_good_quote_drafts_a_section_and_a_patched_kernel_needs_reference_values_alone() {
    let bench = Bench::new();
    let good = ["--collateral", "DIR/sim", "--root", "DIR/sim"];
    let with = |head: &[&'static str], more: &[&'static str]| [head, &good, more].concat();
    let section = bench
        .good(&with(&["policy", "from-quote", "DIR/good.quote"], &[]))
        .stdout;
    for key in ["alpha", "beta"] {
        bench.good(&["identity", "new", "--participant", "--out", &format!("DIR/{key}")]);
    }
    let public = |key: &str| {
        fs::read_to_string(bench.path(&format!("{key}.pub")))
            .unwrap()
            .trim()
            .to_owned()
    };
    let references = format!(
        "references = {{ signers = [{{ name = \"vendor-a\", public_key = \"{}\" }}, {{ name = \"vendor-b\", public_key = \
         \"{}\" }}], threshold = 2 }}\n",
        public("alpha"),
        public("beta")
    );
    bench.policy(&format!("{section}\n{references}"));
    let checked = bench.good(&["policy", "check", "DIR/policy.toml"]);
    assert!(
        checked.stdout.contains("signed by 2 of vendor-a, vendor-b"),
        "{}",
        checked.stdout
    );
    let judged = |quote: &'static str, more: &[&'static str]| {
        bench.run(&with(
            &["quote", "verify", quote],
            &[&["--policy", "DIR/policy.toml", "-o", "json"], more].concat(),
        ))
    };
    assert_eq!(judged("DIR/good.quote", &[]).code, 0);

    let patched = "77".repeat(48);
    bench.quote("patched.quote", &["--mrtd", &patched]);
    let refused = judged("DIR/patched.quote", &[]);
    assert_eq!(refused.code, 3);
    assert!(
        refused.stdout.contains("attestation.mrtd") && refused.stdout.contains(&patched),
        "{}",
        refused.stdout
    );
    let drafted = with(
        &[
            "policy",
            "reference",
            "draft",
            "DIR/patched.quote",
            "--policy",
            "DIR/policy.toml",
        ],
        &[
            "--name",
            "patched",
            "--not-after",
            "2099-12-31",
            "--registers",
            "mrtd",
            "-o",
            "DIR/references.toml",
        ],
    );
    bench.good(&drafted);
    let check = [
        "policy",
        "reference",
        "check",
        "DIR/references.toml",
        "--policy",
        "DIR/policy.toml",
    ];
    let unsigned = bench.run(&check);
    assert_eq!(unsigned.code, 4);
    assert!(unsigned.stderr.contains("0 signed"), "{}", unsigned.stderr);
    for (signer, key) in [("vendor-a", "alpha"), ("vendor-b", "beta")] {
        let key = format!("DIR/{key}.key");
        let sign = [
            "policy",
            "reference",
            "sign",
            "DIR/references.toml",
            "--policy",
            "DIR/policy.toml",
        ];
        bench.good(&[&sign[..], &["--key", &key, "--signer", signer]].concat());
    }
    assert!(
        bench
            .good(&check)
            .stdout
            .contains("\"patched\" are let in before 2100-01-01")
    );
    let references = ["--references", "DIR/references.toml"];
    assert_eq!(judged("DIR/patched.quote", &references).code, 0);
    assert_eq!(judged("DIR/good.quote", &references).code, 0, "old and new overlap");
    let text = fs::read_to_string(bench.path("references.toml")).unwrap();
    fs::write(bench.path("references.toml"), text.replace("2099", "2098")).unwrap();
    let changed = judged("DIR/patched.quote", &references);
    assert_eq!(changed.code, 2, "no input that a verdict could rest on");
    assert!(changed.stderr.contains("changed after signing"), "{}", changed.stderr);
    // Whoever is to sign it reads it before.
    let unsigned = bench.run(&check);
    assert_eq!(unsigned.code, 4);
    assert!(
        unsigned.stdout.contains("\"patched\" are let in before 2099-"),
        "{}",
        unsigned.stdout
    );
}

fn fetching(text: &str, pccs: &Pccs, cache: &Path) -> String {
    format!(
        "{text}\n[collateral]\nurl = \"{}\"\ncache = \"{}\"\n",
        pccs.url(),
        cache.display()
    )
}

#[test]
fn a_node_fetches_its_collateral_keeps_it_and_does_not_start_without() {
    let federation = Federation::of_demo().unwrap();
    let collateral = fs::read_to_string(federation.folder().join("authority/collateral.json")).unwrap();
    let pccs = Pccs::start(&collateral);
    let cache = federation.folder().join("cache");
    let aggregator = federation
        .start_aggregator_with(|text| fetching(&text, &pccs, &cache))
        .unwrap();
    assert_eq!(pccs.asked(), 4, "TCB info, QE identity and two revocation lists");
    assert!(cache.join("watermarks.json").exists());
    drop(aggregator);
    pccs.mood(Mood::Status(500, None));
    let aggregator = federation
        .start_aggregator_with(|text| fetching(&text, &pccs, &cache))
        .unwrap();
    assert_eq!(pccs.asked(), 4, "out of the cache");
    let empty = federation.folder().join("empty");
    let refused = federation
        .worker_like("worker-north", "no-collateral", &aggregator, |_, text| {
            fetching(&text, &pccs, &empty)
        })
        .unwrap();
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("answered 500"), "{}", refused.stderr);
}
