//! `rtmr3` and `rtmr3_events`: what RTMR3 has to hold.

use std::str::FromStr;

use cloister_attestation::event_log::{DOMAIN, MAX_EVENT_TEXT_BYTES};

use super::attestation::MAX_VALUES;
use crate::agreement::Rtmr3;
use crate::reader::{Fields, Problem, all};

const WORDS: &str = "\"zero\" (nothing extended it; the default), \"log\" (an event log explains it) or \"any\" is wanted: its \
                     value depends on what runs, this policy included, so a policy can't list values";

pub(super) fn read(fields: &Fields<'_>) -> Result<Rtmr3, Vec<Problem>> {
    let named = all(fields.list("rtmr3_events", MAX_VALUES)?.iter().map(|node| {
        let text = node.text(MAX_EVENT_TEXT_BYTES)?;
        match text.split_once(' ') {
            // Earlier policies may be named, under which nodes ran that go on in their TDs.
            Some((DOMAIN, own)) if !own.starts_with("policy ") => {
                Err(node.problem("is an event of this host's own, which the policy's modules and graphs explain"))
            }
            _ => Ok(text.to_owned()),
        }
    }))?;
    let mut rule = Rtmr3::Zero;
    if let Some(node) = fields.optional("rtmr3") {
        if node.is_list() {
            return Err(node.problem(format_args!("is a list; {WORDS}")).into());
        }
        rule = node.text(256)?.parse().map_err(|error: String| node.problem(error))?;
    }
    match &mut rule {
        Rtmr3::Log { others } => *others = named,
        _ if named.is_empty() => {}
        _ => {
            let problem = "has `rtmr3_events`, which nothing asks for without `rtmr3 = \"log\"`";
            return Err(fields.problem(problem).into());
        }
    }
    Ok(rule)
}

impl FromStr for Rtmr3 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "zero" => Ok(Self::Zero),
            "any" => Ok(Self::Any),
            "log" => Ok(Self::Log { others: Vec::new() }),
            other => Err(format!("is {other:?}; {WORDS}")),
        }
    }
}
