//! How far long work is: one line on a terminal that changes, and nothing anywhere else.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::units;

/// Work that is shorter says nothing.
const PATIENCE: Duration = Duration::from_millis(500);
const BETWEEN: Duration = Duration::from_millis(100);

/// Objects and bytes so far.
#[derive(Debug)]
pub(super) struct Progress {
    doing: &'static str,
    watched: bool,
    due: Instant,
    shown: bool,
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

impl Progress {
    pub(super) fn begin(doing: &'static str) -> Progress {
        let due = Instant::now() + PATIENCE;
        Progress { doing, watched: io::stderr().is_terminal(), due, shown: false, objects: 0, bytes: 0 }
    }

    /// One more object.
    pub(super) fn add(&mut self, bytes: usize) {
        self.objects += 1;
        self.bytes += bytes as u64;
        if self.watched && Instant::now() >= self.due {
            self.due = Instant::now() + BETWEEN;
            self.shown = true;
            let (objects, bytes) =
                (units::count(self.objects, "object", "objects"), units::bytes(self.bytes));
            // ECMA-48: back to the start of the line, and what was there is erased.
            let _ = write!(io::stderr().lock(), "\r\x1b[K{}: {objects}, {bytes}", self.doing);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}
