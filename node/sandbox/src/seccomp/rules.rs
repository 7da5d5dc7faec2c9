//! Which system calls a sandbox may make. Allow-lists; what is not named is trapped.
//!
//! Three outcomes, chosen so that a person learns the cause: *allowed*; *refused* with an error number, for what ordinary
//! libraries try and can do without; *trapped*, which ends the process with the call's name in its last words, for what
//! only makes sense with powers that a sandbox does not have (sockets, processes, mounts, rings, other tasks).

use super::names::number_of;
use super::program::{Rule, Test, Verdict};
use crate::FileAccess;
use crate::spawner::{CONTROL_FD, RING_FD};

/// Which filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// Before or after the plugin's init.
    pub(crate) stage: Stage,
    /// What the image's manifest grants.
    pub(crate) files: FileAccess,
    /// Whether the sandbox has a ring, and may use it.
    pub(crate) ring: bool,
}

/// When a filter goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Filter 1: the plugin is loaded behind it.
    Loading,
    /// Filter 2: functions run behind it.
    Sealed,
}

/// Allowed whatever the arguments, from the first constructor on. Each works on what the sandbox holds already.
const ALWAYS: &[&str] = &[
    // Bytes through descriptors it has. No sendmsg: that carries descriptors. For recvmsg see [`descriptors`].
    "read",
    "write",
    "readv",
    "writev",
    "pread64",
    "pwrite64",
    "preadv",
    "pwritev",
    "lseek",
    "close",
    "fstat",
    "poll",
    "ppoll",
    "fsync",
    "fdatasync",
    // Its own memory.
    "munmap",
    "brk",
    "mremap",
    // Its own threads. Exiting.
    "exit",
    "exit_group",
    "set_robust_list",
    "rseq",
    "set_tid_address",
    "sched_yield",
    "sched_getaffinity",
    "getcpu",
    "restart_syscall",
    // Its own signals.
    "rt_sigreturn",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigpending",
    "rt_sigsuspend",
    "sigaltstack",
    "pause",
    // Clocks, dice, its own numbers. getpid is 1, the ids are the same in every sandbox.
    "clock_gettime",
    "clock_getres",
    "clock_nanosleep",
    "nanosleep",
    "gettimeofday",
    "time",
    "times",
    "getrusage",
    "getrandom",
    "uname",
    "getpid",
    "gettid",
    "getppid",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "getresuid",
    "getresgid",
];

/// Refused with an error that its callers know how to live with, in both filters.
const REFUSED: &[(i32, &[&str])] = &[
    // glibc then falls back to `clone`, whose flags can be read by a filter.
    (
        libc::ENOSYS,
        &[
            "clone3",
            "openat2",
            "faccessat2",
            "membarrier",
            "futex_waitv",
            "close_range",
            "fchmodat2",
            // Copying in the kernel: libraries then copy by hand.
            "copy_file_range",
            "sendfile",
            "splice",
        ],
    ),
    (
        libc::EPERM,
        &[
            "sysinfo",
            "sched_setaffinity",
            "sched_setscheduler",
            "sched_setparam",
            "sched_setattr",
            "sched_getscheduler",
            "sched_getparam",
            "sched_getattr",
            "setpriority",
            "getpriority",
            "mlock",
            "mlock2",
            "mlockall",
            "munlock",
            "munlockall",
            "setrlimit",
            "dup",
            "dup2",
            "dup3",
            "arch_prctl",
            "umask",
            "mbind",
            "set_mempolicy",
            "get_mempolicy",
            "getpgid",
            "getpgrp",
            "getsid",
            "getgroups",
            "capget",
            "mincore",
            "msync",
            "getitimer",
            "readahead",
            "getrlimit",
        ],
    ),
    (
        libc::EACCES,
        &[
            // A file has one name, and a name is a file: what is captured of `/state` are regular files and directories.
            "link",
            "linkat",
            "symlink",
            "symlinkat",
            "chown",
            "fchown",
            "lchown",
            "fchownat",
            "chdir",
            "fchdir",
            "getxattr",
            "lgetxattr",
            "fgetxattr",
            "listxattr",
            "llistxattr",
            "flistxattr",
            "setxattr",
            "lsetxattr",
            "fsetxattr",
            "mknod",
            "mknodat",
        ],
    ),
];

/// Looking at files by path: allowed while loading (there is nothing but the image), refused when sealed without files.
const PATHS: &[&str] =
    &["stat", "lstat", "access", "faccessat", "readlink", "readlinkat", "getcwd", "getdents64", "getdents"];

/// Changing files by path or by descriptor: allowed where there is a `/state`, and nothing else that could be written.
const CHANGES: &[&str] = &[
    "creat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "chmod",
    "fchmod",
    "fchmodat",
    "truncate",
    "utime",
    "utimes",
    "utimensat",
    "futimesat",
    "statfs",
    "fstatfs",
];

/// As above, of descriptors: without a `/state` an ordinary error, because there is nothing that they would be for.
const CHANGES_BY_DESCRIPTOR: &[&str] = &["ftruncate", "fadvise64"];

/// An ordinary error always: by the lock on a segment the agent knows whether a sandbox still has it, and this could take it off. Locks of
/// ranges (`fcntl`) are others.
const WHOLE_FILE_LOCKS: &[&str] = &["flock"];

const EXEC: u32 = libc::PROT_EXEC.unsigned_abs();
const WRITE: u32 = libc::PROT_WRITE.unsigned_abs();
const CREATE: u32 = libc::O_CREAT.unsigned_abs();
const TRUNCATE: u32 = libc::O_TRUNC.unsigned_abs();
const ACCESS_MODE: u32 = libc::O_ACCMODE.unsigned_abs();
const SHARED: u32 = libc::MAP_SHARED.unsigned_abs();
const ANONYMOUS: u32 = libc::MAP_ANONYMOUS.unsigned_abs();
const GROWS_DOWN: u32 = libc::MAP_GROWSDOWN.unsigned_abs();
const HUGE: u32 = libc::MAP_HUGETLB.unsigned_abs();
/// Waits for completions.
const ENTER_GETEVENTS: u32 = 1 << 0;
/// The last argument holds a time limit.
const ENTER_EXT_ARG: u32 = 1 << 3;
const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH.unsigned_abs();

/// The low half of an argument under a mask.
const fn bits(argument: u8, mask: u32, values: &'static [u32]) -> Test {
    Test { argument, mask, values, whole: false }
}

/// The low half of an argument.
const fn word(argument: u8, values: &'static [u32]) -> Test {
    bits(argument, u32::MAX, values)
}

/// A whole argument, pointers and `unsigned long`s.
const fn whole(argument: u8, values: &'static [u32]) -> Test {
    Test { argument, mask: u32::MAX, values, whole: true }
}

/// Exactly what glibc's `pthread_create` passes to `clone`, nothing more and nothing less.
const PTHREAD: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID)
    .unsigned_abs();

/// Memory that no limit counts: anonymous shared maps (not data to RLIMIT_DATA), growing-down ones (stack to it), and
/// huge pages (outside the memory control group).
const COUNTED: Test = bits(3, SHARED | ANONYMOUS | GROWS_DOWN | HUGE, &[0, SHARED, ANONYMOUS]);

/// Wait and wake, with bitsets and requeues. No priority inheritance: an old source of kernel holes, and nobody needs it.
const FUTEX: Test = bits(1, 0x7F, &[0, 1, 3, 4, 5, 9, 10]);

/// Advice about its own memory. Not: poisoning, merging (a side channel between tenants).
const ADVICE: Test = word(2, &[0, 1, 2, 3, 4, 8, 14, 15, 16, 20, 21, 22, 23]);

const READ_ONLY: Test = bits(2, ACCESS_MODE | CREATE | TRUNCATE, &[0]);

/// Adds rules to a list, skipping the calls that this architecture lacks.
#[derive(Default)]
struct List(Vec<Rule>);

impl List {
    fn add(&mut self, name: &str, tests: &[Test], verdict: Verdict, otherwise: Verdict) {
        if let Some(nr) = number_of(name) {
            debug_assert!(self.0.iter().all(|rule| rule.nr != nr), "{name} has two rules");
            self.0.push(Rule { nr, tests: tests.to_vec(), verdict, otherwise });
        }
    }

    fn allow_if(&mut self, name: &str, tests: &[Test], otherwise: Verdict) {
        self.add(name, tests, Verdict::Allow, otherwise);
    }

    fn plain(&mut self, names: &[&str], verdict: Verdict) {
        for name in names {
            self.add(name, &[], verdict, verdict);
        }
    }
}

/// The rules of a filter, in no order.
pub(super) fn rules(filter: Filter) -> Vec<Rule> {
    let mut list = List::default();
    memory(&mut list, filter.stage);
    threads(&mut list);
    descriptors(&mut list, filter.files);
    files(&mut list, filter);
    ring(&mut list, filter.ring);
    seal(&mut list, filter.stage);
    list.plain(ALWAYS, Verdict::Allow);
    for (errno, names) in REFUSED {
        list.plain(names, Verdict::Refuse(*errno));
    }
    list.0
}

/// Its own memory: writable or executable, never both; executable only from the image, only while loading.
fn memory(list: &mut List, stage: Stage) {
    let no = Verdict::Refuse(libc::EPERM);
    list.allow_if("futex", &[FUTEX], Verdict::Refuse(libc::ENOSYS));
    list.allow_if("madvise", &[ADVICE], Verdict::Refuse(libc::EINVAL));
    list.allow_if("mprotect", &[bits(2, EXEC, &[0])], no);
    match stage {
        Stage::Loading => {
            list.allow_if("mmap", &[bits(2, EXEC | WRITE, &[0, EXEC, WRITE]), COUNTED], no);
        }
        Stage::Sealed => list.allow_if("mmap", &[bits(2, EXEC, &[0]), COUNTED], no),
    }
}

/// Threads of its own process, which is pid 1 of its namespace, and nothing of any other process.
fn threads(list: &mut List) {
    let no = Verdict::Refuse(libc::EPERM);
    list.allow_if("clone", &[whole(0, &[PTHREAD])], Verdict::Trap);
    list.allow_if("tgkill", &[word(0, &[1])], Verdict::Trap);
    // Reading its own limits only.
    list.allow_if("prlimit64", &[word(0, &[0, 1]), whole(2, &[0])], no);
    const NAMES: &[u32] = &[libc::PR_SET_NAME.unsigned_abs(), libc::PR_GET_NAME.unsigned_abs()];
    list.allow_if("prctl", &[word(0, NAMES)], no);
}

/// What can be done to a descriptor besides reading and writing.
fn descriptors(list: &mut List, files: FileAccess) {
    // Segments of the log come over the connection to the agent, all life long; nobody else sends anything. Peeking would
    // receive a descriptor twice, and out-of-band bytes are the part of these sockets that had holes.
    const CONTROL: u32 = CONTROL_FD.unsigned_abs();
    const PLAIN: u32 = !(libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT | libc::MSG_WAITALL).cast_unsigned();
    list.allow_if("recvmsg", &[word(0, &[CONTROL]), bits(2, PLAIN, &[0])], Verdict::Trap);
    const COMMANDS: &[u32] = &[
        libc::F_GETFD.unsigned_abs(),
        libc::F_SETFD.unsigned_abs(),
        libc::F_GETFL.unsigned_abs(),
        libc::F_SETFL.unsigned_abs(),
    ];
    const COMMANDS_AND_LOCKS: &[u32] = &[
        libc::F_GETFD.unsigned_abs(),
        libc::F_SETFD.unsigned_abs(),
        libc::F_GETFL.unsigned_abs(),
        libc::F_SETFL.unsigned_abs(),
        libc::F_GETLK.unsigned_abs(),
        libc::F_SETLK.unsigned_abs(),
        libc::F_SETLKW.unsigned_abs(),
        libc::F_OFD_GETLK.unsigned_abs(),
        libc::F_OFD_SETLK.unsigned_abs(),
        libc::F_OFD_SETLKW.unsigned_abs(),
    ];
    let (commands, changes) = match files {
        FileAccess::State => (COMMANDS_AND_LOCKS, Verdict::Allow),
        FileAccess::None | FileAccess::Image => (COMMANDS, Verdict::Refuse(libc::EPERM)),
    };
    list.allow_if("fcntl", &[word(1, commands)], Verdict::Refuse(libc::EPERM));
    list.plain(CHANGES_BY_DESCRIPTOR, changes);
    list.plain(WHOLE_FILE_LOCKS, Verdict::Refuse(libc::EPERM));
    const FIONREAD: u32 = 0x541B;
    list.allow_if("ioctl", &[word(1, &[FIONREAD])], Verdict::Refuse(libc::ENOTTY));
    // Making a file longer, which is what RLIMIT_FSIZE counts; never punching holes, nor reserving blocks beyond its end.
    list.allow_if("fallocate", &[word(1, &[0])], Verdict::Refuse(libc::EPERM));
}

/// Files by path.
fn files(list: &mut List, filter: Filter) {
    let no = Verdict::Refuse(libc::EACCES);
    if filter.files == FileAccess::State {
        // Everything in sight is read-only, but for the one file system at `/state`; that is the mounts' doing.
        // The fourth access mode is for device controls, and looks at no mount.
        const MODES: &[u32] =
            &[libc::O_RDONLY.unsigned_abs(), libc::O_WRONLY.unsigned_abs(), libc::O_RDWR.unsigned_abs()];
        list.allow_if("open", &[bits(1, ACCESS_MODE, MODES)], no);
        list.allow_if("openat", &[bits(2, ACCESS_MODE, MODES)], no);
        list.plain(CHANGES, Verdict::Allow);
    } else {
        list.plain(CHANGES, no);
    }
    let reads = filter.stage == Stage::Loading || filter.files != FileAccess::None;
    if reads && filter.files != FileAccess::State {
        list.allow_if("openat", &[READ_ONLY], no);
        const OPEN: Test = bits(1, ACCESS_MODE | CREATE | TRUNCATE, &[0]);
        list.allow_if("open", &[OPEN], no);
    }
    if reads {
        list.plain(PATHS, Verdict::Allow);
        list.plain(&["newfstatat", "statx"], Verdict::Allow);
    } else {
        list.plain(&["open", "openat"], no);
        list.plain(PATHS, no);
        // What the C library and Rust make of `fstat`.
        list.allow_if("newfstatat", &[word(3, &[EMPTY_PATH])], no);
        list.allow_if("statx", &[word(2, &[EMPTY_PATH])], no);
    }
}

/// Submitting to its own ring and waiting for it. What can be submitted is the ring's own business: it was locked before the sandbox
/// existed. Making one, or registering anything with this one, is trapped like everything that is not named.
fn ring(list: &mut List, ring: bool) {
    const RING: u32 = RING_FD.unsigned_abs();
    // No polling thread, and no number that is not a descriptor's.
    const PLAIN: u32 = !(ENTER_GETEVENTS | ENTER_EXT_ARG);
    if ring {
        list.allow_if("io_uring_enter", &[word(0, &[RING]), bits(3, PLAIN, &[0])], Verdict::Trap);
    }
}

/// Filter 1 lets filter 2 be installed: nothing else that `seccomp` can do, above all no listener.
fn seal(list: &mut List, stage: Stage) {
    const FILTER: u32 = libc::SECCOMP_SET_MODE_FILTER;
    const TSYNC: u32 = 1;
    if stage == Stage::Loading {
        list.allow_if("seccomp", &[word(0, &[FILTER]), word(1, &[TSYNC])], Verdict::Trap);
    }
}

/// Named so that a reader finds them; they are trapped because no rule mentions them. A test holds them to that.
#[cfg(test)]
const NEVER: &[&str] = &[
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    "socket",
    "socketpair",
    "connect",
    "accept",
    "accept4",
    "bind",
    "listen",
    "sendto",
    "recvfrom",
    "sendmsg",
    "sendmmsg",
    "recvmmsg",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "getsockname",
    "getpeername",
    "execve",
    "execveat",
    "fork",
    "vfork",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "process_mrelease",
    "kcmp",
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "open_tree",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "unshare",
    "setns",
    "keyctl",
    "add_key",
    "request_key",
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "memfd_create",
    "memfd_secret",
    "kill",
    "tkill",
    "rt_sigqueueinfo",
    "rt_tgsigqueueinfo",
    "pidfd_open",
    "pidfd_send_signal",
    "pidfd_getfd",
    "personality",
    "setuid",
    "setgid",
    "setresuid",
    "setresgid",
    "setgroups",
    "setfsuid",
    "capset",
    "pkey_mprotect",
    "pkey_alloc",
    "modify_ldt",
    "iopl",
    "ioperm",
    "init_module",
    "finit_module",
    "kexec_load",
    "reboot",
    "swapon",
    "pipe",
    "pipe2",
    "eventfd",
    "eventfd2",
    "epoll_create",
    "epoll_create1",
    "timerfd_create",
    "signalfd",
    "signalfd4",
    "inotify_init",
    "inotify_init1",
    "fanotify_init",
    "name_to_handle_at",
    "open_by_handle_at",
    "tee",
    "vmsplice",
    "shmget",
    "shmat",
    "semget",
    "msgget",
    "mq_open",
    "timer_create",
    "setitimer",
    "alarm",
    "io_setup",
    "io_submit",
    "landlock_create_ruleset",
    "syslog",
    "sethostname",
    "acct",
    "wait4",
    "waitid",
    "remap_file_pages",
    "move_pages",
    "migrate_pages",
    "quotactl",
    "lookup_dcookie",
];

#[cfg(test)]
mod tests {
    use super::super::names;
    use super::super::program::{ARCH, compile, run};
    use super::*;

    const LOADING: Filter = Filter { stage: Stage::Loading, files: FileAccess::None, ring: false };
    const SEALED: Filter = Filter { stage: Stage::Sealed, files: FileAccess::None, ring: false };
    const SEALED_FILES: Filter = Filter { stage: Stage::Sealed, files: FileAccess::Image, ring: false };
    const LOADING_STATE: Filter = Filter { stage: Stage::Loading, files: FileAccess::State, ring: false };
    const SEALED_STATE: Filter = Filter { stage: Stage::Sealed, files: FileAccess::State, ring: false };
    const PLAIN: [Filter; 5] = [LOADING, SEALED, SEALED_FILES, LOADING_STATE, SEALED_STATE];
    const ALL: [Filter; 10] = {
        let [a, b, c, d, e] = PLAIN;
        [a, b, c, d, e, with_ring(a), with_ring(b), with_ring(c), with_ring(d), with_ring(e)]
    };

    const fn with_ring(filter: Filter) -> Filter {
        Filter { ring: true, ..filter }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const TRAP: u32 = libc::SECCOMP_RET_TRAP;

    fn refuse(errno: i32) -> u32 {
        libc::SECCOMP_RET_ERRNO | errno.unsigned_abs()
    }

    fn act(filter: Filter, name: &str, args: [u64; 6]) -> u32 {
        let program = compile(rules(filter), names::highest());
        let nr = number_of(name).unwrap_or_else(|| panic!("{name} does not exist here"));
        run::action(&program, ARCH, u32::try_from(nr).unwrap(), args)
    }

    #[test]
    fn what_is_never_allowed_is_trapped_by_every_filter() {
        for filter in ALL {
            for name in NEVER {
                if number_of(name).is_some() {
                    assert_eq!(act(filter, name, [0; 6]), TRAP, "{name} in {filter:?}");
                }
            }
        }
    }

    #[test]
    fn every_name_in_the_rules_is_a_system_call_somewhere() {
        let known = |name: &&str| !cfg!(target_arch = "x86_64") || number_of(name).is_some();
        let refused = REFUSED.iter().flat_map(|(_, names)| names.iter());
        let changes = CHANGES.iter().chain(CHANGES_BY_DESCRIPTOR);
        for name in ALWAYS.iter().chain(refused).chain(PATHS).chain(changes).chain(NEVER) {
            assert!(known(name), "{name} is misspelt");
        }
    }

    /// The calls that two filters answer differently, with all arguments 0, in alphabetical order.
    fn differing(one: Filter, other: Filter) -> Vec<&'static str> {
        differing_on(0, one, other)
    }

    /// As above, with this first argument.
    fn differing_on(fd: u64, one: Filter, other: Filter) -> Vec<&'static str> {
        let verdicts = |filter| {
            let program = compile(rules(filter), names::highest());
            (0..=u32::try_from(names::highest()).unwrap())
                .map(move |nr| run::action(&program, ARCH, nr, [fd, 0, 0, 0, 0, 0]))
                .collect::<Vec<_>>()
        };
        let (one, other) = (verdicts(one), verdicts(other));
        let mut differing: Vec<_> = (0..one.len())
            .filter(|&nr| one[nr] != other[nr])
            .filter_map(|nr| names::name_of(i64::try_from(nr).unwrap()))
            .collect();
        differing.sort_unstable();
        differing
    }

    /// Those of them that exist on this architecture.
    fn here(names: &[&'static str]) -> Vec<&'static str> {
        names.iter().copied().filter(|name| number_of(name).is_some()).collect()
    }

    /// What an image gains by `files = "state"`. A change here needs thought.
    #[test]
    fn files_of_its_own_are_changed_by_these_calls_and_no_others() {
        const CHANGING: [&str; 21] = [
            "chmod",
            "creat",
            "fadvise64",
            "fchmod",
            "fchmodat",
            "fstatfs",
            "ftruncate",
            "futimesat",
            "mkdir",
            "mkdirat",
            "rename",
            "renameat",
            "renameat2",
            "rmdir",
            "statfs",
            "truncate",
            "unlink",
            "unlinkat",
            "utime",
            "utimensat",
            "utimes",
        ];
        let changing = here(&CHANGING);
        assert_eq!(differing(SEALED_FILES, SEALED_STATE), changing);
        assert_eq!(differing(LOADING, LOADING_STATE), changing);
        let openat = |filter, flags: i32| {
            act(filter, "openat", [u64::MAX, 0, u64::from(flags.unsigned_abs()), 0, 0, 0])
        };
        for flags in
            [libc::O_RDWR | libc::O_CREAT, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDWR | libc::O_TMPFILE]
        {
            assert_eq!(openat(SEALED_STATE, flags), ALLOW);
            assert_eq!(openat(SEALED_FILES, flags), refuse(libc::EACCES));
        }
        let fcntl =
            |filter, command: i32| act(filter, "fcntl", [5, u64::from(command.unsigned_abs()), 0, 0, 0, 0]);
        for command in [libc::F_SETLK, libc::F_SETLKW, libc::F_GETLK, libc::F_OFD_SETLK] {
            assert_eq!(fcntl(SEALED_STATE, command), ALLOW);
            assert_eq!(fcntl(SEALED_FILES, command), refuse(libc::EPERM));
        }
        for filter in [LOADING, LOADING_STATE, SEALED, SEALED_FILES, SEALED_STATE] {
            let unlock = [5, u64::from(libc::LOCK_UN.unsigned_abs()), 0, 0, 0, 0];
            assert_eq!(
                act(filter, "flock", unlock),
                refuse(libc::EPERM),
                "a segment's lock could be taken off"
            );
        }
        for command in [libc::F_DUPFD, libc::F_SETOWN, libc::F_SETLEASE, libc::F_NOTIFY, libc::F_ADD_SEALS] {
            assert_eq!(fcntl(SEALED_STATE, command), refuse(libc::EPERM), "{command}");
        }
        for name in ["link", "linkat", "symlink", "symlinkat", "mknod", "mknodat", "setxattr", "chown"] {
            if number_of(name).is_some() {
                assert_eq!(act(SEALED_STATE, name, [0; 6]), refuse(libc::EACCES), "{name}");
            }
        }
    }

    #[test]
    fn descriptors_are_received_on_the_connection_to_the_agent_only() {
        let recvmsg = |filter, fd: u64, flags: i32| {
            act(filter, "recvmsg", [fd, 0, u64::from(flags.unsigned_abs()), 0, 0, 0])
        };
        for filter in ALL {
            for flags in [0, libc::MSG_CMSG_CLOEXEC, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT] {
                assert_eq!(recvmsg(filter, 3, flags), ALLOW);
                for fd in [0, 1, 2, 4, 5, 100, 0xFFFF_FFFF] {
                    assert_eq!(recvmsg(filter, fd, flags), TRAP, "from {fd}");
                }
            }
            for flags in
                [libc::MSG_PEEK, libc::MSG_OOB, libc::MSG_ERRQUEUE, libc::MSG_PEEK | libc::MSG_DONTWAIT]
            {
                assert_eq!(recvmsg(filter, 3, flags), TRAP, "with flags {flags:#x}");
            }
        }
    }

    /// What a sandbox gains by its ring, whatever its files, before and after the seal. A change here needs thought.
    #[test]
    fn a_ring_is_entered_by_its_descriptor_and_no_other_and_never_registered_with() {
        const RING: u64 = 4;
        const WAYS: [u64; 4] = [0, 1, 8, 9];
        for filter in PLAIN {
            let ring = with_ring(filter);
            assert_eq!(differing_on(RING, filter, ring), ["io_uring_enter"]);
            for fd in [0, 1, 2, 3, 5, 6, 100, 0xFFFF_FFFF] {
                assert_eq!(differing_on(fd, filter, ring), here(&[]), "on descriptor {fd}");
            }
            let enter = |filter, flags: u64| act(filter, "io_uring_enter", [RING, 64, 1, flags, 7, 24]);
            for flags in WAYS {
                assert_eq!(enter(ring, flags), ALLOW, "with flags {flags:#x}");
                assert_eq!(enter(filter, flags), TRAP, "without a ring");
            }
            // A polling thread, numbers that are not descriptors, whatever comes later.
            for bit in 0..32 {
                let expected = if WAYS.contains(&(1 << bit)) { ALLOW } else { TRAP };
                assert_eq!(enter(ring, 1 << bit), expected, "with bit {bit}");
            }
            for what in 0..64 {
                assert_eq!(
                    act(ring, "io_uring_register", [RING, what, 7, 1, 0, 0]),
                    TRAP,
                    "registering {what}"
                );
            }
            assert_eq!(act(ring, "io_uring_setup", [8, 7, 0, 0, 0, 0]), TRAP);
        }
    }

    /// What the log does to its segments, whatever files an image has.
    #[test]
    fn segments_are_written_synced_mapped_and_populated() {
        for filter in ALL {
            for name in ["pwrite64", "pread64", "fdatasync", "lseek", "munmap", "close", "fstat"] {
                assert_eq!(act(filter, name, [7; 6]), ALLOW, "{name}");
            }
            const POPULATE: [i32; 3] =
                [libc::MADV_RANDOM, libc::MADV_POPULATE_READ, libc::MADV_POPULATE_WRITE];
            for advice in POPULATE {
                let args = [0, 4096, u64::from(advice.unsigned_abs()), 0, 0, 0];
                assert_eq!(act(filter, "madvise", args), ALLOW, "{advice}");
            }
            // The length of an open file, as the standard library asks for it.
            let empty_path = u64::from(libc::AT_EMPTY_PATH.unsigned_abs());
            assert_eq!(act(filter, "statx", [7, 0, empty_path, 0xFFF, 0, 0]), ALLOW);
        }
    }

    /// A malicious constructor can dodge filter 2. This is all that it gains, and a change here needs thought.
    #[test]
    fn the_difference_between_the_filters_is_the_image_and_the_seal() {
        const READING: [&str; 13] = [
            "access",
            "faccessat",
            "getcwd",
            "getdents",
            "getdents64",
            "lstat",
            "newfstatat",
            "open",
            "openat",
            "readlink",
            "readlinkat",
            "stat",
            "statx",
        ];
        assert_eq!(differing(LOADING, SEALED), here(&READING));
        assert_eq!(differing(LOADING, SEALED_FILES), here(&[]));
        assert_eq!(differing(LOADING_STATE, SEALED_STATE), here(&[]));
        // And by arguments: executable maps of files, and the installation of filter 2 itself.
        let exec = [0, 4096, u64::from(EXEC), 2, 3, 0];
        assert_eq!(act(LOADING, "mmap", exec), ALLOW);
        assert_eq!(act(SEALED, "mmap", exec), refuse(libc::EPERM));
        assert_eq!(act(LOADING, "seccomp", [1, 1, 0, 0, 0, 0]), ALLOW);
        assert_eq!(act(SEALED, "seccomp", [1, 1, 0, 0, 0, 0]), TRAP);
    }

    #[test]
    fn threads_are_made_with_exactly_the_flags_of_pthread_create() {
        let clone = |flags: u64| act(LOADING, "clone", [flags, 0, 0, 0, 0, 0]);
        assert_eq!(PTHREAD, 0x003D_0F00);
        assert_eq!(clone(u64::from(PTHREAD)), ALLOW);
        for bit in 0..64 {
            assert_eq!(clone(u64::from(PTHREAD) ^ (1 << bit)), TRAP, "with bit {bit} turned");
        }
        assert_eq!(act(SEALED, "clone3", [0; 6]), refuse(libc::ENOSYS));
    }

    #[test]
    fn memory_is_counted_and_never_writable_and_executable() {
        let mmap = |filter, prot: i32, flags: i32| {
            act(
                filter,
                "mmap",
                [0, 4096, u64::from(prot.unsigned_abs()), u64::from(flags.unsigned_abs()), 3, 0],
            )
        };
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let no = refuse(libc::EPERM);
        for filter in ALL {
            // A segment's map, for reading by all and for writing its tail.
            assert_eq!(mmap(filter, 3, libc::MAP_SHARED), ALLOW);
            assert_eq!(mmap(filter, 3, private | libc::MAP_NORESERVE | libc::MAP_STACK), ALLOW);
            assert_eq!(mmap(filter, 1, libc::MAP_SHARED), ALLOW);
            assert_eq!(mmap(filter, 7, private), no);
            assert_eq!(mmap(filter, 3, libc::MAP_SHARED | libc::MAP_ANONYMOUS), no);
            assert_eq!(mmap(filter, 3, libc::MAP_SHARED_VALIDATE | libc::MAP_ANONYMOUS), no);
            assert_eq!(mmap(filter, 3, private | libc::MAP_GROWSDOWN), no);
            assert_eq!(mmap(filter, 3, private | libc::MAP_HUGETLB), no);
            assert_eq!(act(filter, "mprotect", [0, 4096, 5, 0, 0, 0]), no);
            assert_eq!(act(filter, "mprotect", [0, 4096, 3, 0, 0, 0]), ALLOW);
        }
    }

    #[test]
    fn files_open_for_reading_while_loading_and_by_grant_only() {
        let openat = |filter, flags: i32| {
            act(filter, "openat", [u64::MAX, 0, u64::from(flags.unsigned_abs()), 0, 0, 0])
        };
        let no = refuse(libc::EACCES);
        for filter in [LOADING, SEALED_FILES] {
            assert_eq!(openat(filter, libc::O_CLOEXEC | libc::O_DIRECTORY), ALLOW);
            for flags in [
                libc::O_WRONLY,
                libc::O_RDWR,
                libc::O_CREAT,
                libc::O_TRUNC,
                3,
                libc::O_WRONLY | libc::O_TMPFILE,
            ] {
                assert_eq!(openat(filter, flags), no);
            }
        }
        assert_eq!(openat(SEALED, libc::O_CLOEXEC), no);
    }

    #[test]
    fn signals_and_limits_reach_only_the_process_itself() {
        assert_eq!(act(SEALED, "tgkill", [1, 5, 6, 0, 0, 0]), ALLOW);
        assert_eq!(act(SEALED, "tgkill", [2, 2, 9, 0, 0, 0]), TRAP);
        assert_eq!(act(SEALED, "prlimit64", [0, 7, 0, 0x1000, 0, 0]), ALLOW);
        assert_eq!(act(SEALED, "prlimit64", [0, 7, 0x1000, 0, 0, 0]), refuse(libc::EPERM));
        assert_eq!(act(SEALED, "prlimit64", [0, 7, 1 << 32, 0, 0, 0]), refuse(libc::EPERM));
        assert_eq!(act(SEALED, "futex", [0, 6, 0, 0, 0, 0]), refuse(libc::ENOSYS));
        assert_eq!(act(SEALED, "futex", [0, 128, 0, 0, 0, 0]), ALLOW);
        assert_eq!(act(SEALED, "fcntl", [0, 8, 1, 0, 0, 0]), refuse(libc::EPERM));
    }
}
