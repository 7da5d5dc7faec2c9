//! Why the scheduler says no.

use std::path::PathBuf;

use crate::lifecycle::Illegal;
use crate::placement::Refusal;
use crate::{AppName, Epoch, ProcessName};

/// Why the scheduler says no. The first group is about what was asked, the second about the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchedError {
    /// No image was ever deployed under that name.
    #[error(
        "there is no application `{app}`; deploy an image to it first, and see `denizen image` for those that there are"
    )]
    UnknownApp {
        /// The application.
        app: AppName,
    },
    /// The process does not exist, and was not to be created.
    #[error("the application `{app}` has no process `{process}`; `denizen ps` lists those that there are")]
    UnknownProcess {
        /// The application.
        app: AppName,
        /// The process.
        process: ProcessName,
    },
    /// The process exists, and was to be created.
    #[error(
        "the application `{app}` has a process `{process}` already; choose another name, or use it as it is"
    )]
    ProcessExists {
        /// The application.
        app: AppName,
        /// The process.
        process: ProcessName,
    },
    /// The application has as many processes as its manifest allows.
    #[error(
        "the application `{app}` has all of the {limit} processes that its manifest allows; delete some, or raise `processes` \
         in [limits] of denizen.toml"
    )]
    TooManyProcesses {
        /// The application.
        app: AppName,
        /// `limits.processes`.
        limit: u64,
    },
    /// No node has room to run the process.
    #[error(transparent)]
    NoRoom(#[from] Refusal),
    /// The caller's term is over.
    #[error("epoch {given} of the process is over, {current} is current; another owner acts for it")]
    StaleEpoch {
        /// What the caller holds.
        given: Epoch,
        /// What is current.
        current: Epoch,
    },
    /// The lifecycle has no such step.
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// The JSON form of a manifest could not be read.
    #[error("the manifest of the image cannot be read: {why}; build the image with this release")]
    BadManifest {
        /// What was found.
        why: String,
    },

    /// Another scheduler has the database open.
    #[error(
        "the scheduler's database {} is in use; another denizen runs on this directory: stop it, or choose another --dir",
        path.display()
    )]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The database cannot be what a scheduler wrote.
    #[error(
        "the scheduler's database {} is corrupt: {why}; restore it from a backup, or move it away and deploy the images again \
         (the state of processes is in files beside it, but what was known about them is lost)",
        path.display()
    )]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// A newer release wrote the database.
    #[error(
        "the scheduler's database {} is of format {found}, and this release knows {supported}; use the newer release that wrote it",
        path.display()
    )]
    NewerFormat {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// What this release writes.
        supported: u64,
    },
    /// The database could not be read or written. The request may have happened or not; it may be repeated.
    #[error("the scheduler's database {} cannot be used: {why}; make sure that its disk works and has space", path.display())]
    Store {
        /// The database.
        path: PathBuf,
        /// What the operating system or the database said.
        why: String,
    },
    /// The disk under the database is full. What was asked for did not happen.
    #[error("the scheduler's database {} cannot be written: its disk is full; free some space", path.display())]
    NoSpace {
        /// The database.
        path: PathBuf,
    },
    /// The scheduler was stopped.
    #[error("the scheduler has stopped")]
    Stopped,
}

impl SchedError {
    /// Whether the database is to blame, so that what a transaction did is in doubt.
    pub(crate) fn is_store(&self) -> bool {
        matches!(
            self,
            Self::Store { .. }
                | Self::NoSpace { .. }
                | Self::Corrupt { .. }
                | Self::InUse { .. }
                | Self::NewerFormat { .. }
        )
    }
}
