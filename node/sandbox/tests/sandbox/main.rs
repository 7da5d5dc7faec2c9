//! Real sandboxes on the real kernel: as root, and (the whole of it again) as an ordinary user.
//!
//! The spawner executes this very program, so the tests bring their own `main`: it is the spawner, the runner inside a
//! sandbox ([`runner`]), an agent that a test kills ([`agents`]), or the list of tests, which takes a name filter like any.

#![expect(
    clippy::unwrap_used,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "a test that brings its own main is not known to be one; the casts build hostile arguments"
)]

mod agents;
mod evidence;
mod lifecycle;
mod limits;
mod node;
#[path = "../../../ring/tests/raw/mod.rs"]
mod raw;
mod rings;
mod runner;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test, and whether it has anything to show as an ordinary user.
struct Test {
    name: &'static str,
    run: fn(),
}

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        const TESTS: &[Test] = &[$(Test { name: stringify!($name), run: $module::$name }),*];
    };
}

tests! {
    lifecycle::a_sandbox_waits_loads_seals_and_answers,
    lifecycle::an_image_is_loaded_from_the_store,
    lifecycle::a_constructor_is_confined_already,
    lifecycle::a_missing_image_and_a_bad_digest_are_named,
    lifecycle::two_hundred_spawns_leave_nothing_behind,
    lifecycle::who_waits_is_not_woken_when_its_answer_is_read,
    lifecycle::a_dropped_sandbox_dies_and_its_end_is_told,
    lifecycle::a_stopped_sandbox_blocks_nobody,
    lifecycle::the_report_names_every_layer_and_require_refuses,
    lifecycle::a_killed_agent_leaves_no_sandbox,
    lifecycle::a_killed_agent_takes_a_stopped_spawner_along,
    lifecycle::a_predecessor_is_killed_at_start,
    lifecycle::a_lost_spawner_is_reported,
    limits::memory_without_end_is_stopped_by_rlimit,
    limits::memory_without_end_is_stopped_by_the_control_group,
    limits::threads_without_end_are_stopped,
    limits::a_stack_overflow_is_named,
    limits::an_abort_a_fault_and_a_division_are_named,
    limits::a_forbidden_call_is_named_with_its_invocation,
    limits::a_call_of_another_architecture_is_killed,
    limits::limits_reach_the_control_group,
    evidence::what_a_sandbox_sees,
    evidence::a_sandbox_holds_exactly_its_descriptors,
    evidence::files_are_opened_only_as_granted,
    evidence::files_of_its_own_are_ordinary_files_in_bounds,
    evidence::segments_come_while_functions_run,
    evidence::a_thread_from_before_the_seal_is_sealed_too,
    evidence::two_sandboxes_are_two_users,
    rings::a_ring_serves_the_connections_that_the_agent_installs_and_nothing_else,
    rings::a_ring_that_is_not_admitted_is_closed,
    rings::a_spawner_without_rings_makes_none,
    rings::a_dead_sandbox_lets_its_connections_go_with_the_agents_ring,
    rings::requests_without_end_are_stopped_by_the_control_group,
}

fn main() -> ExitCode {
    denizen_sandbox::run_if_spawner(runner::run);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--as-agent") => agents::run(&arguments[1..]),
        Some("--list") => {
            TESTS.iter().for_each(|test| println!("{}: test", test.name));
            ExitCode::SUCCESS
        }
        _ => run_tests(&arguments),
    }
}

/// Runs what the filter names; as root, then again as an ordinary user in a process of its own.
fn run_tests(arguments: &[String]) -> ExitCode {
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let chosen = TESTS
        .iter()
        .filter(|test| filters.is_empty() || filters.iter().any(|part| test.name.contains(*part)));
    let user = if node::is_root() { "root" } else { "user" };
    let mut failed = 0;
    for test in chosen {
        let passed = catch_unwind(AssertUnwindSafe(test.run)).is_ok();
        println!("test {} (as {user}) ... {}", test.name, if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    if node::is_root() && !agents::run_as_ordinary_user(arguments) {
        failed += 1;
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
