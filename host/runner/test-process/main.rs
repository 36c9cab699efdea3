//! The process that this crate's tests start: the runner itself (`runner`), or one that native code took over and that now
//! breaks the protocol in the way that its argument names, or tries what its argument `try:` names.

mod native;

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use ciborium::Value;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

fn main() -> ExitCode {
    let how = std::env::args().nth(1).unwrap_or_default();
    if how == "runner" {
        return cloister_runner::runner_main();
    }
    match how.split_once(':') {
        Some(("try", "in-old-thread")) => return cloister_runner::runner_main_then(native::old_thread()),
        Some(("try", what)) => {
            return cloister_runner::runner_main_then(|| {
                native::attempt(what, std::os::unix::process::parent_id().into())
            });
        }
        Some(("without", what)) => return without(what),
        _ => {}
    }
    match misbehave(&how) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{how}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A runner on a kernel that lacks something.
fn without(what: &str) -> ExitCode {
    let call = match what {
        "landlock" => libc::SYS_landlock_create_ruleset,
        _ => libc::SYS_seccomp,
    };
    let rules = [(call, vec![])].into();
    let absent = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        TargetArch::x86_64,
    );
    let program: Result<BpfProgram, _> = absent.and_then(TryInto::try_into);
    match program.map(|program| seccompiler::apply_filter(&program)) {
        Ok(Ok(())) => cloister_runner::runner_main(),
        other => {
            let _ = writeln!(std::io::stderr(), "the kernel cannot be made to lack {what}: {other:?}");
            ExitCode::FAILURE
        }
    }
}

fn misbehave(how: &str) -> Result<ExitCode, Box<dyn std::error::Error>> {
    request()?;
    match how {
        "exit" => {
            let mut stderr = std::io::stderr();
            writeln!(stderr, "{}\nlast\u{1b}[31m words", "x".repeat(100_000))?;
            return Ok(ExitCode::from(7));
        }
        "silent" => {}
        "garbage" => say(&[0xff; 1000], &[])?,
        "empty" => say(&[], &[])?,
        "oversized" => say(&[0; 100_000], &[])?,
        "lying-length" => say(&[0, 0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[])?,
        "descriptors" => {
            let memory = sealed(8)?;
            say(&[0], &[memory.as_fd(); 64])?;
        }
        "unsealed-message" => say(&[1], &[unsealed(1 << 20)?.as_fd()])?,
        "huge-message" => say(&[1], &[sealed(1 << 30)?.as_fd()])?,
        "early-update" => reply(&map(&[("Trained", trained(&[]))]), &[])?,
        _ => {
            reply(
                &map(&[(
                    "Started",
                    map(&[("backend", Value::from("none")), ("note", Value::Null)]),
                )]),
                &[],
            )?;
            request()?;
            lie(how)?;
        }
    }
    // The keeper has to end it.
    loop {
        std::thread::park();
    }
}

/// Answers a training or an aggregation with something wrong.
fn lie(how: &str) -> Result<(), Box<dyn std::error::Error>> {
    let right = slot("w", &[4], 0);
    match how {
        "no-memory" => reply(&map(&[("Trained", trained(&[right]))]), &[])?,
        "unsealed-tensors" => reply(&map(&[("Trained", trained(&[right]))]), &[unsealed(16)?.as_fd()])?,
        "short-tensors" => reply(&map(&[("Trained", trained(&[right]))]), &[sealed(15)?.as_fd()])?,
        "huge-tensors" => reply(&map(&[("Trained", trained(&[right]))]), &[sealed(1 << 31)?.as_fd()])?,
        "other-shape" => reply(
            &map(&[("Trained", trained(&[slot("w", &[2], 0)]))]),
            &[sealed(16)?.as_fd()],
        )?,
        "more-tensors" => {
            let more = [right, slot("x", &[1], 64)];
            reply(&map(&[("Trained", trained(&more))]), &[sealed(100)?.as_fd()])?;
        }
        "overflowing-shape" => {
            reply(
                &map(&[("Trained", trained(&[slot("w", &[u64::MAX, 2], 0)]))]),
                &[sealed(16)?.as_fd()],
            )?;
        }
        "long-log" => {
            let mut answer = trained(&[right]);
            if let Value::Map(fields) = &mut answer {
                fields.retain(|(name, _)| *name != Value::from("log"));
                fields.push((
                    Value::from("log"),
                    Value::Array(vec![Value::from("y".repeat(100)); 1000]),
                ));
            }
            let message = encoded(&map(&[("Trained", answer)]))?;
            let memory = sealed_with(&message[1..])?;
            say(&[1], &[memory.as_fd(), sealed(16)?.as_fd()])?;
        }
        "slots-without-memory" => reply(&aggregated(right, &["m"]), &[sealed(16)?.as_fd()])?,
        "short-slots" => reply(&aggregated(right, &["m"]), &[sealed(16)?.as_fd(), sealed(15)?.as_fd()])?,
        "unsealed-slots" => reply(
            &aggregated(right, &["m"]),
            &[sealed(16)?.as_fd(), unsealed(16)?.as_fd()],
        )?,
        "huge-slots" => reply(
            &aggregated(right, &["m"]),
            &[sealed(16)?.as_fd(), sealed(1 << 31)?.as_fd()],
        )?,
        "five-slots" => reply(&aggregated(right, &["a", "b", "c", "d", "e"]), &[sealed(16)?.as_fd()])?,
        "odd-slots" => reply(&aggregated(right, &["M"]), &[sealed(16)?.as_fd(), sealed(16)?.as_fd()])?,
        "other-reply" => reply(&Value::from("NextUpdate"), &[])?,
        "abort" => std::process::abort(),
        other => return Err(format!("no such way to misbehave: {other}").into()),
    }
    Ok(())
}

fn trained(slots: &[Value]) -> Value {
    map(&[
        ("layout", map(&[("slots", Value::Array(slots.to_vec()))])),
        ("rows", Value::from(1)),
        ("metrics", Value::Array(vec![])),
        ("log", Value::Array(vec![])),
    ])
}

fn aggregated(slot: Value, slots: &[&str]) -> Value {
    let slots = slots.iter().map(|name| Value::from(*name)).collect();
    let fields = [
        ("layout", map(&[("slots", Value::Array(vec![slot]))])),
        ("slots", Value::Array(slots)),
        ("metrics", Value::Array(vec![])),
        ("log", Value::Array(vec![])),
    ];
    map(&[("Aggregated", map(&fields))])
}

fn slot(name: &str, dims: &[u64], offset: u64) -> Value {
    let dims = dims.iter().map(|dim| Value::from(*dim)).collect();
    map(&[
        ("name", Value::from(name)),
        ("dtype", Value::from("F32")),
        ("dims", Value::Array(dims)),
        ("offset", Value::from(offset)),
    ])
}

fn map(entries: &[(&str, Value)]) -> Value {
    Value::Map(
        entries
            .iter()
            .map(|(name, value)| (Value::from(*name), value.clone()))
            .collect(),
    )
}

/// Waits for whatever the keeper says.
fn request() -> Result<(), Box<dyn std::error::Error>> {
    let mut packet = vec![0; 64 << 10];
    recv(rustix::stdio::stdin(), &mut packet[..], RecvFlags::empty())?;
    Ok(())
}

fn encoded(message: &Value) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut packet = vec![0];
    ciborium::into_writer(message, &mut packet)?;
    Ok(packet)
}

fn reply(message: &Value, beside: &[BorrowedFd<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    say(&encoded(message)?, beside)
}

fn say(packet: &[u8], beside: &[BorrowedFd<'_>]) -> Result<(), Box<dyn std::error::Error>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !beside.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(beside));
    }
    sendmsg(
        rustix::stdio::stdin(),
        &[IoSlice::new(packet)],
        &mut control,
        SendFlags::empty(),
    )?;
    Ok(())
}

fn unsealed(len: u64) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let memory = memfd_create(c"lie", MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&memory, len)?;
    Ok(memory)
}

fn sealed(len: u64) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let blob = cloister_runner::SharedBlob::create(len, u64::MAX)?.seal()?;
    Ok(blob.as_fd().try_clone_to_owned()?)
}

fn sealed_with(bytes: &[u8]) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    Ok(cloister_runner::SharedBlob::copy_of(bytes)?
        .as_fd()
        .try_clone_to_owned()?)
}
