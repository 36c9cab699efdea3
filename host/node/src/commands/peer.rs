//! `cloister peer`: attest a node from outside and print who answers.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};
use std::time::Duration;

use cloister_attestation::claims::NodeClaims;
use cloister_attestation::encoding::hex;
use cloister_attestation::identity::Role;
use cloister_attestation::measurement::{Entry, EntryRole};
use cloister_attestation::ratls::VisitorIdentity;
use cloister_attestation::{Collateral, FailedRule, PeerEvidence, TrustRoot, VerifiedEvidence, Verifier};
use cloister_exchange::ExchangeError;
use cloister_policy::Policy;
use cloister_session::{
    AttestedConnection, DialOptions, Local, Peer, Proxy, SelfSide, SessionError, SessionMemory, connect,
};
use serde_json::json;

use super::quote_shown::{event_lines, event_log_json};
use crate::files;
use crate::ui::{self, Exit, Ui};

/// How often a command dials a node that takes no connection.
const MAX_TRIES: u32 = 5;
/// The pause before it dials again.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);
/// Most bytes of a policy or key file.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Attest a node from outside and print who answers: its name and role, what it runs, and the verdict.
///
/// Anybody may: the node learns nothing but that somebody looks. A node that is refused is shown as it claims to be, with
/// every rule that failed; the exit code is 3 then.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cloister peer 192.0.2.7:8443 --policy digits.toml --trust-root sim
  cloister peer aggregator.example:8443 --policy digits.toml --proxy http://proxy.example:3128 -o json")]
pub struct PeerArgs {
    /// The node.
    #[arg(value_name = "HOST:PORT", value_parser = crate::keeper::config::address)]
    address: String,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    output: ui::OutputArgs,
}

/// What a command line verifies a node with.
#[derive(clap::Args, Debug)]
pub(super) struct TrustArgs {
    /// The federation's policy: it decides who is let through.
    #[arg(long, value_name = "FILE")]
    pub(super) policy: PathBuf,
    /// Folder with collateral.json and, under a simulated root, root.der; by default the policy's folder.
    #[arg(long, value_name = "DIR")]
    trust_root: Option<PathBuf>,
    /// Collateral of the nodes' platforms, as `cloister quote collateral` writes it; by default collateral.json of that folder.
    #[arg(long, value_name = "FILE")]
    collateral: Option<PathBuf>,
    /// Go out through this HTTP proxy (CONNECT).
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
}

impl TrustArgs {
    /// The files that are read.
    pub(super) fn inputs(&self) -> Vec<PathBuf> {
        let mut files = files::of_authority(self.folder());
        files.push(self.policy.clone());
        files.extend(self.collateral.clone());
        files
    }

    fn folder(&self) -> &Path {
        match (&self.trust_root, self.policy.parent()) {
            (Some(folder), _) => folder,
            (None, Some(parent)) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// Reads policy and trust root and makes a visitor's side: signed by a participant, or by nobody.
    pub(super) fn visitor(&self, signer: Option<(String, &Path)>) -> Result<Local, miette::Report> {
        let text = files::read(&self.policy, MAX_FILE_BYTES)?;
        let policy = Policy::parse(&text, &self.policy.display().to_string()).map_err(ui::unreadable)?;
        let folder = self.folder();
        let root = if policy.attestation.simulated {
            TrustRoot::from_file(folder)
        } else {
            TrustRoot::intel()
        };
        let root = root.map_err(ui::unreadable)?;
        let collateral = self.collateral.as_deref().unwrap_or(folder);
        let collateral = Collateral::from_file(collateral).map_err(ui::unreadable)?;
        let signer = signer
            .map(|(name, path)| Ok::<_, miette::Report>((name, files::read_key(path)?)))
            .transpose()?;
        let identity = VisitorIdentity::new(signer, ui::now_unix_s()).map_err(|error| ui::fail(Exit::Failed, error))?;
        Ok(Local {
            own: SelfSide::Visitor(Arc::new(identity)),
            verifier: Arc::new(Verifier::new(root, collateral)),
            policy: Arc::new(policy),
            clock: Arc::new(ui::now_unix_s),
            memory: SessionMemory::default(),
        })
    }

    /// Dials a node; a verdict against it ends the command.
    pub(super) async fn connect(&self, local: &Local, address: &str) -> Result<AttestedConnection, miette::Report> {
        self.connect_as(local, address, None).await
    }

    /// As [`Self::connect`], and takes nobody but a node of that role.
    pub(super) async fn connect_as(
        &self,
        local: &Local,
        address: &str,
        role: Option<Role>,
    ) -> Result<AttestedConnection, miette::Report> {
        let dialled = self.dial(local, address, role).await?;
        let connection = dialled.map_err(|error| refused(error, local.policy.attestation.simulated))?;
        say_if_simulated(connection.peer());
        Ok(connection)
    }

    /// Dials a node, a few times if it takes no connection: between two states of its measurement its listener is closed for a
    /// moment.
    async fn dial(
        &self,
        local: &Local,
        address: &str,
        role: Option<Role>,
    ) -> Result<Result<AttestedConnection, SessionError>, miette::Report> {
        let proxy = self
            .proxy
            .as_deref()
            .map(str::parse::<Proxy>)
            .transpose()
            .map_err(ui::unreadable)?;
        let options = DialOptions {
            address: address.to_owned(),
            proxy,
            role,
        };
        let mut tries = 1;
        loop {
            match connect(local, &options).await {
                Err(SessionError::Unreachable { source, .. })
                    if source.kind() == ErrorKind::ConnectionRefused && tries < MAX_TRIES =>
                {
                    tries += 1;
                    tracing::info!(
                        "{address} takes no connection, as a node that changes its state for a moment: dialling again in {} s \
                         ({tries} of {MAX_TRIES})",
                        BETWEEN_TRIES.as_secs()
                    );
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                dialled => return Ok(dialled),
            }
        }
    }
}

/// Whether a peer's evidence is under a simulated root.
pub(super) fn simulated(peer: &Peer) -> bool {
    matches!(peer.evidence(), PeerEvidence::Td(evidence) if evidence.simulated())
}

/// A verdict that hardware does not stand behind says so, once a command however often it dials.
fn say_if_simulated(peer: &Peer) {
    static SAID: Once = Once::new();
    if let PeerEvidence::Td(evidence) = peer.evidence()
        && evidence.simulated()
    {
        SAID.call_once(|| {
            Ui::default().note(format!(
                "SIMULATED: a simulated root vouches for {} ({}); nothing is proven by hardware",
                evidence.node(),
                evidence.role()
            ));
        });
    }
}

/// Exit code 3 for refusals, 1 for networks.
fn refused(error: SessionError, simulated: bool) -> miette::Report {
    match Exit::of_session(&error) {
        Exit::Refused => ui::refused(error, simulated),
        exit => ui::fail(exit, error),
    }
}

/// Exit code 3 for refusals, 4 for what the policy denies, 1 for the rest.
pub(super) fn exchange_failed(error: ExchangeError) -> miette::Report {
    ui::fail(Exit::of_exchange(&error), error)
}

/// Runs what a command does on the network.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, miette::Report>>) -> Result<T, miette::Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.map_err(|error| ui::fail(Exit::Failed, error))?.block_on(work)
}

/// Runs the command.
pub fn run(args: PeerArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let local = args.trust.visitor(None)?;
    let dialled = block_on(async {
        let dialled = args.trust.dial(&local, &args.address, None).await?;
        Ok(dialled.map(|connection| connection.peer().clone()))
    })?;
    // A network that failed is no verdict.
    let dialled = match dialled {
        Err(error) if error.refusal().is_none() => return Err(ui::fail(Exit::Failed, error)),
        dialled => dialled,
    };
    let answer = match &dialled {
        Ok(peer) => match peer.evidence() {
            PeerEvidence::Td(evidence) => Answer::accepted(evidence),
            PeerEvidence::Visitor(_) => {
                return Err(ui::failed(Exit::Refused, "the peer showed no evidence of a TD", None));
            }
        },
        Err(error) => Answer::refused(error, local.policy.attestation.simulated),
    };
    let wanted = answer
        .node
        .and_then(|node| local.policy.expected_entries(&node.node, node.state));
    let mut wanted = wanted.unwrap_or_default();
    // An accepted host has all files that the policy lists, at most others beside them.
    let hosts = local.policy.attestation.hosts.iter();
    wanted.extend(hosts.map(|host| Entry::new(EntryRole::Host, host.name.as_str(), host.sha256)));
    if args.output.json() {
        out.json(&answer.as_json(&wanted));
    } else {
        answer.as_text(&wanted, out);
    }
    Ok(answer.exit())
}

/// Who answers, and the verdict.
struct Answer<'a> {
    /// Who it says that it is; verified if it was accepted.
    node: Option<&'a NodeClaims>,
    /// Its evidence, if it verified and every rule holds.
    evidence: Option<&'a VerifiedEvidence>,
    /// Why not.
    reasons: &'a [FailedRule],
    /// Whether it was the peer that refused.
    by_peer: bool,
    /// Whether the root, or if nothing verified the policy's, is a simulated one.
    simulated: bool,
    /// Somebody who ends TLS in between, in words.
    intercepted: Option<String>,
}

impl<'a> Answer<'a> {
    fn accepted(evidence: &'a VerifiedEvidence) -> Self {
        Self {
            node: Some(evidence.claims()),
            evidence: Some(evidence),
            reasons: &[],
            by_peer: false,
            simulated: evidence.simulated(),
            intercepted: None,
        }
    }

    /// The answer in an error that is a verdict.
    fn refused(error: &'a SessionError, simulated: bool) -> Self {
        let node = match error {
            SessionError::RefusedPeer { claimed, .. } => claimed.as_deref(),
            _ => None,
        };
        Self {
            node,
            evidence: None,
            reasons: error.refusal().map_or(&[], |refusal| &refusal.failed),
            by_peer: matches!(error, SessionError::RefusedByPeer { .. }),
            simulated,
            intercepted: matches!(error, SessionError::Intercepted { .. }).then(|| error.to_string()),
        }
    }

    fn exit(&self) -> Exit {
        if self.evidence.is_some() {
            Exit::Done
        } else {
            Exit::Refused
        }
    }

    fn as_json(&self, wanted: &[Entry]) -> serde_json::Value {
        let mut shown = json!({
            "verdict": if self.evidence.is_some() { "accepted" } else { "refused" },
            "reasons": self.reasons,
            "refused_by": match (self.evidence.is_some(), self.by_peer) {
                (true, _) => None,
                (false, true) => Some("the peer"),
                (false, false) => Some("this policy"),
            },
            "claims_verified": self.evidence.is_some(),
            "simulated": self.simulated,
            "intercepted": self.intercepted,
        });
        if let Some(node) = self.node {
            let entries = node.measurement.entries().iter().map(|entry| {
                json!({
                    "role": entry.role.as_str(), "name": entry.name, "digest": entry.digest.to_string(),
                    "in_policy": wanted.contains(entry),
                })
            });
            shown["node"] = node.node.as_str().into();
            shown["role"] = node.role.as_str().into();
            shown["state"] = node.state.as_str().into();
            shown["participant"] = node.participant.as_str().into();
            shown["federation"] = node.federation.as_str().into();
            shown["policy"] = node.policy_digest.to_string().into();
            shown["measurement"] = hex(node.measurement.root().as_bytes()).into();
            shown["entries"] = entries.collect::<Vec<_>>().into();
        }
        if let Some(evidence) = self.evidence {
            shown["td"] = json!({
                "mrtd": hex(&evidence.td().mrtd),
                "rtmr": evidence.td().rtmr.iter().map(|register| hex(register)).collect::<Vec<_>>(),
                "mrseam": hex(&evidence.td().mrseam),
                "mrconfigid": hex(&evidence.td().mrconfigid),
                "attributes": hex(&evidence.td().attributes),
            });
            shown["event_log"] = evidence
                .event_log()
                .map_or(serde_json::Value::Null, |log| event_log_json(log, Some(evidence.td())));
            shown["tcb_status"] = evidence.tcb().status.as_str().into();
            shown["advisories"] = evidence.tcb().advisory_ids.clone().into();
            shown["root_key_id"] = hex(evidence.root_key_id()).into();
        }
        shown
    }

    fn as_text(&self, wanted: &[Entry], out: &mut Ui) {
        match (self.simulated, self.evidence) {
            (true, Some(_)) => {
                out.data("SIMULATED: a simulated root vouches for this TD; nothing is proven by hardware")
            }
            (true, None) => {
                out.data("SIMULATED: this policy trusts a simulated root; it vouches for nothing that answered here")
            }
            (false, _) => {}
        }
        if let Some(intercepted) = &self.intercepted {
            out.data(intercepted);
        }
        if let Some(node) = self.node {
            if self.evidence.is_none() {
                out.data("claimed, and refused below:");
            }
            out.data(format!(
                "{} {} of {}, federation {}, state {}",
                node.role, node.node, node.participant, node.federation, node.state
            ));
            out.data(format!("policy       {}", node.policy_digest));
            out.data(format!("measurement  {}", hex(node.measurement.root().as_bytes())));
            for entry in node.measurement.entries() {
                let note = if wanted.contains(entry) {
                    "as the policy says"
                } else {
                    "not in the policy"
                };
                let role = entry.role.as_str();
                out.data(format!("  {role:<8} {:<24} {}  {note}", entry.name, entry.digest));
            }
        }
        let Some(evidence) = self.evidence else {
            let whose = if self.by_peer { "by the peer" } else { "by this policy" };
            out.data(format!("verdict      refused {whose}"));
            for reason in self.reasons {
                out.data(format!("  {reason}"));
            }
            return;
        };
        out.data(format!("mrtd         {}", hex(&evidence.td().mrtd)));
        if let Some(log) = evidence.event_log() {
            let explains = if log.replay(3) == evidence.td().rtmr[3] {
                "which explain RTMR3 completely"
            } else {
                "which do NOT explain RTMR3"
            };
            out.data(format!("event log    {} events, {explains}", log.events().len()));
            event_lines(log).into_iter().for_each(|line| out.data(line));
        }
        out.data(format!("tcb          {}", evidence.tcb().status));
        out.data(format!("root         {}", hex(evidence.root_key_id())));
        out.data("verdict      accepted: every rule of the policy holds");
    }
}
