//! `denizen-benches`: measures what SPECIFICATION.md promises.
//!
//! Every figure is taken beside a floor or a rival **in the same run**, both sides on the same cores, in alternating
//! rounds, so that a noisy machine hurts both alike; what counts is the ratio. Absolute figures of different runs must
//! not be compared. A round's figure is its median and 99th percentile; a row shows the median over rounds and the
//! range.

mod call;
mod counter;
mod figures;
mod machine;
mod memory;
mod node;
mod start;

use clap::{Parser, ValueEnum};

/// Measure Denizen beside its floors and rivals.
#[derive(Parser, Debug)]
struct Options {
    /// What to measure; everything without it
    what: Vec<Bench>,
    /// A few operations each, to see that the benchmarks work; the figures mean nothing
    #[arg(long)]
    tiny: bool,
    /// Measure the debug build (for tests of the benchmarks themselves)
    #[arg(long)]
    debug: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// A warm HTTP call beside a plain hyper echo server
    Call,
    /// A counting function beside a hyper service on Redis
    Counter,
    /// The first call of a new process beside clone3 + exec + dlopen
    Start,
    /// Memory of idle active processes beside idle glibc processes
    Memory,
}

fn main() {
    let options = Options::parse();
    let programs = machine::Programs::build(options.debug);
    println!("{}\n", machine::describe());
    let wanted = |bench| options.what.is_empty() || options.what.contains(&bench);
    if wanted(Bench::Call) {
        call::measure(&programs, options.tiny);
    }
    if wanted(Bench::Counter) {
        counter::measure(&programs, options.tiny);
    }
    if wanted(Bench::Start) {
        start::measure(&programs, options.tiny);
    }
    if wanted(Bench::Memory) {
        memory::measure(&programs, options.tiny);
    }
}
