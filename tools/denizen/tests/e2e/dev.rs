//! `denizen dev` beside an editor: build, change, rebuild, without losing state. And `denizen new`.

use crate::node::{DENIZEN, Node, PATIENCE, Start, await_within, text};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// A fresh package made by `denizen new` in a folder outside the repository.
fn new_package(parent: &Path) -> std::path::PathBuf {
    let output = Command::new(DENIZEN).args(["new", "hello"]).current_dir(parent).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    parent.join("hello")
}

/// Builds of packages share one target folder, so that the SDK's dependencies are compiled once.
fn start(package: &Path) -> Node {
    Start::new().cwd(package).dir(&package.join(".denizen")).node()
}

fn await_deployed(node: &Node, app: &str) {
    await_image(node, app, |_| true);
}

fn await_image(node: &Node, app: &str, wanted: impl Fn(&str) -> bool) -> String {
    let until = Instant::now() + PATIENCE * 5;
    loop {
        let reply = node.get(&format!("/v1/apps/{app}/image"));
        if reply.status == 200 {
            let image = reply.json()["image"].as_str().expect("an image id").to_owned();
            if wanted(&image) {
                return image;
            }
        }
        assert!(Instant::now() < until, "{app} is not deployed:\n{}", node.said());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_new_package_runs_and_changes_without_losing_its_state() {
    let parent = tempfile::tempdir().unwrap();
    let package = new_package(parent.path());
    let source = package.join("src/lib.rs");
    std::fs::write(&source, VERSION_1).unwrap();
    let node = start(&package);
    await_deployed(&node, "hello");
    assert_eq!(node.call("hello", "p", "count", b"").body(), "1");
    let first = await_image(&node, "hello", |_| true);

    // A change of code: the state stays, the new code runs.
    std::fs::write(&source, VERSION_1.replace("c.count += 1", "c.count += 10")).unwrap();
    let second = await_image(&node, "hello", |image| image != first);
    assert_eq!(node.call("hello", "p", "count", b"").body(), "11");

    // A change that does not compile: said, and the old plugin serves.
    std::fs::write(&source, "this is not Rust").unwrap();
    node.await_said(&["error"]);
    assert_eq!(node.call("hello", "p", "count", b"").body(), "21");

    // A change of the state's layout: both layouts are shown, and the old plugin serves.
    std::fs::write(&source, VERSION_1.replace("count: u64,", "count: u64, name: String,")).unwrap();
    node.await_said(&["count: u64", "name: String", "denizen rm", "#[migrate]"]);
    assert_eq!(node.get("/v1/apps/hello/image").json()["image"], second.as_str());
    assert_eq!(node.call("hello", "p", "count", b"").body(), "31");

    // The same change with a way from the old layout: it is taken, and the state comes along.
    let migrating = VERSION_1.replace("count: u64,", "count: u64, name: String,") + FROM_VERSION_1;
    std::fs::write(&source, migrating).unwrap();
    let third = await_image(&node, "hello", |image| image != second);
    assert_eq!(node.call("hello", "p", "count", b"").body(), "32");

    // Each change made an image: the one that runs and the one before it stay.
    let names = || -> Vec<String> {
        let names = std::fs::read_dir(node.dir().join("images")).unwrap().flatten();
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let only_these = || {
        let names = names();
        names.len() == 2 && names.contains(&second) && names.contains(&third)
    };
    await_within(PATIENCE, only_these, || format!("{:?}\n{}", names(), node.said()));
}

const FROM_VERSION_1: &str = r#"
#[state(name = "Counter")]
struct Counter1 {
    count: u64,
}

#[migrate]
fn from_version_1(old: Counter1) -> Counter {
    Counter { count: old.count, name: String::new() }
}
"#;

const VERSION_1: &str = r#"
use denizen::prelude::*;

#[state]
#[derive(Default)]
pub struct Counter {
    count: u64,
}

#[function]
fn count(cx: &mut Context) -> Result<String> {
    let mut c = cx.edit_or_default::<Counter>("counter")?;
    c.count += 1;
    Ok(c.count.to_string())
}

denizen::export!(count);
"#;

#[test]
fn the_template_itself_works_and_its_readme_is_true() {
    let parent = tempfile::tempdir().unwrap();
    let package = new_package(parent.path());
    let node = start(&package);
    await_deployed(&node, "hello");
    let functions = node.get("/v1/apps/hello/image").json();
    let name = functions["functions"][0]["name"].as_str().expect("a function").to_owned();
    let readme = std::fs::read_to_string(package.join("README.md")).expect("a README");
    assert!(readme.contains(&name) && readme.contains("denizen dev"), "{readme}");
}

#[test]
fn names_that_are_no_packages_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    for name in ["..", "a/b", "", "-x", "fn", "1two", "übung"] {
        let output =
            Command::new(DENIZEN).args(["new", "--", name]).current_dir(parent.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{name:?}: {}", text(&output));
    }
    new_package(parent.path());
    let again = Command::new(DENIZEN).args(["new", "hello"]).current_dir(parent.path()).output().unwrap();
    assert_eq!(again.status.code(), Some(2), "{}", text(&again));
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1, "nothing else was made");
}

#[test]
fn ctrl_c_during_a_build_is_nobodys_fault() {
    let parent = tempfile::tempdir().unwrap();
    let package = new_package(parent.path());
    let node = start(&package);
    node.await_said(&["Compiling"]);
    // As a terminal does it: the signal goes to cargo as well.
    let cargo = children(node.pid());
    assert!(!cargo.is_empty(), "{}", node.said());
    for pid in cargo.into_iter().chain([node.pid()]) {
        crate::node::signal(pid, rustix::process::Signal::INT);
    }
    node.await_said(&["state stays in"]);
    let said = node.said();
    assert!(!said.contains("does not build") && !said.contains("Type next"), "{said}");
}

/// The processes that `pid` started and that are called cargo.
fn children(pid: u32) -> Vec<u32> {
    let of = |stat: &str| -> Option<(u32, u32, bool)> {
        let (head, rest) = stat.rsplit_once(") ")?;
        let (own, name) = head.split_once(" (")?;
        let parent = rest.split(' ').nth(1)?;
        Some((own.parse().ok()?, parent.parse().ok()?, name == "cargo"))
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let found = stats.filter_map(|stat| of(&stat)).filter(|&(_, parent, is_cargo)| parent == pid && is_cargo);
    found.map(|(own, _, _)| own).collect()
}

#[test]
fn ctrl_c_stops_cleanly() {
    let mut node = Node::with_faulty();
    node.call("faulty", "p", "count", b"");
    let sandbox = node.process("faulty", "p")["pid"].as_u64().unwrap();
    assert_eq!(node.stop_by(rustix::process::Signal::INT), Some(0), "{}", node.said());
    assert!(!crate::node::is_alive(sandbox), "its sandbox goes on");
    node.await_said(&["state stays in"]);
    assert!(!node.said().contains("panicked"), "{}", node.said());
}
