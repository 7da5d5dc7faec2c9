//! Making a ring that can do little, and filling its table. For the spawner and the agent.
//!
//! The order is the security argument: the ring is made disabled; the restrictions are registered, which can be done once;
//! the table is made, with a watch on the control connection in it; then the sandbox is forked. It cannot register anything, so the ring
//! is what it is when [`enable`] makes the restrictions hold and lets submissions in. Until then the kernel
//! refuses every submission (`EBADFD`).
//!
//! Every call here takes the ring's lock in the kernel, which the sandbox takes as well: they are for threads that may wait,
//! never for an executor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use io_uring::opcode;
use io_uring::register::Restriction;

/// The place in every table at which the control connection can be waited for. What is there is not the connection but an epoll descriptor
/// that watches it, for two reasons. A ring would let the sandbox send and receive urgent bytes on a UNIX socket, a part of the
/// kernel that had holes, and that the filters keep it from otherwise. And a socket in the table would stay open when the sandbox is
/// dead, as long as the agent holds the ring: its own end would not tell the agent of the death.
pub const CONTROL_SLOT: u32 = 0;

/// Places in a table: that of the control connection, and one for each connection of a caller.
pub const SLOTS: u32 = 1024;

/// Submissions that the ring holds before the kernel has taken them.
pub const ENTRIES: u32 = 64;

/// Completions that the ring holds before they have been read. Further ones the kernel keeps aside, as long as it has memory, and it
/// ends polls that would go on. The map of both queues takes whole powers of two of pages: with these numbers two pages, with 2048
/// completions sixteen, for each sandbox, whether it has connections or not.
pub const COMPLETIONS: u32 = 256;

/// What a ring does, and nothing else: wait for sockets, stop waiting, read, write, and wake itself. Each works on places in
/// the table only.
pub const OPCODES: [u8; 5] = [
    opcode::Nop::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
    opcode::Recv::CODE,
    opcode::Send::CODE,
];

/// Every submission must have these flags: no opcode takes a plain descriptor.
pub const REQUIRED_FLAGS: u8 = 1 << 0; // IOSQE_FIXED_FILE

/// A submission may have this flag beside them: it leaves no completion if it succeeds, and so wakes nobody.
pub const ALLOWED_FLAGS: u8 = REQUIRED_FLAGS | 1 << 6; // IOSQE_CQE_SKIP_SUCCESS

/// A fresh ring: its descriptor, and where things lie in its maps.
#[derive(Debug)]
pub struct Ring {
    /// The descriptor.
    pub fd: OwnedFd,
    /// What the kernel said about its maps, when it was made.
    pub layout: Layout,
}

/// Where things lie in the maps of a ring, in bytes from the start of the map of both queues (`IORING_OFF_SQ_RING`). The kernel
/// says it once, to whoever makes the ring; it is the same for all rings of one kernel that have the same size. See io_uring_setup(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Submissions that fit, a power of two.
    pub entries: u32,
    /// Completions that fit, a power of two.
    pub completions: u32,
    /// `IORING_FEAT_*`.
    pub features: u32,
    /// Submission queue: where the kernel reads next. A `u32`, as are those that follow.
    pub sq_head: u32,
    /// Submission queue: where we write next.
    pub sq_tail: u32,
    /// Submission queue: `IORING_SQ_*`.
    pub sq_flags: u32,
    /// Submission queue: submissions that the kernel dropped because their index was nonsense.
    pub sq_dropped: u32,
    /// Submission queue: indexes into the map of submissions (`IORING_OFF_SQES`).
    pub sq_array: u32,
    /// Completion queue: where we read next.
    pub cq_head: u32,
    /// Completion queue: where the kernel writes next.
    pub cq_tail: u32,
    /// Completion queue: completions that were lost.
    pub cq_overflow: u32,
    /// Completion queue: the completions, 16 bytes each.
    pub cqes: u32,
}

/// Bytes of one submission.
pub const SUBMISSION_BYTES: usize = 64;

/// Bytes of one completion.
pub const COMPLETION_BYTES: usize = 16;

impl Layout {
    /// Length of the map of both queues, in bytes.
    pub fn queues_bytes(&self) -> usize {
        let completions = self.cqes as usize + self.completions as usize * COMPLETION_BYTES;
        let submissions = self.sq_array as usize + self.entries as usize * size_of::<u32>();
        completions.max(submissions)
    }

    /// Length of the map of submissions, in bytes.
    pub fn submissions_bytes(&self) -> usize {
        self.entries as usize * SUBMISSION_BYTES
    }
}

/// Why a ring could not be had, or not be changed. The message ends with what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The kernel is too old, or was built without.
    #[error("this kernel has no rings that can be locked ({step}: {source}). {}", self.remedy())]
    Unsupported {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// An administrator or a container's profile forbids rings; or the ring is locked against what was tried.
    #[error("rings are forbidden here ({step}: {source}). {}", self.remedy())]
    Forbidden {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// No memory, or none that may be locked.
    #[error("there is no memory for a ring ({step}: {source}). {}", self.remedy())]
    Memory {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A limit on open files is reached.
    #[error("too many files are open ({step}: {source}). {}", self.remedy())]
    Descriptors {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The place does not exist in the table.
    #[error("place {slot} is not one of the {SLOTS} in a ring's table. {}", self.remedy())]
    NoSuchSlot {
        /// The place that was asked for.
        slot: u32,
    },
    /// Something else.
    #[error("a ring failed ({step}: {source}). {}", self.remedy())]
    Other {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RingError {
    /// Sorts an error number by what can be done about it.
    fn at(step: &'static str, source: io::Error) -> RingError {
        match source.raw_os_error() {
            Some(libc::ENOSYS | libc::EINVAL | libc::EOPNOTSUPP) => RingError::Unsupported { step, source },
            Some(libc::EPERM | libc::EACCES) => RingError::Forbidden { step, source },
            Some(libc::ENOMEM) => RingError::Memory { step, source },
            Some(libc::EMFILE | libc::ENFILE) => RingError::Descriptors { step, source },
            _ => RingError::Other { step, source },
        }
    }

    /// What to do about it: one sentence, part of the message.
    pub fn remedy(&self) -> &'static str {
        match self {
            RingError::Unsupported { .. } => "Use Linux 5.17 or later, built with CONFIG_IO_URING",
            RingError::Forbidden { .. } => {
                "Set the sysctl kernel.io_uring_disabled=0; in a container, allow io_uring in its seccomp profile"
            }
            RingError::Memory { .. } => {
                "Raise the limit of locked memory: `ulimit -l unlimited`, or LimitMEMLOCK=infinity in the systemd unit"
            }
            RingError::Descriptors { .. } => {
                "Raise the limit of open files: LimitNOFILE=65536 in the systemd unit"
            }
            RingError::NoSuchSlot { .. } | RingError::Other { .. } => {
                "This is a mistake in Denizen, or in a kernel that it does not know: please report it"
            }
        }
    }

    /// The number of the system's error, if there was one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            RingError::Unsupported { source, .. }
            | RingError::Forbidden { source, .. }
            | RingError::Memory { source, .. }
            | RingError::Descriptors { source, .. }
            | RingError::Other { source, .. } => source.raw_os_error(),
            RingError::NoSuchSlot { .. } => None,
        }
    }
}

impl From<RingError> for io::Error {
    fn from(error: RingError) -> io::Error {
        let kind = match &error {
            RingError::Unsupported { .. } => io::ErrorKind::Unsupported,
            RingError::Forbidden { .. } => io::ErrorKind::PermissionDenied,
            RingError::Memory { .. } => io::ErrorKind::OutOfMemory,
            RingError::NoSuchSlot { .. } => io::ErrorKind::InvalidInput,
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

/// Makes a ring that is locked and not yet enabled. At [`CONTROL_SLOT`] of its table `control` can be waited for, and the other places are
/// empty. The descriptor is closed by an exec, and inherited by a fork.
///
/// # Errors
/// A [`RingError`] that says what to do; nothing is left behind.
pub fn make(control: BorrowedFd<'_>) -> Result<Ring, RingError> {
    let ring = set_up()?;
    restrict(&ring.fd)?;
    make_table(&ring.fd)?;
    let watch = watch(control).map_err(|error| RingError::at("watching the control connection", error))?;
    update(ring.fd.as_fd(), CONTROL_SLOT, watch.as_raw_fd(), "watching the control connection")?;
    Ok(ring)
}

/// Puts a socket at a place of the ring's table, which keeps it open until it is removed, or every descriptor and map of the ring is
/// gone. What was there before is let go. Blocks: not for an executor.
///
/// The socket must be that of a TCP connection, and stay connected as long as a living sandbox has it in its table: a send with
/// `MSG_FASTOPEN` *connects* a socket that never was connected, or that `connect(AF_UNSPEC)` took apart, to wherever the sandbox likes, in
/// the network that the socket was made in; and one that is removed is still held by what was begun on it and waits. So a socket is not
/// disconnected while the sandbox lives. One that its peer has closed or reset, or that was shut down, counts as connected.
pub fn install(ring: BorrowedFd<'_>, slot: u32, file: BorrowedFd<'_>) -> Result<(), RingError> {
    update(ring, slot, file.as_raw_fd(), "installing a connection")
}

/// Empties a place of the ring's table. Requests that are under way keep their socket until they are done. Blocks: not for an executor.
pub fn remove(ring: BorrowedFd<'_>, slot: u32) -> Result<(), RingError> {
    const EMPTY: RawFd = -1;
    update(ring, slot, EMPTY, "removing a connection")
}

/// Lets submissions in, and makes the restrictions hold: for good. To be called once, after the sandbox's last filter. Blocks: not for an
/// executor.
pub fn enable(ring: BorrowedFd<'_>) -> Result<(), RingError> {
    register::<()>(ring.as_raw_fd(), REGISTER_ENABLE_RINGS, None, 0, "enabling the ring").map(|_| ())
}

const SETUP_CQSIZE: u32 = 1 << 3;
const SETUP_R_DISABLED: u32 = 1 << 6;
/// Since Linux 5.19: a thread that computes is not interrupted for the news of its polls. It hears of them with its next system call,
/// and whoever waits in its place arms them anew (`Locked::wait`).
const SETUP_COOP_TASKRUN: u32 = 1 << 8;
/// `IORING_FEAT_*`: one map for both queues; no completion is lost; waits with a time limit; submissions without a completion.
const FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 8 | 1 << 11;
const REGISTER_FILES_UPDATE: u32 = 6;
const REGISTER_RESTRICTIONS: u32 = 11;
const REGISTER_ENABLE_RINGS: u32 = 12;
const REGISTER_FILES2: u32 = 13;
const RSRC_REGISTER_SPARSE: u32 = 1;

/// `struct io_uring_params` of linux/io_uring.h.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    sq_off: SqOffsets,
    cq_off: CqOffsets,
}

/// `struct io_sqring_offsets`.
#[repr(C)]
#[derive(Default)]
struct SqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    resv1: u32,
    user_addr: u64,
}

/// `struct io_cqring_offsets`.
#[repr(C)]
#[derive(Default)]
struct CqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    cqes: u32,
    flags: u32,
    resv1: u32,
    user_addr: u64,
}

/// `struct io_uring_rsrc_register`.
#[repr(C)]
struct RsrcRegister {
    nr: u32,
    flags: u32,
    resv2: u64,
    data: u64,
    tags: u64,
}

/// `struct io_uring_files_update`.
#[repr(C)]
struct FilesUpdate {
    offset: u32,
    resv: u32,
    fds: u64,
}

const _: () = assert!(size_of::<Params>() == 120, "io_uring_params of linux/io_uring.h has 120 bytes");
const _: () = assert!(size_of::<RsrcRegister>() == 32, "io_uring_rsrc_register has 32 bytes");
const _: () = assert!(size_of::<FilesUpdate>() == 16, "io_uring_files_update has 16 bytes");
const _: () = assert!(size_of::<Restriction>() == 16, "io_uring_restriction has 16 bytes");

/// Something that is readable when `control` is, and nothing else. It does not keep `control` open.
fn watch(control: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};
    let watch = create(CreateFlags::CLOEXEC)?;
    add(&watch, control, EventData::new_u64(0), EventFlags::IN | EventFlags::RDHUP)?;
    Ok(watch)
}

/// The ring itself, disabled.
fn set_up() -> Result<Ring, RingError> {
    const STEP: &str = "making the ring";
    let (fd, params) = set_up_with(SETUP_COOP_TASKRUN)
        // An older kernel interrupts: that takes longer, and nothing else.
        .or_else(|error| if error.raw_os_error() == Some(libc::EINVAL) { set_up_with(0) } else { Err(error) })
        .map_err(|error| RingError::at(STEP, error))?;
    if params.features & FEATURES != FEATURES {
        return Err(RingError::at(STEP, io::Error::from_raw_os_error(libc::ENOSYS)));
    }
    let Params { sq_entries, cq_entries, features, sq_off, cq_off, .. } = params;
    let layout = Layout {
        entries: sq_entries,
        completions: cq_entries,
        features,
        sq_head: sq_off.head,
        sq_tail: sq_off.tail,
        sq_flags: sq_off.flags,
        sq_dropped: sq_off.dropped,
        sq_array: sq_off.array,
        cq_head: cq_off.head,
        cq_tail: cq_off.tail,
        cq_overflow: cq_off.overflow,
        cqes: cq_off.cqes,
    };
    Ok(Ring { fd, layout })
}

fn set_up_with(more_flags: u32) -> io::Result<(OwnedFd, Params)> {
    let flags = SETUP_R_DISABLED | SETUP_CQSIZE | more_flags;
    let mut params = Params { flags, cq_entries: COMPLETIONS, ..Params::default() };
    // SAFETY: the kernel reads and writes a live block of the size that it expects.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &raw mut params) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, params))
}

/// Registers the restrictions, which can be done once. They hold from [`enable`] on.
fn restrict(ring: &OwnedFd) -> Result<(), RingError> {
    let update = u8::try_from(REGISTER_FILES_UPDATE).unwrap_or(u8::MAX);
    let mut restrictions: Vec<_> = OPCODES.into_iter().map(Restriction::sqe_op).collect();
    restrictions.push(Restriction::sqe_flags_required(REQUIRED_FLAGS));
    restrictions.push(Restriction::sqe_flags_allowed(ALLOWED_FLAGS));
    restrictions.push(Restriction::register_op(update));
    let count = u32::try_from(restrictions.len()).unwrap_or(u32::MAX);
    let first = restrictions.first();
    register(ring.as_raw_fd(), REGISTER_RESTRICTIONS, first, count, "locking the ring").map(|_| ())
}

/// Makes the table, all places empty.
fn make_table(ring: &OwnedFd) -> Result<(), RingError> {
    let table = RsrcRegister { nr: SLOTS, flags: RSRC_REGISTER_SPARSE, resv2: 0, data: 0, tags: 0 };
    let bytes = u32::try_from(size_of::<RsrcRegister>()).unwrap_or(u32::MAX);
    register(ring.as_raw_fd(), REGISTER_FILES2, Some(&table), bytes, "making the table").map(|_| ())
}

/// Puts a descriptor, or -1, at one place.
fn update(ring: BorrowedFd<'_>, slot: u32, fd: RawFd, step: &'static str) -> Result<(), RingError> {
    if slot >= SLOTS {
        return Err(RingError::NoSuchSlot { slot });
    }
    let fds = [fd];
    let update = FilesUpdate { offset: slot, resv: 0, fds: fds.as_ptr().expose_provenance() as u64 };
    match register(ring.as_raw_fd(), REGISTER_FILES_UPDATE, Some(&update), 1, step)? {
        1 => Ok(()),
        _ => Err(RingError::at(step, io::ErrorKind::Other.into())),
    }
}

/// One io_uring_register(2).
fn register<T>(
    ring: RawFd,
    what: u32,
    argument: Option<&T>,
    count: u32,
    step: &'static str,
) -> Result<i64, RingError> {
    let argument = argument.map_or(std::ptr::null(), std::ptr::from_ref);
    loop {
        // SAFETY: the callers pass what `what` and `count` promise the kernel, alive; it only reads it.
        let done = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, what, argument, count) };
        if done >= 0 {
            return Ok(done);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(RingError::at(step, error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let text = |errno| RingError::at("making the ring", io::Error::from_raw_os_error(errno)).to_string();
        for (errno, remedy) in [
            (libc::ENOSYS, "Linux 5.17"),
            (libc::EINVAL, "Linux 5.17"),
            (libc::EPERM, "kernel.io_uring_disabled=0"),
            (libc::ENOMEM, "ulimit -l"),
            (libc::EMFILE, "LimitNOFILE"),
            (libc::EIO, "please report it"),
        ] {
            assert!(text(errno).contains(remedy), "{}", text(errno));
            assert!(text(errno).contains("making the ring"), "{}", text(errno));
        }
        let error = RingError::at("making the ring", io::Error::from_raw_os_error(libc::ENOMEM));
        assert_eq!(error.errno(), Some(libc::ENOMEM));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::OutOfMemory);
    }

    #[test]
    fn both_queues_fit_the_pages_that_they_cost() {
        let (control, _agent) = std::os::unix::net::UnixStream::pair().unwrap();
        let Ok(ring) = make(control.as_fd()) else { return };
        let Layout { entries, completions, .. } = ring.layout;
        assert_eq!((entries, completions), (ENTRIES, COMPLETIONS));
        // See `COMPLETIONS`. Each sandbox pays for them.
        assert!(ring.layout.queues_bytes() <= 2 * 4096, "{:?}", ring.layout);
        assert!(ring.layout.submissions_bytes() <= 4096);
    }
}
