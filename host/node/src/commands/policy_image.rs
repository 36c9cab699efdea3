//! `cloister policy from-image`: out of a container image, what ties a policy to it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use cloister_attestation::encoding::hex;
use cloister_policy::anchor::{Anchor, AnchorError, Workload};
use flate2::{Compression, GzBuilder};
use serde_json::json;

use super::image_layout::{MAX_DOCUMENT_BYTES, read_image};
use crate::files;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// Annotation of a pod that hands initdata to Kata Containers.
const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// Names of what is written.
const AGENT_POLICY_FILE: &str = "agent-policy.rego";
const INITDATA_FILE: &str = "initdata.toml";
const ANNOTATION_FILE: &str = "annotation.txt";

/// Compute what a policy must hold for a container image: agent policy, initdata, and their hash, MRCONFIGID.
///
/// Reads an image in the OCI layout (a folder, as `podman save --format oci-dir` and `skopeo copy ... oci:DIR` write it, or an archive of
/// one, as `podman save --format oci-archive` and `skopeo copy ... oci-archive:FILE` do), checks its digests, and writes
/// agent-policy.rego, initdata.toml and annotation.txt. What goes into the policy is printed.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cloister policy from-image cloister-oci --repository registry.example.org/cloister --argument cloister --argument worker \\
    --argument --config --argument /cloister/node.toml --out-dir worker
  cloister policy from-image cloister-oci --repository registry.example.org/cloister --aa aa.toml --cdh cdh.toml --out-dir pod -o json")]
pub(super) struct FromImageArgs {
    /// The image in the OCI layout: a folder, or an archive (tar).
    layout: PathBuf,
    /// Where nodes pull it from, without tag and digest.
    #[arg(long, value_name = "REPOSITORY")]
    repository: String,
    /// A word of the command line (repeat); by default the image's own entry point and command.
    #[arg(long = "argument", value_name = "WORD", allow_hyphen_values = true)]
    arguments: Vec<String>,
    /// An environment variable that the pod sets beside the image's (repeat).
    #[arg(long = "environment", value_name = "NAME=VALUE")]
    environment: Vec<String>,
    /// Configuration of the guest's attestation agent; empty by default.
    #[arg(long, value_name = "FILE")]
    aa: Option<PathBuf>,
    /// Configuration of the guest's confidential data hub; empty by default.
    #[arg(long, value_name = "FILE")]
    cdh: Option<PathBuf>,
    /// The folder to write to.
    #[arg(long, value_name = "DIR")]
    out_dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &FromImageArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let read = args.aa.iter().chain(&args.cdh).map(PathBuf::as_path);
    for name in [AGENT_POLICY_FILE, INITDATA_FILE, ANNOTATION_FILE] {
        files::not_an_input(&args.out_dir.join(name), read.clone())?;
    }
    let (digest, execution) = read_image(&args.layout)?;
    let image = format!("{}@{digest}", args.repository);
    let own = execution.entrypoint.into_iter().chain(execution.cmd).flatten();
    let arguments = if args.arguments.is_empty() {
        own.collect()
    } else {
        args.arguments.clone()
    };
    let mut environment = execution.env.unwrap_or_default();
    environment.extend(args.environment.iter().cloned());
    let unsound = |error: AnchorError| ui::failed(Exit::Usage, error.to_string(), None);
    let workload = Workload::new(image, arguments, environment).map_err(unsound)?;
    let anchor = Anchor::new(workload, text(args.aa.as_deref())?, text(args.cdh.as_deref())?).map_err(unsound)?;
    let annotation = annotation(&anchor.initdata())
        .map_err(|error| ui::failed(Exit::Failed, format!("compressing the initdata: {error}"), None))?;
    std::fs::create_dir_all(&args.out_dir)
        .map_err(|error| ui::failed(Exit::Usage, format!("{}: {error}", args.out_dir.display()), None))?;
    let write = |name: &str, text: &str| files::write(&args.out_dir.join(name), text.as_bytes());
    write(AGENT_POLICY_FILE, &anchor.workload().agent_policy())?;
    write(INITDATA_FILE, &anchor.initdata())?;
    write(ANNOTATION_FILE, &annotation)?;
    if args.output.json() {
        out.json(&json!({
            "image": anchor.workload().image(),
            "arguments": anchor.workload().arguments(),
            "environment": anchor.workload().environment(),
            "mrconfigid": hex(&anchor.mrconfigid()),
            "annotation": { ANNOTATION: annotation },
            "policy": anchor.to_toml("attestation.anchor"),
        }));
    } else {
        out.data(anchor.to_toml("attestation.anchor").trim_end());
    }
    out.note(format!(
        "MRCONFIGID {}; the pod's annotation {ANNOTATION} is in {}",
        hex(&anchor.mrconfigid()),
        args.out_dir.join(ANNOTATION_FILE).display()
    ));
    Ok(Exit::Done)
}

/// Initdata as a pod's annotation has it: gzip, then base64. The same text gives the same annotation.
fn annotation(initdata: &str) -> std::io::Result<String> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(initdata.as_bytes())?;
    Ok(STANDARD.encode(gzip.finish()?))
}

fn text(path: Option<&Path>) -> Result<String, miette::Report> {
    let Some(path) = path else { return Ok(String::new()) };
    let bytes = files::read(path, MAX_DOCUMENT_BYTES)?;
    String::from_utf8(bytes).map_err(|_| ui::failed(Exit::Usage, format!("{} is not text", path.display()), None))
}
