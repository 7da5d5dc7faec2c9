//! What a test says when the machine lacks something that it needs.
//!
//! `cargo test` hides what a passing test prints, so a test that merely returned early would pass in silence. Here it
//! leaves a line in the file that `DENIZEN_TEST_SKIPS` names, and `cargo xtask test` prints those lines as the last
//! thing that a person sees. With `DENIZEN_TEST_NO_SKIP` set, as in CI, a skip is a failure.

use std::io::Write;

/// Says that `test` did not run, and why. Call it and return.
///
/// # Panics
/// With `DENIZEN_TEST_NO_SKIP` set: there, everything that a test needs must be present.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    assert!(
        std::env::var_os("DENIZEN_TEST_NO_SKIP").is_none(),
        "{test} was skipped ({why}), and DENIZEN_TEST_NO_SKIP forbids it"
    );
    if let Some(path) = std::env::var_os("DENIZEN_TEST_SKIPS")
        && let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path)
    {
        // One write per line: several test programs append to the file at once.
        let _ = file.write_all(format!("{test}: {why}\n").as_bytes());
    }
}

/// Whether this test runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `true` if the test may go on; otherwise it has been [`skip`]ped by name.
#[must_use]
pub fn needs_root(test: &str) -> bool {
    if !is_root() {
        skip(test, "needs root");
    }
    is_root()
}

/// `true` if `program` is on the `PATH`; otherwise the test has been [`skip`]ped by name.
#[must_use]
pub fn needs_program(test: &str, program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    if !found {
        skip(test, &format!("needs the program `{program}`"));
    }
    found
}
