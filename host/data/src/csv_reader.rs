//! CSV: the strict part of RFC 4180.
//!
//! A header line, then a line a row; cells are separated by commas and may be quoted (`"a ""quoted"" cell, with comma"`).
//! Lines end with LF or CRLF; a UTF-8 byte order mark is skipped. Refused, since other readers disagree about them:
//! rows that are longer or shorter than the header, empty lines between rows, line breaks inside a cell, a quote inside
//! an unquoted cell and text after a closing quote. A reader that guesses there would commit to rows that nobody meant.

use std::io::{BufRead, BufReader, Read};

use crate::error::{DataError, Place, shown};
use crate::limits::DataLimits;
use crate::number::Raw;
use crate::source::{Source, SourceReader};
use crate::table::{Table, Wanted, bad_cell};

/// The lines of a CSV file, cut into cells.
pub(crate) struct CsvLines<'a> {
    file: &'a str,
    reader: BufReader<SourceReader>,
    limits: &'a DataLimits,
    line: Vec<u8>,
    /// Lines read so far.
    pub(crate) number: u64,
    cells: Cells,
}

/// The cells of one line: their text without quotes, and where each ends.
#[derive(Default)]
pub(crate) struct Cells {
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Cells {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.text[start..self.ends[index]]
    }

    /// Cuts a line (without its line end) into cells.
    fn cut(&mut self, line: &[u8], limit: usize) -> Result<(), String> {
        self.text.clear();
        self.ends.clear();
        let mut rest = line;
        loop {
            if self.ends.len() == limit {
                return Err(format!("seen more than {limit} cells, at most {limit} are allowed"));
            }
            let after = if let Some(quoted) = rest.strip_prefix(b"\"") {
                self.quoted(quoted)?
            } else {
                self.plain(rest)?
            };
            self.ends.push(self.text.len());
            match after {
                Some(next) => rest = next,
                None => return Ok(()),
            }
        }
    }

    /// Takes an unquoted cell; gives what follows its comma.
    fn plain<'l>(&mut self, rest: &'l [u8]) -> Result<Option<&'l [u8]>, String> {
        let end = rest.iter().position(|byte| *byte == b',').unwrap_or(rest.len());
        if rest[..end].contains(&b'"') {
            return Err(format!(
                "cell {}: a quote inside an unquoted cell; quote the cell and double the quote",
                self.ends.len() + 1
            ));
        }
        self.text.extend_from_slice(&rest[..end]);
        Ok(rest.get(end + 1..))
    }

    /// Takes a cell after its opening quote; gives what follows its comma.
    fn quoted<'l>(&mut self, mut rest: &'l [u8]) -> Result<Option<&'l [u8]>, String> {
        let cell = self.ends.len() + 1;
        loop {
            let Some(quote) = rest.iter().position(|byte| *byte == b'"') else {
                return Err(format!(
                    "cell {cell}: its quote is not closed on the line (a cell may not hold a line break)"
                ));
            };
            self.text.extend_from_slice(&rest[..quote]);
            rest = &rest[quote + 1..];
            match rest.first() {
                None => return Ok(None),
                Some(b',') => return Ok(Some(&rest[1..])),
                Some(b'"') => {
                    self.text.push(b'"');
                    rest = &rest[1..];
                }
                Some(_) => {
                    return Err(format!(
                        "cell {cell}: text after its closing quote, wanted a comma or the end of the line"
                    ));
                }
            }
        }
    }
}

impl<'a> CsvLines<'a> {
    pub(crate) fn open(source: &'a Source, limits: &'a DataLimits) -> Result<Self, DataError> {
        source.check_size(limits)?;
        let reader = BufReader::with_capacity(64 << 10, source.reader(0));
        Ok(Self {
            file: source.name(),
            reader,
            limits,
            line: Vec::new(),
            number: 0,
            cells: Cells::default(),
        })
    }

    /// The names in the header line.
    pub(crate) fn header(&mut self) -> Result<Vec<String>, DataError> {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        if !self.read_line()? {
            return Err(
                self.malformed("seen an empty file, wanted a header line with the names of the columns".to_owned())
            );
        }
        if self.line.starts_with(MARK) {
            self.line.drain(..MARK.len());
        }
        self.cut()?;
        let mut names = Vec::with_capacity(self.cells.len());
        for index in 0..self.cells.len() {
            let name = std::str::from_utf8(self.cells.get(index))
                .map(str::trim)
                .unwrap_or_default();
            if name.is_empty() {
                return Err(self.malformed(format!(
                    "line 1: column {} of the header has no name in UTF-8",
                    index + 1
                )));
            }
            names.push(name.to_owned());
        }
        Ok(names)
    }

    /// The next row with as many cells as the header; `None` at the end of the file.
    pub(crate) fn row(&mut self, columns: usize) -> Result<Option<&Cells>, DataError> {
        if !self.read_line()? {
            return Ok(None);
        }
        if self.line.is_empty() {
            let at = self.number;
            // Empty lines are harmless at the end, and there alone.
            while self.read_line()? {
                if !self.line.is_empty() {
                    return Err(self.malformed(format!("line {at}: seen an empty line between rows, wanted a row")));
                }
            }
            return Ok(None);
        }
        self.cut()?;
        if self.cells.len() != columns {
            let at = Place {
                row: self.number - 1,
                line: Some(self.number),
            };
            return Err(DataError::Ragged {
                file: self.file.to_owned(),
                at,
                seen: self.cells.len(),
                wanted: columns,
            });
        }
        Ok(Some(&self.cells))
    }

    fn cut(&mut self) -> Result<(), DataError> {
        let cut = self.cells.cut(&self.line, self.limits.columns);
        cut.map_err(|problem| self.malformed(format!("line {}: {problem}", self.number)))
    }

    /// Reads a line without its end; false at the end of the file.
    fn read_line(&mut self) -> Result<bool, DataError> {
        self.line.clear();
        let most = self.limits.line_bytes as u64 + 2;
        let read = (&mut self.reader).take(most).read_until(b'\n', &mut self.line);
        let count = read.map_err(|source| DataError::Read {
            file: self.file.to_owned(),
            source,
        })?;
        if count == 0 {
            return Ok(false);
        }
        self.number += 1;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
        }
        if self.line.len() > self.limits.line_bytes {
            let limit = self.limits.line_bytes as u64;
            let seen = self.line.len() as u64;
            return Err(DataError::TooMuch {
                file: format!("{}: line {}", self.file, self.number),
                what: "bytes in the line",
                seen,
                limit,
            });
        }
        Ok(true)
    }

    fn malformed(&self, problem: String) -> DataError {
        DataError::Malformed {
            file: self.file.to_owned(),
            problem,
        }
    }
}

/// Fills a table from a CSV file.
pub(crate) fn read(source: &Source, mut table: Table, limits: &DataLimits) -> Result<Table, DataError> {
    let mut lines = CsvLines::open(source, limits)?;
    let header = lines.header()?;
    let wanted = table.resolve(source.name(), &header)?;
    let mut row = 0_u64;
    loop {
        let read = match lines.row(header.len()) {
            Ok(None) => break,
            Ok(Some(cells)) => Ok(cells),
            Err(error @ DataError::Ragged { .. }) => Err(error),
            Err(error) => return Err(error),
        };
        table.grow(source.name(), row + 1)?;
        let written = read.and_then(|cells| write(source, &header, (row, cells), &wanted, &mut table));
        if let Err(error) = written {
            table.damage(row, error)?;
        }
        row += 1;
    }
    table.finish(source.name())
}

/// Writes the wanted cells of a row.
fn write(
    source: &Source,
    header: &[String],
    (row, cells): (u64, &Cells),
    wanted: &Wanted,
    table: &mut Table,
) -> Result<(), DataError> {
    for (column, targets) in wanted {
        let cell = cells.get(*column);
        let number = Raw::parse(cell);
        for target in targets {
            let written = number
                .ok_or_else(|| table.wanted(*target))
                .and_then(|raw| table.write(row, *target, raw));
            written.map_err(|wanted| {
                let at = Place {
                    row: row + 1,
                    line: Some(row + 2),
                };
                let seen = if cell.is_empty() {
                    "an empty cell".to_owned()
                } else {
                    shown(cell)
                };
                bad_cell(source.name(), at, &header[*column], seen, wanted)
            })?;
        }
    }
    Ok(())
}
