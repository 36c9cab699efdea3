//! `cloister quote`: simulated authorities, and quotes shown, verified and made.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cloister_attestation::encoding::{from_hex, hex};
use cloister_attestation::providers::{self, Places};
use cloister_attestation::quote::MAX_QUOTE_BYTES;
use cloister_attestation::simulated::{
    self, AuthorityError, SimulatedAuthority, SimulatedTd, TdValues, create_authority, reissue_collateral,
};
use cloister_attestation::{Quote, QuoteProvider, TrustRoot};

use super::quote_shown::{td_json, td_lines};
use super::{quote_collateral, quote_verify};
use crate::files;
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
    /// Verify a quote: exit code 0 if it is accepted, 3 with every rule that failed if not, 2 if an input can't be read.
    ///
    /// Without --policy, cryptography, dates and debug decide: a quote of an out-of-date platform is accepted, and its
    /// status is shown.
    #[command(after_help = "Examples:
  cloister quote verify td.quote --collateral collateral.json --at 1795132800
  cloister quote verify - --collateral collateral.json --policy digits.toml -o json < td.quote
  cloister quote verify td.quote --collateral sim --root sim --report-data 5a5a...")]
    Verify(quote_verify::VerifyArgs),
    /// Fetch the collateral of platforms from a PCCS or from Intel, for verifying without a network.
    ///
    /// It is written only if it verifies under the root at that time.
    #[command(after_help = "Examples:
  cloister quote collateral td.quote -o collateral.json
  cloister quote collateral --fmspc 00806F050000 --url https://pccs.example:8081 --authorities pccs.pem -o collateral.json")]
    Collateral(quote_collateral::CollateralArgs),
    /// Make a quote by whatever provider this machine has, or a simulated one.
    #[command(after_help = "Examples:
  cloister quote make --report-data $(openssl rand -hex 64) -o td.quote
  cloister quote make --provider configfs --report-data $(openssl rand -hex 64) -o td.quote
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
    /// The quote; `-` reads it from stdin.
    file: PathBuf,
    #[command(flatten)]
    output: ui::OutputArgs,
}

#[derive(clap::Args, Debug)]
struct MakeArgs {
    /// A simulated authority's folder, with its keys: the quote is SIMULATED.
    #[arg(long, value_name = "DIR", conflicts_with = "provider")]
    simulated: Option<PathBuf>,
    /// Who makes the quote; by default the one that this machine has.
    #[arg(long, value_name = "PROVIDER")]
    provider: Option<MachineProvider>,
    /// 64 bytes in hexadecimal.
    #[arg(long, value_name = "HEX")]
    report_data: String,
    /// MRTD of the simulated TD, 48 bytes in hexadecimal.
    #[arg(long, value_name = "HEX", requires = "simulated")]
    mrtd: Option<String>,
    /// Make it a debug TD.
    #[arg(long, requires = "simulated")]
    debug: bool,
    /// Where to write the quote.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: PathBuf,
}

/// Providers that make real quotes.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MachineProvider {
    /// The Linux kernel, by configfs-tsm.
    Configfs,
    /// The API server of a pod of Confidential Containers.
    Coco,
}

/// Runs the command.
pub fn run(args: QuoteArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match args.command {
        Command::Authority(args) => authority(&args, out),
        Command::Show(args) => show(&args, out),
        Command::Verify(args) => quote_verify::run(&args, out),
        Command::Collateral(args) => quote_collateral::run(&args, out),
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
        let mut shown = td_json(&quote.report);
        shown["version"] = quote.version.into();
        shown["body"] = quote.body.as_str().into();
        shown["padding_bytes"] = quote.padding.into();
        shown["verified"] = false.into();
        out.json(&shown);
    } else {
        out.data(format!(
            "TDX quote, version {}, {}, {} bytes and {} bytes of padding; not verified",
            quote.version,
            quote.body.as_str(),
            quote.bytes.len(),
            quote.padding
        ));
        td_lines(&quote.report).into_iter().for_each(|line| out.data(line));
    }
    Ok(Exit::Done)
}

fn make(args: &MakeArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let report_data = hex_argument::<64>("--report-data", &args.report_data)?;
    let authority = args.simulated.as_deref().map(files::of_authority).unwrap_or_default();
    files::not_an_input(&args.output, authority.iter().map(PathBuf::as_path))?;
    let provider = provider(args)?;
    let quote = provider
        .quote(&report_data)
        .map_err(|error| ui::fail(Exit::Failed, error))?;
    files::write(&args.output, &quote)?;
    out.note(format!(
        "{}quote of {} bytes by {} in {}",
        if provider.simulated() { "SIMULATED " } else { "" },
        quote.len(),
        provider.name(),
        args.output.display()
    ));
    Ok(Exit::Done)
}

fn provider(args: &MakeArgs) -> Result<Arc<dyn QuoteProvider>, miette::Report> {
    let places = Places::default();
    let Some(dir) = &args.simulated else {
        return match args.provider {
            Some(MachineProvider::Configfs) => Ok(Arc::new(places.kernel())),
            Some(MachineProvider::Coco) => Ok(Arc::new(places.pod())),
            None => providers::find(&places).map_err(|error| ui::fail(Exit::Failed, error)),
        };
    };
    let authority = SimulatedAuthority::load(dir).map_err(ui::unreadable)?;
    let mut values = TdValues::default();
    if let Some(mrtd) = &args.mrtd {
        values.mrtd = hex_argument("--mrtd", mrtd)?;
    }
    if args.debug {
        values.attributes[0] |= 1;
    }
    let td = SimulatedTd::new(&authority, values).map_err(|error| ui::fail(Exit::Failed, error))?;
    Ok(Arc::new(td))
}

pub(super) fn hex_argument<const N: usize>(option: &str, text: &str) -> Result<[u8; N], miette::Report> {
    let wrong = || {
        ui::failed(
            Exit::Usage,
            format!("{option}: wanted {N} bytes as {} hexadecimal digits", 2 * N),
            None,
        )
    };
    from_hex(text).ok_or_else(wrong)
}

/// Reads a quote: at most a byte more than one can have; `-` is stdin.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, miette::Report> {
    let mut bytes = Vec::new();
    let limit = MAX_QUOTE_BYTES as u64 + 1;
    let read = if path.as_os_str() == "-" {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes))
    };
    read.map(|_| bytes).map_err(|error| cannot("read", path, &error))
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> miette::Report {
    let help = files::help(error.kind());
    ui::failed(Exit::Usage, format!("cannot {what} {}: {error}", path.display()), help)
}
