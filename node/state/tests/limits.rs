//! Quotas, keys and full disks: refused by name, before anything is written.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::File;
use std::process::Command;
use std::sync::atomic::Ordering;

use common::Disk;
use denizen_state::{Engine, Lineage, MAX_KEY_LEN, OpenOptions, StateError};

#[test]
fn keys_have_between_one_byte_and_64_kib() {
    let disk = Disk::formatted();
    let mut engine = disk.open();
    let mut tx = engine.begin();
    assert!(matches!(tx.put(b"", 0, b"v"), Err(StateError::KeyEmpty)));
    assert!(matches!(tx.delete(b""), Err(StateError::KeyEmpty)));
    let longest = vec![b'k'; MAX_KEY_LEN];
    tx.put(&longest, 0, b"v").unwrap();
    let longer = vec![b'k'; MAX_KEY_LEN + 1];
    assert!(matches!(tx.put(&longer, 0, b"v"), Err(StateError::KeyTooLong { len: 65_537 })));
    tx.commit().unwrap();
    drop(tx);
    drop(engine);
    assert_eq!(disk.open().read().get(&longest).unwrap().bytes, b"v");
}

#[test]
fn the_quota_is_checked_at_the_put_and_nothing_is_written() {
    let disk = Disk::formatted();
    let mut engine = disk.open_with(1000, 1 << 20);
    let before = disk.bytes();
    let mut tx = engine.begin();
    let refused = tx.put(b"a", 0, &[0; 2000]);
    assert!(matches!(refused, Err(StateError::QuotaExceeded { needed: 2048, quota: 1000 })), "{refused:?}");
    assert!(tx.get(b"a").is_none());
    assert_eq!(tx.commit().unwrap(), 0);
    drop(tx);
    assert!(disk.bytes() == before);
}

#[test]
fn room_is_counted_exactly_and_comes_back() {
    let disk = Disk::formatted();
    let mut engine = disk.open_with(3 * 64, 1 << 20);
    for key in [b"a", b"b", b"c"] {
        let mut tx = engine.begin();
        tx.put(key, 0, &[1; 16]).unwrap();
        tx.commit().unwrap();
    }
    assert_eq!(engine.summary().live_bytes, 3 * 64);
    let mut tx = engine.begin();
    assert!(matches!(tx.put(b"d", 0, b""), Err(StateError::QuotaExceeded { needed: 240, .. })));
    tx.put(b"c", 0, &[2; 16]).unwrap();
    assert!(tx.delete(b"a").unwrap());
    assert!(!tx.delete(b"a").unwrap());
    tx.put(b"d", 0, &[3; 16]).unwrap();
    assert!(matches!(tx.put(b"e", 0, b""), Err(StateError::QuotaExceeded { needed: 240, .. })));
    tx.commit().unwrap();
    assert!(tx.put(b"e", 0, b"").is_err());
    drop(tx);
    assert_eq!(engine.summary().live_bytes, 3 * 64);
}

#[test]
fn what_one_invocation_overwrites_counts_until_it_returns() {
    let disk = Disk::formatted();
    let mut engine = disk.open_with(10_000, 1 << 20);
    let mut tx = engine.begin();
    let refused = (0..100).find_map(|_| tx.put(b"k", 0, &[0; 1000]).err());
    assert!(matches!(refused, Some(StateError::QuotaExceeded { .. })));
    drop(tx);
    let mut tx = engine.begin();
    tx.put(b"k", 0, &[0; 1000]).unwrap();
}

#[test]
fn a_change_that_is_not_committed_leaves_nothing() {
    let disk = Disk::formatted();
    let mut engine = disk.open();
    let mut tx = engine.begin();
    tx.put(b"kept", 0, b"1").unwrap();
    tx.commit().unwrap();
    tx.put(b"kept", 0, b"2").unwrap();
    tx.put(b"lost", 0, b"3").unwrap();
    assert_eq!(tx.get(b"kept").unwrap().bytes, b"2");
    tx.abort();
    assert_eq!(tx.get(b"kept").unwrap().bytes, b"1");
    tx.put(b"lost", 0, b"4").unwrap();
    drop(tx);
    assert_eq!(engine.read().get(b"kept").unwrap().bytes, b"1");
    assert!(engine.read().get(b"lost").is_none());
    drop(engine);
    let engine = disk.open();
    assert_eq!(engine.summary().commit, 1);
    assert!(engine.read().get(b"lost").is_none());
}

#[test]
fn a_version_stays_validated_as_long_as_it_is() {
    let disk = Disk::formatted();
    let mut engine = disk.open();
    let mut tx = engine.begin();
    tx.put(b"k", 5, b"v").unwrap();
    let own = tx.get(b"k").unwrap();
    assert_eq!(own.validated.load(Ordering::Relaxed), 0);
    own.validated.store(1, Ordering::Relaxed);
    tx.commit().unwrap();
    assert_eq!(tx.get(b"k").unwrap().validated.load(Ordering::Relaxed), 1);
    tx.put(b"k", 5, b"w").unwrap();
    assert_eq!(tx.get(b"k").unwrap().validated.load(Ordering::Relaxed), 0);
    tx.commit().unwrap();
    drop(tx);
    assert_eq!(engine.read().get(b"k").unwrap().validated.load(Ordering::Relaxed), 0);
}

#[test]
fn a_value_with_no_bytes_is_a_value() {
    let disk = Disk::formatted();
    let mut engine = disk.open();
    let mut tx = engine.begin();
    tx.put(b"k", 0, b"").unwrap();
    tx.commit().unwrap();
    drop(tx);
    drop(engine);
    assert_eq!(disk.open().read().get(b"k").unwrap().bytes, b"");
}

const TINY: &str = "DENIZEN_TEST_TINY_DISK";

/// Runs this test again inside a mount namespace with a file system of 2 MiB, where `full_disk` does the work.
#[test]
fn a_full_disk_is_an_error_that_can_be_tried_again() {
    if let Some(dir) = std::env::var_os(TINY) {
        return full_disk(dir.as_ref());
    }
    let dir = tempfile::tempdir().unwrap();
    let exe = std::env::current_exe().unwrap();
    let script = r#"mount -t tmpfs -o size=2m tiny "$1" && exec "$2" --exact a_full_disk_is_an_error_that_can_be_tried_again --nocapture"#;
    let run = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .args([dir.path(), exe.as_path()])
        .env(TINY, dir.path())
        .output();
    let Ok(output) = run else {
        denizen_testing::skip("a_full_disk_is_an_error_that_can_be_tried_again", "no `unshare` program");
        return;
    };
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if said.contains("unshare:") || said.contains("mount:") {
        denizen_testing::skip(
            "a_full_disk_is_an_error_that_can_be_tried_again",
            &format!("cannot mount in a user namespace: {said}"),
        );
        return;
    }
    assert!(output.status.success(), "{said}");
}

fn full_disk(dir: &std::path::Path) {
    let path = dir.join("state");
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    Engine::format(&file, Lineage([1; 16])).unwrap();
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 1_500_000]).unwrap();
    let options = OpenOptions::with_quota(64 << 20);
    let mut engine = Engine::open(file, File::open(&path).unwrap(), options).unwrap();
    let mut tx = engine.begin();
    tx.put(b"small", 0, b"fits").unwrap();
    assert_eq!(tx.commit().unwrap(), 1);
    tx.put(b"large", 0, &vec![7; 1 << 20]).unwrap();
    let refused = tx.commit();
    assert!(matches!(refused, Err(StateError::NoSpace { .. })), "{refused:?}");
    assert_eq!(tx.get(b"small").unwrap().bytes, b"fits");
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(tx.commit().unwrap(), 2);
    assert!(tx.get(b"large").unwrap().bytes.iter().all(|byte| *byte == 7));
    // Fill every block, then read everything again: no read may fault.
    let mut filler = File::create(dir.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    let mut tries = 0;
    loop {
        tx.put(format!("more {tries}").as_bytes(), 0, &[3; 10_000]).unwrap();
        match tx.commit() {
            Ok(_) => tries += 1,
            Err(StateError::NoSpace { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    tx.abort();
    let mut sum = 0_u64;
    tx.scan(b"", None, |_, value| {
        sum += value.bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        std::ops::ControlFlow::Continue(())
    });
    assert!(sum >= 7 << 20);
}
