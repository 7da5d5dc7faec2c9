//! What the tests let run inside a sandbox, in the place of the real runner and its plugin.

use std::ffi::c_void;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use denizen_ring::maker::Ring;
use denizen_sandbox::{Sealed, Waiting};

use crate::node::Order;
use crate::{evidence, rings};

/// Where acts write their lines.
pub(crate) struct Report(pub(crate) Mutex<File>);

impl Report {
    pub(crate) fn line(&self, line: impl AsRef<str>) {
        let mut file = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // One write: a sandbox may die at any instruction.
        let _ = file.write_all(format!("{}\n", line.as_ref()).as_bytes());
    }
}

pub(crate) fn run(mut waiting: Waiting) -> ExitCode {
    let control: OwnedFd = waiting.take_control();
    let mut reader = BufReader::new(File::from(control));
    let mut line = String::new();
    match reader.read_line(&mut line) {
        Ok(0) | Err(_) => return ExitCode::SUCCESS,
        Ok(_) => {}
    }
    let order: Order = serde_json::from_str(&line).expect("an order");
    let report = Report(Mutex::new(reader.into_inner()));
    let ring = if order.act.starts_with("ring") { waiting.take_ring() } else { None };
    lose_signal_stack();
    let loading = match waiting.admit(&order.admission) {
        Ok(loading) => loading,
        Err(error) => {
            report.line(format!("refused: {error}"));
            return ExitCode::from(3);
        }
    };
    if !order.sealed {
        let _running = loading.last_words().running(order.invocation);
        act(&order.act, &report, None, ring);
        return ExitCode::SUCCESS;
    }
    let early = (order.act == "early-thread").then(|| EarlyThread::start(&report));
    let sealed = loading.seal().expect("sealed");
    let _running = sealed.last_words().running(order.invocation);
    match early {
        Some(thread) => thread.go_on(&report),
        None => act(&order.act, &report, Some(sealed), ring),
    }
    ExitCode::SUCCESS
}

/// Does what a test asked for.
fn act(act: &str, report: &Report, sealed: Option<Sealed>, ring: Option<Ring>) {
    match act {
        "hello" => {
            println!("printed");
            report.line(format!("hello from pid {}", std::process::id()));
        }
        "idle" => {
            report.line("idle");
            idle(report);
        }
        "answer" => {
            answer();
            idle(report);
        }
        "dlopen" => load(report),
        "allocate" => allocate(report),
        "touch" => touch(report),
        "threads" => threads(report),
        "overflow" => report.line(format!("{}", recurse(1))),
        "overflow-in-thread" => overflow_in_thread(sealed.expect("sealed")),
        "abort" => std::process::abort(),
        "segfault" => segfault(),
        "divide" => divide(),
        "ptrace" => forbidden(),
        "i386" => call_i386(report),
        "evidence" => evidence::try_everything(report),
        "descriptors" => evidence::list_descriptors(report),
        "files" => evidence::open_files(report),
        "state" => evidence::use_state(report),
        "segments" => evidence::use_segments(report),
        "ring" => rings::use_ring(report, ring.expect("a ring")),
        other if other.starts_with("ring-flood ") => {
            rings::flood(report, ring.expect("a ring"), &other["ring-flood ".len()..]);
        }
        other => report.line(format!("unknown act {other}")),
    }
}

/// A thread that runs before the seal and after it.
struct EarlyThread {
    go: Sender<()>,
    said: Receiver<String>,
}

impl EarlyThread {
    fn start(report: &Report) -> EarlyThread {
        let ((go, told), (say, said)) = (channel(), channel());
        std::thread::spawn(move || {
            for place in ["before", "behind"] {
                told.recv().expect("told to");
                say.send(format!("{place}: {}", evidence::read("/image/hello.txt"))).expect("heard");
            }
        });
        let thread = EarlyThread { go, said };
        thread.go_on(report);
        thread
    }

    fn go_on(&self, report: &Report) {
        self.go.send(()).expect("it waits");
        report.line(self.said.recv().expect("it answers"));
    }
}

/// Says something where answers go.
fn answer() {
    // SAFETY: the connection lies there for as long as the sandbox lives.
    let answers = unsafe { BorrowedFd::borrow_raw(5) };
    rustix::io::write(answers, b"answer").expect("the agent is there");
}

/// Waits until the agent closes its end.
fn idle(report: &Report) {
    let mut buffer = [0; 64];
    loop {
        let read = report.0.lock().expect("alone").read(&mut buffer);
        if matches!(read, Ok(0) | Err(_)) {
            return;
        }
    }
}

/// Loads the plugin of the image and calls it.
fn load(report: &Report) {
    // SAFETY: the library is the test's own, and `answer` has this signature.
    unsafe {
        let library = libc::dlopen(c"/image/plugin.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if library.is_null() {
            let error = std::ffi::CStr::from_ptr(libc::dlerror());
            report.line(format!("dlopen: {}", error.to_string_lossy()));
            return;
        }
        let answer = libc::dlsym(library, c"answer".as_ptr());
        let answer: extern "C" fn() -> i32 = std::mem::transmute(answer);
        report.line(format!("the plugin says {}", answer()));
    }
}

/// Allocates until nothing is left, as a Rust program does.
fn allocate(report: &Report) {
    let mut hoard = Vec::new();
    for megabytes in 1.. {
        hoard.push(vec![megabytes as u8; 1 << 20]);
        if megabytes % 16 == 0 {
            report.line(format!("{megabytes} MiB"));
        }
        std::hint::black_box(&hoard);
    }
}

/// Touches 512 MiB, or dies.
fn touch(report: &Report) {
    let hoard = std::hint::black_box(vec![1_u8; 512 << 20]);
    report.line(format!("touched {}", hoard.len()));
}

/// Starts threads until one cannot be.
fn threads(report: &Report) {
    let mut count = 1;
    loop {
        let started = std::thread::Builder::new().stack_size(64 * 1024).spawn(|| {
            loop {
                std::thread::park();
            }
        });
        match started {
            Ok(_) if count < 1000 => count += 1,
            Ok(_) => return report.line("no end"),
            Err(error) => return report.line(format!("{count} threads, then {error}")),
        }
    }
}

/// Needs stack without end.
#[expect(unconditional_recursion, reason = "that is what it is for")]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    recurse(depth + 1) + frame[7]
}

/// In a bare thread: those of the standard library have a signal stack already.
fn overflow_in_thread(sealed: Sealed) {
    extern "C" fn body(sealed: *mut c_void) -> *mut c_void {
        // SAFETY: the value lives on the stack of `overflow_in_thread`, which waits.
        let sealed = unsafe { *sealed.cast::<Sealed>() };
        sealed.thread_start();
        let _running = sealed.last_words().running(4242);
        std::ptr::without_provenance_mut(recurse(1) as usize)
    }
    let mut sealed = sealed;
    // SAFETY: initialised before use; the thread is joined before `sealed` ends.
    unsafe {
        let mut attributes: libc::pthread_attr_t = std::mem::zeroed();
        libc::pthread_attr_init(&raw mut attributes);
        libc::pthread_attr_setstacksize(&raw mut attributes, 256 * 1024);
        let mut thread = std::mem::zeroed();
        let argument = (&raw mut sealed).cast();
        assert_eq!(libc::pthread_create(&raw mut thread, &raw const attributes, body, argument), 0);
        libc::pthread_join(thread, std::ptr::null_mut());
    }
}

/// Takes away the signal stack that the standard library gave the main thread.
fn lose_signal_stack() {
    // SAFETY: disables a stack that no handler is running on.
    unsafe {
        let mut none: libc::stack_t = std::mem::zeroed();
        none.ss_flags = libc::SS_DISABLE;
        assert_eq!(libc::sigaltstack(&raw const none, std::ptr::null_mut()), 0);
    }
}

fn segfault() {
    // SAFETY: not sound; that is what it is for. Nothing is mapped there, so the process dies.
    unsafe { std::ptr::without_provenance_mut::<u8>(0xdead_0000).write_volatile(1) };
}

#[cfg(target_arch = "x86_64")]
fn divide() {
    // SAFETY: raises SIGFPE and has no other effect.
    unsafe {
        std::arch::asm!("xor edx, edx", "xor ecx, ecx", "mov eax, 1", "div ecx", out("eax") _, out("ecx") _, out("edx") _)
    };
}

#[cfg(not(target_arch = "x86_64"))]
fn divide() {
    // SAFETY: raises the signal that a faulting division has elsewhere.
    unsafe { libc::raise(libc::SIGFPE) };
}

fn forbidden() {
    // SAFETY: never executed: the filter turns it into a signal.
    unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
}

/// `getpid` through the i386 door: number 20 there, `writev` here.
#[cfg(target_arch = "x86_64")]
fn call_i386(report: &Report) {
    let pid: u32;
    // SAFETY: a system call without arguments.
    unsafe { std::arch::asm!("int 0x80", inlateout("eax") 20_u32 => pid, options(nostack)) };
    report.line(format!("survived with {pid}"));
}

#[cfg(not(target_arch = "x86_64"))]
fn call_i386(report: &Report) {
    report.line("no such door");
}
