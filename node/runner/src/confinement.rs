//! The sandbox around this process, or nothing at all where only the serving is tested.

use denizen_sandbox::{Admission, FileAccess, Limits, Running, SandboxError, Testament};
use denizen_state::OpenOptions;
use denizen_wire::Assignment;

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
    pub(crate) fn admit(self, assignment: &Assignment) -> Result<Loading, SandboxError> {
        match self {
            Waiting::Sandbox(waiting) => Ok(Loading::Sandbox(waiting.admit(&admission(assignment))?)),
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
    let wants_files = assignment.manifest.get("files").and_then(|files| files.as_str()) == Some("image");
    Admission {
        image: assignment.image.clone(),
        limits: Limits { memory_bytes: limits.memory_bytes, threads: limits.threads, cpu_percent: None },
        files: if wants_files { FileAccess::Image } else { FileAccess::None },
        mapped_bytes: OpenOptions::with_quota(limits.state_bytes).address_bytes(),
    }
}
