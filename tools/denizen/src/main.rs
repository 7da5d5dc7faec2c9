//! The `denizen` command. One program, three lives: what a person types; the spawner that the node starts from it; and, forked from
//! that, each sandbox. The latter two never come past the first line of `main`.
//!
//! Here is only the talk with people: which words there are (`cli`), where things are (`place`, `settings`), how an answer or an error
//! looks (`terminal`, `failure`). What a node does is in the crates of `node/` and `sched/`, and is reached over HTTP like from
//! any other program, also by `dev` and `demo`, which start one in this process (`host`).

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod dev;
mod failure;
mod host;
mod layout;
mod packing;
mod place;
mod sdk;
mod settings;
mod signals;
mod target;
mod terminal;
mod units;

use std::{
    env,
    io::{self, Write as _},
    panic,
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};

use crate::{
    cli::{Cli, Command},
    commands::{demo, doctor, image, invoke, load, logs, new, processes, state, token},
    failure::Failure,
    terminal::Terminal,
};

fn main() -> ExitCode {
    denizen_sandbox::run_if_spawner(denizen_runner::serve);

    speak_plainly_of_bugs();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&without_settings(error)),
    };
    let terminal = Terminal::new(cli.everywhere.json);
    match panic::catch_unwind(|| run(&terminal, &cli)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            terminal.explain(&failure);
            failure.exit_code()
        }
        Err(_) => ExitCode::from(3),
    }
}

/// The same error, told as if no setting came from the environment: the usage in it would otherwise demand `--dir` of who has set
/// `DENIZEN_DIR`.
fn without_settings(error: clap::Error) -> clap::Error {
    let plain = Cli::command().mut_arg("dir", |dir| dir.env(None::<&str>));
    plain
        .try_get_matches_from(env::args_os())
        .err()
        .filter(|plain| plain.kind() == error.kind())
        .unwrap_or(error)
}

/// What was typed makes no command, or asks for help. Programs, which say `--json`, get what they get for every other failure.
fn not_understood(error: &clap::Error) -> ExitCode {
    let wants_json = env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
    if !wants_json || !error.use_stderr() {
        // Help and version end here, too, with 0.
        error.exit();
    }
    let failure = Failure::of_usage(error);
    Terminal::new(true).explain(&failure);
    failure.exit_code()
}

/// A panic is a bug of this program, and says so instead of unwinding a stack before people; those who want the stack ask for it.
fn speak_plainly_of_bugs() {
    if env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        return;
    }
    panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let text =
            payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        let what = text.unwrap_or("it does not say why");
        let place =
            panic.location().map_or(String::new(), |place| format!(" ({}:{})", place.file(), place.line()));
        let words = format!(
            "error: denizen has a bug: {what}{place}\n  fault   the host's\n  remedy  please report it; RUST_BACKTRACE=1 shows more\n"
        );
        // Nobody may be listening; a panic in a panic helps nobody.
        let _ = io::stderr().lock().write_all(words.as_bytes());
    }));
}

fn run(terminal: &Terminal, cli: &Cli) -> Result<(), Failure> {
    let everywhere = &cli.everywhere;
    match &cli.command {
        Command::Dev(typed) => dev::run(terminal, everywhere, typed),
        Command::New(typed) => new::run(terminal, typed),
        Command::Demo(typed) => demo::run(terminal, typed),
        Command::Doctor => doctor::run(terminal),
        Command::Invoke(typed) => invoke::run(terminal, everywhere, typed),
        Command::Load(typed) => load::run(terminal, everywhere, typed),
        Command::Ps(typed) => processes::ps(terminal, everywhere, typed),
        Command::Logs(typed) => logs::run(terminal, everywhere, typed),
        Command::Image(typed) => image::run(terminal, everywhere, typed),
        Command::Create(typed) => processes::create(terminal, everywhere, typed),
        Command::Swap(typed) => processes::swap(terminal, everywhere, typed),
        Command::State(typed) => state::run(terminal, everywhere, typed),
        Command::Rm(typed) => processes::rm(terminal, everywhere, typed),
        Command::Token(typed) => token::run(terminal, everywhere, typed),
        Command::Completions(typed) => completions(terminal, typed),
    }
}

fn completions(terminal: &Terminal, typed: &cli::Completions) -> Result<(), Failure> {
    // Into memory first: the generator panics when its output cannot be written.
    let mut script = io::Cursor::new(Vec::new());
    clap_complete::generate(typed.shell, &mut Cli::command(), "denizen", &mut script);
    terminal.raw(script.get_ref())
}
