//! Processes through the control interface. What the scheduler has on record is joined with what their homes see now.

use std::rc::Rc;
use std::time::Duration;

use denizen_sched::{Create, Phase, ProcessRecord};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use super::body::FrontBody;
use super::{Answer, json_answer};
use crate::executor;
use crate::home::{App, Home};
use crate::problem::{Kind, Problem};
use crate::process::{Process, Stage, refused_claim};

/// How long sandboxes may take to say how many calls they have had.
const CENSUS_LIMIT: Duration = Duration::from_secs(1);

/// What a home sees of a process.
struct Live {
    app: String,
    process: String,
    /// `None` where the record knows best: the process rests.
    phase: Option<Phase>,
    sandbox: Option<Sandbox>,
    /// Connections that its sandbox has, and that are at rest.
    given: usize,
    parked: usize,
}

struct Sandbox {
    pid: u32,
    idle_ms: Option<u64>,
    invocations: u64,
    /// Calls on connections that it was given, as it last said.
    direct_calls: u64,
    commit: u64,
    durable: u64,
    state_bytes: u64,
    epoch: u64,
    image: String,
}

impl Live {
    fn of(process: &Process) -> Live {
        let (phase, active) = match process.stage() {
            Stage::Active(active) => (Some(Phase::Active), Some(active)),
            Stage::Draining(active) => (Some(Phase::Draining), Some(active)),
            Stage::Starting => (Some(Phase::Starting), None),
            Stage::Resting | Stage::Deleted => (None, None),
        };
        let sandbox = active.map(|active| Sandbox {
            pid: active.life.pid(),
            idle_ms: (active.in_flight() == 0)
                .then(|| u64::try_from(active.quiet_since().elapsed().as_millis()).unwrap_or(u64::MAX)),
            invocations: active.invocations(),
            direct_calls: active.direct_calls(),
            commit: active.commit(),
            durable: active.durable(),
            state_bytes: active.state_bytes(),
            epoch: active.epoch.get(),
            image: active.image.id.to_string(),
        });
        let (given, parked) = process.connections();
        let (app, process) = (process.app.name.to_string(), process.name.to_string());
        Live { app, process, phase, sandbox, given, parked }
    }
}

/// The document of a process.
fn document(home: &Home, record: ProcessRecord, live: Option<Live>) -> Value {
    let mut document = json!({
        "app": record.app,
        "process": record.process,
        "phase": at_rest(record.phase, &record),
        "image": record.image,
        "epoch": record.epoch,
        "commit": record.commit,
        "durable": record.durable,
        "state_bytes": record.state_bytes,
        "pid": null,
        "idle_ms": null,
        "invocations": 0,
        "direct_calls": 0,
        "connections": { "given": live.as_ref().map_or(0, |live| live.given), "parked": live.as_ref().map_or(0, |live| live.parked) },
        "isolation": isolation(home),
    });
    let Some(fields) = document.as_object_mut() else { return document };
    let Some((phase, sandbox)) = live.and_then(|live| Some((live.phase?, live.sandbox))) else {
        if let Some(failure) = record.failure {
            fields.insert("failure".to_owned(), failure);
        }
        return document;
    };
    fields.insert("phase".to_owned(), json!(phase));
    if let Some(sandbox) = sandbox {
        let Sandbox { pid, idle_ms, invocations, direct_calls, commit, durable, state_bytes, epoch, image } =
            sandbox;
        let seen = json!({
            "pid": pid, "idle_ms": idle_ms, "invocations": invocations + direct_calls, "direct_calls": direct_calls,
            "commit": commit, "epoch": epoch, "image": image,
            "durable": durable, "state_bytes": state_bytes,
        });
        fields.extend(seen.as_object().cloned().unwrap_or_default());
    }
    document
}

/// A process that no home has alive: its record may be from before a node was killed.
fn at_rest(phase: Phase, record: &ProcessRecord) -> Phase {
    match phase {
        Phase::Starting | Phase::Active | Phase::Draining => match record.home {
            denizen_sched::Home::Swapped { .. } => Phase::Swapped,
            _ => Phase::Placed,
        },
        other => other,
    }
}

/// The names of the layers that are in force.
fn isolation(home: &Home) -> Value {
    let layers = &home.node.pool.report().layers;
    let names = |active: bool| {
        layers
            .iter()
            .filter(|layer| layer.active == active)
            .map(|layer| layer.name.as_str())
            .collect::<Vec<_>>()
    };
    json!({"active": names(true), "missing": names(false)})
}

/// Has sandboxes say how many calls they have had that the agent did not see: all at a time. Whoever is late keeps its last number.
async fn take_census(processes: &[Rc<Process>]) {
    let callers = |process: &Rc<Process>| process.serving().filter(|active| active.has_callers());
    let asked: Vec<_> =
        processes.iter().filter_map(callers).map(|active| (active.ask_census(), active)).collect();
    let answers = async {
        for (question, active) in &asked {
            if let Some(direct) = &active.direct {
                let _ = direct.answer(*question, CENSUS_LIMIT).await;
            }
        }
    };
    executor::within(CENSUS_LIMIT, answers).await;
}

/// All processes, or those of one application.
pub(super) async fn list(home: &Rc<Home>, app: Option<&str>) -> Result<Value, Problem> {
    let name = app.map(|app| home.app(app)).transpose()?.map(|app| app.name.clone());
    let records = home.node.scheduler.list(name.clone()).await.map_err(|error| refused_claim(&error))?;
    let look = move |home: Rc<Home>| async move {
        let ours = |app: &Rc<App>| name.as_ref().is_none_or(|name| *name == app.name);
        let processes: Vec<_> =
            home.apps().into_iter().filter(ours).flat_map(|app| app.processes()).collect();
        take_census(&processes).await;
        processes.iter().map(|process| Live::of(process)).collect::<Vec<_>>()
    };
    let mut live: std::collections::HashMap<_, _> = home
        .everywhere(look)
        .await?
        .into_iter()
        .flatten()
        .map(|live| ((live.app.clone(), live.process.clone()), live))
        .collect();
    let documents = records.into_iter().map(|record| {
        let live = live.remove(&(record.app.to_string(), record.process.to_string()));
        document(home, record, live)
    });
    Ok(json!({"processes": documents.collect::<Vec<_>>()}))
}

/// One process.
pub(super) async fn one(home: &Rc<Home>, app: &str, process: &str) -> Result<Value, Problem> {
    let known = home.app(app)?;
    let name = denizen_sched::ProcessName::new(process)
        .map_err(|error| Problem::new(Kind::BadName, error.to_string()))?;
    let record = home.node.scheduler.get(known.name.clone(), name).await;
    let record = record.map_err(|error| refused_claim(&error).process(process))?;
    let executor = home.node.home_of(app, process);
    let (app, process) = (app.to_owned(), process.to_owned());
    let look = move |home: Rc<Home>| async move {
        let process = home.app(&app).ok()?.known(&process)?;
        take_census(&[Rc::clone(&process)]).await;
        Some(Live::of(&process))
    };
    let live = home.on(executor, look).await?;
    Ok(document(home, record, live))
}

/// What to do with a process on its home.
#[derive(Debug, Clone, Copy)]
enum Change {
    Create,
    SwapIn,
    SwapOut,
    Delete,
}

async fn change(home: &Rc<Home>, app: &str, process: &str, change: Change) -> Result<(), Problem> {
    home.app(app)?;
    let executor = home.node.home_of(app, process);
    let (app, process) = (app.to_owned(), process.to_owned());
    let work = move |home: Rc<Home>| async move {
        let process = home.process(&home.app(&app)?, &process)?;
        let done = match change {
            // The first to start it creates it, or hears that it exists.
            Change::Create if process.is_here() => Err(exists(&process)),
            Change::Create => process.active(&home, Create::Must).await.map(drop),
            Change::SwapIn => process.active(&home, Create::Never).await.map(drop),
            Change::SwapOut => process.swap_out(&home).await,
            Change::Delete => process.delete(&home).await,
        };
        // One that exists keeps its log: there is why this failed, and what was lost.
        if let Err(problem) = &done
            && (matches!(change, Change::Create) || problem.kind() == Kind::UnknownProcess)
        {
            home.let_go(&process);
        }
        let done = done.map_err(|problem| problem.process(process.name.as_str()));
        home.release(process);
        done
    };
    home.on(executor, work).await?
}

fn exists(process: &Process) -> Problem {
    Problem::new(Kind::ProcessExists, format!("{} has a process {} already", process.app.name, process.name))
}

pub(super) async fn create(home: &Rc<Home>, app: &str, process: &str) -> Result<Answer, Problem> {
    change(home, app, process, Change::Create).await?;
    Ok(json_answer(StatusCode::CREATED, &one(home, app, process).await?))
}

pub(super) async fn delete(home: &Rc<Home>, app: &str, process: &str) -> Result<Answer, Problem> {
    change(home, app, process, Change::Delete).await?;
    let mut answer = Response::new(FrontBody::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    Ok(answer)
}

pub(super) async fn swap_out(home: &Rc<Home>, app: &str, process: &str) -> Result<Value, Problem> {
    change(home, app, process, Change::SwapOut).await?;
    one(home, app, process).await
}

pub(super) async fn swap_in(home: &Rc<Home>, app: &str, process: &str) -> Result<Value, Problem> {
    change(home, app, process, Change::SwapIn).await?;
    one(home, app, process).await
}
