//! Benchmarks rot unless they run: each of them, a few operations, on the debug build.

use std::process::Command;

fn tiny(bench: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_denizen-benches"))
        .args([bench, "--tiny", "--debug"])
        .output()
        .expect("the benchmark program runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{bench} failed:\n{out}\n{err}");
    out.into_owned()
}

#[test]
fn call_prints_its_three_rows() {
    let out = tiny("call");
    for row in ["plain hyper echo", "function `echo`", "function `count`"] {
        assert!(out.contains(row), "no row {row:?} in:\n{out}");
    }
}

#[test]
fn counter_prints_both_levels() {
    let out = tiny("counter");
    for row in ["function `count`, `process`", "function `count`, `node`"] {
        assert_eq!(out.matches(row).count(), 2, "rows {row:?} in:\n{out}");
    }
}

#[test]
fn start_prints_its_three_rows() {
    let out = tiny("start");
    for row in ["clone3", "from the pool", "pool empty"] {
        assert!(out.contains(row), "no row {row:?} in:\n{out}");
    }
}

#[test]
fn memory_prints_both_rows() {
    let out = tiny("memory");
    for row in ["dynamic glibc", "active Denizen process"] {
        assert!(out.contains(row), "no row {row:?} in:\n{out}");
    }
}

#[test]
fn direct_prints_every_row() {
    let out = tiny("direct");
    for row in [
        "blocking TCP echo",
        "io_uring TCP echo",
        "function `echo`, relayed",
        "Redis `INCR`",
        "16 MiB",
        "wake",
    ] {
        assert!(out.contains(row), "no row {row:?} in:\n{out}");
    }
}

#[test]
fn idle_prints_time_and_memory() {
    let out = tiny("idle");
    for row in [
        "no process, no connection",
        "idle processes, 3 idle connections",
        "memory of a swapped process",
        "its sandbox has it",
        "its process is swapped out",
    ] {
        assert!(out.contains(row), "no row {row:?} in:\n{out}");
    }
}

#[test]
fn swapped_prints_its_figure() {
    assert!(tiny("swapped").contains("memory of a swapped process"));
}

#[test]
fn attack_prints_a_row_for_each() {
    let out = tiny("attack");
    for row in ["alone", "forged tokens", "half-open", "prints", "burn"] {
        assert!(out.contains(row), "no row {row:?} in:\n{out}");
    }
}
