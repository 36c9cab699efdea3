//! `cloister data`.

/// Not there yet.
#[derive(clap::Args, Debug)]
pub struct DataArgs {}

/// Runs the command.
pub fn run(_args: DataArgs, _out: &mut crate::ui::Ui) -> Result<crate::ui::Exit, miette::Report> {
    Ok(crate::ui::Exit::Failed)
}
