//! The kernel interfaces that no library wraps for us: `clone3`, `mount_setattr`, `seccomp`, whole-message sockets with
//! descriptors. One lit room for their `unsafe`; everything here is mechanism, no policy.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Longest message between agent and spawner, in bytes.
pub(crate) const MESSAGE_BYTES: usize = 16 * 1024;

/// Most descriptors that one message carries.
pub(crate) const MESSAGE_FDS: usize = 8;

/// The two sides of a fork.
#[derive(Debug)]
pub(crate) enum Forked {
    /// In the child.
    Child,
    /// In the parent: the child's pid in the parent's namespace, and its pidfd.
    Parent { pid: u32, pidfd: OwnedFd },
}

/// Forks with the given `CLONE_NEW*` flags, optionally straight into a version-2 control group.
///
/// # Safety
/// As for `fork`: in a process with several threads the child may only do what is async-signal-safe until it executes or
/// exits. glibc's fork handlers do not run, so the C library's cached thread id is stale in the child unless both are
/// pid 1 of their namespace.
pub(crate) unsafe fn fork_with(flags: i32, group: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut pidfd: RawFd = -1;
    let namespaces = u64::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut args = libc::clone_args {
        flags: namespaces | u64::from(libc::CLONE_PIDFD.unsigned_abs()),
        pidfd: std::ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(group) = group {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    }
    // SAFETY: the arguments are a valid clone_args of the size given; without CLONE_VM the child has its own copy of
    // this stack. The caller keeps the promise about what the child does.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => {
            let pid = u32::try_from(pid).map_err(|_| io::ErrorKind::InvalidData)?;
            // SAFETY: with CLONE_PIDFD the kernel has stored a fresh descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid, pidfd })
        }
    }
}

/// `CLONE_INTO_CGROUP` of linux/sched.h; libc has it only as a 32-bit-truncated constant on some targets.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Sets attributes of the mount that `tree` refers to.
pub(crate) fn mount_setattr(tree: BorrowedFd<'_>, attributes: u64, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, and `attr` is a valid mount_attr of the size given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Installs a seccomp filter on every thread of the process.
pub(crate) fn seccomp_install(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` describes a live array of `len` instructions, which the kernel only reads, and copies.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    match done {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} could not be brought under the filter"))),
    }
}

/// Lets the files that a process writes become as long as `bytes`, where its limit is lower, and never more than what it can be raised to.
pub(crate) fn let_files_reach(pid: u32, bytes: u64) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one live `rlimit`, and reads none.
    if unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, std::ptr::null(), &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= bytes.min(limit.rlim_max) {
        return Ok(());
    }
    limit.rlim_cur = bytes.min(limit.rlim_max);
    // SAFETY: the kernel reads one live `rlimit`, and writes none.
    if unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the kernel knows a seccomp action (`SECCOMP_RET_*`).
pub(crate) fn seccomp_has(action: u32) -> bool {
    // SAFETY: the kernel reads one u32 from a live place.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

/// Sends one whole message with descriptors on a SEQPACKET socket.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return sent.map(|_| ()).map_err(io::Error::from),
        }
    }
}

/// Receives one whole message with its descriptors. `None`: the other side is gone.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    thread_local! {
        // Kept, because pages that the spawner writes to anew after each fork become each sandbox's own.
        static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; MESSAGE_BYTES]);
    }
    BUFFER.with_borrow_mut(|buffer| receive_into(socket, buffer))
}

fn receive_into(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MESSAGE_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut parts = [IoSliceMut::new(bytes)];
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            received => break received?,
        }
    };
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    let bytes = bytes.get(..message.bytes).unwrap_or_default();
    Ok(Some((bytes.to_vec(), fds)))
}

/// Waits until `fd` is readable (or hung up). False: not within `limit`.
pub(crate) fn readable(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let until = std::time::Instant::now() + limit;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(std::time::Instant::now()))
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The pid that the procfs behind `proc` shows for the process behind `pidfd`: there is no other way to learn a pid in a
/// namespace that is not one's own.
pub(crate) fn pid_shown_by(proc: BorrowedFd<'_>, pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    let path = format!("self/fdinfo/{}", pidfd.as_raw_fd());
    let text = read_at(proc, &path)?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:"))
        .and_then(|pid| pid.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the pidfd's fdinfo names no pid"))
}

/// Reads a small text file below `dir`.
pub(crate) fn read_at(dir: BorrowedFd<'_>, path: &str) -> io::Result<String> {
    use rustix::fs::{Mode, OFlags, openat};
    let file = openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::read_to_string(std::fs::File::from(file))
}

/// Writes a small file below `dir` in one call, as procfs and the control groups want it.
pub(crate) fn write_at(dir: BorrowedFd<'_>, path: &str, text: &str) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, openat};
    let file = openat(dir, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_limits(pid: u32) -> String {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max file size")).unwrap();
        line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn files_reach_as_far_as_they_may_and_never_less_than_before() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let first = libc::rlimit { rlim_cur: 100, rlim_max: 1000 };
        let pid = libc::pid_t::try_from(child.id()).unwrap();
        // SAFETY: the kernel reads one live `rlimit`, and writes none.
        let set = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &raw const first, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        for (bytes, limits) in [(50, "100 1000"), (500, "500 1000"), (5000, "1000 1000")] {
            let_files_reach(child.id(), bytes).unwrap();
            assert_eq!(file_limits(child.id()), limits);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let_files_reach(child.id(), 1).unwrap_err();
    }
}
