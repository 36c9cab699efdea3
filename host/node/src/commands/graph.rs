//! `cloister graph`.

/// Not there yet.
#[derive(clap::Args, Debug)]
pub struct GraphArgs {}

/// Runs the command.
pub fn run(_args: GraphArgs, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
