//! `cloister peer`: attest a node from outside and print who answers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_attestation::encoding::hex;
use cloister_attestation::measurement::Entry;
use cloister_attestation::ratls::VisitorIdentity;
use cloister_attestation::{Collateral, PeerEvidence, TrustRoot, VerifiedEvidence, Verifier};
use cloister_exchange::ExchangeError;
use cloister_policy::Policy;
use cloister_session::{AttestedConnection, DialOptions, Local, Proxy, SelfSide, SessionError, SessionMemory, connect};
use serde_json::json;

use crate::files;
use crate::ui::{self, Exit, Ui};

/// Most bytes of a policy or key file.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Attest a node from outside and print who answers: its name and role, what it runs, and the verdict.
///
/// Anybody may: the node learns nothing but that somebody looks. Ends with 3 if the evidence is refused.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cloister peer 192.0.2.7:8443 --policy digits.toml --trust-root sim
  cloister peer aggregator.example:8443 --policy digits.toml --proxy http://proxy.example:3128 -o json")]
pub struct PeerArgs {
    /// The node.
    #[arg(value_name = "HOST:PORT")]
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
    /// Go out through this HTTP proxy (CONNECT).
    #[arg(long, value_name = "URL")]
    proxy: Option<String>,
}

impl TrustArgs {
    /// Reads policy and trust root and makes a visitor's side: signed by a participant, or by nobody.
    pub(super) fn visitor(&self, signer: Option<(String, &Path)>) -> Result<Local, miette::Report> {
        let text = files::read(&self.policy, MAX_FILE_BYTES)?;
        let policy = Policy::parse(&text, &self.policy.display().to_string()).map_err(ui::unreadable)?;
        let folder = match (&self.trust_root, self.policy.parent()) {
            (Some(folder), _) => folder.as_path(),
            (None, Some(parent)) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let root = if policy.attestation.simulated {
            TrustRoot::from_file(folder)
        } else {
            TrustRoot::intel()
        };
        let root = root.map_err(ui::unreadable)?;
        let collateral = Collateral::from_file(folder).map_err(ui::unreadable)?;
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

    /// Dials a node.
    pub(super) async fn connect(&self, local: &Local, address: &str) -> Result<AttestedConnection, miette::Report> {
        let proxy = self
            .proxy
            .as_deref()
            .map(str::parse::<Proxy>)
            .transpose()
            .map_err(ui::unreadable)?;
        let options = DialOptions {
            address: address.to_owned(),
            proxy,
            role: None,
        };
        connect(local, &options)
            .await
            .map_err(|error| refused(error, local.policy.attestation.simulated))
    }
}

/// Exit code 3 for refusals, 1 for networks.
fn refused(error: SessionError, simulated: bool) -> miette::Report {
    match error.refusal() {
        Some(_) => ui::refused(error, simulated),
        None => ui::fail(Exit::Failed, error),
    }
}

/// Exit code 3 for refusals, 4 for what the policy denies, 1 for the rest.
pub(super) fn exchange_failed(error: ExchangeError) -> miette::Report {
    let exit = if error.refusal().is_some() {
        Exit::Refused
    } else if error.denied() {
        Exit::Denied
    } else {
        Exit::Failed
    };
    ui::fail(exit, error)
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
    let peer = block_on(async { Ok(args.trust.connect(&local, &args.address).await?.peer().clone()) })?;
    let PeerEvidence::Td(evidence) = peer.evidence() else {
        return Err(ui::failed(Exit::Refused, "the peer showed no evidence of a TD", None));
    };
    let wanted = local
        .policy
        .expected_entries(evidence.node(), evidence.state())
        .unwrap_or_default();
    if args.output.json() {
        out.json(&as_json(evidence, &wanted));
    } else {
        as_text(evidence, &wanted, out);
    }
    Ok(Exit::Done)
}

fn as_json(evidence: &VerifiedEvidence, wanted: &[Entry]) -> serde_json::Value {
    let entries = evidence.measurement().entries().iter().map(|entry| {
        json!({
            "role": entry.role.as_str(), "name": entry.name, "digest": entry.digest.to_string(),
            "in_policy": wanted.contains(entry),
        })
    });
    json!({
        "verdict": "accepted",
        "simulated": evidence.simulated(),
        "node": evidence.node(),
        "role": evidence.role().as_str(),
        "state": evidence.state().as_str(),
        "participant": evidence.participant(),
        "federation": evidence.federation(),
        "policy": evidence.policy_digest().to_string(),
        "measurement": hex(evidence.measurement().root().as_bytes()),
        "entries": entries.collect::<Vec<_>>(),
        "td": {
            "mrtd": hex(&evidence.td().mrtd),
            "rtmr": evidence.td().rtmr.iter().map(|register| hex(register)).collect::<Vec<_>>(),
            "mrseam": hex(&evidence.td().mrseam),
            "mrconfigid": hex(&evidence.td().mrconfigid),
            "attributes": hex(&evidence.td().attributes),
        },
        "tcb_status": evidence.tcb().status,
        "advisories": evidence.tcb().advisory_ids,
        "root_key_id": hex(evidence.root_key_id()),
    })
}

fn as_text(evidence: &VerifiedEvidence, wanted: &[Entry], out: &mut Ui) {
    if evidence.simulated() {
        out.data("SIMULATED: a simulated root vouches for this TD; nothing is proven by hardware");
    }
    out.data(format!(
        "{} {} of {}, federation {}, state {}",
        evidence.role(),
        evidence.node(),
        evidence.participant(),
        evidence.federation(),
        evidence.state()
    ));
    out.data(format!("policy       {}", evidence.policy_digest()));
    out.data(format!(
        "measurement  {}",
        hex(evidence.measurement().root().as_bytes())
    ));
    for entry in evidence.measurement().entries() {
        let note = if wanted.contains(entry) {
            "as the policy says"
        } else {
            "not compared"
        };
        out.data(format!(
            "  {:<8} {:<24} {}  {note}",
            entry.role.as_str(),
            entry.name,
            entry.digest
        ));
    }
    out.data(format!("mrtd         {}", hex(&evidence.td().mrtd)));
    out.data(format!("tcb          {}", evidence.tcb().status));
    out.data(format!("root         {}", hex(evidence.root_key_id())));
    out.data("verdict      accepted: every rule of the policy holds");
}
