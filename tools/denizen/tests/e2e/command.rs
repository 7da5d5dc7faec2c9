//! The command as a person or a script uses it: what goes where, and which exit code says what.

use crate::node::{DENIZEN, Node, text};
use std::process::{Command, Stdio};

#[test]
fn answers_on_stdout_talk_on_stderr() {
    let node = Node::with_faulty();
    let output = node.denizen(&["invoke", "faulty/p", "echo", "hello"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    assert_eq!(output.stdout, b"hello", "the answer and nothing else");
}

#[test]
fn input_comes_from_a_file_or_standard_input() {
    use std::io::Write;
    let node = Node::with_faulty();
    let file = node.dir().join("input");
    std::fs::write(&file, b"from a file").unwrap();
    assert_eq!(node.ok(&["invoke", "faulty/p", "echo", &format!("@{}", file.display())]), "from a file");
    let mut child = Command::new(DENIZEN)
        .args(["invoke", "faulty/p", "echo", "-"])
        .env("DENIZEN_DIR", node.dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"from a pipe").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"from a pipe");
}

#[test]
fn the_exit_code_says_whose_fault_it_was() {
    let node = Node::with_faulty();
    for (words, code) in [
        (&["invoke", "faulty/p", "fail"][..], 1),
        (&["invoke", "faulty/p", "panic"], 1),
        (&["invoke", "faulty/p", "nothing"], 2),
        (&["invoke", "nobody/p", "count"], 2),
        (&["invoke", "faulty/../p", "count"], 2),
        (&["create", "nosuch/p"], 2),
        (&["logs", "nosuch"], 2),
        (&["logs", "faulty/nosuch"], 2),
        (&["logs", "faulty/nosuch", "--json"], 2),
        (&["invoke"], 2),
        (&["frobnicate"], 2),
    ] {
        let output = node.denizen(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", text(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{words:?}: {}", text(&output));
    }
    let nowhere = tempfile::tempdir().unwrap();
    let output = Command::new(DENIZEN)
        .args(["ps", "--dir"])
        .arg(nowhere.path())
        .current_dir(nowhere.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3), "no node there: {}", text(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("denizen dev"), "{}", text(&output));
}

#[test]
fn what_makes_no_command_is_told_to_programs_in_json() {
    for words in
        [&["frobnicate", "--json"][..], &["--json"], &["image", "rm", "--json"], &["ps", "--jsn", "--json"]]
    {
        let output = Command::new(DENIZEN).args(words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {}", text(&output));
        assert!(output.stdout.is_empty(), "{words:?}: {}", text(&output));
        let said: serde_json::Value =
            serde_json::from_slice(&output.stderr).unwrap_or_else(|_| panic!("{words:?}: {}", text(&output)));
        assert_eq!(said["error"]["blame"], "caller", "{said}");
        for field in ["title", "remedy"] {
            assert!(said["error"][field].as_str().is_some_and(|text| !text.is_empty()), "{said}");
        }
    }
    // The usage demands nothing that a setting has said.
    let output = Command::new(DENIZEN).arg("invoke").env("DENIZEN_DIR", "/nowhere").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Usage: denizen invoke <APP/PROCESS> <FUNCTION> [DATA]"), "{said}");
    // Help is what was asked for.
    let help = Command::new(DENIZEN).args(["ps", "--help", "--json"]).output().unwrap();
    assert!(help.status.success() && !help.stdout.is_empty(), "{}", text(&help));
}

/// Each command, in an order in which each has something to do.
#[test]
fn every_command_answers_in_json() {
    let node = Node::with_faulty();
    let archive = crate::node::faulty_image().to_str().unwrap();
    let plugin = crate::node::compile_c("json", &crate::bad_images::c_plugin("", "DZ_ABI_VERSION"), &[]);
    for words in [
        &["invoke", "faulty/p", "count"][..],
        &["invoke", "faulty/p", "speak"],
        &["ps"],
        &["logs"],
        &["state", "ls", "faulty/p"],
        &["state", "get", "faulty/p", "count"],
        &["create", "faulty/made"],
        &["swap", "out", "faulty/p"],
        &["swap", "in", "faulty/p"],
        &["image", "build", "--plugin", plugin.to_str().unwrap()],
        &["image", "deploy", "--app", "second", archive],
        &["image", "ls"],
        &["image", "inspect", "faulty"],
        &["image", "verify"],
        &["image", "verify", "second"],
        &["image", "prune"],
        &["rm", "--yes", "faulty/p"],
        &["new", "made"],
        &["doctor"],
    ] {
        let said = node.ok(&[words, &["--json"]].concat());
        assert!(!said.is_empty(), "{words:?}");
        for line in said.lines() {
            let parsed = serde_json::from_str::<serde_json::Value>(line);
            assert!(parsed.is_ok_and(|json| json.is_object()), "{words:?}: {line}");
        }
    }
    assert!(node.dir().join("made/Cargo.toml").exists());
}

/// On a terminal, which `script` makes; anywhere else a reply is what the function wrote, byte for byte.
#[test]
fn a_reply_cannot_steer_a_terminal_unless_that_is_asked_for() {
    let test = "a_reply_cannot_steer_a_terminal_unless_that_is_asked_for";
    if !denizen_testing::needs_program(test, "script") {
        return;
    }
    let node = Node::with_faulty();
    let evil = "before\u{1b}]0;title\u{1b}[2Jafter";
    std::fs::write(node.dir().join("evil.txt"), evil).unwrap();
    let on_a_terminal = |flags: &str| {
        let command = format!("{DENIZEN} invoke {flags} faulty/p echo @evil.txt");
        let output = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .env("DENIZEN_DIR", node.dir())
            .current_dir(node.dir())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let shown = on_a_terminal("--content-type text/plain");
    assert!(!shown.contains("\u{1b}]0;") && !shown.contains("\u{1b}[2J"), "{shown:?}");
    assert!(shown.contains("\\u{1b}]0;title"), "{shown:?}");
    let raw = on_a_terminal("--raw");
    assert!(raw.contains(evil), "{raw:?}");
    assert_eq!(node.ok(&["invoke", "faulty/p", "echo", "@evil.txt"]), evil);
}

#[test]
fn ps_lists_processes_for_people_and_for_programs() {
    let node = Node::with_faulty();
    node.call("faulty", "p", "count", b"");
    let table = node.ok(&["ps"]);
    assert!(table.contains("faulty/p") && table.contains("active"), "{table}");
    let json: serde_json::Value = serde_json::from_str(&node.ok(&["ps", "--json"])).unwrap();
    assert_eq!(json["processes"][0]["process"], "p", "{json}");
}

#[test]
fn swap_and_rm_do_what_they_say() {
    let node = Node::with_faulty();
    node.call("faulty", "p", "count", b"");
    node.ok(&["swap", "out", "faulty/p"]);
    assert_eq!(node.process("faulty", "p")["phase"], "swapped");
    node.ok(&["swap", "in", "faulty/p"]);
    assert_eq!(node.process("faulty", "p")["phase"], "active");
    let unasked = node.denizen(&["rm", "faulty/p"]);
    assert_eq!(unasked.status.code(), Some(2), "off a terminal it wants --yes: {}", text(&unasked));
    node.ok(&["rm", "--yes", "faulty/p"]);
    assert_eq!(node.get("/v1/apps/faulty/processes/p").status, 404);
}

#[test]
fn images_are_listed_and_checked() {
    let node = Node::with_faulty();
    assert!(node.ok(&["image", "ls"]).contains("faulty"));
    let archive = crate::node::faulty_image().to_str().unwrap();
    let described = node.ok(&["image", "inspect", archive]);
    assert!(described.contains("faulty"), "{described}");
    node.ok(&["image", "verify", archive]);
    let mut bytes = std::fs::read(archive).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let broken = node.dir().join("broken.dzi");
    std::fs::write(&broken, bytes).unwrap();
    let output = node.denizen(&["image", "verify", broken.to_str().unwrap()]);
    assert!(!output.status.success(), "a flipped bit was not seen: {}", text(&output));
}

#[test]
fn logs_follow() {
    use std::io::{BufRead, BufReader};
    let node = Node::with_faulty();
    node.call("faulty", "p", "count", b"");
    let mut child = Command::new(DENIZEN)
        .args(["logs", "-f", "faulty/p"])
        .env("DENIZEN_DIR", node.dir())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    node.call("faulty", "p", "speak", b"");
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let found = lines.take(100).any(|line| line.contains("said on stdout"));
    let _ = child.kill();
    let _ = child.wait();
    assert!(found, "the line did not come");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = Command::new(DENIZEN)
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", text(&output));
}

#[test]
fn completions_are_made_for_the_common_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(DENIZEN).args(["completions", shell]).output().unwrap();
        assert!(output.status.success() && output.stdout.len() > 500, "{shell}: {}", text(&output));
    }
}

#[test]
fn the_doctor_reports_findings_with_remedies() {
    let output = Command::new(DENIZEN).args(["doctor", "--json"]).output().unwrap();
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    let findings = report["findings"].as_array().expect("findings");
    for name in ["kernel", "io_uring", "locked-memory", "user-namespaces", "memory-cgroup", "git", "cc"] {
        let finding = findings
            .iter()
            .find(|finding| finding["name"] == name)
            .unwrap_or_else(|| panic!("nothing about {name} in {report}"));
        if finding["status"] != "ok" {
            for field in ["consequence", "remedy"] {
                assert!(finding[field].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
            }
        }
    }
    let human = Command::new(DENIZEN).arg("doctor").env("NO_COLOR", "1").output().unwrap();
    assert!(!String::from_utf8_lossy(&human.stdout).contains('\u{1b}'), "NO_COLOR is respected");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let node = Node::with_faulty();
    node.call("faulty", "p", "count", b"");
    let elsewhere = tempfile::tempdir().unwrap();
    // The environment names a directory without a node; the flag the right one.
    let output = Command::new(DENIZEN)
        .args(["ps", "--dir"])
        .arg(node.dir())
        .env("DENIZEN_DIR", elsewhere.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    std::fs::write(elsewhere.path().join("config.toml"), "http = \"not an address\"\n").unwrap();
    let file = Command::new(DENIZEN).args(["dev", "--dir"]).arg(elsewhere.path()).output().unwrap();
    assert_eq!(file.status.code(), Some(2), "the file counts: {}", text(&file));
    assert!(String::from_utf8_lossy(&file.stderr).contains("config.toml"), "{}", text(&file));
    let mut dev = Command::new(DENIZEN);
    dev.args(["dev", "--dir"]).arg(elsewhere.path()).env("DENIZEN_HTTP", "nor is this");
    let environment = dev.output().unwrap();
    assert!(environment.status.code() == Some(2) && text(&environment).contains("nor is this"));
    assert!(!text(&environment).contains("config.toml"), "the file was read first: {}", text(&environment));
    std::fs::write(elsewhere.path().join("config.toml"), "\nhtpp = \"127.0.0.1:0\"\n").unwrap();
    let unknown = Command::new(DENIZEN).args(["dev", "--dir"]).arg(elsewhere.path()).output().unwrap();
    let said = text(&unknown);
    assert!(
        unknown.status.code() == Some(2) && said.contains("config.toml:2") && said.contains("http"),
        "{said}"
    );
}
