//! Starts that must be refused, and what a person reads then.

use crate::node::{DENIZEN, Node, Start, text};
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
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn too_little_locked_memory_is_said_kindly() {
    if !denizen_testing::needs_program("too_little_locked_memory_is_said_kindly", "prlimit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = Start::new().by(&["prlimit", "--memlock=65536:65536"], DENIZEN.as_ref()).refused(dir.path());
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("locked memory") && !said.contains("panicked"), "{said}");
}
