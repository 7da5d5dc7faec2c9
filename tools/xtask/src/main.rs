//! Chores of the house, for people and for CI alike: `cargo xtask test | header | tidy | break`.
//!
//! No dependencies: a chore must not be what a first build waits for.

#![forbid(unsafe_code)]

mod breaks;
mod repository;
mod test;
mod tidy;

use std::{env, process::ExitCode};

use repository::Repository;

const USAGE: &str = "\
usage: cargo xtask CHORE

  test [ARGS]       run every test, and name at the end those that could not run here
  header            check that the C header says what the Rust ABI says
  tidy              check the house rules
  break --list      list the kept breakages
  break NAME...     break one mechanism each, and expect the test that guards it to fail
  break --all       all of them";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let repository = Repository::around_this_crate();
    let done = match words.as_slice() {
        ["header"] => header(&repository),
        ["test", more @ ..] => test::run(&repository, more),
        ["tidy"] => tidy_up(&repository),
        ["break", "--list"] => breaks::list(&repository),
        ["break", "--all"] => breaks::run_all(&repository),
        ["break", names @ ..] if !names.is_empty() => breaks::run(&repository, names),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(USAGE.to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// The check itself is a test of the ABI crate, which compiles C against Rust; here it only gets a name.
fn header(repository: &Repository) -> Result<(), String> {
    let mut cargo = repository.cargo();
    cargo.args(["test", "--locked", "-p", "denizen-abi"]);
    let status = cargo.status().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if status.success() {
        return Ok(());
    }
    Err("fn-abi/include/denizen.h and fn-abi/abi differ: change both, or neither".to_owned())
}

fn tidy_up(repository: &Repository) -> Result<(), String> {
    let broken = tidy::check(repository)?;
    if broken.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for rule in &broken {
        text.push_str(&format!("{rule}\n"));
    }
    Err(format!("{text}{} to tidy up", broken.len()))
}
