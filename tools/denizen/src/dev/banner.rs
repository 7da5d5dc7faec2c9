//! What `dev` says when the node is up, and what it says to type next.

use std::path::Path;

use denizen_client::{Node, NodeInfo};
use serde_json::{Value, json};

use super::builder::Deployment;
use crate::{
    failure::Failure,
    place,
    settings::Settings,
    terminal::{Cell, Paint, Table, Terminal},
    units,
};

pub(crate) fn show(terminal: &Terminal, node: &Node, dir: &Path, settings: &Settings) -> Result<(), Failure> {
    let info = node.info()?;
    if terminal.json {
        return terminal
            .document(&json!({ "event": "ready", "http": node.address(), "dir": dir, "node": info }));
    }
    let paint = terminal.err;
    terminal.say(format!("\n  {} {}\n", paint.bold("denizen"), paint.dim(&info.version)));
    terminal.say(indented(&facts(node, dir, &info).render(paint)));
    let mut any_missing = false;
    for (name, consequence) in missing(&info.isolation) {
        any_missing = true;
        terminal.say(format!("  {} no {}: {consequence}", paint.yellow("!"), in_words(name)));
    }
    if any_missing {
        let doctor = format!("{} doctor", place::this_command());
        terminal.say(paint.dim(&format!(
            "    what to do about it: {doctor}; --require-isolation refuses to go on without"
        )));
    }
    if !settings.http.ip().is_loopback() {
        terminal.say(format!(
            "  {} anybody who can reach {} can call functions",
            paint.yellow("!"),
            node.address()
        ));
    }
    terminal.say("");
    Ok(())
}

fn facts(node: &Node, dir: &Path, info: &NodeInfo) -> Table {
    let mut table = Table::without_head();
    let mut row = |label: &str, value: String, style: fn(Paint, &str) -> String| {
        table.row(vec![Cell::plain(label).painted(Paint::dim), Cell::plain(value).painted(style)]);
    };
    row("address", format!("http://{}", node.address()), Paint::cyan);
    // Absent with `--data none`.
    if let Ok(data) = std::fs::read_to_string(dir.join("data-endpoint")) {
        row("data port", data.trim().to_owned(), Paint::cyan);
    }
    row("directory", dir.display().to_string(), |_, text| text.to_owned());
    let executors = units::count(u64::from(info.executors), "executor", "executors");
    row("node", format!("pid {}, {executors}, function ABI {}", info.pid, info.abi_version), |_, text| {
        text.to_owned()
    });
    row("isolation", isolation(&info.isolation), |_, text| text.to_owned());
    table
}

fn indented(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("  {line}")).collect();
    lines.join("\n")
}

fn layers(isolation: &Value) -> impl Iterator<Item = &Value> {
    isolation.get("layers").and_then(Value::as_array).into_iter().flatten()
}

fn is_active(layer: &Value) -> bool {
    layer.get("active").and_then(Value::as_bool) == Some(true)
}

fn text<'a>(layer: &'a Value, key: &str) -> &'a str {
    layer.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn isolation(isolation: &Value) -> String {
    let active: Vec<&str> =
        layers(isolation).filter(|layer| is_active(layer)).map(|layer| text(layer, "name")).collect();
    if active.is_empty() { "unknown".to_owned() } else { in_words(&active.join(", ")) }
}

/// `memory-cgroup` as people say it.
fn in_words(layer: &str) -> String {
    layer.replace('-', " ")
}

/// Name and consequence of each layer that is not there.
fn missing(isolation: &Value) -> impl Iterator<Item = (&str, &str)> {
    let missing = layers(isolation).filter(|layer| !is_active(layer));
    missing.map(|layer| (text(layer, "name"), text(layer, "consequence")))
}

/// What can be typed now, with what was really deployed.
pub(crate) fn show_next(
    terminal: &Terminal,
    node: &Node,
    named_dir: Option<&Path>,
    watching: bool,
    deployments: &[Deployment],
) {
    if terminal.json {
        return;
    }
    let paint = terminal.err;
    if let Some((app, function, input)) = deployments.iter().find_map(example_call) {
        let data = input.map_or(String::new(), |input| format!(" '{input}'"));
        let curl_data = input.map_or("-X POST".to_owned(), |input| format!("-d '{input}'"));
        let address = node.address();
        let me = place::this_command_on(named_dir);
        terminal.say(format!(
            "\n  Type next, in another terminal:\n\n    {}\n    {}\n    {}",
            paint.bold(&format!(
                "curl {curl_data} http://{address}/v1/apps/{app}/processes/alice/functions/{function}"
            )),
            paint.bold(&format!("{me} invoke {app}/alice {function}{data}")),
            paint.bold(&format!("{me} logs -f")),
        ));
    } else if deployments.is_empty() {
        terminal.say(format!(
            "  Nothing is deployed yet. Make a package:\n\n    {}",
            paint.bold("denizen new hello && cd hello && denizen dev")
        ));
    }
    let watched = if watching { "Sources are watched. " } else { "" };
    terminal.say(paint.dim(&format!("\n  {watched}Ctrl-C stops the node; state stays.\n")));
}

/// A function of each example and of the template, and an input that it takes.
const KNOWN: [(&str, Option<&str>); 4] = [
    ("increment", Some(r#"{"by":2}"#)),
    ("greet", Some(r#"{"name":"Ada"}"#)),
    ("ingest", Some("The keeper lit the lamp.")),
    ("gallery", None),
];

/// A call to begin with. For the examples and for a new package one that works as it stands; else the first function's, whose
/// input its author knows.
fn example_call(deployment: &Deployment) -> Option<(&str, &str, Option<&str>)> {
    let deployed = deployment.deployed.as_ref()?;
    let declared = |name: &str| deployed.functions.iter().find(|function| function.name == name);
    let known = KNOWN.iter().find(|(name, _)| declared(name).is_some());
    let (function, input) = match known {
        Some(&(name, input)) => (name, input),
        None => {
            let first = deployed.functions.first()?;
            (
                first.name.as_str(),
                (first.more.get("input").is_some_and(|kind| kind == "json")).then_some("{}"),
            )
        }
    };
    Some((deployed.app.as_str(), function, input))
}
