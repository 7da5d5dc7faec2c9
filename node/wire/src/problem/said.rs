//! From what a runner says went wrong to what a caller is told, whoever tells it.

use std::time::Duration;

use super::{Kind, Retry};
use crate::{FailKind, Failure};

/// A failure as its caller is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Which error.
    pub kind: Kind,
    /// What happened this time.
    pub detail: String,
    /// What is known about a retry.
    pub retry: Retry,
    /// More for programs.
    pub data: Option<serde_json::Value>,
    /// It is how an earlier call with the same idempotency key failed.
    pub replayed: bool,
}

/// What the texts say of a call and its limits.
#[derive(Debug, Clone, Copy)]
pub struct Deadline<'a> {
    /// The name of the invocation.
    pub invocation: &'a str,
    /// The most time that the image gives a call.
    pub at_most: Duration,
    /// What its caller gave it, where that was less.
    pub callers: Option<Duration>,
}

impl Said {
    /// What the caller of a call that ended so is told. `state_bytes` is the quota of the state.
    pub fn of(failure: Failure, deadline: Deadline<'_>, state_bytes: u64) -> Said {
        let Failure { kind, message, started, committed, detail: data, replayed } = failure;
        let (kind, detail) = match kind {
            FailKind::Failed => (Kind::FunctionFailed, message),
            FailKind::BadInput => (Kind::BadInput, message),
            FailKind::Panicked => (Kind::FunctionPanicked, message),
            FailKind::TypeChanged => (Kind::StateTypeChanged, message),
            FailKind::Quota => (Kind::StateQuota, format!("{message} (the limit is {})", size(state_bytes))),
            // What is too large before the function began can only be the input.
            FailKind::TooLarge if !started => (Kind::BodyTooLarge, message),
            FailKind::TooLarge => (Kind::ReplyTooLarge, message),
            FailKind::Cancelled => (Kind::CallerGone, message),
            FailKind::Deadline => (Kind::DeadlineExceeded, deadline_text(deadline)),
            FailKind::UnknownFunction => (Kind::UnknownFunction, message),
            FailKind::Draining => (Kind::Draining, message),
            FailKind::Overloaded => (Kind::Overloaded, message),
            FailKind::InputBroken => (Kind::BadRequest, message),
            FailKind::StoreFull => (Kind::NoSpace, message),
            FailKind::StoreBroken => (Kind::StateFailed, message),
            FailKind::Conflict => (Kind::Conflict, message),
            FailKind::NotFound => (Kind::UnknownKey, message),
            FailKind::StateCorrupt => (Kind::ObjectDamaged, message),
            FailKind::KeyReused => (Kind::KeyReused, message),
            FailKind::InProgress => (Kind::InProgress, message),
            FailKind::Interrupted => (Kind::Interrupted, message),
            // `Internal`, and what has no kind of its own.
            _ => (Kind::HostFault, message),
        };
        // A failed disk leaves open what it took in.
        let unsure = committed || kind == Kind::StateFailed;
        Said { kind, detail, retry: retry(kind, unsure), data, replayed }
    }
}

/// What is known about a retry of a call that ended with a failure: its transaction was not committed.
fn retry(kind: Kind, committed: bool) -> Retry {
    match kind.entry().retry {
        _ if committed => Retry::Unknown,
        Retry::Never => Retry::Never,
        _ => Retry::Safe,
    }
}

/// What a caller whose deadline passed is told.
pub fn deadline_text(deadline: Deadline<'_>) -> String {
    let Deadline { invocation, at_most, callers } = deadline;
    let whose = match callers {
        Some(callers) => format!("its caller gave it {callers:?}, the image gives {at_most:?}"),
        None => format!("at most {at_most:?} in this image"),
    };
    format!("invocation {invocation} was not done at its deadline ({whose})")
}

/// A number of bytes as a manifest writes it.
pub fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes} bytes"), |(unit, name)| format!("{} {name}", bytes / unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_committed_in_the_middle_is_not_safe_to_repeat() {
        assert_eq!(retry(Kind::FunctionFailed, true), Retry::Unknown);
        assert_eq!(retry(Kind::FunctionFailed, false), Retry::Safe);
        assert_eq!(retry(Kind::DeadlineExceeded, false), Retry::Safe);
        assert_eq!(retry(Kind::BadInput, false), Retry::Never);
    }

    #[test]
    fn sizes_read_as_in_a_manifest() {
        assert_eq!(size(1 << 20), "1 MiB");
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(1536), "1536 bytes");
        assert_eq!(size(3 << 30), "3 GiB");
    }
}
