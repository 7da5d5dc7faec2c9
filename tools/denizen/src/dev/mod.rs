//! `denizen dev`: a node in this process, with what is being developed deployed to it and kept up to date.
//!
//! Threads, and what each alone does: this one waits for the end; `builder` builds and deploys, one package after another, and so never
//! lets two builds fight over a target directory; `logs` shows what functions print; `signals` asks for the end. All of
//! them speak to the node over HTTP, like any other program: a node in trouble cannot take them along.

mod banner;
mod builder;
mod watcher;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use denizen_client::{LogQuery, Node};
use denizen_image::build::Profile;
use serde_json::json;

use self::builder::Builder;
use crate::{
    cli::{self, Everywhere},
    commands::{doctor, logs},
    failure::Failure,
    host::Host,
    place::{self, EXAMPLES, Place},
    settings::Settings,
    signals,
    terminal::Terminal,
};

pub(crate) fn run(terminal: &Terminal, everywhere: &Everywhere, typed: &cli::Dev) -> Result<(), Failure> {
    let place = Place::here()?;
    // What is said of it is typed in other terminals, which stand elsewhere.
    let named_dir = everywhere.dir.as_ref().map(absolute);
    let dir = named_dir.clone().unwrap_or_else(|| place.root().join(".denizen"));
    let settings = Settings::of(typed, &dir)?;
    let packages = packages(&place, &typed.packages)?;
    doctor::refuse_if_fatal(terminal)?;

    // The node first: its spawner must be forked off before this process has threads.
    let host = Host::start(&dir, &settings)?;
    let node = host.node()?;
    let stopping = Arc::new(AtomicBool::new(false));
    stop_on_signal(*terminal, node.clone(), Arc::clone(&stopping))?;
    banner::show(terminal, &node, &dir, &settings)?;
    show_logs(*terminal, node.clone());
    Builder {
        terminal: *terminal,
        node,
        named_dir,
        stopping,
        profile: if settings.release { Profile::Release } else { Profile::Dev },
        watches: settings.watch,
    }
    .start(packages);
    host.wait_for_shutdown();
    terminal.say(terminal.err.dim("stopping"));
    let orderly = host.stop();
    if terminal.json {
        terminal.document(&json!({ "event": "stopped", "orderly": orderly }))?;
    }
    let how = if orderly { "stopped" } else { "stopped; some calls had to be broken off" };
    terminal.say(terminal.err.dim(&format!("{how}; state stays in {}", dir.display())));
    Ok(())
}

/// A signal asks the node to end as anybody else would; a second one does not wait for it.
fn stop_on_signal(terminal: Terminal, node: Node, stopping: Arc<AtomicBool>) -> Result<(), Failure> {
    signals::on_stop(move |times| {
        stopping.store(true, Ordering::Relaxed);
        if times == 1 {
            let node = node.clone();
            // On a thread of its own, so that the second signal is heard even if the node is stuck.
            thread::spawn(move || {
                if let Err(error) = node.shutdown() {
                    terminal.explain(&error.into());
                    std::process::exit(3);
                }
            });
        } else {
            // The kernel ends the sandboxes with this process.
            std::process::exit(130);
        }
    })
}

fn absolute(dir: &PathBuf) -> PathBuf {
    std::path::absolute(dir).unwrap_or_else(|_| dir.clone())
}

/// What to build: what was named; else the package here; else, in a checkout, all examples; else nothing.
fn packages(place: &Place, named: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    if !named.is_empty() {
        return named.iter().map(|name| named_package(place, name)).collect();
    }
    Ok(match place {
        Place::Package(root) => vec![root.clone()],
        Place::Checkout(root) => EXAMPLES.map(|name| place::example(root, name)).to_vec(),
        Place::Elsewhere(_) => Vec::new(),
    })
}

/// A directory, or the name of an example.
fn named_package(place: &Place, name: &Path) -> Result<PathBuf, Failure> {
    if name.join("Cargo.toml").is_file() {
        return name
            .canonicalize()
            .map_err(|error| Failure::usage(format!("{} cannot be found", name.display())).because(&error));
    }
    let word = name.to_str().unwrap_or_default();
    if EXAMPLES.contains(&word)
        && let Some(checkout) = place::checkout_around(place.root())
    {
        return Ok(place::example(&checkout, word));
    }
    Err(Failure::usage(format!("{} is no package: it has no Cargo.toml", name.display()))
        .remedy(format!("name a package directory, or in a checkout one of {}", EXAMPLES.join(", "))))
}

/// Shows log lines until the node ends. Only those from now on: what an earlier run printed is `denizen logs`' business.
fn show_logs(terminal: Terminal, node: Node) {
    let show = move || {
        let query = LogQuery { follow: true, tail: Some(0), ..LogQuery::default() };
        let shown = logs::follow(&node, &query, |line| match terminal.json {
            true => terminal.document(&json!({ "event": "log", "line": line })),
            false => terminal.answer(logs::in_words(line, terminal.out)),
        });
        if let Err(failure) = shown {
            terminal.explain(&failure);
        }
    };
    if let Err(error) = thread::Builder::new().name("logs".to_owned()).spawn(show) {
        terminal.say(format!("logs are not shown here: {error}"));
    }
}
