//! The control plane: who owns which process, where it runs, and when it is swapped out.
//!
//! The decisions are pure modules that read no clock and do no I/O, so that the same arguments always give
//! the same answer: [`names`], [`epoch`], [`lifecycle`], [`placement`], [`idle`]. The [`Scheduler`] is the
//! one part that remembers: a thread that owns an embedded database and answers through a
//! [`SchedulerHandle`].
//!
//! What must hold: a claim is durable before it resolves; an epoch is handed out once, ever; a settlement of
//! an older epoch is refused; and when the disk fails, every caller gets an error and the thread lives on.
//!
//! Absent on purpose: time (it enters as an argument), the network, and everything on the path of a call.

#![forbid(unsafe_code)]

pub mod epoch;
pub mod idle;
pub mod lifecycle;
pub mod names;
pub mod placement;
mod records;
mod scheduler;

pub use epoch::Epoch;
pub use lifecycle::Phase;
pub use names::{AppName, FunctionName, NameError, ProcessName};
pub use records::{AppRecord, Claim, Create, Home, ImageRecord, ImageUse, Origin, ProcessRecord, Settled};
pub use scheduler::{Config, Durable, SchedError, Scheduler, SchedulerHandle};
