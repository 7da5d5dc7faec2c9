//! The sandbox around this process, or nothing at all where only the serving is tested.

use denizen_sandbox::{Admission, FileAccess, Limits, Running, SandboxError, Testament};
use denizen_wire::Assignment;

/// Segments beside those that the size of the state explains.
const FEW_SEGMENTS: u32 = 64;
/// Segments that a process may bring along whose sandbox was prepared before it was known.
const SEGMENTS_UNKNOWN: u32 = denizen_wire::MOST_SEGMENTS_OF_PREPARED;
/// More descriptors than these take no system lets a process have.
const MOST_SEGMENTS: u32 = 8192;

/// Before the image is known.
#[derive(Debug)]
pub(crate) enum Waiting {
    Sandbox(denizen_sandbox::Waiting),
    Nothing,
}

/// While tenant code is loaded.
#[derive(Debug)]
pub(crate) enum Loading {
    Sandbox(denizen_sandbox::Loading),
    Nothing,
}

/// While functions run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sealed {
    Sandbox(denizen_sandbox::Sealed),
    Nothing,
}

impl Waiting {
    /// `longest`: the longest segment that there is to write to, in bytes.
    pub(crate) fn admit(self, assignment: &Assignment, longest: u64) -> Result<Loading, SandboxError> {
        match self {
            Waiting::Sandbox(waiting) => {
                let admission = Admission { first_file_bytes: longest, ..admission(assignment) };
                Ok(Loading::Sandbox(waiting.admit(&admission)?))
            }
            Waiting::Nothing => Ok(Loading::Nothing),
        }
    }
}

impl Loading {
    pub(crate) fn seal(self) -> Result<Sealed, SandboxError> {
        match self {
            Loading::Sandbox(loading) => Ok(Sealed::Sandbox(loading.seal()?)),
            Loading::Nothing => Ok(Sealed::Nothing),
        }
    }
}

impl Sealed {
    /// First thing on every thread that runs functions.
    pub(crate) fn thread_start(self) {
        if let Sealed::Sandbox(sealed) = self {
            sealed.thread_start();
        }
    }

    /// Should this thread die before the guard is dropped, its last words name the invocation.
    pub(crate) fn running(self, invocation: u64) -> Option<Running> {
        match self {
            Sealed::Sandbox(sealed) => Some(Testament::running(sealed.last_words(), invocation)),
            Sealed::Nothing => None,
        }
    }
}

fn admission(assignment: &Assignment) -> Admission {
    let limits = &assignment.limits;
    let files = match assignment.manifest.get("files").and_then(|files| files.as_str()) {
        Some("image") => FileAccess::Image,
        Some("state") => FileAccess::State,
        _ => FileAccess::None,
    };
    let (quota, longest) = (limits.state_bytes, assignment.segment_max_bytes);
    Admission {
        image: assignment.image.clone(),
        limits: Limits { memory_bytes: limits.memory_bytes, threads: limits.threads, cpu_percent: None },
        files,
        files_bytes: assignment.files_bytes,
        // The log has at most twice what is live and some segments, and as much as the quota is pinned by readers; the agent
        // keeps the real limit.
        mapped_bytes: quota.saturating_mul(4).saturating_add(longest.saturating_mul(16)),
        // One commit can take all that the quota leaves, in a segment of its own.
        file_bytes: quota.saturating_mul(2).saturating_add(longest),
        first_file_bytes: assignment.segment_min_bytes,
        segments: most_segments(assignment),
        ring: assignment.ring,
    }
}

/// Small segments are compacted away when there are more than a few, large ones hold a share of the quota.
fn most_segments(assignment: &Assignment) -> u32 {
    let large = 4 * assignment.limits.state_bytes / assignment.segment_max_bytes.max(1 << 20);
    let large = u32::try_from(large).unwrap_or(u32::MAX);
    let present = if assignment.prepare { SEGMENTS_UNKNOWN } else { assignment.segments };
    present.saturating_add(large).saturating_add(FEW_SEGMENTS).min(MOST_SEGMENTS)
}
