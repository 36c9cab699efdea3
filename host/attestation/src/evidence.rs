//! Evidence that verified: what a policy decides upon.

use cloister_tensor::Digest;

use crate::claims::{Claims, NodeClaims, State, epoch_nonce};
use crate::event_log::EventLog;
use crate::identity::{Credential, PublicKey, Role};
use crate::measurement::Measurement;
use crate::quote::TdReport;
use crate::refusal::{FailedRule, Refusal};
use crate::verify::{Platform, Tcb, VerifiedQuote, Verifier};

/// What a policy says of a peer. `cloister-policy` implements it.
pub trait Appraise: Send + Sync {
    /// A digest of all that it decides by. What was remembered under another one is forgotten.
    fn basis(&self) -> [u8; 32];

    /// The participant's public key, if the policy names that participant.
    fn participant_key(&self, participant: &str) -> Option<PublicKey>;

    /// Every rule of the policy that the evidence fails; none lets the peer in.
    fn appraise(&self, evidence: &VerifiedEvidence, now_unix_s: u64) -> Vec<FailedRule>;

    /// Every rule that a visitor fails: a command line without a TD, which signed as `participant` (the signature has
    /// been verified) or as nobody. By default visitors are refused.
    fn appraise_visitor(&self, participant: Option<&str>, now_unix_s: u64) -> Vec<FailedRule> {
        let _ = now_unix_s;
        let seen = participant.map_or_else(|| "a visitor".to_owned(), |name| format!("a visitor of {name}"));
        vec![FailedRule::new("visitor", seen, "a TD with evidence")]
    }
}

/// A TD that verified: its quote, and claims that the quote commits to. It shows what runs and where; who vouches for the name in
/// the claims is another matter, for which [`VerifiedEvidence`] has a credential. Only this crate makes one.
#[derive(Clone, Debug)]
pub struct VerifiedTd {
    claims: Claims,
    quote: VerifiedQuote,
    event_log: Option<EventLog>,
}

impl VerifiedTd {
    /// Who the node says it is and what it runs.
    pub fn claims(&self) -> &NodeClaims {
        &self.claims.node
    }

    /// SHA-256 of the claims' bytes.
    pub fn claims_digest(&self) -> Digest {
        self.claims.digest()
    }

    /// The log that came with it. It says what RTMR3 holds if it replays to the register in [`VerifiedTd::report`], which is for the
    /// policy to ask; else nothing.
    pub fn event_log(&self) -> Option<&EventLog> {
        self.event_log.as_ref()
    }

    /// What the TDX module reported.
    pub fn report(&self) -> &TdReport {
        self.quote.td()
    }

    /// Where the TD runs.
    pub fn platform(&self) -> &Platform {
        self.quote.platform()
    }

    /// How new the platform is.
    pub fn tcb(&self) -> &Tcb {
        self.quote.tcb()
    }

    /// Key id of the root that the quote led to.
    pub fn root_key_id(&self) -> &[u8; 48] {
        self.quote.root_key_id()
    }

    /// Whether that root is a simulated one: say so wherever this evidence is shown.
    pub fn simulated(&self) -> bool {
        self.quote.simulated()
    }
}

/// Evidence of a TD that verified: quote, claims, credential, and (in a session) its binding to the connection. Only
/// this crate makes one.
#[derive(Clone, Debug)]
pub struct VerifiedEvidence {
    td: VerifiedTd,
    credential: Credential,
}

impl VerifiedEvidence {
    /// The evidence without its credential.
    pub fn verified_td(&self) -> &VerifiedTd {
        &self.td
    }

    /// Who the node is and what it runs.
    pub fn claims(&self) -> &NodeClaims {
        &self.td.claims.node
    }

    /// The federation's name.
    pub fn federation(&self) -> &str {
        &self.claims().federation
    }

    /// The participant that the node belongs to.
    pub fn participant(&self) -> &str {
        &self.claims().participant
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.claims().node
    }

    /// What the node does.
    pub fn role(&self) -> Role {
        self.claims().role
    }

    /// How far the node has come.
    pub fn state(&self) -> State {
        self.claims().state
    }

    /// SHA-256 of the policy file it works under.
    pub fn policy_digest(&self) -> Digest {
        self.claims().policy_digest
    }

    /// What it runs.
    pub fn measurement(&self) -> &Measurement {
        &self.claims().measurement
    }

    /// The node's public key, which its credential names and which signed its TLS key.
    pub fn node_key(&self) -> PublicKey {
        self.claims().node_key
    }

    /// SHA-256 of the claims' bytes.
    pub fn claims_digest(&self) -> Digest {
        self.td.claims_digest()
    }

    /// SHA-256 of the TLS key's SubjectPublicKeyInfo.
    pub fn spki_sha256(&self) -> &[u8; 32] {
        &self.td.claims.spki_sha256
    }

    /// The credential: signed by the participant's key of the policy, and in force.
    pub fn credential(&self) -> &Credential {
        &self.credential
    }

    /// The log that came with it: [`VerifiedTd::event_log`].
    pub fn event_log(&self) -> Option<&EventLog> {
        self.td.event_log()
    }

    /// What the TDX module reported.
    pub fn td(&self) -> &TdReport {
        self.td.report()
    }

    /// Where the TD runs.
    pub fn platform(&self) -> &Platform {
        self.td.platform()
    }

    /// How new the platform is.
    pub fn tcb(&self) -> &Tcb {
        self.td.tcb()
    }

    /// Key id of the root that the quote led to.
    pub fn root_key_id(&self) -> &[u8; 48] {
        self.td.root_key_id()
    }

    /// Whether that root is a simulated one: say so wherever this evidence is shown.
    pub fn simulated(&self) -> bool {
        self.td.simulated()
    }
}

/// A command line that dialled in: no TD, no evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedVisitor {
    participant: Option<String>,
}

impl VerifiedVisitor {
    pub(crate) fn new(participant: Option<String>) -> Self {
        Self { participant }
    }

    /// The participant whose key signed this connection, if any: nobody may only look.
    pub fn participant(&self) -> Option<&str> {
        self.participant.as_deref()
    }
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub enum PeerEvidence {
    /// A TD that verified.
    Td(Box<VerifiedEvidence>),
    /// A command line.
    Visitor(VerifiedVisitor),
}

/// Whom claims name, and who stands up for that: the node key's signature, the epoch, and the credential. None of it needs
/// a quote, and all of it together costs less than a quote's first certificate: whoever belongs to no participant gets no
/// further.
pub(crate) fn check_identity(
    claims: &Claims,
    credential: &[u8],
    appraiser: &dyn Appraise,
    now_unix_s: u64,
) -> Result<Credential, Refusal> {
    let mut failed = check_claims(claims);
    let credential = check_credential(&claims.node, credential, appraiser, now_unix_s, &mut failed);
    credential.filter(|_| failed.is_empty()).ok_or(Refusal { failed })
}

/// What claims show by themselves: the node key signed them, and they are of the policy's epoch.
fn check_claims(claims: &Claims) -> Vec<FailedRule> {
    let mut failed = Vec::new();
    if !claims.signed_by_node() {
        let wanted = format!("a signature by the node key {}", claims.node.node_key);
        failed.push(FailedRule::new(
            "claims.signature",
            "a signature that is not the node's",
            wanted,
        ));
    }
    if claims.nonce != epoch_nonce(&claims.node.policy_digest) {
        failed.push(FailedRule::new(
            "claims.nonce",
            "another epoch",
            "the epoch of the policy that the claims name",
        ));
    }
    failed
}

/// Puts evidence together out of claims whose identity was checked and a quote that verified and commits to them, and asks
/// the policy.
pub(crate) fn assemble(
    claims: Claims,
    quote: VerifiedQuote,
    credential: Credential,
    event_log: Option<EventLog>,
    appraiser: &dyn Appraise,
    now_unix_s: u64,
) -> Result<VerifiedEvidence, Refusal> {
    let evidence = VerifiedEvidence {
        td: VerifiedTd {
            claims,
            quote,
            event_log,
        },
        credential,
    };
    Refusal::unless_empty(appraiser.appraise(&evidence, now_unix_s))?;
    Ok(evidence)
}

fn check_credential(
    node: &NodeClaims,
    text: &[u8],
    appraiser: &dyn Appraise,
    now_unix_s: u64,
    failed: &mut Vec<FailedRule>,
) -> Option<Credential> {
    if text.is_empty() {
        let wanted = format!(
            "one by the key of participant {}; `cloister identity endorse` writes it",
            node.participant
        );
        failed.push(FailedRule::new("credential", "no credential", wanted));
        return None;
    }
    let parsed = str::from_utf8(text).map_err(|error| error.to_string());
    let parsed = parsed.and_then(|text| Credential::parse(text).map_err(|error| error.to_string()));
    let credential = match parsed {
        Ok(credential) => credential,
        Err(cause) => {
            failed.push(FailedRule::new("credential", cause, "a node credential"));
            return None;
        }
    };
    let says = &credential.fields;
    let pairs = [
        ("credential.federation", &says.federation, &node.federation),
        ("credential.participant", &says.participant, &node.participant),
        ("credential.node", &says.node, &node.node),
        ("credential.role", &says.role.to_string(), &node.role.to_string()),
        (
            "credential.node_key",
            &says.node_key.to_string(),
            &node.node_key.to_string(),
        ),
    ];
    for (rule, seen, wanted) in pairs {
        if seen != wanted {
            failed.push(FailedRule::new(rule, seen, format!("{wanted}, as the claims say")));
        }
    }
    match appraiser.participant_key(&says.participant) {
        Some(key) => failed.extend(credential.verify(&key, now_unix_s)),
        None => failed.push(FailedRule::new(
            "credential.participant",
            &says.participant,
            "a participant of the policy",
        )),
    }
    Some(credential)
}

/// Reads the log that came with evidence.
pub(crate) fn read_event_log(bytes: &[u8]) -> Result<Option<EventLog>, Refusal> {
    EventLog::parse_shown(bytes)
        .map_err(|error| Refusal::one("event_log", error, "a log of events in the form of the CCEL, or none"))
}

/// Evidence that came without a connection of its own, as it came.
#[derive(Clone, Copy, Debug)]
pub struct DetachedEvidence<'a> {
    /// The quote.
    pub quote: &'a [u8],
    /// The claims, CBOR.
    pub claims: &'a [u8],
    /// The credential's text.
    pub credential: &'a [u8],
    /// The log of RTMR3; empty without one.
    pub event_log: &'a [u8],
}

/// Verifies evidence that came without a connection of its own, such as a roster's: the quote has to be over exactly
/// this report data, which the caller computes from its own challenge ([`crate::session::roster_report_data`]).
///
/// # Errors
/// [`Refusal`] with every rule that failed.
pub fn verify_detached(
    shown: &DetachedEvidence<'_>,
    report_data: &[u8; 64],
    verifier: &Verifier,
    appraiser: &dyn Appraise,
    now_unix_s: u64,
) -> Result<VerifiedEvidence, Refusal> {
    let claims =
        Claims::parse(shown.claims).map_err(|error| Refusal::one("claims", error, "claims of a Cloister node"))?;
    let credential = check_identity(&claims, shown.credential, appraiser, now_unix_s)?;
    let event_log = read_event_log(shown.event_log)?;
    let quote = verifier.verify(shown.quote, report_data, now_unix_s)?;
    assemble(claims, quote, credential, event_log, appraiser, now_unix_s)
}

/// Verifies the evidence of a TD that has no credential yet and applies for one, over a connection on which it showed none: the
/// quote has to be over exactly this report data ([`crate::session::applicant_report_data`]), which the caller computes from that
/// connection. Whether such a TD is let in is the policy's to say.
///
/// # Errors
/// [`Refusal`] with every rule that failed.
pub fn verify_applicant(
    quote: &[u8],
    claims: Claims,
    event_log: &[u8],
    report_data: &[u8; 64],
    verifier: &Verifier,
    now_unix_s: u64,
) -> Result<VerifiedTd, Refusal> {
    let event_log = read_event_log(event_log)?;
    Refusal::unless_empty(check_claims(&claims))?;
    let quote = verifier.verify(quote, report_data, now_unix_s)?;
    Ok(VerifiedTd {
        claims,
        quote,
        event_log,
    })
}
