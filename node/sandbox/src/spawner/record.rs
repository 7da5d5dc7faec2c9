//! The note that names the running spawner, so that a successor kills it before anything is served.
//!
//! A sandbox dies with its spawner, and a spawner with its agent; this is for the case that one of them is stopped or
//! stuck. A pid alone may by now be somebody else's, so the note has the start time, the boot and the pid namespace too.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::cgroup::remove_abandoned;
use crate::{SandboxError, sys};

/// The file's name in the lock directory.
const FILE: &str = "spawner.json";

/// How long a killed predecessor may take to be gone: it waits for all its sandboxes, which may hold a lot of memory.
const PREDECESSOR_DEATH: Duration = Duration::from_secs(10);

/// What is noted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) spawner: Identity,
    /// The parents of its sandboxes' control groups, which may lie elsewhere than the successor's.
    pub(crate) groups: Vec<PathBuf>,
}

/// Which process, for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// In clock ticks since boot.
    pub(crate) start_ticks: u64,
    pub(crate) boot_id: String,
    pub(crate) pid_namespace: String,
}

impl Identity {
    /// Of a process that runs now. `None`: there is none.
    pub(crate) fn of(pid: u32) -> Option<Identity> {
        Some(Identity {
            pid,
            start_ticks: start_ticks(pid)?,
            boot_id: fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned(),
            pid_namespace: fs::read_link("/proc/self/ns/pid").ok()?.to_string_lossy().into_owned(),
        })
    }
}

/// When a process started, in clock ticks since boot.
pub(crate) fn start_ticks(pid: u32) -> Option<u64> {
    const START_TIME: usize = 22;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold spaces and parentheses; counting starts behind its last parenthesis.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(START_TIME - 3)?.parse().ok()
}

/// Kills the predecessor that is noted in `dir`, if it still runs, and waits until it is gone.
pub(crate) fn kill_predecessor(dir: &Path) -> Result<(), SandboxError> {
    let Some(note) = read(dir) else { return Ok(()) };
    kill(&note.spawner)?;
    remove_abandoned(&note.groups);
    Ok(())
}

/// Kills a process, if it still is the one that was noted.
fn kill(noted: &Identity) -> Result<(), SandboxError> {
    let pid = i32::try_from(noted.pid).ok().and_then(Pid::from_raw);
    // The descriptor first: what is checked through it afterwards is what it names.
    let Some(pidfd) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return Ok(()) };
    if Identity::of(noted.pid).as_ref() != Some(noted) {
        return Ok(());
    }
    let stays = || SandboxError::PredecessorStays { pid: noted.pid, limit: PREDECESSOR_DEATH };
    pidfd_send_signal(&pidfd, Signal::KILL).map_err(|_| stays())?;
    match sys::readable(&pidfd, PREDECESSOR_DEATH) {
        Ok(true) => Ok(()),
        _ => Err(stays()),
    }
}

/// The note; a torn or foreign one is no note.
fn read(dir: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
}

/// Notes the running spawner.
pub(crate) fn write(dir: &Path, note: &Note) -> io::Result<()> {
    let fresh = dir.join("spawner.json.new");
    fs::write(&fresh, serde_json::to_vec(note)?)?;
    fs::rename(fresh, dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_its_successor_at_the_same_number() {
        let me = Identity::of(std::process::id()).unwrap();
        assert_eq!(Identity::of(std::process::id()), Some(me.clone()));
        assert!(me.start_ticks > 0);
        let other = Identity { start_ticks: me.start_ticks + 1, ..me };
        let other = Note { spawner: other, groups: Vec::new() };
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &other).unwrap();
        // It names this very process with another start time: it must survive this.
        kill_predecessor(dir.path()).unwrap();
    }

    #[test]
    fn a_torn_note_is_no_note() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), b"{\"pid\": 1").unwrap();
        kill_predecessor(dir.path()).unwrap();
    }
}
