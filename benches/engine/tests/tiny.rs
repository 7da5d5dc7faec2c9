//! Benchmarks rot unless they run: each of them, a few operations, on the debug build.

use std::process::Command;

#[test]
fn every_benchmark_runs_and_prints_its_rows() {
    let output = Command::new(env!("CARGO_BIN_EXE_denizen-bench-engine"))
        .args(["--tiny"])
        .output()
        .expect("the benchmark program runs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "it failed:\n{out}\n{err}");
    for row in [
        "hot get, 64 B",
        "random get, 10000 keys",
        "first get, 1048576 B",
        "redis",
        "process, 4096 B",
        "prepared between",
        "node, 64 B",
        "16 committers",
        "one snapshot held",
        "192 B to the tail",
        "overwrites of 1000 keys",
        "compaction beside",
        "opened in",
    ] {
        assert!(out.contains(row), "no row {row:?} in:\n{out}");
    }
}
