//! `cloister peer`.

/// Not there yet.
#[derive(clap::Args, Debug)]
pub struct PeerArgs {}

/// Runs the command.
pub fn run(_args: PeerArgs, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
