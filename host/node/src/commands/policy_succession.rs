//! `cloister policy status`, `diff` and `history`: who agreed to what, and what follows what.

use std::path::{Path, PathBuf};

use clap::Args;
use cloister_policy::{Ballot, MAX_VERSIONS, Policy, Signatures, Tally, Version, broken_rules, diff, follow};
use cloister_tensor::Digest;
use serde_json::json;

use super::policy::{MAX_FILE_BYTES, read_policy, read_signatures};
use crate::files;
use crate::keeper::lineage::{policies_in, toml_files, version};
use crate::keeper::read_signatures_beside;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// Say who signed a policy, who did not, and whether it is complete.
///
/// A policy that follows another is complete when enough participants of both signed it. Ends with 0 if it is complete, else
/// with 4.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister policy status digits.toml
  cloister policy status digits-2.toml --predecessor digits.toml -o json
  cloister policy status digits.toml --sigs from-alpha.sigs --sigs from-beta.sigs")]
pub(super) struct StatusArgs {
    /// The policy.
    file: PathBuf,
    /// Its signatures; by default FILE.sigs, if there is one (repeat: those of all files count).
    #[arg(long, value_name = "FILE")]
    sigs: Vec<PathBuf>,
    /// The policy that it follows; by default one in the same folder whose digest it names.
    #[arg(long, value_name = "FILE")]
    predecessor: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Say in words what a policy changes against an older one, and what of it deserves a second thought.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister policy diff digits.toml digits-2.toml
  cloister policy diff digits.toml digits-2.toml -o json | jq '.changes[] | select(.concern)'")]
pub(super) struct DiffArgs {
    /// The older policy.
    old: PathBuf,
    /// The one that follows it.
    new: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Follow the chain from the founding policy to the newest, each signed as the one before it demands.
///
/// Without --anchor anybody's founding policy begins the chain: it is worth what the source of the files is. Copies of one policy
/// count as one, with the signatures of all. Ends with 4 if no policy took effect, or if the chain splits: then it is named who
/// signed both sides.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister policy history policies/
  cloister policy history digits.toml digits-2.toml --anchor \"$(cat anchor)\" -o json")]
pub(super) struct HistoryArgs {
    /// Policies, each with its FILE.sigs, or folders of them.
    #[arg(required = true, value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
    /// The founders' keys and threshold as a digest, as `policy status` tells it of the founding policy.
    #[arg(long, value_name = "SHA256")]
    anchor: Option<Digest>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn status(args: &StatusArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let policy = read_policy(&args.file)?;
    let mut signatures = Signatures::default();
    if args.sigs.is_empty() {
        signatures = read_signatures_beside(&args.file)?;
    }
    for path in &args.sigs {
        signatures.merge(&read_signatures(path)?);
    }
    let predecessor = match (&args.predecessor, policy.predecessor) {
        (Some(path), _) => Some(read_policy(path)?),
        (None, Some(digest)) => beside(&args.file, digest),
        (None, None) => None,
    };
    let ballot = Ballot::count(&policy, &signatures, predecessor.as_ref());
    let exit = if ballot.complete() { Exit::Done } else { Exit::Denied };
    if args.output.json() {
        out.json(&json!({
            "name": policy.name,
            "version": policy.version,
            "sha256": policy.digest().to_string(),
            "anchor": policy.anchor().map(|anchor| anchor.to_string()),
            "predecessor": policy.predecessor.map(|digest| digest.to_string()),
            "simulated": policy.attestation.simulated,
            "immutable": policy.consent.immutable,
            "ballot": ballot_json(&ballot),
        }));
        return Ok(exit);
    }
    out.data(format_args!(
        "Policy {:?}, version {}, SHA-256 {}.",
        policy.name,
        policy.version,
        policy.digest()
    ));
    if let Some(anchor) = policy.anchor() {
        out.data(format_args!("It founds the federation with the anchor {anchor}."));
    }
    say_ballot(&policy, &ballot, out);
    if policy.attestation.simulated && exit != Exit::Done {
        out.note("SIMULATED: under a simulated root nodes run it all the same");
    }
    Ok(exit)
}

fn tally_json(tally: &Tally) -> serde_json::Value {
    let votes = tally.votes.iter().map(|vote| {
        json!({
            "participant": vote.participant,
            "public_key": vote.public_key.to_string(),
            "standing": vote.standing.as_str(),
        })
    });
    json!({
        "threshold": tally.threshold,
        "signed": tally.signed().count(),
        "complete": tally.complete(),
        "participants": votes.collect::<Vec<_>>(),
    })
}

fn ballot_json(ballot: &Ballot) -> serde_json::Value {
    let rules = |failed: &[cloister_attestation::FailedRule]| -> Vec<_> {
        let rules = failed.iter();
        rules
            .map(|one| json!({ "rule": one.rule, "seen": one.seen, "wanted": one.wanted }))
            .collect()
    };
    json!({
        "complete": ballot.complete(),
        "own": tally_json(&ballot.own),
        "predecessor": ballot.before.as_ref().map(tally_json),
        "predecessor_missing": ballot.unknown_predecessor,
        "broken_rules": rules(&ballot.broken),
        "useless_signatures": rules(&ballot.strays),
    })
}

fn say_tally(tally: &Tally, whose: &str, out: &mut Ui) {
    out.data(format_args!(
        "{} of the {} signatures that {whose} are there:",
        tally.signed().count(),
        tally.threshold
    ));
    for vote in &tally.votes {
        let text = match vote.standing {
            cloister_policy::Standing::Signed => "signed".to_owned(),
            cloister_policy::Standing::Missing => "MISSING".to_owned(),
            cloister_policy::Standing::Invalid => {
                "INVALID: its signature is over other bytes; it has to read the policy and sign again".to_owned()
            }
            cloister_policy::Standing::OtherKey(key) => {
                format!("INVALID: signed with the key {key}, not with {}", vote.public_key)
            }
        };
        out.data(format_args!("  {:<20} {text}", vote.participant));
    }
}

fn say_ballot(policy: &Policy, ballot: &Ballot, out: &mut Ui) {
    say_tally(&ballot.own, "it asks for itself", out);
    if let Some(before) = &ballot.before {
        say_tally(before, "its predecessor demands", out);
    }
    for failed in &ballot.broken {
        out.data(format_args!("It can't follow that policy: {failed}."));
    }
    for stray in &ballot.strays {
        out.data(format_args!("Of no use: {stray}."));
    }
    if let (true, Some(digest)) = (ballot.unknown_predecessor, policy.predecessor) {
        out.data(format_args!(
            "Its predecessor {digest} is not at hand: what that one demands can't be told (--predecessor FILE)."
        ));
    }
    out.data(if ballot.complete() {
        "COMPLETE: it takes effect."
    } else {
        "NOT COMPLETE: it does not take effect."
    });
}

pub(super) fn compare(args: &DiffArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let (old, new) = (read_policy(&args.old)?, read_policy(&args.new)?);
    let (broken, changes) = (broken_rules(&old, &new), diff(&old, &new));
    if args.output.json() {
        let named = |policy: &Policy| json!({ "version": policy.version, "sha256": policy.digest().to_string() });
        let changes: Vec<_> = changes
            .iter()
            .map(|change| json!({ "area": change.area.as_str(), "text": change.text, "concern": change.concern }))
            .collect();
        let broken: Vec<_> = broken
            .iter()
            .map(|one| json!({ "rule": one.rule, "seen": one.seen, "wanted": one.wanted }))
            .collect();
        out.json(&json!({
            "name": new.name,
            "old": named(&old),
            "new": named(&new),
            "can_follow": broken.is_empty(),
            "broken_rules": broken,
            "changes": changes,
        }));
        return Ok(Exit::Done);
    }
    if broken.is_empty() {
        out.data(format_args!(
            "Version {} of {:?} ({}) can follow version {} ({}).",
            new.version,
            new.name,
            new.digest().short(),
            old.version,
            old.digest().short()
        ));
    }
    for failed in &broken {
        out.data(format_args!("WARNING: it can't follow that policy: {failed}."));
    }
    if changes.is_empty() {
        out.data("Nothing changes but version, comments and layout.");
    }
    for change in &changes {
        out.data(format_args!("{:<13} {}", change.area.as_str(), change.text));
        if let Some(concern) = change.concern {
            out.data(format_args!("{:<13} WARNING: {concern}", ""));
        }
    }
    Ok(Exit::Done)
}

pub(super) fn history(args: &HistoryArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let mut versions = Vec::new();
    for path in &args.paths {
        if path.is_dir() {
            let mut other = |file: &Path| out.note(format_args!("{} is no policy: passed over", file.display()));
            versions.extend(policies_in(path, &mut other)?);
        } else {
            versions.push(version(path, read_policy(path)?)?);
        }
        if versions.len() > MAX_VERSIONS {
            return Err(too_many(path));
        }
    }
    let history = follow(&mut versions, args.anchor);
    let exit = if history.fork.is_some() || history.chain.is_empty() {
        Exit::Denied
    } else {
        Exit::Done
    };
    let get = |index: &usize| versions.get(*index);
    let named = |version: &Version| {
        json!({
            "version": version.policy.version,
            "sha256": version.policy.digest().to_string(),
            "name": version.policy.name,
            "file": version.file,
        })
    };
    if args.output.json() {
        let listed = |indices: &[usize]| indices.iter().filter_map(get).map(named).collect::<Vec<_>>();
        let pending = history.pending.iter().filter_map(|(index, ballot)| {
            let mut entry = named(get(index)?);
            entry["ballot"] = ballot_json(ballot);
            Some(entry)
        });
        let text = |digests: &[Digest]| digests.iter().map(ToString::to_string).collect::<Vec<_>>();
        let fork = history.fork.as_ref().map(
            |fork| json!({ "after": fork.after.map(|digest| digest.to_string()), "policies": text(&fork.policies) }),
        );
        let double = history.double_signers.iter().map(|one| {
            json!({
                "participant": one.participant,
                "public_key": one.public_key.to_string(),
                "signed": text(&one.signed),
            })
        });
        let anchor = history
            .chain
            .first()
            .and_then(get)
            .and_then(|founding| founding.policy.anchor());
        out.json(&json!({
            "anchor": anchor.map(|anchor| anchor.to_string()),
            "anchor_given": args.anchor.is_some(),
            "chain": listed(&history.chain),
            "pending": pending.collect::<Vec<_>>(),
            "overtaken": listed(&history.overtaken),
            "apart": listed(&history.apart),
            "fork": fork,
            "double_signers": double.collect::<Vec<_>>(),
        }));
        return Ok(exit);
    }
    let line = |version: &Version| {
        let policy = &version.policy;
        format!(
            "version {:<4} {}  {:?} in {}",
            policy.version,
            policy.digest(),
            policy.name,
            version.file
        )
    };
    let mut before: Option<&Policy> = None;
    for version in history.chain.iter().filter_map(get) {
        out.data(line(version));
        let Some(older) = before.replace(&version.policy) else {
            continue;
        };
        let changes = diff(older, &version.policy);
        let concerns = changes.iter().filter(|change| change.concern.is_some()).count();
        let text = format!("{} changes, {concerns} that deserve a second thought", changes.len());
        out.data(format_args!("             {text} (`cloister policy diff`)"));
    }
    match (history.chain.last().and_then(get), &history.fork) {
        (_, Some(_)) => {}
        (Some(newest), None) => out.data(format_args!(
            "In force: version {} ({}).",
            newest.policy.version,
            newest.policy.digest().short()
        )),
        (None, None) => out.data("No policy took effect."),
    }
    if let Some(fork) = &history.fork {
        let after = fork.after.map_or("the founding".to_owned(), |digest| digest.short());
        let sides: Vec<_> = fork.policies.iter().map(ToString::to_string).collect();
        out.data(format_args!(
            "FORK after {after}: {} are both complete; nobody can tell which is valid, so none is.",
            sides.join(" and ")
        ));
    }
    for double in &history.double_signers {
        let signed: Vec<_> = double.signed.iter().map(Digest::short).collect();
        out.data(format_args!(
            "WARNING: {} (key {}) signed {}, of which only one can follow.",
            double.participant,
            double.public_key,
            signed.join(" and ")
        ));
    }
    for (index, ballot) in &history.pending {
        if let Some(version) = get(index) {
            out.data(format_args!("\nPending: {}", line(version)));
            say_ballot(&version.policy, ballot, out);
        }
    }
    for (word, indices) in [("Overtaken", &history.overtaken), ("Apart from it", &history.apart)] {
        for version in indices.iter().filter_map(get) {
            out.data(format_args!("{word}: {}", line(version)));
        }
    }
    if args.anchor.is_none() {
        out.note("no --anchor was given: whoever wrote these files may have founded this federation");
    }
    Ok(exit)
}

fn too_many(path: &Path) -> miette::Report {
    let text = format!(
        "{}: more than {MAX_VERSIONS} policies; name those that are meant",
        path.display()
    );
    ui::failed(Exit::Usage, text, None)
}

/// The policy of that digest in the folder of `file`.
fn beside(file: &Path, digest: Digest) -> Option<Policy> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let files = toml_files(folder.unwrap_or(Path::new("."))).ok()?;
    files.into_iter().find_map(|path| {
        let bytes = files::read(&path, MAX_FILE_BYTES).ok()?;
        let same = Digest::of(&bytes) == digest;
        same.then(|| Policy::parse(&bytes, &path.display().to_string()).ok())?
    })
}
