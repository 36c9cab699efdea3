//! `cloister identity`.

/// Not there yet.
#[derive(clap::Args, Debug)]
pub struct IdentityArgs {}

/// Runs the command.
pub fn run(_args: IdentityArgs, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
