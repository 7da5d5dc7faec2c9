//! Spawns and confines the OS processes that run tenant code.
//!
//! Three parties, top to bottom in trust. The **agent** calls [`Spawner::start`] once and [`Spawner::spawn`] for each
//! sandbox. The **spawner** is this same program executed again: pid 1 of a pid namespace, one thread, no secrets; every
//! sandbox is a fork of it, and dies with it, as it dies with the agent. The **sandbox** is in user, pid, mount, IPC, UTS
//! and cgroup namespaces of its own and in an empty network namespace; it waits with the host's libraries loaded and no
//! image, and takes three steps that have no way back: [`Waiting::admit`], [`Loading::seal`], [`Sealed`].
//!
//! What must hold: from the first constructor of a plugin on, a sandbox reaches nothing but its image (read-only), its
//! control connection, its standard output, the descriptors that it was handed there, the connections in its ring if it has one,
//! and, where its image asks for it, one file system of its own in memory, at `/state`. The test `what_a_sandbox_sees` lists
//! what it can do, from a constructor's place and from a function's.
//!
//! Absent on purpose: any wait for a sandbox without a limit; any map of memory that a sandbox can still write; a second
//! way to make a sandbox. Known cost of forking: all sandboxes of a node share one address-space layout.

mod cgroup;
mod error;
mod inside;
mod last_words;
mod life;
mod limits;
pub mod probe;
mod report;
mod root;
mod seccomp;
mod signals;
mod spawner;
mod sys;

pub use error::SandboxError;
pub use inside::{Loading, Sealed, Waiting};
pub use last_words::{Demise, DemiseKind, LastWords, Phase, Running, Testament};
pub use life::{ExitCause, Life, Sandbox};
pub use limits::{Admission, FileAccess, Limits, MOST_STATE_FILES};
pub use report::{IsolationReport, Layer};
pub use spawner::{Isolation, Rings, Spawner, SpawnerConfig, end_predecessor, run_if_spawner};
