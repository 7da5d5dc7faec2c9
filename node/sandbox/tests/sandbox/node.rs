//! A node in a temporary directory, and a talk with one of its sandboxes.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use denizen_sandbox::{
    Admission, ExitCause, FileAccess, Isolation, Life, Limits, Sandbox, Spawner, SpawnerConfig,
};
use serde::{Deserialize, Serialize};

/// Nothing in these tests takes longer.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The digest of the one image in the store.
pub(crate) const IMAGE: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// What a test tells the runner in a sandbox to do: one JSON line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) admission: Admission,
    /// Do it behind filter 2, as a function would, or only behind filter 1, as a constructor would.
    pub(crate) sealed: bool,
    /// One of the acts in `runner`.
    pub(crate) act: String,
    /// Which invocation the acting thread runs.
    pub(crate) invocation: u64,
}

impl Order {
    pub(crate) fn sealed(act: &str) -> Order {
        let limits = Limits { memory_bytes: 64 << 20, threads: 8, cpu_percent: None };
        let admission = Admission {
            image: IMAGE.into(),
            limits,
            files: FileAccess::None,
            files_bytes: 8 << 20,
            mapped_bytes: 1 << 30,
            file_bytes: 1 << 30,
            first_file_bytes: 1 << 30,
            segments: 4,
            ring: false,
        };
        Order { admission, sealed: true, act: act.into(), invocation: 77 }
    }

    pub(crate) fn with_files(mut self, files: FileAccess) -> Order {
        self.admission.files = files;
        self
    }

    pub(crate) fn with_ring(mut self) -> Order {
        self.admission.ring = true;
        self
    }

    pub(crate) fn loading(act: &str) -> Order {
        Order { sealed: false, ..Order::sealed(act) }
    }
}

/// A spawner with its directories, removed at the end.
pub(crate) struct Node {
    pub(crate) spawner: Spawner,
    pub(crate) dir: Dir,
}

/// A directory of its own for each test.
pub(crate) struct Dir(pub(crate) PathBuf);

impl Dir {
    pub(crate) fn new() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("denizen-sandbox-{}-{number}", std::process::id()));
        let image = path.join("images").join(IMAGE);
        fs::create_dir_all(&image).unwrap();
        fs::write(image.join("hello.txt"), "hello from the image\n").unwrap();
        Dir(path)
    }

    pub(crate) fn config(&self) -> SpawnerConfig {
        config_in(&self.0)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn config_in(dir: &Path) -> SpawnerConfig {
    SpawnerConfig {
        image_store: dir.join("images"),
        lock_dir: dir.to_owned(),
        isolation: Isolation { require: false },
        rings: true,
    }
}

impl Node {
    pub(crate) fn start() -> Node {
        let dir = Dir::new();
        Node { spawner: Spawner::start(dir.config()).unwrap(), dir }
    }

    /// A sandbox that was given this order.
    pub(crate) fn order(&self, order: &Order) -> Talk {
        Talk::begin(self.spawner.spawn().unwrap(), order)
    }
}

/// A sandbox at work.
pub(crate) struct Talk {
    pub(crate) control: BufReader<UnixStream>,
    pub(crate) answers: UnixStream,
    pub(crate) stdio: UnixStream,
    pub(crate) life: Life,
}

impl Talk {
    pub(crate) fn begin(sandbox: Sandbox, order: &Order) -> Talk {
        let (control, answers, stdio, life) = sandbox.into_parts();
        let (mut control, stdio) = (UnixStream::from(control), UnixStream::from(stdio));
        control.set_read_timeout(Some(SOON)).unwrap();
        stdio.set_read_timeout(Some(SOON)).unwrap();
        writeln!(control, "{}", serde_json::to_string(order).unwrap()).unwrap();
        Talk { control: BufReader::new(control), answers: answers.into(), stdio, life }
    }

    /// The next line of the runner; empty at its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap_or_else(|error| panic!("no answer: {error}"));
        line.trim_end().to_owned()
    }

    /// All lines until it ends, and how it ended.
    pub(crate) fn rest(&mut self) -> (Vec<String>, ExitCause) {
        let mut lines = Vec::new();
        loop {
            match self.line() {
                line if line.is_empty() => break,
                line => lines.push(line),
            }
        }
        (lines, self.life.wait_exit(SOON).expect("the end is told"))
    }

    /// What was printed; only after the end.
    pub(crate) fn printed(&mut self) -> String {
        let mut text = String::new();
        self.stdio.read_to_string(&mut text).unwrap();
        text
    }
}

/// Whether this process may do what root may.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says by name that something was not tested.
pub(crate) fn skip(name: &str, why: &str) {
    // The tests repeat themselves as an ordinary user, who is meant to lack some layers.
    if is_root() {
        denizen_testing::skip(name, why);
    } else {
        eprintln!("as an ordinary user, {name} was skipped: {why}");
    }
}

/// Whether a layer of isolation is there.
pub(crate) fn has(node: &Node, layer: &str) -> bool {
    node.spawner.report().layers.iter().any(|one| one.name == layer && one.active)
}
