//! The user's files: read within a limit, secrets only where nobody else can read them, written whole or not at all.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use cloister_attestation::identity::SigningKey;
use cloister_tensor::{Digest, Digester};
use zeroize::Zeroizing;

use crate::ui::{Exit, failed};

/// No file with a key is larger than this.
const MAX_KEY_BYTES: u64 = 16 * 1024;
/// Most that is read from a device.
const MAX_DEVICE_BYTES: u64 = 16 << 20;

/// What to do about an error of the system, where there is something.
pub fn help(kind: ErrorKind) -> Option<String> {
    let text = match kind {
        ErrorKind::NotFound => {
            "look for a typing error in the path: it is taken from the current folder, in a node file from that file's folder"
        }
        ErrorKind::PermissionDenied => {
            "give the user that runs this the right to it (chown, chmod), or run as its owner"
        }
        ErrorKind::IsADirectory => "name a file, not a folder",
        ErrorKind::NotADirectory => "a part of the path is a file, where a folder is wanted",
        ErrorKind::AlreadyExists => "nothing is overwritten here: choose another name, or move the old file away",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room on the disk, or name a place on another one",
        ErrorKind::ReadOnlyFilesystem => "name a place that can be written",
        _ => return None,
    };
    Some(text.to_owned())
}

fn unreadable(path: &Path, error: &Error) -> miette::Report {
    failed(
        Exit::Usage,
        format!("{} cannot be read: {error}", path.display()),
        help(error.kind()),
    )
}

/// A file that cannot be written. Where its folder is not there, the command line names a place that does not exist: exit code 2.
pub fn unwritable(path: &Path, error: &Error) -> miette::Report {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let (ErrorKind::NotFound, Some(folder)) = (error.kind(), folder.filter(|folder| !folder.exists())) {
        return failed(
            Exit::Usage,
            format!(
                "{} cannot be written: there is no folder {}",
                path.display(),
                folder.display()
            ),
            Some(format!(
                "look for a typing error in the path, or make the folder: mkdir -p {}",
                folder.display()
            )),
        );
    }
    failed(
        Exit::Failed,
        format!("{} cannot be written: {error}", path.display()),
        help(error.kind()),
    )
}

fn read_from(file: File, path: &Path, limit_bytes: u64) -> Result<Vec<u8>, miette::Report> {
    let found = file.metadata().map_err(|error| unreadable(path, &error))?;
    // Before a byte is read; devices and pipes tell no size, or a wrong one.
    if found.is_file() && found.len() > limit_bytes {
        return Err(too_long(path, limit_bytes));
    }
    // A device such as /dev/zero has no end, and would fill the memory up to any limit.
    let limit_bytes = if found.file_type().is_char_device() || found.file_type().is_block_device() {
        limit_bytes.min(MAX_DEVICE_BYTES)
    } else {
        limit_bytes
    };
    let mut bytes = Vec::new();
    file.take(limit_bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(path, &error))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(too_long(path, limit_bytes));
    }
    Ok(bytes)
}

fn too_long(path: &Path, limit_bytes: u64) -> miette::Report {
    failed(
        Exit::Usage,
        format!("{} has more than the {limit_bytes} bytes that are read", path.display()),
        Some("is it the right file?".into()),
    )
}

/// Reads a whole file of at most that many bytes; errors name it and end with exit code 2.
pub fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, miette::Report> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    read_from(file, path, limit_bytes)
}

/// Reads an Ed25519 key (PEM), which nobody but its owner may be able to read.
pub fn read_key(path: &Path) -> Result<SigningKey, miette::Report> {
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let mode = file
        .metadata()
        .map_err(|error| unreadable(path, &error))?
        .permissions()
        .mode()
        & 0o777;
    if mode & 0o077 != 0 {
        return Err(failed(
            Exit::Usage,
            format!(
                "the key {} may be read by others: its mode is {mode:03o}, wanted 600",
                path.display()
            ),
            Some(format!(
                "run `chmod 600 {}`; if others could read it until now, make a new key: cloister identity new",
                path.display()
            )),
        ));
    }
    let pem = Zeroizing::new(read_from(file, path, MAX_KEY_BYTES)?);
    let key = std::str::from_utf8(&pem).ok().map(SigningKey::from_pem);
    let why = match key {
        Some(Ok(key)) => return Ok(key),
        Some(Err(error)) => error.to_string(),
        None => "it is not text".to_owned(),
    };
    Err(failed(
        Exit::Usage,
        format!("{} is no Ed25519 key in PEM: {why}", path.display()),
        Some("`cloister identity new` makes one".into()),
    ))
}

/// Writes a file whole or not at all: beside it, then renamed over it. Where the name is a link, its target is written; where it is a
/// device or a pipe, that gets the bytes.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), miette::Report> {
    try_write(path, bytes).map_err(|error| unwritable(path, &error))
}

/// As [`write`], for those that have an error of their own.
pub fn try_write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let (target, mode) = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => return Err(ErrorKind::IsADirectory.into()),
        Ok(found) if !found.is_file() => return OpenOptions::new().write(true).open(path)?.write_all(bytes),
        Ok(found) => (std::fs::canonicalize(path)?, found.permissions().mode() & 0o777),
        // The system takes away what the user's umask forbids.
        Err(error) if error.kind() == ErrorKind::NotFound => (path.to_path_buf(), 0o666),
        Err(error) => return Err(error),
    };
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut fresh = tempfile::Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)
        .map_err(|error| plain(&error))?;
    fresh.write_all(bytes)?;
    fresh.as_file().sync_all()?;
    fresh.persist(&target).map_err(|error| error.error)?;
    Ok(())
}

/// The system's error alone: the name of a file that never came to be tells nobody anything.
pub fn plain(error: &Error) -> Error {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<Error>())
        .and_then(Error::raw_os_error)
        .map_or_else(|| error.kind().into(), Error::from_raw_os_error)
}

/// Writes a new file that nobody but its owner can read. One that is there is never overwritten.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), miette::Report> {
    write_new(path, bytes, 0o600)
}

/// Writes a new file with that mode. One that is there is never overwritten.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), miette::Report> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => failed(
                Exit::Usage,
                format!("{} cannot be written: {error}", path.display()),
                help(error.kind()),
            ),
            _ => unwritable(path, &error),
        })
}

/// SHA-256 of a file of any size.
pub fn digest_of(path: &Path) -> Result<Digest, miette::Report> {
    let mut file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let kind = file.metadata().map_err(|error| unreadable(path, &error))?.file_type();
    if kind.is_char_device() || kind.is_block_device() {
        // It might have no end.
        let message = format!("{} is a device, wanted a file", path.display());
        return Err(failed(Exit::Usage, message, None));
    }
    let mut digester = Digester::new();
    std::io::copy(&mut file, &mut digester).map_err(|error| unreadable(path, &error))?;
    Ok(digester.finish())
}

/// Refuses an output that is one of the inputs, by whatever path or link: writing it would destroy what the user has.
pub fn not_an_input<'p>(output: &Path, inputs: impl IntoIterator<Item = &'p Path>) -> Result<(), miette::Report> {
    // A device such as /dev/null loses nothing; a name that is not there is nothing yet.
    let Some(found) = std::fs::metadata(output).ok().filter(std::fs::Metadata::is_file) else {
        return Ok(());
    };
    let same = |input: &&Path| {
        std::fs::metadata(input).is_ok_and(|seen| (seen.dev(), seen.ino()) == (found.dev(), found.ino()))
    };
    match inputs.into_iter().find(same) {
        None => Ok(()),
        Some(input) => Err(failed(
            Exit::Usage,
            format!(
                "{} would be written over, which is the input {}",
                output.display(),
                input.display()
            ),
            Some("name another file for the output; nothing was written".into()),
        )),
    }
}

/// The files behind a trust root or collateral: `path`, or what is read of an authority's folder, its keys among them.
pub fn of_authority(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let mut files: Vec<_> = ["root.der", "collateral.json", "pck-chain.pem"]
        .map(|name| path.join(name))
        .into();
    let keys = std::fs::read_dir(path.join("keys")).into_iter().flatten();
    files.extend(keys.flatten().map(|entry| entry.path()));
    files
}

/// `path` with `suffix` behind its whole name.
pub fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_no_input_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("model"), b"weights of months").unwrap();
        std::fs::write(at("other"), b"").unwrap();
        std::os::unix::fs::symlink(at("model"), at("link")).unwrap();
        std::fs::hard_link(at("model"), at("hard")).unwrap();
        let input = at("model");
        for output in [at("model"), at("link"), at("hard"), folder.path().join("./model")] {
            let error = not_an_input(&output, [input.as_path()]).unwrap_err();
            assert!(error.to_string().contains("written over"), "{error:?}");
        }
        not_an_input(&at("other"), [input.as_path()]).unwrap();
        not_an_input(&at("new"), [input.as_path()]).unwrap();
        not_an_input(Path::new("/dev/null"), [Path::new("/dev/null")]).unwrap();
        // Of an authority's folder that is given, what is read of it is an input, and nothing else there.
        std::fs::create_dir_all(at("authority/keys")).unwrap();
        for name in ["authority/root.der", "authority/keys/root.pem", "authority/note"] {
            std::fs::write(at(name), b"x").unwrap();
        }
        let files = of_authority(&at("authority"));
        let inputs = || files.iter().map(PathBuf::as_path);
        not_an_input(&at("authority/root.der"), inputs()).unwrap_err();
        not_an_input(&at("authority/keys/root.pem"), inputs()).unwrap_err();
        not_an_input(&at("authority/note"), inputs()).unwrap();
    }

    fn help_of(report: &miette::Report) -> String {
        report.help().map(|help| help.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_file_that_cannot_be_read_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = read(&folder.path().join("nothing"), 10).unwrap_err();
        assert!(help_of(&error).contains("typing error"), "{error:?}");
        let error = read(folder.path(), 10).unwrap_err();
        assert!(help_of(&error).contains("name a file"), "{error:?}");
        // A device has no size and no end.
        let error = read(Path::new("/dev/zero"), 10).unwrap_err();
        assert!(error.to_string().contains("more than the 10 bytes"), "{error:?}");
    }

    #[test]
    fn what_is_written_is_whole_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        write(&file, b"old").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"new").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        write(Path::new("/dev/null"), b"gone").unwrap();
        assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn where_nothing_can_be_written_nothing_is_and_the_error_names_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no/such/file");
        let error = write(&missing, b"x").unwrap_err();
        assert!(error.to_string().contains("no/such/file"), "{error:?}");
        assert!(
            help_of(&error).contains("typing error") && help_of(&error).contains("mkdir -p"),
            "{error:?}"
        );
        let exit = |error: &miette::Report| error.downcast_ref::<crate::ui::Failure>().map(|failure| failure.exit);
        assert_eq!(exit(&error), Some(Exit::Usage));
        let error = write_secret(&missing, b"x").unwrap_err();
        assert_eq!(exit(&error), Some(Exit::Usage), "{error:?}");
        assert!(write(folder.path(), b"x").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.pem");
        write_secret(&path, SigningKey::generate().unwrap().to_pem().as_bytes()).unwrap();
        read_key(&path).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o620] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = read_key(&path).unwrap_err();
            assert!(error.to_string().contains(&format!("{mode:03o}")), "{error:?}");
            assert!(help_of(&error).contains("chmod 600"), "{error:?}");
        }
        assert!(write_secret(&path, b"other").is_err(), "a key is never overwritten");
    }
}
