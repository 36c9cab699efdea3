//! A file system that behaves as configfs-tsm: folders are entries, attributes appear in them by themselves, `generation`
//! counts writes, and the quote is made when `outblob` is read.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use cloister_attestation::simulated::SimulatedTd;
use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request,
    TimeOrNow, WriteFlags,
};

const ATTRIBUTES: [&str; 4] = ["inblob", "outblob", "provider", "generation"];
/// Inode numbers of one entry: itself, and its attributes behind it.
const STRIDE: u64 = 16;

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing.
    None,
    /// Somebody else writes to the first so many entries while the quote is made.
    Raced(usize),
    /// The first so many reads of a quote find the kernel busy.
    Busy(usize),
    /// Another kind of machine.
    Provider(&'static str),
    /// The host does not answer for this long.
    Slow(Duration),
    /// Something else than a quote over what was written.
    Gives(Vec<u8>),
    /// Nobody may make entries.
    Closed,
}

#[derive(Default)]
struct Entry {
    name: String,
    inblob: Vec<u8>,
    outblob: Vec<u8>,
    generation: u64,
}

/// What was made in it.
pub struct Entries {
    made: BTreeMap<u64, Entry>,
    count: u64,
    faults: usize,
}

impl Entries {
    /// Entries that were made, ever.
    pub fn made(&self) -> u64 {
        self.count
    }

    /// Entries that are there.
    pub fn left(&self) -> usize {
        self.made.len()
    }
}

struct Configfs {
    td: Arc<SimulatedTd>,
    fault: Fault,
    entries: Arc<Mutex<Entries>>,
}

/// The mounted file system; unmounted when dropped.
pub struct Mounted {
    _session: BackgroundSession,
    folder: tempfile::TempDir,
    entries: Arc<Mutex<Entries>>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A process whose thread waits for its own file system can't end: whoever was given up is waited for here.
        for _ in 0..600 {
            if self.entries(Entries::left) == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A look at what was made in it.
    pub fn entries<T>(&self, look: impl FnOnce(&Entries) -> T) -> T {
        look(&self.entries.lock().unwrap())
    }
}

/// Mounts it before a TD of its own; nothing (and a line on stderr) where that can't be.
pub fn mount(fault: Fault) -> Option<Mounted> {
    mount_before(crate::device::td(), fault)
}

/// Mounts it before this TD.
pub fn mount_before(td: Arc<SimulatedTd>, fault: Fault) -> Option<Mounted> {
    let folder = tempfile::tempdir().unwrap();
    let entries = Arc::new(Mutex::new(Entries {
        made: BTreeMap::new(),
        count: 0,
        faults: 0,
    }));
    let configfs = Configfs {
        td,
        fault,
        entries: Arc::clone(&entries),
    };
    match fuser::spawn_mount(configfs, folder.path(), &fuser::Config::default()) {
        Ok(session) => Some(Mounted {
            _session: session,
            folder,
            entries,
        }),
        Err(error) => crate::device::not_mounted(&error),
    }
}

fn attr(ino: u64) -> FileAttr {
    let folder = ino.is_multiple_of(STRIDE) || ino == INodeNo::ROOT.0;
    FileAttr {
        ino: INodeNo(ino),
        size: 4096,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if folder {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: if folder { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Configfs {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let entries = self.entries.lock().unwrap();
        let found = if parent == INodeNo::ROOT {
            entries
                .made
                .iter()
                .find(|(_, entry)| OsStr::new(&entry.name) == name)
                .map(|(ino, _)| *ino)
        } else {
            let attribute = ATTRIBUTES.iter().position(|attribute| OsStr::new(attribute) == name);
            attribute
                .filter(|_| entries.made.contains_key(&parent.0))
                .map(|at| parent.0 + 1 + at as u64)
        };
        match found {
            Some(ino) => reply.entry(&Duration::ZERO, &attr(ino), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attr(ino.0));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<std::time::SystemTime>,
        _: Option<FileHandle>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<std::time::SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&Duration::ZERO, &attr(ino.0));
    }

    fn mkdir(&self, _: &Request, _: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        if matches!(self.fault, Fault::Closed) {
            return reply.error(Errno::EACCES);
        }
        let mut entries = self.entries.lock().unwrap();
        let ino = STRIDE * (1 + entries.count);
        entries.count += 1;
        let name = name.to_str().unwrap().to_owned();
        entries.made.insert(
            ino,
            Entry {
                name,
                ..Entry::default()
            },
        );
        reply.entry(&Duration::ZERO, &attr(ino), Generation(0));
    }

    fn rmdir(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let mut entries = self.entries.lock().unwrap();
        entries.made.retain(|_, entry| OsStr::new(&entry.name) != name);
        reply.ok();
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // As the kernel's attributes: each read asks anew, whatever the size says.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut entries = self.entries.lock().unwrap();
        let Some(entry) = entries.made.get_mut(&(ino.0 - ino.0 % STRIDE)) else {
            return reply.error(Errno::ENOENT);
        };
        if ino.0 % STRIDE != 1 {
            return reply.error(Errno::EACCES);
        }
        if data.is_empty() || data.len() > 64 {
            return reply.error(Errno::EINVAL);
        }
        entry.inblob = data.to_vec();
        entry.outblob.clear();
        entry.generation += 1;
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let (Fault::Slow(time), 2) = (&self.fault, ino.0 % STRIDE) {
            std::thread::sleep(*time);
        }
        let mut entries = self.entries.lock().unwrap();
        let faults = entries.faults;
        let Some(entry) = entries.made.get_mut(&(ino.0 - ino.0 % STRIDE)) else {
            return reply.error(Errno::ENOENT);
        };
        let mut fault = false;
        let bytes = match ino.0 % STRIDE {
            2 if entry.inblob.is_empty() => return reply.error(Errno::EINVAL),
            2 => {
                if offset == 0 {
                    match &self.fault {
                        Fault::Busy(times) if faults < *times => {
                            entries.faults += 1;
                            return reply.error(Errno::EBUSY);
                        }
                        Fault::Raced(times) if faults < *times => {
                            entry.inblob = vec![0xee; 64];
                            entry.generation += 1;
                            fault = true;
                        }
                        _ => {}
                    }
                    entry.outblob = match &self.fault {
                        Fault::Gives(bytes) => bytes.clone(),
                        _ => crate::device::quote(&self.td, &entry.inblob),
                    };
                }
                entry.outblob.clone()
            }
            3 => match &self.fault {
                Fault::Provider(name) => format!("{name}\n").into_bytes(),
                _ => b"tdx_guest\n".to_vec(),
            },
            4 => format!("{}\n", entry.generation).into_bytes(),
            _ => return reply.error(Errno::EACCES),
        };
        entries.faults += usize::from(fault);
        let start = usize::try_from(offset).unwrap().min(bytes.len());
        let end = (start + size as usize).min(bytes.len());
        reply.data(&bytes[start..end]);
    }
}
