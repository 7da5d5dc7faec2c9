//! What an idle active process takes of the machine's memory, kernel structures included, beside an idle dynamic glibc
//! process.

use crate::machine::{Programs, used_kib};
use crate::node::{Node, Rival};
use std::time::Duration;

/// Measures how much more memory is in use with `count` more of each.
pub(crate) fn measure(programs: &Programs, tiny: bool) {
    let count = if tiny { 3 } else { 1_000 };
    let rounds = if tiny { 1 } else { 3 };
    let mut rows = Vec::new();
    for _ in 0..rounds {
        rows.push((glibc_processes(programs, count), denizen_processes(programs, count)));
    }
    println!("## Memory of {count} idle instances, KiB of the machine's memory each\n");
    println!("| | median | range over {rounds} rounds |\n|---|---|---|");
    let (theirs, ours): (Vec<u64>, Vec<u64>) = rows.into_iter().unzip();
    row("dynamic glibc process", theirs);
    row("active Denizen process, called once", ours);
    println!();
}

fn row(name: &str, mut figures: Vec<u64>) {
    figures.sort_unstable();
    println!("| {name} | {} | {}–{} |", figures[figures.len() / 2], figures[0], figures[figures.len() - 1]);
}

fn glibc_processes(programs: &Programs, count: u64) -> u64 {
    let first = Rival::start(programs, &["idle"]);
    let before = settled_kib();
    let others: Vec<Rival> = (0..count).map(|_| Rival::start(programs, &["idle"])).collect();
    let each = settled_kib().saturating_sub(before) / count;
    drop(others);
    drop(first);
    each
}

fn denizen_processes(programs: &Programs, count: u64) -> u64 {
    let node = Node::start(programs, 0);
    let mut client = node.client();
    let mut call = |name: String| {
        let request = client.request(&format!("/v1/apps/bench-echo/processes/{name}/functions/count"), b"");
        assert_eq!(client.exchange(&request), 200, "a call failed");
    };
    call("first".to_owned());
    let before = settled_kib();
    for number in 0..count {
        call(format!("p{number}"));
    }
    settled_kib().saturating_sub(before) / count
}

/// Memory in use once it has stopped moving.
fn settled_kib() -> u64 {
    std::thread::sleep(Duration::from_millis(1500));
    used_kib()
}
