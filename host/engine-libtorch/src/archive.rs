//! The archive that libtorch loads a class from.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The one object of the class `__torch__.Step`, which has no attribute but `training`, in Python's pickle format, protocol 2.
const OBJECT: &[u8] = b"\x80\x02c__torch__\nStep\nq\x00)\x81}(X\x08\x00\x00\x00trainingq\x01\x89ubq\x02.";
/// An empty tuple: the program has no constants outside of its text.
const CONSTANTS: &[u8] = b"\x80\x02).";
/// The archive's format.
const VERSION: &[u8] = b"3\n";

/// Puts a program's source beside an object of its class.
pub(crate) fn of(source: &[u8]) -> Result<Vec<u8>, String> {
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let files: [(&str, &[u8]); 4] = [
        ("step/data.pkl", OBJECT),
        ("step/code/__torch__.py", source),
        ("step/constants.pkl", CONSTANTS),
        ("step/version", VERSION),
    ];
    for (name, content) in files {
        archive.start_file(name, options).map_err(|error| error.to_string())?;
        archive.write_all(content).map_err(|error| error.to_string())?;
    }
    let archive = archive.finish().map_err(|error| error.to_string())?;
    Ok(archive.into_inner())
}
