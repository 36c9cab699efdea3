//! Verified evidence against the policy: default-deny, every rule that fails, what was seen, what was wanted.

use std::fmt::Display;
use std::sync::Arc;

use cloister_attestation::encoding::{Layout, hex};
use cloister_attestation::identity::{PublicKey, Role};
use cloister_attestation::measurement::{Entry, EntryRole, Measurement};
use cloister_attestation::{
    Appraise, EventLog, Examination, FailedRule, NodeClaims, Platform, State, Tcb, TdReport, VerifiedEvidence,
    VerifiedTd,
};
use cloister_tensor::Digest;

use crate::agreement::{AttestationRules, HOST_BINARY, Masked, Register};
use crate::policy::Policy;
use crate::references::check_registers;
use crate::runtime;

/// What a peer has to be, beyond being in the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The one node that may answer.
    pub node: Option<String>,
    /// The role that the peer has to have.
    pub role: Option<Role>,
    /// Whether a command line without a TD may connect: a server lets it look around and submit content.
    pub visitors: bool,
    /// Whether a node may connect that has not measured its data yet: a manager lets it, since it has the data's keys.
    pub applicants: bool,
}

/// Decides on evidence by a policy.
#[derive(Clone, Debug)]
pub struct Appraiser {
    policy: Arc<Policy>,
    expected: Expected,
}

impl Appraiser {
    /// Lets any node of the policy in, and no visitor.
    pub fn new(policy: Arc<Policy>) -> Self {
        Self {
            policy,
            expected: Expected::default(),
        }
    }

    /// Wants the peer to be this besides.
    #[must_use]
    pub fn expecting(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    /// The policy that decides.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }
}

impl Appraise for Appraiser {
    fn basis(&self) -> [u8; 32] {
        let references = self.policy.references();
        let values = references.as_ref().map(|signed| signed.values().digest());
        let layout = Layout::new("cloister/basis/v1")
            .lp(self.policy.digest().as_bytes())
            .lp(values.as_ref().map_or(&[], |digest| digest.as_bytes()));
        *Digest::of(&layout.into_bytes()).as_bytes()
    }

    fn participant_key(&self, participant: &str) -> Option<PublicKey> {
        self.policy.participant_key(participant)
    }

    fn appraise(&self, evidence: &VerifiedEvidence, now_unix_s: u64) -> Vec<FailedRule> {
        let mut failed = self.policy.appraise(evidence, now_unix_s);
        if let Some(wanted) = &self.expected.node
            && evidence.node() != wanted
        {
            failed.push(FailedRule::new("peer.node", evidence.node(), wanted));
        }
        if let Some(wanted) = self.expected.role
            && evidence.role() != wanted
        {
            failed.push(FailedRule::new("peer.role", evidence.role(), wanted));
        }
        if evidence.state() == State::Applicant && !self.expected.applicants {
            let wanted = "bootstrap or member: applicants speak to the manager alone";
            failed.push(FailedRule::new("peer.state", evidence.state(), wanted));
        }
        failed
    }

    fn appraise_visitor(&self, participant: Option<&str>, _now_unix_s: u64) -> Vec<FailedRule> {
        let mut failed = Vec::new();
        if !self.expected.visitors {
            failed.push(FailedRule::new("visitor", "a peer without a TD", "a TD with evidence"));
        }
        failed.extend(participant.and_then(|name| unknown_visitor(&self.policy, name)));
        failed
    }
}

pub(crate) fn unknown_visitor(policy: &Policy, participant: &str) -> Option<FailedRule> {
    let unknown = policy.participant_key(participant).is_none();
    unknown.then(|| {
        FailedRule::new(
            "visitor.participant",
            participant,
            "a participant of the policy, or none",
        )
    })
}

impl Policy {
    /// Every rule that the evidence fails.
    pub fn appraise(&self, evidence: &VerifiedEvidence, now_unix_s: u64) -> Vec<FailedRule> {
        let mut failed = Failed::default();
        failed.shown(self, evidence.verified_td(), now_unix_s);
        failed.credential(self, evidence);
        failed.rules
    }

    /// Every rule that a TD without a credential fails: those of a node, and that it is an applicant.
    pub(crate) fn appraise_applicant(&self, applicant: &VerifiedTd, now_unix_s: u64) -> Vec<FailedRule> {
        let mut failed = Failed::default();
        failed.shown(self, applicant, now_unix_s);
        let state = applicant.claims().state;
        failed.unless(
            state == State::Applicant,
            "state",
            state,
            "applicant: who has loaded more than host and policy has a credential",
        );
        failed.rules
    }
}

impl Policy {
    /// Every rule of the section `[attestation]` that a quote fails, as far as what it judges was seen: for showing what a
    /// policy says of a quote that nobody sent, and of the event log beside it. No session uses it.
    pub fn appraise_examined(
        &self,
        examined: &Examination,
        event_log: Option<&EventLog>,
        now_unix_s: u64,
    ) -> Vec<FailedRule> {
        let mut failed = Failed::default();
        let rules = &self.attestation;
        match &examined.verdict {
            Ok(verified) => failed.root(rules, verified.root_key_id(), verified.simulated()),
            Err(_) => {
                if let Some(key_id) = &examined.chain_root_key_id
                    && *key_id != rules.root_key_id
                {
                    failed.add("attestation.root_key_id", hex(key_id), hex(&rules.root_key_id));
                }
            }
        }
        if let Some(td) = &examined.td {
            failed.td(self, td, now_unix_s);
            failed.rules.extend(runtime::check(self, td, event_log, None));
        }
        if let Some(platform) = &examined.platform {
            failed.platform(rules, platform);
        }
        if let Some(tcb) = &examined.tcb {
            failed.tcb(rules, tcb, now_unix_s);
        }
        failed.rules
    }
}

#[derive(Default)]
struct Failed {
    rules: Vec<FailedRule>,
}

impl Failed {
    fn add(&mut self, rule: impl Into<String>, seen: impl Display, wanted: impl Display) {
        self.rules.push(FailedRule::new(rule, seen, wanted));
    }

    fn unless(&mut self, holds: bool, rule: &str, seen: impl Display, wanted: impl Display) {
        if !holds {
            self.add(rule, seen, wanted);
        }
    }

    fn root(&mut self, rules: &AttestationRules, key_id: &Register, simulated: bool) {
        let name = |simulated| if simulated { "a SIMULATED root" } else { "Intel's root" };
        self.unless(
            simulated == rules.simulated,
            "attestation.simulated",
            name(simulated),
            name(rules.simulated),
        );
        self.unless(
            *key_id == rules.root_key_id,
            "attestation.root_key_id",
            hex(key_id),
            hex(&rules.root_key_id),
        );
    }

    fn td(&mut self, policy: &Policy, td: &TdReport, now_unix_s: u64) {
        let rules = &policy.attestation;
        self.unless(
            !td.debug(),
            "attestation.debug",
            "a debug TD, which its operator can read",
            "a TD without debug",
        );
        self.masked("attestation.attributes", &td.attributes, rules.attributes);
        self.masked("attestation.xfam", &td.xfam, rules.xfam);
        let registers = check_registers(rules, policy.references().as_ref(), td, now_unix_s);
        self.rules.extend(registers);
        // What no policy lists is zero in a TD that nobody meddled with.
        let zero = [[0; 48]];
        let or_zero = |accepted: &'_ [Register]| {
            if accepted.is_empty() {
                zero.to_vec()
            } else {
                accepted.to_vec()
            }
        };
        self.listed("attestation.mrowner", &td.mrowner, &or_zero(&rules.mrowner));
        self.listed(
            "attestation.mrownerconfig",
            &td.mrownerconfig,
            &or_zero(&rules.mrownerconfig),
        );
        self.listed("attestation.mrsignerseam", &td.mrsignerseam, &zero);
        self.unless(
            td.seam_attributes == [0; 8],
            "attestation.seam_attributes",
            hex(&td.seam_attributes),
            hex(&[0; 8]),
        );
        if let Some(mrservicetd) = &td.mrservicetd {
            self.listed("attestation.mrservicetd", mrservicetd, &zero);
        }
        if let Some(extension) = &td.extension {
            self.unless(
                extension.vmid == 0,
                "attestation.vmid",
                format_args!("virtual machine {} inside a partitioned TD", extension.vmid),
                "the TD itself",
            );
            self.listed("attestation.dev_info", &extension.dev_info, &zero);
        }
    }

    fn listed(&mut self, rule: &str, seen: &Register, accepted: &[Register]) {
        if !accepted.contains(seen) {
            let wanted: Vec<_> = accepted.iter().map(|register| hex(register)).collect();
            self.add(rule, hex(seen), wanted.join(" or "));
        }
    }

    fn masked(&mut self, rule: &str, seen: &[u8; 8], wanted: Masked) {
        let text = || format!("{} under the mask {}", hex(&wanted.value), hex(&wanted.mask));
        self.unless(wanted.accepts(seen), rule, hex(seen), text());
    }

    fn platform(&mut self, rules: &AttestationRules, platform: &Platform) {
        let join = |list: Vec<String>| list.join(" or ");
        if !rules.fmspc.is_empty() {
            let wanted = join(rules.fmspc.iter().map(|value| hex(value)).collect());
            self.unless(
                rules.fmspc.contains(&platform.fmspc),
                "attestation.fmspc",
                hex(&platform.fmspc),
                wanted,
            );
        }
        if !rules.ppid.is_empty() {
            let wanted = join(rules.ppid.iter().map(|value| hex(value)).collect());
            let known = rules.ppid.iter().any(|value| value.as_slice() == platform.ppid);
            self.unless(known, "attestation.ppid", hex(&platform.ppid), wanted);
        }
        let flags = [
            (
                "attestation.allow_dynamic_platform",
                platform.dynamic_platform,
                rules.allow_dynamic_platform,
            ),
            (
                "attestation.allow_cached_keys",
                platform.cached_keys,
                rules.allow_cached_keys,
            ),
            ("attestation.allow_smt", platform.smt_enabled, rules.allow_smt),
        ];
        for (rule, seen, allowed) in flags {
            // Certificates of single-package platforms have no such flags.
            self.unless(
                allowed || seen != Some(true),
                rule,
                "a platform that has it",
                "a platform that does not",
            );
        }
    }

    fn tcb(&mut self, rules: &AttestationRules, tcb: &Tcb, now_unix_s: u64) {
        let accepted = rules.tcb_statuses.iter().any(|accepted| {
            accepted.status == tcb.status && accepted.until_unix_s.is_none_or(|until| now_unix_s < until)
        });
        if !accepted {
            let wanted = rules.tcb_statuses.iter().map(|accepted| match accepted.until_unix_s {
                Some(until) if now_unix_s >= until => format!("{} (until {until}, which is over)", accepted.status),
                _ => accepted.status.clone(),
            });
            self.add(
                "attestation.tcb_statuses",
                &tcb.status,
                wanted.collect::<Vec<_>>().join(" or "),
            );
        }
        for advisory in tcb
            .advisory_ids
            .iter()
            .filter(|id| rules.advisories_denied.contains(id))
        {
            self.add(
                "attestation.advisories_denied",
                advisory,
                "a platform to which it does not apply",
            );
        }
        let number = rules.min_tcb_eval_data_number;
        let rule = "attestation.min_tcb_eval_data_number";
        self.unless(
            tcb.eval_data_number >= number,
            rule,
            tcb.eval_data_number,
            format!("at least {number}"),
        );
        let (skew, oldest) = (rules.max_clock_skew_s, rules.collateral_max_age_s);
        let age = now_unix_s.saturating_sub(tcb.collateral_issued_unix_s);
        let rule = "attestation.collateral_max_age_s";
        self.unless(
            age <= oldest,
            rule,
            format!("collateral of {age} s ago"),
            format!("at most {oldest} s"),
        );
        let (age, oldest) = (
            now_unix_s.saturating_sub(tcb.pck_crl_issued_unix_s),
            rules.crl_max_age_s,
        );
        self.unless(
            age <= oldest,
            "attestation.crl_max_age_s",
            format!("a revocation list of {age} s ago"),
            format!("at most {oldest} s"),
        );
        let floor = tcb.latest_issue_unix_s;
        let wanted = format!("at least {floor}, when the newest collateral was issued, less {skew} s");
        self.unless(
            now_unix_s.saturating_add(skew) >= floor,
            "attestation.max_clock_skew_s",
            format!("the time {now_unix_s}"),
            wanted,
        );
    }

    /// What a TD shows, with or without a credential.
    fn shown(&mut self, policy: &Policy, td: &VerifiedTd, now_unix_s: u64) {
        let (rules, claims) = (&policy.attestation, td.claims());
        self.root(rules, td.root_key_id(), td.simulated());
        self.td(policy, td.report(), now_unix_s);
        let node = (claims.node.as_str(), &claims.measurement);
        let runtime = runtime::check(policy, td.report(), td.event_log(), Some(node));
        self.rules.extend(runtime);
        self.platform(rules, td.platform());
        self.tcb(rules, td.tcb(), now_unix_s);
        self.who(policy, claims);
        self.measured(policy, &claims.node, claims.state, &claims.measurement);
    }

    fn who(&mut self, policy: &Policy, claims: &NodeClaims) {
        self.unless(
            claims.federation == policy.name,
            "federation",
            &claims.federation,
            &policy.name,
        );
        let digest = policy.digest();
        self.unless(claims.policy_digest == digest, "policy", claims.policy_digest, digest);
        let Some(node) = policy.node(&claims.node) else {
            return self.add("node", &claims.node, format!("a node of the policy {}", policy.name));
        };
        self.unless(
            claims.participant == node.participant,
            "node.participant",
            &claims.participant,
            &node.participant,
        );
        self.unless(claims.role == node.role, "node.role", claims.role, node.role);
    }

    /// Attestation compared credential and claims; a policy that changed hands in between shows here.
    fn credential(&mut self, policy: &Policy, evidence: &VerifiedEvidence) {
        let Some(node) = policy.node(evidence.node()) else {
            return;
        };
        let fields = &evidence.credential().fields;
        let same = fields.node == node.name && fields.role == node.role && fields.node_key == evidence.node_key();
        self.unless(
            same,
            "credential",
            format!("one for {} {}", fields.role, fields.node),
            format!("one for {} {}", node.role, node.name),
        );
    }

    fn measured(&mut self, policy: &Policy, node: &str, state: State, seen: &Measurement) {
        let Some(wanted) = policy.expected_entries(node, state) else {
            return;
        };
        let rule = |entry: &Entry| format!("measurement.{}.{}", entry.role, entry.name);
        for entry in &wanted {
            match seen.get(entry.role, &entry.name) {
                Some(found) if found.digest == entry.digest => {}
                Some(found) => self.add(rule(entry), found.digest, entry.digest),
                None => self.add(rule(entry), "nothing", entry.digest),
            }
        }
        for entry in seen.entries() {
            let known = match entry.role {
                // Made in the TD out of a module that is measured itself.
                EntryRole::Compiled => true,
                EntryRole::Host => self.host_file(&policy.attestation, entry),
                _ => wanted
                    .iter()
                    .any(|wanted| (wanted.role, &wanted.name) == (entry.role, &entry.name)),
            };
            if !known {
                let wanted = format!(
                    "nothing of the name: the policy gives {node} no such {} as a {state} node",
                    entry.role
                );
                self.add(rule(entry), entry.digest, wanted);
            }
        }
        if seen.get(EntryRole::Host, HOST_BINARY).is_none() {
            self.add(
                format!("measurement.host.{HOST_BINARY}"),
                "nothing",
                "the host's binary",
            );
        }
    }

    /// Compares an entry with the host files of the policy. Says `true` if whatever is wrong has been told.
    fn host_file(&mut self, rules: &AttestationRules, entry: &Entry) -> bool {
        if rules.hosts.is_empty() {
            return true;
        }
        let accepted: Vec<Digest> = rules
            .hosts
            .iter()
            .filter(|host| host.name == entry.name)
            .map(|host| host.sha256)
            .collect();
        if accepted.is_empty() {
            return false;
        }
        if !accepted.contains(&entry.digest) {
            let wanted: Vec<_> = accepted.iter().map(Digest::to_string).collect();
            self.add(
                format!("measurement.host.{}", entry.name),
                entry.digest,
                wanted.join(" or "),
            );
        }
        true
    }
}
