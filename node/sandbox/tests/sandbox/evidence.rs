//! THE evidence: what code in a sandbox sees and can do, from a constructor's place (behind filter 1) and from a function's
//! (behind both). Nothing.
//!
//! The tenant is a hostile one: it puts its own handler on SIGSYS, so that a trapped call becomes an error and it can go on
//! to the next. Every attempt is one line of a table; one that succeeds fails the test, unless it is in the short list of
//! what a sandbox is meant to have.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int, c_long, c_void};
use std::fs;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use denizen_sandbox::{FileAccess, Rings};

use crate::node::{Node, Order, SOON, has, is_root, skip};
use crate::runner::Report;

/// Set by the tenant's handler: the last call was trapped.
static TRAPPED: AtomicBool = AtomicBool::new(false);

/// Paths that a process on any ordinary machine can see, or would like to.
const PATHS: &[&CStr] = &[
    c"/etc/passwd",
    c"/etc/hostname",
    c"/proc",
    c"/proc/self/maps",
    c"/proc/1/status",
    c"/proc/self/fd",
    c"/proc/self/root/..",
    c"/sys",
    c"/sys/kernel",
    c"/dev",
    c"/dev/null",
    c"/dev/mem",
    c"/dev/kvm",
    c"/dev/shm",
    c"/tmp",
    c"/root",
    c"/home",
    c"/usr/lib",
    c"/lib64/ld-linux-x86-64.so.2",
    c"/run",
    c"/var",
    c"/../../../etc/passwd",
    c"/image/../../etc/passwd",
    c"/store/00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff/hello.txt",
    c"/template",
];

/// The one thing of sockets that a sandbox may do.
const RECEIVE: &str = "recvmsg on control";

/// In the sandbox: tries everything and reports a line for each attempt.
pub(crate) fn try_everything(report: &Report) {
    catch_sigsys();
    let tenant = Tenant { report };
    tenant.files();
    tenant.sockets();
    tenant.rings();
    tenant.processes();
    tenant.namespaces_and_mounts();
    tenant.memory();
    tenant.powers();
    tenant.new_descriptors();
    report.line("done");
}

struct Tenant<'a> {
    report: &'a Report,
}

impl Tenant<'_> {
    /// One attempt.
    fn attempt(&self, what: impl AsRef<str>, nr: c_long, args: [usize; 6]) {
        TRAPPED.store(false, Ordering::Relaxed);
        let [a, b, c, d, e, f] = args;
        // SAFETY: the attempts below pass live pointers or nonsense that the kernel refuses; none is meant to succeed, and
        // what does succeed ends in a failed test.
        let result = unsafe { libc::syscall(nr, a, b, c, d, e, f) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let outcome = match (TRAPPED.load(Ordering::Relaxed), result) {
            (true, _) => "trapped".to_owned(),
            (false, -1) => format!("refused {errno}"),
            (false, value) => format!("GOT {value}"),
        };
        self.report.line(format!("{}\t{outcome}", what.as_ref()));
    }

    fn files(&self) {
        for path in PATHS {
            let text = path.to_string_lossy();
            let pointer = path.as_ptr().addr();
            let at = libc::AT_FDCWD as usize;
            self.attempt(format!("open {text}"), libc::SYS_openat, [at, pointer, 0, 0, 0, 0]);
            let mut stat = [0_u8; 256];
            self.attempt(
                format!("stat {text}"),
                libc::SYS_newfstatat,
                [at, pointer, stat.as_mut_ptr().addr(), 0, 0, 0],
            );
            self.attempt(
                format!("readlink {text}"),
                libc::SYS_readlinkat,
                [at, pointer, stat.as_mut_ptr().addr(), 256, 0, 0],
            );
        }
        let image = c"/image/hello.txt".as_ptr().addr();
        let at = libc::AT_FDCWD as usize;
        for (name, flags) in [
            ("write", libc::O_WRONLY),
            ("read-write", libc::O_RDWR),
            ("truncate", libc::O_TRUNC),
            ("both", 3),
        ] {
            self.attempt(
                format!("open image for {name}"),
                libc::SYS_openat,
                [at, image, flags as usize, 0, 0, 0],
            );
        }
        let new = c"/image/new".as_ptr().addr();
        let create = (libc::O_CREAT | libc::O_WRONLY) as usize;
        self.attempt("create a file", libc::SYS_openat, [at, new, create, 0o777, 0, 0]);
        self.attempt(
            "create a temporary file",
            libc::SYS_openat,
            [at, c"/".as_ptr().addr(), (libc::O_TMPFILE | libc::O_RDWR) as usize, 0o600, 0, 0],
        );
        self.attempt("mkdir", libc::SYS_mkdirat, [at, new, 0o777, 0, 0, 0]);
        self.attempt("unlink", libc::SYS_unlinkat, [at, image, 0, 0, 0, 0]);
        self.attempt("chmod", libc::SYS_fchmodat, [at, image, 0o777, 0, 0, 0]);
        let how = [0_u64; 3];
        self.attempt("openat2", libc::SYS_openat2, [at, image, how.as_ptr().addr(), 24, 0, 0]);
        self.attempt("open_by_handle_at", libc::SYS_open_by_handle_at, [at, how.as_ptr().addr(), 0, 0, 0, 0]);
    }

    fn sockets(&self) {
        for family in 0..46 {
            for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET] {
                self.attempt(
                    format!("socket {family} {kind}"),
                    libc::SYS_socket,
                    [family, kind as usize, 0, 0, 0, 0],
                );
            }
        }
        let buffer = [0_u8; 256];
        let pointer = buffer.as_ptr().addr();
        self.attempt("socketpair", libc::SYS_socketpair, [1, 1, 0, pointer, 0, 0]);
        for (name, nr) in [
            ("connect", libc::SYS_connect),
            ("bind", libc::SYS_bind),
            ("listen", libc::SYS_listen),
            ("accept", libc::SYS_accept),
            ("accept4", libc::SYS_accept4),
            ("sendto", libc::SYS_sendto),
            ("recvfrom", libc::SYS_recvfrom),
            ("sendmsg", libc::SYS_sendmsg),
            ("sendmmsg", libc::SYS_sendmmsg),
            ("recvmmsg", libc::SYS_recvmmsg),
            ("shutdown", libc::SYS_shutdown),
            ("getsockopt", libc::SYS_getsockopt),
            ("setsockopt", libc::SYS_setsockopt),
            ("getpeername", libc::SYS_getpeername),
        ] {
            self.attempt(format!("{name} on control"), nr, [3, pointer, 0, 0, 0, 0]);
        }
        // It is meant to be able to receive there, and nothing is there to be received.
        let receive = |name: &str, fd: usize, flags: c_int| {
            self.attempt(name, libc::SYS_recvmsg, [fd, pointer, flags as usize, 0, 0, 0]);
        };
        receive(RECEIVE, 3, libc::MSG_DONTWAIT);
        receive("recvmsg on standard output", 1, libc::MSG_DONTWAIT);
        receive("recvmsg on no descriptor", 9, libc::MSG_DONTWAIT);
        receive("peek on control", 3, libc::MSG_DONTWAIT | libc::MSG_PEEK);
        receive("recvmsg of urgent bytes on control", 3, libc::MSG_DONTWAIT | libc::MSG_OOB);
    }

    fn rings(&self) {
        let parameters = [0_u8; 256];
        let pointer = parameters.as_ptr().addr();
        self.attempt("io_uring_setup", libc::SYS_io_uring_setup, [8, pointer, 0, 0, 0, 0]);
        for fd in 0..8 {
            self.attempt(format!("io_uring_enter {fd}"), libc::SYS_io_uring_enter, [fd, 1, 0, 0, 0, 0]);
        }
        self.attempt("io_uring_register", libc::SYS_io_uring_register, [3, 0, 0, 0, 0, 0]);
        for what in 0..40 {
            self.attempt(
                format!("io_uring_register {what} on 4"),
                libc::SYS_io_uring_register,
                [4, what, pointer, 1, 0, 0],
            );
        }
        for flag in (0..32).map(|bit| 1 << bit) {
            self.attempt(
                format!("io_uring_enter 4 with {flag:#x}"),
                libc::SYS_io_uring_enter,
                [4, 0, 0, flag, 0, 0],
            );
        }
        self.attempt("io_setup", libc::SYS_io_setup, [8, pointer, 0, 0, 0, 0]);
    }

    fn processes(&self) {
        self.attempt("kill everybody", libc::SYS_kill, [usize::MAX, 0, 0, 0, 0, 0]);
        for pid in 0..64 {
            self.attempt(format!("kill {pid}"), libc::SYS_kill, [pid, 0, 0, 0, 0, 0]);
        }
        for pid in [0, 2, 3, 100, 1000] {
            self.attempt(format!("tgkill {pid}"), libc::SYS_tgkill, [pid, pid, 0, 0, 0, 0]);
            self.attempt(format!("tkill {pid}"), libc::SYS_tkill, [pid, 0, 0, 0, 0, 0]);
            self.attempt(format!("pidfd_open {pid}"), libc::SYS_pidfd_open, [pid, 0, 0, 0, 0, 0]);
            self.attempt(format!("ptrace {pid}"), libc::SYS_ptrace, [16, pid, 0, 0, 0, 0]);
        }
        self.attempt("ptrace me", libc::SYS_ptrace, [0, 0, 0, 0, 0, 0]);
        let part = [0_usize; 2];
        let pointer = part.as_ptr().addr();
        self.attempt("process_vm_readv", libc::SYS_process_vm_readv, [1, pointer, 1, pointer, 1, 0]);
        self.attempt("process_vm_writev", libc::SYS_process_vm_writev, [1, pointer, 1, pointer, 1, 0]);
        self.attempt("pidfd_getfd", libc::SYS_pidfd_getfd, [3, 0, 0, 0, 0, 0]);
        self.attempt("kcmp", libc::SYS_kcmp, [1, 1, 0, 0, 0, 0]);
        let nothing = [0_usize; 1];
        let path = c"/image/hello.txt".as_ptr().addr();
        self.attempt(
            "execve",
            libc::SYS_execve,
            [path, nothing.as_ptr().addr(), nothing.as_ptr().addr(), 0, 0, 0],
        );
        self.attempt("execveat", libc::SYS_execveat, [0, path, nothing.as_ptr().addr(), 0, 0, 0]);
        self.forks();
    }

    fn forks(&self) {
        let pthread =
            libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        for (name, flags) in [
            ("fork", libc::SIGCHLD),
            ("vfork", libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD),
            ("user namespace", libc::CLONE_NEWUSER | libc::SIGCHLD),
            ("pid namespace", libc::CLONE_NEWPID | libc::SIGCHLD),
            ("thread with other flags", pthread),
            ("sibling", libc::CLONE_PARENT | libc::SIGCHLD),
        ] {
            self.attempt(format!("clone as {name}"), libc::SYS_clone, [flags as usize, 0, 0, 0, 0, 0]);
        }
        let args = [0_u64, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0];
        self.attempt("clone3", libc::SYS_clone3, [args.as_ptr().addr(), 88, 0, 0, 0, 0]);
        #[cfg(target_arch = "x86_64")]
        {
            self.attempt("fork", libc::SYS_fork, [0; 6]);
            self.attempt("vfork", libc::SYS_vfork, [0; 6]);
        }
    }

    fn namespaces_and_mounts(&self) {
        for (name, flags) in [
            ("user", libc::CLONE_NEWUSER),
            ("mount", libc::CLONE_NEWNS),
            ("network", libc::CLONE_NEWNET),
            ("pid", libc::CLONE_NEWPID),
            ("files", libc::CLONE_FILES),
        ] {
            self.attempt(format!("unshare {name}"), libc::SYS_unshare, [flags as usize, 0, 0, 0, 0, 0]);
            self.attempt(format!("setns {name}"), libc::SYS_setns, [3, flags as usize, 0, 0, 0, 0]);
        }
        let (image, tmpfs, proc, root) = (
            c"/image".as_ptr().addr(),
            c"tmpfs".as_ptr().addr(),
            c"proc".as_ptr().addr(),
            c"/".as_ptr().addr(),
        );
        self.attempt("mount tmpfs", libc::SYS_mount, [tmpfs, image, tmpfs, 0, 0, 0]);
        self.attempt("mount proc", libc::SYS_mount, [proc, image, proc, 0, 0, 0]);
        self.attempt("remount writable", libc::SYS_mount, [0, image, 0, libc::MS_REMOUNT as usize, 0, 0]);
        self.attempt("umount image", libc::SYS_umount2, [image, libc::MNT_DETACH as usize, 0, 0, 0, 0]);
        self.attempt("pivot_root", libc::SYS_pivot_root, [image, image, 0, 0, 0, 0]);
        self.attempt("chroot", libc::SYS_chroot, [image, 0, 0, 0, 0, 0]);
        self.attempt("open_tree", libc::SYS_open_tree, [libc::AT_FDCWD as usize, root, 1, 0, 0, 0]);
        self.attempt("fsopen", libc::SYS_fsopen, [tmpfs, 0, 0, 0, 0, 0]);
        self.attempt("mount_setattr", libc::SYS_mount_setattr, [libc::AT_FDCWD as usize, root, 0, 0, 0, 0]);
        self.attempt("sethostname", libc::SYS_sethostname, [tmpfs, 5, 0, 0, 0, 0]);
    }

    fn memory(&self) {
        let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
        // SAFETY: a fresh map.
        let page = unsafe { libc::mmap(ptr::null_mut(), 4096, 3, private as c_int, -1, 0) }.addr();
        self.attempt("mprotect executable", libc::SYS_mprotect, [page, 4096, 5, 0, 0, 0]);
        self.attempt("mprotect all", libc::SYS_mprotect, [page, 4096, 7, 0, 0, 0]);
        self.attempt("pkey_mprotect", libc::SYS_pkey_mprotect, [page, 4096, 5, usize::MAX, 0, 0]);
        self.attempt("mmap writable and executable", libc::SYS_mmap, [0, 4096, 7, private, usize::MAX, 0]);
        let shared = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as usize;
        self.attempt("mmap shared, uncounted", libc::SYS_mmap, [0, 4096, 3, shared, usize::MAX, 0]);
        let huge = private | libc::MAP_HUGETLB as usize;
        self.attempt("mmap huge, uncounted", libc::SYS_mmap, [0, 2 << 20, 3, huge, usize::MAX, 0]);
        let grows = private | libc::MAP_GROWSDOWN as usize;
        self.attempt("mmap growing, uncounted", libc::SYS_mmap, [0, 4096, 3, grows, usize::MAX, 0]);
        self.attempt("madvise mergeable", libc::SYS_madvise, [page, 4096, 12, 0, 0, 0]);
        self.attempt("mlockall", libc::SYS_mlockall, [3, 0, 0, 0, 0, 0]);
        self.attempt("shmget", libc::SYS_shmget, [0, 4096, 0o1777, 0, 0, 0]);
        self.attempt("userfaultfd", libc::SYS_userfaultfd, [0; 6]);
    }

    fn powers(&self) {
        let buffer = [0_u64; 16];
        let pointer = buffer.as_ptr().addr();
        for (name, nr) in
            [("setuid", libc::SYS_setuid), ("setgid", libc::SYS_setgid), ("setfsuid", libc::SYS_setfsuid)]
        {
            self.attempt(name, nr, [0; 6]);
        }
        self.attempt("setresuid", libc::SYS_setresuid, [0; 6]);
        self.attempt("setgroups", libc::SYS_setgroups, [0; 6]);
        self.attempt("capset", libc::SYS_capset, [pointer, pointer, 0, 0, 0, 0]);
        self.attempt("capget", libc::SYS_capget, [pointer, pointer, 0, 0, 0, 0]);
        for option in [
            libc::PR_SET_DUMPABLE,
            libc::PR_SET_PDEATHSIG,
            libc::PR_SET_SECCOMP,
            libc::PR_CAPBSET_READ,
            libc::PR_SET_PTRACER,
            libc::PR_SET_MM,
            libc::PR_SET_NO_NEW_PRIVS,
        ] {
            self.attempt(format!("prctl {option}"), libc::SYS_prctl, [option as usize, 1, 0, 0, 0, 0]);
        }
        self.attempt("seccomp listener", libc::SYS_seccomp, [1, 8, pointer, 0, 0, 0]);
        self.attempt("seccomp without other threads", libc::SYS_seccomp, [1, 0, pointer, 0, 0, 0]);
        self.attempt("prlimit64", libc::SYS_prlimit64, [0, 7, pointer, 0, 0, 0]);
        self.attempt("setrlimit", libc::SYS_setrlimit, [7, pointer, 0, 0, 0, 0]);
        self.attempt("personality", libc::SYS_personality, [0; 6]);
        self.attempt("keyctl", libc::SYS_keyctl, [0; 6]);
        self.attempt("add_key", libc::SYS_add_key, [0; 6]);
        self.attempt("bpf", libc::SYS_bpf, [0, pointer, 128, 0, 0, 0]);
        self.attempt("perf_event_open", libc::SYS_perf_event_open, [pointer, 0, 0, 0, 0, 0]);
        self.attempt("init_module", libc::SYS_init_module, [0; 6]);
        self.attempt("reboot", libc::SYS_reboot, [0; 6]);
        self.attempt("syslog", libc::SYS_syslog, [10, 0, 0, 0, 0, 0]);
        self.attempt("sysinfo", libc::SYS_sysinfo, [pointer, 0, 0, 0, 0, 0]);
        self.attempt("sched_setaffinity", libc::SYS_sched_setaffinity, [0, 8, pointer, 0, 0, 0]);
        self.attempt("sched_setscheduler", libc::SYS_sched_setscheduler, [0, 1, pointer, 0, 0, 0]);
        #[cfg(target_arch = "x86_64")]
        {
            self.attempt("modify_ldt", libc::SYS_modify_ldt, [0, pointer, 16, 0, 0, 0]);
            self.attempt("iopl", libc::SYS_iopl, [3, 0, 0, 0, 0, 0]);
            self.attempt("arch_prctl", libc::SYS_arch_prctl, [0x1003, pointer, 0, 0, 0, 0]);
        }
    }

    fn new_descriptors(&self) {
        let name = c"x".as_ptr().addr();
        let pair = [0_u8; 64];
        let pointer = pair.as_ptr().addr();
        self.attempt("memfd_create", libc::SYS_memfd_create, [name, 0, 0, 0, 0, 0]);
        self.attempt("memfd_secret", libc::SYS_memfd_secret, [0; 6]);
        self.attempt("pipe2", libc::SYS_pipe2, [pointer, 0, 0, 0, 0, 0]);
        self.attempt("eventfd2", libc::SYS_eventfd2, [0; 6]);
        self.attempt("epoll_create1", libc::SYS_epoll_create1, [0; 6]);
        self.attempt("timerfd_create", libc::SYS_timerfd_create, [0; 6]);
        self.attempt("signalfd4", libc::SYS_signalfd4, [usize::MAX, pointer, 8, 0, 0, 0]);
        self.attempt("inotify_init1", libc::SYS_inotify_init1, [0; 6]);
        self.attempt("fanotify_init", libc::SYS_fanotify_init, [0; 6]);
        self.attempt("mq_open", libc::SYS_mq_open, [name, 0o100, 0o600, 0, 0, 0]);
        self.attempt("timer_create", libc::SYS_timer_create, [0, 0, pointer, 0, 0, 0]);
        for fd in 0..4 {
            self.attempt(format!("dup {fd}"), libc::SYS_dup, [fd, 0, 0, 0, 0, 0]);
            self.attempt(
                format!("duplicate {fd}"),
                libc::SYS_fcntl,
                [fd, libc::F_DUPFD as usize, 10, 0, 0, 0],
            );
            self.attempt(
                format!("own signals of {fd}"),
                libc::SYS_fcntl,
                [fd, libc::F_SETOWN as usize, 1, 0, 0, 0],
            );
            self.attempt(
                format!("inject into {fd}"),
                libc::SYS_ioctl,
                [fd, libc::TIOCSTI as usize, name, 0, 0, 0],
            );
        }
    }
}

/// The tenant's own handler: the call fails, the tenant goes on.
fn catch_sigsys() {
    // SAFETY: an all-zero sigaction is valid, and the handler has the signature that SA_SIGINFO promises.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note_trap as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()), 0);
    }
}

extern "C" fn note_trap(_: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    TRAPPED.store(true, Ordering::Relaxed);
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid context; this register is where a call's result is found.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        (*context).uc_mcontext.gregs[libc::REG_RAX as usize] = -i64::from(libc::EPERM);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        (*context).uc_mcontext.regs[0] = (-i64::from(libc::EPERM)).cast_unsigned();
    }
}

/// In the sandbox: which descriptors there are, and what it is told about itself.
pub(crate) fn list_descriptors(report: &Report) {
    for fd in 0..1024 {
        // SAFETY: system calls on numbers and on live buffers.
        unsafe {
            if libc::fcntl(fd, libc::F_GETFD) < 0 {
                continue;
            }
            let mut stat: libc::stat = std::mem::zeroed();
            let kind = if libc::fstat(fd, &raw mut stat) == 0 { stat.st_mode & libc::S_IFMT } else { 0 };
            report.line(format!("fd {fd} {}", if kind == libc::S_IFSOCK { "socket" } else { "other" }));
        }
    }
    // SAFETY: system calls without preconditions, and uname on a live buffer.
    unsafe {
        report.line(format!(
            "ids {} {} {} {}",
            libc::getpid(),
            libc::getppid(),
            libc::getuid(),
            libc::getgid()
        ));
        let mut name: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut name);
        report.line(format!("host {}", CStr::from_ptr(name.nodename.as_ptr()).to_string_lossy()));
        let mut byte = 0_u8;
        report.line(format!("stdin {}", libc::read(0, (&raw mut byte).cast(), 1)));
    }
    report.line(format!("environment {}", std::env::vars_os().count()));
    report.line("done");
    let mut line = [0; 1];
    // Stays for a look from outside.
    let _ = std::io::Read::read(&mut *report.0.lock().expect("alone"), &mut line);
}

/// In the sandbox: a file's text, or the error.
pub(crate) fn read(path: &str) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) => format!("error {}", error.raw_os_error().unwrap_or(0)),
    }
}

/// In the sandbox: what it can open, as Rust code would.
pub(crate) fn open_files(report: &Report) {
    report.line(read("/image/hello.txt"));
    report.line(read("/etc/passwd"));
    let list = |path: &str| match fs::read_dir(path) {
        Ok(entries) => {
            let mut names: Vec<_> =
                entries.flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
            names.sort();
            format!("[{}]", names.join(" "))
        }
        Err(error) => format!("error {}", error.raw_os_error().unwrap_or(0)),
    };
    report.line(list("/"));
    report.line(list("/store"));
    report.line(list("/image"));
    report.line("done");
}

pub(crate) fn what_a_sandbox_sees() {
    let node = Node::start();
    let orders = [FileAccess::None, FileAccess::Image, FileAccess::State].into_iter().flat_map(|files| {
        let plain = [Order::loading("evidence"), Order::sealed("evidence")];
        // One that is not enabled: the sandbox has it and can do nothing with it.
        let with_ring = plain.clone().map(Order::with_ring);
        plain.into_iter().chain(with_ring).map(move |order| order.with_files(files))
    });
    for order in orders {
        let place = if order.sealed { "a function" } else { "a constructor" };
        let ring = if order.admission.ring { " and a ring" } else { "" };
        let place = format!("{place} with files {:?}{ring}", order.admission.files);
        let mut talk = node.order(&order);
        let (lines, _) = talk.rest();
        assert_eq!(
            lines.last().map(String::as_str),
            Some("done"),
            "from {place}: {lines:?} {}",
            talk.printed()
        );
        let table: Vec<(&str, &str)> = lines.iter().filter_map(|line| line.split_once('\t')).collect();
        let got: Vec<_> = table.iter().filter(|(_, outcome)| outcome.starts_with("GOT")).collect();
        assert!(got.is_empty(), "from {place} a sandbox got: {got:?}");
        // What must not even be answered by the kernel.
        for what in [
            "socket 1 1",
            "io_uring_setup",
            "io_uring_enter 3",
            "io_uring_enter 5",
            "io_uring_enter 4 with 0x2",
            "io_uring_enter 4 with 0x10",
            "io_uring_register 2 on 4",
            "io_uring_register 6 on 4",
            "io_uring_register 12 on 4",
            "ptrace me",
            "execve",
            "kill 0",
            "sendmsg on control",
            "recvmsg on standard output",
            "recvmsg on no descriptor",
            "peek on control",
            "recvmsg of urgent bytes on control",
            "mount tmpfs",
        ] {
            assert!(table.contains(&(what, "trapped")), "{what} from {place} was not trapped");
        }
        let ring = order.admission.ring && *node.spawner.rings() == Rings::Made;
        let answer = if ring { "refused 77" } else { "trapped" };
        assert!(
            table.contains(&("io_uring_enter 4", answer)),
            "io_uring_enter from {place} was not {answer}"
        );
        assert!(table.contains(&(RECEIVE, "refused 11")), "{RECEIVE} from {place} was not answered");
        print_summary(&place, &table);
    }
}

/// The table in short: how many attempts ended how.
fn print_summary(place: &str, table: &[(&str, &str)]) {
    let mut counts = BTreeMap::<&str, usize>::new();
    for (_, outcome) in table {
        *counts.entry(outcome).or_default() += 1;
    }
    let counts: Vec<_> = counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
    println!("  from {place}: {} attempts, none succeeded ({})", table.len(), counts.join(", "));
}

pub(crate) fn a_sandbox_holds_exactly_its_descriptors() {
    let node = Node::start();
    let orders = [FileAccess::None, FileAccess::State].into_iter().flat_map(|files| {
        let plain = [Order::loading("descriptors"), Order::sealed("descriptors")];
        let with_ring = plain.clone().map(Order::with_ring);
        plain.into_iter().chain(with_ring).map(move |order| order.with_files(files))
    });
    for order in orders {
        let mut talk = node.order(&order);
        let mut lines = Vec::new();
        while lines.last().map(String::as_str) != Some("done") {
            lines.push(talk.line());
        }
        let ring = order.admission.ring && *node.spawner.rings() == Rings::Made;
        let descriptors = ["fd 0 socket", "fd 1 socket", "fd 2 socket", "fd 3 socket"].into_iter();
        let rest = ["ids 1 0 1000 1000", "host sandbox", "stdin 0", "environment 0", "done"];
        let expected: Vec<_> =
            descriptors.chain(ring.then_some("fd 4 other")).chain(["fd 5 socket"]).chain(rest).collect();
        assert_eq!(lines, expected);
        look_from_outside(talk.life.pid(), &order);
        talk.life.kill();
        talk.life.wait_exit(SOON).expect("dead");
    }
}

/// What the host's kernel says about it, which the sandbox cannot fake.
fn look_from_outside(pid: u32, order: &Order) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(&format!("{name}:")))
            .unwrap_or_else(|| panic!("no {name}"));
        line.split_once(':').unwrap().1.trim().to_owned()
    };
    for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert_eq!(field("Seccomp_filters"), if order.sealed { "2" } else { "1" });
    assert_eq!(field("NSpid").split_whitespace().next_back(), Some("1"));
    if !is_root() {
        return skip("look_from_outside/mounts", "only root may look into another user namespace");
    }
    let outer_uid: u32 = field("Uid").split_whitespace().next().unwrap().parse().unwrap();
    assert!((0x7000_0000..0x7000_4000).contains(&outer_uid), "uid {outer_uid}");
    assert_eq!(field("Groups"), "");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let mounts: Vec<Vec<&str>> = mounts.lines().map(|line| line.split(' ').collect()).collect();
    let points: Vec<_> = mounts.iter().map(|fields| fields[4]).collect();
    let (fixed, own) = mounts.split_at(2);
    assert_eq!(points[..2], ["/", "/image"]);
    assert!(fixed.iter().all(|fields| fields[5].contains("ro,nosuid,nodev")), "{mounts:?}");
    let own: Vec<_> = own.iter().map(|fields| (fields[4], fields[5])).collect();
    match order.admission.files {
        FileAccess::State => assert_eq!(own, [("/state", "rw,nosuid,nodev,noexec,relatime,nosymfollow")]),
        _ => assert!(own.is_empty(), "{own:?}"),
    }
    for namespace in ["user", "pid_for_children", "mnt", "ipc", "uts", "cgroup", "net"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "the {namespace} namespace is the agent's");
    }
    let net = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert!(net.lines().skip(2).all(|line| line.trim_start().starts_with("lo:")), "{net}");
}

pub(crate) fn files_are_opened_only_as_granted() {
    let node = Node::start();
    let seen = |order: Order| {
        let (lines, _) = node.order(&order).rest();
        lines
    };
    let closed = ["error 13", "error 13", "error 13", "error 13", "error 13", "done"];
    let open = ["hello from the image", "error 2", "[image state store]", "[]", "[hello.txt]", "done"];
    assert_eq!(seen(Order::sealed("files")), closed);
    assert_eq!(seen(Order::loading("files")), open);
    for files in [FileAccess::Image, FileAccess::State] {
        assert_eq!(seen(Order::sealed("files").with_files(files)), open);
    }
}

/// A constructor may start threads. What they do later, they do behind filter 2 like the rest.
pub(crate) fn a_thread_from_before_the_seal_is_sealed_too() {
    let node = Node::start();
    let (lines, _) = node.order(&Order::sealed("early-thread")).rest();
    assert_eq!(lines, ["before: hello from the image", "behind: error 13"]);
}

/// In the sandbox: what can be done with files in `/state`, as Rust code would do it.
pub(crate) fn use_state(report: &Report) {
    let step = |what: &str, done: std::io::Result<()>| match done {
        Ok(()) => report.line(format!("{what}: done")),
        Err(error) => report.line(format!("{what}: error {}", error.raw_os_error().unwrap_or(0))),
    };
    step("create", fs::write("/state/one", "one"));
    step("make directories", fs::create_dir_all("/state/a/b"));
    step("rename", fs::rename("/state/one", "/state/a/b/two"));
    let append = |path: &str| fs::File::options().append(true).open(path);
    step(
        "append",
        append("/state/a/b/two").and_then(|mut file| std::io::Write::write_all(&mut file, b" more")),
    );
    step("copy", fs::copy("/state/a/b/two", "/state/copy").map(drop));
    report.line(format!("the copy says {}", read("/state/copy")));
    let open = || fs::File::options().read(true).write(true).open("/state/copy");
    step("shorten", open().and_then(|file| file.set_len(3)));
    step("sync", open().and_then(|file| file.sync_all()));
    step("lock a whole file", open().and_then(|file| file.lock()));
    let range = || {
        let file = open()?;
        // SAFETY: all zeros is a lock of the whole range, and the kernel reads one live `flock` on an open descriptor.
        let done = unsafe {
            let mut lock: libc::flock = std::mem::zeroed();
            lock.l_type = i16::try_from(libc::F_WRLCK).unwrap();
            libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_OFD_SETLK, &raw mut lock)
        };
        if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    step("lock a range", range());
    step("set a time", open().and_then(|file| file.set_modified(std::time::UNIX_EPOCH)));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o4600);
    step("set permissions", fs::set_permissions("/state/copy", mode));
    let listed = fs::read_dir("/state").map(|entries| entries.count());
    report.line(format!("entries {}", listed.unwrap_or(0)));
    step("remove", fs::remove_file("/state/copy"));
    step("remove directories", fs::remove_dir_all("/state/a"));
    step("hard link", fs::write("/state/x", "").and_then(|()| fs::hard_link("/state/x", "/state/y")));
    step("symbolic link", std::os::unix::fs::symlink("/image/hello.txt", "/state/link"));
    step("create elsewhere", fs::write("/new", ""));
    step("create in the image", fs::write("/image/new", ""));
    let mapped = |file: fs::File| {
        // SAFETY: a fresh mapping that nothing uses.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE,
                {
                    use std::os::fd::AsRawFd;
                    file.as_raw_fd()
                },
                0,
            )
        };
        if at == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    step("run", fs::File::open("/state/x").and_then(mapped));
    step("fill", fs::write("/state/large", vec![1; 2 << 20]));
    step("remove the large one", fs::remove_file("/state/large"));
    let many =
        (0..100_000).map(|number| fs::write(format!("/state/{number}"), "")).position(|made| made.is_err());
    report.line(format!("files: {many:?}"));
    report.line("done");
}

pub(crate) fn files_of_its_own_are_ordinary_files_in_bounds() {
    let node = Node::start();
    for order in [Order::loading("state"), Order::sealed("state")] {
        let mut order = order.with_files(FileAccess::State);
        order.admission.files_bytes = 1 << 20;
        let (lines, _) = node.order(&order).rest();
        let files = format!("files: Some({})", denizen_sandbox::MOST_STATE_FILES - 1);
        assert_eq!(
            lines,
            [
                "create: done",
                "make directories: done",
                "rename: done",
                "append: done",
                "copy: done",
                "the copy says one more",
                "shorten: done",
                "sync: done",
                "lock a whole file: error 1",
                "lock a range: done",
                "set a time: done",
                "set permissions: done",
                "entries 2",
                "remove: done",
                "remove directories: done",
                "hard link: error 13",
                "symbolic link: error 13",
                "create elsewhere: error 30",
                "create in the image: error 30",
                "run: error 1",
                "fill: error 28",
                "remove the large one: done",
                files.as_str(),
                "done",
            ]
        );
    }
    // Without the grant there is an empty directory that nothing can be made in.
    let (lines, _) = node.order(&Order::sealed("state").with_files(FileAccess::Image)).rest();
    assert!(lines[..4].iter().all(|line| line.ends_with(": error 13")), "{lines:?}");
    assert!(lines.contains(&"files: Some(0)".to_owned()), "{lines:?}");
}

/// In the sandbox: receives segments and does with each what the log does.
pub(crate) fn use_segments(report: &Report) {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    let mut held = Vec::new();
    report.line("ready");
    for number in 0..SEGMENTS {
        let [writable, read_only] = receive_two();
        let map = |file: &fs::File, protection: c_int| {
            // SAFETY: a fresh mapping of a whole page.
            unsafe { libc::mmap(ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) }
        };
        let (shown, tail) =
            (map(&read_only, libc::PROT_READ), map(&writable, libc::PROT_READ | libc::PROT_WRITE));
        assert!(shown != libc::MAP_FAILED && tail != libc::MAP_FAILED, "segment {number} is not mapped");
        // SAFETY: advice about the pages that were just mapped.
        let advised = unsafe { libc::madvise(tail, 4096, libc::MADV_POPULATE_WRITE) };
        writable.write_all_at(&[number as u8 + 1], 100).expect("written");
        writable.sync_data().expect("synced");
        // SAFETY: both maps have a page, and nobody else writes to it.
        let seen = unsafe {
            tail.cast::<u8>().add(101).write_volatile(7);
            [shown.cast::<u8>().add(100).read_volatile(), shown.cast::<u8>().add(101).read_volatile()]
        };
        assert_eq!((advised, seen), (0, [number as u8 + 1, 7]), "segment {number}");
        assert_eq!(map(&read_only, libc::PROT_READ | libc::PROT_WRITE), libc::MAP_FAILED);
        let longer = writable.write_all_at(&[1], 1 << 20).err().and_then(|error| error.raw_os_error());
        assert_eq!(longer, Some(libc::EFBIG), "segment {number} was made longer");
        held.push([writable, read_only]);
    }
    report.line(format!(
        "{} segments, of {} bytes",
        held.len(),
        held[0][1].metadata().expect("a length").len()
    ));
}

/// Two descriptors from the agent.
fn receive_two() -> [fs::File; 2] {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    // SAFETY: descriptor 3 is the connection to the agent, as long as the sandbox lives.
    let control = unsafe { std::os::fd::BorrowedFd::borrow_raw(3) };
    let parts = &mut [std::io::IoSliceMut::new(&mut byte)];
    recvmsg(control, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("received");
    let rights = ancillary.drain().find_map(|item| match item {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights.map(fs::File::from).collect::<Vec<_>>()),
        _ => None,
    });
    rights.expect("descriptors").try_into().expect("two descriptors")
}

/// More than a sandbox had room for when its state was one file.
const SEGMENTS: u32 = 64;

pub(crate) fn segments_come_while_functions_run() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use std::os::fd::AsFd;

    let node = Node::start();
    let path = node.dir.0.join("segment");
    fs::write(&path, [0; 4096]).unwrap();
    for files in [FileAccess::None, FileAccess::State] {
        let mut order = Order::sealed("segments").with_files(files);
        (order.admission.segments, order.admission.file_bytes) = (SEGMENTS, 64 << 10);
        order.admission.files_bytes = 64 << 10;
        let mut talk = node.order(&order);
        assert_eq!(talk.line(), "ready");
        for _ in 0..SEGMENTS {
            let writable = fs::File::options().read(true).write(true).open(&path).unwrap();
            let read_only = fs::File::open(&path).unwrap();
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let both = [writable.as_fd(), read_only.as_fd()];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&both)));
            let byte = [std::io::IoSlice::new(b"s")];
            sendmsg(talk.control.get_ref(), &byte, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        }
        let (lines, cause) = talk.rest();
        assert_eq!(lines, [format!("{SEGMENTS} segments, of 4096 bytes")], "{cause:?} {}", talk.printed());
    }
}

pub(crate) fn two_sandboxes_are_two_users() {
    let node = Node::start();
    if !has(&node, "uid-per-sandbox") {
        return skip("two_sandboxes_are_two_users", "only root has user ids to give");
    }
    let mut talks = [(); 2].map(|()| node.order(&Order::sealed("idle")));
    let ids = talks.each_mut().map(|talk| {
        assert_eq!(talk.line(), "idle");
        let status = fs::read_to_string(format!("/proc/{}/status", talk.life.pid())).unwrap();
        let of = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        (of("Uid:"), of("Gid:"))
    });
    assert_ne!(ids[0].0, ids[1].0, "one user");
    assert_ne!(ids[0].1, ids[1].1, "one group");
}
