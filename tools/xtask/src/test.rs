//! `cargo xtask test`: every test of the workspace, then the names of those that could not run on this machine. `cargo test` hides what
//! a passing test prints, so a test that needs root, say, would pass in silence.

use std::fs;

use crate::repository::Repository;

/// Runs `cargo test` with `more` arguments after its own.
pub(crate) fn run(repository: &Repository, more: &[&str]) -> Result<(), String> {
    let skips = repository.target_dir().join(format!("skipped-tests.{}", std::process::id()));
    // An earlier process of the same number may have left one.
    let _ = fs::remove_file(&skips);
    let mut cargo = repository.cargo();
    cargo.args(["test", "--workspace", "--locked", "--no-fail-fast"]).args(more);
    let status = cargo.env("DENIZEN_TEST_SKIPS", &skips).status();
    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    let _ = fs::remove_file(&skips);
    print!("{}", closing(&skipped));
    let status = status.map_err(|error| format!("cargo cannot be run: {error}"))?;
    if status.success() { Ok(()) } else { Err("some tests failed; cargo says above which".to_owned()) }
}

/// The last words: which tests did not run, each once.
fn closing(skipped: &str) -> String {
    let mut lines: Vec<&str> = skipped.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.sort_unstable();
    lines.dedup();
    if lines.is_empty() {
        return "\nEvery test ran.\n".to_owned();
    }
    let mut text =
        format!("\n{} could not run here:\n", if lines.len() == 1 { "1 test" } else { "Some tests" });
    for line in lines {
        text.push_str(&format!("  {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::closing;

    #[test]
    fn each_skipped_test_is_named_once() {
        assert_eq!(closing(""), "\nEvery test ran.\n");
        let text = closing("b: needs root\na: needs prlimit\nb: needs root\n");
        assert_eq!(text, "\nSome tests could not run here:\n  a: needs prlimit\n  b: needs root\n");
    }
}
