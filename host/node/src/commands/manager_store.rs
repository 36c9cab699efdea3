//! `cloister manager backup | restore`: copies of a manager's sealed state, and putting one in its place.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use cloister_manager::Locked;
use serde_json::json;

use super::manager::{AsParticipant, failed_call};
use super::peer::block_on;
use crate::files;
use crate::keeper::config::NodeConfig;
use crate::ui::{self, Exit, OutputArgs, Ui};

/// Fetch a copy of the manager's sealed state.
///
/// The copy is sealed as the state is: nobody reads it without the participants' recovery shares. A manager starts on it only where
/// neither nodes nor kept marks have seen a newer state, so it serves where the disk is lost, not to go back.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  cloister manager backup --to manager.example.org:7800 --policy wards.toml --out wards.backup \\
      --participant north --participant-key keys/north.key")]
pub(super) struct BackupArgs {
    #[command(flatten)]
    whom: AsParticipant,
    /// Where to write the copy: a new file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Put a copy of the state in the place of one that is lost.
///
/// The manager of that node file must not run, and have no state: move a damaged one away first. Then start the manager: it waits for
/// recovery shares, and for nodes that confirm that they have seen nothing newer.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  cloister manager restore wards.backup --config manager.toml")]
pub(super) struct RestoreArgs {
    /// The copy, as `cloister manager backup` wrote it.
    backup: PathBuf,
    /// The manager's node file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

fn failed_io(path: &Path, cause: &std::io::Error) -> miette::Report {
    ui::failed(
        Exit::Failed,
        format!("{}: {cause}", path.display()),
        files::help(cause.kind()),
    )
}

/// Runs `cloister manager backup`.
pub(super) fn backup(args: &BackupArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let io = |cause: std::io::Error| failed_io(&args.out, &cause);
    if args.out.exists() {
        let text = format!(
            "{} is there already; a backup never takes another one's place",
            args.out.display()
        );
        return Err(ui::failed(Exit::Usage, text, None));
    }
    let folder = match args.out.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    let local = args.whom.local()?;
    let bytes = block_on(async {
        let mut client = args.whom.client(&local).await?;
        client.backup(file.as_file_mut()).await.map_err(failed_call)
    })?;
    file.as_file_mut()
        .flush()
        .and_then(|()| file.as_file().sync_all())
        .map_err(io)?;
    file.persist_noclobber(&args.out).map_err(|error| io(error.error))?;
    if args.output.json() {
        out.json(&json!({ "backup": args.out, "bytes": bytes }));
    } else {
        out.data(format_args!("{bytes} bytes in {}", args.out.display()));
    }
    Ok(Exit::Done)
}

/// Runs `cloister manager restore`.
pub(super) fn restore(args: &RestoreArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let config = NodeConfig::load(&args.config).map_err(ui::unreadable)?;
    let store = config.store.as_ref().ok_or_else(|| {
        let text = format!("{} is no manager's node file: it has no [store]", args.config.display());
        ui::failed(Exit::Usage, text, None)
    })?;
    let state = store.path.join("state.redb");
    if state.exists() {
        return Err(ui::failed(
            Exit::Denied,
            format!(
                "{} is there: a backup is older than it, and would forget what came since",
                state.display()
            ),
            Some("only where that file is damaged, move it away first, and keep it".into()),
        ));
    }
    std::fs::create_dir_all(&store.path).map_err(|cause| failed_io(&store.path, &cause))?;
    // Opened before it is in its place, and as a copy: opening writes.
    let mut copy = tempfile::NamedTempFile::new_in(&store.path).map_err(|cause| failed_io(&store.path, &cause))?;
    let mut from = File::open(&args.backup).map_err(|cause| {
        ui::failed(
            Exit::Usage,
            format!("{}: {cause}", args.backup.display()),
            files::help(cause.kind()),
        )
    })?;
    std::io::copy(&mut from, copy.as_file_mut()).map_err(|cause| failed_io(&state, &cause))?;
    let opened = Locked::open(copy.path()).map_err(|error| {
        ui::failed(
            Exit::Usage,
            format!("{} is no backup of a manager: {error}", args.backup.display()),
            None,
        )
    })?;
    let (federation, shares) = (opened.federation().to_owned(), opened.threshold());
    drop(opened);
    copy.as_file().sync_all().map_err(|cause| failed_io(&state, &cause))?;
    copy.persist_noclobber(&state)
        .map_err(|error| failed_io(&state, &error.error))?;
    if args.output.json() {
        out.json(&json!({ "state": state, "federation": federation, "shares_wanted": shares }));
    } else {
        out.data(format_args!(
            "{} holds the state of {federation}; start the manager: it waits for {shares} recovery shares, and for nodes or kept marks \
             that confirm that nothing newer was seen",
            state.display()
        ));
    }
    Ok(Exit::Done)
}
