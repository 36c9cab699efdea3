//! An event log: in the form of the CCEL as it comes with evidence, and in the forms that files have.
#![no_main]

use cloister_attestation::{EventLog, RuntimeEvent};
use cloister_fuzz::{plant, real_event_log};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let said = |content: &str| RuntimeEvent::new("cloister", "module", content).unwrap();
    let log: EventLog = ["train 00", "aggregate 01"].map(said).into_iter().collect();
    let own = log.to_bytes();
    let mut firmware = own.clone();
    firmware.extend([0xff; 16]);
    let json = real_event_log();
    let log = EventLog::parse_file(&json).unwrap();
    let real = [log.to_bytes(), log.of_register(3).to_bytes(), json];
    [own, firmware].into_iter().chain(real).collect()
}

fuzz_target!(init: plant("event_log", seeds()), |data: &[u8]| {
    let Ok(log) = EventLog::parse_file(data) else { return };
    // What was read is written and read again as it was, and replays to the same registers.
    let again = EventLog::parse(&log.to_bytes()).unwrap();
    assert_eq!(again.events().len(), log.events().len());
    for register in 0..4 {
        assert_eq!(again.replay(register), log.replay(register));
        assert_eq!(log.of_register(register).replay(register), log.replay(register));
    }
    for event in log.events() {
        assert!(event.text().is_none_or(|text| !text.contains(char::is_control)));
    }
    assert!(log.without_last().events().len() <= log.events().len());
});
