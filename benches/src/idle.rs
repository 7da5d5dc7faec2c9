//! What a node costs that does nothing: processor time with a thousand idle processes and connections beside none, and the memory of an
//! idle connection and of a swapped process.

use std::collections::BTreeSet;
use std::time::Duration;

use denizen_protocol::Durability;

use crate::framed::Framed;
use crate::machine::{Programs, kernel_kib};
use crate::node::Node;

/// After this everything that was begun has settled.
const SETTLING: Duration = Duration::from_secs(2);
/// The deadline of a call that names none: after it nobody looks whether one has passed any more.
const DEADLINES: Duration = Duration::from_secs(33);
/// Connections to one process, where there are many: fewer than a sandbox takes.
const PER_PROCESS: usize = 250;

/// Measures processor time and memory.
pub(crate) fn measure(programs: &Programs, tiny: bool) {
    let (count, seconds, swapped) = if tiny { (3, 1, 3) } else { (1_000, 60, 10_000) };
    let empty = Node::start(programs, 0);
    let full = Node::lasting(programs);
    let before = memory_of(&full);
    let connections: Vec<Framed> = (0..count).map(|number| called(&full, number)).collect();
    std::thread::sleep(SETTLING);
    let held = memory_of(&full).saturating_sub(before);
    std::thread::sleep(if tiny { Duration::ZERO } else { DEADLINES });
    let (idle, busy) = (spent(&empty, seconds), spent(&full, seconds));
    println!("## A node that does nothing, {seconds} s\n");
    println!("| | processor time, ms a minute |\n|---|---|");
    println!("| no process, no connection | {idle:.1} |");
    println!("| {count} idle processes, {count} idle connections | {busy:.1} |");
    println!("\nThe agent's own memory for both, KiB each: {:.1}\n", held as f64 / count as f64);
    drop(connections);
    drop((empty, full));
    swapped_memory(programs, swapped);
    measure_connections(programs, tiny);
}

/// Memory of very many swapped processes. Each is really called once and swapped out: this takes some ten minutes.
pub(crate) fn measure_swapped(programs: &Programs, tiny: bool) {
    swapped_memory(programs, if tiny { 3 } else { 100_000 });
}

/// Memory of connections alone.
pub(crate) fn measure_connections(programs: &Programs, tiny: bool) {
    connections(programs, if tiny { 3 } else { 750 });
}

/// What the agent itself and the kernel hold for a connection: one that a sandbox has, and one of a process that is swapped out.
fn connections(programs: &Programs, count: usize) {
    let node = Node::lasting(programs);
    let processes = count.div_ceil(PER_PROCESS);
    let first: Vec<Framed> = (0..processes).map(|process| called(&node, process)).collect();
    std::thread::sleep(SETTLING);
    let each = |now: u64, before: u64| now.saturating_sub(before) as f64 / count as f64;
    let (before, in_kernel) = (memory_of(&node), kernel_kib());
    let others: Vec<Framed> = (0..count).map(|number| called(&node, number / PER_PROCESS)).collect();
    std::thread::sleep(SETTLING);
    let given = (each(memory_of(&node), before), each(kernel_kib(), in_kernel));
    (0..processes).for_each(|process| node.swap_out(&format!("p{process}")));
    std::thread::sleep(SETTLING);
    // What the kernel held for the sandboxes is gone as well by now: a difference would not be the connections' own.
    let rest = each(memory_of(&node), before);
    println!("## Memory of an idle connection, {count} of them, KiB\n");
    println!("| | the agent's | the kernel's, both ends |\n|---|---|---|");
    println!("| its sandbox has it | {:.2} | {:.2} |", given.0, given.1);
    println!("| its process is swapped out | {rest:.2} | |\n");
    drop((first, others));
}

/// A connection to a process that was called once.
fn called(node: &Node, number: usize) -> Framed {
    let mut framed = node.framed(&format!("p{number}"));
    framed.call("echo", b"x", Durability::Process);
    framed
}

/// Milliseconds of processor time a minute of everything that belongs to a node.
fn spent(node: &Node, seconds: u64) -> f64 {
    let before = run_time_ms(node);
    std::thread::sleep(Duration::from_secs(seconds));
    (run_time_ms(node) - before) * 60.0 / seconds as f64
}

/// What the node's program, its spawner and its sandboxes have run.
fn run_time_ms(node: &Node) -> f64 {
    family(node.pid()).into_iter().map(|pid| run_time_ns(pid) / 1e6).sum()
}

fn run_time_ns(pid: u32) -> f64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let run = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<f64>().ok()
    };
    tasks.flatten().filter_map(run).sum()
}

/// A program and its descendants.
fn family(root: u32) -> BTreeSet<u32> {
    let entries = std::fs::read_dir("/proc").expect("/proc");
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parents: Vec<(u32, u32)> = pids.filter_map(|pid| Some((pid, parent_of(pid)?))).collect();
    let mut family = BTreeSet::from([root]);
    loop {
        let more: Vec<u32> = parents
            .iter()
            .filter(|(pid, parent)| family.contains(parent) && !family.contains(pid))
            .map(|(pid, _)| *pid)
            .collect();
        if more.is_empty() {
            return family;
        }
        family.extend(more);
    }
}

fn parent_of(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// KiB of memory that is the agent's own.
fn memory_of(node: &Node) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", node.pid())).expect("smaps");
    let line = text.lines().find(|line| line.starts_with("Private_Dirty")).expect("a field");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("KiB")
}

fn swapped_memory(programs: &Programs, count: usize) {
    let node = Node::start(programs, 4);
    let swapped = |number: usize| {
        drop(called(&node, number));
        node.swap_out(&format!("p{number}"));
    };
    (0..count / 10).for_each(swapped);
    std::thread::sleep(SETTLING);
    let before = memory_of(&node);
    (count / 10..count).for_each(swapped);
    std::thread::sleep(SETTLING);
    let each = memory_of(&node).saturating_sub(before) as f64 / (count - count / 10) as f64;
    println!("## The agent's memory of a swapped process, at {count}, KiB: {each:.2}\n");
}
