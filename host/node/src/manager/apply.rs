//! How a node that has nothing but its manager's address and the federation's anchor comes by policy and credential.
//!
//! 1. It asks for the chain of policies by the anchor, and follows it: that needs no trust in who answers.
//! 2. It dials the manager as a visitor and verifies its evidence under the newest of them. A manager under a newer one says so.
//! 3. It shows a quote over that very connection and a key made for this one answer, and gets its own key and credential sealed to it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cloister_attestation::claims::NodeClaims;
use cloister_attestation::identity::{Credential, Role, SigningKey};
use cloister_attestation::measurement::Measurement;
use cloister_attestation::ratls::VisitorIdentity;
use cloister_attestation::session::applicant_report_data;
use cloister_attestation::{NodeIdentity, QuoteProvider, RaTlsIdentity, State};
use cloister_manager::{SealingKey, SecretKind, open_release};
use cloister_policy::{Policy, Signatures, SignedPolicy, Version, follow};
use cloister_session::{DialOptions, Local, PolicyFile, SessionError, connect, fetch_policies};
use cloister_tensor::Digest;

use super::client::{Application, Client};
use super::error::ManagerError;
use crate::keeper::runtime::Runtime;
use crate::ui::{Exit, fail, failed, refused, unreadable};

/// What stands between the key and the credential in a credential's secret.
const END_OF_KEY: &str = "-----END PRIVATE KEY-----";
/// How long a node waits for a manager that is not there, or for a first policy in force.
const PATIENCE: Duration = Duration::from_secs(600);
/// The pause before it asks again.
const PAUSE: Duration = Duration::from_secs(1);

/// The newest policy of the federation with that anchor, as the manager tells the chain.
pub async fn newest_policy(
    dials: &[DialOptions],
    anchor: &Digest,
    now_unix_s: u64,
) -> Result<SignedPolicy, miette::Report> {
    let visitor = VisitorIdentity::new(None, now_unix_s).map_err(|error| fail(Exit::Failed, error))?;
    let told = patiently(async |_| longest(dials, anchor, &visitor).await, SessionError::passing)
        .await
        .map_err(|error| fail(Exit::Failed, error))?;
    let mut versions = Vec::new();
    for (index, file) in told.iter().enumerate() {
        let shown = format!("policy {} of {}", index + 1, addresses(dials));
        let policy = Policy::parse(&file.policy, &shown).map_err(unreadable)?;
        let signatures = Signatures::parse(&file.signatures, &format!("signatures of {shown}")).map_err(unreadable)?;
        versions.push(Version {
            policy,
            signatures,
            file: shown,
        });
    }
    let history = follow(&mut versions, Some(*anchor));
    let newest = history.chain.last().and_then(|index| versions.get(*index));
    let Some(newest) = newest.filter(|_| history.fork.is_none()) else {
        return Err(failed(
            Exit::Denied,
            format!(
                "the policies that {} tells are no chain of signed policies that the founders with the anchor {anchor} began",
                addresses(dials)
            ),
            Some("compare `manager.anchor` with what `cloister policy status` tells of the founding policy".into()),
        ));
    };
    SignedPolicy::new(newest.policy.clone(), &newest.signatures).map_err(|error| fail(Exit::Denied, error))
}

/// What the managers tell, of whom one may not know the newest yet; the longest chain proves itself.
async fn longest(
    dials: &[DialOptions],
    anchor: &Digest,
    visitor: &VisitorIdentity,
) -> Result<Vec<PolicyFile>, SessionError> {
    let mut best: Result<Vec<PolicyFile>, SessionError> = Ok(Vec::new());
    for dial in dials {
        match (fetch_policies(dial, anchor, visitor).await, &best) {
            (Ok(told), Ok(known)) if told.len() < known.len() => {}
            (Ok(told), _) => best = Ok(told),
            (Err(error), Ok(known)) if known.is_empty() => best = Err(error),
            (Err(_), _) => {}
        }
    }
    best
}

fn addresses(dials: &[DialOptions]) -> String {
    let all: Vec<_> = dials.iter().map(|dial| dial.address.as_str()).collect();
    all.join(", ")
}

/// What a TD without a credential shows of itself.
pub struct Applicant<'a> {
    /// Takes the quotes.
    pub provider: &'a dyn QuoteProvider,
    /// Has the log that explains them.
    pub runtime: &'a Runtime,
    /// The node that it is to be.
    pub node: &'a str,
    /// Host and policy, measured.
    pub measurement: Measurement,
}

/// The key and the credential that the node's participant left at the manager. `local` is a visitor's side.
pub async fn credential(
    local: &Local,
    dials: &[DialOptions],
    applicant: &Applicant<'_>,
) -> Result<NodeIdentity, miette::Report> {
    let simulated = local.policy.attestation.simulated;
    let one = async |attempt: usize| match dials.get(attempt % dials.len().max(1)) {
        Some(dial) => ask(local, dial, applicant).await,
        None => Err(ManagerError::Ended("it has no address".to_owned())),
    };
    let identity = patiently(one, ManagerError::passing).await;
    identity.map_err(|error| match error.refusal() {
        Some(_) => refused(error, simulated),
        None if error.is("evidence") => refused(error, simulated),
        None if error.is("no-credential") => failed(
            Exit::Denied,
            error.to_string(),
            Some("its participant uploads it: cloister manager secrets put --credential".into()),
        ),
        None => fail(Exit::Denied, error),
    })
}

async fn ask(local: &Local, dial: &DialOptions, applicant: &Applicant<'_>) -> Result<NodeIdentity, ManagerError> {
    let broken = |cause: String| ManagerError::Message {
        what: "a credential",
        cause,
    };
    let mut client = Client::new(connect(local, dial).await?).await?;
    let connection = *client.peer().connection();
    let policy = &local.policy;
    let node = policy.node(applicant.node);
    // Lives for this one answer: who it is for is said by the quote alone.
    let once = SigningKey::generate().map_err(|error| broken(error.to_string()))?;
    let recipient = SealingKey::generate().map_err(|error| broken(error.to_string()))?;
    let claims = NodeClaims {
        federation: policy.name.clone(),
        participant: node.map(|node| node.participant.clone()).unwrap_or_default(),
        node: applicant.node.to_owned(),
        role: node.map_or(Role::Worker, |node| node.role),
        state: State::Applicant,
        policy_digest: policy.digest(),
        node_key: once.public(),
        measurement: applicant.measurement.clone(),
    };
    let root = claims.measurement.root();
    let shown = RaTlsIdentity::from_claims(applicant.provider, &once, claims, Bytes::new(), (local.clock)());
    let shown = shown.map_err(|error| broken(format!("no evidence to ask with: {error}")))?;
    let shown = applicant
        .runtime
        .explain(shown)
        .map_err(|error| broken(error.to_string()))?;
    let claims_digest = Digest::of(&shown.claims);
    let report_data = applicant_report_data(&connection, &claims_digest, &root, recipient.public().as_bytes());
    let quote = applicant.provider.quote(&report_data);
    let application = Application {
        quote: quote.map_err(|error| broken(format!("no quote to ask with: {error}")))?,
        claims: shown.claims.clone(),
        event_log: shown.event_log.clone(),
        recipient: recipient.public(),
    };
    let sealed = client.apply(application).await?;
    let released =
        open_release(&recipient, &connection, applicant.node, &sealed).map_err(|error| broken(error.to_string()))?;
    let credential = released
        .iter()
        .find(|one| matches!(one.kind, SecretKind::Credential { .. }));
    let credential = credential.ok_or_else(|| broken("it sent something else".to_owned()))?;
    identity(credential.value.expose()).ok_or_else(|| {
        broken(
            "it is not a node's key (PEM) with its credential behind it: its participant uploads both anew".to_owned(),
        )
    })
}

/// A node's key in PEM, then its credential.
fn identity(secret: &[u8]) -> Option<NodeIdentity> {
    let text = str::from_utf8(secret).ok()?;
    let end = text.find(END_OF_KEY)? + END_OF_KEY.len();
    let (key, credential) = text.split_at_checked(end)?;
    Some(NodeIdentity {
        key: SigningKey::from_pem(key).ok()?,
        credential: Credential::parse(credential.trim_start()).ok()?,
    })
}

/// Tries until it works, fails for good, or takes too long.
async fn patiently<T, E: std::fmt::Display>(
    mut attempt: impl AsyncFnMut(usize) -> Result<T, E>,
    passing: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let since = Instant::now();
    let mut said = String::new();
    let mut attempts = 0;
    loop {
        let error = match attempt(attempts).await {
            Err(error) if passing(&error) && since.elapsed() < PATIENCE => error,
            done => return done,
        };
        let text = error.to_string();
        if text != said {
            tracing::info!("waiting for the manager: {text}");
            said = text;
        }
        attempts += 1;
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use cloister_attestation::identity::{CredentialFields, endorse};

    use super::*;

    #[test]
    fn a_credentials_secret_is_a_key_and_the_credential_for_it() {
        let key = SigningKey::generate().unwrap();
        let fields = CredentialFields {
            federation: "wards".into(),
            participant: "alpha".into(),
            node: "worker-a".into(),
            role: Role::Worker,
            node_key: key.public(),
            not_after_unix_s: 7,
        };
        let credential = endorse(&SigningKey::generate().unwrap(), fields).unwrap();
        let pem = key.to_pem();
        let secret = format!("{}\n{}", pem.as_str().trim_end(), credential.to_text());
        let both = identity(secret.as_bytes()).unwrap();
        assert_eq!((both.key.public(), both.credential), (key.public(), credential));
        for half in [pem.as_str(), "no key", &secret[1..]] {
            assert!(identity(half.as_bytes()).is_none());
        }
    }
}
