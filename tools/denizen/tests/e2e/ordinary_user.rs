//! The node as an ordinary user: everything works but what only root can have, and that is said.

use crate::node::{DENIZEN, Node, Start, faulty_image, text};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub(crate) const NOBODY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// A directory of the ordinary user with the program in it, since the build folder may be closed to it.
fn home() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let program = home.path().join("denizen");
    std::fs::copy(DENIZEN, &program).unwrap();
    let dir = home.path().join("node");
    std::fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(65534), Some(65534)).unwrap();
    (home, program, dir)
}

pub(crate) fn as_nobody(test: &str) -> Option<(tempfile::TempDir, PathBuf, PathBuf)> {
    // As an ordinary user every other test shows this already.
    (denizen_testing::needs_root(test) && denizen_testing::needs_program(test, "setpriv")).then(home)
}

pub(crate) fn deploy(node: &Node, app: &str, image: &Path) {
    let reply = crate::node::agent()
        .put(node.url(&format!("/v1/apps/{app}/image")))
        .header("Authorization", format!("Bearer {}", node.token()))
        .send(&std::fs::read(image).unwrap()[..])
        .unwrap();
    assert_eq!(reply.status(), 200, "{}", node.said());
}

#[test]
fn an_ordinary_user_runs_a_node() {
    let Some((_home, program, dir)) = as_nobody("an_ordinary_user_runs_a_node") else { return };
    let node = Start::new().by(NOBODY, &program).dir(&dir).node();
    deploy(&node, "faulty", faulty_image());
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "1", "{}", node.said());
    node.control("POST", "/v1/apps/faulty/processes/p/swap-out");
    assert_eq!(node.call("faulty", "p", "count", b"").body(), "2");
    node.call("faulty", "p", "open_socket", b"").problem(500, "forbidden-syscall", "function");
    // Without control groups: what a process may use is limited nevertheless, and others work on.
    node.call("faulty", "p", "allocate", b"").problem(500, "out-of-memory", "function");
    node.assert_others_work("faulty");
    node.call("faulty", "p", "start_threads", b"").problem(500, "function-failed", "function");
    node.assert_others_work("faulty");
    // It says what is missing.
    node.await_said(&["cgroup"]);
}

#[test]
fn requiring_isolation_refuses_where_a_layer_is_missing() {
    let Some((_home, program, dir)) = as_nobody("requiring_isolation_refuses_where_a_layer_is_missing")
    else {
        return;
    };
    let output = Start::new().by(NOBODY, &program).args(&["--require-isolation"]).refused(&dir);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        ["uid-per-sandbox", "memory-cgroup", "require-isolation"].iter().all(|word| said.contains(word)),
        "{said}"
    );
}

#[test]
fn root_has_every_layer() {
    if !denizen_testing::needs_root("root_has_every_layer") {
        return;
    }
    let node = Start::new().args(&["--require-isolation"]).node();
    let isolation = node.get("/v1/node").json()["isolation"].clone();
    assert!(isolation.to_string().contains("cgroup"), "{isolation}");
}
