//! `cloister policy reference` and `cloister policy from-quote`: what TDs may show, drafted from known good quotes.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use cloister_attestation::encoding::hex;
use cloister_attestation::{Collateral, VerifiedQuote, Verifier, time};
use cloister_policy::references::REFERENCE_REGISTERS;
use cloister_policy::{Reference, ReferenceValues, Signatures, attestation_from_quote};
use serde_json::json;

use super::policy::{MAX_FILE_BYTES, read_policy, read_signatures};
use super::policy_attestation::read_anchor;
use super::quote::read;
use super::quote_collateral::trust_root;
use crate::files;
use crate::keeper::references::read_references;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// Reference values: which registers TDs may show until when, in a signed document beside the policy.
///
/// A policy names who may sign such documents: [attestation] references = { signers = ["alpha", "beta"], threshold = 2 }.
/// A kernel's patch then needs a new version of the document, and no new agreement.
#[derive(Args, Debug)]
pub struct ReferenceArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Draft(DraftArgs),
    Sign(SignArgs),
    Check(CheckArgs),
}

/// A quote that has to verify before anything is drafted from it.
#[derive(Args, Debug)]
struct GoodQuote {
    /// A quote of a TD that is known to be good.
    quote: PathBuf,
    /// Collateral of its platform (JSON), or the folder of a simulated authority.
    #[arg(long, value_name = "FILE")]
    collateral: PathBuf,
    /// The time to verify it at, in seconds since 1970; now, if not given.
    #[arg(long, value_name = "UNIX_SECONDS")]
    at: Option<u64>,
    /// Whose root to trust: `intel`, or a simulated authority's folder or root.der.
    #[arg(long, default_value = "intel", value_name = "intel|FILE")]
    root: String,
}

/// Draft the section [attestation] of a policy from a known good quote: TDs with its launch measurements, on its platform and
/// with its TCB or better. RTMR3 is left open if the quote has any (choose `rtmr3 = "log"`); an MRCONFIGID has to be explained by an
/// [[attestation.anchor]], and without one it is zeros alone; `cloister policy check` says what is let in.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  cloister policy from-quote td.quote --collateral collateral.json > attestation.toml"
)]
pub struct FromQuoteArgs {
    #[command(flatten)]
    good: GoodQuote,
}

/// Write a document of reference values with the registers of a known good quote, beside those of an older version.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  cloister policy reference draft new.quote --collateral collateral.json --policy digits.toml \\\n    --previous references.toml --name linux-6.12.9 --not-after 2027-01-31 -o references.toml"
)]
struct DraftArgs {
    #[command(flatten)]
    good: GoodQuote,
    /// The policy of the federation.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// A name for these values.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// The last day on which they are taken, YYYY-MM-DD in UTC.
    #[arg(long, value_name = "DATE")]
    not_after: String,
    /// Registers that the document names; the others stay as the policy lists them.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "mrtd,rtmr0,rtmr1,rtmr2",
        value_name = "NAMES"
    )]
    registers: Vec<String>,
    /// Initdata (as `policy from-image` writes it) that an `mrconfigid` is the hash of (repeat); not needed for those of the policy.
    #[arg(long = "anchor", value_name = "FILE")]
    anchors: Vec<PathBuf>,
    /// The version before, whose values that are still in force are kept.
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// Where to write it.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: PathBuf,
}

/// Sign a document of reference values; the signature goes to FILE.sigs, beside those of the others.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  cloister policy reference sign references.toml --policy digits.toml --key keys/alpha.key --signer alpha"
)]
struct SignArgs {
    /// The document.
    file: PathBuf,
    /// The policy that names the signers.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The signer's private key (PEM).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The name under which the policy knows the signer.
    #[arg(long, value_name = "NAME")]
    signer: String,
}

/// Say what a document of reference values lets in, and whether enough have signed it: exit code 4 if not.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  cloister policy reference check references.toml --policy digits.toml")]
struct CheckArgs {
    /// The document.
    file: PathBuf,
    /// The policy that names the signers.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `cloister policy reference`.
pub fn run(args: ReferenceArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match args.command {
        Command::Draft(args) => draft(&args, out),
        Command::Sign(args) => sign(&args, out),
        Command::Check(args) => check(&args, out),
    }
}

/// Runs `cloister policy from-quote`.
pub fn from_quote(args: &FromQuoteArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let quote = args.good.verified(out)?;
    out.data(attestation_from_quote(&quote).trim_start());
    if quote.tcb().status != "UpToDate" {
        out.note(format_args!(
            "WARNING: the platform is {}: the section takes that status for good; give it an end: {{ status = \"{}\", until = \
             2027-01-31 }}.",
            quote.tcb().status,
            quote.tcb().status
        ));
    }
    if quote.td().mrconfigid != [0; 48] {
        out.note(format_args!(
            "The TD was started with initdata, whose hash is its MRCONFIGID ({}...): outside simulation `policy check` refuses the section \
             until an [[attestation.anchor]] shows what that initdata lets start. `cloister policy from-image` writes initdata for an image and prints \
             that table; start the TD with it, and draft again.",
            hex(&quote.td().mrconfigid[..8])
        ));
    }
    out.note(
        "Fill in `hosts`, the binaries that nodes may run (SHA-256 of each), put the section into the policy, and read \
         `cloister policy check`.",
    );
    Ok(Exit::Done)
}

impl GoodQuote {
    /// The files that are read.
    fn inputs(&self) -> Vec<PathBuf> {
        let mut files = vec![self.quote.clone()];
        files.extend(files::of_authority(&self.collateral));
        files.extend(files::of_authority(Path::new(&self.root)));
        files
    }

    fn verified(&self, out: &mut Ui) -> Result<VerifiedQuote, miette::Report> {
        let root = trust_root(&self.root)?;
        if root.simulated() {
            out.note("SIMULATED root: what verifies under it proves nothing about hardware.");
        }
        let bytes = read(&self.quote)?;
        let collateral = Collateral::from_file(&self.collateral).map_err(ui::unreadable)?;
        let now = self.at.unwrap_or_else(ui::now_unix_s);
        let verified = Verifier::new(root, collateral).inspect(&bytes, now);
        verified.map_err(|refusal| ui::fail(Exit::Refused, refusal))
    }
}

fn draft(args: &DraftArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    // The version before may be replaced: its values that still count go on in the new one.
    let mut inputs = args.good.inputs();
    inputs.push(args.policy.clone());
    files::not_an_input(&args.output, inputs.iter().map(PathBuf::as_path))?;
    let quote = args.good.verified(out)?;
    let policy = read_policy(&args.policy)?;
    let td = quote.td();
    let seen = [td.mrtd, td.rtmr[0], td.rtmr[1], td.rtmr[2], td.mrseam, td.mrconfigid];
    let mut registers = [const { Vec::new() }; 6];
    for name in &args.registers {
        let index = REFERENCE_REGISTERS.iter().position(|known| known == name);
        let Some((values, seen)) = index.and_then(|index| Some((registers.get_mut(index)?, seen.get(index)?))) else {
            return Err(ui::failed(
                Exit::Usage,
                format!("--registers: {name:?} is none of {}", REFERENCE_REGISTERS.join(", ")),
                None,
            ));
        };
        *values = vec![*seen];
    }
    let day = time::parse(&format!("{}T00:00:00Z", args.not_after)).ok_or_else(|| {
        ui::failed(
            Exit::Usage,
            format!("--not-after: {:?} is no date such as 2027-01-31", args.not_after),
            None,
        )
    })?;
    let until_unix_s = day.saturating_add(86_400);
    let now = args.good.at.unwrap_or_else(ui::now_unix_s);
    if until_unix_s <= now {
        return Err(ui::failed(
            Exit::Usage,
            format!(
                "--not-after: {} is over: no TD would be taken by this reference",
                args.not_after
            ),
            Some(format!("today is {}", &time::format(now)[..10])),
        ));
    }
    let previous = args.previous.as_deref().map(read_values).transpose()?;
    let version = previous.as_ref().map_or(0, |previous| previous.version) + 1;
    let (mut references, mut anchors) =
        previous.map_or_else(Default::default, |previous| (previous.references, previous.anchors));
    references.retain(|reference| reference.until_unix_s > now && reference.name != args.name);
    references.push(Reference {
        name: args.name.clone(),
        until_unix_s,
        registers,
    });
    for path in &args.anchors {
        anchors.push(read_anchor(path)?);
    }
    // An anchor serves as long as a reference lists its hash.
    let mut shown = Vec::new();
    for anchor in anchors {
        let hash = anchor.mrconfigid();
        let listed = references
            .iter()
            .any(|reference| reference.registers.iter().any(|list| list.contains(&hash)));
        if listed && !shown.contains(&anchor) {
            shown.push(anchor);
        }
    }
    let text = ReferenceValues::to_text(&policy.name, version, &references, &shown);
    let drafted = ReferenceValues::parse(text.as_bytes(), "").map_err(|error| {
        let text = format!("this makes no file of references: {}", error.without_places());
        ui::failed(
            Exit::Usage,
            text,
            Some("look at --name, --not-after and --previous".into()),
        )
    })?;
    drafted.check(&policy).map_err(|error| ui::fail(Exit::Usage, error))?;
    files::write(&args.output, text.as_bytes())?;
    out.note(format_args!(
        "version {version} with {} references in {}; its signers sign it by `cloister policy reference sign`",
        references.len(),
        args.output.display()
    ));
    Ok(Exit::Done)
}

fn read_values(path: &Path) -> Result<ReferenceValues, miette::Report> {
    let text = files::read(path, MAX_FILE_BYTES)?;
    ReferenceValues::parse(&text, &path.display().to_string()).map_err(ui::unreadable)
}

fn sign(args: &SignArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let (values, policy) = (read_values(&args.file)?, read_policy(&args.policy)?);
    let key = files::read_key(&args.key)?;
    let signature = values
        .sign(&policy, &args.signer, &key)
        .map_err(|error| ui::fail(Exit::Denied, error))?;
    let path = files::with_suffix(&args.file, ".sigs");
    let mut signatures = if path.exists() {
        read_signatures(&path)?
    } else {
        Signatures::default()
    };
    signatures.add(signature);
    files::write(&path, signatures.to_text().as_bytes())?;
    out.note(format_args!(
        "{} signed version {} of {} (SHA-256 {}) in {}",
        args.signer,
        values.version,
        args.file.display(),
        values.digest(),
        path.display()
    ));
    Ok(Exit::Done)
}

fn check(args: &CheckArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let policy = read_policy(&args.policy)?;
    let text = files::read(&args.file, MAX_FILE_BYTES)?;
    let values = ReferenceValues::parse(&text, &args.file.display().to_string()).map_err(ui::unreadable)?;
    // Whoever is to sign sees first what it says.
    let signed = read_references(&args.file, &policy);
    let signers = signed.as_ref().map(|signed| signed.signers().to_vec()).ok();
    let named = |reference: &Reference| {
        let named = REFERENCE_REGISTERS.iter().zip(&reference.registers);
        let named = named.filter(|(_, values)| !values.is_empty());
        named.map(|(name, _)| *name).collect::<Vec<_>>()
    };
    if args.output.json() {
        let references = values.references.iter().map(|reference| {
            json!({
                "name": reference.name,
                "until": time::format(reference.until_unix_s),
                "registers": named(reference),
            })
        });
        out.json(&json!({
            "federation": values.federation,
            "version": values.version,
            "sha256": values.digest().to_string(),
            "in_force": signers.is_some(),
            "signed_by": signers,
            "references": references.collect::<Vec<_>>(),
        }));
        return signed.map(|_| Exit::Done);
    }
    out.data(format_args!(
        "Reference values for {:?}, version {}, SHA-256 {}, {}.",
        values.federation,
        values.version,
        values.digest(),
        signers.map_or_else(
            || "which nobody takes yet (below)".to_owned(),
            |signers| format!("signed by {}", signers.join(", "))
        )
    ));
    for reference in &values.references {
        out.data(format_args!(
            "TDs like {:?} are let in before {}: {} as listed, the rest as the policy has it.",
            reference.name,
            time::format(reference.until_unix_s),
            named(reference).join(", ")
        ));
    }
    signed.map(|_| Exit::Done)
}
