//! `cloister module`: look at a module, submit it to a federation, list and fetch what was submitted.

use crate::ui::{Exit, Ui};

use super::{module_inspect, module_submit};

/// Look at WebAssembly modules and submit them, graphs and weights to a federation.
#[derive(clap::Args, Debug)]
pub struct ModuleArgs {
    #[command(subcommand)]
    command: ModuleCommand,
}

#[derive(clap::Subcommand, Debug)]
enum ModuleCommand {
    /// Print a module's digest, world, imports, exports, settings, size and policy line.
    Inspect(module_inspect::ModuleInspectArgs),
    #[command(flatten)]
    Content(module_submit::ContentCommand),
}

/// Runs the command.
pub fn run(args: ModuleArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match args.command {
        ModuleCommand::Inspect(args) => module_inspect::run(args, out),
        ModuleCommand::Content(command) => module_submit::run(command, out),
    }
}
