//! `cloister quote verify` as a reviewer runs it: real quotes, damaged ones, and things that are no quotes at all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

#[path = "vectors/folder.rs"]
mod real;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cloister_attestation::QuoteProvider as _;
use cloister_attestation::simulated::{SimulatedAuthority, SimulatedTd, TdValues, create_authority};
use cloister_tests::{Run, binary, cloister, words};
use serde_json::Value;

/// When the simulated quotes here are judged, in seconds since 1970.
const NOW: u64 = 1_795_132_800;

/// The folder of real quotes, and what its manifest says of them.
fn vectors() -> (PathBuf, Vec<Value>) {
    let folder = real::folder();
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join("manifest.json")).unwrap()).unwrap();
    let vectors = manifest["vectors"].as_array().unwrap().clone();
    (folder, vectors)
}

fn verify(quote: &Path, collateral: &Path, at: u64, more: &[&str]) -> Run {
    let at = at.to_string();
    let mut arguments = vec!["quote", "verify", quote.to_str().unwrap()];
    arguments.extend(["--collateral", collateral.to_str().unwrap(), "--at", &at, "-o", "json"]);
    arguments.extend(more);
    cloister(arguments).unwrap()
}

fn verify_vector(folder: &Path, vector: &Value, more: &[&str]) -> Run {
    let quote = folder.join(vector["quote"].as_str().unwrap());
    let collateral = folder.join(vector["collateral"].as_str().unwrap());
    let mut more = more.to_vec();
    if vector["allow_debug"].as_bool().unwrap() {
        more.push("--allow-debug");
    }
    verify(&quote, &collateral, vector["now"].as_u64().unwrap(), &more)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

#[test]
fn the_binary_gives_every_real_quote_its_verdict() {
    let (folder, vectors) = vectors();
    for vector in &vectors {
        let id = text(&vector["id"]);
        let run = verify_vector(&folder, vector, &[]);
        let json = run
            .json()
            .unwrap_or_else(|error| panic!("{id}: {error}: {}", run.stdout));
        let wanted = text(&vector["verdict"]);
        if let Some(reason) = wanted.strip_prefix("ERR ") {
            assert_eq!((run.code, text(&json["verdict"])), (3, "refused"), "{id}");
            let reasons = json["reasons"].as_array().unwrap();
            let told = reasons.iter().any(|rule| text(&rule["seen"]).contains(reason));
            assert!(
                told && reasons.iter().all(|rule| !text(&rule["wanted"]).is_empty()),
                "{id}: {reasons:?}"
            );
        } else {
            assert_eq!(
                (run.code, text(&json["verdict"])),
                (0, "accepted"),
                "{id}: {}",
                run.stderr
            );
            assert_eq!(text(&json["tcb_status"]), wanted, "{id}");
            assert!(json["reasons"].as_array().unwrap().is_empty());
            assert!(text(&json["tcb_date"]).ends_with('Z'));
            assert!(json["collateral"]["evaluation_number"].as_u64().unwrap() >= 15);
            assert!(text(&json["collateral"]["issued"]) < text(&json["collateral"]["next_update"]));
        }
        assert_eq!(json["quote_version"], vector["quote_version"], "{id}");
        assert_eq!(text(&json["body"]), text(&vector["body"]), "{id}");
        let td = &json["td"];
        for register in [
            "mrtd",
            "rtmr0",
            "rtmr1",
            "rtmr2",
            "rtmr3",
            "mrseam",
            "mrconfigid",
            "mrowner",
        ] {
            assert_eq!(text(&td[register]).len(), 96, "{id}: {register}");
        }
        assert_eq!(text(&td["report_data"]).len(), 128, "{id}");
        let names: Vec<_> = td["attributes"]["names"].as_array().unwrap().iter().map(text).collect();
        assert_eq!(names.contains(&"DEBUG"), vector["td_debug"].as_bool().unwrap(), "{id}");
        assert!(td["xfam"]["names"].as_array().unwrap().contains(&"SSE".into()), "{id}");
        assert_eq!(text(&json["platform"]["fmspc"]).len(), 12, "{id}");
        assert_eq!(text(&json["platform"]["ppid"]).len(), 32, "{id}");
        assert_eq!(text(&json["platform"]["root_key_id"]).len(), 96, "{id}");
    }
    assert!(!vectors.is_empty());
}

#[test]
fn an_out_of_date_platform_is_accepted_and_its_status_shown() {
    let (folder, vectors) = vectors();
    let old = vectors.iter().find(|vector| vector["verdict"] == "OutOfDate").unwrap();
    let run = verify_vector(&folder, old, &[]);
    let json = run.json().unwrap();
    assert_eq!((run.code, text(&json["tcb_status"])), (0, "OutOfDate"));
    assert_eq!(json["advisory_ids"].as_array().unwrap().len(), 7);
    assert!(json["padding_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn another_root_refuses_real_quotes_and_report_data_is_compared() {
    let (folder, vectors) = vectors();
    let dir = tempfile::tempdir().unwrap();
    let authority = dir.path().join("sim");
    let made = cloister(["quote".as_ref(), "authority".as_ref(), authority.as_os_str()]).unwrap();
    assert_eq!(made.code, 0, "{}", made.stderr);
    let run = verify_vector(&folder, &vectors[0], &["--root", authority.to_str().unwrap()]);
    assert_eq!(run.code, 3);
    assert!(run.stdout.contains("attestation.root_key_id"), "{}", run.stdout);
    assert!(run.stderr.contains("SIMULATED"), "{}", run.stderr);
    let run = verify_vector(&folder, &vectors[0], &["--report-data", &"00".repeat(64)]);
    assert_eq!(run.code, 3);
    assert!(run.stdout.contains("quote.report_data"), "{}", run.stdout);
}

#[test]
fn whatever_is_given_as_a_quote_or_as_collateral_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let authority = path("sim");
    cloister(["quote".as_ref(), "authority".as_ref(), authority.as_os_str()]).unwrap();
    let quote = path("good.quote");
    let data = "5a".repeat(64);
    let arguments = [
        "quote",
        "make",
        "--simulated",
        authority.to_str().unwrap(),
        "--report-data",
        &data,
        "-o",
    ];
    let made = cloister(arguments.into_iter().chain([quote.to_str().unwrap()])).unwrap();
    assert_eq!(made.code, 0, "{}", made.stderr);
    fs::write(path("empty"), b"").unwrap();
    fs::write(path("huge"), vec![0x41; 20 << 20]).unwrap();
    fs::write(path("text"), "{\"tcb_info\": [[[[").unwrap();
    fs::write(path("deep"), "[".repeat(1 << 20)).unwrap();
    fs::write(path("nulls"), vec![0; 9000]).unwrap();
    let root = ["--root", authority.to_str().unwrap()];
    let hostile = ["empty", "huge", "text", "deep", "nulls", "sim", "missing"].map(path);
    let devices = ["/dev/zero", "/dev/null", "/dev/urandom", "/proc/self/mem"].map(PathBuf::from);
    for input in hostile.iter().chain(&devices) {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let as_quote = verify(input, &authority, now, &root);
        assert!(matches!(as_quote.code, 2 | 3), "{}: {as_quote:?}", input.display());
        if as_quote.code == 3 {
            assert_eq!(text(&as_quote.json().unwrap()["verdict"]), "refused");
        }
        if *input == authority {
            continue; // That is good collateral.
        }
        let as_collateral = verify(&quote, input, now, &root);
        assert_eq!(as_collateral.code, 2, "{}: {as_collateral:?}", input.display());
        assert!(!as_collateral.stderr.contains("panicked"), "{}", as_collateral.stderr);
        let as_root = verify(&quote, &authority, now, &["--root", input.to_str().unwrap()]);
        assert_eq!(as_root.code, 2, "{}: {as_root:?}", input.display());
        let shown = cloister(["quote", "show", input.to_str().unwrap()]).unwrap();
        assert_eq!(shown.code, 2, "{}: {shown:?}", input.display());
    }
}

#[test]
fn a_quote_comes_by_stdin_too() {
    let (folder, vectors) = vectors();
    let collateral = folder.join(text(&vectors[0]["collateral"]));
    let at = vectors[0]["now"].to_string();
    let feed = |bytes: &[u8]| {
        let mut child = Command::new(binary())
            .args([
                "quote",
                "verify",
                "-",
                "--collateral",
                collateral.to_str().unwrap(),
                "--at",
                &at,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The child stops reading where no quote can be that long.
        let _ = child.stdin.take().unwrap().write_all(bytes);
        child.wait_with_output().unwrap()
    };
    let quote = fs::read(folder.join(text(&vectors[0]["quote"]))).unwrap();
    let good = feed(&quote);
    assert_eq!(good.status.code(), Some(0));
    let shown = String::from_utf8(good.stdout).unwrap();
    assert!(
        shown.contains("accepted: TCB UpToDate") && shown.contains("SEPT_VE_DISABLE"),
        "{shown}"
    );
    assert_eq!(feed(&[7; 1 << 20]).status.code(), Some(3));
    assert_eq!(feed(&[]).status.code(), Some(3));
}

#[test]
fn a_machine_that_gives_no_quotes_says_what_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("td.quote");
    let data = "5a".repeat(64);
    let run = cloister(["quote", "make", "--report-data", &data, "-o", out.to_str().unwrap()]).unwrap();
    if run.code == 0 {
        eprintln!("SKIPPED: this machine gives TDX quotes");
        return;
    }
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(!out.exists());
    for looked in ["127.0.0.1:8006", "/sys/kernel/config/tsm/report"] {
        assert!(
            run.stderr.replace(['\n', '│', ' '], "").contains(looked),
            "{}",
            run.stderr
        );
    }
    // Each can be named, and says what it lacks.
    for (provider, lacks) in [("configfs", "configfs-tsm"), ("coco", "8006")] {
        let run = cloister([
            "quote",
            "make",
            "--provider",
            provider,
            "--report-data",
            &data,
            "-o",
            out.to_str().unwrap(),
        ])
        .unwrap();
        assert_eq!(run.code, 1, "{}", run.stderr);
        assert!(
            run.stderr.replace(['\n', '│', ' '], "").contains(lacks),
            "{}",
            run.stderr
        );
    }
}

#[test]
fn a_policy_drafted_from_a_real_quote_takes_that_td_and_refuses_the_others() {
    let (folder, vectors) = vectors();
    let dir = tempfile::tempdir().unwrap();
    let first = &vectors[0];
    let drafted = cloister([
        "policy",
        "from-quote",
        folder.join(text(&first["quote"])).to_str().unwrap(),
        "--collateral",
        folder.join(text(&first["collateral"])).to_str().unwrap(),
        "--at",
        &first["now"].to_string(),
    ])
    .unwrap();
    assert_eq!(drafted.code, 0, "{}", drafted.stderr);
    assert!(drafted.stdout.contains("simulated = false"), "{}", drafted.stdout);
    // This TD was started without initdata, and so are those that the draft takes.
    let without_initdata = "# mrconfigid = []   Confidential Containers: hash of the initdata; left out: zero alone";
    assert!(drafted.stdout.contains(without_initdata), "{}", drafted.stdout);
    assert!(!drafted.stderr.contains("anchor"), "{}", drafted.stderr);
    let strict = fs::read_to_string(cloister_tests::root().join("policies/strict.toml")).unwrap();
    let begin = strict.find("[attestation]").unwrap();
    let end = begin + strict[begin..].find("\n[release]").unwrap();
    let hosts = format!(
        "hosts = [{{ name = \"cloister\", sha256 = \"{}\" }}]\n",
        "ab".repeat(32)
    );
    let policy = dir.path().join("policy.toml");
    let whole = format!("{}{}\n{hosts}{}", &strict[..begin], drafted.stdout, &strict[end..]);
    fs::write(&policy, whole).unwrap();
    let checked = cloister(["policy", "check", policy.to_str().unwrap()]).unwrap();
    assert_eq!(checked.code, 0, "{}", checked.stderr);
    let judged = |vector| verify_vector(&folder, vector, &["--policy", policy.to_str().unwrap()]);
    assert_eq!(judged(first).code, 0, "{}", judged(first).stderr);
    for vector in vectors.iter().filter(|vector| vector["sha256"] != first["sha256"]) {
        let run = judged(vector);
        assert_eq!(run.code, 3, "{}", vector["id"]);
        assert!(
            run.stdout.contains("attestation.mrtd") || run.stdout.contains("attestation.rtmr0"),
            "{}",
            vector["id"]
        );
    }
    // Its out-of-date neighbour is told so by the policy, beside everything else.
    let old = vectors.iter().find(|vector| vector["verdict"] == "OutOfDate").unwrap();
    assert!(judged(old).stdout.contains("attestation.tcb_statuses"));
}

#[test]
fn a_draft_of_a_td_with_initdata_says_that_an_anchor_is_needed_and_one_without_pins_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let (sim, path) = (dir.path().join("sim"), dir.path().join("td.quote"));
    create_authority(&sim, NOW).unwrap();
    let authority = SimulatedAuthority::load(&sim).unwrap();
    let drafted = |mrconfigid: [u8; 48]| {
        let values = TdValues {
            mrconfigid,
            ..TdValues::default()
        };
        let quote = SimulatedTd::new(&authority, values).unwrap().quote(&[0; 64]).unwrap();
        fs::write(&path, quote).unwrap();
        let (sim, at) = (sim.to_str().unwrap(), NOW.to_string());
        let quote = path.to_str().unwrap();
        let run = cloister([
            "policy",
            "from-quote",
            quote,
            "--collateral",
            sim,
            "--root",
            sim,
            "--at",
            &at,
        ])
        .unwrap();
        assert_eq!(run.code, 0, "{}", run.stderr);
        run
    };
    let with = drafted([0xab; 48]);
    assert!(
        with.stdout.contains(&format!("mrconfigid = [\"{}\"]", "ab".repeat(48))),
        "{}",
        with.stdout
    );
    for wanted in ["abababab", "[[attestation.anchor]]", "policy from-image"] {
        assert!(words(&with.stderr).contains(wanted), "{wanted}: {}", with.stderr);
    }
    let without = drafted([0; 48]);
    assert!(
        without
            .stdout
            .contains(&format!("mrconfigid = [\"{}\"]", "0".repeat(96))),
        "{}",
        without.stdout
    );
    assert!(!without.stderr.contains("anchor"), "{}", without.stderr);
}

#[test]
fn an_event_log_is_replayed_beside_its_quote_and_has_to_be_explained_by_the_policy() {
    let (folder, vectors) = vectors();
    let vector = vectors
        .iter()
        .find(|vector| text(&vector["id"]).contains("dstack"))
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let real = folder.join("dstack_event_log.json");
    let with = |log: &Path, more: &[&str]| {
        verify_vector(
            &folder,
            vector,
            &[&["--event-log", log.to_str().unwrap()], more].concat(),
        )
    };
    let run = with(&real, &[]);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json["event_log"]["events"], 28);
    let explains = serde_json::json!(["rtmr0", "rtmr1", "rtmr2", "rtmr3"]);
    assert_eq!(json["event_log"]["explains"], explains);
    let events = json["event_log"]["rtmr3"].as_array().unwrap();
    assert_eq!((events.len(), text(&events[0]["text"])), (8, "system-preparing"));

    // One event less, and the register is not explained.
    let mut report: Value = serde_json::from_slice(&fs::read(&real).unwrap()).unwrap();
    let mut less: Vec<Value> = serde_json::from_str(text(&report["event_log"])).unwrap();
    less.pop();
    report["event_log"] = Value::String(serde_json::to_string(&less).unwrap());
    let cut = dir.path().join("cut.json");
    fs::write(&cut, report.to_string()).unwrap();
    let run = with(&cut, &[]);
    assert_eq!(run.code, 3, "{}{}", run.stdout, run.stderr);
    assert!(
        run.stdout.contains("event_log.rtmr3") && run.stdout.contains("7 events"),
        "{}",
        run.stdout
    );

    // A policy that wants the register explained names each event that it has no reason for, until it has one.
    let drafted = cloister([
        "policy",
        "from-quote",
        folder.join(text(&vector["quote"])).to_str().unwrap(),
        "--collateral",
        folder.join(text(&vector["collateral"])).to_str().unwrap(),
        "--at",
        &vector["now"].to_string(),
    ])
    .unwrap();
    assert!(
        drafted.stdout.contains("rtmr3 = \"any\""),
        "{}{}",
        drafted.stdout,
        drafted.stderr
    );
    let strict = fs::read_to_string(cloister_tests::root().join("policies/strict.toml")).unwrap();
    let begin = strict.find("[attestation]").unwrap();
    let end = begin + strict[begin..].find("\n[release]").unwrap();
    let host = format!(
        "hosts = [{{ name = \"cloister\", sha256 = \"{}\" }}]\n",
        "ab".repeat(32)
    );
    let policy = dir.path().join("policy.toml");
    let judged = |log: Option<&Path>, others: &[&str]| {
        let rule = format!("rtmr3 = \"log\"\nrtmr3_events = {others:?}");
        let section = drafted.stdout.replace("rtmr3 = \"any\"", &rule);
        fs::write(
            &policy,
            format!("{}{section}\n{host}{}", &strict[..begin], &strict[end..]),
        )
        .unwrap();
        let policy = ["--policy", policy.to_str().unwrap()];
        match log {
            Some(log) => with(log, &policy),
            None => verify_vector(&folder, vector, &policy),
        }
    };
    let run = judged(None, &[]);
    assert_eq!(run.code, 3, "{}{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("without an event log"), "{}", run.stdout);
    let texts: Vec<&str> = events.iter().map(|event| text(&event["text"])).collect();
    let run = judged(Some(&real), &texts[1..]);
    assert_eq!(run.code, 3, "{}{}", run.stdout, run.stderr);
    let reasons = run.json().unwrap()["reasons"].clone();
    let reasons = reasons.as_array().unwrap();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    assert!(
        text(&reasons[0]["seen"]).contains("event 1, \"system-preparing\""),
        "{reasons:?}"
    );
    assert_eq!(judged(Some(&real), &texts).code, 0);

    // What is no log is unreadable input.
    for bytes in [&b"not a log"[..], b"[1]", b"{\"event_log\": 7}", &[0xfe; 40]] {
        let none = dir.path().join("none");
        fs::write(&none, bytes).unwrap();
        assert_eq!(with(&none, &[]).code, 2, "{bytes:?}");
    }
}
