//! What the scheduler remembers and hands out.

use std::sync::Arc;

use denizen_image::ImageId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AppName, Epoch, Phase, ProcessName};

/// The image that an application runs, with what was learnt when it was deployed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The image.
    pub image: ImageId,
    /// Its manifest in JSON form ([`denizen_image::Manifest`] serialized).
    pub manifest: Value,
    /// What its plugin declared when it was loaded once: functions and types. Opaque to the scheduler.
    pub declarations: Value,
    /// When it was deployed, in milliseconds since the Unix epoch, on the deployer's clock.
    pub created_at_ms: u64,
}

/// An application.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppRecord {
    /// Its name.
    pub app: AppName,
    /// The image that new sandboxes of it run.
    pub image: ImageId,
    /// How many processes exist, swapped ones included.
    pub processes: u64,
}

/// An image that some record names. One that none names may be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// The image.
    pub image: ImageId,
    /// The applications that run it, in the order of their names.
    pub apps: Vec<AppName>,
    /// The applications that ran it before the one that they run now: it is the way back.
    pub previous_of: Vec<AppName>,
    /// Processes that a sandbox runs with it, or is being prepared for.
    pub running: u64,
    /// Processes whose last claim was with it, those included.
    pub processes: u64,
}

impl ImageUse {
    /// Whether it cannot be removed without breaking something that runs, or will at the next call.
    pub fn is_in_use(&self) -> bool {
        !self.apps.is_empty() || self.running > 0
    }
}

/// Where a process's state is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Home {
    /// It was never recorded as active; see [`Origin::New`].
    Nowhere,
    /// On the node.
    Local,
    /// In the swap store, written by this term.
    Swapped {
        /// The term that wrote it.
        epoch: Epoch,
    },
}

/// A process as the scheduler knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// The application.
    pub app: AppName,
    /// Its name in the application.
    pub process: ProcessName,
    /// Where it is in its life.
    pub phase: Phase,
    /// Its current or last ownership term.
    pub epoch: Epoch,
    /// Its first ownership term: state of an earlier one is that of a deleted namesake.
    #[serde(default)]
    pub born: Option<Epoch>,
    /// Where its state is.
    pub home: Home,
    /// The image of its last claim.
    pub image: ImageId,
    /// Its last commit, as of the last time that it stopped or was swapped out.
    pub commit: u64,
    /// The last commit that was reported as durable on the node, as of then: a log that ends before it is damaged.
    #[serde(default)]
    pub durable: u64,
    /// The size of its state in bytes, as of then.
    pub state_bytes: u64,
    /// Why it failed: the problem document of the last failure. Only while it is `failed`.
    pub failure: Option<Value>,
}

/// Whether a claim may create the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// Create it if it does not exist.
    IfMissing,
    /// Refuse with `UnknownProcess` if it does not exist.
    Never,
    /// Refuse with `ProcessExists` if it does.
    Must,
}

/// Leave to run a process for one ownership term.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// The term. All that is written outside the node in it carries this number.
    pub epoch: Epoch,
    /// What to run.
    pub image: Arc<ImageRecord>,
    /// Where its state is to be had.
    pub origin: Origin,
    /// The process's first term: with its names it tells its state from that of every other process, deleted namesakes included.
    pub born: Epoch,
    /// The last commit that is on record as durable on the node; 0 if none is.
    pub durable: u64,
}

/// Where the state of a claimed process is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere, as far as is known: it was never recorded as active.
    New {
        /// The process's first term. A file under its name that this term or a later one made is its own: that it was active was
        /// not on the disk yet when the node died, but a reply may have left. A file of an earlier term is a leftover of a deleted
        /// namesake, to be discarded.
        born: Epoch,
    },
    /// On this node.
    Local,
    /// In the swap store. What lies on the node under its name is older, or a copy, or an attempt that
    /// failed.
    Swapped {
        /// The term that wrote it.
        epoch: Epoch,
    },
}

/// What became of a claimed process.
#[derive(Debug, Clone, PartialEq)]
pub enum Settled {
    /// It serves. Its state is on the node from here on. It is durable when this is answered where the state came from the swap store,
    /// and **where the swap store still has it, no reply may leave before that**; otherwise it goes to the disk at leisure, since the
    /// state is found where it lies.
    Active,
    /// It finishes what it has. Optional: a process may be swapped or stopped straight from active.
    Draining,
    /// Its sandbox is gone, its state stays on the node.
    Stopped {
        /// Bytes of state.
        bytes: u64,
        /// Its last commit.
        commit: u64,
        /// Its last commit that is durable on the node.
        durable: u64,
    },
    /// Its sandbox is gone and its state is in the swap store under this term's epoch.
    Swapped {
        /// Bytes of state.
        bytes: u64,
        /// Its last commit.
        commit: u64,
        /// Its last commit that is durable on the node.
        durable: u64,
    },
    /// It cannot run: the problem document that callers get. Its state stays where it was. A later claim
    /// tries again.
    Failed {
        /// The problem document, as JSON.
        problem: Value,
        /// Its last commit that is known to be durable on the node.
        durable: u64,
    },
    /// Its sandbox and state are gone.
    Deleted,
}
