//! The steps from a waiting sandbox to a serving process, in their one order.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use denizen_sandbox::SandboxError;
use denizen_state::{Engine, OpenOptions, StateError};
use denizen_wire::{Declarations, FrameReader, LoadFailure, LoadFailureKind, Sender, StateSummary};

use crate::assignment::{NotReceived, Received, receive};
use crate::confinement::Waiting;
use crate::declare::{Declared, Function};
use crate::intake::Intake;
use crate::link::Link;
use crate::plugin::{self, end_process};
use crate::serve::{Beginning, Runner, log_to};

pub(crate) fn serve(control: OwnedFd, waiting: Waiting) -> ExitCode {
    let link: &'static Link = Box::leak(Box::new(Link::new(control)));
    log_to(link);
    let mut frames = FrameReader::new(Sender::Agent);
    let failure = match receive(link, &mut frames) {
        Ok(received) => match start(link, frames, waiting, received) {
            Ok(never) => match never {},
            Err(failure) => failure,
        },
        // The pool was given up.
        Err(NotReceived::Gone) => return ExitCode::SUCCESS,
        Err(error) => {
            of_host(&error, "The agent and the runner must be of one version; start the node again.")
        }
    };
    if let Ok(frame) = failure.frame() {
        let _ = link.send_frame(&frame);
    }
    // Not by returning: the plugin may have been loaded, and would be asked to clean up.
    end_process(1)
}

fn start(
    link: &'static Link,
    frames: FrameReader,
    waiting: Waiting,
    received: Received,
) -> Result<std::convert::Infallible, LoadFailure> {
    let Received { assignment, state } = received;
    let loading = waiting.admit(&assignment).map_err(|error| not_confined(&error))?;
    let engine = state.map(|(writable, read_only)| {
        Engine::open(writable, read_only, OpenOptions::with_quota(assignment.limits.state_bytes))
    });
    let engine = engine.transpose().map_err(|error| no_state(&error))?;
    let manifest = assignment.manifest.to_string();
    let declared = plugin::load(Path::new(&assignment.plugin), &manifest)?;
    let sealed = loading.seal().map_err(|error| not_confined(&error))?;
    say_ready(link, &declared, engine.as_ref())?;
    let Some(engine) = engine else { end_process(0) };
    let functions: &'static [Function] = declared.functions.leak();
    Runner::begin(Beginning { link, assignment, sealed, functions, engine, intake: Intake::new(frames) })
}

fn say_ready(link: &Link, declared: &Declared, engine: Option<&Engine>) -> Result<(), LoadFailure> {
    let summary = engine.map(Engine::summary).unwrap_or_default();
    let declarations = Declarations {
        abi_version: denizen_abi::ABI_VERSION,
        functions: declared.functions.iter().map(|function| function.decl.clone()).collect(),
        types: declared.types.clone(),
        state: StateSummary { commit: summary.commit, live_bytes: summary.live_bytes, keys: summary.keys },
    };
    let frame = declarations.frame().map_err(|error| LoadFailure {
        kind: LoadFailureKind::InitFailed,
        message: format!("the plugin declares too much: {error}"),
        remedy: "Declare fewer functions and types, or shorter descriptions.".into(),
    })?;
    // If the agent is gone, the first read says so.
    let _ = link.send_frame(&frame);
    Ok(())
}

fn not_confined(error: &SandboxError) -> LoadFailure {
    of_host(error, "See `denizen doctor`.")
}

fn no_state(error: &StateError) -> LoadFailure {
    let (kind, remedy) = match error {
        StateError::Corrupt { .. } | StateError::NotFormatted | StateError::OtherFormat { .. } => {
            (LoadFailureKind::StateCorrupt, "Restore the process from a swapped copy, or delete it.")
        }
        StateError::NoSpace { .. } => (LoadFailureKind::StateFull, "Free space on the node's disk."),
        _ => (LoadFailureKind::Host, "See the node's log and its disk."),
    };
    LoadFailure { kind, message: error.to_string(), remedy: remedy.into() }
}

fn of_host(error: &dyn std::fmt::Display, remedy: &str) -> LoadFailure {
    LoadFailure { kind: LoadFailureKind::Host, message: error.to_string(), remedy: remedy.into() }
}
