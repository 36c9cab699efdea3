//! What was asked in vain, and why. Each refusal is in the audit log, by its code and its text, so none of them holds a secret.

use cloister_attestation::FailedRule;
use cloister_attestation::identity::{PublicKey, Role};
use cloister_tensor::Digest;

use crate::counter::{Commit, CounterId};
use crate::secret::SecretId;
use crate::witness::StoreId;

/// Why the manager refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    // --- who asks
    /// No policy is in force yet.
    #[error("no policy is in force yet: the founders' signatures are not complete (`cloister policy status`)")]
    NoPolicy,
    /// The asking node works under another policy.
    #[error("the node works under the policy {seen}, but {active} is in force: fetch that one and start again")]
    OldPolicy {
        /// The node's.
        seen: Digest,
        /// The one in force.
        active: Digest,
    },
    /// The permit is of another federation, or names a node that the policy does not have so.
    #[error("{node:?} with the role {role} is no node of {participant:?} in the policy in force")]
    NotInPolicy {
        /// The node.
        node: String,
        /// Its role.
        role: Role,
        /// Its participant.
        participant: String,
    },
    /// The permit has ended.
    #[error("the permit of {node:?} has ended; attest again")]
    PermitEnded {
        /// Whose.
        node: String,
    },
    /// Who asks showed no participant's signature, or that of nobody in the policy.
    #[error("only a participant of the policy in force may do this; sign the session with its key")]
    NoParticipant,

    // --- agreement
    /// The bytes are no policy.
    #[error("this is no policy: {0}")]
    NoPolicyFile(String),
    /// A founding policy of other founders.
    #[error("this policy does not found this federation: its anchor is {}, wanted {wanted}", seen.map_or("none, since it follows another".to_owned(), |anchor| anchor.to_string()))]
    OtherFounders {
        /// The policy's anchor.
        seen: Option<Digest>,
        /// The federation's.
        wanted: Digest,
    },
    /// The policy can't follow the one in force, whoever signs it.
    #[error("this policy can't follow the one in force: {}", list(.0))]
    CannotFollow(Vec<FailedRule>),
    /// No such policy was proposed.
    #[error("no policy {0} was proposed here, or it can't take effect any more")]
    UnknownPolicy(Digest),
    /// The signature counts for nothing under this policy.
    #[error("the signature of {participant:?} does not count: {why}")]
    BadSignature {
        /// Who is said to have signed.
        participant: String,
        /// What is wrong.
        why: String,
    },
    /// The signer has signed another successor of the same policy.
    #[error(
        "{participant:?} (key {key}) has signed {signed} already, and only one policy can follow the same one: this second signature, under {refused}, is recorded and does not count"
    )]
    Equivocation {
        /// Who signed both.
        participant: String,
        /// With which key.
        key: PublicKey,
        /// The policy that was signed first.
        signed: Digest,
        /// The other.
        refused: Digest,
    },
    /// The signature was taken back by its maker.
    #[error("{participant:?} took back its signature under {policy}; it can't be brought again")]
    TakenBack {
        /// Whose.
        participant: String,
        /// Under which policy.
        policy: Digest,
    },
    /// The policy is in force, or was: what it agreed can't be taken back.
    #[error("the policy {0} took effect; signatures under it stay. A successor may change what it says")]
    InForce(Digest),
    /// Signed by enough, but no node would run it.
    #[error("the policy is signed by enough, but can't take effect: {0}")]
    CannotTakeEffect(String),

    // --- secrets and their release
    /// A name that can't be one.
    #[error("{seen:?} is no name of a secret: 1 to 64 of a-z, 0-9, '-', '_', '.', beginning with a letter or digit")]
    BadName {
        /// What was given, cut.
        seen: String,
    },
    /// The value is empty or too large.
    #[error("a secret of {bytes} bytes; 1 to {limit} are wanted")]
    BadSize {
        /// Its size.
        bytes: usize,
        /// The largest.
        limit: usize,
    },
    /// What the secret is for is not in the policy, or not the participant's.
    #[error("{what}, which {participant:?} may not give a key for: {wanted}")]
    NotYours {
        /// What it is for.
        what: String,
        /// Who asked.
        participant: String,
        /// Who may.
        wanted: &'static str,
    },
    /// A module's or a dataset's key comes without the digest of the sealed file.
    #[error("a key of a {kind} needs the SHA-256 of the {what}")]
    DigestMissing {
        /// Which kind.
        kind: &'static str,
        /// Of what.
        what: &'static str,
    },
    /// The same name with another kind of secret.
    #[error("{0} is there with another kind or purpose; remove it first, or take another name")]
    OtherKind(SecretId),
    /// No such secret.
    #[error("there is no secret {0}; `cloister manager secrets ls` lists them")]
    NoSecret(SecretId),
    /// A TD without a credential asked for its own, and there is none.
    #[error(
        "{participant:?} left no credential for its node {node:?} here; it uploads the node's key and credential, or the node has them in files"
    )]
    NoCredential {
        /// The node.
        node: String,
        /// Whose node it is.
        participant: String,
    },
    /// The policy grants the secret to others.
    #[error("the policy does not grant {id} to the node {node:?}: {wanted}")]
    NotGranted {
        /// The secret.
        id: SecretId,
        /// Who asked.
        node: String,
        /// Who would get it.
        wanted: &'static str,
    },
    /// The sealed file at hand is not the one that the key is for.
    #[error("{id} opens the sealed file {wanted}; the node has {}: fetch that one", seen.map_or("named none".to_owned(), |seen| seen.to_string()))]
    OtherCiphertext {
        /// The secret.
        id: SecretId,
        /// The file at hand.
        seen: Option<Digest>,
        /// The file that it opens.
        wanted: Digest,
    },
    /// The sealed file is of an earlier key epoch.
    #[error("{id} was rotated: the node has the sealed file of epoch {seen}, but {current} is current; fetch {wanted}")]
    OldEpoch {
        /// The secret.
        id: SecretId,
        /// The file's epoch.
        seen: u32,
        /// The current one.
        current: u32,
        /// The file that is current.
        wanted: Digest,
    },
    /// What the key opens is not what the policy names now.
    #[error("{id} opens content {seen}, but the policy names {wanted} for it")]
    OtherContent {
        /// The secret.
        id: SecretId,
        /// What it opens.
        seen: Digest,
        /// What the policy names.
        wanted: Digest,
    },
    /// A module that nobody can read may read or write tensors, and owners of data have not consented.
    #[error("the sealed module {module:?} has the grant `{access}`, to which {} have not consented", missing.join(", "))]
    NoConsent {
        /// The module.
        module: String,
        /// What it may do.
        access: &'static str,
        /// The owners of data whose consent is wanted.
        missing: Vec<String>,
    },
    /// Aggregation modules are never sealed: who reads none can't know that it averages.
    #[error("{0:?} aggregates, and aggregation modules are never sealed")]
    SealedAggregator(String),
    /// A release request came again, or out of order.
    #[error("release request {seen} of this connection was answered already; the next one has to be above {last}")]
    Replayed {
        /// Its number.
        seen: u64,
        /// The last one's.
        last: u64,
    },
    /// Nothing was asked for.
    #[error("a release request has to name at least one secret")]
    NothingWanted,
    /// The keys can't be sealed to the node's key.
    #[error("the keys can't be sealed to the key that the node gave")]
    NotSealed,

    // --- counters and leases
    /// The counter is another node's.
    #[error("the counter {counter} is not one of the node {node:?}")]
    NotYourCounter {
        /// Which.
        counter: CounterId,
        /// Who asked.
        node: String,
    },
    /// The counter stands elsewhere.
    #[error("{counter}: {} is stale; {} is the newest that was confirmed", shown(.held), shown(.expected))]
    Stale {
        /// Which counter.
        counter: CounterId,
        /// What the node has or expected.
        held: Option<Commit>,
        /// Where the counter stands.
        expected: Option<Commit>,
    },
    /// The node has something that was never confirmed here.
    #[error("{counter}: {held} was never confirmed; {} is the newest that was. If it follows that one, commit it first", shown(.confirmed))]
    Unconfirmed {
        /// Which counter.
        counter: CounterId,
        /// What the node has.
        held: Commit,
        /// Where the counter stands.
        confirmed: Option<Commit>,
    },
    /// The next version is not above the one before.
    #[error("{counter}: version {next} does not lie above {current}; counters only go up")]
    NotAhead {
        /// Which counter.
        counter: CounterId,
        /// The next version.
        next: u64,
        /// The version before.
        current: u64,
    },
    /// Another instance of the node is alive.
    #[error("another instance of {node:?} has the lease until {until_unix_s} s since 1970; end it, or wait")]
    LeaseHeld {
        /// The node.
        node: String,
        /// When it ends unless it is renewed.
        until_unix_s: u64,
    },
    /// The instance has no lease that holds.
    #[error(
        "the lease {seen} of {node:?} does not hold any more (the newest is {newest}): another instance took over, or it ended; stop, or take a new one"
    )]
    Fenced {
        /// The node.
        node: String,
        /// The token that was shown.
        seen: u64,
        /// The newest one.
        newest: u64,
    },

    // --- the manager's own freshness
    /// A witness has seen a newer state.
    #[error(
        "{witness} has seen the manager's state {saw}, but this one is {shown}: an older copy of its store was put back"
    )]
    ManagerOlder {
        /// Who says so.
        witness: String,
        /// The version that it saw.
        saw: u64,
        /// The version that is shown.
        shown: u64,
    },
    /// A witness has seen another state of the same version, or one that this does not continue.
    #[error(
        "{witness} has seen another state {version} of the manager than this one continues: its store was put back and written on"
    )]
    ManagerForked {
        /// Who says so.
        witness: String,
        /// Which version.
        version: u64,
    },
    /// A witness knows another store.
    #[error("{witness} knows the manager with the store {saw}; this one has {shown}: it was made anew")]
    ManagerOther {
        /// Who says so.
        witness: String,
        /// The store that it knows.
        saw: StoreId,
        /// The store that is shown.
        shown: StoreId,
    },
    /// Too few witnesses confirm the state.
    #[error(
        "{confirmed} of the {wanted} nodes that it takes confirm that the manager's state is the newest; nothing was heard of {}",
        silent.join(", ")
    )]
    NoQuorum {
        /// How many do.
        confirmed: usize,
        /// How many it takes.
        wanted: usize,
        /// Who said nothing that counts.
        silent: Vec<String>,
    },

    /// The state is confirmed, but its store can't be written.
    #[error("the manager can't start: {0}")]
    CannotStart(String),

    // --- bounds
    /// There are as many as there may be.
    #[error("there are {limit} {what} already, the most there may be")]
    Full {
        /// Of what.
        what: &'static str,
        /// The most there may be.
        limit: usize,
    },
    /// A node that had as much written down in this minute as it may.
    #[error("{node:?} had {limit} notes written down in this minute, the most there may be; try again in the next one")]
    TooManyNotes {
        /// The node.
        node: String,
        /// The most in a minute.
        limit: u32,
    },
    /// Only an aggregator seals rounds, and lets models out.
    #[error("{node:?} has the role {role}; rounds and exports are an aggregator's to note")]
    NotItsToNote {
        /// The node.
        node: String,
        /// Its role.
        role: Role,
    },
    /// A vault's key that was rotated as often as it may be.
    #[error(
        "{id} has {limit} epochs, the most of a vault's key, and none can make room: the vault may hold what any of them sealed. Let the next policy \
         begin another vault; then remove this key, and put a new one"
    )]
    NoMoreEpochs {
        /// The key.
        id: SecretId,
        /// The most there may be.
        limit: usize,
    },
    /// More than one request may name, or an entry too long for the audit log.
    #[error("{seen} {what}; at most {limit} are taken at once")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much came.
        seen: usize,
        /// The most.
        limit: usize,
    },
}

fn list(rules: &[FailedRule]) -> String {
    rules.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn shown(commit: &Option<Commit>) -> String {
    commit.map_or("nothing".to_owned(), |commit| commit.to_string())
}

impl Refused {
    /// What is refused, in words that stay the same while nothing changes.
    pub(crate) fn matter(&self) -> String {
        match self {
            // Its end moves whenever the other instance renews it.
            Self::LeaseHeld { .. } => self.code().to_owned(),
            other => other.to_string(),
        }
    }

    /// A short name of what is wrong, for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoPolicy => "no-policy",
            Self::OldPolicy { .. } => "old-policy",
            Self::NotInPolicy { .. } => "not-in-policy",
            Self::PermitEnded { .. } => "permit-ended",
            Self::NoParticipant => "no-participant",
            Self::NoPolicyFile(_) => "no-policy-file",
            Self::OtherFounders { .. } => "other-founders",
            Self::CannotFollow(_) => "cannot-follow",
            Self::UnknownPolicy(_) => "unknown-policy",
            Self::BadSignature { .. } => "bad-signature",
            Self::Equivocation { .. } => "equivocation",
            Self::TakenBack { .. } => "taken-back",
            Self::InForce(_) => "in-force",
            Self::CannotTakeEffect(_) => "cannot-take-effect",
            Self::BadName { .. } => "bad-name",
            Self::BadSize { .. } => "bad-size",
            Self::NotYours { .. } => "not-yours",
            Self::DigestMissing { .. } => "digest-missing",
            Self::OtherKind(_) => "other-kind",
            Self::NoSecret(_) => "no-secret",
            Self::NoCredential { .. } => "no-credential",
            Self::NotGranted { .. } => "not-granted",
            Self::OtherCiphertext { .. } => "other-ciphertext",
            Self::OldEpoch { .. } => "old-epoch",
            Self::OtherContent { .. } => "other-content",
            Self::NoConsent { .. } => "no-consent",
            Self::SealedAggregator(_) => "sealed-aggregator",
            Self::Replayed { .. } => "replayed",
            Self::NothingWanted => "nothing-wanted",
            Self::NotSealed => "not-sealed",
            Self::NotYourCounter { .. } => "not-your-counter",
            Self::Stale { .. } => "stale",
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::NotAhead { .. } => "not-ahead",
            Self::LeaseHeld { .. } => "lease-held",
            Self::Fenced { .. } => "fenced",
            Self::ManagerOlder { .. } => "manager-older",
            Self::ManagerForked { .. } => "manager-forked",
            Self::ManagerOther { .. } => "manager-other",
            Self::NoQuorum { .. } => "no-quorum",
            Self::CannotStart(_) => "cannot-start",
            Self::Full { .. } => "full",
            Self::TooManyNotes { .. } => "too-many-notes",
            Self::NotItsToNote { .. } => "not-its-to-note",
            Self::NoMoreEpochs { .. } => "no-more-epochs",
            Self::TooMuch { .. } => "too-much",
        }
    }
}
