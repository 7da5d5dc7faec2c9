//! Sandboxes that have loaded an image before it is known which process they become.

use crate::node::{Node, PATIENCE, Start, c_image_with};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A sandbox that was loaded this long before its first call was loaded for nobody in particular.
const LONG_MS: u64 = 300;

/// Two images of one application.
fn images() -> &'static [PathBuf; 2] {
    static IMAGES: OnceLock<[PathBuf; 2]> = OnceLock::new();
    IMAGES.get_or_init(|| {
        [1, 2].map(|version| {
            let flag = format!("-DVERSION={version}");
            let built = c_image_with("warm", include_str!("warm.c"), &[&flag], "");
            let image = built.with_file_name(format!("warm-{version}.dzi"));
            std::fs::rename(built, &image).expect("the image is moved");
            image
        })
    })
}

/// Which version answers in a new process, and how long ago it was loaded, in ms.
fn first_call(node: &Node, process: &str) -> (u64, u64) {
    let body = node.call("warm", process, "age", b"").body();
    let (version, age) = body.split_once(' ').expect("two numbers");
    (version.parse().unwrap(), age.parse().unwrap())
}

/// Calls new processes until one was loaded long before, with pauses in which one could be.
fn await_one_that_waited(node: &Node, version: u32) -> String {
    let until = Instant::now() + PATIENCE;
    for number in 0.. {
        std::thread::sleep(Duration::from_millis(2 * LONG_MS));
        let name = format!("v{version}-{number}");
        let (found, age) = first_call(node, &name);
        assert_eq!(found, u64::from(version), "an image that was replaced answers");
        if age >= LONG_MS {
            return name;
        }
        assert!(Instant::now() < until, "no process began in a sandbox that had waited: {}", node.said());
    }
    unreachable!("there are numbers enough");
}

#[test]
fn the_next_process_of_an_image_begins_in_a_sandbox_that_has_loaded_it() {
    let node = Start::new().args(&["--pool", "2"]).node();
    node.deploy(&images()[0]);
    let (_, age) = first_call(&node, "first");
    assert!(age < LONG_MS, "nobody had called it before");
    let waited = await_one_that_waited(&node, 1);
    // What it printed when it was loaded is in the log of what it became, and nowhere else.
    let logs = node.ok(&["logs", &format!("warm/{waited}")]);
    assert_eq!(logs.matches("loaded, version 1").count(), 1, "{logs}");
    node.deploy(&images()[1]);
    await_one_that_waited(&node, 2);
}

#[test]
fn without_a_pool_nothing_is_loaded_in_advance() {
    let node = Start::new().args(&["--pool", "0"]).node();
    node.deploy(&images()[0]);
    for process in ["a", "b", "c"] {
        let (_, age) = first_call(&node, process);
        assert!(age < LONG_MS, "loaded {age} ms before");
        std::thread::sleep(Duration::from_millis(2 * LONG_MS));
    }
}
