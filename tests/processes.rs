//! Processes of nodes, as an operator with root sees them.

use std::io;
use std::path::Path;
use std::process::Command;

/// Sends a signal by its name, such as `TERM`.
pub fn signal(pid: u32, name: &str) -> io::Result<()> {
    let sent = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status()?;
    match sent.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("no signal {name} to {pid}"))),
    }
}

/// Whether a process is there and more than a name that waits to be read.
pub fn lives(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// The processes whose parent is `pid`: of a node, its runner.
pub fn children(pid: u32) -> io::Result<Vec<u32>> {
    let parent = |id: u32| -> Option<u32> {
        let status = std::fs::read_to_string(Path::new("/proc").join(id.to_string()).join("status")).ok()?;
        let line = status.lines().find(|line| line.starts_with("PPid:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    let processes = std::fs::read_dir("/proc")?;
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    Ok(ids.filter(|id| parent(*id) == Some(pid)).collect())
}
