//! What a manager released to this node: keys of sealed modules and data, the vault's key, values by name. They are in this
//! process's memory and nowhere else, zeroised when they go, and show in no text.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, SeekFrom, Write};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cloister_policy::Scalar;
use cloister_policy::agreement::Module;
use cloister_sandbox::{SecretText, SettingValue};
use cloister_tensor::Digest;
use cloister_vault::{
    Cipher, PARCEL_HEADER_BYTES, ParcelKind, READ_AHEAD_BYTES, VaultKey, VaultKeys, is_parcel, open_parcel,
};
use rustix::fs::{MemfdFlags, memfd_create};
use zeroize::Zeroizing;

use super::runner::settings;
use crate::files;
use crate::through::Through;
use crate::ui::{Exit, fail, failed};

/// What stands before a secret's name where a value could stand.
const SECRET: &str = "secret://";
/// What a sealed file's name ends with, behind the name of what is in it.
const SEALED: &str = ".sealed";

/// The key of one sealed file.
pub struct ParcelKey {
    /// The key.
    pub key: VaultKey,
    /// SHA-256 of the sealed file.
    pub ciphertext: Digest,
    /// SHA-256 of its content, if its owner said it.
    pub plaintext: Option<Digest>,
}

/// Everything that was released to this node.
#[derive(Default)]
pub struct Provisions {
    /// Keys of modules, by the module's name in the policy.
    pub modules: BTreeMap<String, ParcelKey>,
    /// Keys of datasets, by name.
    pub data: BTreeMap<String, ParcelKey>,
    /// The vault's keys, of all epochs.
    pub vault: Option<VaultKeys>,
    /// Values, by `OWNER/NAME`.
    pub values: BTreeMap<String, Zeroizing<String>>,
    /// Modules that lie sealed somewhere, by name, whether or not this node is granted them: they are in no content store.
    pub sealed_modules: BTreeMap<String, Digest>,
}

impl fmt::Debug for Provisions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Provisions")
            .field("modules", &self.modules.keys())
            .field("data", &self.data.keys())
            .field("values", &self.values.keys())
            .finish_non_exhaustive()
    }
}

impl Provisions {
    /// The file of a dataset, opened: what lies in it, or for a sealed one a file in memory with its content.
    pub fn dataset(&self, name: &str, path: &Path) -> Result<File, miette::Report> {
        let shown = path.display();
        let mut file = File::open(path).map_err(|cause| {
            let help = files::help(cause.kind());
            failed(Exit::Usage, format!("{shown} cannot be opened: {cause}"), help)
        })?;
        if !starts_as_parcel(&mut file, path)? {
            return Ok(file);
        }
        let key = self.data.get(name).ok_or_else(|| no_key(path, "dataset", name))?;
        let memory = memfd_create("dataset", MemfdFlags::CLOEXEC)
            .map_err(|cause| fail(Exit::Failed, std::io::Error::from(cause)))?;
        let mut memory = File::from(memory);
        open_as(key, ParcelKind::Data, (path, &file), &mut memory)?;
        memory
            .seek(SeekFrom::Start(0))
            .map_err(|cause| fail(Exit::Failed, cause))?;
        tracing::info!(
            "dataset {name}: opened in memory, {} bytes on the disk stay sealed",
            length(&file)
        );
        Ok(memory)
    }

    /// A module that lies sealed in one of the folders; `None` if its key was not released here. Its content has the digest that
    /// the policy names, or this is an error.
    pub fn module(
        &self,
        name: &str,
        wanted: &Digest,
        folders: &[PathBuf],
        limit: u64,
    ) -> Result<Option<Bytes>, miette::Report> {
        let Some(key) = self.modules.get(name) else {
            return Ok(None);
        };
        let Some(path) = sealed_files(folders, limit)?.remove(&key.ciphertext) else {
            let listed: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            return Err(failed(
                Exit::Failed,
                format!(
                    "the sealed module {name} (SHA-256 {}) is in none of {}",
                    key.ciphertext,
                    listed.join(", ")
                ),
                Some("put the file there that `cloister seal module` made".into()),
            ));
        };
        let file = File::open(&path).map_err(|cause| fail(Exit::Failed, cause))?;
        let mut content = Vec::new();
        let digest = open_as(key, ParcelKind::Module, (&path, &file), &mut content)?;
        if digest != *wanted {
            return Err(other_content(&path, &digest, wanted));
        }
        tracing::info!("module {name}: opened in memory");
        Ok(Some(content.into()))
    }

    /// The value of a secret by its name.
    pub fn value(&self, name: &str) -> Result<&str, miette::Report> {
        let value = self.values.get(name).ok_or_else(|| {
            failed(
                Exit::Denied,
                format!("the manager gave this node no secret {name}"),
                Some("its owner uploads it: cloister manager secrets put".into()),
            )
        })?;
        Ok(value)
    }

    /// Takes that value for the key of a sealed dataset.
    pub fn opens_dataset(&mut self, dataset: &str, path: &Path, name: &str) -> Result<(), miette::Report> {
        let key = VaultKey::parse(self.value(name)?.trim());
        let key = key.ok_or_else(|| {
            let text = format!("{name} is no key: 64 hexadecimal digits are wanted");
            failed(Exit::Failed, text, None)
        })?;
        let ciphertext = sealed_digest(path)?.ok_or_else(|| {
            let text = format!("{} has a `key` in the node file, and is not sealed", path.display());
            failed(Exit::Usage, text, Some("`cloister seal data` seals it".into()))
        })?;
        let plaintext = None;
        let parcel = ParcelKey {
            key,
            ciphertext,
            plaintext,
        };
        self.data.insert(dataset.to_owned(), parcel);
        Ok(())
    }

    /// A value as a file in memory, for what reads its files by name: it is there as long as the file is open.
    pub fn value_as_file(&self, name: &str) -> Result<(File, PathBuf), miette::Report> {
        let broken = |cause: std::io::Error| fail(Exit::Failed, cause);
        let mut file = File::from(memfd_create("secret", MemfdFlags::CLOEXEC).map_err(|cause| broken(cause.into()))?);
        file.write_all(self.value(name)?.as_bytes()).map_err(broken)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Ok((file, path))
    }

    /// A module's settings, with the values of the secrets that they name.
    pub fn settings(&self, module: &Module) -> Result<BTreeMap<String, SettingValue>, miette::Report> {
        let mut settings = settings(module);
        for value in settings.values_mut() {
            if let SettingValue::Text(text) = &*value
                && let Some(name) = text.strip_prefix(SECRET)
            {
                *value = SettingValue::Secret(SecretText::new(self.value(name)?));
            }
        }
        Ok(settings)
    }
}

/// The names of the secrets in a module's settings.
pub fn secrets_in(module: &Module) -> impl Iterator<Item = &str> {
    let texts = module.settings.values().filter_map(|value| match value {
        Scalar::Text(text) => Some(text.as_str()),
        _ => None,
    });
    texts.filter_map(|text| text.strip_prefix(SECRET))
}

/// The name of what is in a sealed file, by which its format is known.
pub fn plain_name(path: &Path) -> String {
    let name = path.display().to_string();
    name.strip_suffix(SEALED).map_or(name.clone(), str::to_owned)
}

/// SHA-256 of a file, if it is a sealed one.
pub fn sealed_digest(path: &Path) -> Result<Option<Digest>, miette::Report> {
    let Ok(mut file) = File::open(path) else {
        return Ok(None);
    };
    match starts_as_parcel(&mut file, path)? {
        true => files::digest_of(path).map(Some),
        false => Ok(None),
    }
}

/// Opens a sealed file to its end, and compares its kind and its content with what was said of it.
fn open_as(
    key: &ParcelKey,
    kind: ParcelKind,
    (path, file): (&Path, &File),
    sink: &mut dyn Write,
) -> Result<Digest, miette::Report> {
    let shown = path.display();
    let mut sink = Through::new(sink);
    let mut source = Through::new(BufReader::with_capacity(READ_AHEAD_BYTES, file));
    let (seen, _) = open_parcel(&key.key, Cipher::Bulk, &mut source, &mut sink)
        .map_err(|error| failed(Exit::Failed, format!("{shown}: {error}"), None))?;
    let (_, ciphertext) = source.finish();
    if ciphertext != key.ciphertext {
        return Err(failed(
            Exit::Failed,
            format!(
                "{shown} has the SHA-256 {ciphertext}, and the manager released the key of {}",
                key.ciphertext
            ),
            Some("put the sealed file back whose key was uploaded, or have its owner upload this one's".into()),
        ));
    }
    if seen != kind {
        return Err(failed(
            Exit::Failed,
            format!("{shown} holds a {seen}, wanted a {kind}"),
            None,
        ));
    }
    let (_, digest) = sink.finish();
    if let Some(wanted) = key.plaintext.filter(|wanted| *wanted != digest) {
        return Err(other_content(path, &digest, &wanted));
    }
    Ok(digest)
}

fn other_content(path: &Path, seen: &Digest, wanted: &Digest) -> miette::Report {
    failed(
        Exit::Denied,
        format!(
            "{} opens, but its content has the SHA-256 {seen}; {wanted} was wanted",
            path.display()
        ),
        Some("its owner sealed another file than the policy names: seal and upload that one".into()),
    )
}

fn no_key(path: &Path, what: &str, name: &str) -> miette::Report {
    failed(
        Exit::Denied,
        format!(
            "{} is sealed, and the manager released no key of the {what} {name} to this node",
            path.display()
        ),
        Some(
            "its owner uploads it: cloister manager secrets put; a node without [manager] takes files that are open"
                .into(),
        ),
    )
}

fn starts_as_parcel(file: &mut File, path: &Path) -> Result<bool, miette::Report> {
    let unreadable =
        |cause: std::io::Error| failed(Exit::Usage, format!("{} cannot be read: {cause}", path.display()), None);
    let mut head = Vec::with_capacity(PARCEL_HEADER_BYTES);
    file.take(PARCEL_HEADER_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(unreadable)?;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    Ok(is_parcel(&head))
}

/// The sealed files of some folders, by digest.
pub fn sealed_files(folders: &[PathBuf], limit: u64) -> Result<BTreeMap<Digest, PathBuf>, miette::Report> {
    let mut found = BTreeMap::new();
    for entry in folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .flatten()
    {
        let path = entry.path();
        let small = std::fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() <= limit);
        if small && let Some(digest) = sealed_digest(&path)? {
            found.insert(digest, path);
        }
    }
    Ok(found)
}

fn length(file: &File) -> u64 {
    file.metadata().map_or(0, |found| found.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cloister_policy::{Policy, Scalar};
    use cloister_sandbox::SettingValue;
    use cloister_testkit::wards::{Wards, WardsPolicy};
    use zeroize::Zeroizing;

    use super::Provisions;

    #[test]
    fn a_modules_secret_reaches_its_settings_and_no_text_of_them() {
        let founding = WardsPolicy {
            setting: "secret://gamma/token".into(),
            ..WardsPolicy::default()
        };
        let policy: std::sync::Arc<Policy> = Wards::new().policy(&founding);
        let named = |value: &Scalar| matches!(value, Scalar::Text(text) if text == "secret://gamma/token");
        let module = policy
            .modules
            .iter()
            .find(|module| module.settings.values().any(named))
            .unwrap();
        let provisions = Provisions {
            values: BTreeMap::from([("gamma/token".to_owned(), Zeroizing::new("s3cret".to_owned()))]),
            ..Provisions::default()
        };
        let settings = provisions.settings(module).unwrap();
        let secret =
            |value: &SettingValue| matches!(value, SettingValue::Secret(secret) if secret.expose() == "s3cret");
        assert!(settings.values().any(secret));
        assert!(!format!("{settings:?} {provisions:?}").contains("s3cret"));
        let missing = Provisions::default().settings(module).unwrap_err().to_string();
        assert!(missing.contains("gamma/token"), "{missing}");
    }
}
