//! Files of a process in `/state`: ordinary files while it runs, there again wherever it comes back, as they were last captured.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::node::{
    DENIZEN, Node, PATIENCE, Reply, Start, await_within, build_image, repository, scratch, signal, text,
};

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
const TOO_MUCH: &str = "write file better\nfill much 800000";

/// A process that has captured `file`, and cannot capture what it has made since. What was captured.
fn with_too_much(node: &Node) -> String {
    done(node, "write file good\nput x 1500000\ncommit\nsync");
    let good = list(node);
    done(node, TOO_MUCH);
    good
}

#[test]
fn a_full_state_is_told_and_keeps_what_was_captured() {
    let node = node();
    let good = with_too_much(&node);
    let problem = run(&node, "sync").problem(507, "state-quota", "function");
    assert!(problem["detail"].as_str().unwrap().contains("files"), "{problem}");
    assert_eq!(paths(&list(&node)), ["file", "much"], "the files themselves are as they were made");
    kill_sandbox(&node);
    assert_eq!(list(&node), good, "{}", node.said());
}

/// Whoever wants its end is told, as often as they ask, and the sandbox goes on with what it has.
#[test]
fn a_sandbox_whose_files_cannot_be_kept_is_not_swapped_out() {
    let node = node();
    with_too_much(&node);
    let pid = node.process("files", "p")["pid"].clone();
    for _ in 0..2 {
        let out = node.control("POST", "/v1/apps/files/processes/p/swap-out");
        let problem = out.problem(409, "files-not-kept", "function");
        assert_eq!((&problem["retry"], &problem["process"]), (&"safe".into(), &"p".into()), "{problem}");
        assert!(problem["cause"].as_str().unwrap().contains("state would take"), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("nothing is lost"), "{problem}");
    }
    let said = node.denizen(&["swap", "out", "files/p"]);
    assert!(!said.status.success(), "{}", text(&said));
    assert!(text(&said).contains("limits.state"), "{}", text(&said));
    let now = node.process("files", "p");
    assert_eq!((&now["phase"], &now["pid"]), (&"active".into(), &pid), "{now}");
    let made = list(&node);
    assert!(paths(&made) == ["file", "much"] && made.contains(" better"), "{made}");
    // With less to keep it is, all of it.
    done(&node, "fill much 1000");
    let made = list(&node);
    swap_out(&node);
    assert_eq!(list(&node), made);
}

/// It does not live for ever, and what it takes along is told where somebody looks.
#[test]
fn a_sandbox_whose_files_cannot_be_kept_is_ended_some_day_and_says_so() {
    let node = Start::new().args(&["--idle", "100ms"]).node();
    node.deploy(image());
    let good = with_too_much(&node);
    let failed = node.await_phase("files", "p", "failed");
    assert_eq!(failed["failure"]["type"], "urn:denizen:problem:files-lost", "{failed}");
    assert_eq!(failed["failure"]["blame"], "function", "{failed}");
    let logs = node.ok(&["logs", "files/p"]);
    let tries = logs.lines().filter(|line| line.contains("nothing is lost")).count();
    assert!(tries >= 29, "it was given up after {tries} tries: {logs}");
    assert_eq!(list(&node), good, "{}", node.said());
}

#[test]
fn files_that_a_node_cannot_keep_when_it_stops_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new().dir(dir.path()).node();
    node.deploy(image());
    let good = with_too_much(&node);
    assert_eq!(node.stop(), Some(0), "{}", node.said());
    assert!(node.said().contains("what had changed in /state could not be captured"), "{}", node.said());
    let node = Start::new().dir(dir.path()).node();
    let now = node.process("files", "p");
    assert_eq!((&now["phase"], &now["failure"]["blame"]), (&"failed".into(), &"function".into()), "{now}");
    assert_eq!(list(&node), good, "{}", node.said());
}

/// The same image with other limits: lines of its manifest and what is in their place.
fn image_with(name: &str, changes: &[(&str, &str)]) -> PathBuf {
    let folder = scratch().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let unpacked = Command::new("tar").arg("-xf").arg(image()).arg("-C").arg(&folder).status().unwrap();
    assert!(unpacked.success());
    let manifest = repository().join("tools/denizen/tests/files/denizen.toml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let manifest = changes.iter().fold(manifest, |text, (from, to)| text.replace(from, to));
    std::fs::write(folder.join("other.toml"), manifest).unwrap();
    let archive = folder.join("other.dzi");
    let built = Command::new(DENIZEN)
        .args(["image", "build", "-o"])
        .arg(&archive)
        .arg("--plugin")
        .arg(folder.join("plugin.so"))
        .arg("--manifest")
        .arg(folder.join("other.toml"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", text(&built));
    archive
}

/// The way out that the problem names: what did not fit is not lost on the way.
#[test]
fn an_image_with_more_room_takes_over_files_that_could_not_be_kept() {
    let node = node();
    with_too_much(&node);
    let made = list(&node);
    let before = node.process("files", "p")["epoch"].clone();
    node.deploy(&image_with("roomier", &[("state = \"2MiB\"", "state = \"8MiB\"")]));
    assert_eq!(list(&node), made, "{}", node.said());
    assert_ne!(node.process("files", "p")["epoch"], before, "it did not move");
    swap_out(&node);
    assert_eq!(list(&node), made);
}

/// The sandbox of a process that does not get what it wants is no seat for ever either.
#[test]
fn a_sandbox_whose_files_cannot_be_kept_is_passed_over_when_room_is_made() {
    let node = Start::new().args(&["--max-active", "2"]).node();
    node.deploy(image());
    with_too_much(&node);
    let made = list(&node);
    for process in ["q", "r", "s"] {
        let reply = node.call("files", process, "run", b"write a b");
        assert_eq!(reply.status, 200, "{process}: {}\n{}", reply.body(), node.said());
    }
    assert_eq!(list(&node), made);
}

/// What is captured of a process now.
fn captured(node: &Node) -> String {
    node.ok(&["--json", "state", "files", "files/p"])
}

/// Also of functions that run beside others, and nobody has to call again for it. Nobody does: what a call left is captured beside the
/// next one, and to ask for the captured files is one.
#[test]
fn what_a_last_call_leaves_is_captured_when_calls_have_paused() {
    thread::scope(|scope| {
        for function in ["run", "scribble", "scribble_beside"] {
            scope.spawn(move || leave_behind(function));
        }
    });
}

fn leave_behind(function: &str) {
    let node = node();
    let reply = node.call("files", "p", function, b"write left behind");
    assert_eq!(reply.status, 200, "{}", reply.body());
    let commit = || node.process("files", "p")["commit"].as_u64().expect("a commit");
    let before = commit();
    // Before it has been idle for so long that it is swapped out, which captures, too.
    await_within(PATIENCE / 2, || commit() > before, || format!("{function}: {}", node.said()));
    kill_sandbox(&node);
    assert_eq!(paths(&list(&node)), ["left"], "{function}");
}

/// Nor need they pause.
#[test]
fn what_reading_functions_leave_is_captured_while_they_go_on() {
    let node = node();
    let until = Instant::now() + PATIENCE;
    for number in 0.. {
        let reply = node.call("files", "p", "scribble", format!("write left {number}").as_bytes());
        assert_eq!(reply.status, 200, "{}", reply.body());
        if number % 64 == 0 && captured(&node).contains("left") {
            break;
        }
        assert!(Instant::now() < until, "{}", node.said());
        thread::sleep(Duration::from_millis(20));
    }
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

/// Lists, gets and unpacks what was captured of a process, whatever it is doing.
fn assert_captured(node: &Node) {
    let listed = node.ok(&["state", "files", "files/p"]);
    for line in ["a/", "a/b/two", "a/one", "large", "sparse"] {
        assert!(listed.lines().any(|found| found.starts_with(&format!("{line} "))), "{line}: {listed}");
    }
    assert!(!listed.contains("late"), "it was not captured: {listed}");
    assert_eq!(node.ok(&["state", "files", "files/p", "a/one"]), "first");
    assert_eq!(node.ok(&["state", "files", "files/p", "/state/a/b/two"]), "second");
    for none in ["a/none", "a", "a/b/../one"] {
        let output = node.denizen(&["state", "files", "files/p", none]);
        assert_eq!(output.status.code(), Some(2), "{none}: {}", text(&output));
    }
    let large = node.denizen(&["state", "files", "files/p", "large"]).stdout;
    assert!(large.len() == 200_000 && large[..8] != large[8..16], "{} bytes", large.len());
    let sparse = node.denizen(&["state", "files", "files/p", "sparse"]).stdout;
    assert!(sparse.len() == 700_001 && sparse.iter().all(|byte| *byte == 0), "{} bytes", sparse.len());
    let unpacked = tempfile::tempdir().unwrap();
    let archive = unpacked.path().join("files.tar");
    node.ok(&["state", "files", "files/p", "--tar", "-o", archive.to_str().unwrap()]);
    let tar = Command::new("tar").arg("-xpf").arg(&archive).arg("-C").arg(unpacked.path()).output().unwrap();
    assert!(tar.status.success(), "{}", text(&tar));
    let read = |path: &str| std::fs::read(unpacked.path().join(path)).unwrap();
    assert_eq!(
        (read("a/one"), read("a/b/two"), read("large") == large),
        (b"first".to_vec(), b"second".to_vec(), true)
    );
    assert_eq!(read("sparse"), sparse);
    assert_eq!(read(&format!("{LONG}/x")), b"deep");
    let mode = std::fs::metadata(unpacked.path().join("a/one")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let export = node.denizen(&["state", "export", "files/p"]);
    let said = String::from_utf8_lossy(&export.stderr);
    assert!(export.status.success() && said.contains("not in the export"), "{said}");
    assert!(!String::from_utf8_lossy(&export.stdout).contains("a/one"));
}

/// A path that is too long for a plain entry of an archive.
const LONG: &str = "a/very/long/path/that/has/many/words/in/it/so/that/it/does/not/fit/into/the/field/of/an/entry/of/an/archive/at/all";

#[test]
fn captured_files_are_read_wherever_the_process_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Start::new().dir(dir.path()).node();
    node.deploy(image());
    done(
        &node,
        &format!("{SOME}\nsparse sparse 700001\nmkdir {LONG}\nwrite {LONG}/x deep\nput x 10\ncommit\nsync"),
    );
    run(&node, "write late not captured");
    assert_captured(&node);
    done(&node, "remove late");
    swap_out(&node);
    assert_captured(&node);
    assert_eq!(node.process("files", "p")["phase"], "swapped", "a sandbox was started to look");
    // Only its owner.
    for path in ["files", "files/a%2Fone", "files.tar"] {
        let path = format!("/v1/apps/files/processes/p/{path}");
        node.get(&path).problem(401, "bad-token", "caller");
    }
    assert_eq!(node.stop(), Some(0), "{}", node.said());
    assert_captured(&node);
}

/// Whatever its length, it is never whole in the node.
#[test]
fn a_large_file_is_streamed() {
    const BYTES: usize = 60_000_000;
    let changes = [
        ("state = \"2MiB\"", "state = \"256MiB\""),
        ("files = \"1MiB\"", "files = \"64MiB\""),
        ("memory = \"64MiB\"", "memory = \"512MiB\""),
    ];
    let node = Start::new().node();
    node.deploy(&image_with("large", &changes));
    done(&node, &format!("fill large {BYTES}\nsync"));
    for what in [&["large"][..], &["--tar"]] {
        let before = peak_bytes(&node);
        let mut command = Command::new(DENIZEN);
        command.args(["state", "files", "files/p"]).args(what).env("DENIZEN_DIR", node.dir());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let bytes = std::io::copy(&mut child.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
        assert!(child.wait().unwrap().success() && bytes >= BYTES as u64, "{bytes} bytes of {what:?}");
        let grown = peak_bytes(&node) - before;
        assert!(grown < BYTES as u64 / 2, "{grown} bytes more for {what:?}");
        swap_out(&node);
    }
}

/// The most memory that the node itself has had.
fn peak_bytes(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
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
