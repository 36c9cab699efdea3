//! How TDs, platforms and collateral of quotes are shown: as JSON, and as lines for people.

use cloister_attestation::encoding::hex;
use cloister_attestation::quote::{attribute_names, xfam_names};
use cloister_attestation::{CollateralDates, EventLog, Platform, TdReport, time};
use serde_json::{Map, Value, json};

/// A TD report: every register in hexadecimal; attributes and XFAM decoded by name besides.
pub fn td_json(report: &TdReport) -> Value {
    let named = report.named().into_iter();
    let mut shown: Map<String, Value> = named.map(|(name, value)| (name.to_owned(), value.into())).collect();
    let register = |bytes: &[u8; 8], names: Vec<String>| json!({ "hex": hex(bytes), "names": names });
    shown.insert(
        "attributes".into(),
        register(&report.attributes, attribute_names(&report.attributes)),
    );
    shown.insert("xfam".into(), register(&report.xfam, xfam_names(&report.xfam)));
    shown.insert("debug".into(), report.debug().into());
    shown.into()
}

/// A TD report, a register a line.
pub fn td_lines(report: &TdReport) -> Vec<String> {
    let mut lines = Vec::new();
    if report.debug() {
        lines.push("  DEBUG TD: its host can read it".to_owned());
    }
    let named = report.named().into_iter();
    lines.extend(named.map(|(name, value)| format!("  {name:16} {value}")));
    let decoded = [
        ("attributes", &report.attributes, attribute_names(&report.attributes)),
        ("xfam", &report.xfam, xfam_names(&report.xfam)),
    ];
    lines.extend(
        decoded
            .into_iter()
            .map(|(name, bytes, names)| format!("  {name:16} {} {}", hex(bytes), names.join(" "))),
    );
    lines
}

/// A platform, and the root that its chain leads to.
pub fn platform_json(platform: Option<&Platform>, root_key_id: Option<&[u8; 48]>) -> Value {
    let root_key_id = root_key_id.map(|id| hex(id));
    let Some(platform) = platform else {
        return json!({ "fmspc": null, "ppid": null, "root_key_id": root_key_id });
    };
    json!({
        "fmspc": hex(&platform.fmspc),
        "ppid": hex(&platform.ppid),
        "root_key_id": root_key_id,
        "pce_id": hex(&platform.pce_id),
        "instance_id": platform.instance_id.map(|id| hex(&id)),
        "dynamic_platform": platform.dynamic_platform,
        "cached_keys": platform.cached_keys,
        "smt_enabled": platform.smt_enabled,
    })
}

/// Dates and numbers of collateral.
pub fn collateral_json(dates: &CollateralDates) -> Value {
    json!({
        "fmspc": dates.fmspc,
        "issued": time::format(dates.issued_unix_s),
        "next_update": time::format(dates.next_update_unix_s),
        "evaluation_number": dates.eval_data_number,
        "issued_unix_s": dates.issued_unix_s,
        "next_update_unix_s": dates.next_update_unix_s,
        "pck_crl_issued": time::format(dates.pck_crl_issued_unix_s),
        "pck_crl_number": dates.pck_crl_number,
        "root_crl_number": dates.root_crl_number,
    })
}

/// Dates and numbers of collateral, in a line.
pub fn collateral_line(dates: &CollateralDates) -> String {
    format!(
        "FMSPC {}, issued {}, next update {}, evaluation number {}",
        dates.fmspc,
        time::format(dates.issued_unix_s),
        time::format(dates.next_update_unix_s),
        dates.eval_data_number
    )
}

/// An event log: how many events it has, which registers of the TD they give, and what was extended into RTMR3.
pub fn event_log_json(log: &EventLog, td: Option<&TdReport>) -> Value {
    let explains = td.map(|td| {
        let registers = td.rtmr.iter().enumerate();
        registers
            .filter(|(register, quoted)| log.replay(*register) == **quoted)
            .map(|(register, _)| format!("rtmr{register}"))
            .collect::<Vec<_>>()
    });
    let runtime = log.of_register(3);
    let events = runtime
        .events()
        .iter()
        .map(|event| json!({ "digest": hex(event.digest()), "text": event.text() }));
    json!({
        "events": log.events().len(),
        "untold": runtime.events().iter().filter(|event| event.text().is_none()).count(),
        "explains": explains,
        "rtmr3": events.collect::<Vec<_>>(),
    })
}

/// What was extended into RTMR3, an event a line.
pub fn event_lines(log: &EventLog) -> Vec<String> {
    let runtime = log.of_register(3);
    let shown = |event: &cloister_attestation::event_log::Event| match event.text() {
        Some(text) => format!("    {text}"),
        None => format!(
            "    the digest {}, to which nothing in the log hashes: what was extended is not explained",
            hex(event.digest())
        ),
    };
    runtime.events().iter().map(shown).collect()
}
