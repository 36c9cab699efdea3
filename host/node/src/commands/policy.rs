//! `cloister policy`.

/// Not there yet.
#[derive(clap::Args, Debug)]
pub struct PolicyArgs {}

/// Runs the command.
pub fn run(_args: PolicyArgs, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
