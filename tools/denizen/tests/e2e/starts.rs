//! Starts that must be refused, and what a person reads then.

use crate::node::{DENIZEN, Node, Start, text};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

#[test]
fn a_second_node_on_the_directory_is_refused_by_name() {
    let node = Node::with_faulty();
    let output = Start::new().refused(node.dir());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(&node.pid().to_string()) && said.contains("already"), "{said}");
    node.assert_others_work("faulty");
}

#[test]
fn a_port_in_use_is_refused_by_name() {
    let node = Node::with_faulty();
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(DENIZEN)
        .args(["dev", "--http", &node.address().to_string(), "--dir"])
        .arg(dir.path())
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(&node.address().port().to_string()) && said.contains("in use"), "{said}");
    node.assert_others_work("faulty");
}

#[test]
fn a_directory_that_is_a_file_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(DENIZEN)
        .args(["dev", "--http", "127.0.0.1:0", "--dir"])
        .arg(file.path())
        .output()
        .unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains(&file.path().display().to_string()), "{said}");
    assert!(said.contains("a file is where") && said.contains("--dir"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_directory_that_cannot_be_had_is_named_with_the_cause_and_what_to_do() {
    let test = "a_directory_that_cannot_be_had_is_named_with_the_cause_and_what_to_do";
    let parent = tempfile::tempdir().unwrap();
    let refused = |start: Start, dir: &Path, cause: &str| {
        let output = start.cwd(parent.path()).refused(dir);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        let beginning: String = dir.display().to_string().chars().take(60).collect();
        for words in [&beginning, cause, "remedy", "--dir"] {
            assert!(said.contains(words), "{words} is not in {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    };
    refused(Start::new(), &parent.path().join("x".repeat(300)), "too long");
    refused(Start::new(), &parent.path().join("x/".repeat(3000)), "too long");
    if !denizen_testing::needs_root(test) || !denizen_testing::needs_program(test, "setpriv") {
        return;
    }
    let program = parent.path().join("denizen");
    std::fs::copy(DENIZEN, &program).unwrap();
    std::fs::set_permissions(parent.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let nobody =
        || Start::new().by(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], &program);
    refused(nobody(), &parent.path().join("new"), "may not");
    let closed = parent.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    refused(nobody(), &closed, "user");
}

#[test]
fn too_little_locked_memory_is_said_and_the_node_runs() {
    let test = "too_little_locked_memory_is_said_and_the_node_runs";
    if !denizen_testing::needs_program(test, "prlimit") {
        return;
    }
    let little = ["prlimit", "--memlock=65536:65536"];
    let node = Start::new().by(&little, DENIZEN.as_ref()).node();
    assert_eq!(node.get("/v1/node").status, 200);
    // For root the limit does not count.
    let mut doctor = Command::new(little[0]);
    doctor.arg(little[1]);
    if rustix::process::geteuid().is_root() {
        if !denizen_testing::needs_program(test, "setpriv") {
            return;
        }
        doctor.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    // Where an ordinary user can read it.
    let parent = tempfile::tempdir().unwrap();
    std::fs::set_permissions(parent.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = parent.path().join("denizen");
    std::fs::copy(DENIZEN, &program).unwrap();
    let said = text(&doctor.arg(&program).arg("doctor").output().unwrap());
    assert!(said.contains("locked memory") && said.contains("ulimit -l"), "{said}");
}
