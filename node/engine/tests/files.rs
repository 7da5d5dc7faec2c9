//! The table of files: what is written whole is read whole, whatever happens to the log, and beside whoever writes objects.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::sim::Sim;
use common::{LINEAGE, open, options};
use denizen_engine::offline::{CopyOptions, Damaged, Offline};
use denizen_engine::{Access, Engine, FileEntry, FileKind, HOLE, Snapshot, StateError};

fn file(len: u64, parts: &[u64]) -> FileEntry {
    let kind = FileKind::File { len, part_len: 4096, parts: parts.to_vec() };
    FileEntry { mode: 0o644, modified: (1_700_000_000, 5), kind }
}

fn directory() -> FileEntry {
    FileEntry { mode: 0o755, modified: (0, 0), kind: FileKind::Directory }
}

/// A directory and a file in it, of a part, a hole and another part.
fn write(engine: &Engine, first: u64, byte: u8) -> u64 {
    let mut parts = engine.write_files();
    parts.put_part(first, &[byte; 4096]).unwrap();
    parts.put_part(first + 1, &[byte; 10]).unwrap();
    parts.commit().unwrap();
    let mut entries = engine.write_files();
    entries.put(b"dir", &directory()).unwrap();
    entries.put(b"dir/file", &file(8202, &[first, HOLE, first + 1])).unwrap();
    entries.commit().unwrap()
}

fn expected(byte: u8) -> Vec<u8> {
    [vec![byte; 4096], vec![0; 4096], vec![byte; 10]].concat()
}

/// What a reader of the snapshot makes of `dir/file`.
fn read(snapshot: &Snapshot) -> Vec<u8> {
    let entries: BTreeMap<_, _> = snapshot.files().unwrap().into_iter().collect();
    let FileKind::File { len, parts, .. } = &entries[b"dir/file".as_slice()].as_ref().unwrap().kind else {
        panic!("no file")
    };
    let part = |number: &u64| snapshot.file_part(*number).unwrap().map_or(vec![0; 4096], <[u8]>::to_vec);
    let mut bytes = parts.iter().map(part).collect::<Vec<_>>().concat();
    bytes.truncate(*len as usize);
    bytes
}

#[test]
fn files_survive_reopening_compaction_and_copies() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    write(&engine, 1, 7);
    let before = engine.snapshot();
    write(&engine, 3, 9);
    let mut sweep = engine.write_files();
    assert!(sweep.remove_part(1) && sweep.remove_part(2) && !sweep.remove_part(77));
    sweep.commit().unwrap();
    // Overwritten objects give the compactor something to do, around the files.
    for n in 0..200_u32 {
        let mut tx = engine.begin(Access::Exclusive);
        tx.put_bytes(b"object", &n.to_le_bytes().repeat(500)).unwrap();
        tx.commit().unwrap();
        engine.compact_step(8 << 10).unwrap();
    }
    assert_eq!((read(&before), read(&engine.snapshot())), (expected(7), expected(9)));
    assert_eq!(engine.snapshot().file_parts(), [3, 4]);
    assert_eq!(engine.summary().keys, 1, "files are no objects");
    engine.seal().unwrap();
    drop((engine, before));
    let (engine, _) = open(&sim).unwrap();
    assert_eq!(read(&engine.snapshot()), expected(9));
    engine.seal().unwrap();
    drop(engine);

    let target = Sim::new();
    let options = CopyOptions { lineage: LINEAGE, segments: options().segments, damaged: Damaged::Refuse };
    Offline::read(&sim.handles(), Some(LINEAGE)).unwrap().copy_to(&target, &options, |_, _| {}).unwrap();
    let copy = Offline::read(&target.handles(), Some(LINEAGE)).unwrap();
    let listed = copy.files().unwrap();
    let listed: Vec<_> = listed.iter().map(|(path, entry)| (*path, entry.as_ref().unwrap())).collect();
    assert_eq!(listed, [(&b"dir"[..], &directory()), (b"dir/file", &file(8202, &[3, HOLE, 4]))]);
    let entry = copy.file_entry(b"dir/file").unwrap().unwrap();
    let pieces = entry.pieces().map(|piece| copy.file_piece(piece).unwrap().unwrap_or(vec![0; piece.1]));
    assert_eq!(pieces.collect::<Vec<_>>().concat(), expected(9));
    assert_eq!(copy.file_entry(b"dir").unwrap().as_ref(), Some(&directory()));
    assert_eq!(copy.file_entry(b"none").unwrap(), None);
    assert!(copy.file_piece((3, 4095)).is_err(), "a part of another length");
    assert!(copy.file_piece((77, 1)).is_err(), "no part");
}

/// A capture runs inside of an invocation, whatever turn that has, and is neither part of it nor in its way.
#[test]
fn files_are_written_beside_every_kind_of_transaction() {
    let sim = Sim::new();
    let (engine, _) = open(&sim).unwrap();
    for (number, access) in (1..).zip([Access::Exclusive, Access::Concurrent, Access::Sole]) {
        let mut tx = engine.begin(access);
        tx.put_bytes(b"object", &[number]).unwrap();
        write(&engine, u64::from(number) * 2 - 1, number);
        if number == 1 {
            tx.abort();
        }
        tx.commit().unwrap();
        assert_eq!(read(&engine.snapshot()), expected(number));
    }
    assert_eq!(engine.snapshot().get(b"object").unwrap().unwrap().bytes, [3]);
}

#[test]
fn files_count_against_the_quota() {
    let sim = Sim::new();
    let mut small = options();
    small.quota_bytes = 64 << 10;
    let (engine, _) = Engine::open(Arc::new(sim), small).unwrap();
    write(&engine, 1, 1);
    let mut full = engine.write_files();
    let refused = full.put_part(3, &[1; 64 << 10]).unwrap_err();
    assert!(matches!(refused, StateError::QuotaExceeded { quota: 65_536, .. }), "{refused:?}");
    engine.raise_quota(1);
    assert!(full.put_part(3, &[1; 64 << 10]).is_err(), "a quota is never lowered");
    engine.raise_quota(128 << 10);
    full.put_part(3, &[1; 64 << 10]).unwrap();
    drop(full);
    assert_eq!(read(&engine.snapshot()), expected(1));
}
