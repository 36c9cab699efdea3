//! `cloister module inspect`: what a module's file says about itself, and the lines that a policy needs.

use std::fmt::Write as _;
use std::path::PathBuf;

use cloister_sandbox::{Inspection, SandboxLimits, SettingDeclaration, SettingType, SettingValue, World, inspect};

use crate::files;
use crate::ui::{Exit, OutputArgs, Ui, failed};

/// Print a module's digest, world, imports, exports, settings, size and policy line.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cloister module inspect train-sgd.wasm
  cloister module inspect train-sgd.wasm -o json

A module that no world of this version fits is printed as well, with the reason; the exit code is then 1.")]
pub struct ModuleInspectArgs {
    /// The component's file.
    #[arg(value_name = "FILE.wasm")]
    file: PathBuf,
    /// Name of the module in the policy; default: the file's name.
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `-o json` prints.
#[derive(serde::Serialize)]
struct Printed<'a> {
    name: &'a str,
    #[serde(flatten)]
    inspection: &'a Inspection,
    policy: Option<String>,
}

/// Runs the command.
///
/// # Errors
/// The file cannot be read or is no component.
pub fn run(args: ModuleInspectArgs, out: &mut Ui) -> Result<Exit, miette::Report> {
    // More than this no host would load.
    let bytes = files::read(&args.file, SandboxLimits::default().component_bytes as u64)?;
    let inspection =
        inspect(&bytes).map_err(|error| failed(Exit::Usage, format!("{}: {error}", args.file.display()), None))?;
    let stem = args
        .file
        .file_stem()
        .map(|stem| stem.to_string_lossy().replace('_', "-"));
    let name = args.name.or(stem).unwrap_or_else(|| "module".to_owned());
    let policy = inspection.world.map(|world| policy_lines(&name, world, &inspection));
    if args.output.json() {
        out.json(&Printed {
            name: &name,
            inspection: &inspection,
            policy,
        });
    } else {
        out.data(text(&inspection, policy.as_deref()).trim_end());
    }
    Ok(if inspection.world.is_some() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn text(inspection: &Inspection, policy: Option<&str>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:<9} {value}");
    };
    line("digest", &inspection.digest.to_string());
    line("size", &format!("{} bytes", inspection.size_bytes));
    match (inspection.world, &inspection.problem) {
        (Some(world), _) => line("world", &world.to_string()),
        (None, problem) => line("world", &format!("none: {}", problem.as_deref().unwrap_or("unknown"))),
    }
    list(&mut line, "imports", inspection.imports.iter().cloned());
    list(&mut line, "exports", inspection.exports.iter().cloned());
    list(
        &mut line,
        "settings",
        inspection
            .settings
            .iter()
            .map(|(name, declared)| setting(name, declared)),
    );
    if let Some(policy) = policy {
        let _ = write!(text, "\nfor the policy:\n\n{policy}");
    }
    text
}

fn list(line: &mut impl FnMut(&str, &str), name: &str, values: impl Iterator<Item = String>) {
    let mut values = values.peekable();
    if values.peek().is_none() {
        line(name, "none");
    }
    let mut name = name;
    for value in values {
        line(name, &value);
        name = "";
    }
}

fn setting(name: &str, declared: &SettingDeclaration) -> String {
    let mut text = format!("{name}: {}", declared.ty);
    if !declared.choices.is_empty() {
        let _ = write!(text, " ({})", declared.choices.join(" | "));
    }
    match &declared.default {
        Some(default) => {
            let _ = write!(text, " = {}", toml_value(default));
        }
        None => text.push_str(", has to be given"),
    }
    if !declared.doc.is_empty() {
        let _ = write!(text, "  # {}", printable(&declared.doc));
    }
    text
}

/// The lines that a policy needs for the module, every default shown.
fn policy_lines(name: &str, world: World, inspection: &Inspection) -> String {
    let settings = inspection.settings.iter().map(|(name, declared)| {
        let value = declared
            .default
            .as_ref()
            .map_or_else(|| placeholder(declared.ty).to_owned(), toml_value);
        format!("{} = {value}", toml_key(name))
    });
    let settings = settings.collect::<Vec<_>>().join(", ");
    let settings = if settings.is_empty() {
        "{}".to_owned()
    } else {
        format!("{{ {settings} }}")
    };
    let mut lines = format!(
        "[[module]]\nname = {}\nrole = \"{world}\"\nsha256 = \"{}\"\nsettings = {settings}\n",
        toml_text(name),
        inspection.digest
    );
    if world == World::Transform {
        lines.push_str(&format!(
            "\n# in each [[dataset]] whose rows go through it, with what it makes of a row:\n\
             transform = {}\nmakes = {{ x = {{ shape = [3, 24, 24], dtype = \"f32\" }} }}\n",
            toml_text(name)
        ));
    }
    if world == World::Trainer {
        lines.push_str(
            "tensor_access = \"handles\"\n\
             scalars = { learning_rate = { min = 0.0, max = 1.0 }, step = { min = 1.0, max = 1e9 } }\n\
             reads = [\"loss\"]\n",
        );
    }
    lines
}

/// What stands where a setting has no default: refused by `policy check` until it is filled in.
fn placeholder(ty: SettingType) -> &'static str {
    match ty {
        SettingType::Boolean => "FILL_IN_true_OR_false",
        SettingType::Integer => "FILL_IN_AN_INTEGER",
        SettingType::Number => "FILL_IN_A_NUMBER",
        SettingType::Text => "FILL_IN_A_TEXT",
    }
}

fn toml_value(value: &SettingValue) -> String {
    match value {
        SettingValue::Text(text) => toml_text(text),
        other => other.to_string(),
    }
}

fn toml_key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
    if bare { name.to_owned() } else { toml_text(name) }
}

/// A basic string of TOML.
fn toml_text(text: &str) -> String {
    format!("\"{}\"", printable(text).replace('\\', "\\\\").replace('"', "\\\""))
}

/// Texts come out of a stranger's file: nothing of them may steer the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|symbol| if symbol.is_control() { ' ' } else { symbol })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_texts_are_quoted() {
        assert_eq!(toml_key("learning_rate"), "learning_rate");
        assert_eq!(toml_key("a b"), "\"a b\"");
        assert_eq!(toml_text("say \"hi\"\u{1b}[2J"), "\"say \\\"hi\\\" [2J\"");
    }
}
