//! `cloister policy draft`: a policy from modules, graphs and data at hand, every digest filled in, every default shown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use clap::builder::PossibleValuesParser;
use cloister_attestation::identity::Role;
use cloister_policy::agreement::{
    Agreement, Compute, Consent, Dataset, Limits, Model, Module, Node, Participant, Release, RoundMode, Rounds,
    ScalarRange,
};
use cloister_policy::{ModuleRole, Policy, Scalar, TensorAccess, draft, warnings};

use super::identity::public_key;
use super::policy::{MAX_FILE_BYTES, read_policy};
use super::policy_attestation::AttestationArgs;
use super::policy_draft_fault::unsound;
use super::policy_graphs::GraphsArgs;
use crate::consistency::{self, AtHand};
use crate::drafting::Parties;
use crate::files::{self, digest_of};
use crate::ui::{self, Exit, Ui};

const EXAMPLE: &str =
    "Examples: two workers and an aggregator under a simulated root; graphs and weights made from a model
  cloister policy draft --name digits --root authority \\
    --participant alpha=alpha.pub --participant beta=beta.pub \\
    --node hub:aggregator:alpha --node worker-a:worker:alpha --node worker-b:worker:beta \\
    --model digits-mlp --onnx mlp.onnx --optimizer momentum --batch 32 --graphs-out submissions \\
    --module train-sgd:trainer=train_sgd.wasm --module fedavg:aggregator=aggregate_fedavg.wasm \\
    --setting train-sgd.learning_rate=0.1 --scalar train-sgd.learning_rate=0..1 \\
    --scalar train-sgd.step=1..1e9 --reads train-sgd.loss \\
    --dataset worker-a.toml --dataset worker-b.toml --dataset test.toml \\
    --rounds 20 --min-workers 2 --recipient alpha -o digits.toml
By steps of an optimizer on the aggregator, in place of averaging (graphs give gradients then: --optimizer none):
    --mode synchronous, or --mode asynchronous --max-staleness 16; --checkpoint-every 50 --evaluate-every 50
With graphs and weights at hand, instead of --onnx and what belongs to it:
    --weights initial.safetensors --graph train:32=train.onnx --graph train@23:23=train23.onnx \\
    --graph evaluate:32=evaluate.onnx

Under Intel's root, instead of --root (initdata as `cloister policy from-image` wrote it; TDs that are no pods go without):
    --accept mrtd=HEX --accept rtmr0=HEX --accept rtmr1=HEX --accept mrseam=HEX \\
    --anchor rtmr2=HEX --anchor initdata=worker/initdata.toml \\
    --host cloister=target/release/cloister

A dataset's file says what a [[dataset]] of a policy says: name, node, commitment, rows, inputs.";

/// Write a policy from what is at hand: every digest filled in, every default shown.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLE)]
pub(super) struct DraftArgs {
    /// The federation's name.
    #[arg(long)]
    pub(super) name: String,
    /// The policy that this one follows; the version counts up from it.
    #[arg(long, value_name = "FILE")]
    predecessor: Option<PathBuf>,
    /// Participants who have to sign it, and its successor; more than half. By default all.
    #[arg(long, value_name = "COUNT")]
    threshold: Option<u32>,
    /// No successor may follow it.
    #[arg(long)]
    immutable: bool,
    /// Participants who together open a manager's state when it starts again, at least 2. By default as many as sign.
    #[arg(long, value_name = "COUNT")]
    recovery_shares: Option<u32>,
    /// A participant and its public key, or the file that has it (repeat).
    #[arg(long = "participant", value_name = "NAME=KEY", required = true)]
    pub(super) participants: Vec<String>,
    /// A node, its role and whose it is (repeat).
    #[arg(long = "node", value_name = "NAME:ROLE:PARTICIPANT", required = true)]
    pub(super) nodes: Vec<String>,
    /// The model's name.
    #[arg(long)]
    pub(super) model: String,
    #[command(flatten)]
    pub(super) graphs: GraphsArgs,
    /// A module, its role (trainer, transform, aggregator, predictor) and its file (repeat).
    #[arg(long = "module", value_name = "NAME:ROLE=FILE", required = true)]
    pub(super) modules: Vec<String>,
    /// A setting of a module (repeat).
    #[arg(long = "setting", value_name = "MODULE.KEY=VALUE")]
    pub(super) settings: Vec<String>,
    /// A scalar input of graphs that a module may set, and its range (repeat).
    #[arg(long = "scalar", value_name = "MODULE.NAME=MIN..MAX")]
    pub(super) scalars: Vec<String>,
    /// A scalar output of graphs that a module may read (repeat).
    #[arg(long = "reads", value_name = "MODULE.NAME")]
    pub(super) reads: Vec<String>,
    /// What a module may do with values in tensors: handles, read, write, read-write (repeat).
    #[arg(long = "tensor-access", value_name = "MODULE=GRANT")]
    pub(super) tensor_access: Vec<String>,
    /// A file that says what a [[dataset]] says (repeat).
    #[arg(long = "dataset", value_name = "FILE", required = true)]
    pub(super) datasets: Vec<PathBuf>,
    /// Rounds of training.
    #[arg(long, default_value_t = 10)]
    pub(super) rounds: u32,
    /// Fewest workers in a round; by default all.
    #[arg(long)]
    pub(super) quorum: Option<u32>,
    /// How long a round waits for a worker, in seconds.
    #[arg(long, default_value_t = 60)]
    pub(super) deadline_s: u64,
    /// Fewest workers in an aggregate; with two, each can subtract its own part. By default 3, and 1 in the mode asynchronous, where each
    /// update is applied alone.
    #[arg(long)]
    min_workers: Option<u32>,
    /// How updates come together: averaging of models, or steps by gradients, of all workers at a time (synchronous) or of each alone
    /// (asynchronous).
    #[arg(long, default_value = RoundMode::Averaging.as_str(), value_parser = PossibleValuesParser::new(RoundMode::ALL.map(RoundMode::as_str)))]
    mode: String,
    /// Rounds from one whose model is sealed to the next.
    #[arg(long, value_name = "ROUNDS", default_value_t = Rounds::EVERY)]
    pub(super) checkpoint_every: u32,
    /// Rounds from one evaluation to the next.
    #[arg(long, value_name = "ROUNDS", default_value_t = Rounds::EVERY)]
    pub(super) evaluate_every: u32,
    /// In the mode asynchronous: an update that is more steps behind is left out.
    #[arg(long, value_name = "STEPS")]
    pub(super) max_staleness: Option<u32>,
    /// What seeds are derived from.
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    #[command(flatten)]
    pub(super) attestation: AttestationArgs,
    /// A participant that gets the final model (repeat).
    #[arg(long = "recipient", value_name = "NAME")]
    pub(super) recipients: Vec<String>,
    /// Where to write the policy; standard output if left out.
    #[arg(short = 'o', long = "output", value_name = "PATH")]
    output: Option<PathBuf>,
    /// Write over a policy that was signed: its signatures are of no use then.
    #[arg(long)]
    force: bool,
}

impl DraftArgs {
    pub(super) fn mode(&self) -> RoundMode {
        let named = |mode: &RoundMode| mode.as_str() == self.mode;
        RoundMode::ALL.into_iter().find(named).unwrap_or_default()
    }

    pub(super) fn min_workers(&self) -> u32 {
        self.min_workers.unwrap_or(match self.mode() {
            RoundMode::Asynchronous => 1,
            RoundMode::Averaging | RoundMode::Synchronous => 3,
        })
    }
}

/// Runs the command.
pub(super) fn run(args: &DraftArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    if let Some(output) = &args.output {
        may_write(output, args)?;
    }
    let agreement = agreement(args, out)?;
    let text = draft(&agreement).map_err(|error| unsound(args, &agreement, &error))?;
    let policy = Policy::parse(text.as_bytes(), "the draft").map_err(ui::unreadable)?;
    for warning in warnings(&policy) {
        out.note(format_args!("WARNING: {warning}."));
    }
    match &args.output {
        None => out.data(text.trim_end()),
        Some(path) => {
            files::write(path, text.as_bytes())?;
            out.note(format_args!(
                "{} (SHA-256 {}): read it, then sign it with `cloister policy sign`",
                path.display(),
                policy.digest()
            ));
        }
    }
    Ok(Exit::Done)
}

/// Refuses to write over what was signed, and over what the draft is made of.
fn may_write(output: &Path, args: &DraftArgs) -> Result<(), miette::Report> {
    let signatures = super::policy::signatures_path(output);
    if !args.force && output.exists() && signatures.exists() {
        return Err(ui::failed(
            Exit::Usage,
            format!(
                "{} was signed ({}), and another draft would make its signatures worthless",
                output.display(),
                signatures.display()
            ),
            Some("choose another name for the draft, move both files away, or give --force".into()),
        ));
    }
    let named = args.modules.iter().chain(&args.participants);
    let named = named.filter_map(|text| Some(Path::new(text.split_once('=')?.1)));
    let attestation = args.attestation.inputs();
    let inputs = args.datasets.iter().chain(&attestation).chain(&args.predecessor);
    let inputs = inputs.map(PathBuf::as_path).chain(named).chain(args.graphs.inputs());
    files::not_an_input(output, inputs)
}

fn agreement(args: &DraftArgs, out: &mut Ui) -> Result<Agreement, miette::Report> {
    let mut modules = each(&args.modules, module)?;
    for setting in &args.settings {
        let (module, key, value) = of_module(setting, &mut modules)?;
        module.settings.insert(key.to_owned(), scalar(value));
    }
    for range in &args.scalars {
        let (module, key, value) = of_module(range, &mut modules)?;
        let (min, max) = split(value, "..", range, "MODULE.NAME=MIN..MAX")?;
        module.scalars.insert(
            key.to_owned(),
            ScalarRange {
                min: parse(min, range)?,
                max: parse(max, range)?,
            },
        );
    }
    for read in &args.reads {
        let with_value = format!("{read}=");
        let (module, key, _) = of_module(&with_value, &mut modules)?;
        module.reads.push(key.to_owned());
    }
    for grant in &args.tensor_access {
        let (name, value) = split(grant, "=", grant, "MODULE=GRANT")?;
        let access = TensorAccess::ALL.into_iter().find(|access| access.as_str() == value);
        find(name, grant, &mut modules)?.tensor_access =
            access.ok_or_else(|| wrong(grant, "MODULE=handles|read|write|read-write"))?;
    }
    args.graphs.settle(&mut modules)?;
    let participants = each(&args.participants, participant)?;
    let nodes = each(&args.nodes, node)?;
    let datasets = args
        .datasets
        .iter()
        .map(|path| dataset(path))
        .collect::<Result<Vec<_>, _>>()?;
    let attestation = args.attestation.rules()?;
    let parties = Parties {
        nodes: &nodes,
        modules: &modules,
        datasets: &datasets,
    };
    let (weights, graphs) = args.graphs.obtain(parties, out)?;
    let mut at_hand = AtHand::default();
    for text in &args.modules {
        if let Some((_, path)) = text.split_once('=') {
            at_hand.module(Path::new(path))?;
        }
    }
    for (_, path) in &graphs {
        at_hand.graph(path)?;
    }
    if let Some(path) = args.graphs.weights() {
        at_hand.weights(path)?;
    }
    let graphs = graphs.into_iter().map(|(graph, _)| graph).collect();
    let workers = nodes.iter().filter(|node| node.role == Role::Worker).count();
    let before = args.predecessor.as_deref().map(read_policy).transpose()?;
    let mode = args.mode();
    if args.max_staleness.is_some() && mode != RoundMode::Asynchronous {
        let text = format!(
            "--max-staleness has no meaning with --mode {}: no update is stale there",
            mode.as_str()
        );
        return Err(ui::failed(Exit::Usage, text, None));
    }
    let threshold = args
        .threshold
        .unwrap_or_else(|| Consent::of_all(participants.len()).threshold);
    let agreement = Agreement {
        name: args.name.clone(),
        version: before.as_ref().map_or(1, |before| before.version + 1),
        predecessor: before.map(|before| before.digest()),
        consent: Consent {
            threshold,
            immutable: args.immutable,
            recovery_shares: args.recovery_shares.unwrap_or(threshold),
        },
        participants,
        nodes,
        model: Model {
            name: args.model.clone(),
            weights,
        },
        modules,
        graphs,
        datasets,
        rounds: Rounds {
            mode,
            count: args.rounds,
            quorum: args.quorum.unwrap_or(u32::try_from(workers).unwrap_or(u32::MAX)),
            deadline_s: args.deadline_s,
            min_workers_per_aggregate: args.min_workers(),
            seed: args.seed,
            checkpoint_every: args.checkpoint_every,
            evaluate_every: args.evaluate_every,
            max_staleness: args.max_staleness.unwrap_or(Rounds::MAX_STALENESS),
        },
        compute: Compute::default(),
        limits: Limits::default(),
        attestation,
        release: Release {
            recipients: args.recipients.clone(),
            ..Release::default()
        },
    };
    consistency::refuse(&at_hand.problems(&agreement), Exit::Usage)?;
    Ok(agreement)
}

fn participant(text: &str) -> Result<Participant, miette::Report> {
    let (name, key) = split(text, "=", text, "NAME=KEY")?;
    Ok(Participant {
        name: name.to_owned(),
        public_key: public_key(key)?,
    })
}

fn node(text: &str) -> Result<Node, miette::Report> {
    let form = "NAME:ROLE:PARTICIPANT";
    let (name, rest) = split(text, ":", text, form)?;
    let (role, participant) = split(rest, ":", text, form)?;
    let role = role.parse().map_err(ui::unreadable)?;
    Ok(Node {
        name: name.to_owned(),
        role,
        participant: participant.to_owned(),
    })
}

fn module(text: &str) -> Result<Module, miette::Report> {
    let form = "NAME:ROLE=FILE with the role trainer, transform, aggregator or predictor";
    let (head, path) = split(text, "=", text, form)?;
    let (name, role) = split(head, ":", text, form)?;
    let role = ModuleRole::ALL
        .into_iter()
        .find(|known| known.as_str() == role)
        .ok_or_else(|| wrong(text, form))?;
    Ok(Module {
        name: name.to_owned(),
        role,
        sha256: digest_of(Path::new(path))?,
        tensor_access: TensorAccess::default(),
        settings: BTreeMap::new(),
        scalars: BTreeMap::new(),
        reads: Vec::new(),
        nodes: None,
    })
}

fn dataset(path: &Path) -> Result<Dataset, miette::Report> {
    Dataset::parse(&files::read(path, MAX_FILE_BYTES)?, &path.display().to_string()).map_err(ui::unreadable)
}

/// Takes `MODULE.KEY=VALUE` apart and finds the module.
fn of_module<'t, 'm>(
    text: &'t str,
    modules: &'m mut [Module],
) -> Result<(&'m mut Module, &'t str, &'t str), miette::Report> {
    let (head, value) = split(text, "=", text, "MODULE.KEY=VALUE")?;
    let (module, key) = head.rsplit_once('.').ok_or_else(|| wrong(text, "MODULE.KEY"))?;
    Ok((find(module, text, modules)?, key, value))
}

fn find<'m>(name: &str, text: &str, modules: &'m mut [Module]) -> Result<&'m mut Module, miette::Report> {
    let names: Vec<_> = modules.iter().map(|module| module.name.clone()).collect();
    let wanted = || wrong(text, &format!("one of the modules {}", names.join(", ")));
    modules.iter_mut().find(|module| module.name == name).ok_or_else(wanted)
}

fn scalar(text: &str) -> Scalar {
    if let Ok(flag) = text.parse() {
        Scalar::Boolean(flag)
    } else if let Ok(number) = text.parse() {
        Scalar::Integer(number)
    } else {
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Scalar::Float(number),
            _ => Scalar::Text(text.to_owned()),
        }
    }
}

pub(super) fn each<T>(
    texts: &[String],
    read: impl Fn(&str) -> Result<T, miette::Report>,
) -> Result<Vec<T>, miette::Report> {
    texts.iter().map(|text| read(text)).collect()
}

pub(super) fn split<'t>(
    text: &'t str,
    at: &str,
    whole: &str,
    form: &str,
) -> Result<(&'t str, &'t str), miette::Report> {
    text.split_once(at).ok_or_else(|| wrong(whole, form))
}

pub(super) fn parse<T: FromStr>(text: &str, whole: &str) -> Result<T, miette::Report> {
    text.parse()
        .map_err(|_| wrong(whole, &format!("a number instead of {text:?}")))
}

pub(super) fn wrong(text: &str, form: &str) -> miette::Report {
    ui::failed(Exit::Usage, format!("{text:?} is not understood; wanted {form}"), None)
}
