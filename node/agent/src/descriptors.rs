//! Descriptors that starts leave for connections.
//!
//! Each sandbox takes some of this program's descriptors for as long as it serves, and each connection takes one for as long as it lasts.
//! Where starts took the last of them, nobody could reach the processes that serve. So the highest numbers are for connections alone: the
//! kernel hands out the lowest that is free, and while that is not below the reserve no process is started.

use std::ops::RangeInclusive;

use rustix::process::{Resource, getrlimit};

use crate::problem::{Kind, Problem};

/// What a start takes at most, with what it opens only for a moment. An active process has about half of it.
pub(crate) const PER_START: u64 = 16;
/// One part in so many of all descriptors is for connections, within limits.
const RESERVED_PART: u64 = 8;
const RESERVED: RangeInclusive<u64> = 16..=256;

/// Whether a process may be started.
///
/// # Errors
/// `out-of-descriptors`.
pub(crate) fn room_for_start() -> Result<(), Problem> {
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    // A copy of any descriptor gets the lowest number that is free.
    let lowest = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 0).map(|copy| number(&copy));
    match lowest {
        Err(rustix::io::Errno::MFILE) => Err(none(limit, limit)),
        Ok(lowest) if lowest + PER_START > limit - reserve(limit) => Err(none(lowest, limit)),
        // Nothing is known, and whatever lacks will be said by what needs it.
        _ => Ok(()),
    }
}

fn number(descriptor: &rustix::fd::OwnedFd) -> u64 {
    use std::os::fd::AsRawFd;
    u64::try_from(descriptor.as_raw_fd()).unwrap_or(0)
}

fn reserve(limit: u64) -> u64 {
    (limit / RESERVED_PART).clamp(*RESERVED.start(), *RESERVED.end()).min(limit)
}

fn none(taken: u64, limit: u64) -> Problem {
    let text = format!(
        "{taken} of {limit} descriptors are in use, and {} are kept for connections: no process is started now",
        reserve(limit)
    );
    Problem::new(Kind::OutOfDescriptors, text).retry_after_s(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_kept_and_never_more_than_there_are() {
        assert_eq!([10, 96, 1024, 1 << 20].map(reserve), [10, 16, 128, 256]);
        // A test program has few of them open.
        assert_eq!(room_for_start(), Ok(()));
    }
}
