//! The compiler of the guests: the one at hand with its Wasm target, or Debian's, unpacked below the target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::problem::{Outcome, Problem};
use crate::process::{output, say, works};
use crate::workspace::Workspace;

use super::debian;

/// The target that guests are compiled for.
pub const TARGET: &str = "wasm32-unknown-unknown";
/// Makes a component out of a module; it comes with Rust.
const LINKER: &str = "wasm-component-ld";
/// Chooses where the compiler comes from: `rustup` or `debian`.
const CHOICE_VARIABLE: &str = "CLOISTER_GUEST_TOOLCHAIN";

/// What would confuse the guests' build if it were inherited: flags and wrappers are meant for the host's compiler.
const NOT_INHERITED: [&str; 12] = [
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER",
    "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
];

/// A compiler for guests.
#[derive(Debug)]
pub enum Toolchain {
    /// The compiler of the host has the Wasm target.
    Host,
    /// Debian's compiler, unpacked in a folder; the standard library is built from its source.
    Debian(debian::Unpacked),
}

impl Toolchain {
    /// `cargo SUBCOMMAND` in the guests' workspace, for the Wasm target, with nothing inherited that breaks it.
    pub fn cargo(&self, workspace: &Workspace, subcommand: &str) -> Command {
        let mut command = match self {
            Self::Host => workspace.cargo(),
            Self::Debian(unpacked) => unpacked.cargo(),
        };
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        if let Self::Debian(unpacked) = self {
            command.env("RUSTC", unpacked.rustc());
        }
        command
            .current_dir(workspace.guest_workspace())
            .args([subcommand, "--target", TARGET]);
        if let Self::Debian(_) = self {
            command.args(["-Z", "build-std=std,panic_abort"]);
        }
        let mut prefixes = vec![(workspace.root().to_path_buf(), "/cloister")];
        prefixes.extend(cargo_home().map(|home| (home, "/cargo")));
        if let Self::Debian(unpacked) = self {
            prefixes.push((unpacked.root().to_path_buf(), "/toolchain"));
        }
        command
            .arg("--target-dir")
            .arg(workspace.guest_target())
            .arg("--config")
            .arg(flags(&prefixes))
            .arg("--config")
            .arg(format!("target.{TARGET}.linker=\"{LINKER}\""));
        command
    }

    /// Whether clippy and rustfmt come with it.
    pub fn has_clippy(&self) -> bool {
        matches!(self, Self::Host)
    }
}

/// `cargo test` in the guests' workspace for the machine at hand: what the guests' kit computes is the same there, and a test runner
/// runs there. By the host's compiler, whichever one makes the modules.
pub fn host_tests(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo();
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    command
        .current_dir(workspace.guest_workspace())
        .args(["test", "--locked", "--no-fail-fast", "--package", "cloister-guest"])
        .arg("--target-dir")
        .arg(workspace.guest_target());
    command
}

/// Finds or fetches a compiler for guests.
pub fn provide(workspace: &Workspace) -> Outcome<Toolchain> {
    let choice = std::env::var(CHOICE_VARIABLE).unwrap_or_default();
    match choice.as_str() {
        "" => {
            if host_compiler(workspace) {
                return Ok(Toolchain::Host);
            }
            say(format_args!(
                "[setup] guests: rustup cannot add {TARGET} here; taking Debian's compiler instead"
            ));
            debian::provide(workspace).map(Toolchain::Debian)
        }
        "rustup" if host_compiler(workspace) => Ok(Toolchain::Host),
        "rustup" => Err(Problem::new(
            format!("rustup cannot add the target {TARGET}"),
            format!("run `rustup target add {TARGET}` by hand and read what it says, or set {CHOICE_VARIABLE}=debian"),
        )),
        "debian" => debian::provide(workspace).map(Toolchain::Debian),
        other => Err(Problem::new(
            format!("{CHOICE_VARIABLE} is `{other}`"),
            "set it to rustup or debian, or unset it to take the first that works",
        )),
    }
}

/// Whether the compiler at hand has the target, after asking rustup for it if need be.
fn host_compiler(workspace: &Workspace) -> bool {
    if has_target(workspace.root()) {
        return true;
    }
    if !works(Command::new("rustup").arg("--version")) {
        return false;
    }
    say(format_args!("[setup] guests: adding the target {TARGET} by rustup"));
    let added = output(
        Command::new("rustup")
            .args(["target", "add", TARGET])
            .current_dir(workspace.root()),
        "",
    );
    match added {
        Ok(done) if done.status.success() => has_target(workspace.root()),
        Ok(done) => {
            let words = String::from_utf8_lossy(&done.stderr);
            if let Some(line) = words.lines().rev().find(|line| !line.trim().is_empty()) {
                say(format_args!("[setup] guests: rustup says: {}", line.trim()));
            }
            false
        }
        Err(_) => false,
    }
}

/// Whether `rustc` finds a compiled `core` for the target and the linker that makes components.
fn has_target(root: &Path) -> bool {
    let rustc = |arguments: &[&str]| {
        let done = output(Command::new("rustc").args(arguments).current_dir(root), "").ok()?;
        done.status
            .success()
            .then(|| PathBuf::from(String::from_utf8_lossy(&done.stdout).trim()))
    };
    let Some(libraries) = rustc(&["--print", "target-libdir", "--target", TARGET]) else {
        return false;
    };
    let has_core = std::fs::read_dir(libraries).is_ok_and(|entries| {
        entries
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    });
    let linker = rustc(&["--print", "target-libdir"])
        .and_then(|libraries| Some(libraries.parent()?.join("bin/wasm-component-ld")))
        .is_some_and(|path| path.is_file());
    has_core && (linker || works(Command::new(LINKER).arg("--version")))
}

/// The `--config` of a guest's compilation: SIMD, and none of this machine's paths inside the modules, so that a
/// digest does not depend on the folder.
fn flags(prefixes: &[(PathBuf, &str)]) -> String {
    let mut flags = vec!["-Ctarget-feature=+simd128".to_owned()];
    flags.extend(
        prefixes
            .iter()
            .map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display())),
    );
    let flags: Vec<_> = flags
        .into_iter()
        .map(|flag| toml::Value::String(flag).to_string())
        .collect();
    format!("target.{TARGET}.rustflags=[{}]", flags.join(","))
}

fn cargo_home() -> Option<PathBuf> {
    let named = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    named.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_toml() {
        let config = flags(&[
            (PathBuf::from("/some where/it"), "cloister"),
            (PathBuf::from("/b\"c"), "cargo"),
        ]);
        let parsed: toml::Table = config.parse().unwrap();
        let flags: Vec<_> = parsed["target"][TARGET]["rustflags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|flag| flag.as_str().unwrap())
            .collect();
        assert_eq!(
            flags,
            [
                "-Ctarget-feature=+simd128",
                "--remap-path-prefix=/some where/it=cloister",
                "--remap-path-prefix=/b\"c=cargo"
            ]
        );
    }
}
