//! `denizen-benches`: measures what SPECIFICATION.md promises.
//!
//! Every figure is taken beside a floor or a rival **in the same run**, both sides on the same cores, in alternating
//! rounds, so that a noisy machine hurts both alike; what counts is the ratio. Absolute figures of different runs must
//! not be compared. A round's figure is its median and 99th percentile; a row shows the median over rounds and the
//! range.

mod attack;
mod call;
mod counter;
mod direct;
mod figures;
mod framed;
mod idle;
mod large;
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
    /// Measure what lies beside this program, as it is, and build nothing
    #[arg(long)]
    built: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// A warm HTTP call beside a plain hyper echo server
    Call,
    /// Calls of the framed protocol beside echo servers and Redis
    Direct,
    /// Of those, only the ones with large bodies
    Large,
    /// A counting function beside a hyper service on Redis
    Counter,
    /// The first call of a new process beside clone3 + exec + dlopen
    Start,
    /// Direct calls beside others who misbehave
    Attack,
    /// Processor time and memory of a node that does nothing
    Idle,
    /// Memory of idle active processes beside idle glibc processes
    Memory,
    /// Of that, only the memory of connections
    Connections,
    /// Memory of 100,000 swapped processes: ten minutes, and only if it is asked for
    Swapped,
}

fn main() {
    let options = Options::parse();
    let programs = machine::Programs::find(options.debug, !options.built);
    println!("{}\n", machine::describe());
    let wanted = |bench| options.what.is_empty() || options.what.contains(&bench);
    if wanted(Bench::Call) {
        call::measure(&programs, options.tiny);
    }
    if wanted(Bench::Direct) {
        direct::measure(&programs, options.tiny);
    }
    if options.what.contains(&Bench::Large) {
        large::measure(&programs, options.tiny);
    }
    if wanted(Bench::Counter) {
        counter::measure(&programs, options.tiny);
    }
    if wanted(Bench::Start) {
        start::measure(&programs, options.tiny);
    }
    if wanted(Bench::Attack) {
        attack::measure(&programs, options.tiny);
    }
    if wanted(Bench::Idle) {
        idle::measure(&programs, options.tiny);
    }
    if options.what.contains(&Bench::Connections) {
        idle::measure_connections(&programs, options.tiny);
    }
    if wanted(Bench::Memory) {
        memory::measure(&programs, options.tiny);
    }
    // Not with everything else: it takes as long as all of that.
    if options.what.contains(&Bench::Swapped) {
        idle::measure_swapped(&programs, options.tiny);
    }
}
