//! `cloister data`: what a participant does with its own data before a federation starts.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use cloister_data::{DataLimits, Dataset, FileSummary, Format, Source, salt};
use cloister_policy::{DatasetSpec, Policy};

use crate::ui::{Exit, OutputArgs, Ui, fail, failed, unreadable};

/// Commit to datasets and look at them.
#[derive(clap::Args, Debug)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(clap::Subcommand, Debug)]
enum DataCommand {
    /// Print the rows and the salted commitment of a dataset, as a policy names them.
    ///
    /// The salt is kept in FILE.salt (mode 0600) and made when it is missing. Keep it with the data: a worker needs it to
    /// show that its rows are the ones committed to, and whoever has it can confirm guesses of them.
    #[command(after_help = COMMIT_EXAMPLES)]
    Commit(CommitArgs),
    /// Print the columns and the number of rows of a file.
    #[command(after_help = "Example:\n  cloister data show digits.csv")]
    Show(ShowArgs),
}

const COMMIT_EXAMPLES: &str = "Examples:
  cloister data commit digits.csv --name train --input 'x=p0..p63:f32:0.0625' --input 'labels=label:i64'
  cloister data commit images.parquet --name train --input 'x=p0..p63' --shape x=1x8x8 --input 'labels=label:i64'
  cloister data commit train.bin --name train --input 'x=p0..p3071:f32:0.00392' --shape x=3x32x32 --input 'labels=label:i64'
  cloister data commit pets.zip --name train --input 'x=p0..p12287:u8' --shape x=3x64x64 --input 'labels=label:i64' --skip-damaged
  cloister data commit train.parquet --name train --slice 0..25000 --input 'x=img0..img3071:u8' --shape x=3x32x32 --input 'labels=label:i64'
  cloister data commit ward.csv --spec train.toml
  cloister data commit ward.csv --policy federation.toml --dataset train";

#[derive(clap::Args, Debug)]
struct CommitArgs {
    /// The data: CSV, Parquet, NPZ, NPY, IDX (MNIST), CIFAR-10's binary files, or images in folders, packed as ZIP.
    file: PathBuf,
    /// The dataset's name in the policy.
    #[arg(long, required_unless_present_any = ["spec", "policy"], conflicts_with_all = ["spec", "policy"])]
    name: Option<String>,
    /// An input of the graph: NAME=COLUMNS[:TYPE[:SCALE[:OFFSET]]], COLUMNS with commas and ranges, TYPE f32, i64 or u8.
    #[arg(long = "input", value_name = "INPUT", requires = "name")]
    inputs: Vec<String>,
    /// The shape of an input's row, where it is no plain list: NAME=1x8x8.
    #[arg(long = "shape", value_name = "SHAPE", requires = "name")]
    shapes: Vec<String>,
    /// Commit to these rows of the file alone (`slice` in the policy), counted from 0, without the last.
    #[arg(long, value_name = "FIRST..END", requires = "name")]
    slice: Option<String>,
    /// Leave rows out that can't be read (`damaged = "skip"` in the policy), instead of stopping at the first.
    #[arg(long, requires = "name")]
    skip_damaged: bool,
    /// The dataset's name and inputs in a TOML file, written as in a policy.
    #[arg(long, value_name = "TOML")]
    spec: Option<PathBuf>,
    /// A policy that describes the dataset.
    #[arg(long, conflicts_with = "spec", requires = "dataset")]
    policy: Option<PathBuf>,
    /// The dataset's name in that policy.
    #[arg(long, value_name = "NAME", requires = "policy")]
    dataset: Option<String>,
    /// The file of the salt; FILE.salt if not given.
    #[arg(long, value_name = "FILE")]
    salt: Option<PathBuf>,
    /// The file's format, where its name does not end with it.
    #[arg(
        id = "data_format",
        long = "format",
        value_name = "csv|parquet|npz|npy|idx|cifar10|images"
    )]
    format: Option<Format>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(clap::Args, Debug)]
struct ShowArgs {
    /// The data: CSV, Parquet, NPZ, NPY, IDX (MNIST), CIFAR-10's binary files, or images in folders, packed as ZIP.
    file: PathBuf,
    /// The file's format, where its name does not end with it.
    #[arg(
        id = "data_format",
        long = "format",
        value_name = "csv|parquet|npz|npy|idx|cifar10|images"
    )]
    format: Option<Format>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `commit` prints.
#[derive(serde::Serialize)]
struct Committed {
    name: String,
    rows: u64,
    skipped: u64,
    commitment: String,
    salt: String,
}

/// What `show` prints.
#[derive(serde::Serialize)]
struct Shown {
    rows: u64,
    columns: Vec<ShownColumn>,
}

#[derive(serde::Serialize)]
struct ShownColumn {
    name: String,
    holds: String,
}

/// Runs the command.
pub fn run(args: DataArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    match args.command {
        DataCommand::Commit(args) => commit(&args, out),
        DataCommand::Show(args) => show(&args, out),
    }
}

fn commit(args: &CommitArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let spec = description(args)?;
    let (source, format) = open(&args.file, args.format)?;
    let dataset = Dataset::open(&source, format, &spec, &DataLimits::default()).map_err(unreadable)?;
    let salt_path = args.salt.clone().unwrap_or_else(|| salt::path_beside(&args.file));
    let salt = salt_of(&salt_path, out)?;
    let commitment = dataset.commitment(&salt).to_string();
    let (name, rows) = (spec.name, dataset.rows());
    let skipped = dataset.skipped();
    if skipped.rows > 0 {
        out.note(format_args!("{} damaged rows left out, among them:", skipped.rows));
        skipped.first.iter().for_each(|row| out.note(row));
    }
    if args.output.json() {
        out.json(&Committed {
            name,
            rows,
            skipped: skipped.rows,
            commitment,
            salt: salt_path.display().to_string(),
        });
    } else {
        out.data(format_args!("rows = {rows}"));
        out.data(format_args!("commitment = \"{commitment}\""));
    }
    Ok(Exit::Done)
}

/// The dataset's name and inputs, from wherever the arguments say.
fn description(args: &CommitArgs) -> Result<DatasetSpec, miette::Report> {
    if let Some(path) = &args.spec {
        return DatasetSpec::parse(&read_small(path)?, &path.display().to_string()).map_err(unreadable);
    }
    let (Some(path), Some(name)) = (&args.policy, &args.dataset) else {
        let mut text = spec_toml(args.name.as_deref().unwrap_or_default(), &args.inputs, &args.shapes)?;
        if let Some(slice) = &args.slice {
            text.insert_str(0, &format!("slice = {}\n", toml::Value::from(slice.as_str())));
        }
        if args.skip_damaged {
            text.insert_str(0, "damaged = \"skip\"\n");
        }
        return DatasetSpec::parse(text.as_bytes(), "--input").map_err(unreadable);
    };
    let policy = Policy::parse(&read_small(path)?, &path.display().to_string()).map_err(unreadable)?;
    // Several nodes may have a dataset of one name; whether it is described in one way is what counts.
    let mut found = policy
        .datasets
        .iter()
        .filter(|dataset| dataset.name() == name)
        .map(|dataset| &dataset.spec);
    let spec = found.next().ok_or_else(|| {
        let known: Vec<&str> = policy.datasets.iter().map(|dataset| dataset.name()).collect();
        let help = Some(format!("the policy's datasets are: {}", known.join(", ")));
        failed(Exit::Usage, format!("{}: no dataset {name:?}", path.display()), help)
    })?;
    if found.any(|other| other != spec) {
        let help = Some("give the description by --name and --input".to_owned());
        return Err(failed(
            Exit::Usage,
            format!("{}: the nodes' datasets {name:?} differ in form", path.display()),
            help,
        ));
    }
    Ok(spec.clone())
}

fn show(args: &ShowArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    let (source, format) = open(&args.file, args.format)?;
    let summary = FileSummary::of(&source, format, &DataLimits::default()).map_err(unreadable)?;
    let columns = summary.columns.into_iter().map(|column| ShownColumn {
        name: column.name,
        holds: column.kind.to_string(),
    });
    let shown = Shown {
        rows: summary.rows,
        columns: columns.collect(),
    };
    if args.output.json() {
        out.json(&shown);
        return Ok(Exit::Done);
    }
    out.data(format_args!("{} rows, {} columns", shown.rows, shown.columns.len()));
    for column in shown.columns {
        out.data(format_args!("{:<32} {}", column.name, column.holds));
    }
    Ok(Exit::Done)
}

fn open(path: &Path, format: Option<Format>) -> Result<(Source, Format), miette::Report> {
    let shown = path.display().to_string();
    let format = format.or_else(|| Format::of_name(&shown)).ok_or_else(|| {
        let help = "name the format: --format csv, parquet, npz, npy, idx, cifar10 or images".to_owned();
        failed(
            Exit::Usage,
            format!("{shown}: the name ends with none of .csv, .parquet, .npz, .npy, .idx, -ubyte, .bin and .zip"),
            Some(help),
        )
    })?;
    let file = File::open(path).map_err(|source| {
        fail(
            Exit::Usage,
            Unopened {
                path: shown.clone(),
                source,
            },
        )
    })?;
    Ok((Source::from_file(shown, file).map_err(unreadable)?, format))
}

/// A file that can't be opened, with its path.
#[derive(Debug, thiserror::Error)]
#[error("{path}: cannot be opened")]
struct Unopened {
    path: String,
    source: std::io::Error,
}

/// Reads a file of a description, a megabyte at most.
fn read_small(path: &Path) -> Result<Vec<u8>, miette::Report> {
    let unopened = |source| {
        unreadable(Unopened {
            path: path.display().to_string(),
            source,
        })
    };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(1 << 20).read_to_end(&mut bytes))
        .map_err(unopened)?;
    Ok(bytes)
}

/// Reads the salt, or makes one.
fn salt_of(path: &Path, out: &mut Ui) -> Result<[u8; 32], miette::Report> {
    match salt::read(path) {
        Err(salt::SaltError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let mut fresh = [0; 32];
            let random = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut fresh));
            random.map_err(|error| fail(Exit::Failed, error))?;
            salt::create(path, &fresh).map_err(|error| fail(Exit::Failed, error))?;
            out.note(format_args!(
                "made the salt {}: keep it with the data and away from others",
                path.display()
            ));
            Ok(fresh)
        }
        other => other.map_err(unreadable),
    }
}

/// The inputs of the command line as a description in TOML, which the policy's reader checks.
fn spec_toml(name: &str, inputs: &[String], shapes: &[String]) -> Result<String, miette::Report> {
    let usage = |text: &str, wanted: &str| {
        failed(
            Exit::Usage,
            format!("{text:?} is not understood"),
            Some(format!("wanted {wanted}")),
        )
    };
    let mut text = format!("name = {}\n", toml::Value::from(name));
    for input in inputs {
        const WANTED: &str = "NAME=COLUMNS[:TYPE[:SCALE[:OFFSET]]], for instance x=p0..p63:f32:0.0625";
        let (input_name, rest) = input.split_once('=').ok_or_else(|| usage(input, WANTED))?;
        let mut parts = rest.split(':');
        let columns = parts.next().unwrap_or_default();
        let shape = shapes
            .iter()
            .filter_map(|shape| shape.split_once('='))
            .find(|(of, _)| *of == input_name);
        text.push_str(&format!("[inputs.{}]\n", toml::Value::from(input_name)));
        if shape.is_some() || columns.contains([',']) || columns.contains("..") {
            let list: Vec<toml::Value> = columns
                .split(',')
                .map(|column| toml::Value::from(column.trim()))
                .collect();
            text.push_str(&format!("columns = {}\n", toml::Value::Array(list)));
        } else {
            text.push_str(&format!("column = {}\n", toml::Value::from(columns)));
        }
        if let Some((_, dims)) = shape {
            let dims: Result<Vec<i64>, _> = dims.split('x').map(str::parse).collect();
            let dims = dims.map_err(|_| usage(input, "a shape NAME=1x8x8"))?;
            text.push_str(&format!("shape = {dims:?}\n"));
        }
        if let Some(kind) = parts.next() {
            text.push_str(&format!("dtype = {}\n", toml::Value::from(kind)));
        }
        for key in ["scale", "offset"] {
            if let Some(number) = parts.next() {
                let number: f64 = number.parse().map_err(|_| usage(input, WANTED))?;
                text.push_str(&format!("{key} = {}\n", toml::Value::from(number)));
            }
        }
        if parts.next().is_some() {
            return Err(usage(input, WANTED));
        }
    }
    if let Some(shape) = shapes.iter().find(|shape| {
        !inputs
            .iter()
            .any(|input| input.split('=').next() == shape.split('=').next())
    }) {
        return Err(usage(shape, "a shape of one of the inputs, NAME=1x8x8"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(inputs: &[&str], shapes: &[&str]) -> Result<DatasetSpec, String> {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let text = spec_toml("train", &owned(inputs), &owned(shapes)).map_err(|report| report.to_string())?;
        DatasetSpec::parse(text.as_bytes(), "--input").map_err(|error| error.to_string())
    }

    #[test]
    fn inputs_of_the_command_line_are_understood() {
        let spec = spec(&["x=p0..p63:f32:0.0625", "labels=label:i64", "y=a, b"], &["x=1x8x8"]).unwrap();
        assert_eq!(
            (spec.inputs["x"].columns.len(), spec.inputs["x"].shape.as_slice()),
            (64, &[1, 8, 8][..])
        );
        assert_eq!(spec.inputs["x"].scale[63], 0.0625);
        assert!(spec.inputs["labels"].shape.is_empty());
        assert_eq!(spec.inputs["y"].columns, ["a", "b"]);
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (inputs, shapes) in [
            (&["x"][..], &[][..]),
            (&["x=a:f32:one"], &[]),
            (&["x=a:f32:1:2:3"], &[]),
            (&["x=a:f16"], &[]),
            (&["x=a..b"], &[]),
            (&["x=a"], &["y=1"]),
            (&["x=a"], &["x=1xa"]),
            (&["x=a,b"], &["x=3"]),
            (&["x=a\"\nname = 1"], &["x"]),
        ] {
            assert!(spec(inputs, shapes).is_err(), "{inputs:?} {shapes:?}");
        }
    }
}
