//! `cloister quote`: simulated authorities, and quotes shown, verified and made.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use cloister_attestation::encoding::{from_hex, hex};
use cloister_attestation::quote::MAX_QUOTE_BYTES;
use cloister_attestation::simulated::{
    self, AuthorityError, SimulatedAuthority, SimulatedTd, TdValues, create_authority, reissue_collateral,
};
use cloister_attestation::{
    Collateral, Quote, QuoteProvider as _, Refusal, TdReport, TrustRoot, VerifiedQuote, Verifier,
};

use crate::ui::{self, Exit, Ui};

/// Work with TDX quotes: make a simulated authority, show, verify and make quotes.
#[derive(clap::Args, Debug)]
pub struct QuoteArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Make a simulated authority in DIR, or re-issue the collateral of the one that is there.
    ///
    /// Simulated quotes have the real format and prove nothing about hardware. Give verifiers DIR without its keys/.
    #[command(after_help = "Examples:
  cloister quote authority sim
  cloister quote authority sim        # 15 days later: new collateral, same keys")]
    Authority(AuthorityArgs),
    /// Show what a quote says. Nothing is verified.
    #[command(after_help = "Examples:
  cloister quote show td.quote
  cloister quote show td.quote -o json")]
    Show(ShowArgs),
    /// Verify a quote: exit code 0, or 3 with what was seen and what was wanted.
    #[command(after_help = "Examples:
  cloister quote verify td.quote --collateral collateral.json --at 1795132800
  cloister quote verify td.quote --collateral sim --root sim --report-data 5a5a...")]
    Verify(VerifyArgs),
    /// Make a simulated quote.
    #[command(after_help = "Examples:
  cloister quote make --simulated sim --report-data $(openssl rand -hex 64) -o td.quote")]
    Make(MakeArgs),
}

#[derive(clap::Args, Debug)]
struct AuthorityArgs {
    /// The authority's folder.
    dir: PathBuf,
    #[command(flatten)]
    output: ui::OutputArgs,
}

#[derive(clap::Args, Debug)]
struct ShowArgs {
    /// The quote.
    file: PathBuf,
    #[command(flatten)]
    output: ui::OutputArgs,
}

#[derive(clap::Args, Debug)]
struct VerifyArgs {
    /// The quote.
    quote: PathBuf,
    /// Collateral of the quote's platform (JSON), or the folder of a simulated authority.
    #[arg(long, value_name = "FILE")]
    collateral: PathBuf,
    /// The time to verify at, in seconds since 1970; now, if not given.
    #[arg(long, value_name = "UNIX")]
    at: Option<u64>,
    /// Whose root to trust: `intel`, or a simulated authority's folder or root.der.
    #[arg(long, default_value = "intel", value_name = "intel|FILE")]
    root: String,
    /// The 64 bytes of report data that the quote has to be over, in hexadecimal; any, if not given.
    #[arg(long, value_name = "HEX")]
    report_data: Option<String>,
    /// Let a debug TD in: its host can read it.
    #[arg(long)]
    allow_debug: bool,
    #[command(flatten)]
    output: ui::OutputArgs,
}

#[derive(clap::Args, Debug)]
struct MakeArgs {
    /// The simulated authority's folder, with its keys.
    #[arg(long, value_name = "DIR")]
    simulated: PathBuf,
    /// 64 bytes in hexadecimal.
    #[arg(long, value_name = "HEX")]
    report_data: String,
    /// MRTD of the simulated TD, 48 bytes in hexadecimal.
    #[arg(long, value_name = "HEX")]
    mrtd: Option<String>,
    /// Make it a debug TD.
    #[arg(long)]
    debug: bool,
    /// Where to write the quote.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: PathBuf,
}

/// Runs the command.
pub fn run(args: QuoteArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match args.command {
        Command::Authority(args) => authority(&args, out),
        Command::Show(args) => show(&args, out),
        Command::Verify(args) => verify(&args, out),
        Command::Make(args) => make(&args, out),
    }
}

fn authority(args: &AuthorityArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let now = ui::now_unix_s();
    let there = args.dir.join("root.der").exists();
    let done = if there {
        reissue_collateral(&args.dir, now)
    } else {
        create_authority(&args.dir, now)
    };
    done.map_err(|error: AuthorityError| ui::fail(Exit::Usage, error))?;
    let root = TrustRoot::from_file(&args.dir).map_err(ui::unreadable)?;
    let days = simulated::COLLATERAL_DAYS;
    if args.output.json() {
        out.json(&serde_json::json!({
            "simulated": true, "dir": args.dir, "created": !there,
            "root_key_id": hex(root.key_id()), "collateral_days": days,
        }));
    } else {
        out.data(hex(root.key_id()));
    }
    out.note(format!(
        "SIMULATED authority {} in {}: no hardware behind its quotes. Collateral holds for {days} days.",
        if there { "re-issued" } else { "made" },
        args.dir.display()
    ));
    out.note("Policies pin the root key id above (root_key_id). Verifiers get the folder without keys/.");
    Ok(Exit::Done)
}

fn show(args: &ShowArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let bytes = read(&args.file)?;
    let quote = Quote::parse(&bytes).map_err(ui::unreadable)?;
    if args.output.json() {
        let mut shown = report_json(&quote.report);
        shown["version"] = quote.version.into();
        shown["verified"] = false.into();
        out.json(&shown);
    } else {
        out.data(format!(
            "TDX quote, version {}, {} bytes; not verified",
            quote.version,
            quote.bytes.len()
        ));
        show_report(&quote.report, out);
    }
    Ok(Exit::Done)
}

fn verify(args: &VerifyArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let bytes = read(&args.quote)?;
    let root = if args.root == "intel" {
        TrustRoot::intel()
    } else {
        TrustRoot::from_file(Path::new(&args.root))
    };
    let root = root.map_err(ui::unreadable)?;
    if root.simulated() {
        out.note("SIMULATED root: what verifies under it proves nothing about hardware.");
    }
    let collateral = Collateral::from_file(&args.collateral).map_err(ui::unreadable)?;
    let report_data = args
        .report_data
        .as_deref()
        .map(|text| hex_argument::<64>("--report-data", text))
        .transpose()?;
    let now = args.at.unwrap_or_else(ui::now_unix_s);
    let verifier = Verifier::new(root, collateral).allow_debug(args.allow_debug);
    let verdict = match &report_data {
        Some(wanted) => verifier.verify(&bytes, wanted, now),
        None => verifier.inspect(&bytes, now),
    };
    match verdict {
        Ok(verified) => {
            accepted(&verified, args, out);
            Ok(Exit::Done)
        }
        Err(refusal) => {
            refused(&refusal, &verifier, args, out);
            Ok(Exit::Refused)
        }
    }
}

fn accepted(verified: &VerifiedQuote, args: &VerifyArgs, out: &mut Ui) {
    let (tcb, platform) = (verified.tcb(), verified.platform());
    if args.output.json() {
        let mut shown = report_json(verified.td());
        shown["verified"] = true.into();
        shown["simulated"] = verified.simulated().into();
        shown["root_key_id"] = hex(verified.root_key_id()).into();
        shown["tcb_status"] = tcb.status.as_str().into();
        shown["advisory_ids"] = tcb.advisory_ids.clone().into();
        shown["tcb_eval_data_number"] = tcb.eval_data_number.into();
        shown["collateral_issued_unix_s"] = tcb.collateral_issued_unix_s.into();
        shown["collateral_expires_unix_s"] = tcb.collateral_expires_unix_s.into();
        shown["fmspc"] = hex(&platform.fmspc).into();
        shown["ppid"] = hex(&platform.ppid).into();
        return out.json(&shown);
    }
    let kind = if verified.simulated() {
        "SIMULATED quote, verified"
    } else {
        "quote verified"
    };
    out.data(format!("{kind}: TCB {}", tcb.status));
    out.data(format!("  {:16} {}", "root key id", hex(verified.root_key_id())));
    out.data(format!(
        "  {:16} {}",
        "platform",
        format_args!("FMSPC {} PPID {}", hex(&platform.fmspc), hex(&platform.ppid))
    ));
    let advisories = if tcb.advisory_ids.is_empty() {
        "none".to_owned()
    } else {
        tcb.advisory_ids.join(" ")
    };
    out.data(format!("  {:16} {advisories}", "advisories"));
    show_report(verified.td(), out);
}

fn refused(refusal: &Refusal, verifier: &Verifier, args: &VerifyArgs, out: &mut Ui) {
    if args.output.json() {
        out.json(&serde_json::json!({
            "verified": false, "simulated": verifier.root().simulated(),
            "root_key_id": hex(verifier.root().key_id()), "failed": refusal.failed,
        }));
    }
    out.note(refusal);
}

fn make(args: &MakeArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let authority = SimulatedAuthority::load(&args.simulated).map_err(ui::unreadable)?;
    let mut values = TdValues::default();
    if let Some(mrtd) = &args.mrtd {
        values.mrtd = hex_argument("--mrtd", mrtd)?;
    }
    if args.debug {
        values.attributes[0] |= 1;
    }
    let report_data = hex_argument::<64>("--report-data", &args.report_data)?;
    let td = SimulatedTd::new(&authority, values).map_err(|error| ui::fail(Exit::Failed, error))?;
    let quote = td.quote(&report_data).map_err(|error| ui::fail(Exit::Failed, error))?;
    std::fs::write(&args.output, &quote).map_err(|error| cannot("write", &args.output, &error))?;
    out.note(format!(
        "SIMULATED quote of {} bytes in {}",
        quote.len(),
        args.output.display()
    ));
    Ok(Exit::Done)
}

fn report_json(report: &TdReport) -> serde_json::Value {
    let mut shown: serde_json::Map<String, serde_json::Value> = report
        .named()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    shown.insert("debug".into(), report.debug().into());
    shown.into()
}

fn show_report(report: &TdReport, out: &mut Ui) {
    if report.debug() {
        out.data("  DEBUG TD: its host can read it");
    }
    for (name, value) in report.named() {
        out.data(format!("  {name:16} {value}"));
    }
}

fn hex_argument<const N: usize>(option: &str, text: &str) -> Result<[u8; N], miette::Report> {
    let wrong = || {
        ui::failed(
            Exit::Usage,
            format!("{option}: wanted {N} bytes as {} hexadecimal digits", 2 * N),
            None,
        )
    };
    from_hex(text).ok_or_else(wrong)
}

fn read(path: &Path) -> Result<Vec<u8>, miette::Report> {
    let mut bytes = Vec::new();
    let limit = MAX_QUOTE_BYTES as u64 + 1;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    read.map(|_| bytes).map_err(|error| cannot("read", path, &error))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> miette::Report {
    ui::failed(Exit::Usage, format!("cannot {what} {}: {error}", path.display()), None)
}
