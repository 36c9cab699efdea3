//! Workers behind a proxy, on Parquet rows, with a credential that is no more, and under a root that is not theirs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use cloister_attestation::identity::{Credential, SigningKey, endorse};
use cloister_tests::federation::Federation;
use cloister_tests::{Run, binary, cloister, words};
use parquet::column::writer::ColumnWriter;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// An HTTP proxy on loopback. It passes CONNECT on, or answers each one with `refusal`; it remembers whom it was asked for.
struct Proxy {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(refusal: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (mut near, log) = (near.unwrap(), Arc::clone(&log));
                std::thread::spawn(move || {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        near.read_exact(&mut byte).unwrap();
                        head.push(byte[0]);
                    }
                    let line = String::from_utf8(head).unwrap().lines().next().unwrap().to_owned();
                    log.lock().unwrap().push(line.clone());
                    if let Some(refusal) = refusal {
                        near.write_all(refusal.as_bytes()).unwrap();
                        return;
                    }
                    let target = line.split(' ').nth(1).unwrap();
                    let far = TcpStream::connect(target).unwrap();
                    near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
                    let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                    std::thread::spawn(move || pass_on(back.0, back.1));
                    pass_on(near, far);
                });
            }
        });
        Self { address, asked }
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    // However it ends, the other end hears of it.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Writes a CSV file's numbers as Parquet: features as doubles, the label as an integer.
fn as_parquet(csv: &Path, to: &Path) {
    let text = std::fs::read_to_string(csv).unwrap();
    let mut lines = text.lines();
    let names: Vec<_> = lines.next().unwrap().split(',').collect();
    let rows: Vec<Vec<f64>> = lines
        .map(|line| line.split(',').map(|cell| cell.parse().unwrap()).collect())
        .collect();
    let columns = names.iter().map(|name| match *name {
        "label" => "required int64 label;".to_owned(),
        name => format!("required double {name};"),
    });
    let schema = format!("message rows {{ {} }}", columns.collect::<String>());
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let file = std::fs::File::create(to).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut index = 0;
    while let Some(mut column) = group.next_column().unwrap() {
        let values: Vec<f64> = rows.iter().map(|row| row[index]).collect();
        let written = match column.untyped() {
            ColumnWriter::DoubleColumnWriter(to) => to.write_batch(&values, None, None),
            ColumnWriter::Int64ColumnWriter(to) => {
                let values: Vec<i64> = values.iter().map(|value| *value as i64).collect();
                to.write_batch(&values, None, None)
            }
            _ => unreachable!("no such column in the schema"),
        };
        assert_eq!(written.unwrap(), rows.len());
        column.close().unwrap();
        index += 1;
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn workers_train_through_a_proxy_and_on_parquet_rows() {
    let federation = Federation::of_demo().unwrap();
    let mut aggregator = federation.start_aggregator().unwrap();
    let proxy = Proxy::start(None);
    std::thread::scope(|scope| {
        let south = scope.spawn(|| {
            federation
                .worker_like("worker-south", "behind-a-proxy", &aggregator, |_, text| {
                    format!("proxy = \"http://{}\"\n{text}", proxy.address)
                })
                .unwrap()
        });
        // The commitment in the policy is over the CSV file: the same numbers give the same one.
        let north = federation
            .worker_like("worker-north", "on-parquet", &aggregator, |own, text| {
                as_parquet(&own.join("data.csv"), &own.join("data.parquet"));
                text.replace(
                    "path = \"data.csv\"",
                    "path = \"data.parquet\"\nsalt = \"data.csv.salt\"",
                )
            })
            .unwrap();
        assert_eq!(north.code, 0, "{}{}", north.stdout, north.stderr);
        let south = south.join().unwrap();
        assert_eq!(south.code, 0, "{}{}", south.stdout, south.stderr);
    });
    assert_eq!(aggregator.wait().unwrap(), Some(0));
    let asked = proxy.asked.lock().unwrap().clone();
    assert!(!asked.is_empty(), "the worker went past its proxy");
    let wanted = format!("CONNECT {} HTTP/1.1", aggregator.address);
    assert!(asked.iter().all(|line| *line == wanted), "{asked:?}");
}

#[test]
fn a_proxy_that_refuses_is_named_with_its_answer() {
    let federation = Federation::of_demo().unwrap();
    let proxy = Proxy::start(Some("HTTP/1.1 403 Not by this way\r\nContent-Length: 0\r\n\r\n"));
    let file = federation
        .node_like("worker-north", "behind-a-wall", |_, text| {
            format!("proxy = \"{}\"\n{text}", proxy.address)
        })
        .unwrap();
    let run = cloister([
        "worker".as_ref(),
        "--give-up-s".as_ref(),
        "1".as_ref(),
        "--config".as_ref(),
        file.as_os_str(),
    ])
    .unwrap();
    assert_eq!(run.code, 1, "{}", run.stderr);
    for words in [proxy.address.as_str(), "403 Not by this way", "wanted HTTP status 2xx"] {
        assert!(run.stderr.contains(words), "no {words} in {}", run.stderr);
    }
}

#[test]
fn an_expired_credential_is_refused_by_the_aggregator() {
    let federation = Federation::of_demo().unwrap();
    let aggregator = federation.start_aggregator().unwrap();
    let run = federation
        .worker_like("worker-north", "expired", &aggregator, |own, text| {
            let file = own.join("node.credential");
            let credential = Credential::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
            let mut fields = credential.fields;
            let key = federation
                .folder()
                .join("participants")
                .join(format!("{}.key", fields.participant));
            let key = SigningKey::from_pem(&std::fs::read_to_string(key).unwrap()).unwrap();
            fields.not_after_unix_s = 1_700_000_000;
            std::fs::write(&file, endorse(&key, fields).unwrap().to_text()).unwrap();
            text
        })
        .unwrap();
    assert_eq!(run.code, 3, "{}{}", run.stdout, run.stderr);
    for words in ["credential.not_after", "1700000000", "SIMULATED"] {
        assert!(run.stderr.contains(words), "no {words} in {}", run.stderr);
    }
}

/// The policy's text under Intel's root instead of the simulated one, all else equal.
fn under_intels_root(policy: &str) -> String {
    let kept = policy.lines().filter(|line| !line.starts_with("root_key_id"));
    let lines = kept.map(|line| match line.starts_with("simulated = true") {
        true => "simulated = false\n".to_owned(),
        false => format!("{line}\n"),
    });
    lines.collect()
}

fn sign(federation: &Federation, policy: &Path, participant: &str) -> Run {
    let key = federation
        .folder()
        .join("participants")
        .join(format!("{participant}.key"));
    cloister([
        "policy".as_ref(),
        "sign".as_ref(),
        policy.as_os_str(),
        "--participant".as_ref(),
        participant.as_ref(),
        "--key".as_ref(),
        key.as_os_str(),
    ])
    .unwrap()
}

#[test]
fn a_simulated_node_and_its_quotes_have_no_place_under_intels_root() {
    let federation = Federation::of_demo().unwrap();
    let policy = federation.folder().join("intel.toml");
    let text = std::fs::read_to_string(federation.folder().join("policy.toml")).unwrap();
    std::fs::write(&policy, under_intels_root(&text)).unwrap();
    for participant in ["north", "south", "coordinator"] {
        let run = sign(&federation, &policy, participant);
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    for (node, role) in [("worker-north", "worker"), ("aggregator", "aggregator")] {
        let file = federation
            .node_like(node, &format!("{node}-under-intel"), |_, text| {
                text.replace("../../policy.toml", "../../intel.toml")
            })
            .unwrap();
        let run = cloister([role.as_ref(), "--config".as_ref(), file.as_os_str()]).unwrap();
        assert_eq!(run.code, 4, "{node}: {}{}", run.stdout, run.stderr);
        assert!(
            run.stderr.contains("Intel's root") && run.stderr.contains("simulated"),
            "{node}: {}",
            run.stderr
        );
    }

    let quote = federation.folder().join("td.quote");
    let authority = federation.folder().join("authority");
    let made = cloister([
        "quote".as_ref(),
        "make".as_ref(),
        "--simulated".as_ref(),
        authority.as_os_str(),
        "--report-data".as_ref(),
        "5a".repeat(64).as_ref(),
        "-o".as_ref(),
        quote.as_os_str(),
    ])
    .unwrap();
    assert_eq!(made.code, 0, "{}", made.stderr);
    let run = cloister([
        "quote".as_ref(),
        "verify".as_ref(),
        quote.as_os_str(),
        "--collateral".as_ref(),
        authority.as_os_str(),
        "--policy".as_ref(),
        policy.as_os_str(),
        "-o".as_ref(),
        "json".as_ref(),
    ])
    .unwrap();
    assert_eq!(run.code, 3, "{}{}", run.stdout, run.stderr);
    let verdict = run.json().unwrap();
    assert_eq!(verdict["verdict"], "refused", "{verdict}");
    assert!(!verdict["reasons"].as_array().unwrap().is_empty(), "{verdict}");
}

/// Where no service can be reached, collateral comes in files: to the node by its bundle, to who looks at it by `--collateral`.
#[test]
fn nodes_and_those_who_look_at_them_judge_by_collateral_out_of_a_file() {
    let federation = Federation::of_demo().unwrap();
    let bundle = federation.folder().join("bundle.json");
    std::fs::copy(federation.folder().join("authority/collateral.json"), &bundle).unwrap();
    let section = "\n[collateral]\ncache = \"cache\"\nbundle = \"../../bundle.json\"\n";
    let aggregator = federation.start_aggregator_with(|text| text + section).unwrap();
    let marks = federation.node("aggregator").join("cache/watermarks.json");
    assert!(marks.exists(), "the bundle went through the watermarks");
    // A visitor's own folder has the root alone.
    let folder = federation.folder().join("root-alone");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(federation.folder().join("authority/root.der"), folder.join("root.der")).unwrap();
    let policy = federation.folder().join("policy.toml");
    let peer = |more: &[&std::ffi::OsStr]| {
        let all: [&std::ffi::OsStr; 6] = [
            "peer".as_ref(),
            aggregator.address.as_ref(),
            "--policy".as_ref(),
            policy.as_ref(),
            "--trust-root".as_ref(),
            folder.as_ref(),
        ];
        cloister([&all[..], more].concat()).unwrap()
    };
    let without = peer(&[]);
    assert_eq!(without.code, 2, "{}", without.stderr);
    let with = peer(&["--collateral".as_ref(), bundle.as_ref()]);
    assert_eq!(with.code, 0, "{}{}", with.stdout, with.stderr);
    drop(aggregator);

    // A node whose bundle is none does not start.
    let broken = federation.folder().join("broken.json");
    std::fs::write(&broken, "{}").unwrap();
    let file = federation.node_like("worker-north", "worker-broken", |_, text| {
        text + &section.replace("bundle.json", "broken.json")
    });
    let run = cloister(["worker".as_ref(), "--config".as_ref(), file.unwrap().as_os_str()]).unwrap();
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    assert!(
        words(&run.stderr).contains("quote collateral -o FILE"),
        "{}",
        run.stderr
    );
}

/// What is dialled while nobody listens there, as between two states of a node, is dialled again, and that is said.
#[test]
fn a_node_that_listens_a_moment_later_is_looked_at_then() {
    let federation = Federation::of_demo().unwrap();
    let aggregator = federation.start_aggregator().unwrap();
    // A port that is free, and refuses until somebody listens.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut peer = Command::new(binary())
        .args(["peer", &address.to_string(), "-o", "json", "--policy"])
        .arg(federation.folder().join("policy.toml"))
        .arg("--trust-root")
        .arg(federation.folder().join("authority"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(peer.stderr.take().unwrap()).lines();
    let told = said.find(|line| line.as_ref().unwrap().contains("dialling again"));
    assert!(told.unwrap().unwrap().contains("takes no connection"));
    let listener = TcpListener::bind(address).unwrap();
    let target = aggregator.address.clone();
    std::thread::spawn(move || {
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(target).unwrap();
        let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
        std::thread::spawn(move || pass_on(back.0, back.1));
        pass_on(near, far);
    });
    let shown = peer.wait_with_output().unwrap();
    assert_eq!(shown.status.code(), Some(0), "{:?}", said.collect::<Vec<_>>());
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(
        (&shown["verdict"], &shown["node"]),
        (&"accepted".into(), &"aggregator".into())
    );
}
