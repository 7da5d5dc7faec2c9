//! The segment files of one process as an agent keeps them, and a way to count and to break its syncs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use denizen_engine::storage::{FileSegment, segment_file, segment_ids};

use super::{Agent, compile};

/// Writable, read-only.
pub(crate) type Pair = (File, File);

/// State that outlives its runners.
pub(crate) struct State {
    _dir: tempfile::TempDir,
    pub(crate) files: Arc<Files>,
}

/// The files of all segments.
#[derive(Debug)]
pub(crate) struct Files {
    path: PathBuf,
    next_id: AtomicU64,
}

impl State {
    pub(crate) fn new() -> State {
        let dir = tempfile::tempdir().unwrap();
        let files = Arc::new(Files { path: dir.path().to_owned(), next_id: AtomicU64::new(1) });
        State { _dir: dir, files }
    }
}

impl Files {
    pub(crate) fn path_of(&self, id: u64) -> PathBuf {
        segment_file(&self.path, id)
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        segment_ids(&self.path).unwrap()
    }

    /// Of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.ids().into_iter().map(|id| self.path_of(id).metadata().unwrap().len()).sum()
    }

    fn open(&self, id: u64) -> Pair {
        let path = self.path_of(id);
        (File::options().read(true).write(true).open(&path).unwrap(), File::open(&path).unwrap())
    }

    pub(crate) fn all(&self) -> Vec<(u64, Pair)> {
        self.ids().into_iter().map(|id| (id, self.open(id))).collect()
    }

    pub(crate) fn make(&self, bytes: u64) -> (u64, Pair) {
        let id = self.next_id.fetch_add(1, SeqCst);
        let file = File::options().write(true).create_new(true).open(self.path_of(id)).unwrap();
        FileSegment::allocate(&file, bytes).unwrap();
        (id, self.open(id))
    }

    pub(crate) fn delete(&self, id: u64) {
        std::fs::remove_file(self.path_of(id)).unwrap();
    }

    /// Flips one bit where these bytes lie, in the newest segment that has them.
    pub(crate) fn damage(&self, bytes: &[u8]) {
        for id in self.ids().into_iter().rev() {
            let content = std::fs::read(self.path_of(id)).unwrap();
            if let Some(at) = content.windows(bytes.len()).rposition(|window| window == bytes) {
                let file = File::options().write(true).open(self.path_of(id)).unwrap();
                file.write_all_at(&[content[at] ^ 1], at as u64).unwrap();
                return;
            }
        }
        panic!("no segment holds these bytes");
    }
}

/// Counts the syncs of a runner, and makes them slow or fail.
pub(crate) struct Syncs {
    dir: tempfile::TempDir,
}

impl Syncs {
    pub(crate) fn new() -> Syncs {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("control"), [0; 4096]).unwrap();
        compile("syncs.c", &dir.path().join("syncs.so"), &["-ldl"]);
        Syncs { dir }
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// A runner whose syncs are these.
    pub(crate) fn spawn(&self) -> Agent {
        let library: &Path = &self.dir.path().join("syncs.so");
        Agent::spawn_with(&[("LD_PRELOAD", library), ("DENIZEN_TEST_SYNCS", &self.control())])
    }

    fn word(&self, at: u64) -> u64 {
        let mut word = [0; 8];
        File::open(self.control()).unwrap().read_exact_at(&mut word, at * 8).unwrap();
        u64::from_le_bytes(word)
    }

    fn set(&self, at: u64, word: u64) {
        let file = File::options().write(true).open(self.control()).unwrap();
        file.write_all_at(&word.to_le_bytes(), at * 8).unwrap();
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.word(0)
    }

    /// From now on they do nothing, and take no time.
    pub(crate) fn skip(&self) {
        self.set(3, 1);
    }

    /// From now on they fail.
    pub(crate) fn fail(&self) {
        self.set(1, 1);
    }

    /// From now on each takes so long.
    pub(crate) fn delay_ms(&self, ms: u64) {
        self.set(2, ms);
    }
}
