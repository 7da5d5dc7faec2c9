//! The Python client against the same small node as the Rust one.

use std::{path::Path, process::Command};

use crate::fake::Fake;

/// As its users do it. The build needs setuptools, which pip fetches: without a network there is nothing to be seen.
#[test]
fn the_python_client_can_be_installed() {
    let test = "the_python_client_can_be_installed";
    if Command::new("python3")
        .args(["-m", "pip", "--version"])
        .output()
        .is_ok_and(|pip| !pip.status.success())
    {
        eprintln!("SKIPPED {test}: there is no pip");
        return;
    }
    let scratch = std::env::temp_dir().join(format!("denizen-python-{}", std::process::id()));
    let (source, installed) = (scratch.join("source"), scratch.join("installed"));
    std::fs::create_dir_all(&scratch).unwrap();
    // A build leaves things behind beside what it builds.
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python");
    assert!(Command::new("cp").arg("-r").args([&python, &source]).status().unwrap().success());
    let output = Command::new("python3")
        .args(["-m", "pip", "install", "--no-deps", "--disable-pip-version-check", "--target"])
        .args([&installed, &source])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let imported = Command::new("python3")
        .args(["-c", "import denizen; print(denizen.__version__, denizen.__file__)"])
        .env("PYTHONPATH", &installed)
        .output();
    let is_typed = installed.join("denizen/py.typed").exists();
    std::fs::remove_dir_all(&scratch).unwrap();
    if !output.status.success() && said.contains("No matching distribution") {
        eprintln!("SKIPPED {test}: pip reaches no setuptools");
        return;
    }
    assert!(output.status.success() && is_typed, "{said}");
    let imported = String::from_utf8_lossy(&imported.unwrap().stdout).into_owned();
    assert!(imported.starts_with("0.1.0 ") && imported.contains("installed"), "{imported}");
}

#[test]
fn the_python_client_does_the_same() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../python");
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED the_python_client_does_the_same: there is no python3");
        return;
    }
    let (fake, other) = (Fake::start(), Fake::start());
    let output = Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", "-v", "-s", "tests", "-t", "."])
        .current_dir(&python)
        .env("DENIZEN_FAKE", fake.address())
        .env("DENIZEN_OTHER_FAKE", other.address())
        .env_remove("DENIZEN_DATA")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("test_a_lost_call_is_made_again_only_with_a_key"), "nothing was tested: {said}");
}
