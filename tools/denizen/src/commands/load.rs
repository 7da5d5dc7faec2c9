//! `denizen load`: calls a function many times and says how long that took.
//!
//! **Closed loop** (the default): each connection makes its next call when it has the answer to the last. It finds what a node can do at
//! most, and says little of what callers would feel: while the node stalls, nobody asks it. **Open loop** (`--rate`):
//! calls are due at fixed times, whatever became of those before, and each is measured from the time at which it was
//! due, so that waiting behind a stall counts (no coordinated omission). What was due and could not be begun is
//! counted as a failure, not forgotten.

mod caller;
mod meter;
mod schedule;
mod tally;

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use denizen_client::Blame;
use serde_json::json;

use self::{caller::Caller, meter::Meter, schedule::Schedule, tally::Tallies};
use crate::{
    cli::{self, Everywhere},
    failure::Failure,
    signals,
    target::Target,
    terminal::{Cell, Table, Terminal},
    units,
};

/// Enough for an HTTP exchange, and little where there are thousands.
const STACK_BYTES: usize = 1 << 20;
/// How long calls that are due may still be begun after the end, in open loop. What is left then was not sent.
const CATCH_UP: Duration = Duration::from_secs(5);

pub(crate) fn run(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::Load) -> Result<(), Failure> {
    let target = Target::parse(&typed.target)?;
    let callers = caller::open(everywhere, typed, &target)?;
    let schedule = Arc::new(Schedule::new(Instant::now(), typed.duration, typed.rate));
    let tallies = Arc::new(Tallies::for_workers(callers.len()));
    let stopped = stop_on_signal(&schedule)?;
    let meter = Meter::start(terminal, &tallies);
    let (failed, own_cpu) = call_all(callers, &schedule, &tallies)?;
    // The time in which the answers came, which may be longer than was asked for.
    let elapsed = schedule.start().elapsed();
    drop(meter);
    if stopped.load(Ordering::Relaxed) {
        terminal.say(terminal.err.dim("stopped before the end; this is what there is"));
    } else {
        tallies.add_unsent(schedule.unsent());
    }
    let run = Run { target: &typed.target, typed, elapsed, own_cpu };
    let sum = tallies.sum();
    if terminal.json {
        run.document(terminal, &sum)?
    } else {
        run.table(terminal, &sum)?
    }
    match failed {
        Some(failure) => Err(failure),
        None if sum.failed() > 0 => Err(Failure::already_said(Blame::Function)),
        None => Ok(()),
    }
}

/// Lets the first Ctrl-C end the run, and the second the program.
fn stop_on_signal(schedule: &Arc<Schedule>) -> Result<Arc<AtomicBool>, Failure> {
    let stopped = Arc::new(AtomicBool::new(false));
    let (schedule, flag) = (Arc::clone(schedule), Arc::clone(&stopped));
    signals::on_stop(move |times| {
        if times > 1 {
            process::exit(130);
        }
        flag.store(true, Ordering::Relaxed);
        schedule.stop();
    })?;
    Ok(stopped)
}

/// Runs every caller in a thread of its own until its calls have ended. Gives the first reason why one could not go on, and the time that
/// all of them had a core.
fn call_all(
    callers: Vec<Caller>,
    schedule: &Arc<Schedule>,
    tallies: &Arc<Tallies>,
) -> Result<(Option<Failure>, Duration), Failure> {
    let mut threads = Vec::with_capacity(callers.len());
    for (index, mut caller) in callers.into_iter().enumerate() {
        let (schedule, tallies) = (Arc::clone(schedule), Arc::clone(tallies));
        let work = move || {
            schedule::sharpen_timers();
            (caller.run(&schedule, tallies.of_worker(index)), cpu_of_this_thread())
        };
        let thread =
            thread::Builder::new().name(format!("caller-{index}")).stack_size(STACK_BYTES).spawn(work);
        threads.push(thread.map_err(|error| {
            Failure::host("a thread cannot be started").because(&error).remedy("ask for fewer --connections")
        })?);
    }
    let (mut failed, mut own_cpu) = (None, Duration::ZERO);
    for thread in threads {
        match thread.join() {
            Ok((ended, cpu)) => {
                own_cpu += cpu;
                failed = failed.or(ended.err());
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok((failed, own_cpu))
}

fn cpu_of_this_thread() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// What was asked for, and how long it took.
struct Run<'a> {
    target: &'a str,
    typed: &'a cli::Load,
    elapsed: Duration,
    own_cpu: Duration,
}

impl Run<'_> {
    /// What a call costs this program itself: it is a part of each figure, and of the load of a machine that it shares with the node.
    fn own_cpu_per_call(&self, sum: &tally::Sum) -> Duration {
        let calls = u32::try_from(sum.succeeded() + sum.failed()).unwrap_or(u32::MAX);
        self.own_cpu / calls.max(1)
    }

    fn transport(&self) -> &'static str {
        if self.typed.framed { "framed" } else { "http" }
    }

    fn calls_per_second(&self, sum: &tally::Sum) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate is rounded anyway")]
        let calls = sum.succeeded() as f64;
        calls / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn table(&self, terminal: &Terminal, sum: &tally::Sum) -> Result<(), Failure> {
        let typed = self.typed;
        let connections = units::count(u64::from(typed.connections), "connection", "connections");
        let how = match typed.rate {
            Some(rate) => format!("open loop, {rate} calls/s due"),
            None => "closed loop".to_owned(),
        };
        let took = units::duration(self.elapsed);
        let what = format!("{} {} over {}", self.target, typed.function, self.transport());
        let own = match typed.busy {
            true => "own threads always busy".to_owned(),
            false => format!("own CPU {} a call", meter::short(self.own_cpu_per_call(sum))),
        };
        terminal.say(terminal.err.dim(&format!("{what} · {connections} · {how} · {took} · {own}")));
        let mut table =
            Table::with_head(&["CALLS", "CALLS/S", "P50", "P90", "P99", "P99.9", "MAX", "FAILED"]);
        let mut row = vec![
            Cell::number(sum.succeeded().to_string()),
            Cell::number(format!("{:.0}", self.calls_per_second(sum))),
        ];
        row.extend(sum.percentiles().iter().map(|(_, time)| match sum.succeeded() {
            0 => Cell::number("-"),
            _ => Cell::number(meter::short(*time)),
        }));
        row.push(Cell::number(sum.failed().to_string()));
        table.row(row);
        terminal.raw(table.render(terminal.out).as_bytes())?;
        if sum.failed() == 0 {
            return Ok(());
        }
        let mut errors = Table::with_head(&["FAILED", "TYPE", "THE FIRST OF THEM"]);
        for (kind, failed) in sum.errors() {
            // The clients' errors begin with their type, which has a column here.
            let said = failed.first.strip_prefix(kind).and_then(|rest| rest.strip_prefix(": "));
            let first = said.unwrap_or(&failed.first).chars().take(100).collect::<String>();
            errors.row(vec![Cell::number(failed.count.to_string()), Cell::plain(kind), Cell::plain(first)]);
        }
        terminal.raw(format!("\n{}", errors.render(terminal.out)).as_bytes())
    }

    fn document(&self, terminal: &Terminal, sum: &tally::Sum) -> Result<(), Failure> {
        let measured = sum.succeeded() > 0;
        let latency: serde_json::Map<_, _> = sum
            .percentiles()
            .iter()
            .map(|(name, time)| ((*name).to_owned(), json!(measured.then(|| in_us(*time)))))
            .collect();
        let errors: serde_json::Map<_, _> =
            sum.errors().map(|(kind, failed)| (kind.to_owned(), json!(failed.count))).collect();
        terminal.document(&json!({
            "target": self.target,
            "function": self.typed.function,
            "transport": self.transport(),
            "loop": if self.typed.rate.is_some() { "open" } else { "closed" },
            "rate": self.typed.rate,
            "connections": self.typed.connections,
            "depth": self.typed.depth,
            "seconds": self.elapsed.as_secs_f64(),
            "calls": sum.succeeded(),
            "failed": sum.failed(),
            "calls_per_second": self.calls_per_second(sum),
            "busy": self.typed.busy,
            "own_cpu_us_per_call": in_us(self.own_cpu_per_call(sum)),
            "latency_us": latency,
            "errors": errors,
        }))
    }
}

fn in_us(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
