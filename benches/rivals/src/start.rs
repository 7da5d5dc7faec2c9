//! The bare cost of starting an isolated program that loads a plugin.

use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

/// The namespaces of a sandbox. The network namespace is shared there, so it is not made anew here either.
const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Starts the program `rounds` times, one after another, and prints the microseconds from `clone3` to the byte that it
/// writes once the plugin is loaded.
pub(crate) fn measure(plugin: &str, rounds: usize) {
    for _ in 0..rounds {
        println!("{:.1}", start_once(plugin));
    }
}

fn start_once(plugin: &str) -> f64 {
    let (reader, writer) = pipe_with(PipeFlags::empty()).expect("a pipe");
    let path = CString::new("/proc/self/exe").expect("a path");
    let words = ["rivals", "started", plugin].map(|word| CString::new(word).expect("no NUL in a path"));
    let arguments = [words[0].as_ptr(), words[1].as_ptr(), words[2].as_ptr(), std::ptr::null()];
    let begun = Instant::now();
    // SAFETY: a zeroed clone_args is valid; without CLONE_VM the child has a copy of this single-threaded process.
    let child = unsafe {
        let mut clone: libc::clone_args = std::mem::zeroed();
        clone.flags = u64::try_from(NAMESPACES).expect("flags are positive");
        clone.exit_signal = u64::try_from(libc::SIGCHLD).expect("a signal is positive");
        libc::syscall(libc::SYS_clone3, &raw mut clone, size_of::<libc::clone_args>())
    };
    assert!(child >= 0, "clone3 failed: {}", std::io::Error::last_os_error());
    if child == 0 {
        // SAFETY: dup2 and execv are async-signal-safe, and the arguments outlive the call.
        unsafe {
            libc::dup2(writer.as_raw_fd(), 1);
            libc::execv(path.as_ptr(), arguments.as_ptr());
            libc::_exit(127);
        }
    }
    drop(writer);
    let mut byte = [0];
    let got = rustix::io::read(&reader, &mut byte).expect("a byte from the child");
    let micros = begun.elapsed().as_secs_f64() * 1e6;
    assert_eq!((got, byte[0]), (1, b'.'), "the child did not load {plugin}");
    let mut status = 0;
    // SAFETY: waits for a child of ours; the status is a local.
    unsafe { libc::waitpid(i32::try_from(child).expect("a pid"), &raw mut status, 0) };
    micros
}

/// The child: loads the plugin, says so with one byte, ends.
pub(crate) fn started(plugin: &str) {
    let path = CString::new(plugin).expect("no NUL in a path");
    // SAFETY: loads a library whose constructors are as trusted as this program.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!handle.is_null(), "cannot load {plugin}");
    // SAFETY: descriptor 1 is the pipe that the parent gave us, and nothing else here owns it.
    let pipe = unsafe { OwnedFd::from_raw_fd(1) };
    rustix::io::write(&pipe, b".").expect("the parent reads");
    std::process::exit(0);
}
