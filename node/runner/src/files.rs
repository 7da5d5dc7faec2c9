//! The files of a process, as the rest of the runner uses them: restored before the plugin is loaded, captured when a function asks,
//! now and then, and at an orderly end. How that is done is in [`tree`].

mod tree;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use denizen_engine::{Engine, StateError};
use denizen_wire::{Assignment, LastCapture, LoadFailure, LoadFailureKind, SpareRefusal};

use crate::inbox::Inbox;
use crate::serve::{Runner, log_of_host};
use crate::trouble::NotCommitted;
pub(crate) use tree::{Captured, FilesError};
use tree::{Files, STATE_DIR};

/// The files of this process; none unless its image asks for them.
static FILES: OnceLock<Files> = OnceLock::new();

/// Why a function's files were not captured.
#[derive(Debug)]
pub(crate) enum NotCaptured {
    /// The image has no files of its own.
    NoFiles,
    /// The log did not take them.
    State(NotCommitted),
    /// They are not as they have to be.
    Files(FilesError),
}

impl fmt::Display for NotCaptured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotCaptured::NoFiles => write!(
                f,
                "this image has no files of its own to keep: it needs files = \"state\" in its manifest"
            ),
            NotCaptured::State(error) => write!(f, "files in {STATE_DIR} could not be kept: {error}"),
            NotCaptured::Files(error) => error.fmt(f),
        }
    }
}

impl From<FilesError> for NotCaptured {
    fn from(error: FilesError) -> NotCaptured {
        match error {
            FilesError::Log(error) => NotCaptured::State(error),
            error => NotCaptured::Files(error),
        }
    }
}

/// Puts the files that the log holds into `/state`. To be called once, before any code of the tenant.
pub(crate) fn restore(assignment: &Assignment, engine: &Engine) -> Result<(), LoadFailure> {
    if assignment.files_bytes == 0 {
        return Ok(());
    }
    let restored = Files::restore(engine, Path::new(STATE_DIR), assignment.files_bytes);
    let (files, damaged) = restored.map_err(|error| not_restored(&error))?;
    damaged.iter().for_each(|text| log_of_host(text));
    let _ = FILES.set(files);
    Ok(())
}

fn not_restored(error: &FilesError) -> LoadFailure {
    let (kind, remedy) = match error {
        FilesError::Restore { .. } => {
            (LoadFailureKind::InitFailed, "Deploy the image with a larger `files` under [limits].")
        }
        _ => (LoadFailureKind::StateCorrupt, "Restore the process from a swapped copy, or delete it."),
    };
    LoadFailure { kind, message: error.to_string(), remedy: remedy.into() }
}

/// Captures for whoever waits for it, at level `process`.
pub(crate) fn capture(runner: &'static Runner, inbox: &Arc<Inbox>) -> Result<Captured, NotCaptured> {
    let files = FILES.get().ok_or(NotCaptured::NoFiles)?;
    Ok(files.capture(runner.engine(), &|writer| runner.commit(writer.transaction(), inbox))?)
}

/// Captures what has changed, if that is due: after a call that may have changed something. Waits for nothing; what does not succeed is
/// tried again.
pub(crate) fn after_call(runner: &'static Runner) {
    let Some(files) = FILES.get() else { return };
    match files.capture_if_due(runner.engine(), &|writer| Ok(writer.transaction().commit()?)) {
        None | Some(Ok(_) | Err(FilesError::Moving)) => {}
        Some(Err(FilesError::Log(NotCommitted::State(StateError::NoSpare { .. })))) => {}
        Some(Err(error)) => {
            log_of_host(&format!("{error}. What was captured before is kept, and this is tried again"))
        }
    }
}

/// Captures at an orderly end, and says what came of it.
pub(crate) fn at_the_end(runner: &'static Runner) -> LastCapture {
    let nobody = Arc::new(Inbox::new(None, 0));
    let error = match capture(runner, &nobody) {
        Ok(_) | Err(NotCaptured::NoFiles) => return LastCapture::Kept,
        Err(error) => error,
    };
    log_of_host(&format!("{error}. What was captured before is kept; what changed in /state since is lost"));
    match error {
        NotCaptured::State(NotCommitted::NoSpare(SpareRefusal::DiskFull | SpareRefusal::Failed)) => {
            LastCapture::NoRoom
        }
        _ => LastCapture::Refused,
    }
}
