//! The errors of this crate: likely culprit and remedy in each message.

use std::{io, path::PathBuf, time::Duration};

use crate::report::Layer;

/// Why a sandbox could not be had, or could not be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// A system call failed while preparing.
    #[error("{step} failed: {source}. {remedy}")]
    Step {
        /// What was being done.
        step: String,
        /// What to do about it.
        remedy: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// `isolation.require` is set and layers are missing.
    #[error("isolation is required, but layers are missing{}", listed(missing))]
    Isolation {
        /// The missing layers, each with its consequence and its remedy.
        missing: Vec<Layer>,
    },
    /// The spawner did not answer in time.
    #[error(
        "the spawner did not {what} within {limit:?}: the machine is overloaded, or the spawner is stopped. Restart the node if this stays"
    )]
    Timeout {
        /// What it should have done.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The spawner process ended, and all sandboxes with it.
    #[error(
        "the spawner process is gone, and every sandbox with it (killed, or the machine ran out of memory). Start a new spawner"
    )]
    SpawnerGone,
    /// A predecessor's spawner would not die.
    #[error(
        "process {pid}, the spawner of an earlier agent on this directory, did not die within {limit:?}. See `ps {pid}`; it may \
         hang in the kernel"
    )]
    PredecessorStays {
        /// Its process id.
        pid: u32,
        /// How long was waited.
        limit: Duration,
    },
    /// The image digest is not 64 lower-case hexadecimal digits.
    #[error("`{0}` is not an image digest (64 lower-case hexadecimal digits)")]
    BadDigest(String),
    /// The image is not in the store.
    #[error("image {image} is not in the image store. Deploy it again")]
    NoImage {
        /// The digest asked for.
        image: String,
    },
    /// The image store is not a directory that can be opened.
    #[error("the image store {} cannot be opened: {source}", path.display())]
    ImageStore {
        /// Where it should be.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// All sandbox places are taken.
    #[error("{limit} sandboxes live already, the most that one spawner holds. Swap processes out")]
    Full {
        /// The ceiling.
        limit: u32,
    },
}

/// A line for each missing layer.
fn listed(missing: &[Layer]) -> String {
    missing
        .iter()
        .map(|Layer { name, consequence, remedy, .. }| format!("\n  {name}: {consequence}. {remedy}"))
        .collect()
}
