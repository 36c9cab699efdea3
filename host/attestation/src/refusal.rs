//! Why evidence was refused: every rule that failed, what was seen, what was wanted.

use std::fmt;

/// Most rules a refusal keeps, and the longest text of each field in bytes: what a peer sends is cut to this.
const MAX_RULES: usize = 64;
const MAX_TEXT: usize = 512;

/// One rule that failed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FailedRule {
    /// Name of the rule, as in the policy where it stands there (`attestation.mrtd`, `credential`, `session.nonce`).
    pub rule: String,
    /// What the evidence showed.
    pub seen: String,
    /// What would have been accepted.
    pub wanted: String,
}

impl FailedRule {
    /// A rule that failed.
    pub fn new(rule: impl Into<String>, seen: impl fmt::Display, wanted: impl fmt::Display) -> Self {
        Self {
            rule: rule.into(),
            seen: seen.to_string(),
            wanted: wanted.to_string(),
        }
    }
}

impl fmt::Display for FailedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: seen {}; wanted {}", self.rule, self.seen, self.wanted)
    }
}

/// Evidence was refused. `Display` lists every rule that failed, one a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
pub struct Refusal {
    /// The rules that failed, at least one.
    pub failed: Vec<FailedRule>,
}

impl Refusal {
    /// A refusal for one reason.
    pub fn one(rule: impl Into<String>, seen: impl fmt::Display, wanted: impl fmt::Display) -> Self {
        Self {
            failed: vec![FailedRule::new(rule, seen, wanted)],
        }
    }

    /// `Ok` if no rule failed, else the refusal.
    ///
    /// # Errors
    /// The rules, if there are any.
    pub fn unless_empty(failed: Vec<FailedRule>) -> Result<(), Self> {
        if failed.is_empty() {
            Ok(())
        } else {
            Err(Self { failed })
        }
    }

    /// Whether a rule of that name failed.
    pub fn names(&self, rule: &str) -> bool {
        self.failed.iter().any(|failed| failed.rule == rule)
    }

    /// The rules as they go to the peer, cut so that they fit a frame.
    pub fn to_wire(&self) -> cloister_wire::session::Verdict {
        let rules = self
            .failed
            .iter()
            .take(MAX_RULES)
            .map(|failed| cloister_wire::session::FailedRule {
                rule: tame(&failed.rule),
                seen: tame(&failed.seen),
                wanted: tame(&failed.wanted),
            });
        cloister_wire::session::Verdict {
            accepted: false,
            rules: rules.collect(),
        }
    }

    /// What a peer said of us: its text is cut and freed of control characters before anybody sees it.
    pub fn from_wire(verdict: &cloister_wire::session::Verdict) -> Self {
        let rules = verdict.rules.iter().take(MAX_RULES).map(|failed| FailedRule {
            rule: tame(&failed.rule),
            seen: tame(&failed.seen),
            wanted: tame(&failed.wanted),
        });
        let mut failed: Vec<_> = rules.collect();
        if failed.is_empty() {
            failed.push(FailedRule::new(
                "verdict",
                "a refusal without a reason",
                "the rules that failed",
            ));
        }
        Self { failed }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attestation refused")?;
        self.failed.iter().try_for_each(|failed| write!(f, "\n  {failed}"))
    }
}

/// Text of a peer's, cut and freed of control characters.
pub(crate) fn tame(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        let character = if character.is_control() { ' ' } else { character };
        if out.len() + character.len_utf8() > MAX_TEXT {
            break;
        }
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_wire::session;

    #[test]
    fn every_rule_is_listed() {
        let refusal = Refusal {
            failed: vec![
                FailedRule::new("mrtd", "aa", "bb"),
                FailedRule::new("nonce", "old", "fresh"),
            ],
        };
        let text = refusal.to_string();
        assert!(text.contains("mrtd: seen aa; wanted bb") && text.contains("nonce: seen old; wanted fresh"));
        assert_eq!(Refusal::from_wire(&refusal.to_wire()), refusal);
    }

    #[test]
    fn a_peers_text_is_cut_and_tamed() {
        let rule = session::FailedRule {
            rule: "\u{1b}[2J".into(),
            seen: "é".repeat(4000),
            wanted: String::new(),
        };
        let refusal = Refusal::from_wire(&session::Verdict {
            accepted: false,
            rules: vec![rule; 1000],
        });
        assert_eq!(refusal.failed.len(), MAX_RULES);
        assert_eq!(refusal.failed[0].rule, " [2J");
        assert!(refusal.failed[0].seen.len() <= MAX_TEXT);
        assert!(!Refusal::from_wire(&session::Verdict::default()).failed.is_empty());
        assert!(cloister_wire::encode_frame(&refusal.to_wire()).is_err() || refusal.failed.len() == MAX_RULES);
    }
}
