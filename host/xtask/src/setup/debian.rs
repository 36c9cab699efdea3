//! Debian's Rust compiler, unpacked below the target folder, for machines where rustup cannot add the Wasm target.
//!
//! Nothing is installed: `rustc-web` would conflict with rustup's and with Debian's own `rustc`. Debian ships no compiled
//! standard library for `wasm32-unknown-unknown` there, so it is built from `rust-web-src` with the guests
//! (`-Z build-std`, which asks for `RUSTC_BOOTSTRAP=1`). The linker that makes components comes with the compiler of
//! the host, which is there, or this program would not run.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::problem::{Outcome, Problem};
use crate::process::{must, output, say, works};
use crate::workspace::Workspace;

use super::wheel::make_empty;

const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// A list of packages longer than this is no answer to our question.
const MAX_PACKAGES: usize = 64;
const NEXT: &str =
    "check the network and apt's sources, or use a machine where `rustup target add wasm32-unknown-unknown` works";

/// The unpacked compiler.
#[derive(Debug)]
pub struct Unpacked {
    root: PathBuf,
    linkers: PathBuf,
}

impl Unpacked {
    /// Its cargo, with the linkers of the host's compiler.
    pub fn cargo(&self) -> Command {
        let usr = self.root.join("usr");
        let mut path = OsString::from(&self.linkers);
        path.push(":");
        path.push(self.linkers.join("gcc-ld"));
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let mut command = Command::new(usr.join("bin/cargo"));
        command
            .env("PATH", path)
            .env("LD_LIBRARY_PATH", usr.join("lib/x86_64-linux-gnu"))
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN");
        command
    }

    /// Its compiler.
    pub fn rustc(&self) -> PathBuf {
        self.root.join("usr/bin/rustc")
    }

    /// The folder that stands in the paths of its standard library's source.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// Finds the unpacked compiler, or fetches and unpacks it.
pub fn provide(workspace: &Workspace) -> Outcome<Unpacked> {
    let root = workspace.toolchain().join("debian");
    let linkers = linkers(workspace)?;
    if !root.is_dir() {
        fetch(workspace, &root)?;
    }
    // The compiler names its library by its true path, which is what is kept out of the modules.
    let root = root
        .canonicalize()
        .map_err(|error| Problem::io("find", &root, &error))?;
    Ok(Unpacked { root, linkers })
}

fn fetch(workspace: &Workspace, root: &Path) -> Outcome<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64"))
        || !works(Command::new("apt-get").arg("--version"))
        || !works(Command::new("dpkg-deb").arg("--version"))
    {
        return Err(Problem::new(
            "this machine has no compiler for wasm32-unknown-unknown, and no Debian tools to fetch one with",
            "run `rustup target add wasm32-unknown-unknown` where the network lets it, or use Debian or Ubuntu on x86-64",
        ));
    }
    let folder = workspace.toolchain().join("packages");
    make_empty(&folder)?;
    say("[setup] guests: fetching Debian's Rust compiler for WebAssembly (about 150 MiB, nothing is installed)");
    let apt = Apt::new(workspace)?;
    let names = apt.needed()?;
    apt.download(&names, &folder)?;
    let fresh = workspace.toolchain().join("unpacking");
    make_empty(&fresh)?;
    for package in debs(&folder)? {
        must(
            Command::new("dpkg-deb").arg("-x").arg(&package).arg(&fresh),
            "check that the disk has 1 GiB to spare, then run it again",
        )?;
    }
    std::fs::rename(&fresh, root).map_err(|error| Problem::io("make", root, &error))?;
    std::fs::remove_dir_all(&folder).map_err(|error| Problem::io("remove", &folder, &error))?;
    say(format_args!(
        "[setup] guests: compiler unpacked into {}",
        root.display()
    ));
    Ok(())
}

/// The folder with `wasm-component-ld` of the host's compiler.
fn linkers(workspace: &Workspace) -> Outcome<PathBuf> {
    let missing = || {
        Problem::new(
            "the host's Rust toolchain has no wasm-component-ld, which makes components of modules",
            "use a toolchain of rustup (https://rustup.rs): it comes with it since Rust 1.82",
        )
    };
    let done = output(
        Command::new("rustc")
            .args(["--print", "target-libdir"])
            .current_dir(workspace.root()),
        NEXT,
    )?;
    let libraries = PathBuf::from(String::from_utf8_lossy(&done.stdout).trim());
    let folder = libraries.parent().ok_or_else(missing)?.join("bin");
    if folder.join("wasm-component-ld").is_file() {
        Ok(folder)
    } else {
        Err(missing())
    }
}

/// apt-get, with the machine's package lists, or with lists of our own where those are old or missing.
struct Apt {
    own_lists: bool,
    state: PathBuf,
}

impl Apt {
    fn new(workspace: &Workspace) -> Outcome<Self> {
        let mut apt = Self {
            own_lists: false,
            state: workspace.toolchain().join("apt"),
        };
        if apt.needed().is_ok() {
            return Ok(apt);
        }
        say("[setup] guests: the machine's package lists do not know the compiler; fetching lists of our own");
        apt.own_lists = true;
        for folder in ["lists/partial", "cache/archives/partial"] {
            let folder = apt.state.join(folder);
            std::fs::create_dir_all(&folder).map_err(|error| Problem::io("make", &folder, &error))?;
        }
        must(apt.command().args(["-q", "update"]), NEXT)?;
        Ok(apt)
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        if self.own_lists {
            for (key, folder) in [("Dir::State::lists", "lists"), ("Dir::Cache", "cache")] {
                command
                    .arg("-o")
                    .arg(format!("{key}={}", self.state.join(folder).display()));
            }
        }
        command
    }

    /// The packages that the machine lacks to run the compiler: apt resolves, and only prints what it would fetch.
    fn needed(&self) -> Outcome<Vec<String>> {
        let mut command = self.command();
        command
            .args(["install", "--print-uris", "-qq", "--no-install-recommends"])
            .args(PACKAGES);
        let done = output(&mut command, NEXT)?;
        let names = packages(&String::from_utf8_lossy(&done.stdout));
        let has_all = PACKAGES.iter().all(|package| names.iter().any(|name| name == package));
        if done.status.success() && has_all && names.len() <= MAX_PACKAGES {
            return Ok(names);
        }
        Err(Problem::new(
            format!(
                "apt-get cannot resolve {}: {}",
                PACKAGES.join(", "),
                String::from_utf8_lossy(&done.stderr)
                    .lines()
                    .next()
                    .unwrap_or("it names no reason")
            ),
            NEXT,
        ))
    }

    fn download(&self, names: &[String], folder: &Path) -> Outcome<()> {
        // apt checks the digests against its signed lists.
        if must(
            self.command().args(["-q", "download"]).args(names).current_dir(folder),
            NEXT,
        )
        .is_ok()
        {
            return Ok(());
        }
        if self.own_lists {
            return Err(Problem::new("apt-get could not download Debian's compiler", NEXT));
        }
        say(
            "[setup] guests: the mirror has moved on since the machine's lists were fetched; fetching lists of our own",
        );
        let fresh = Self {
            own_lists: true,
            state: self.state.clone(),
        };
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = fresh.state.join(part);
            std::fs::create_dir_all(&part).map_err(|error| Problem::io("make", &part, &error))?;
        }
        must(fresh.command().args(["-q", "update"]), NEXT)?;
        let names = fresh.needed()?;
        fresh.download(&names, folder)
    }
}

/// Names of packages in what `apt-get install --print-uris` prints: `'URI' NAME_VERSION_ARCH.deb SIZE DIGEST` a line.
fn packages(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let file = line.strip_prefix('\'')?.split_once("' ")?.1;
            let (name, _) = file.split_once('_')?;
            let plain = |character: char| character.is_ascii_alphanumeric() || "+-.".contains(character);
            (!name.is_empty() && !name.starts_with('-') && name.chars().all(plain)).then(|| name.to_owned())
        })
        .collect()
}

fn debs(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|error| Problem::io("read", folder, &error))?;
    let mut files: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect();
    files.sort();
    if files.is_empty() {
        Err(Problem::new("apt-get downloaded no package", NEXT))
    } else {
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names_are_read() {
        let text = "'http://a/libLLVM22_1%3a22.deb' libllvm22_1%3a22.1~deb12u1_amd64.deb 29378692 \n\
                    'http://a/rustc.deb' rustc-web_1.96.0+dfsg1-1~deb12u2_amd64.deb 4450500 SHA256:aa\n\
                    Reading lists\n\
                    'http://a/x' --option_1_all.deb 1\n";
        assert_eq!(packages(text), ["libllvm22", "rustc-web"]);
    }
}
