//! `cloister graph run`.

/// Not there yet.
#[derive(clap::Args, Debug)]
pub struct GraphRunArgs {}

/// Runs the command.
pub fn run(_args: GraphRunArgs, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
