//! A runner keeps to the processors that it is given, its engine's threads too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod common;

use cloister_runner::{BackendChoice, Cpus, Runner, RunnerOptions};
use common::*;

/// What `Cpus_allowed_list` says of each thread of a process.
fn allowed(pid: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let statuses = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("status")).ok());
    let lists = statuses.filter_map(|status| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        Some(line.trim().to_owned())
    });
    lists.collect()
}

/// The last processor that this process may use.
fn last_cpu() -> String {
    let list = allowed(std::process::id()).remove(0);
    list.rsplit([',', '-']).next().unwrap().to_owned()
}

fn options_on(cpus: &str) -> RunnerOptions {
    let mut options = options("runner");
    options.cpus = Some(cpus.parse().unwrap());
    options
}

#[test]
fn every_thread_keeps_to_them() {
    let cpu = last_cpu();
    let mut choices = vec![options_on(&cpu)];
    match std::env::var_os("CLOISTER_OPENVINO_DIR") {
        Some(dir) => {
            for pinning in [false, true] {
                let mut options = options_on(&cpu);
                options.backend = BackendChoice::OpenVino;
                options.openvino_dir = Some(dir.clone().into());
                options.pinning = pinning;
                choices.push(options);
            }
        }
        None => eprintln!("SKIPPED: CLOISTER_OPENVINO_DIR is not set; `cargo xtask test` sets OpenVINO up and sets it"),
    }
    for options in choices {
        let what = format!("{:?}, pinning {}", options.backend, options.pinning);
        let mut runner = Runner::start(options).unwrap();
        for batch in [BATCH, REST] {
            let name = format!("evaluate@{batch}");
            runner.load_graph(&name, graphs(batch).evaluation.bytes()).unwrap();
        }
        open_rows(&mut runner);
        let mut request = evaluate_request();
        request.graphs = names(&["evaluate@32", "evaluate@6"]);
        runner.evaluate(&request).unwrap();
        let lists = allowed(runner.pid().unwrap());
        assert!(
            !lists.is_empty() && lists.iter().all(|list| *list == cpu),
            "{what}: {lists:?}, wanted {cpu}"
        );
    }
}

#[test]
fn it_does_not_start_on_a_processor_that_is_not_there() {
    for cpus in ["1023".to_owned(), format!("{},1023", last_cpu())] {
        let refused = Runner::start(options_on(&cpus)).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("the processors {cpus}")) && refused.contains("correct `cpus`"),
            "{refused}"
        );
    }
}

#[test]
fn lists_are_read_and_written_in_their_shortest_form() {
    for (text, shown, count) in [
        ("0", "0", 1),
        ("0-3,8", "0-3,8", 5),
        ("8, 0-1 ,2", "0-2,8", 4),
        ("5-5", "5", 1),
        ("0-1023", "0-1023", 1024),
    ] {
        let cpus: Cpus = text.parse().unwrap();
        assert_eq!((cpus.to_string().as_str(), cpus.count()), (shown, count), "{text}");
        assert_eq!(String::from(cpus.clone()).parse(), Ok(cpus));
    }
}

#[test]
fn what_is_no_list_is_refused_by_its_piece() {
    for (text, wanted) in [
        ("", "numbers from 0 to 1023"),
        ("0,", "\"\" is no list"),
        ("0-", "\"0-\" is no list"),
        ("-3", "numbers from"),
        ("+3", "\"+3\" is no list"),
        ("0-1024", "numbers from 0 to 1023"),
        ("99999999999999999999999", "numbers from"),
        ("3-1", "comes before its begin"),
        ("0-3,2", "2 is named twice"),
        ("0 1", "\"0 1\" is no list"),
        ("a", "\"a\" is no list"),
    ] {
        let error = text.parse::<Cpus>().unwrap_err().to_string();
        assert!(error.contains(wanted), "{text:?}: {error}");
    }
    assert!("0,".repeat(4096).parse::<Cpus>().is_err());
}
