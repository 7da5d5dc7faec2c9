//! Files of a process in `/state`: ordinary files while it runs, there again wherever it comes back, as they were last captured.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::node::{Node, PATIENCE, Reply, Start, build_image, repository, signal};

fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| build_image(&repository().join("tools/denizen/tests/files"), "files"))
}

fn node() -> Node {
    let node = Start::new().node();
    node.deploy(image());
    node
}

fn run(node: &Node, script: &str) -> Reply {
    node.call("files", "p", "run", script.as_bytes())
}

fn done(node: &Node, script: &str) {
    let reply = run(node, script);
    assert_eq!(reply.status, 200, "{script}: {}\n{}", reply.body(), node.said());
}

/// Every file with its mode, length, time and bytes. Right after a kill the call may be one that the dead sandbox took along.
fn list(node: &Node) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let reply = node.call("files", "p", "list", b"");
        if reply.status == 200 {
            return reply.body();
        }
        let lost = reply.json()["type"] == "urn:denizen:problem:sandbox-lost";
        assert!(lost && Instant::now() < until, "{}\n{}", reply.body(), node.said());
    }
}

/// Paths alone.
fn paths(list: &str) -> Vec<&str> {
    list.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect()
}

fn swap_out(node: &Node) {
    let out = node.control("POST", "/v1/apps/files/processes/p/swap-out");
    assert_eq!(out.status, 200, "{}\n{}", out.body(), node.said());
}

fn kill_sandbox(node: &Node) {
    let pid = node.process("files", "p")["pid"].as_u64().expect("the sandbox's pid");
    signal(u32::try_from(pid).unwrap(), rustix::process::Signal::KILL);
}

const SOME: &str =
    "mkdir a/b\nwrite a/one first\nwrite a/b/two second\nfill large 200000\nmode a/one 600\nmode a/b 750";

#[test]
fn files_come_back_from_swap_as_they_were() {
    let node = node();
    done(&node, SOME);
    let before = list(&node);
    assert_eq!(paths(&before), ["a/", "a/b/", "a/b/two", "a/one", "large"]);
    swap_out(&node);
    assert_eq!(list(&node), before);
    // Whatever happens to a file is kept: changed, renamed over another, copied, deleted; a directory too.
    done(
        &node,
        "append a/one !\nrename a/b c\ncopy large c/copy\nrename c/two a/one\nremove large\nmkdir empty",
    );
    let after = list(&node);
    assert_eq!(paths(&after), ["a/", "a/one", "c/", "c/copy", "empty/"]);
    assert!(
        after.lines().any(|line| line.starts_with("a/one 644 6 ") && line.ends_with(" second")),
        "{after}"
    );
    for _ in 0..2 {
        swap_out(&node);
        assert_eq!(list(&node), after);
    }
    done(&node, "rmdir a\nrmdir c\nrmdir empty");
    swap_out(&node);
    assert_eq!(list(&node), "");
}

#[test]
fn what_was_synced_outlives_a_killed_sandbox_and_a_killed_node() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new().dir(dir.path()).node();
    node.deploy(image());
    done(&node, &format!("{SOME}\nsync"));
    let synced = list(&node);
    done(&node, "write late never captured\nremove large");
    kill_sandbox(&node);
    assert_eq!(list(&node), synced, "{}", node.said());
    done(&node, "append a/one and more\nremove a/b/two\nsync");
    let synced = list(&node);
    assert_eq!(paths(&synced), ["a/", "a/b/", "a/one", "large"]);
    node.kill();
    let mut node = Start::new().dir(dir.path()).node();
    assert_eq!(list(&node), synced, "{}", node.said());
    // An orderly end keeps what nobody synced.
    done(&node, "write last words");
    let last = list(&node);
    assert_eq!(node.stop(), Some(0), "{}", node.said());
    let node = Start::new().dir(dir.path()).node();
    assert_eq!(list(&node), last, "{}", node.said());
}

/// Killed at any moment, a process finds one capture, whole: the last one that it was told of, or one that was under way.
#[test]
fn a_kill_in_the_middle_of_a_capture_leaves_a_whole_one() {
    let node = node();
    done(&node, "write a 0\nwrite b 0\nsync");
    let told = AtomicU32::new(0);
    let killed = AtomicBool::new(false);
    for round in 1..=8_u64 {
        thread::scope(|scope| {
            let caller = scope.spawn(|| {
                // A kill between two calls is felt by neither.
                while !killed.load(Ordering::SeqCst) {
                    let number = told.load(Ordering::SeqCst) + 1;
                    let size = 200_000 + number;
                    let script = format!("write a {number}\nfill large {size}\nwrite b {number}\nsync");
                    if run(&node, &script).status != 200 {
                        return;
                    }
                    told.store(number, Ordering::SeqCst);
                }
            });
            thread::sleep(Duration::from_millis(round * 23));
            kill_sandbox(&node);
            killed.store(true, Ordering::SeqCst);
            caller.join().expect("the caller");
        });
        killed.store(false, Ordering::SeqCst);
        let listed = list(&node);
        let number = |name: &str| {
            let line = listed.lines().find(|line| line.starts_with(name)).expect("both files");
            line.rsplit(' ').next().and_then(|text| text.parse::<u32>().ok()).expect("a number")
        };
        let (a, told) = (number("a "), told.load(Ordering::SeqCst));
        assert_eq!(a, number("b "), "half of a capture: {listed}");
        assert!(a == told || a == told + 1, "{told} was synced, and there is {a}");
        if a > 0 {
            assert!(listed.contains(&format!("large 644 {} ", 200_000 + a)), "{listed}");
        }
    }
}

/// Files are no part of the transaction, and the transaction is no part of a capture.
#[test]
fn files_are_outside_of_the_invocation_that_changes_them() {
    let node = node();
    run(&node, "write kept by a call that fails\nput x 100\nsync\nfail").problem(
        500,
        "function-failed",
        "function",
    );
    kill_sandbox(&node);
    assert_eq!(paths(&list(&node)), ["kept"], "{}", node.said());
    let state = node.process("files", "p")["state_bytes"].as_u64().unwrap();
    assert!(state < 1000, "the object of the failed call was kept: {state} bytes");
}

#[test]
fn a_full_file_system_is_an_ordinary_error_of_the_function() {
    let node = node();
    let problem = run(&node, "write small x\nfill large 1100000").problem(500, "function-failed", "function");
    assert!(problem["detail"].as_str().unwrap().contains("No space left on device"), "{problem}");
    done(&node, "remove large\nfill large 900000");
    let problem = run(&node, "link x small").problem(500, "function-failed", "function");
    assert!(problem["detail"].as_str().unwrap().contains("ermission denied"), "{problem}");
    swap_out(&node);
    assert_eq!(paths(&list(&node)), ["large", "small"]);
}

/// The state has room for 2 MiB, the files for 1: with an object of 1.5 MiB there is no room for 800 KB of files.
#[test]
fn a_full_state_is_told_and_keeps_what_was_captured() {
    let node = node();
    done(&node, "write file good\nput object 1500000\ncommit\nsync");
    let good = list(&node);
    let problem = run(&node, "write file better\nfill much 800000\nsync");
    let problem = problem.problem(507, "state-quota", "function");
    assert!(problem["detail"].as_str().unwrap().contains("files"), "{problem}");
    assert_eq!(paths(&list(&node)), ["file", "much"], "the files themselves are as they were made");
    // At the end there is nobody to tell but whoever reads the log.
    swap_out(&node);
    assert_eq!(list(&node), good, "{}", node.said());
    let logs = node.ok(&["logs", "files/p"]);
    assert!(logs.contains("files in /state could not be kept: state would take"), "{logs}");
    done(&node, "write file better\nsync");
    kill_sandbox(&node);
    assert!(list(&node).ends_with(" better"), "{}", node.said());
}

/// It never says that it kept them: whoever asked is told, and nothing that was captured goes.
#[test]
fn files_that_a_sandbox_does_not_keep_at_its_end_are_told() {
    let node = node();
    done(&node, "write file captured\nsync");
    let captured = list(&node);
    done(&node, "write file lost");
    let pid = u32::try_from(node.process("files", "p")["pid"].as_u64().unwrap()).unwrap();
    signal(pid, rustix::process::Signal::STOP);
    let out = node.control("POST", "/v1/apps/files/processes/p/swap-out");
    let problem = out.problem(500, "files-lost", "host");
    assert!(problem["detail"].as_str().unwrap().contains("/state"), "{problem}");
    assert_eq!(node.process("files", "p")["phase"], "placed", "the state is where it was");
    let logs = node.ok(&["logs", "files/p"]);
    assert!(logs.contains("what had changed in /state"), "{logs}");
    swap_out(&node);
    assert_eq!(list(&node), captured);
}

/// All that it has is in the log.
#[test]
fn objects_need_no_last_word_of_their_sandbox() {
    let node = Node::with_faulty();
    assert_eq!(node.call("faulty", "p", "count", b"").status, 200);
    let pid = u32::try_from(node.process("faulty", "p")["pid"].as_u64().unwrap()).unwrap();
    signal(pid, rustix::process::Signal::STOP);
    let out = node.control("POST", "/v1/apps/faulty/processes/p/swap-out");
    assert_eq!(out.status, 200, "{}", out.body());
    assert_eq!(node.call("faulty", "p", "value", b"").body(), "1");
}

#[test]
fn files_are_read_without_a_node_and_are_in_no_export() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new().dir(dir.path()).node();
    node.deploy(image());
    done(&node, &format!("{SOME}\nput x 10\ncommit\nsync"));
    let online = node.denizen(&["state", "files", "files/p"]);
    assert_eq!(online.status.code(), Some(2), "{}", String::from_utf8_lossy(&online.stderr));
    assert_eq!(node.stop(), Some(0), "{}", node.said());
    let listed = node.ok(&["state", "files", "files/p"]);
    for line in ["a/", "a/b/two", "a/one", "large"] {
        assert!(listed.lines().any(|found| found.starts_with(&format!("{line} "))), "{line}: {listed}");
    }
    assert_eq!(node.ok(&["state", "files", "files/p", "a/one"]), "first");
    assert_eq!(node.ok(&["state", "files", "files/p", "/state/a/b/two"]), "second");
    assert_eq!(node.denizen(&["state", "files", "files/p", "a/none"]).status.code(), Some(2));
    let export = node.denizen(&["state", "export", "files/p"]);
    let said = String::from_utf8_lossy(&export.stderr);
    assert!(export.status.success() && said.contains("not in the export"), "{said}");
    assert!(!String::from_utf8_lossy(&export.stdout).contains("a/one"));
}

#[test]
fn an_ordinary_user_keeps_files_too() {
    let Some((_home, program, dir)) = crate::ordinary_user::as_nobody("an_ordinary_user_keeps_files_too")
    else {
        return;
    };
    let node = Start::new().by(crate::ordinary_user::NOBODY, &program).dir(&dir).node();
    crate::ordinary_user::deploy(&node, "files", image());
    done(&node, &format!("{SOME}\nsync"));
    let synced = list(&node);
    kill_sandbox(&node);
    assert_eq!(list(&node), synced, "{}", node.said());
    swap_out(&node);
    assert_eq!(list(&node), synced, "{}", node.said());
    run(&node, "fill large 1100000").problem(500, "function-failed", "function");
}
