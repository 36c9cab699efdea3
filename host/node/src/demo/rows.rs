//! Where the rows of an example's nodes come from: a CSV file beside the plan, dealt out anew for each run, or files that the person who
//! runs it has, of which each node takes its slice where they lie.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use cloister_data::Format;
use serde::Deserialize;

use super::plan::{NodePlan, Plan, PlanError};

/// The data of an example: `file` and `inputs`, or `folders`, `missing` and layouts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataPlan {
    /// A CSV file with a header, beside the plan, whose rows are dealt out.
    pub file: Option<PathBuf>,
    /// Seed of the order in which rows are dealt.
    pub seed: u64,
    /// What the model's inputs are made of, as the policy writes it.
    pub inputs: toml::Table,
    /// Folders in which files are looked for, one after the other; relative to the plan's.
    pub folders: Vec<PathBuf>,
    /// What somebody is told who has none of them.
    pub missing: String,
    /// The forms in which the files may lie there; the first whose files are all there is taken.
    #[serde(rename = "layout")]
    pub layouts: Vec<Layout>,
}

/// A form in which the data of an example are handed round.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The files of each dataset, by its name. Several are read one after another, which CIFAR-10's binary files allow.
    pub files: BTreeMap<String, Vec<PathBuf>>,
    /// What the model's inputs are made of in this form.
    pub inputs: toml::Table,
}

impl DataPlan {
    /// What does not go together, in words.
    pub fn check(&self, nodes: &[NodePlan]) -> Result<(), String> {
        let mut own = nodes.iter().filter(|node| node.has_rows());
        match (&self.file, self.layouts.is_empty()) {
            (Some(_), true) => match own.find(|node| node.share == 0 || node.slice.is_some()) {
                Some(node) => Err(format!(
                    "node {}: rows of a CSV file are dealt out, so a node has a share of them and no slice",
                    node.name
                )),
                None => Ok(()),
            },
            (None, false) => {
                for node in own {
                    let lacks = |layout: &&Layout| layout.files.get(&node.dataset).is_none_or(Vec::is_empty);
                    if node.share != 0 || self.layouts.iter().any(|layout| lacks(&layout)) {
                        return Err(format!(
                            "node {} has a share of the rows, or a layout has no file of its dataset {:?}; nodes take a slice of files",
                            node.name, node.dataset
                        ));
                    }
                }
                Ok(())
            }
            _ => Err("[data] has either a file, whose rows are dealt out, or folders with [[data.layout]]".into()),
        }
    }
}

/// The rows of all nodes, found.
pub enum Rows<'a> {
    /// Dealt out of a CSV file.
    Dealt {
        /// The plan.
        plan: &'a Plan,
        /// Each node's text.
        texts: BTreeMap<String, String>,
    },
    /// Files that are used where they lie.
    Found {
        /// Their form.
        layout: &'a Layout,
        /// The file of each dataset.
        files: BTreeMap<String, PathBuf>,
    },
}

/// Where a node's rows are.
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Their salt.
    pub salt: PathBuf,
    /// How the file is read.
    pub format: Format,
}

impl<'a> Rows<'a> {
    /// Looks for the data. What has to be joined is joined below `base`, once for all runs.
    pub fn find(plan: &'a Plan, base: &Path) -> Result<Self, PlanError> {
        if let Some(file) = &plan.data.file {
            let texts = deal(plan, file)?;
            return Ok(Self::Dealt { plan, texts });
        }
        let folders: Vec<PathBuf> = plan
            .data
            .folders
            .iter()
            .map(|folder| plan.folder.join(folder))
            .collect();
        for folder in &folders {
            for layout in &plan.data.layouts {
                if layout.files.values().flatten().all(|file| folder.join(file).is_file()) {
                    return found(layout, folder, base);
                }
            }
        }
        Err(PlanError::NoData {
            looked: folders.iter().map(|folder| folder.display().to_string()).collect(),
            missing: plan.data.missing.trim().to_owned(),
        })
    }

    /// What the model's inputs are made of.
    pub fn inputs(&self) -> &toml::Table {
        match self {
            Self::Dealt { plan, .. } => &plan.data.inputs,
            Self::Found { layout, .. } => &layout.inputs,
        }
    }

    /// Where a node's rows are, or will be once they are written to its folder.
    pub fn of(&self, node: &NodePlan, own: &Path) -> Option<Place> {
        let path = match self {
            Self::Dealt { .. } => own.join("data.csv"),
            Self::Found { files, .. } => files.get(&node.dataset)?.clone(),
        };
        let format = Format::of_name(&path.to_string_lossy())?;
        let salt = match self {
            Self::Dealt { .. } => cloister_data::salt::path_beside(&path),
            Self::Found { .. } => own.join("data.salt"),
        };
        Some(Place { path, salt, format })
    }

    /// The text that is a node's own, where rows are dealt out.
    pub fn text(&self, node: &NodePlan) -> Option<&str> {
        match self {
            Self::Dealt { texts, .. } => texts.get(&node.name).map(String::as_str),
            Self::Found { .. } => None,
        }
    }
}

/// The files of a layout in a folder; those that several make are joined.
fn found<'a>(layout: &'a Layout, folder: &Path, base: &Path) -> Result<Rows<'a>, PlanError> {
    let mut files = BTreeMap::new();
    for (dataset, parts) in &layout.files {
        let parts: Vec<PathBuf> = parts.iter().map(|part| folder.join(part)).collect();
        let read = |path: &Path, cause| PlanError::Read {
            path: path.display().to_string(),
            cause,
        };
        let path = match parts.as_slice() {
            [only] => only.canonicalize().map_err(|cause| read(only, cause))?,
            several => {
                let into = base.join(format!("{dataset}.bin"));
                join(several, &into).map_err(|cause| read(&into, cause))?;
                into
            }
        };
        files.insert(dataset.clone(), path);
    }
    Ok(Rows::Found { layout, files })
}

/// Writes files one after another into one, unless it is there already.
fn join(parts: &[PathBuf], into: &Path) -> io::Result<()> {
    let mut length = 0;
    for part in parts {
        length += part.metadata()?.len();
    }
    if into.metadata().is_ok_and(|found| found.len() == length) {
        return Ok(());
    }
    // Under another name until it is whole: a later run goes by the length.
    let unfinished = into.with_extension("unfinished");
    let mut out = BufWriter::new(File::create(&unfinished)?);
    for part in parts {
        io::copy(&mut BufReader::new(File::open(part)?), &mut out)?;
    }
    out.flush()?;
    drop(out);
    std::fs::rename(unfinished, into)
}

/// Deals the rows of a CSV file out: one text (header and rows) a node, disjoint, every row used once.
fn deal(plan: &Plan, file: &Path) -> Result<BTreeMap<String, String>, PlanError> {
    let path = plan.folder.join(file);
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(&path).map_err(|cause| PlanError::Read {
        path: shown.clone(),
        cause,
    })?;
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let header = lines.next().ok_or_else(|| PlanError::Meaning {
        path: shown,
        message: "the file has no header".into(),
    })?;
    let mut rows: Vec<&str> = lines.collect();
    shuffle(&mut rows, plan.data.seed);
    let shares: u64 = plan.nodes.iter().map(|node| u64::from(node.share)).sum();
    let mut dealt = BTreeMap::new();
    let (mut given, mut before) = (0u64, 0usize);
    for node in &plan.nodes {
        given += u64::from(node.share);
        let until = (rows.len() as u64 * given / shares) as usize;
        let own = rows.get(before..until).unwrap_or_default();
        let mut text = String::with_capacity(own.iter().map(|row| row.len() + 1).sum::<usize>() + header.len() + 1);
        for line in std::iter::once(&header).chain(own) {
            text.push_str(line);
            text.push('\n');
        }
        dealt.insert(node.name.clone(), text);
        before = until;
    }
    Ok(dealt)
}

/// Orders rows by the digest of seed and position: a fixed order that needs no generator.
fn shuffle(rows: &mut Vec<&str>, seed: u64) {
    let mut keyed: Vec<_> = rows
        .iter()
        .enumerate()
        .map(|(index, row)| {
            let mut key = seed.to_be_bytes().to_vec();
            key.extend_from_slice(&(index as u64).to_be_bytes());
            (cloister_tensor::Digest::of(&key), *row)
        })
        .collect();
    keyed.sort_by_key(|(key, _)| *key);
    *rows = keyed.into_iter().map(|(_, row)| row).collect();
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that panics says where")]
mod tests {
    use super::*;

    #[test]
    fn files_are_joined_once_and_again_when_they_changed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("1"), b"ab").unwrap();
        std::fs::write(at("2"), b"cde").unwrap();
        let parts = [at("1"), at("2")];
        join(&parts, &at("all")).unwrap();
        assert_eq!(std::fs::read(at("all")).unwrap(), b"abcde");
        std::fs::write(at("all"), b"12345").unwrap();
        join(&parts, &at("all")).unwrap();
        assert_eq!(std::fs::read(at("all")).unwrap(), b"12345", "it is there already");
        std::fs::write(at("2"), b"c").unwrap();
        join(&parts, &at("all")).unwrap();
        assert_eq!(std::fs::read(at("all")).unwrap(), b"abc");
        assert!(join(&[at("none")], &at("all")).is_err());
    }
}
