//! From the agent to the spawner: one `clone3` into the outer namespaces, and an `exec` of this same program, so that
//! nothing of the agent's memory is in it.
//!
//! Between the two the child shares the state of a process with many threads, so it makes raw system calls on prepared
//! data only, and reports a failure as a [`Fault`] in raw bytes.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::child::ANSWERS_FD;
use super::message::{Fault, Step, encode_verdict};
use crate::sys::{Forked, fork_with};

/// Name under which this program runs as the spawner.
pub(crate) const SPAWNER_NAME: &CStr = c"denizen-spawner";

/// Where the spawner finds its request socket.
pub(crate) const REQUESTS_FD: RawFd = 3;

/// Where the spawner finds its event socket.
pub(crate) const EVENTS_FD: RawFd = 4;

/// A running spawner.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) requests: OwnedFd,
    pub(crate) events: OwnedFd,
}

/// Namespaces around the spawner. The network one is shared by all its sandboxes and stays empty.
const OUTER: i32 =
    libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// What the child needs, prepared before the fork.
struct Prepared {
    user: Option<UserMap>,
    requests: RawFd,
    events: RawFd,
    null: RawFd,
}

/// The lines that give the spawner's own user namespace its one user: id 0 in it, so that `exec` leaves it capable there.
struct UserMap {
    uid: String,
    gid: String,
}

/// Starts the spawner. The calling thread must live as long as the spawner: its death is the spawner's.
pub(crate) fn launch() -> io::Result<Launched> {
    match launch_with(None) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => launch_with(Some(own_user())),
        launched => launched,
    }
}

/// An ordinary user's map.
fn own_user() -> UserMap {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    UserMap { uid: format!("0 {} 1", uid.as_raw()), gid: format!("0 {} 1", gid.as_raw()) }
}

fn launch_with(user: Option<UserMap>) -> io::Result<Launched> {
    let pair = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (requests, their_requests) = pair()?;
    let (events, their_events) = pair()?;
    let null = std::fs::File::open("/dev/null")?;
    let flags = OUTER | if user.is_some() { libc::CLONE_NEWUSER } else { 0 };
    let prepared = Prepared {
        user,
        requests: their_requests.as_raw_fd(),
        events: their_events.as_raw_fd(),
        null: null.as_fd().as_raw_fd(),
    };
    // SAFETY: the child calls `become_spawner`, which is async-signal-safe and ends in exec or exit.
    match unsafe { fork_with(flags, None)? } {
        Forked::Child => become_spawner(&prepared),
        Forked::Parent { pid, pidfd } => Ok(Launched { pid, pidfd, requests, events }),
    }
}

/// The child's part. Raw system calls only.
fn become_spawner(prepared: &Prepared) -> ! {
    let fault = match arrange(prepared) {
        Err(fault) => fault,
        Ok(()) => exec(),
    };
    let verdict = encode_verdict(Some(fault));
    // SAFETY: plain system calls on live data. `arrange` may have failed before or after moving the socket.
    unsafe {
        for fd in [prepared.requests, REQUESTS_FD] {
            libc::send(fd, verdict.as_ptr().cast(), verdict.len(), libc::MSG_NOSIGNAL);
        }
        libc::_exit(1)
    }
}

/// Maps the user, places the descriptors, closes all others.
fn arrange(prepared: &Prepared) -> Result<(), Fault> {
    if let Some(user) = &prepared.user {
        write_file(c"/proc/self/setgroups", "deny")?;
        write_file(c"/proc/self/uid_map", &user.uid)?;
        write_file(c"/proc/self/gid_map", &user.gid)?;
    }
    // Out of the way first: a source may lie where another one goes. Above every target.
    const AWAY: RawFd = 10;
    let away = |fd| {
        check(Step::Descriptors, || {
            // SAFETY: a system call on numbers.
            unsafe { libc::fcntl(fd, libc::F_DUPFD, AWAY) }
        })
    };
    let (requests, events, null) = (away(prepared.requests)?, away(prepared.events)?, away(prepared.null)?);
    // Standard error may be closed; the spawner then talks to nobody.
    // SAFETY: a system call on numbers.
    let talk = if unsafe { libc::fcntl(2, libc::F_GETFD) } < 0 { null } else { 2 };
    // The last is only taken, so that no descriptor which a sandbox is to get has the number of another that it gets.
    let places =
        [(null, 0), (talk, 1), (talk, 2), (requests, REQUESTS_FD), (events, EVENTS_FD), (null, ANSWERS_FD)];
    for (from, to) in places {
        // SAFETY: a system call on numbers.
        check(Step::Descriptors, || unsafe { libc::dup2(from, to) })?;
    }
    // SAFETY: a system call on numbers; nothing in this process uses the closed descriptors any more.
    check(Step::Descriptors, || unsafe { libc::close_range(ANSWERS_FD.unsigned_abs() + 1, u32::MAX, 0) })?;
    Ok(())
}

/// Replaces the process with a fresh copy of this program, with no arguments, no environment, no blocked signal.
fn exec() -> Fault {
    let arguments = [SPAWNER_NAME.as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null()];
    // SAFETY: a zeroed sigset is what sigemptyset makes; the arrays are null-terminated and live.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::execve(c"/proc/self/exe".as_ptr(), arguments.as_ptr(), environment.as_ptr());
    }
    last(Step::Exec)
}

/// Writes a /proc file in one call.
fn write_file(path: &CStr, text: &str) -> Result<(), Fault> {
    // SAFETY: a C string, and a live buffer of the length given.
    let (fd, written) = unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        (fd, libc::write(fd, text.as_ptr().cast(), text.len()))
    };
    if fd < 0 || written < 0 { Err(last(Step::User)) } else { Ok(()) }
}

/// Turns a -1 into a fault.
fn check(step: Step, call: impl FnOnce() -> i32) -> Result<i32, Fault> {
    match call() {
        -1 => Err(last(step)),
        value => Ok(value),
    }
}

/// The calling thread's errno, at a step.
fn last(step: Step) -> Fault {
    Fault { step, errno: io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) }
}
