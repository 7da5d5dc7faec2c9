//! Our code inside a sandbox: takes an assignment, loads the plugin, and serves its functions.
//!
//! This crate owns the order in which a sandbox comes to life ([`serve`]): receive, confine, open the state, load, initialise,
//! seal, serve. And it owns what a function can ask of its host (the table in `host`). What must hold:
//!
//! - No code of the tenant runs before the first filter is on, and none of its functions before the second.
//! - A call either commits all that it wrote and then replies, or leaves nothing and says why.
//! - The agent can always be heard: reading the socket never waits for a function (see `crew`).
//! - An idle process costs no processor time: one thread waits in `read`, or on its ring once it was given a connection (see `direct`),
//!   the others in futexes, all without timeouts.
//!
//! After the plugin is loaded, nothing here is trusted by anybody: it shares its address space with the tenant. The checks protect an
//! honest function from its mistakes; the sandbox protects everybody else.
//!
//! What is deliberately absent: a runtime, timers, HTTP, file paths chosen by a caller.

mod assignment;
mod buffers;
mod builtin;
mod call;
mod confinement;
mod crew;
mod debts;
mod declare;
mod direct;
mod elf;
mod files;
mod gate;
mod host;
mod inbox;
mod intake;
mod keys;
mod link;
mod memory;
mod plugin;
mod remembered;
mod reply;
mod serve;
mod source;
mod spares;
mod start;
mod trouble;

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard};

use denizen_ring::maker::Ring;

use crate::link::Link;

/// Serves one process from an assignment on the control connection until it is drained, or the agent is gone.
///
/// It returns only where the sandbox never came to serve: 0 if the agent went away while it waited, 1 after a `Refused` frame.
/// A serving process ends itself: 0 drained or agent gone, 70 for a fault of ours.
pub fn serve(mut waiting: denizen_sandbox::Waiting) -> ExitCode {
    let (control, answers, ring) = (waiting.take_control(), waiting.take_answers(), waiting.take_ring());
    start::serve(Link::new(control, answers), ring, confinement::Waiting::Sandbox(waiting))
}

/// The same as a plain process, without any confinement, and with one connection for both directions: for tests and benchmarks of the
/// serving itself. Never for tenants.
pub fn serve_unconfined(control: OwnedFd, ring: Option<Ring>) -> ExitCode {
    let Ok(answers) = control.try_clone() else { return ExitCode::FAILURE };
    start::serve(Link::new(control, answers), ring, confinement::Waiting::Nothing)
}

/// Our locks guard counters and queues that are whole between any two statements, and a panic of ours ends the process: so a
/// poisoned lock says nothing.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|broken| broken.into_inner())
}
