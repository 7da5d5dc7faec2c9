//! `kill -9` of a real process with real files at random instants: what it had reported is there, and no commit is there by half.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{LINEAGE, Rng};
use denizen_engine::storage::Directory;
use denizen_engine::{Access, Durability, Engine, Options, Recovery, SegmentSizes};

const DIR: &str = "DENIZEN_TEST_KILLED_DIR";

fn open_in(dir: &Path) -> (Engine, Recovery) {
    let mut options = Options::new(LINEAGE, 64 << 20);
    options.segments = SegmentSizes { min_bytes: 64 << 10, max_bytes: 256 << 10 };
    Engine::open(Arc::new(Directory::open(dir).unwrap()), options).unwrap()
}

fn number(engine: &Engine, key: &[u8]) -> u64 {
    let snapshot = engine.snapshot();
    snapshot.get(key).unwrap().map_or(0, |value| u64::from_le_bytes(value.bytes[..8].try_into().unwrap()))
}

/// What the killed process runs: counts, in two keys at once, and says how far it got.
#[test]
#[ignore = "run by the other test in a process of its own"]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let (engine, _) = open_in(Path::new(&dir));
    let mut n = number(&engine, b"one");
    let mut out = std::io::stdout().lock();
    loop {
        n += 1;
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(b"one", &n.to_le_bytes()).unwrap();
        tx.put_bytes(&(n % 50).to_le_bytes(), &vec![n as u8; (n % 3000) as usize]).unwrap();
        tx.put_bytes(b"two", &n.to_le_bytes()).unwrap();
        let seq = tx.commit().unwrap();
        drop(tx);
        // For a while without any sync, so that values are written over dead ones.
        if n % 800 < 400 && n.is_multiple_of(20) {
            engine.wait(seq, Durability::Node).unwrap();
        }
        engine.compact_step(16 << 10).unwrap();
        out.write_all(format!("did {n}\n").as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn what_a_killed_process_reported_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let seed = std::process::id().into();
    println!("seed {seed}");
    let mut rng = Rng(seed);
    let mut last = 0;
    for _ in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let done = |line: String| line.rsplit("did ").next().and_then(|n| n.parse::<u64>().ok());
            out.lines().map_while(Result::ok).filter(|line| line.contains("did ")).filter_map(done).last()
        });
        std::thread::sleep(Duration::from_micros(20_000 + rng.next() % 150_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let reported = reader.join().unwrap().unwrap_or(last);
        let (engine, recovery) = open_in(dir.path());
        let found = number(&engine, b"one");
        assert_eq!(found, number(&engine, b"two"), "half a commit");
        assert!(found >= reported && found <= reported + 1, "reported {reported}, found {found}");
        assert!(found >= last && recovery.damaged.is_empty());
        for n in found.saturating_sub(49).max(1)..=found {
            let snapshot = engine.snapshot();
            let value = snapshot.get(&(n % 50).to_le_bytes()).unwrap().unwrap();
            assert_eq!(value.bytes, vec![n as u8; (n % 3000) as usize]);
        }
        last = found;
    }
    assert!(last > 100, "it did next to nothing: {last}");
}
