//! The last act of a sandbox: a handler for every signal that would end it, which writes the last words and exits.
//!
//! Needed not only for the words: a sandbox is pid 1 of its namespace, where a signal whose action is the default is
//! ignored, so `abort` would go on to run whatever follows. Everything in the handler is async-signal-safe: atomics,
//! `mmap`, `munmap`, `_exit`. A tenant may replace the handler; then it dies without words, and gains nothing, because a
//! trapped system call has not been executed.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crate::last_words::{Page, SAID, Testament, WRITING};

/// The signals that end a sandbox by its own fault.
const DEADLY: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];

/// The page to write on; null until [`install`].
static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

/// How near to a stack's end a fault must lie to be an overflow: the guard that we cannot ask about, and one frame.
const STACK_END_BYTES: usize = 64 * 1024;

/// Below the main thread's stack the kernel keeps this much free, and a fault there is an overflow too.
const MAIN_GUARD_BYTES: usize = 1024 * 1024;

/// The address above the main thread's stack; 0 until [`note_main_stack`].
static MAIN_STACK_TOP: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Addresses at which a fault of this thread is a stack overflow. No destructor: the handler may read it.
    static STACK_END: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Finds the main thread's stack. To be called by the spawner while it can see `/proc`: its sandboxes, forks of it, have
/// their main stack at the same place and no `/proc`.
pub(crate) fn note_main_stack() {
    if let Some(stack) = stack_of_this_thread() {
        MAIN_STACK_TOP.store(stack.end, Ordering::Relaxed);
    }
}

/// Tells where the main thread's stack ends, once its limit is set.
pub(crate) fn limit_main_stack(limit_bytes: usize) {
    let low = MAIN_STACK_TOP.load(Ordering::Relaxed).saturating_sub(limit_bytes);
    STACK_END.set((low.saturating_sub(MAIN_GUARD_BYTES), low + STACK_END_BYTES));
}

/// Installs the handlers.
pub(crate) fn install(testament: Testament) -> io::Result<()> {
    PAGE.store(ptr::from_ref(testament.page).cast_mut(), Ordering::Relaxed);
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_death as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    for signal in DEADLY {
        // SAFETY: the handler has the signature that SA_SIGINFO promises and is async-signal-safe.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives the calling thread a stack for its signal handlers, which is never freed, and notes where its own stack ends.
pub(crate) fn prepare_thread() -> io::Result<()> {
    give_signal_stack()?;
    if let Some(stack) = stack_of_this_thread() {
        STACK_END.set((stack.start.saturating_sub(STACK_END_BYTES), stack.start + STACK_END_BYTES / 2));
    }
    Ok(())
}

/// The alternate stack alone, for the main thread.
pub(crate) fn give_signal_stack() -> io::Result<()> {
    use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
    static BYTES: OnceLock<usize> = OnceLock::new();
    const GUARD_BYTES: usize = 4096;
    let bytes = *BYTES.get_or_init(signal_stack_bytes);
    // SAFETY: a fresh map at an address of the kernel's choice.
    let base = unsafe {
        rustix::mm::mmap_anonymous(
            ptr::null_mut(),
            bytes + GUARD_BYTES,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::STACK,
        )?
    };
    // SAFETY: the lowest page of the map above, which nobody uses.
    unsafe { rustix::mm::mprotect(base, GUARD_BYTES, MprotectFlags::empty())? };
    let stack = libc::stack_t { ss_sp: base.wrapping_byte_add(GUARD_BYTES), ss_flags: 0, ss_size: bytes };
    // SAFETY: the stack lies in a live map of that size, which is never undone.
    match unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel pushes for a handler, which depends on the processor, and room for the handler itself.
fn signal_stack_bytes() -> usize {
    const HANDLER_BYTES: usize = 16 * 1024;
    // SAFETY: no preconditions; 0 if the kernel does not say.
    let frame = usize::try_from(unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) }).unwrap_or(0);
    (frame.max(libc::MINSIGSTKSZ) + HANDLER_BYTES).next_multiple_of(4096)
}

/// The calling thread's stack. For the main thread the C library reads `/proc`.
fn stack_of_this_thread() -> Option<Range<usize>> {
    let mut attributes = MaybeUninit::uninit();
    let (mut low, mut bytes) = (ptr::null_mut(), 0);
    // SAFETY: pthread_getattr_np initialises the attributes when it returns 0, and they are destroyed once.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let got = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut low, &raw mut bytes);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        if got != 0 {
            return None;
        }
    }
    Some(low.addr()..low.addr() + bytes)
}

/// How the kernel lays out a SIGSYS; the C library's binding has no accessor.
#[repr(C)]
struct SigsysInfo {
    signo: c_int,
    errno: c_int,
    code: c_int,
    _pad: c_int,
    call_address: *mut c_void,
    syscall: c_int,
    arch: u32,
}

/// Writes the last words and ends the process.
extern "C" fn on_death(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: null, or the page of `install`, which is never unmapped.
    if let Some(page) = unsafe { PAGE.load(Ordering::Relaxed).as_ref() } {
        let first = page.state.compare_exchange(0, WRITING, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if first {
            // SAFETY: the kernel passes a valid siginfo, whose address field (or, for SIGSYS, whose number) is readable.
            unsafe { say(page, signal, info) };
            page.state.store(SAID, Ordering::Release);
        }
    }
    // SAFETY: ends the process.
    unsafe { libc::_exit(128 + signal) }
}

/// Fills the page.
///
/// # Safety
/// `info` is what the kernel passed to a handler of `signal`.
unsafe fn say(page: &'static Page, signal: c_int, info: *const libc::siginfo_t) {
    let order = Ordering::Relaxed;
    page.signal.store(signal, order);
    page.invocation.store(Testament { page }.current(), order);
    page.left_bytes.store(memory_left_bytes(), order);
    if signal == libc::SIGSYS {
        // SAFETY: for SIGSYS the kernel lays the structure out like this, and it is smaller than a siginfo.
        let nr = unsafe { (*info.cast::<SigsysInfo>()).syscall };
        page.nr.store(i64::from(nr), order);
        return;
    }
    // SAFETY: the caller's promise; the field is within the structure for every signal.
    let address = unsafe { (*info).si_addr() }.addr();
    let (low, high) = STACK_END.get();
    page.address.store(address as u64, order);
    page.at_stack_end.store(u32::from((low..high).contains(&address)), order);
}

/// How much memory an allocation could still get, to a power of two: by trying.
fn memory_left_bytes() -> u64 {
    const LARGEST_BYTES: usize = 1 << 38;
    const SMALLEST_BYTES: usize = 1 << 16;
    let mut bytes = LARGEST_BYTES;
    while bytes >= SMALLEST_BYTES {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh map that nobody touches, undone at once.
        unsafe {
            let map = libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            if map != libc::MAP_FAILED {
                libc::munmap(map, bytes);
                return bytes as u64;
            }
        }
        bytes /= 2;
    }
    0
}
