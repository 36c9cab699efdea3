//! `cloister vault`.

/// Not there yet.
#[derive(clap::Args, Debug)]
pub struct VaultArgs {}

/// Runs the command.
pub fn run(_args: VaultArgs, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
