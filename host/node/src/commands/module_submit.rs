//! `cloister module submit | ls | fetch`.

/// Not there yet.
#[derive(clap::Subcommand, Debug)]
pub enum ContentCommand {
    /// Submit a module, a graph or weights to the aggregator.
    Submit {},
}

/// Runs the command.
pub fn run(_command: ContentCommand, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
