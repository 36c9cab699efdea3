//! Workers that differ in one thing are refused: with the exit code of a refusal, and what was seen and wanted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use cloister_attestation::identity::{Credential, SigningKey, endorse};
use cloister_tests::federation::Federation;
use cloister_tests::{cloister, says};

type Edit = Box<dyn FnOnce(&Path, String) -> String>;

/// A worker that differs, the exit code it must end with, and words that its error must hold.
struct Case {
    like: &'static str,
    name: &'static str,
    edit: Edit,
    code: i32,
    words: &'static [&'static str],
}

fn case(
    name: &'static str,
    code: i32,
    words: &'static [&'static str],
    edit: impl FnOnce(&Path, String) -> String + 'static,
) -> Case {
    case_like("worker-north", name, code, words, edit)
}

/// A case that is like that node.
fn case_like(
    like: &'static str,
    name: &'static str,
    code: i32,
    words: &'static [&'static str],
    edit: impl FnOnce(&Path, String) -> String + 'static,
) -> Case {
    Case {
        like,
        name,
        edit: Box::new(edit),
        code,
        words,
    }
}

/// Words of a refusal for another policy, whatever differs in it.
const POLICY: &[&str] = &["policy.digest", ": seen ", "; wanted"];

/// The node file with a policy of its own, which is the federation's but for what `edit` changes.
fn with_policy(own: &Path, text: &str, edit: impl FnOnce(String) -> String) -> String {
    let policy = std::fs::read_to_string(own.ancestors().nth(2).unwrap().join("policy.toml")).unwrap();
    std::fs::write(own.join("policy.toml"), edit(policy)).unwrap();
    text.replace("../../policy.toml", "policy.toml")
}

/// A policy that names another digest for one of its modules or graphs.
fn other_digest(policy: &str, table: &str, name: &str) -> String {
    let start = format!("{table}\nname = \"{name}\"");
    let at = policy.find(&start).unwrap_or_else(|| panic!("no {start} in {policy}"));
    let digest = at + policy[at..].find("sha256 = \"").unwrap() + "sha256 = \"".len();
    let mut other = policy.to_owned();
    other.replace_range(digest..digest + 64, &"5a".repeat(32));
    other
}

/// The name of the file with the node's key.
fn key_file(text: &str) -> String {
    let line = text.lines().find_map(|line| line.strip_prefix("node_key = \""));
    line.unwrap().trim_end_matches('"').to_owned()
}

fn cases(federation: &Federation) -> Vec<Case> {
    let south = federation.node("worker-south");
    vec![
        case(
            "another-mrtd",
            3,
            &["attestation.mrtd: seen 1111111111", "; wanted"],
            |_, text| text + &format!("mrtd = \"{}\"\n", "11".repeat(48)),
        ),
        case("debug-td", 3, &["debug", ": seen ", "; wanted"], |_, text| {
            text + "attributes = \"0100001000000000\"\n"
        }),
        case(
            "rtmr3-that-something-else-extended",
            4,
            &[
                "of the log give",
                "and quotes show",
                "something else extends RTMR3",
                "agree on",
            ],
            |_, text| text + &format!("rtmr3 = \"{}\"\n", "22".repeat(48)),
        ),
        case("another-policy", 3, POLICY, |own, text| {
            with_policy(own, &text, |policy| policy + "\n# another policy\n")
        }),
        case("another-module", 3, POLICY, |own, text| {
            with_policy(own, &text, |policy| other_digest(&policy, "[[module]]", "train-sgd"))
        }),
        case("another-graph", 3, POLICY, |own, text| {
            with_policy(own, &text, |policy| other_digest(&policy, "[[graph]]", "train"))
        }),
        case(
            "another-root",
            3,
            &["root", "has the key id", "the policy names"],
            |own, text| {
                let authority = own.join("authority");
                let made = cloister(["quote".as_ref(), "authority".as_ref(), authority.as_os_str()]).unwrap();
                assert_eq!(made.code, 0, "{}", made.stderr);
                text.replace("../../authority", "authority")
            },
        ),
        case("another-data", 4, &["commitment seen", ", wanted"], |own, text| {
            let data = std::fs::read_to_string(own.join("data.csv")).unwrap();
            let shorter: Vec<_> = data.lines().take(data.lines().count() - 1).collect();
            std::fs::write(own.join("data.csv"), shorter.join("\n") + "\n").unwrap();
            text
        }),
        case(
            "anothers-credential",
            4,
            &[
                "the credential is for node worker-south of south",
                "policy say worker-north of north",
            ],
            move |own, text| {
                std::fs::copy(south.join("node.credential"), own.join("node.credential")).unwrap();
                text
            },
        ),
        // These two pass their own node's check, which asks for the fields alone: it is the aggregator that refuses them.
        case(
            "a-credential-that-its-participant-did-not-sign",
            3,
            &["credential.signature", ": seen ", "; wanted"],
            |own, text| {
                let file = own.join("node.credential");
                let credential = Credential::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
                let nobody = SigningKey::generate().unwrap();
                std::fs::write(&file, endorse(&nobody, credential.fields).unwrap().to_text()).unwrap();
                text
            },
        ),
        case_like(
            "worker-south",
            "under-anothers-name",
            3,
            &["credential.signature", ": seen ", "; wanted"],
            |own, text| {
                // North's key and TD, endorsed by north under the name of the other participant's node.
                let folder = own.ancestors().nth(2).unwrap();
                std::fs::copy(
                    folder.join("nodes/worker-north").join(key_file(&text)),
                    own.join(key_file(&text)),
                )
                .unwrap();
                let key = own.join(key_file(&text));
                let north = std::fs::read_to_string(folder.join("participants/north.key")).unwrap();
                let north = SigningKey::from_pem(&north).unwrap();
                let file = own.join("node.credential");
                let mut fields = Credential::parse(&std::fs::read_to_string(&file).unwrap())
                    .unwrap()
                    .fields;
                fields.node_key = SigningKey::from_pem(&std::fs::read_to_string(key).unwrap())
                    .unwrap()
                    .public();
                std::fs::write(&file, endorse(&north, fields).unwrap().to_text()).unwrap();
                text
            },
        ),
        case("no-credential", 2, &["node.credential", "typing error"], |own, text| {
            std::fs::remove_file(own.join("node.credential")).unwrap();
            text
        }),
        case(
            "a-key-for-all-to-read",
            2,
            &["its mode is 644, wanted 600", "chmod 600"],
            |own, text| {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
                std::fs::set_permissions(own.join(key_file(&text)), mode).unwrap();
                text
            },
        ),
        case(
            "data-that-nobody-granted",
            2,
            &[
                "[data.extra]",
                "the policy gives worker-north no dataset extra; it gives train",
            ],
            |_, text| text + "\n[data.extra]\npath = \"data.csv\"\n",
        ),
        case(
            "a-broken-data-file",
            2,
            &["row 7 (line 8), column \"p3\": seen \"x\"", "wanted"],
            |own, text| {
                let data = std::fs::read_to_string(own.join("data.csv")).unwrap();
                let broken: Vec<String> = data
                    .lines()
                    .enumerate()
                    .map(|(index, line)| match index {
                        7 => line
                            .split(',')
                            .enumerate()
                            .map(|(at, cell)| if at == 3 { "x" } else { cell })
                            .collect::<Vec<_>>()
                            .join(","),
                        _ => line.to_owned(),
                    })
                    .collect();
                std::fs::write(own.join("data.csv"), broken.join("\n") + "\n").unwrap();
                text
            },
        ),
    ]
}

#[test]
fn workers_that_differ_are_refused_and_the_aggregator_lives_on() {
    let federation = Federation::of_demo().unwrap();
    let mut aggregator = federation.start_aggregator().unwrap();
    let mut wrong = Vec::new();
    for case in cases(&federation) {
        let run = federation
            .worker_like(case.like, case.name, &aggregator, case.edit)
            .unwrap();
        let missing: Vec<_> = case.words.iter().filter(|words| !says(&run.stderr, words)).collect();
        let unsaid = case.code == 3 && !run.stderr.contains("SIMULATED");
        if run.code != case.code || !missing.is_empty() || unsaid {
            wrong.push(format!(
                "{}: exit code {} (wanted {}), without {missing:?}{}:\n{}{}",
                case.name,
                run.code,
                case.code,
                if unsaid {
                    ", and not that the root is SIMULATED"
                } else {
                    ""
                },
                run.stdout,
                run.stderr
            ));
        }
    }
    assert!(aggregator.lives(), "a refused worker ended the aggregator");

    // Somebody who speaks no TLS gets nothing and breaks nothing.
    let mut stranger = TcpStream::connect(&aggregator.address).unwrap();
    stranger.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nHost: cloister\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    assert!(answer.len() < 64, "{} bytes went to a stranger", answer.len());

    // And the honest two still train.
    let south = std::thread::scope(|scope| {
        let south = scope.spawn(|| {
            federation
                .worker_like("worker-south", "honest-south", &aggregator, |_, text| text)
                .unwrap()
        });
        let north = federation
            .worker_like("worker-north", "honest-north", &aggregator, |_, text| text)
            .unwrap();
        assert_eq!(north.code, 0, "{}{}", north.stdout, north.stderr);
        south.join().unwrap()
    });
    assert_eq!(south.code, 0, "{}{}", south.stdout, south.stderr);
    assert_eq!(aggregator.wait().unwrap(), Some(0));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn peer_says_who_answers_and_why_it_is_refused() {
    let federation = Federation::of_demo().unwrap();
    let aggregator = federation.start_aggregator().unwrap();
    let peer = |policy: &Path, form: &str| {
        let run = cloister([
            "peer".as_ref(),
            aggregator.address.as_ref(),
            "--policy".as_ref(),
            policy.as_os_str(),
            "--trust-root".as_ref(),
            federation.folder().join("authority").as_os_str(),
            "-o".as_ref(),
            form.as_ref(),
        ]);
        run.unwrap()
    };
    let policy = federation.folder().join("policy.toml");
    let run = peer(&policy, "json");
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json["verdict"], "accepted");
    assert_eq!(
        (&json["node"], &json["role"]),
        (&"aggregator".into(), &"aggregator".into())
    );
    let entries = json["entries"].as_array().unwrap();
    for role in ["policy", "host"] {
        let listed = |entry: &serde_json::Value| entry["role"] == role && entry["in_policy"] == true;
        assert!(entries.iter().any(listed), "{role}: {entries:?}");
    }
    assert_eq!(json["intercepted"], serde_json::Value::Null);
    // What the node runs was extended into RTMR3, and its log explains the register.
    let log = &json["event_log"];
    assert_eq!(log["explains"], serde_json::json!(["rtmr3"]), "{log}");
    let extended = log["rtmr3"].as_array().unwrap();
    let extended: Vec<_> = extended.iter().map(|event| event["text"].as_str().unwrap()).collect();
    assert!(extended[0].starts_with("cloister policy "), "{extended:?}");
    let running = entries
        .iter()
        .filter(|entry| ["policy", "module", "graph"].contains(&entry["role"].as_str().unwrap()));
    for entry in running {
        let text = ["role", "name", "digest"]
            .map(|key| entry[key].as_str().unwrap())
            .join(" ");
        assert!(
            extended.contains(&format!("cloister {text}").as_str()),
            "{text} in {extended:?}"
        );
    }
    let text = peer(&policy, "text");
    assert!(
        text.stdout.contains("which explain RTMR3 completely"),
        "{}",
        text.stdout
    );
    assert!(text.code == 0 && text.stdout.contains("SIMULATED") && text.stdout.contains("verdict      accepted"));

    // Under a policy that wants another TD the same node is refused; it is still said who answers and what it runs.
    let changed = std::fs::read_to_string(&policy).unwrap() + "\n# one more line\n";
    let other = federation.folder().join("other-policy.toml");
    std::fs::write(&other, changed).unwrap();
    let run = peer(&other, "json");
    assert_eq!(run.code, 3, "{}{}", run.stdout, run.stderr);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json["verdict"], "refused");
    let reasons = json["reasons"].as_array().unwrap();
    assert!(
        reasons
            .iter()
            .any(|reason| reason["rule"] == "policy.digest" && reason["wanted"] != ""),
        "{reasons:?}"
    );
    let text = peer(&other, "text");
    assert!(text.code == 3 && text.stdout.contains("verdict      refused") && text.stdout.contains("policy.digest"));

    // Something that is no node at all.
    let web = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = web.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        web.accept()
            .map(|(mut stream, _)| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    });
    let run = cloister([
        "peer".as_ref(),
        address.as_ref(),
        "--policy".as_ref(),
        policy.as_os_str(),
        "--trust-root".as_ref(),
        federation.folder().join("authority").as_os_str(),
    ])
    .unwrap();
    assert!(
        run.code == 1 && run.stderr.contains("no TLS with"),
        "{} {}",
        run.code,
        run.stderr
    );
}
