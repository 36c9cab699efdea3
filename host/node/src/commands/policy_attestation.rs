//! Which TDs a drafted policy lets in, and what ties the host in them to hardware.

use std::path::{Path, PathBuf};

use clap::Args;
use cloister_attestation::TrustRoot;
use cloister_attestation::encoding::from_hex;
use cloister_policy::agreement::{AttestationRules, HostFile, Rtmr3};
use cloister_policy::anchor::{Anchor, MAX_INITDATA_BYTES};

use super::policy_draft::{split, wrong};
use crate::files::{self, digest_of};
use crate::ui::{self, Exit};

/// What a form of `--anchor` is.
const ANCHOR: &str = "rtmr2=HEX (a verity root file system), with initdata=FILE besides (Confidential Containers)";

/// The section `[attestation]`.
#[derive(Args, Debug)]
pub(super) struct AttestationArgs {
    /// A simulated root: its certificate, or the folder of `cloister quote authority`. Without it: Intel's.
    #[arg(long, value_name = "PATH")]
    root: Option<PathBuf>,
    /// An accepted value of mrtd, rtmr0, rtmr1, rtmr2, mrseam, mrconfigid, mrowner or mrownerconfig (repeat).
    #[arg(long = "accept", value_name = "REGISTER=HEX")]
    pub(super) accept: Vec<String>,
    /// What RTMR3 has to hold: zero, log (an event log explains it: nodes extend what they run before it runs) or any.
    #[arg(long, value_name = "RULE", default_value = "zero")]
    rtmr3: Rtmr3,
    /// What ties the host to hardware, which a policy under Intel's root has to name: `rtmr2=HEX`, which a verity root file system and
    /// the kernel's command line are measured into, and for a pod `initdata=FILE` besides, as `policy from-image` writes it (repeat).
    #[arg(long = "anchor", value_name = "KIND=VALUE")]
    pub(super) anchors: Vec<String>,
    /// A file that hosts may run; `cloister` is the binary (repeat).
    #[arg(long = "host", value_name = "NAME=FILE")]
    pub(super) hosts: Vec<String>,
}

impl AttestationArgs {
    /// The files that are read for it.
    pub(super) fn inputs(&self) -> Vec<PathBuf> {
        let anchors = self
            .anchors
            .iter()
            .filter_map(|anchor| anchor.strip_prefix("initdata="));
        let hosts = self.hosts.iter().filter_map(|host| Some(host.split_once('=')?.1));
        let root = self.root.as_deref().map(files::of_authority).unwrap_or_default();
        root.into_iter()
            .chain(anchors.chain(hosts).map(PathBuf::from))
            .collect()
    }

    /// The rules.
    pub(super) fn rules(&self) -> Result<AttestationRules, miette::Report> {
        let root = match &self.root {
            Some(path) => TrustRoot::from_file(path),
            None => TrustRoot::intel(),
        };
        let root = root.map_err(ui::unreadable)?;
        let mut rules = AttestationRules::with_root(root.simulated(), *root.key_id());
        rules.rtmr3 = self.rtmr3.clone();
        for accept in &self.accept {
            let (register, value) = split(accept, "=", accept, "REGISTER=HEX")?;
            let list = match register {
                "mrtd" => &mut rules.mrtd,
                "rtmr0" => &mut rules.rtmr0,
                "rtmr1" => &mut rules.rtmr1,
                "rtmr2" => &mut rules.rtmr2,
                "mrseam" => &mut rules.mrseam,
                "mrconfigid" => &mut rules.mrconfigid,
                "mrowner" => &mut rules.mrowner,
                "mrownerconfig" => &mut rules.mrownerconfig,
                _ => {
                    return Err(wrong(
                        accept,
                        "mrtd, rtmr0 to rtmr2, mrseam, mrconfigid, mrowner or mrownerconfig, = and 96 hexadecimal digits",
                    ));
                }
            };
            list.push(from_hex(value).ok_or_else(|| wrong(accept, "REGISTER= and 96 hexadecimal digits"))?);
        }
        for text in &self.anchors {
            match split(text, "=", text, ANCHOR)? {
                ("initdata", path) => {
                    let anchor = read_anchor(Path::new(path))?;
                    let hash = anchor.mrconfigid();
                    if !rules.mrconfigid.contains(&hash) {
                        rules.mrconfigid.push(hash);
                    }
                    rules.anchors.push(anchor);
                }
                ("rtmr2", value) => {
                    let value = from_hex(value).ok_or_else(|| wrong(text, "rtmr2= and 96 hexadecimal digits"))?;
                    if !rules.rtmr2.contains(&value) {
                        rules.rtmr2.push(value);
                    }
                }
                _ => return Err(wrong(text, ANCHOR)),
            }
        }
        if !rules.simulated && rules.rtmr2.is_empty() {
            return Err(ui::failed(
                Exit::Usage,
                "under Intel's root a policy has to say what ties the host to hardware, else a genuine TD may run any program: by its \
                 command line the kernel boots another root file system, whatever the initdata says",
                Some(format!(
                    "give --anchor {ANCHOR}; `cloister policy from-quote` prints the RTMR2 of a TD that runs; for a trial, --root with a \
                     simulated authority"
                )),
            ));
        }
        for host in &self.hosts {
            let (name, path) = split(host, "=", host, "NAME=FILE")?;
            rules.hosts.push(HostFile {
                name: name.to_owned(),
                sha256: digest_of(Path::new(path))?,
            });
        }
        Ok(rules)
    }
}

/// Initdata of a pod, if it ties the host in it to hardware.
pub(super) fn read_anchor(path: &Path) -> Result<Anchor, miette::Report> {
    let bytes = files::read(path, MAX_INITDATA_BYTES as u64)?;
    let anchor = std::str::from_utf8(&bytes)
        .map_err(|_| "it is not text".to_owned())
        .and_then(|text| Anchor::parse(text).map_err(|error| error.to_string()));
    anchor.map_err(|cause| ui::failed(Exit::Usage, format!("{}: {cause}", path.display()), None))
}
