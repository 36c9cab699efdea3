//! `cloister`: federated training between parties that do not trust each other.
#![forbid(unsafe_code)]
#![allow(
    unreachable_pub,
    reason = "a binary exports nothing; `pub` says what a module offers to its neighbours"
)]

mod commands;
mod consistency;
mod demo;
mod derivation;
mod drafting;
mod engines;
mod events;
mod export;
mod files;
mod forms;
mod keeper;
mod manager;
mod process;
mod roles;
mod through;
mod ui;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use ui::{Exit, Ui};

/// Federated training between parties that do not trust each other, inside Intel TDX virtual machines.
#[derive(Parser, Debug)]
#[command(name = "cloister", version, about, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
#[allow(clippy::large_enum_variant, reason = "parsed once")]
enum Command {
    /// Run a whole federation on this machine: an aggregator and workers, each a simulated TD.
    Demo(demo::DemoArgs),
    Aggregator(roles::aggregator::AggregatorArgs),
    Worker(roles::worker::WorkerArgs),
    Manager(commands::manager::ManagerArgs),
    /// Make, show and run training graphs.
    Graph(commands::graph::GraphArgs),
    /// Keys and credentials of participants and nodes.
    Identity(commands::identity::IdentityArgs),
    /// Draft, check and sign the agreement of a federation.
    Policy(commands::policy::PolicyArgs),
    Module(commands::module::ModuleArgs),
    /// Commit to datasets and look at them.
    Data(commands::data::DataArgs),
    /// Make, show and verify TDX quotes.
    Quote(commands::quote::QuoteArgs),
    /// Attest a node from outside and print who answers.
    Peer(commands::peer::PeerArgs),
    /// Look into a sealed vault.
    Vault(commands::vault::VaultArgs),
    Audit(commands::audit::AuditArgs),
    Seal(commands::seal::SealArgs),
    Unseal(commands::seal::UnsealArgs),
    /// Print shell completions.
    #[command(
        after_help = "Example:\n  cloister completions bash > ~/.local/share/bash-completion/completions/cloister"
    )]
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// A keeper's runner; not for people.
    #[command(hide = true)]
    Runner,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Runner = cli.command {
        return cloister_runner::runner_main();
    }
    process::start_log("info,openraft=error");
    let mut out = Ui::default();
    let result = match cli.command {
        Command::Demo(args) => demo::run(args, &mut out),
        Command::Aggregator(args) => roles::aggregator::run(args, &mut out),
        Command::Worker(args) => roles::worker::run(args, &mut out),
        Command::Manager(args) => commands::manager::run(args, &mut out),
        Command::Graph(args) => commands::graph::run(args, &mut out),
        Command::Identity(args) => commands::identity::run(args, &mut out),
        Command::Policy(args) => commands::policy::run(args, &mut out),
        Command::Module(args) => commands::module::run(args, &mut out),
        Command::Data(args) => commands::data::run(args, &mut out),
        Command::Quote(args) => commands::quote::run(args, &mut out),
        Command::Peer(args) => commands::peer::run(args, &mut out),
        Command::Vault(args) => commands::vault::run(args, &mut out),
        Command::Audit(args) => commands::audit::run(&args, &mut out),
        Command::Seal(args) => commands::seal::seal(&args, &mut out),
        Command::Unseal(args) => commands::seal::unseal(&args, &mut out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "cloister", &mut script);
            out.bytes(&script);
            Ok(Exit::Done)
        }
        Command::Runner => Ok(Exit::Failed), // ran above, before the log was started
    };
    let told = |report: miette::Report| {
        let exit = report
            .downcast_ref::<ui::Failure>()
            .map_or(Exit::Failed, |failure| failure.exit);
        Ui::default().note(format!("{report:?}"));
        exit
    };
    // A failure's own code says more than that its data were lost besides.
    let exit = result.unwrap_or_else(told);
    let exit = match out.finish().map_err(told) {
        Err(lost) if exit == Exit::Done => lost,
        _ => exit,
    };
    ExitCode::from(exit.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_fits_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_readme_parses() {
        let pem = "--policy p.toml --participant a --participant-key a.key";
        for line in [
            "peer 127.0.0.1:1 --policy p.toml".to_owned(),
            format!("module submit m.wasm --to 127.0.0.1:1 {pem}"),
            format!("module ls --to 127.0.0.1:1 {pem} -o json"),
            format!("module fetch {} --to 127.0.0.1:1 {pem} -o m.wasm", "00".repeat(32)),
            "data commit d.csv --name train --input x=a --format csv -o json".to_owned(),
            "data show d --format parquet".to_owned(),
            "manager --config manager.toml -o json".to_owned(),
            format!("manager secrets put one --from f --to 127.0.0.1:1 {pem}"),
            format!("manager secrets ls --to 127.0.0.1:1 {pem} -o json"),
            format!("manager recover --to 127.0.0.1:1 {pem}"),
            "manager status --to 127.0.0.1:1 --policy p.toml".to_owned(),
            "vault export v --key-file k --to d".to_owned(),
            "vault export --config a.toml --to north --recipient north.recipient --out m.export".to_owned(),
            "vault export --config a.toml --to 127.0.0.1:1 -o json".to_owned(),
            "vault receive --config t.toml --out d".to_owned(),
            "unseal m.export --policy p.toml --participant a --participant-key a.key --out d".to_owned(),
            "policy publish p.toml --to 127.0.0.1:1 --policy p.toml".to_owned(),
        ] {
            if let Err(error) = Cli::try_parse_from(["cloister"].into_iter().chain(line.split(' '))) {
                panic!("{line}: {error}");
            }
        }
    }
}
