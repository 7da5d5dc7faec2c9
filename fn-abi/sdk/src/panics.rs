//! Panics stop at the border: caught in the entry, with their message and place, and told to the host as
//! such.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

thread_local! {
    /// Message and place of this thread's last panic: only the hook is told the place.
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Adds to the panic hook what [`catch`] needs. The hook that was there still prints the panic, which so gets
/// to the logs.
pub(crate) fn remember_places() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let told = format!("{}{}", message(info.payload()), place(info));
            // The thread may be ending, and then has no memory left; the message alone remains.
            let _told_or_too_late = LAST.try_with(|last| *last.borrow_mut() = Some(told));
            before(info);
        }));
    });
}

/// Runs `body`; a panic becomes its message with its place, `count overflows (src/lib.rs:12:9)`.
pub(crate) fn catch<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    // Nothing that `body` leaves half done is looked at again: the invocation is aborted.
    panic::catch_unwind(AssertUnwindSafe(body)).map_err(|payload| {
        let told = LAST.with(|last| last.borrow_mut().take()).unwrap_or_else(|| message(&*payload));
        // A payload may panic when it is dropped, and what that throws may too: then let it leak.
        if let Err(again) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            std::mem::forget(again);
        }
        told
    })
}

fn place(info: &PanicHookInfo<'_>) -> String {
    info.location().map(|at| format!(" ({}:{}:{})", at.file(), at.line(), at.column())).unwrap_or_default()
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}
