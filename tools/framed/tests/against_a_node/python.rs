//! The Python client against the same small node as the Rust one.

use std::{path::Path, process::Command};

use crate::fake::Fake;

#[test]
fn the_python_client_does_the_same() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python");
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED the_python_client_does_the_same: there is no python3");
        return;
    }
    let fake = Fake::start();
    let output = Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", "-v", "-s", "tests", "-t", "."])
        .current_dir(&python)
        .env("DENIZEN_FAKE", fake.address())
        .env_remove("DENIZEN_DATA")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("test_a_lost_call_is_made_again_only_with_a_key"), "nothing was tested: {said}");
}
