//! Files in a directory and a log on a disk, as ordinary files of whoever runs the tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use denizen_engine::offline::{Offline, segments_of};
use denizen_engine::storage::Directory;
use denizen_engine::{Access, Lineage, Options};

use super::*;

const LINEAGE: Lineage = Lineage([7; 16]);
const MOST: u64 = 16 << 20;

/// A log, and a directory for files; both stay when the engine is opened anew.
struct Place {
    dir: tempfile::TempDir,
    roots: AtomicU32,
    quota: u64,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("log")).unwrap();
        Place { dir, roots: AtomicU32::new(0), quota: 64 << 20 }
    }

    fn open(&self) -> Engine {
        let storage = Directory::open(self.dir.path().join("log")).unwrap();
        Engine::open(Arc::new(storage), Options::new(LINEAGE, self.quota)).unwrap().0
    }

    /// A fresh sandbox: an empty directory, filled from the log.
    fn start(&self, engine: &Engine) -> (Files, PathBuf, Vec<String>) {
        let number = self.roots.fetch_add(1, Ordering::Relaxed);
        let root = self.dir.path().join(format!("root-{number}"));
        fs::create_dir(&root).unwrap();
        let (files, damaged) = Files::restore(engine, &root, MOST).unwrap();
        (files, root, damaged)
    }
}

fn capture(files: &Files, engine: &Engine) -> Captured {
    files.capture(engine, &patiently).unwrap()
}

/// Commits, waiting for spares, which come by themselves.
fn patiently(writer: &mut FilesWriter) -> Result<u64, NotCommitted> {
    loop {
        match writer.commit() {
            Err(StateError::NoSpare { .. }) => std::thread::sleep(Duration::from_millis(1)),
            committed => return committed.map_err(NotCommitted::State),
        }
    }
}

/// A mode; of a file its time and bytes.
type Shown = (u32, Option<(SystemTime, Vec<u8>)>);

/// Everything below a directory.
fn contents(root: &Path) -> BTreeMap<String, Shown> {
    let of = |(path, metadata): (Vec<u8>, Metadata)| {
        let at = place(root, &path);
        let file = metadata.is_file().then(|| (metadata.modified().unwrap(), fs::read(&at).unwrap()));
        (String::from_utf8(path).unwrap(), (metadata.mode() & FILE_MODE, file))
    };
    walk(root).unwrap().into_iter().map(of).collect()
}

/// What one process left another one finds.
fn assert_comes_back(place: &Place, root: &Path) {
    let engine = place.open();
    let (_, again, damaged) = place.start(&engine);
    assert_eq!(contents(&again), contents(root));
    assert!(damaged.is_empty(), "{damaged:?}");
}

#[test]
fn files_come_back_with_their_bytes_modes_and_times() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    assert_eq!(capture(&files, &engine), Captured::default());
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/empty"), "").unwrap();
    fs::write(root.join("a/b/é\n"), "text").unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(PART * 5 + 123).collect();
    fs::write(root.join("large"), &large).unwrap();
    fs::set_permissions(root.join("large"), Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(root.join("a/b"), Permissions::from_mode(0o500)).unwrap();
    let old = UNIX_EPOCH - Duration::from_millis(1_500);
    let times = FileTimes::new().set_modified(old);
    File::options().append(true).open(root.join("a/empty")).unwrap().set_times(times).unwrap();
    let captured = capture(&files, &engine);
    assert_eq!((captured.changed, captured.bytes), (6, large.len() as u64 + 4));
    assert_eq!(captured.commit, engine.summary().commit);
    drop(engine);
    assert_comes_back(&place, &root);
    let again = contents(&place.dir.path().join("root-1"));
    assert_eq!(again["a/empty"].1.as_ref().unwrap().0, old);
    assert_eq!((again["large"].0, again["a/b"].0), (0o640, 0o500));
    fs::set_permissions(root.join("a/b"), Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(place.dir.path().join("root-1/a/b"), Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn what_did_not_change_is_not_written_again() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    let bytes: Vec<u8> = (0..PART * 4).map(|at| u8::try_from(at / PART + 1).unwrap()).collect();
    fs::write(root.join("large"), &bytes).unwrap();
    fs::write(root.join("small"), "x").unwrap();
    let first = capture(&files, &engine);
    assert_eq!(capture(&files, &engine), Captured { commit: first.commit, changed: 0, bytes: 0 });
    // One byte of it: one part.
    let file = File::options().write(true).open(root.join("large")).unwrap();
    file.write_all_at(b"!", PART as u64 * 2).unwrap();
    let second = capture(&files, &engine);
    assert_eq!((second.changed, second.bytes), (1, PART as u64));
    // Longer by one part that is a hole, and shorter again.
    file.set_len(PART as u64 * 5).unwrap();
    assert_eq!(capture(&files, &engine).bytes, 0);
    file.set_len(PART as u64 * 5 / 2).unwrap();
    assert_eq!(capture(&files, &engine).bytes, PART as u64 / 2);
    // A restored file is compared with what it was restored from.
    drop((engine, files));
    let engine = place.open();
    let (files, again, _) = place.start(&engine);
    assert_eq!(contents(&again), contents(&root));
    let unchanged = capture(&files, &engine);
    assert_eq!((unchanged.changed, unchanged.bytes), (0, 0));
}

/// As many bytes, and the time of modification put back, as some programs do.
#[test]
fn a_change_under_an_old_time_is_seen() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    fs::write(root.join("a"), "before").unwrap();
    capture(&files, &engine);
    // Old enough that a look from outside is trusted.
    std::thread::sleep(TICK * 2);
    capture(&files, &engine);
    let file = File::options().write(true).open(root.join("a")).unwrap();
    let time = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(b"after!", 0).unwrap();
    file.set_modified(time).unwrap();
    assert_eq!(capture(&files, &engine).changed, 1);
    let (_, again, _) = place.start(&engine);
    assert_eq!(fs::read(again.join("a")).unwrap(), b"after!");
}

#[test]
fn renames_move_and_deletions_free() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    fs::create_dir(root.join("dir")).unwrap();
    for name in ["dir/a", "dir/b", "c"] {
        fs::write(root.join(name), name.repeat(PART / 3)).unwrap();
    }
    capture(&files, &engine);
    let full = engine.summary().live_bytes;
    // A directory, a file over another one, and two that change places: nothing of that is written again.
    fs::rename(root.join("dir"), root.join("renamed")).unwrap();
    fs::rename(root.join("c"), root.join("new")).unwrap();
    fs::rename(root.join("renamed/a"), root.join("spare")).unwrap();
    fs::rename(root.join("renamed/b"), root.join("renamed/a")).unwrap();
    fs::rename(root.join("spare"), root.join("renamed/b")).unwrap();
    let renamed = capture(&files, &engine);
    assert_eq!((renamed.bytes, renamed.changed), (0, 8));
    fs::rename(root.join("new"), root.join("renamed/b")).unwrap();
    assert_eq!(capture(&files, &engine).bytes, 0);
    assert!(engine.summary().live_bytes < full, "what was replaced is still there");
    assert_eq!(fs::read_to_string(root.join("renamed/b")).unwrap(), "c".repeat(PART / 3));
    drop(engine);
    assert_comes_back(&place, &root);

    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    fs::remove_dir_all(root.join("renamed")).unwrap();
    capture(&files, &engine);
    assert_eq!((engine.summary().live_bytes, engine.snapshot().file_parts()), (0, vec![]));
}

#[test]
fn a_full_state_keeps_the_last_good_capture() {
    let place = Place { quota: 4 << 20, ..Place::new() };
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    fs::write(root.join("kept"), "good").unwrap();
    let good = capture(&files, &engine);
    let live = engine.summary().live_bytes;
    fs::write(root.join("kept"), "better").unwrap();
    // Enough for commits of parts before the one that does not fit.
    fs::write(root.join("much"), vec![1; 6 << 20]).unwrap();
    let refused = files.capture(&engine, &patiently).unwrap_err();
    let quota = |error: &FilesError| {
        matches!(error, FilesError::Log(NotCommitted::State(StateError::QuotaExceeded { .. })))
    };
    assert!(quota(&refused), "{refused:?}");
    assert!(
        refused.to_string().starts_with("files in /state could not be kept: state would take"),
        "{refused}"
    );
    assert_eq!(engine.summary().live_bytes, live, "half of a capture is still there");
    {
        let engine = engine.clone();
        let (_, before, _) = place.start(&engine);
        assert_eq!(fs::read_to_string(before.join("kept")).unwrap(), "good");
        assert!(!before.join("much").exists());
    }
    fs::remove_file(root.join("much")).unwrap();
    assert!(capture(&files, &engine).commit > good.commit);
    drop(engine);
    assert_comes_back(&place, &root);
}

/// A process that was killed between the parts and the switch: the old files are whole, and the parts go with the next capture.
#[test]
fn a_capture_cut_short_leaves_the_one_before() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    fs::write(root.join("a"), "one").unwrap();
    capture(&files, &engine);
    let parts = engine.snapshot().file_parts();
    let mut cut = engine.write_files();
    cut.put_part(parts[0] + 1, b"never named").unwrap();
    cut.commit().unwrap();
    drop(cut);
    drop((files, engine));
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "one");
    let swept = capture(&files, &engine);
    assert_eq!((swept.changed, engine.snapshot().file_parts()), (0, parts));
}

#[test]
fn holes_stay_holes() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    let file = File::create(root.join("sparse")).unwrap();
    file.set_len(MOST * 3).unwrap();
    // One page in each of many parts: with its holes filled it would not fit any more.
    let many = u64::from(PART_LEN);
    for number in 0..MOST / many {
        file.write_all_at(b"x", number * many + 9).unwrap();
    }
    capture(&files, &engine);
    let (_, again, _) = place.start(&engine);
    let (before, after) = (file.metadata().unwrap(), fs::metadata(again.join("sparse")).unwrap());
    assert_eq!((before.len(), before.blocks()), (after.len(), after.blocks()));
    assert_eq!(fs::read(again.join("sparse")).unwrap(), fs::read(root.join("sparse")).unwrap());
    // More than there is room for cannot have been there at one time.
    fs::write(root.join("more"), vec![1; usize::try_from(MOST).unwrap()]).unwrap();
    assert!(matches!(files.capture(&engine, &patiently), Err(FilesError::Moving)));
}

#[test]
fn paths_that_cannot_be_kept_are_named() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    let deep = "d/".repeat(MAX_DEPTH);
    fs::create_dir_all(root.join(&deep)).unwrap();
    capture(&files, &engine);
    fs::write(root.join(&deep).join("file"), "").unwrap();
    let refused = files.capture(&engine, &patiently).unwrap_err().to_string();
    assert!(refused.starts_with("/state/d/d/d/"), "{refused}");
    assert!(
        refused.contains("/file cannot be kept: a path has at most 1000 bytes and 32 levels"),
        "{refused}"
    );
    fs::remove_dir_all(root.join("d")).unwrap();
    let long = ["x".repeat(250), "y".repeat(250), "z".repeat(250), "w".repeat(250)].join("/");
    fs::create_dir_all(root.join(&long)).unwrap();
    assert!(
        matches!(files.capture(&engine, &patiently), Err(FilesError::Path { path }) if path.len() == 1003)
    );
}

#[test]
fn a_file_system_that_is_too_small_says_what_to_raise() {
    let error =
        FilesError::Restore { path: b"a\nb".to_vec(), source: io::Error::from_raw_os_error(libc::ENOSPC) };
    assert_eq!(
        error.to_string(),
        "/state/a\\nb cannot be restored (No space left on device (os error 28)): raise `files` under [limits]"
    );
}

#[test]
fn a_damaged_file_is_closed_and_stays_in_the_log_until_it_is_replaced() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    fs::write(root.join("bad"), vec![7; PART + 5]).unwrap();
    fs::write(root.join("good"), "good").unwrap();
    capture(&files, &engine);
    let parts = engine.snapshot().file_parts();
    let mut hand = engine.write_files();
    // Shorter than its file says: the damage that a test can do without touching the disk.
    hand.put_part(parts[1], b"four").unwrap();
    hand.commit().unwrap();
    drop(files);

    let (files, root, damaged) = place.start(&engine);
    assert_eq!(damaged.len(), 1);
    assert!(damaged[0].starts_with("/state/bad is damaged (segment 0 is damaged"), "{damaged:?}");
    let stands = fs::metadata(root.join("bad")).unwrap();
    assert_eq!((stands.len(), stands.mode() & FILE_MODE), (0, 0));
    assert_eq!(fs::read_to_string(root.join("good")).unwrap(), "good");
    fs::write(root.join("other"), "other").unwrap();
    capture(&files, &engine);
    assert_eq!(engine.snapshot().file_parts()[..2], parts[..2], "the damaged file was given up");
    fs::remove_file(root.join("bad")).unwrap();
    fs::write(root.join("bad"), "new").unwrap();
    capture(&files, &engine);
    let (_, root, damaged) = place.start(&engine);
    assert_eq!((damaged.len(), fs::read_to_string(root.join("bad")).unwrap()), (0, "new".to_owned()));
    assert!(!engine.snapshot().file_parts().contains(&parts[0]));
}

/// As `cx.sync_files()` does it: inside a function, whose own writes are another matter.
#[test]
fn a_capture_is_no_part_of_the_invocation_around_it() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    for access in [Access::Exclusive, Access::Sole] {
        let mut tx = engine.begin(access);
        tx.put_bytes(b"key", b"value").unwrap();
        fs::write(root.join("a"), format!("{access:?}")).unwrap();
        let captured = capture(&files, &engine);
        assert!(captured.commit > tx.commit_number());
        drop(tx);
    }
    assert!(engine.snapshot().get(b"key").unwrap().is_none());
    drop(engine);
    assert_comes_back(&place, &root);
}

struct AtEnd<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn captures_beside_changes_are_each_whole() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0_u32.. {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                // Replaced whole, as careful programs do it; and moved from one directory to the other.
                let (from, to) = if round.is_multiple_of(2) { ("x", "y") } else { ("y", "x") };
                fs::create_dir_all(root.join(to)).unwrap();
                fs::write(root.join("new"), round.to_le_bytes().repeat(PART / 2)).unwrap();
                fs::rename(root.join("new"), root.join("whole")).unwrap();
                if fs::rename(root.join(from).join("moved"), root.join(to).join("moved")).is_err() {
                    fs::write(root.join(to).join("moved"), "m").unwrap();
                }
            }
        });
        // Also when an assertion fails: the scope waits for its threads.
        let _end = AtEnd(&end);
        for _ in 0..30 {
            let captured = files.capture(&engine, &patiently);
            let Ok(_) = captured else { continue };
            let (_, again, _) = place.start(&engine);
            let Ok(whole) = fs::read(again.join("whole")) else { continue };
            assert!(whole.chunks(4).all(|word| word == &whole[..4]) && whole.len() == PART * 2);
        }
    });
    capture(&files, &engine);
    drop(engine);
    assert_comes_back(&place, &root);
}

#[test]
fn captures_that_nobody_asked_for_are_rare() {
    let place = Place::new();
    let engine = place.open();
    let (files, _, _) = place.start(&engine);
    assert!(files.capture_if_due(&engine, &patiently).is_none());
    files.catalog.lock().unwrap().due = Instant::now();
    assert!(matches!(files.capture_if_due(&engine, &patiently), Some(Ok(_))));
    assert!(files.capture_if_due(&engine, &patiently).is_none());
}

#[test]
fn files_are_listed_without_a_process() {
    let place = Place::new();
    let engine = place.open();
    let (files, root, _) = place.start(&engine);
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/file"), "bytes").unwrap();
    capture(&files, &engine);
    engine.seal().unwrap();
    drop(engine);
    let segments = segments_of(&Directory::open_read_only(place.dir.path().join("log")).unwrap()).unwrap();
    let offline = Offline::read(&segments, Some(LINEAGE)).unwrap();
    let listed: Vec<_> = offline
        .files()
        .unwrap()
        .into_iter()
        .map(|(path, entry)| (path.to_vec(), entry.unwrap().len()))
        .collect();
    assert_eq!(listed, [(b"dir".to_vec(), 0), (b"dir/file".to_vec(), 5)]);
    let entry = offline.file_entry(b"dir/file").unwrap().unwrap();
    let pieces: Vec<_> = entry.pieces().map(|piece| offline.file_piece(piece).unwrap()).collect();
    assert_eq!(pieces, [Some(b"bytes".to_vec())]);
}
