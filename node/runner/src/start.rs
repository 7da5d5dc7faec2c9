//! The steps from a waiting sandbox to a serving process, in their one order.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use denizen_engine::{Engine, StateError};
use denizen_sandbox::SandboxError;
use denizen_wire::{Assignment, Declarations, LoadFailure, LoadFailureKind, StateSummary};

use crate::assignment::{NotReceived, Received, engine_options, receive};
use crate::confinement::Waiting;
use crate::declare::{Declared, Function};
use crate::files;
use crate::intake::Intake;
use crate::link::Link;
use crate::plugin::{self, end_process};
use crate::serve::{Beginning, Runner, log_to};
use crate::source::Source;
use crate::spares::Shelf;

pub(crate) fn serve(control: OwnedFd, waiting: Waiting) -> ExitCode {
    let link: &'static Link = Box::leak(Box::new(Link::new(control)));
    log_to(link);
    let mut source = Source::new(link);
    let failure = match receive(&mut source) {
        Ok(received) => match start(link, source, waiting, received) {
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
    source: Source,
    waiting: Waiting,
    received: Received,
) -> Result<std::convert::Infallible, LoadFailure> {
    let Received { assignment, segments, spares } = received;
    // What is in the log already is only read.
    let longest = spares.iter().map(|spare| spare.capacity()).max().unwrap_or_default();
    let loading = waiting.admit(&assignment, longest).map_err(|error| not_confined(&error))?;
    let shelf = Arc::new(Shelf::new(link, segments, spares));
    let state = if assignment.probe { None } else { Some(open_state(&assignment, &shelf)?) };
    let manifest = assignment.manifest.to_string();
    let declared = plugin::load(Path::new(&assignment.plugin), &manifest)?;
    let sealed = loading.seal().map_err(|error| not_confined(&error))?;
    say_ready(link, &declared, state.as_ref())?;
    let Some(State { engine, .. }) = state else { end_process(0) };
    let functions: &'static [Function] = declared.functions.leak();
    let intake = Intake::new(source);
    Runner::begin(Beginning { link, assignment, sealed, functions, engine, shelf, intake })
}

/// What a process begins with.
struct State {
    engine: Engine,
    found: denizen_wire::Recovery,
}

fn open_state(assignment: &Assignment, shelf: &Arc<Shelf>) -> Result<State, LoadFailure> {
    let options = engine_options(assignment).ok_or_else(|| {
        of_host(
            &format!("\"{}\" is no lineage of a state", assignment.lineage),
            "The agent and the runner must be of one version; start the node again.",
        )
    })?;
    let (engine, recovery) = Engine::open(shelf.clone(), options).map_err(|error| no_state(&error))?;
    files::restore(assignment, &engine)?;
    let damaged = recovery.damaged.iter().take(denizen_wire::Recovery::MAX_DAMAGED);
    let damaged = damaged.map(ToString::to_string).collect();
    Ok(State { engine, found: denizen_wire::Recovery { torn: recovery.torn, damaged } })
}

fn say_ready(link: &Link, declared: &Declared, state: Option<&State>) -> Result<(), LoadFailure> {
    let found = state.map(|state| &state.found).filter(|found| **found != denizen_wire::Recovery::default());
    let declarations = Declarations {
        abi_version: denizen_abi::ABI_VERSION,
        functions: declared.functions.iter().map(|function| function.decl.clone()).collect(),
        types: declared.types.clone(),
        state: state.map(|state| summary_of(&state.engine)).unwrap_or_default(),
        recovery: found.cloned(),
    };
    let frame = declarations.frame().map_err(|error| LoadFailure {
        kind: LoadFailureKind::InitFailed,
        message: format!("the plugin declares too much: {error}"),
        remedy: "Declare fewer functions and types, or shorter descriptions.".into(),
    })?;
    // If the agent is gone, the first read says so.
    let _ = link.send_ready(&frame);
    Ok(())
}

fn summary_of(engine: &Engine) -> StateSummary {
    let summary = engine.summary();
    StateSummary {
        commit: summary.commit,
        live_bytes: summary.live_bytes,
        keys: summary.keys,
        durable: summary.durable,
        disk_bytes: summary.disk_bytes,
    }
}

fn not_confined(error: &SandboxError) -> LoadFailure {
    of_host(error, "See `denizen doctor`.")
}

fn no_state(error: &StateError) -> LoadFailure {
    let (kind, remedy) = match error {
        StateError::Io { .. } => (LoadFailureKind::Host, "See the node's log and its disk."),
        StateError::NoSpare { .. } => (LoadFailureKind::StateFull, "Free space on the node's disk."),
        _ => (LoadFailureKind::StateCorrupt, "Restore the process from a swapped copy, or delete it."),
    };
    LoadFailure { kind, message: error.to_string(), remedy: remedy.into() }
}

fn of_host(error: &dyn std::fmt::Display, remedy: &str) -> LoadFailure {
    LoadFailure { kind: LoadFailureKind::Host, message: error.to_string(), remedy: remedy.into() }
}
