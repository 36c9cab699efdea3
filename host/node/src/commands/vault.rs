//! `cloister vault`: make a vault, look into it, put files in and take them out.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use cloister_vault::{
    Access, Cipher, CommitCounter, FileName, Freshness, LastSeenFile, READ_AHEAD_BYTES, SealedReader, Vault,
    VaultError, VaultKey,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::vault_export::{self, ExportArgs, ReceiveArgs};
use crate::files;
use crate::ui::{Exit, OutputArgs, Ui, fail, failed, unreadable};

/// Sealed storage: encrypted files whose versions can't be mixed, and that can't go back unseen.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  cloister vault keygen vault.key
  cloister vault init vault --key-file vault.key --last-seen vault.last-seen
  cloister vault put vault model.safetensors --from ./model.safetensors --key-file vault.key --last-seen vault.last-seen
  cloister vault ls vault --key-file vault.key --last-seen vault.last-seen
  cloister vault export vault --to ./opened --key-file vault.key --last-seen vault.last-seen
  cloister vault export --config aggregator.toml --to institute --recipient institute.recipient --out model.export")]
pub struct VaultArgs {
    #[command(subcommand)]
    command: VaultCommand,
}

#[derive(clap::Subcommand, Debug)]
#[allow(clippy::large_enum_variant, reason = "parsed once")]
enum VaultCommand {
    /// Make a new random vault key in a file that only its owner can read.
    #[command(after_help = "Example:\n  cloister vault keygen vault.key")]
    Keygen {
        /// The new key file.
        path: PathBuf,
    },
    /// Make a new, empty vault.
    #[command(after_help = "Example:\n  cloister vault init vault --key-file vault.key --last-seen vault.last-seen")]
    Init {
        #[command(flatten)]
        place: Place,
    },
    /// List the files, their versions and sizes.
    #[command(
        after_help = "Example:\n  cloister vault ls vault --key-file vault.key --last-seen vault.last-seen -o json"
    )]
    Ls {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Seal a file into the vault.
    #[command(
        after_help = "Example:\n  cloister vault put vault model.safetensors --from ./model.safetensors --key-file vault.key --last-seen vault.last-seen"
    )]
    Put {
        #[command(flatten)]
        place: Place,
        /// Its name in the vault.
        name: FileName,
        /// The file to seal; `-` for standard input.
        #[arg(long)]
        from: PathBuf,
    },
    /// Open one file of the vault.
    #[command(
        after_help = "Example:\n  cloister vault get vault model.safetensors -o ./model.safetensors --key-file vault.key --last-seen vault.last-seen"
    )]
    Get {
        #[command(flatten)]
        place: Place,
        /// Its name in the vault.
        name: FileName,
        /// Where to write it; by default standard output.
        #[arg(short = 'o', long)]
        output: Option<PathBuf>,
    },
    /// Read and authenticate every file, with a second implementation of the cipher.
    #[command(after_help = "Example:\n  cloister vault verify vault --key-file vault.key --last-seen vault.last-seen")]
    Verify {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        output: OutputArgs,
    },
    Export(ExportArgs),
    Receive(ReceiveArgs),
}

#[derive(clap::Args, Debug)]
pub(super) struct Place {
    /// The vault's folder.
    pub(super) vault: PathBuf,
    /// The file with the vault key.
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: PathBuf,
    /// The record against rollback, outside the vault. Without it freshness is not proven.
    #[arg(long, value_name = "FILE")]
    pub(super) last_seen: Option<PathBuf>,
}

#[derive(Serialize)]
struct Listing {
    version: u64,
    freshness: &'static str,
    files: Vec<Listed>,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    version: u64,
    bytes: u64,
}

/// Runs the command.
pub fn run(args: VaultArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match args.command {
        VaultCommand::Keygen { path } => {
            VaultKey::generate()
                .and_then(|key| key.save(&path))
                .map_err(|error| fail(exit_of(&error), error))?;
            out.note(format!(
                "a new vault key is in {}: who loses it loses the vault",
                path.display()
            ));
        }
        VaultCommand::Init { place } => {
            let key = VaultKey::load(&place.key_file).map_err(unreadable)?;
            let vault = Vault::create(&place.vault, key, place.counter()).map_err(|error| fail(Exit::Failed, error))?;
            say_freshness(&vault, out);
        }
        VaultCommand::Ls { place, output } => {
            let vault = place.open(Access::Read)?;
            list(&vault, output.json(), out);
        }
        VaultCommand::Put { place, name, from } => {
            let mut vault = place.open(Access::Write)?;
            let (mut source, bytes): (Box<dyn Read>, u64) = if from == Path::new("-") {
                (Box::new(std::io::stdin().lock()), 0)
            } else {
                let shown = from.display();
                let file = File::open(&from)
                    .map_err(|cause| failed(Exit::Usage, format!("{shown}: {cause}"), files::help(cause.kind())))?;
                let bytes = file.metadata().map_or(0, |found| found.len());
                (Box::new(file), bytes)
            };
            let bar = bar(bytes, "sealing");
            let entry = vault
                .put(
                    &name,
                    &mut bar.wrap_read(BufReader::with_capacity(READ_AHEAD_BYTES, &mut source)),
                )
                .map_err(|error| fail(Exit::Failed, error))?;
            bar.finish_and_clear();
            out.note(format!(
                "sealed {name}, version {}, {} bytes",
                entry.version, entry.bytes
            ));
            say_freshness(&vault, out);
        }
        VaultCommand::Get { place, name, output } => {
            let vault = place.open(Access::Read)?;
            say_freshness(&vault, out);
            let reader = vault
                .get(&name, Cipher::Bulk)
                .map_err(|error| fail(exit_of(&error), error))?;
            match output {
                Some(path) => write_out(reader, &path)?,
                None => copy_out(reader, &mut std::io::stdout().lock(), "standard output")?,
            }
        }
        VaultCommand::Verify { place, output } => {
            let vault = place.open(Access::Read)?;
            let bar = bar(vault.index().files.values().map(|entry| entry.bytes).sum(), "verifying");
            let mut before = 0;
            vault
                .verify(&mut |_, done, all| {
                    bar.set_position(before + done);
                    if done == all {
                        before += all;
                    }
                })
                .map_err(|error| fail(Exit::Failed, error))?;
            bar.finish_and_clear();
            out.note("every file is what was sealed");
            list(&vault, output.json(), out);
        }
        VaultCommand::Export(args) => return vault_export::export(&args, out),
        VaultCommand::Receive(args) => return vault_export::receive(&args, out),
    }
    Ok(Exit::Done)
}

impl Place {
    fn counter(&self) -> Option<Box<dyn CommitCounter>> {
        self.last_seen
            .as_ref()
            .map(|path| Box::new(LastSeenFile::new(path)) as Box<dyn CommitCounter>)
    }

    pub(super) fn open(&self, access: Access) -> Result<Vault, miette::Report> {
        let key = VaultKey::load(&self.key_file).map_err(unreadable)?;
        Vault::open(&self.vault, key, self.counter(), access).map_err(|error| fail(exit_of(&error), error))
    }
}

pub(super) fn exit_of(error: &VaultError) -> Exit {
    match error {
        VaultError::NoVault(_)
        | VaultError::NoFile { .. }
        | VaultError::BadName { .. }
        | VaultError::KeyFile { .. } => Exit::Usage,
        _ => Exit::Failed,
    }
}

fn list(vault: &Vault, json: bool, out: &mut Ui) {
    let proven = vault.freshness() == Freshness::Proven;
    let files = vault.index().files.iter();
    if json {
        let files = files
            .map(|(name, entry)| Listed {
                name: name.to_string(),
                version: entry.version,
                bytes: entry.bytes,
            })
            .collect();
        let freshness = if proven { "proven" } else { "not proven" };
        out.json(&Listing {
            version: vault.index().version,
            freshness,
            files,
        });
        return;
    }
    for (name, entry) in files {
        out.data(format!("{:>14}  v{:<6} {name}", entry.bytes, entry.version));
    }
    say_freshness(vault, out);
}

pub(super) fn say_freshness(vault: &Vault, out: &mut Ui) {
    out.note(match vault.freshness() {
        Freshness::Proven => format!(
            "vault version {}: fresh (not older than its record)",
            vault.index().version
        ),
        Freshness::NotProven => format!(
            "vault version {}: freshness not proven: no earlier record of it outside the vault (--last-seen)",
            vault.index().version
        ),
    });
}

/// Writes beside `path` and renames: nobody ever finds half a file under that name, and nothing is overwritten. A device or a pipe gets
/// the bytes as they come.
pub(super) fn write_out(reader: SealedReader, path: &Path) -> Result<(), miette::Report> {
    let shown = path.display().to_string();
    let unwritable = |cause: std::io::Error| files::unwritable(path, &cause);
    let takes_bytes = std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
    if takes_bytes {
        let mut target = OpenOptions::new().write(true).open(path).map_err(unwritable)?;
        return copy_out(reader, &mut target, &shown);
    }
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut fresh = tempfile::NamedTempFile::new_in(folder).map_err(|error| unwritable(files::plain(&error)))?;
    copy_out(reader, fresh.as_file_mut(), &shown)?;
    fresh.as_file().sync_all().map_err(unwritable)?;
    fresh.persist_noclobber(path).map_err(|error| unwritable(error.error))?;
    Ok(())
}

fn copy_out(mut reader: SealedReader, to: &mut dyn Write, shown: &str) -> Result<(), miette::Report> {
    let unwritable =
        |cause: std::io::Error| failed(Exit::Failed, format!("{shown}: {cause}"), files::help(cause.kind()));
    let bar = bar(reader.len(), "opening");
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = reader.read(&mut buffer).map_err(|error| fail(Exit::Failed, error))?;
        if count == 0 {
            to.flush().map_err(unwritable)?;
            bar.finish_and_clear();
            return Ok(());
        }
        to.write_all(&buffer[..count]).map_err(unwritable)?;
        bar.inc(count as u64);
    }
}

pub(super) fn bar(bytes: u64, what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}");
    let bar = if bytes == 0 {
        ProgressBar::no_length()
    } else {
        ProgressBar::new(bytes)
    };
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        .with_message(what)
}
