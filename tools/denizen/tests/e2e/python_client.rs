//! The Python client's own tests, against a real node.

use std::process::Command;

use crate::node::{Start, build_image, faulty_image, repository, text};

#[test]
fn the_python_client_works_with_a_real_node() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED the_python_client_works_with_a_real_node: there is no python3");
        return;
    }
    let node = Start::new().args(&["--data", "127.0.0.1:0"]).node();
    node.deploy(&build_image(&repository().join("images/examples/counter"), "counter-for-python"));
    node.deploy(faulty_image());
    let address = std::fs::read_to_string(node.dir().join("data-endpoint")).expect("a data port");
    let output = Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", "-v", "-s", "tests", "-t", "."])
        .current_dir(repository().join("tools/python"))
        .env("DENIZEN_DATA", address.trim())
        .env("DENIZEN_TOKEN", node.ok(&["token", "issue", "--app", "counter"]).trim())
        .env("DENIZEN_FAULTY_TOKEN", node.ok(&["token", "issue", "--app", "faulty"]).trim())
        .env_remove("DENIZEN_FAKE")
        .output()
        .expect("python3 runs");
    assert!(output.status.success(), "{}\n{}", text(&output), node.said());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("test_it_counts") && !said.contains("SKIPPED the real node"), "{said}");
}
