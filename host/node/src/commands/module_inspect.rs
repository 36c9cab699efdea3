//! `cloister module inspect`.

/// Not there yet.
#[derive(clap::Args, Debug)]
pub struct ModuleInspectArgs {}

/// Runs the command.
pub fn run(_args: ModuleInspectArgs, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
