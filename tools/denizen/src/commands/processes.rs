//! `denizen ps`, `create`, `swap` and `rm`: processes as the scheduler sees them.

use std::time::Duration;

use denizen_client::{Blame, Process};
use serde_json::json;

use super::node;
use crate::{
    cli::{self, Everywhere},
    failure::Failure,
    target::ProcessTarget,
    terminal::{Cell, Paint, Table, Terminal, printable},
    units,
};

pub(crate) fn ps(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::Ps) -> Result<(), Failure> {
    let node = node(everywhere)?;
    let processes = node.processes(typed.app.as_deref())?;
    if terminal.json {
        return terminal.document(&json!({ "processes": processes }));
    }
    if processes.is_empty() {
        terminal.say(
            "no processes yet: the first call of one creates it (`denizen invoke app/process function`)",
        );
        return Ok(());
    }
    terminal.raw(table(&processes).render(terminal.out).as_bytes())?;
    for process in &processes {
        if let Some(failure) = &process.failure {
            let reason = failure.detail.as_deref().unwrap_or(&failure.title);
            terminal.say(printable(&format!("{}/{} failed: {reason}", process.app, process.process)));
        }
    }
    Ok(())
}

fn table(processes: &[Process]) -> Table {
    let mut table = Table::with_head(&[
        "PROCESS", "PHASE", "PID", "CALLS", "CALLERS", "COMMIT", "STATE", "IDLE", "EPOCH", "IMAGE",
    ]);
    for process in processes {
        let idle = process.idle_ms.map_or("-".to_owned(), |ms| units::duration(Duration::from_millis(ms)));
        table.row(vec![
            Cell::plain(format!("{}/{}", process.app, process.process)).painted(Paint::bold),
            Cell::plain(&process.phase).painted(paint_of(&process.phase)),
            Cell::number(process.pid.map_or("-".to_owned(), |pid| pid.to_string())),
            Cell::number(process.invocations.to_string()),
            Cell::number((process.connections.given + process.connections.parked).to_string()),
            Cell::number(process.commit.to_string()),
            Cell::number(units::bytes(process.state_bytes)),
            Cell::number(idle),
            Cell::number(process.epoch.to_string()),
            Cell::plain(process.image.as_deref().map_or("-", units::short_id)),
        ]);
    }
    table
}

fn paint_of(phase: &str) -> fn(Paint, &str) -> String {
    match phase {
        "active" => Paint::green,
        "failed" => Paint::red,
        "swapped" => Paint::dim,
        _ => Paint::yellow,
    }
}

pub(crate) fn create(
    terminal: &Terminal,
    everywhere: &Everywhere,
    typed: &cli::NewProcess,
) -> Result<(), Failure> {
    let target = ProcessTarget::parse(&typed.target)?;
    tell(terminal, &node(everywhere)?.create(&target.app, &target.process)?)
}

pub(crate) fn swap(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::Swap) -> Result<(), Failure> {
    let node = node(everywhere)?;
    let process = match typed {
        cli::Swap::Out(out) => {
            let target = ProcessTarget::parse(&out.target)?;
            node.swap_out(&target.app, &target.process)?
        }
        cli::Swap::In(back) => {
            let target = ProcessTarget::parse(&back.target)?;
            node.swap_in(&target.app, &target.process)?
        }
    };
    tell(terminal, &process)
}

/// What a process is now.
fn tell(terminal: &Terminal, process: &Process) -> Result<(), Failure> {
    if terminal.json {
        return terminal.document(process);
    }
    let size = units::bytes(process.state_bytes);
    terminal.answer(format!(
        "{}/{} is {}: commit {}, {size} of state, epoch {}",
        process.app, process.process, process.phase, process.commit, process.epoch
    ))
}

pub(crate) fn rm(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::Rm) -> Result<(), Failure> {
    let targets =
        typed.targets.iter().map(|text| ProcessTarget::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let node = node(everywhere)?;
    if !typed.yes {
        confirm(terminal, &targets)?;
    }
    for target in &targets {
        node.delete(&target.app, &target.process)?;
        if terminal.json {
            terminal
                .document(&json!({ "app": target.app, "process": target.process, "phase": "deleted" }))?;
        } else {
            terminal.answer(format!("{target} is deleted"))?;
        }
    }
    Ok(())
}

fn confirm(terminal: &Terminal, targets: &[ProcessTarget]) -> Result<(), Failure> {
    let names: Vec<String> = targets.iter().map(ProcessTarget::to_string).collect();
    if !terminal.can_ask() {
        return Err(Failure::usage(format!(
            "nobody is there to confirm that {} may be deleted",
            names.join(", ")
        ))
        .remedy("add --yes; the state is gone for good"));
    }
    if terminal.ask(&format!("Delete {} and all of its state, for good?", names.join(", "))) {
        return Ok(());
    }
    terminal.say("nothing was deleted");
    Err(Failure::already_said(Blame::Caller))
}
