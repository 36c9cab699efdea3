//! Folders of images, one a class, in a ZIP archive: `zip -r train.zip train`, or Python's `shutil.make_archive`.
//!
//! A folder is packed because a dataset is one open file: whoever parses it (the runner) reaches no path. Nothing is unpacked to
//! disk. Images are rows in the order of their names' bytes, whatever the order in which they were packed. Their columns are those of
//! IDX and CIFAR-10: `label`, and `p0..` planes first. A label is the place of the image's folder among all that hold images, or
//! nothing at all, sorted by the bytes of their names: who lacks images of a class keeps its empty folder, so that all participants
//! count alike.

use std::collections::BTreeSet;
use std::io::{BufReader, Read};

use zip::ZipArchive;

use crate::error::{DataError, Place};
use crate::images::{self, ImageSize, MAX_IMAGE_BYTES};
use crate::limits::DataLimits;
use crate::number::Raw;
use crate::source::{Source, SourceReader};
use crate::summary::{ColumnKind, ColumnSummary, FileSummary};
use crate::table::{Table, Wanted};

/// Bytes of an image's name in an archive.
const MAX_PATH_BYTES: usize = 1024;

type Zip = ZipArchive<BufReader<SourceReader>>;

/// An image of the archive.
#[derive(Debug)]
struct Entry {
    path: String,
    index: usize,
    label: usize,
}

/// Fills a table from an archive.
pub(crate) fn read(source: &Source, mut table: Table, limits: &DataLimits) -> Result<Table, DataError> {
    let (mut zip, entries) = open(source, limits)?;
    let mut found: Option<(ImageSize, Wanted)> = None;
    for (row, entry) in entries.iter().enumerate() {
        let row = row as u64;
        table.grow(source.name(), row + 1)?;
        if !table.takes(row) {
            continue;
        }
        let file = match unpacked(&mut zip, entry.index) {
            Ok(file) => file,
            Err(seen) => {
                let wanted = "an image".to_owned();
                table.damage(row, damaged(source, row, entry, seen, wanted))?;
                continue;
            }
        };
        // The first that can be read says how large all are.
        let (size, wanted) = match &found {
            Some(found) => found,
            None => match images::size_of(&file, limits.columns.saturating_sub(1)) {
                Ok(size) => {
                    let wanted = table.resolve(source.name(), &columns(size))?;
                    found.insert((size, wanted))
                }
                Err(seen) => {
                    let wanted = "a JPEG or PNG image".to_owned();
                    table.damage(row, damaged(source, row, entry, seen, wanted))?;
                    continue;
                }
            },
        };
        let written = images::decoded(&file, *size)
            .map_err(|seen| (seen, size.wanted()))
            .and_then(|pixels| {
                for (column, targets) in wanted {
                    let value = match column.checked_sub(1) {
                        Some(element) => i128::from(pixels.element(element)),
                        None => entry.label as i128,
                    };
                    for target in targets {
                        let written = table.write(row, *target, Raw::Whole(value));
                        written.map_err(|wanted| (value.to_string(), wanted))?;
                    }
                }
                Ok(())
            });
        if let Err((seen, wanted)) = written {
            table.damage(row, damaged(source, row, entry, seen, wanted))?;
        }
    }
    table.finish(source.name())
}

/// The columns of an archive, by its first readable image, and its images.
pub(crate) fn summary(source: &Source, limits: &DataLimits) -> Result<FileSummary, DataError> {
    let (mut zip, entries) = open(source, limits)?;
    let sizes = entries.iter().filter_map(|entry| {
        let file = unpacked(&mut zip, entry.index).ok()?;
        images::size_of(&file, limits.columns.saturating_sub(1)).ok()
    });
    let names = sizes.take(1).flat_map(columns).collect::<Vec<_>>();
    let columns = names.into_iter().map(|name| ColumnSummary {
        name,
        kind: ColumnKind::Whole,
    });
    Ok(FileSummary {
        columns: columns.collect(),
        rows: entries.len() as u64,
    })
}

fn columns(size: ImageSize) -> Vec<String> {
    let pixels = (0..size.elements()).map(|at| format!("p{at}"));
    std::iter::once("label".to_owned()).chain(pixels).collect()
}

fn malformed(source: &Source, problem: String) -> DataError {
    DataError::Malformed {
        file: source.name().to_owned(),
        problem,
    }
}

fn damaged(source: &Source, row: u64, entry: &Entry, seen: String, wanted: String) -> DataError {
    DataError::Image {
        file: source.name().to_owned(),
        at: Place {
            row: row + 1,
            line: None,
        },
        image: entry.path.clone(),
        seen,
        wanted,
    }
}

/// Opens an archive and puts its images in order.
fn open(source: &Source, limits: &DataLimits) -> Result<(Zip, Vec<Entry>), DataError> {
    source.check_size(limits)?;
    let cut = |text: String| text.chars().take(120).collect::<String>();
    let no_zip = |error: zip::result::ZipError| {
        malformed(source, format!("no readable ZIP archive: {}", cut(error.to_string())))
    };
    let mut zip = ZipArchive::new(BufReader::new(source.reader(0))).map_err(no_zip)?;
    if zip.len() as u64 > limits.rows {
        return Err(DataError::TooMuch {
            file: source.name().to_owned(),
            what: "entries of the archive",
            seen: zip.len() as u64,
            limit: limits.rows,
        });
    }
    let mut folders = BTreeSet::new();
    let mut images: Vec<(String, usize)> = Vec::new();
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(no_zip)?;
        let path = entry
            .name()
            .map_err(|error| malformed(source, cut(error.to_string())))?
            .into_owned();
        let folder = entry.is_dir();
        if path.len() > MAX_PATH_BYTES {
            let problem = format!(
                "entry {index} has a name of {} bytes, wanted at most {MAX_PATH_BYTES}",
                path.len()
            );
            return Err(malformed(source, problem));
        }
        let path = path.trim_end_matches('/').to_owned();
        // What file managers leave.
        if path.split('/').any(|part| part.starts_with('.') || part == "__MACOSX") {
            continue;
        }
        if folder {
            folders.insert(path);
        } else {
            images.push((path, index));
        }
    }
    images.sort_unstable();
    if let Some(pair) = images.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(malformed(source, format!("{:?} is there twice", pair[0].0)));
    }
    let classes = classes(source, folders, &images)?;
    let entries = images.into_iter().map(|(path, index)| {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let label = classes
            .binary_search_by(|class| class.as_str().cmp(folder))
            .unwrap_or_default();
        Entry { path, index, label }
    });
    Ok((zip, entries.collect()))
}

/// The folders that are classes: those with images, and those with nothing.
fn classes(source: &Source, folders: BTreeSet<String>, images: &[(String, usize)]) -> Result<Vec<String>, DataError> {
    let mut classes = BTreeSet::new();
    let mut parents = BTreeSet::new();
    for (path, _) in images {
        let lower = path.to_ascii_lowercase();
        let known = [".jpg", ".jpeg", ".png"].iter().any(|end| lower.ends_with(end));
        let Some((folder, _)) = path.rsplit_once('/').filter(|_| known) else {
            let problem = format!("seen {path:?}, wanted images (.jpg, .jpeg, .png) in folders, one folder a class");
            return Err(malformed(source, problem));
        };
        classes.insert(folder.to_owned());
    }
    for path in classes.iter().chain(&folders) {
        let mut path = path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            parents.insert(parent.to_owned());
            path = parent;
        }
    }
    if let Some(both) = classes.iter().find(|class| parents.contains(*class)) {
        let problem =
            format!("folder {both:?} has images and folders side by side; a class is a folder of images alone");
        return Err(malformed(source, problem));
    }
    classes.extend(folders.into_iter().filter(|folder| !parents.contains(folder)));
    Ok(classes.into_iter().collect())
}

/// The bytes of an image; what is wrong where they can't be had.
fn unpacked(zip: &mut Zip, index: usize) -> Result<Vec<u8>, String> {
    let broken = |error: &dyn std::fmt::Display| {
        let cause: String = error.to_string().chars().take(80).collect();
        format!("an entry that can't be unpacked ({cause})")
    };
    let entry = zip.by_index(index).map_err(|error| broken(&error))?;
    let mut file = Vec::new();
    // One byte more than is taken, whatever the archive says of its size.
    let mut limited = entry.take(MAX_IMAGE_BYTES as u64 + 1);
    limited.read_to_end(&mut file).map_err(|error| broken(&error))?;
    Ok(file)
}
