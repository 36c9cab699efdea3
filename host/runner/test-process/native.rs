//! What native code that was taken over would try, in a runner that confined itself. Each attempt says on standard error how
//! it went: `refused: ...` or `DONE`.

#![allow(
    unsafe_code,
    reason = "system calls that no safe wrapper makes; nothing here is in the shipped program"
)]

use std::ffi::c_long;
use std::fs::{File, OpenOptions};
use std::io::{Error, Result, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::process::{Resource, Rlimit, Signal};

/// Makes an attempt, says how it went, and ends the process; returns where the process has to live on.
pub(crate) fn attempt(what: &str, keeper: c_long) {
    let outcome = match what {
        "compute" => {
            std::thread::spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
            return;
        }
        _ => attempted(what, keeper),
    };
    say(outcome);
}

/// A thread that is there before the confinement, and opens a file once it has happened.
pub(crate) fn old_thread() -> impl FnOnce() {
    let (tell, told) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if told.recv().is_ok() {
            say(attempted("open", 0));
        }
    });
    move || {
        let _ = tell.send(());
        loop {
            std::thread::park();
        }
    }
}

fn say(outcome: Result<()>) {
    let mut stderr = std::io::stderr();
    let _ = match outcome {
        Ok(()) => writeln!(stderr, "DONE"),
        Err(error) => writeln!(stderr, "refused: {error}"),
    };
    std::process::exit(40);
}

fn attempted(what: &str, keeper: c_long) -> Result<()> {
    match what {
        "open" => File::open("/etc/passwd").map(drop),
        "open-own-memory" => OpenOptions::new().write(true).open("/proc/self/mem").map(drop),
        "create" => File::create(std::env::temp_dir().join("cloister-probe")).map(drop),
        "rename" => std::fs::rename("/etc/hostname", "/etc/hostname"),
        "remove" => std::fs::remove_file("/nonexistent"),
        "list-root" => std::fs::read_dir("/").map(drop),
        "list-libraries" => std::fs::read_dir("/usr/lib").map(drop),
        "tdx-device" => OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/tdx_guest")
            .map(drop),
        "quote-entry" => std::fs::create_dir("/sys/kernel/config/tsm/report/probe"),
        "runtime-register" => OpenOptions::new()
            .write(true)
            .open("/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384")
            .map(drop),
        "tcp" => TcpStream::connect("127.0.0.1:9").map(drop),
        "udp" => UdpSocket::bind("127.0.0.1:0").map(drop),
        "unix" => UnixStream::connect("/run/nobody").map(drop),
        "exec" => Err(Command::new("/bin/true").exec()),
        "spawn" => Command::new("/bin/true").status().map(drop),
        "ptrace" => call(libc::SYS_ptrace, [libc::PTRACE_TRACEME as c_long, 0, 0, 0]),
        "read-keeper" => call(libc::SYS_process_vm_readv, [keeper, 0, 0, 0]),
        "kill-keeper" => call(libc::SYS_kill, [keeper, 0, 0, 0]),
        "io-uring" => call(libc::SYS_io_uring_setup, [1, 0, 0, 0]),
        "unshare" => call(libc::SYS_unshare, [c_long::from(libc::CLONE_NEWUSER), 0, 0, 0]),
        "fork" => call(libc::SYS_fork, [0; 4]),
        "clone-process" => call(libc::SYS_clone, [c_long::from(libc::SIGCHLD), 0, 0, 0]),
        "bpf" => call(libc::SYS_bpf, [0; 4]),
        "userfault" => call(libc::SYS_userfaultfd, [0; 4]),
        "mount" => call(libc::SYS_mount, [0; 4]),
        "ioctl" => call(libc::SYS_ioctl, [2, 0x5401, 0, 0]),
        "live-without-keeper" => call(libc::SYS_prctl, [c_long::from(libc::PR_SET_PDEATHSIG), 0, 0, 0]),
        "ignore-time-limit" => call(libc::SYS_rt_sigaction, [c_long::from(libc::SIGXCPU), 0, 0, 8]),
        "raise-limit" => {
            let limit = Rlimit {
                current: Some(1 << 20),
                maximum: Some(1 << 20),
            };
            Ok(rustix::process::setrlimit(Resource::Nofile, limit)?)
        }
        "signal-thread-of-keeper" => call(libc::SYS_tgkill, [keeper, keeper, Signal::TERM.as_raw().into(), 0]),
        "memory" => {
            let mut kept = Vec::new();
            for _ in 0..1024 {
                let mut part: Vec<u8> = Vec::new();
                part.try_reserve_exact(16 << 20)
                    .map_err(|_| Error::from_raw_os_error(libc::ENOMEM))?;
                part.resize(16 << 20, 1);
                kept.push(part);
            }
            Ok(())
        }
        "shared-memory" => {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            // SAFETY: an address of the kernel's choice; nothing is read from or written to the mapping.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0) };
            if at == libc::MAP_FAILED {
                Err(Error::last_os_error())
            } else {
                Ok(())
            }
        }
        "memory-file" => {
            let memory = memfd_create(c"probe", MemfdFlags::empty())?;
            Ok(ftruncate(&memory, 1 << 40)?)
        }
        other => Err(Error::other(format!("no such attempt: {other}"))),
    }
}

fn call(number: c_long, arguments: [c_long; 4]) -> Result<()> {
    let [first, second, third, fourth] = arguments;
    // SAFETY: every pointer among the arguments is null, which the kernel refuses to follow; `fork` and `clone` without a
    // stack give a child that goes on here and ends at once.
    let answer = unsafe { libc::syscall(number, first, second, third, fourth) };
    if answer == -1 {
        Err(Error::last_os_error())
    } else {
        Ok(())
    }
}
