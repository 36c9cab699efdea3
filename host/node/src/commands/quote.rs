//! `cloister quote`.

/// Not there yet.
#[derive(clap::Args, Debug)]
pub struct QuoteArgs {}

/// Runs the command.
pub fn run(_args: QuoteArgs, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
