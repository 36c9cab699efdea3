//! `cloister quote verify`: a verdict that a human and a machine can read.

use std::path::PathBuf;

use cloister_attestation::encoding::hex;
use cloister_attestation::event_log::MAX_EVENT_LOG_BYTES;
use cloister_attestation::{Collateral, EventLog, Examination, FailedRule, TdReport, Verifier, time};
use cloister_policy::Policy;
use serde_json::{Value, json};

use super::policy::read_policy;
use super::quote::{hex_argument, read};
use super::quote_collateral::trust_root;
use super::quote_shown::{
    collateral_json, collateral_line, event_lines, event_log_json, platform_json, td_json, td_lines,
};
use crate::files;
use crate::keeper::references::read_references;
use crate::ui::{self, Exit, Ui};

#[derive(clap::Args, Debug)]
pub struct VerifyArgs {
    /// The quote; `-` reads it from stdin.
    quote: PathBuf,
    /// Collateral of the quote's platform (JSON), or the folder of a simulated authority.
    #[arg(long, value_name = "FILE")]
    collateral: PathBuf,
    /// The time to verify at, in seconds since 1970; now, if not given.
    #[arg(long, value_name = "UNIX_SECONDS")]
    at: Option<u64>,
    /// Judge the quote by the section [attestation] of this policy, too.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Reference values that the policy takes besides, with their signatures in FILE.sigs.
    #[arg(long, value_name = "FILE", requires = "policy")]
    references: Option<PathBuf>,
    /// Whose root to trust: `intel`, or a simulated authority's folder or root.der.
    #[arg(long, default_value = "intel", value_name = "intel|FILE")]
    root: String,
    /// The 64 bytes of report data that the quote has to be over, in hexadecimal; any, if not given.
    #[arg(long, value_name = "HEX")]
    report_data: Option<String>,
    /// The event log beside the quote: in the form of the CCEL, with the events of Confidential Containers, or dstack's JSON.
    /// Its events have to give the quote's registers.
    #[arg(long, value_name = "FILE")]
    event_log: Option<PathBuf>,
    /// Let a debug TD in: its host can read it. (A policy never does.)
    #[arg(long)]
    allow_debug: bool,
    #[command(flatten)]
    output: ui::OutputArgs,
}

/// A verdict, with what stands behind it.
struct Verdict {
    failed: Vec<FailedRule>,
    examined: Examination,
    event_log: Option<EventLog>,
    simulated: bool,
}

/// Runs the command.
pub fn run(args: &VerifyArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let bytes = read(&args.quote)?;
    let root = trust_root(&args.root)?;
    let simulated = root.simulated();
    let collateral = Collateral::from_file(&args.collateral).map_err(ui::unreadable)?;
    let policy = match (args.policy.as_deref().map(read_policy).transpose()?, &args.references) {
        (Some(policy), Some(path)) => {
            // Values that nobody has agreed to are no input; a refusal is a verdict about the quote.
            let references = read_references(path, &policy).map_err(|error| {
                ui::failed(
                    Exit::Usage,
                    error.to_string(),
                    error.help().map(|help| help.to_string()),
                )
            })?;
            Some(policy.with_references(references))
        }
        (policy, _) => policy,
    };
    let report_data = args
        .report_data
        .as_deref()
        .map(|text| hex_argument::<64>("--report-data", text))
        .transpose()?;
    let now = args.at.unwrap_or_else(ui::now_unix_s);
    let verifier = Verifier::new(root, collateral).allow_debug(args.allow_debug);
    let examined = verifier.examine(&bytes, report_data.as_ref(), now);
    let event_log = match &args.event_log {
        Some(path) => {
            let bytes = files::read(path, MAX_EVENT_LOG_BYTES as u64)?;
            Some(EventLog::parse_file(&bytes).map_err(ui::unreadable)?)
        }
        None => None,
    };
    let failed = judge(&examined, event_log.as_ref(), policy.as_ref(), now);
    let verdict = Verdict {
        failed,
        examined,
        event_log,
        simulated,
    };
    if simulated {
        out.note("SIMULATED root: what verifies under it proves nothing about hardware.");
    }
    if args.output.json() {
        out.json(&verdict.json());
    } else {
        verdict.lines().into_iter().for_each(|line| out.data(line));
    }
    if verdict.failed.is_empty() {
        return Ok(Exit::Done);
    }
    out.note("attestation refused");
    verdict
        .failed
        .iter()
        .for_each(|failed| out.note(format_args!("  {failed}")));
    Ok(Exit::Refused)
}

/// Whether the log's events give the registers, for each of which it has events; for RTMR3 in any case.
fn explained(log: &EventLog, td: &TdReport) -> Vec<Result<String, FailedRule>> {
    let registers = td.rtmr.iter().enumerate().filter_map(|(register, quoted)| {
        let count = log.of_register(register).events().len();
        if count == 0 && register != 3 {
            return None;
        }
        let replayed = log.replay(register);
        if &replayed == quoted {
            return Some(Ok(format!("RTMR{register} by {count}")));
        }
        let seen = format!("{count} events, which give {}", hex(&replayed));
        let wanted = format!("{}, as the quote says", hex(quoted));
        Some(Err(FailedRule::new(format!("event_log.rtmr{register}"), seen, wanted)))
    });
    registers.collect()
}

/// Every rule that failed: of the verification, of the event log, and of the policy as far as what it judges was seen.
fn judge(examined: &Examination, event_log: Option<&EventLog>, policy: Option<&Policy>, now: u64) -> Vec<FailedRule> {
    let mut failed = match &examined.verdict {
        Ok(_) => Vec::new(),
        Err(refusal) => refusal.failed.clone(),
    };
    if let (Some(log), Some(td)) = (event_log, &examined.td) {
        failed.extend(explained(log, td).into_iter().filter_map(Result::err));
    }
    let Some(policy) = policy else { return failed };
    let judged = policy.appraise_examined(examined, event_log, now);
    for rule in judged {
        if !failed.iter().any(|told| told.rule == rule.rule) {
            failed.push(rule);
        }
    }
    failed
}

impl Verdict {
    fn word(&self) -> &'static str {
        if self.failed.is_empty() { "accepted" } else { "refused" }
    }

    /// The root that verified, or the one that the quote's own chain ends with.
    fn root_key_id(&self) -> Option<[u8; 48]> {
        let verified = self.examined.verdict.as_ref().ok();
        verified.map_or(self.examined.chain_root_key_id, |verified| {
            Some(*verified.root_key_id())
        })
    }

    fn json(&self) -> Value {
        let examined = &self.examined;
        let tcb = examined.tcb.as_ref();
        json!({
            "verdict": self.word(),
            "simulated": self.simulated,
            "reasons": self.failed,
            "tcb_status": tcb.map(|tcb| &tcb.status),
            "advisory_ids": tcb.map(|tcb| tcb.advisory_ids.as_slice()).unwrap_or_default(),
            "tcb_date": tcb.map(|tcb| time::format(tcb.tcb_date_unix_s)),
            "quote_version": examined.quote_version,
            "body": examined.body.map(|body| body.as_str()),
            "padding_bytes": examined.padding_bytes,
            "td": examined.td.as_ref().map(td_json),
            "platform": platform_json(examined.platform.as_ref(), self.root_key_id().as_ref()),
            "collateral": examined.collateral.as_ref().map(collateral_json),
            "event_log": self.event_log.as_ref().map(|log| event_log_json(log, examined.td.as_ref())),
        })
    }

    fn lines(&self) -> Vec<String> {
        let examined = &self.examined;
        let line = |name: &str, value: String| format!("  {name:16} {value}");
        let status = examined.tcb.as_ref().map_or_else(
            || "unknown: signatures, certificates or TCB levels did not verify".to_owned(),
            |tcb| tcb.status.clone(),
        );
        let kind = if self.simulated { "SIMULATED quote" } else { "quote" };
        let mut lines = vec![format!("{kind} {}: TCB {status}", self.word())];
        lines.extend(self.failed.iter().map(|failed| format!("  FAILED {failed}")));
        if let Some(tcb) = &examined.tcb {
            let advisories = if tcb.advisory_ids.is_empty() {
                "none".to_owned()
            } else {
                tcb.advisory_ids.join(" ")
            };
            lines.push(line("advisories", advisories));
            lines.push(line("TCB date", time::format(tcb.tcb_date_unix_s)));
        }
        if let (Some(version), Some(body)) = (examined.quote_version, examined.body) {
            let padding = examined.padding_bytes;
            lines.push(line(
                "quote",
                format!("version {version}, {}, {padding} bytes of padding", body.as_str()),
            ));
        }
        if let Some(platform) = &examined.platform {
            let ids = format!("FMSPC {} PPID {}", hex(&platform.fmspc), hex(&platform.ppid));
            lines.push(line("platform", ids));
        }
        lines.extend(self.root_key_id().map(|id| line("root key id", hex(&id))));
        lines.extend(
            examined
                .collateral
                .as_ref()
                .map(|dates| line("collateral", collateral_line(dates))),
        );
        lines.extend(examined.td.as_ref().map(td_lines).unwrap_or_default());
        if let Some(log) = &self.event_log {
            let explained: Vec<_> = examined.td.iter().flat_map(|td| explained(log, td)).flatten().collect();
            let explained = match explained.as_slice() {
                [] => "which explain no register".to_owned(),
                registers => format!("which explain {} of them", registers.join(", ")),
            };
            lines.push(line("event log", format!("{} events, {explained}", log.events().len())));
            lines.extend(event_lines(log));
        }
        lines
    }
}
