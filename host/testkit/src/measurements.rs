//! A file system that behaves as the kernel's folder of measurement registers: `rtmr3:sha384` gives RTMR3 when it is read,
//! and extends it by the 48 bytes that are written at once.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use cloister_attestation::simulated::SimulatedTd;
use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

const ATTRIBUTE: &str = "rtmr3:sha384";
const REGISTER: u64 = 2;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// A kernel that shows registers and extends none.
    ReadOnly,
    /// Writes are taken, and the register stays as it was.
    Deaf,
    /// Somebody else extends the register at the same time.
    Raced,
    /// A register of another length.
    Short,
}

struct Measurements {
    td: Arc<SimulatedTd>,
    fault: Fault,
}

/// The mounted file system; unmounted when dropped.
pub struct Mounted {
    _session: BackgroundSession,
    folder: tempfile::TempDir,
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Mounts it before this TD; nothing (and a line on stderr) where that can't be.
pub fn mount(td: Arc<SimulatedTd>, fault: Fault) -> Option<Mounted> {
    let folder = tempfile::tempdir().unwrap();
    match fuser::spawn_mount(Measurements { td, fault }, folder.path(), &fuser::Config::default()) {
        Ok(session) => Some(Mounted {
            _session: session,
            folder,
        }),
        Err(error) => crate::device::not_mounted(&error),
    }
}

fn attr(ino: u64) -> FileAttr {
    let file = ino == REGISTER;
    FileAttr {
        ino: INodeNo(ino),
        size: if file { 48 } else { 4096 },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if file {
            FileType::RegularFile
        } else {
            FileType::Directory
        },
        perm: if file { 0o644 } else { 0o755 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Measurements {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == ATTRIBUTE {
            return reply.entry(&Duration::ZERO, &attr(REGISTER), Generation(0));
        }
        reply.error(Errno::ENOENT);
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

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let digest = <&[u8; 48]>::try_from(data);
        let (Ok(digest), 0) = (digest, offset) else {
            return reply.error(Errno::EINVAL);
        };
        match self.fault {
            Fault::ReadOnly => return reply.error(Errno::EACCES),
            Fault::Deaf => {}
            Fault::Raced => {
                self.td.extend_rtmr3(&[0xee; 48]);
                self.td.extend_rtmr3(digest);
            }
            Fault::None | Fault::Short => self.td.extend_rtmr3(digest),
        }
        reply.written(48);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let value = self.td.rtmr3();
        let value = if self.fault == Fault::Short {
            &value[..32]
        } else {
            &value[..]
        };
        let start = usize::try_from(offset).unwrap().min(value.len());
        let end = (start + size as usize).min(value.len());
        reply.data(&value[start..end]);
    }
}
