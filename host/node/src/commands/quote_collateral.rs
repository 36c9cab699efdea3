//! `cloister quote collateral`: an offline bundle out of a PCCS or Intel's PCS.

use std::path::{Path, PathBuf};

use cloister_attestation::{Collateral, TrustRoot, claimed_platform};
use cloister_session::collateral::{Authority, Client, PlatformFamily, Source};

use super::quote::{hex_argument, read};
use super::quote_shown::{collateral_json, collateral_line};
use crate::files;
use crate::ui::{self, Exit, Ui};

#[derive(clap::Args, Debug)]
pub struct CollateralArgs {
    /// Quotes whose platforms it is for; `-` reads one from stdin.
    quotes: Vec<PathBuf>,
    /// A platform family that it is for besides (FMSPC, 12 hexadecimal digits). May be given several times.
    #[arg(long, value_name = "HEX")]
    fmspc: Vec<String>,
    /// The service: a PCCS, or Intel's PCS.
    #[arg(long, value_name = "URL", default_value = "https://api.trustedservices.intel.com")]
    url: String,
    /// The authority of the platforms given by --fmspc.
    #[arg(long, value_name = "platform|processor", default_value = "platform", value_parser = ["platform", "processor"])]
    ca: String,
    /// Authorities for HTTPS (PEM); by default the system's.
    #[arg(long, value_name = "FILE")]
    authorities: Option<PathBuf>,
    /// An HTTP proxy that dials for us, HOST:PORT.
    #[arg(long, value_name = "HOST:PORT")]
    proxy: Option<String>,
    /// Whose root it has to verify under: `intel`, or a simulated authority's folder or root.der.
    #[arg(long, default_value = "intel", value_name = "intel|FILE")]
    root: String,
    /// The time that it has to hold at, in seconds since 1970; now, if not given.
    #[arg(long, value_name = "UNIX_SECONDS")]
    at: Option<u64>,
    /// Where to write it.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    output: PathBuf,
}

/// Runs the command.
pub fn run(args: &CollateralArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let root = trust_root(&args.root)?;
    let root_files = files::of_authority(Path::new(&args.root));
    let inputs = args.quotes.iter().chain(&args.authorities).chain(&root_files);
    files::not_an_input(&args.output, inputs.map(PathBuf::as_path))?;
    let families = families(args)?;
    let proxy = args
        .proxy
        .as_deref()
        .map(str::parse)
        .transpose()
        .map_err(ui::unreadable)?;
    let client = Client::new(&Source {
        url: args.url.clone(),
        authorities: args.authorities.clone(),
        proxy,
    })
    .map_err(ui::unreadable)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ui::fail(Exit::Failed, error))?;
    let now = args.at.unwrap_or_else(ui::now_unix_s);
    let mut all = Vec::new();
    for family in families {
        out.note(format_args!("asking {} for the family {family}", client.url()));
        let fetched = runtime.block_on(client.fetch(family));
        let fetched = fetched.map_err(|error| ui::fail(Exit::Failed, error))?;
        fetched
            .verify(&root, now)
            .map_err(|refusal| ui::fail(Exit::Refused, refusal))?;
        all.push(fetched);
    }
    let together = Collateral::together(all).map_err(|error| ui::fail(Exit::Failed, error))?;
    files::write(&args.output, together.to_json().as_bytes())?;
    let shown: Vec<_> = together.dates().collect();
    out.json(&shown.iter().map(|dates| collateral_json(dates)).collect::<Vec<_>>());
    for dates in shown {
        out.note(format_args!("{}: {}", args.output.display(), collateral_line(dates)));
    }
    Ok(Exit::Done)
}

/// Intel's root, or the one in a file or folder.
pub(super) fn trust_root(text: &str) -> Result<TrustRoot, miette::Report> {
    let root = if text == "intel" {
        TrustRoot::intel()
    } else {
        TrustRoot::from_file(Path::new(text))
    };
    root.map_err(ui::unreadable)
}

fn families(args: &CollateralArgs) -> Result<Vec<PlatformFamily>, miette::Report> {
    let authority = if args.ca == "processor" {
        Authority::Processor
    } else {
        Authority::Platform
    };
    let mut families = Vec::new();
    for text in &args.fmspc {
        let fmspc = hex_argument("--fmspc", text)?;
        families.push(PlatformFamily { fmspc, authority });
    }
    for path in &args.quotes {
        let claimed = claimed_platform(&read(path)?).map_err(ui::unreadable)?;
        families.push(PlatformFamily::from(&claimed));
    }
    families.sort_unstable();
    families.dedup();
    if families.is_empty() {
        return Err(ui::failed(
            Exit::Usage,
            "no platform family: name a quote, or --fmspc",
            Some("`cloister quote collateral td.quote -o collateral.json`".into()),
        ));
    }
    Ok(families)
}
