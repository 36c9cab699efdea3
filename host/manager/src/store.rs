//! The manager's file: sealed records, sealed audit lines, and one head that says which of them belong together (`FORMAT.md`).
//!
//! `redb`, because a commit is one file's one fsync, a kill at any instant leaves the last commit, and it is plain Rust without
//! a process of its own; fjall's log-structured trees write faster, which nothing here waits for, and keep a folder of files and
//! background threads. What redb can't give is trust in its file: whoever has the disk may put back single pages. So the records
//! are read once, at the start, against the head's digest of all of them; from then on memory is what counts, and the file is only
//! written. Audit lines are read again, each against its own place.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use cloister_attestation::encoding::Layout;
use cloister_audit::{Chain, Subject};
use cloister_tensor::Digest;
use redb::{ReadTransaction, ReadableTable as _, TableDefinition, WriteTransaction};
use zeroize::Zeroizing;

use crate::batch::{Batch, Commits, Position};
use crate::changes::Changes;
use crate::error::{OpenError, StoreError};
use crate::file::{File, guarded};
use crate::head::{About, FORMAT, Head};
use crate::key::{EarlierKeys, RecordCipher};
use crate::state::State;
use crate::witness::Mark;

/// Sealed records, by the code of their name.
pub(crate) const RECORDS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("records");
/// Sealed audit lines, by their index.
pub(crate) const LINES: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("lines");
/// `about` in the clear, `head` sealed.
pub(crate) const TOP: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("top");
const ABOUT: &str = "about";
const HEAD: &str = "head";

/// A file that is open; what is in it is not known yet.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: Arc<File>,
    pub(crate) about: About,
}

impl Opened {
    /// Opens a store, which nobody else may have open.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let file = File::open(path)?;
        let about = guarded(|| about(&file))?;
        let file = Arc::new(file);
        Ok(Self { file, about })
    }
}

pub(crate) fn about(file: &File) -> Result<About, StoreError> {
    let read = file.read()?;
    let top = read.open_table(TOP).map_err(StoreError::io("read"))?;
    let about = top.get(ABOUT).map_err(StoreError::io("read"))?;
    let bad = |why: &str| StoreError::tampered("a description of itself", why);
    let about = about.ok_or_else(|| bad("it is not there"))?;
    let about: About = serde_json::from_slice(about.value()).map_err(|error| bad(&error.to_string()))?;
    if about.format != FORMAT {
        return Err(bad(&format!("format {}, wanted {FORMAT}", about.format)));
    }
    Ok(about)
}

/// What a run of the manager starts with.
pub(crate) struct Contents {
    pub(crate) head: Head,
    pub(crate) chain: Chain,
}

/// A store with its key.
pub(crate) struct Store {
    file: Arc<File>,
    pub(crate) about: About,
    /// The description as it was written last.
    about_written: Vec<u8>,
    cipher: RecordCipher,
    commits: Box<dyn Commits>,
    /// What stands for each record in the head's digest.
    tags: HashMap<[u8; 32], [u8; 32]>,
    records: [u8; 32],
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({} of {:?})", self.about.store, self.about.federation)
    }
}

impl Store {
    /// A new, empty store. Nothing is in it before the first commit.
    pub(crate) fn create(path: &Path, about: About, cipher: RecordCipher) -> Result<Self, OpenError> {
        Ok(Self::of(Arc::new(File::create(path)?), about, cipher))
    }

    fn of(file: Arc<File>, about: About, cipher: RecordCipher) -> Self {
        Self {
            commits: Box::new(Alone(Arc::clone(&file))),
            file,
            about,
            about_written: Vec::new(),
            cipher,
            tags: HashMap::new(),
            records: [0; 32],
        }
    }

    /// Reads and checks everything: each record opens, all of them together are the head's, and the audit log's lines follow each
    /// other. `state` gets the records.
    pub(crate) fn load(
        opened: Opened,
        cipher: RecordCipher,
        subject: Subject,
        state: &mut State,
    ) -> Result<(Self, Contents), StoreError> {
        let mut store = Self::of(opened.file, opened.about, cipher);
        store.about_written = serde_json::to_vec(&store.about).map_err(StoreError::io("read"))?;
        let contents = guarded(|| store.read_all(subject, state))?;
        Ok((store, contents))
    }

    fn read_all(&mut self, subject: Subject, state: &mut State) -> Result<Contents, StoreError> {
        let mut earlier = EarlierKeys::default();
        let read = self.file.read()?;
        let head = head(&read, &self.cipher, &mut earlier)?;
        let records = read.open_table(RECORDS).map_err(StoreError::io("read"))?;
        for record in records.iter().map_err(StoreError::io("read"))? {
            let (place, sealed) = record.map_err(StoreError::io("read"))?;
            let (place, sealed) = (place.value(), sealed.value());
            let bad = |why: &str| StoreError::tampered("a record", why);
            let opened = self.cipher.open(&mut earlier, place, sealed);
            let (version, plain) = opened.ok_or_else(|| bad("it does not open"))?;
            let (name, content) = named(&plain).ok_or_else(|| bad("it has no name"))?;
            let code: [u8; 32] = place.try_into().map_err(|_| bad("its place has another length"))?;
            if code != self.cipher.place(name) || version > head.version {
                return Err(bad("it is of another name or a later version"));
            }
            let tag = self.cipher.tag(place, sealed);
            exclusive_or(&mut self.records, &tag);
            self.tags.insert(code, tag);
            let taken = state.read(name, content);
            taken.map_err(|why| StoreError::tampered(format!("the record {name:?}"), why))?;
        }
        if self.records != *head.records.as_bytes() {
            return Err(StoreError::Mixed);
        }
        let chain = self.chain(&read, &mut earlier, &head, subject)?;
        if self.about.recovery.epoch != head.epoch {
            let why = "its recovery shares are of another epoch than its records";
            return Err(StoreError::tampered("a description of itself", why));
        }
        Ok(Contents { head, chain })
    }

    fn chain(
        &self,
        read: &ReadTransaction,
        earlier: &mut EarlierKeys,
        head: &Head,
        subject: Subject,
    ) -> Result<Chain, StoreError> {
        let mut chain = Chain::new(subject);
        let lines = read.open_table(LINES).map_err(StoreError::io("read"))?;
        for line in lines.iter().map_err(StoreError::io("read"))? {
            let (index, sealed) = line.map_err(StoreError::io("read"))?;
            let line = self.line(earlier, index.value(), sealed.value())?;
            let follows = chain.follow(&line);
            follows.map_err(|error| StoreError::tampered("an audit log", error.to_string()))?;
        }
        if chain.lines() != head.lines {
            let why = format!("it has {} lines; {} are wanted", chain.lines(), head.lines);
            return Err(StoreError::tampered("an audit log", why));
        }
        Ok(chain)
    }

    fn line(&self, earlier: &mut EarlierKeys, index: u64, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let opened = self.cipher.open(earlier, &index.to_be_bytes(), sealed);
        let bad = || StoreError::tampered(format!("line {} of the audit log", index + 1), "it does not open");
        opened.map(|(_, line)| line).ok_or_else(bad)
    }

    /// Audit lines from that index on.
    pub(crate) fn lines(&self, from: u64, limit: usize) -> Result<Vec<String>, StoreError> {
        guarded(|| self.read_lines(from, limit))
    }

    fn read_lines(&self, from: u64, limit: usize) -> Result<Vec<String>, StoreError> {
        let read = self.file.read()?;
        let table = read.open_table(LINES).map_err(StoreError::io("read"))?;
        let mut earlier = EarlierKeys::default();
        let found = table.range(from..).map_err(StoreError::io("read"))?;
        let found = found.take(limit).map(|line| {
            let (index, sealed) = line.map_err(StoreError::io("read"))?;
            let line = self.line(&mut earlier, index.value(), sealed.value())?;
            let text = String::from_utf8(line.to_vec());
            text.map_err(|_| StoreError::tampered("an audit log", "a line is no text"))
        });
        found.collect()
    }

    /// Seals records, lines and head, and hands them over to be written, all or none. When it fails, neither
    /// what is on the disk nor what is in memory is to be used any more.
    pub(crate) fn commit(
        &mut self,
        changes: &Changes,
        new_lines: &[(u64, String)],
        chain: &Chain,
        head: &mut Head,
    ) -> Result<(), StoreError> {
        let batch = self.seal(changes, new_lines, chain, head)?;
        self.commits.commit(batch)
    }

    fn seal(
        &mut self,
        changes: &Changes,
        new_lines: &[(u64, String)],
        chain: &Chain,
        head: &mut Head,
    ) -> Result<Batch, StoreError> {
        let base = position(head);
        let version = head.version + 1;
        let refused = || StoreError::Cryptography;
        let mut records = Vec::new();
        for (name, content) in changes.records() {
            let place = self.cipher.place(name);
            let sealed = match content {
                Some(content) => {
                    let plain = with_name(name, content);
                    Some(self.cipher.seal(&place, version, &plain).ok_or_else(refused)?)
                }
                None => None,
            };
            let new = sealed.as_ref().map(|sealed| self.cipher.tag(&place, sealed));
            let old = match new {
                Some(tag) => self.tags.insert(place, tag),
                None => self.tags.remove(&place),
            };
            for tag in [old, new].into_iter().flatten() {
                exclusive_or(&mut self.records, &tag);
            }
            records.push((place, sealed));
        }
        let mut lines = Vec::new();
        for (index, line) in new_lines {
            let place = index.to_be_bytes();
            let sealed = self.cipher.seal(&place, version, line.as_bytes()).ok_or_else(refused)?;
            lines.push((*index, sealed));
        }
        head.version = version;
        head.records = Digest::from_bytes(self.records);
        head.lines = chain.lines();
        head.epoch = self.about.recovery.epoch;
        let layout = Layout::new("cloister/manager-state/v1")
            .lp(self.about.federation.as_bytes())
            .raw(self.about.store.as_bytes())
            .raw(&version.to_be_bytes())
            .raw(head.digest.as_bytes())
            .raw(&self.records)
            .raw(&head.lines.to_be_bytes())
            .raw(chain.digest().as_bytes());
        head.digest = Digest::of(&layout.into_bytes());
        let text = serde_json::to_vec(head).map_err(StoreError::io("written"))?;
        let sealed = self.cipher.seal(HEAD.as_bytes(), version, &text).ok_or_else(refused)?;
        let about = serde_json::to_vec(&self.about).map_err(StoreError::io("written"))?;
        let changed = about != self.about_written;
        if changed {
            self.about_written.clone_from(&about);
        }
        Ok(Batch {
            base,
            after: position(head),
            head: sealed,
            about: changed.then_some(about),
            records,
            lines,
        })
    }

    /// Makes sure that the state after the last commit is still the newest.
    pub(crate) fn confirm(&mut self, head: &Head) -> Result<(), StoreError> {
        self.commits.confirm(&position(head))
    }

    /// From now on commits go there.
    pub(crate) fn send_to(&mut self, commits: Box<dyn Commits>) {
        self.commits = commits;
    }

    /// File, description and key of a store that is not written this way any more.
    pub(crate) fn into_parts(self) -> (Arc<File>, About, RecordCipher) {
        (self.file, self.about, self.cipher)
    }

    /// The mark of a state.
    pub(crate) fn mark(&self, head: &Head, chain: &Chain) -> Mark {
        Mark {
            store: self.about.store,
            version: head.version,
            digest: head.digest,
            lines: chain.lines(),
            line: chain
                .checkpoint()
                .map_or(Digest::from_bytes([0; 32]), |last| last.digest),
        }
    }

    /// The state key under another recovery key.
    pub(crate) fn cipher(&self) -> &RecordCipher {
        &self.cipher
    }

    /// A copy of the file as of the last commit, sealed as it is. It opens as the store does: with the shares, and only if no
    /// witness has seen a newer state.
    pub(crate) fn copy(&self, to: &Path) -> Result<(), OpenError> {
        let copy = File::create(to)?;
        Ok(guarded(|| self.copy_all(&copy))?)
    }

    fn copy_all(&self, copy: &File) -> Result<(), StoreError> {
        let (read, write) = (self.file.read()?, copy.write()?);
        macro_rules! copied {
            ($table:expr) => {{
                let from = read.open_table($table).map_err(StoreError::io("read"))?;
                let mut to = write.open_table($table).map_err(StoreError::io("backed up"))?;
                for entry in from.iter().map_err(StoreError::io("read"))? {
                    let (key, value) = entry.map_err(StoreError::io("read"))?;
                    to.insert(key.value(), value.value())
                        .map_err(StoreError::io("backed up"))?;
                }
            }};
        }
        copied!(TOP);
        copied!(RECORDS);
        copied!(LINES);
        write.commit().map_err(StoreError::io("backed up"))
    }
}

/// Commits of a manager that runs alone: to its own file.
struct Alone(Arc<File>);

impl Commits for Alone {
    fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        let write = self.0.write()?;
        write_batch(&write, &batch)?;
        write.commit().map_err(StoreError::io("written"))
    }

    fn confirm(&mut self, _at: &Position) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Writes what a batch says; it stands when the transaction is committed.
pub(crate) fn write_batch(write: &WriteTransaction, batch: &Batch) -> Result<(), StoreError> {
    let mut records = write.open_table(RECORDS).map_err(StoreError::io("written"))?;
    for (place, sealed) in &batch.records {
        match sealed {
            Some(sealed) => records.insert(&place[..], &sealed[..]).map(drop),
            None => records.remove(&place[..]).map(drop),
        }
        .map_err(StoreError::io("written"))?;
    }
    let mut lines = write.open_table(LINES).map_err(StoreError::io("written"))?;
    for (index, sealed) in &batch.lines {
        lines.insert(index, &sealed[..]).map_err(StoreError::io("written"))?;
    }
    let mut top = write.open_table(TOP).map_err(StoreError::io("written"))?;
    top.insert(HEAD, &batch.head[..]).map_err(StoreError::io("written"))?;
    if let Some(about) = &batch.about {
        top.insert(ABOUT, &about[..]).map_err(StoreError::io("written"))?;
    }
    Ok(())
}

/// What the last commit left.
pub(crate) fn read_head(file: &File, cipher: &RecordCipher) -> Result<Head, StoreError> {
    head(&file.read()?, cipher, &mut EarlierKeys::default())
}

fn head(read: &ReadTransaction, cipher: &RecordCipher, earlier: &mut EarlierKeys) -> Result<Head, StoreError> {
    let top = read.open_table(TOP).map_err(StoreError::io("read"))?;
    let head = top.get(HEAD).map_err(StoreError::io("read"))?;
    let bad = |why: &str| StoreError::tampered("a head", why);
    let head = head.ok_or_else(|| bad("it is not there"))?;
    let opened = cipher.open(earlier, HEAD.as_bytes(), head.value());
    let (version, plain) = opened.ok_or_else(|| bad("it does not open"))?;
    let head: Head = serde_json::from_slice(&plain).map_err(|error| bad(&error.to_string()))?;
    if head.version != version {
        return Err(bad("it is of another version"));
    }
    Ok(head)
}

pub(crate) fn position(head: &Head) -> Position {
    Position {
        version: head.version,
        digest: head.digest,
    }
}

/// A record's name in front of its content: u16 length, big endian. Names are far shorter than that can say.
fn with_name(name: &str, content: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut plain = Zeroizing::new(Vec::with_capacity(2 + name.len() + content.len()));
    plain.extend_from_slice(&(name.len() as u16).to_be_bytes());
    plain.extend_from_slice(name.as_bytes());
    plain.extend_from_slice(content);
    plain
}

fn named(plain: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = plain.split_first_chunk::<2>()?;
    let (name, content) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    Some((str::from_utf8(name).ok()?, content))
}

fn exclusive_or(sum: &mut [u8; 32], tag: &[u8; 32]) {
    sum.iter_mut().zip(tag).for_each(|(sum, tag)| *sum ^= tag);
}
