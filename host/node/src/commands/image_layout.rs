//! A container image in the OCI layout, as a folder or as an archive (tar) of one: its digest, and how it is executed.
//!
//! Layers are not looked at: the manifest's digest stands for them. Of an archive, entries are listed within limits, and the
//! few documents that are wanted are read; what could mean something else to another reader of the archive (links, names
//! outside, the same name twice, headers that rename) is refused.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use cloister_tensor::Digest;
use serde::Deserialize;
use tar::{Archive, EntryType, PaxExtensions};

use crate::files;
use crate::ui::{Exit, failed};

/// No document of an image is larger than this.
pub(super) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Most entries of an archive: an image has at most 127 layers and a few documents, an archive perhaps some images.
const MAX_ENTRIES: usize = 4096;
/// Longest header in which an archive tells more of its next entry.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;
/// What such a header may tell: nothing that changes which bytes an entry has, or how it is named.
const EXTENSIONS: [&str; 8] = ["mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"];

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Option<Descriptor>,
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct ImageConfig {
    config: Option<Execution>,
}

/// How an image says that it is executed.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Execution {
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
}

/// The digest by which a registry names the image for this architecture, and how it is executed.
pub(super) fn read_image(path: &Path) -> Result<(String, Execution), miette::Report> {
    let mut layout = Layout::open(path)?;
    let bytes = layout.read(Path::new("index.json"))?;
    let index: Index = document(path, "index.json", &bytes)?;
    let mut descriptor = only(index.manifests, path)?;
    let mut manifest: Manifest = layout.blob(&descriptor.digest)?;
    if let Some(manifests) = manifest.manifests {
        descriptor = only(manifests, path)?;
        manifest = layout.blob(&descriptor.digest)?;
    }
    let config = manifest
        .config
        .ok_or_else(|| unsound(path, "its manifest names no configuration"))?;
    let config: ImageConfig = layout.blob(&config.digest)?;
    Ok((descriptor.digest, config.config.unwrap_or_default()))
}

/// The one manifest, or the one for Linux on x86-64.
fn only(manifests: Vec<Descriptor>, path: &Path) -> Result<Descriptor, miette::Report> {
    let mut fitting: Vec<_> = manifests
        .into_iter()
        .filter(|manifest| {
            let platform = manifest.platform.as_ref();
            platform.is_none_or(|platform| platform.os == "linux" && platform.architecture == "amd64")
        })
        .collect();
    match (fitting.pop(), fitting.is_empty()) {
        (Some(one), true) => Ok(one),
        (None, _) => Err(unsound(path, "no image for linux/amd64 is in it")),
        (Some(_), false) => Err(unsound(path, "several images are in it; one is wanted")),
    }
}

/// Where the documents of an image lie.
enum Layout {
    Folder(PathBuf),
    Archive {
        path: PathBuf,
        file: File,
        /// Offset and size of each file in it.
        entries: HashMap<PathBuf, (u64, u64)>,
    },
}

impl Layout {
    fn open(path: &Path) -> Result<Self, miette::Report> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_path_buf()));
        }
        // A device or a pipe has no place to go back to.
        let file = std::fs::metadata(path).and_then(|found| {
            if found.is_file() {
                File::open(path)
            } else {
                Err(std::io::ErrorKind::InvalidInput.into())
            }
        });
        let file = file.map_err(|error| unreadable(path, &error))?;
        let entries = list(&file, path)?;
        Ok(Self::Archive {
            path: path.to_path_buf(),
            file,
            entries,
        })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Archive { path, .. } => path,
        }
    }

    fn read(&mut self, name: &Path) -> Result<Vec<u8>, miette::Report> {
        let (path, file, entries) = match self {
            Self::Folder(folder) => return files::read(&folder.join(name), MAX_DOCUMENT_BYTES),
            Self::Archive { path, file, entries } => (path, file, entries),
        };
        let &(offset, size) = entries
            .get(name)
            .ok_or_else(|| unsound(path, &format!("no {} is in it", name.display())))?;
        if size > MAX_DOCUMENT_BYTES {
            let problem = format!(
                "{} has {size} bytes, wanted at most {MAX_DOCUMENT_BYTES}",
                name.display()
            );
            return Err(unsound(path, &problem));
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.take(size).read_to_end(&mut bytes))
            .map_err(|error| unreadable(path, &error))?;
        if bytes.len() as u64 != size {
            return Err(unsound(path, &format!("it is cut off within {}", name.display())));
        }
        Ok(bytes)
    }

    /// A document of the layout, which has to be what its digest says.
    fn blob<T: for<'de> Deserialize<'de>>(&mut self, digest: &str) -> Result<T, miette::Report> {
        let hex = digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
            .ok_or_else(|| unsound(self.path(), &format!("{digest:?} is no SHA-256 digest")))?;
        let name = Path::new("blobs").join("sha256").join(hex);
        let bytes = self.read(&name)?;
        let seen = Digest::of(&bytes).to_string();
        if seen != hex {
            let problem = format!("it has the digest {seen}: {}", name.display());
            return Err(unsound(self.path(), &problem));
        }
        document(self.path(), hex, &bytes)
    }
}

/// The files of an archive, by name: where each begins, and its size. No content is read.
fn list(file: &File, path: &Path) -> Result<HashMap<PathBuf, (u64, u64)>, miette::Report> {
    let broken = |error: std::io::Error| unsound(path, &format!("as an archive (tar): {error}"));
    let mut entries = HashMap::new();
    let mut archive = Archive::new(file);
    for (count, entry) in archive.entries_with_seek().map_err(broken)?.raw(true).enumerate() {
        let mut entry = entry.map_err(broken)?;
        if count == MAX_ENTRIES {
            return Err(unsound(path, &format!("it has more than {MAX_ENTRIES} entries")));
        }
        let size = entry.header().entry_size().map_err(broken)?;
        let written = entry.path().map_err(broken)?.into_owned();
        let shown = written.display();
        match entry.header().entry_type() {
            EntryType::Regular => {}
            EntryType::Directory => continue,
            EntryType::XHeader | EntryType::XGlobalHeader if size <= MAX_EXTENSION_BYTES => {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(broken)?;
                let known = |key: &str| EXTENSIONS.contains(&key) || key.starts_with("SCHILY.xattr.");
                let mut all = PaxExtensions::new(&bytes);
                if !all.all(|one| one.is_ok_and(|one| one.key().is_ok_and(known))) {
                    return Err(unsound(
                        path,
                        &format!("{shown} is a header that changes names or sizes"),
                    ));
                }
                continue;
            }
            other => {
                let problem = format!(
                    "{shown} is neither a file nor a folder (type {:?})",
                    char::from(other.as_byte())
                );
                return Err(unsound(path, &problem));
            }
        }
        let mut name = PathBuf::new();
        for component in written.components() {
            match component {
                Component::Normal(part) => name.push(part),
                Component::CurDir => {}
                _ => return Err(unsound(path, &format!("{shown} lies outside of it"))),
            }
        }
        if entries.insert(name, (entry.raw_file_position(), size)).is_some() {
            return Err(unsound(path, &format!("{shown} is in it twice")));
        }
    }
    Ok(entries)
}

fn document<T: for<'de> Deserialize<'de>>(path: &Path, name: &str, bytes: &[u8]) -> Result<T, miette::Report> {
    serde_json::from_slice(bytes).map_err(|error| unsound(path, &format!("in {name}: {error}")))
}

fn unreadable(path: &Path, error: &std::io::Error) -> miette::Report {
    failed(
        Exit::Usage,
        format!("{} cannot be read: {error}", path.display()),
        Some("a folder in the OCI layout, or a file that is an archive (tar) of one, is wanted".into()),
    )
}

fn unsound(path: &Path, problem: &str) -> miette::Report {
    failed(
        Exit::Usage,
        format!("{} is no image in the OCI layout: {problem}", path.display()),
        Some(
            "`podman save --format oci-archive` and `skopeo copy ... oci-archive:FILE` write one (not compressed), `skopeo copy ... oci:DIR` \
             a folder"
                .into(),
        ),
    )
}
