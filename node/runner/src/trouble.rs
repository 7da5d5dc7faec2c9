//! What can go wrong with the state: as a status for the function, as a kind of failure for the caller, and as the end of this process.

use std::fmt;

use denizen_abi as abi;
use denizen_engine::StateError;
use denizen_wire::{CancelReason, FailKind, SpareRefusal};

use crate::files::{FilesError, NotCaptured};
use crate::serve::Runner;

/// Why a commit was not made.
#[derive(Debug)]
pub(crate) enum NotCommitted {
    State(StateError),
    /// The log has no room, and the agent gives none.
    NoSpare(SpareRefusal),
    /// Nobody waits for it any more.
    Cancelled(CancelReason),
}

impl From<StateError> for NotCommitted {
    fn from(error: StateError) -> NotCommitted {
        NotCommitted::State(error)
    }
}

impl fmt::Display for NotCommitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotCommitted::State(error) => return error.fmt(f),
            NotCommitted::NoSpare(SpareRefusal::DiskFull) => {
                "the disk of the node is full: nothing was committed; free space, then call again"
            }
            NotCommitted::NoSpare(SpareRefusal::OverLimit) => {
                "the log of this process is as large as it may be, because old state is still being read: nothing was committed; end \
                 long readers, delete objects, or raise `state` under [limits]"
            }
            NotCommitted::NoSpare(SpareRefusal::Failed) => {
                "the node could not make room for the commit: nothing was committed; see the node's log"
            }
            NotCommitted::Cancelled(CancelReason::Deadline) => "the deadline passed while the commit waited for room",
            NotCommitted::Cancelled(CancelReason::CallerGone) => "the caller went away",
        })
    }
}

/// The last thing that went wrong with the state in an invocation, in more detail than a status has.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: i32,
    pub(crate) kind: FailKind,
    pub(crate) why: String,
}

#[derive(Debug, Default)]
pub(crate) struct Trouble {
    last: Option<Said>,
    conflicted: bool,
}

impl Trouble {
    /// Notes an error of the state, and gives the status for it.
    pub(crate) fn of_state(&mut self, runner: &'static Runner, error: &StateError) -> i32 {
        let (status, kind) = classify(error);
        if ends_the_process(error) {
            runner.note_broken(error);
        }
        self.conflicted |= kind == FailKind::Conflict;
        self.note(status, kind, error)
    }

    /// The same for a commit.
    pub(crate) fn of_commit(&mut self, runner: &'static Runner, error: &NotCommitted) -> i32 {
        let (status, kind) = match error {
            NotCommitted::State(error) => return self.of_state(runner, error),
            NotCommitted::NoSpare(SpareRefusal::OverLimit) => (abi::DZ_E_QUOTA, FailKind::Quota),
            NotCommitted::NoSpare(_) => (abi::DZ_E_NO_SPACE, FailKind::StoreFull),
            NotCommitted::Cancelled(CancelReason::Deadline) => (abi::DZ_E_CANCELLED, FailKind::Deadline),
            NotCommitted::Cancelled(CancelReason::CallerGone) => (abi::DZ_E_CLOSED, FailKind::Cancelled),
        };
        self.note(status, kind, error)
    }

    /// The same for files that were not captured.
    pub(crate) fn of_files(&mut self, runner: &'static Runner, error: &NotCaptured) -> i32 {
        let status = match error {
            NotCaptured::State(error) => return self.of_commit(runner, error),
            NotCaptured::NoFiles => abi::DZ_E_INVALID,
            NotCaptured::Files(FilesError::Path { .. }) => abi::DZ_E_TOO_LARGE,
            NotCaptured::Files(FilesError::Moving) => abi::DZ_E_BUSY,
            NotCaptured::Files(_) => abi::DZ_E_IO,
        };
        // The function has made them what they are.
        self.note(status, FailKind::Failed, error)
    }

    fn note(&mut self, status: i32, kind: FailKind, error: &dyn fmt::Display) -> i32 {
        self.last = Some(Said { status, kind, why: error.to_string() });
        status
    }

    pub(crate) fn take(&mut self) -> Option<Said> {
        self.last.take()
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.last.as_ref().map(|said| said.why.as_str())
    }

    /// Whether another invocation was in the way.
    pub(crate) fn conflicted(&self) -> bool {
        self.conflicted
    }
}

/// Nobody knows what the disk holds, or it cannot be read: the next process recovers what was durable.
pub(crate) fn ends_the_process(error: &StateError) -> bool {
    matches!(error, StateError::Io { .. } | StateError::Poisoned { .. })
}

/// What a state error is to the function, and to the caller.
fn classify(error: &StateError) -> (i32, FailKind) {
    match error {
        StateError::QuotaExceeded { .. } => (abi::DZ_E_QUOTA, FailKind::Quota),
        StateError::NoSpare { .. } => (abi::DZ_E_NO_SPACE, FailKind::StoreFull),
        StateError::KeyEmpty | StateError::SavepointClosed => (abi::DZ_E_INVALID, FailKind::Failed),
        StateError::KeyTooLong { .. }
        | StateError::ValueTooLarge { .. }
        | StateError::CommitTooLarge { .. } => (abi::DZ_E_TOO_LARGE, FailKind::Failed),
        StateError::NoMemory { .. } => (abi::DZ_E_TOO_LARGE, FailKind::TooLarge),
        StateError::Conflict { .. } => (abi::DZ_E_CONFLICT, FailKind::Conflict),
        StateError::Corrupt(_) => (abi::DZ_E_CORRUPT, FailKind::StateCorrupt),
        _ => (abi::DZ_E_IO, FailKind::StoreBroken),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_leaves_the_disk_unknown_ends_the_process() {
        let poisoned = StateError::Poisoned { cause: "a sync failed".into() };
        assert!(ends_the_process(&poisoned));
        assert_eq!(classify(&poisoned), (abi::DZ_E_IO, FailKind::StoreBroken));
        for harmless in [StateError::KeyEmpty, StateError::NoSpare { needed: 1 }, StateError::SavepointClosed]
        {
            assert!(!ends_the_process(&harmless), "{harmless}");
            assert_ne!(classify(&harmless).1, FailKind::StoreBroken, "{harmless}");
        }
    }
}
