//! The steps from a waiting sandbox to a serving process, in their one order.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use denizen_engine::{Engine, StateError};
use denizen_ring::maker::Ring;
use denizen_sandbox::SandboxError;
use denizen_wire::{Assignment, Declarations, LoadFailure, LoadFailureKind, StateSummary};

use crate::assignment::{NotReceived, Received, engine_options, receive};
use crate::confinement::Waiting;
use crate::declare::{Declared, Function};
use crate::files;
use crate::intake::Intake;
use crate::link::Link;
use crate::plugin::{self, end_process};
use crate::serve::{Beginning, Runner, log_to, prepare_crew};
use crate::source::Source;
use crate::spares::Shelf;

/// What to do about frames that a runner does not expect.
const ONE_VERSION: &str = "The agent and the runner must be of one version; start the node again.";

pub(crate) fn serve(link: Link, ring: Option<Ring>, waiting: Waiting) -> ExitCode {
    let link: &'static Link = Box::leak(Box::new(link));
    log_to(link);
    let mut source = Source::new(link);
    let failure = match receive(&mut source) {
        Ok(received) => match start(link, source, ring, waiting, received) {
            Ok(never) => match never {},
            Err(failure) => failure,
        },
        // The pool was given up.
        Err(NotReceived::Gone) => return ExitCode::SUCCESS,
        Err(error) => of_host(&error, ONE_VERSION),
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
    ring: Option<Ring>,
    waiting: Waiting,
    received: Received,
) -> Result<std::convert::Infallible, LoadFailure> {
    // Where no connection may come it is closed before anything of the tenant runs.
    let ring = ring.filter(|_| received.assignment.ring);
    if received.assignment.prepare {
        return prepare(link, source, ring, waiting, received.assignment);
    }
    let Received { assignment, segments, spares } = received;
    // What is in the log already is only read.
    let longest = spares.iter().map(|spare| spare.capacity()).max().unwrap_or_default();
    let loading = waiting.admit(&assignment, longest).map_err(|error| not_confined(&error))?;
    let shelf = Arc::new(Shelf::new(link, segments, spares));
    let state = if assignment.probe { None } else { Some(open_state(&assignment, &shelf)?) };
    let manifest = assignment.manifest.to_string();
    let declared = plugin::load(Path::new(&assignment.plugin), &manifest)?;
    let sealed = loading.seal().map_err(|error| not_confined(&error))?;
    say_ready(link, &declared, state.as_ref(), ring.is_some())?;
    let Some(State { engine, .. }) = state else { end_process(0) };
    let functions: &'static [Function] = declared.functions.leak();
    let intake = Intake::new(source);
    Runner::begin(Beginning { link, assignment, sealed, functions, engine, shelf, intake, crew: None, ring })
}

/// Everything that needs no process: then this waits for one of its image.
fn prepare(
    link: &'static Link,
    mut source: Source,
    ring: Option<Ring>,
    waiting: Waiting,
    prepared: Assignment,
) -> Result<std::convert::Infallible, LoadFailure> {
    // It is given nothing to write to yet; the agent lets it reach further when it is.
    let loading = waiting.admit(&prepared, 0).map_err(|error| not_confined(&error))?;
    let declared = plugin::load(Path::new(&prepared.plugin), &prepared.manifest.to_string())?;
    let sealed = loading.seal().map_err(|error| not_confined(&error))?;
    let crew = prepare_crew(sealed, prepared.limits.threads);
    say_ready(link, &declared, None, ring.is_some())?;
    let received = match receive(&mut source) {
        Ok(received) => received,
        // Nobody needed it.
        Err(NotReceived::Gone) => end_process(0),
        Err(error) => return Err(of_host(&error, ONE_VERSION)),
    };
    let Received { assignment, segments, spares } = received;
    if assignment.probe || assignment.prepare || assignment.image != prepared.image {
        return Err(of_host(&"a prepared sandbox was told to become something else", ONE_VERSION));
    }
    // What was said is not said again.
    let assignment = Assignment { manifest: prepared.manifest, ..assignment };
    let shelf = Arc::new(Shelf::new(link, segments, spares));
    let state = open_state(&assignment, &shelf)?;
    say_ready(link, &Declared::default(), Some(&state), ring.is_some())?;
    let functions: &'static [Function] = declared.functions.leak();
    let (engine, intake) = (state.engine, Intake::new(source));
    Runner::begin(Beginning {
        link,
        assignment,
        sealed,
        functions,
        engine,
        shelf,
        intake,
        crew: Some(crew),
        ring,
    })
}

/// What a process begins with.
struct State {
    engine: Engine,
    found: denizen_wire::Recovery,
}

fn open_state(assignment: &Assignment, shelf: &Arc<Shelf>) -> Result<State, LoadFailure> {
    let options = engine_options(assignment).ok_or_else(|| {
        of_host(&format!("\"{}\" is no lineage of a state", assignment.lineage), ONE_VERSION)
    })?;
    let (engine, recovery) = Engine::open(shelf.clone(), options).map_err(|error| no_state(&error))?;
    files::restore(assignment, &engine)?;
    let damaged = recovery.damaged.iter().take(denizen_wire::Recovery::MAX_DAMAGED);
    let damaged = damaged.map(ToString::to_string).collect();
    Ok(State { engine, found: denizen_wire::Recovery { torn: recovery.torn, damaged } })
}

fn say_ready(
    link: &Link,
    declared: &Declared,
    state: Option<&State>,
    connections: bool,
) -> Result<(), LoadFailure> {
    let found = state.map(|state| &state.found).filter(|found| **found != denizen_wire::Recovery::default());
    let declarations = Declarations {
        abi_version: denizen_abi::ABI_VERSION,
        functions: declared.functions.iter().map(|function| function.decl.clone()).collect(),
        types: declared.types.clone(),
        state: state.map(|state| summary_of(&state.engine)).unwrap_or_default(),
        recovery: found.cloned(),
        connections,
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
