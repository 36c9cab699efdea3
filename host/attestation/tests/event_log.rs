//! A real event log with its quote: replayed, it gives the quote's registers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that panics says where"
)]

#[path = "../../../tests/vectors/folder.rs"]
mod real;

use cloister_attestation::encoding::from_hex_vec;
use cloister_attestation::{EventLog, Quote};
use serde_json::Value;

#[test]
fn a_real_log_replays_to_the_registers_of_its_quote() {
    let folder = real::folder();
    let file = std::fs::read(folder.join("dstack_event_log.json")).unwrap();
    let mut report: Value = serde_json::from_slice(&file).unwrap();
    let quote = from_hex_vec(report["quote"].as_str().unwrap()).unwrap();
    let rtmr = Quote::parse(&quote).unwrap().report.rtmr;
    let beside = std::fs::read(folder.join("v4_td10_dstack_uptodate.quote")).unwrap();
    assert_eq!(Quote::parse(&beside).unwrap().report.rtmr, rtmr);
    let log = EventLog::parse_file(&file).unwrap();
    for (register, value) in rtmr.iter().enumerate() {
        assert_eq!(&log.replay(register), value, "RTMR{register}");
    }
    let runtime = log.of_register(3);
    let texts: Vec<&str> = runtime.events().iter().map(|event| event.text().unwrap()).collect();
    assert_eq!(texts.len(), 8);
    assert_eq!((texts[0], texts[6]), ("system-preparing", "system-ready"));
    // In the form of the CCEL it replays the same.
    assert_eq!(EventLog::parse(&log.to_bytes()).unwrap().replay(3), rtmr[3]);

    // An event left out, added, moved or changed shows.
    let events: Vec<Value> = serde_json::from_str(report["event_log"].as_str().unwrap()).unwrap();
    let first = events.iter().position(|event| event["imr"] == 3).unwrap();
    let mut replayed = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut changed = events.clone();
        change(&mut changed);
        report["event_log"] = Value::String(serde_json::to_string(&changed).unwrap());
        EventLog::parse_file(report.to_string().as_bytes()).unwrap().replay(3)
    };
    assert_eq!(replayed(&|_| ()), rtmr[3]);
    for (what, change) in [
        (
            "left out",
            &(|events: &mut Vec<Value>| drop(events.remove(first))) as &dyn Fn(&mut Vec<Value>),
        ),
        ("twice", &|events| events.push(events[first].clone())),
        ("moved", &|events| events.swap(first, first + 1)),
        ("changed", &|events| {
            events[first]["digest"] = events[first + 1]["digest"].clone()
        }),
        ("of another register", &|events| events[first]["imr"] = 2.into()),
    ] {
        assert_ne!(replayed(change), rtmr[3], "{what}");
    }
}
