//! Files that were cut short or changed: a torn tail is cut, damage is named, and nothing that was never committed appears.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::Disk;
use denizen_state::{Engine, OpenOptions, StateError, Summary, offline};

const COMMITS: u8 = 5;

/// A few commits, and where the log ended after each.
fn log() -> (Vec<u8>, Vec<usize>) {
    let disk = Disk::formatted();
    let mut ends = vec![4096];
    let mut engine = disk.open();
    for number in 1..=COMMITS {
        let mut tx = engine.begin();
        tx.put(&[b'k', number], 7, &vec![number; usize::from(number) * 9]).unwrap();
        if number > 1 {
            tx.delete(&[b'k', number - 1]).unwrap();
        }
        tx.commit().unwrap();
        let used = disk.bytes().iter().rposition(|byte| *byte != 0).unwrap() + 1;
        ends.push(used.next_multiple_of(16));
    }
    // What is allocated ahead reads as zeros; a page of it is enough here.
    let mut bytes = disk.bytes();
    bytes.truncate(ends[usize::from(COMMITS)].next_multiple_of(4096) + 4096);
    (bytes, ends)
}

fn commits_of(engine: &Engine) -> u64 {
    let number = engine.summary().commit;
    for key in 1..=COMMITS {
        let value = engine.read().get(&[b'k', key]).map(|value| value.bytes.to_vec());
        let expected = (u64::from(key) == number).then(|| vec![key; usize::from(key) * 9]);
        assert_eq!(value, expected, "after commit {number}");
    }
    number
}

#[test]
fn a_file_that_is_long_and_empty_is_read_in_no_time() {
    let (bytes, ends) = log();
    let disk = Disk::holding(&bytes);
    let file = disk.file();
    // Reading this much would take minutes.
    file.set_len(1 << 40).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"far", (1 << 40) - 3).unwrap();
    let begun = std::time::Instant::now();
    assert_eq!(offline::inspect(&file).unwrap().commit, u64::from(COMMITS));
    assert!(begun.elapsed().as_secs() < 10, "the hole was read");
    // A record behind the hole is found all the same.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 16], ends[3] as u64).unwrap();
    let record = &bytes[ends[4]..ends[5]];
    std::os::unix::fs::FileExt::write_all_at(&file, record, 1 << 39).unwrap();
    assert!(matches!(offline::inspect(&file), Err(StateError::Corrupt { .. })));
}

#[test]
fn a_log_that_is_cut_anywhere_keeps_every_commit_that_was_whole() {
    let (bytes, ends) = log();
    for cut in 4096..=ends[usize::from(COMMITS)] {
        // Once as a short file, once as blocks that were allocated and never written. There, a cut inside of the zeros that
        // end a record takes nothing away from it.
        let mut zeroed = bytes.clone();
        zeroed[cut..].fill(0);
        for image in [&bytes[..cut], &zeroed] {
            let whole = ends.iter().filter(|end| image.get(..**end) == Some(&bytes[..**end])).count() - 1;
            let disk = Disk::holding(image);
            assert_eq!(offline::inspect(&disk.file()).unwrap().commit, whole as u64, "cut at {cut}");
            let mut engine = disk.open();
            let found = commits_of(&engine);
            assert_eq!(found, whole as u64, "cut at {cut}");
            let behind = &disk.bytes()[ends[whole]..];
            assert!(behind.iter().all(|byte| *byte == 0), "cut at {cut}: pieces of the torn commit stay");
            if cut % 7 == 0 {
                goes_on(&mut engine, &disk, found);
            }
        }
    }
}

/// After a cut, commits go on, and the pieces of the torn one are gone for good.
fn goes_on(engine: &mut Engine, disk: &Disk, before: u64) {
    let mut tx = engine.begin();
    tx.put(b"x", 0, b"y").unwrap();
    assert_eq!(tx.commit().unwrap(), before + 1);
    drop(tx);
    let again = disk.open();
    assert_eq!(again.summary().commit, before + 1);
    assert_eq!(again.read().get(b"x").unwrap().bytes, b"y");
}

#[test]
fn a_header_that_is_cut_is_no_header() {
    let (bytes, _) = log();
    for cut in [0, 1, 95, 96, 2048, 2143] {
        let disk = Disk::holding(&bytes[..cut]);
        let result = disk.try_open(OpenOptions::with_quota(1 << 20));
        assert!(matches!(result, Err(StateError::NotFormatted)), "cut at {cut}: {result:?}");
    }
    let blank = Disk::holding(&[0; 8192]);
    assert!(matches!(offline::inspect(&blank.file()), Err(StateError::NotFormatted)));
}

#[test]
fn every_flipped_bit_is_damage_or_cuts_the_last_commit_and_never_passes() {
    let (bytes, ends) = log();
    let last_start = ends[usize::from(COMMITS) - 1];
    let all = offline::inspect(&Disk::holding(&bytes).file()).unwrap();
    let disk = Disk::holding(&bytes);
    for byte in (0..96).chain(2048..2144).chain(4096..ends[usize::from(COMMITS)]) {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[byte] ^= 1 << bit;
            std::fs::write(disk.path(), &flipped).unwrap();
            match offline::inspect(&disk.file()) {
                Err(StateError::Corrupt { .. }) => {
                    assert!(byte < last_start, "byte {byte} bit {bit}: only a torn tail")
                }
                Ok(Summary { commit, .. }) => {
                    assert!(byte >= last_start, "byte {byte} bit {bit} passed");
                    assert_eq!(commit, all.commit - 1, "byte {byte} bit {bit}");
                }
                Err(other) => panic!("byte {byte} bit {bit}: {other}"),
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_a_copy_is_damage() {
    let (bytes, _) = log();
    let copy = Disk::empty();
    offline::copy_live(&Disk::holding(&bytes).file(), &copy.file()).unwrap();
    let bytes = copy.bytes();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for byte in (0..96).chain(2048..2144).chain(4096..used) {
        let mut flipped = bytes.clone();
        flipped[byte] ^= 0x10;
        std::fs::write(copy.path(), &flipped).unwrap();
        let result = offline::inspect(&copy.file());
        assert!(matches!(result, Err(StateError::Corrupt { .. })), "byte {byte}: {result:?}");
    }
    for cut in 4096..used {
        std::fs::write(copy.path(), &bytes[..cut]).unwrap();
        let result = offline::inspect(&copy.file());
        assert!(matches!(result, Err(StateError::Corrupt { .. })), "cut at {cut}: {result:?}");
    }
}

#[test]
fn a_copy_that_did_not_finish_is_not_taken_for_state() {
    let (bytes, _) = log();
    let copy = Disk::empty();
    offline::copy_live(&Disk::holding(&bytes).file(), &copy.file()).unwrap();
    let mut unfinished = copy.bytes();
    unfinished[..4096].fill(0);
    let disk = Disk::holding(&unfinished);
    assert!(matches!(offline::inspect(&disk.file()), Err(StateError::NotFormatted)));
}

#[test]
fn records_of_another_file_or_region_do_not_count() {
    let (bytes, ends) = log();
    let mut other = bytes.clone();
    // The same log under a header of a later generation: a region that was given up and not cleared.
    let later = Disk::empty();
    offline::copy_live(&Disk::formatted().file(), &later.file()).unwrap();
    other[..4096].copy_from_slice(&later.bytes()[..4096]);
    let disk = Disk::holding(&other);
    assert_eq!(offline::inspect(&disk.file()).unwrap(), Summary::default());
    let engine = disk.open();
    assert_eq!(engine.summary(), Summary::default());
    assert!(disk.bytes()[4096..ends[1]].iter().all(|byte| *byte == 0), "what is cut is cleared");
}

/// Two histories that part after the first commit have records of equal numbers, places and lengths.
#[test]
fn a_record_of_another_history_does_not_continue_this_one() {
    let disk = Disk::formatted();
    let commit = |disk: &Disk, value: &[u8]| {
        let mut engine = disk.open();
        let mut tx = engine.begin();
        tx.put(b"k", 0, value).unwrap();
        tx.commit().unwrap();
        drop(tx);
        drop(engine);
    };
    commit(&disk, b"common");
    let second = disk.bytes().iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(16);
    let one = disk;
    let other = Disk::holding(&one.bytes());
    for (disk, values) in [(&one, [b"one a", b"one b"]), (&other, [b"two a", b"two b"])] {
        values.iter().for_each(|value| commit(disk, *value));
    }
    let (one, other) = (one.bytes(), other.bytes());
    let third =
        second + (other.iter().rposition(|byte| *byte != 0).unwrap().next_multiple_of(16) - second) / 2;
    let mut spliced = one[..third].to_vec();
    spliced.extend_from_slice(&other[third..]);
    assert_eq!(
        offline::inspect(&Disk::holding(&spliced).file()).unwrap().commit,
        2,
        "a foreign record counts"
    );
    assert_eq!(offline::inspect(&Disk::holding(&one).file()).unwrap().commit, 3);
}

#[test]
fn random_files_never_panic() {
    let mut rng = common::Rng(77);
    let (bytes, ends) = log();
    for _ in 0..2_000 {
        let mut image = bytes.clone();
        for _ in 0..1 + rng.below(20) {
            let at = rng.below(ends[usize::from(COMMITS)]);
            let garbage = rng.bytes(8);
            image[at..at + 8].copy_from_slice(&garbage);
        }
        let disk = Disk::holding(&image);
        if let Ok(engine) = disk.try_open(OpenOptions::with_quota(1 << 20)) {
            assert!(engine.summary().commit <= u64::from(COMMITS));
        }
    }
}
