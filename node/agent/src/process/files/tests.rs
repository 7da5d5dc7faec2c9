//! Every step of the order in [`super`] with a crash behind it, on real folders and with the real engine.

use std::sync::{Arc, Mutex};

use denizen_engine::storage::{Directory, FileSegment, Segment, Storage};
use denizen_engine::{Access, Durability, Engine, Options};

use std::os::unix::fs::MetadataExt;

use futures_lite::future::block_on;

use super::*;
use crate::dir::Dir;
use crate::side::SideThread;

const BORN: Epoch = Epoch::new(7);
const NEW: Origin = Origin::New { born: BORN };
const QUOTA: u64 = 1 << 20;

/// A node's folder with one process.
struct Room {
    _dir: tempfile::TempDir,
    paths: ProcessPaths,
    stock: Stock,
}

impl Room {
    fn new() -> Room {
        let dir = tempfile::tempdir().unwrap();
        let node = Dir::open(dir.path()).unwrap();
        let stock = Stock::open(node.stock(), 2).unwrap();
        Room { paths: node.process("app", "process"), stock, _dir: dir }
    }

    fn open(&self, origin: Origin, epoch: u64) -> Result<Opened, Problem> {
        self.open_as(&whose(7), origin, epoch)
    }

    fn open_as(&self, whose: &Whose, origin: Origin, epoch: u64) -> Result<Opened, Problem> {
        let opened = open(&self.paths, whose, Epoch::new(epoch), origin, 0, Bounds::of(QUOTA), &self.stock);
        opened.inspect(|opened| {
            // As before a function runs.
            let Names { folders, fresh } = &opened.names;
            Names { folders: folders.clone(), fresh: fresh.as_ref().map(|file| file.try_clone().unwrap()) }
                .sync()
                .unwrap();
        })
    }

    fn at_rest(&self, lies: Lies, durable: u64) -> Result<Summary, Problem> {
        AtRest { paths: &self.paths, whose: &whose(7), lies, durable }.swap_out(Epoch::new(9), None)
    }

    /// Swapped out by term 9.
    fn swap_out(&self) -> Summary {
        self.at_rest(Lies::Here, 0).unwrap()
    }
}

/// A process's state is found by its name and those of its folders; whoever promises a commit has to have written them.
#[test]
fn all_names_of_a_new_process_are_synced_before_a_function_runs() {
    let room = Room::new();
    let synced = || crate::dir::tests::SYNCED.take();
    synced();
    room.open(NEW, 7).unwrap();
    let (local, app) = (room.paths.local.clone(), room.paths.state.clone());
    let state = app.parent().unwrap().to_owned();
    assert_eq!(synced(), [local.clone(), app.clone(), state.clone()], "a new process's folders");
    room.open(Origin::Local, 8).unwrap();
    assert_eq!(synced(), [local, app, state], "its first term may have ended before");
}

const SWAPPED: Origin = Origin::Swapped { epoch: Epoch::new(9) };

fn whose(born: u64) -> Whose {
    Whose { app: "app".to_owned(), process: "process".to_owned(), born: Epoch::new(born) }
}

/// The segments that a runner was handed, and it asks for no more.
#[derive(Debug)]
struct Given {
    log: Vec<Arc<dyn Segment>>,
    spare: Mutex<Option<Arc<dyn Segment>>>,
}

impl Storage for Given {
    fn segments(&self) -> io::Result<Vec<Arc<dyn Segment>>> {
        Ok(self.log.clone())
    }

    fn take_spare(&self, min_bytes: u64) -> io::Result<Option<Arc<dyn Segment>>> {
        Ok(self.spare.lock().unwrap().take_if(|spare| spare.capacity() >= min_bytes))
    }

    fn request_spare(&self, _: u64) {}

    fn retire(&self, _: u64) {}
}

/// As a runner does.
fn engine(opened: Opened, whose: &Whose) -> Result<Engine, StateError> {
    let segment = |handed: Handed| {
        let Handed { id, writable, read_only, .. } = handed;
        Arc::new(FileSegment::new(id, Some(writable), read_only).unwrap()) as Arc<dyn Segment>
    };
    let spare = Mutex::new(Some(segment(opened.spare)));
    let storage = Given { log: opened.log.into_iter().map(segment).collect(), spare };
    Engine::open(Arc::new(storage), Options::new(whose.lineage(), QUOTA)).map(|(engine, _)| engine)
}

fn put(opened: Opened, value: &[u8]) -> u64 {
    let engine = engine(opened, &whose(7)).unwrap();
    let mut transaction = engine.begin(Access::Exclusive);
    transaction.put(b"key", 0, value).unwrap();
    let commit = transaction.commit().unwrap();
    engine.wait(commit, Durability::Node).unwrap();
    commit
}

fn value(opened: Opened, whose: &Whose) -> Vec<u8> {
    let engine = engine(opened, whose).unwrap();
    let snapshot = engine.snapshot();
    let value = snapshot.get(b"key").unwrap();
    value.map(|value| value.bytes.to_vec()).unwrap_or_default()
}

#[test]
fn state_goes_out_and_comes_back() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    let summary = room.swap_out();
    assert!(summary.commit >= 1 && summary.live_bytes > 0);
    forget_local(&room.paths);
    assert!(!room.paths.local.exists());
    assert_eq!(value(room.open(SWAPPED, 10).unwrap(), &whose(7)), b"one");
    remove_swapped(&room.paths, None).unwrap();
    assert!(!room.paths.swap.exists());
    assert_eq!(value(room.open(Origin::Local, 11).unwrap(), &whose(7)), b"one");
}

#[test]
fn numbers_of_segments_are_never_used_twice() {
    let room = Room::new();
    let mut seen = std::collections::BTreeSet::new();
    let mut note = |ids: Vec<u64>| {
        for id in ids {
            assert!(seen.insert(id), "segment {id} was there before");
        }
    };
    put(room.open(NEW, 7).unwrap(), b"one");
    note(folder::ids(&room.paths.local).unwrap());
    room.swap_out();
    forget_local(&room.paths);
    let swapped = folder::ids(&room.paths.swapped(Epoch::new(9))).unwrap();
    let opened = room.open(SWAPPED, 10).unwrap();
    assert_eq!(opened.log.iter().map(|segment| segment.id).collect::<Vec<_>>(), swapped);
    note(folder::ids(&room.paths.local).unwrap());
}

#[test]
fn what_the_record_points_to_counts_whatever_else_lies_there() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    room.swap_out();
    // A crash here leaves both. The record says local: a commit made there since counts.
    put(room.open(Origin::Local, 8).unwrap(), b"two");
    assert_eq!(value(room.open(Origin::Local, 9).unwrap(), &whose(7)), b"two");
    // The record says swapped: nobody can have had a reply from the local segments.
    assert_eq!(value(room.open(SWAPPED, 10).unwrap(), &whose(7)), b"one");
}

/// A node dies after a reply and before the record says that the state was swapped in; and once more while it starts again.
#[test]
fn state_that_was_moved_in_counts_before_the_record_says_so() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    room.swap_out();
    forget_local(&room.paths);
    let swapped = folder_of(&room.paths.swapped(Epoch::new(9)));
    let opened = room.open(SWAPPED, 10).unwrap();
    assert!(!opened.copied);
    assert_eq!(folder_of(&room.paths.local), swapped, "it was copied without need");
    assert!(!room.paths.swapped(Epoch::new(9)).exists());
    put(opened, b"replied");
    assert_eq!(value(room.open(SWAPPED, 11).unwrap(), &whose(7)), b"replied");
    assert_eq!(value(room.open(SWAPPED, 12).unwrap(), &whose(7)), b"replied");
    // Who reads it without a sandbox finds it, too, and may swap it out once more.
    let (paths, whose) = (&room.paths, &whose(7));
    let at_rest = AtRest { paths, whose, lies: Lies::Swapped(Epoch::new(9)), durable: 0 };
    assert_eq!(at_rest.read().unwrap().get(b"key").unwrap().as_deref(), Some(&b"replied"[..]));
    at_rest.swap_out(Epoch::new(13), None).unwrap();
    forget_local(paths);
    let later = Origin::Swapped { epoch: Epoch::new(13) };
    assert_eq!(value(room.open(later, 14).unwrap(), whose), b"replied");
}

/// Nobody has synced the folders' names, but a commit was synced: it is in the folder, wherever that lies then.
#[test]
fn a_loss_of_power_that_takes_the_move_back_takes_no_commit_along() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    room.swap_out();
    forget_local(&room.paths);
    put(room.open(SWAPPED, 10).unwrap(), b"two");
    std::fs::rename(&room.paths.local, room.paths.swapped(Epoch::new(9))).unwrap();
    let (paths, whose) = (&room.paths, &whose(7));
    let at_rest = AtRest { paths, whose, lies: Lies::Swapped(Epoch::new(9)), durable: 0 };
    assert_eq!(at_rest.read().unwrap().get(b"key").unwrap().as_deref(), Some(&b"two"[..]));
    assert_eq!(value(room.open(SWAPPED, 11).unwrap(), whose), b"two");
}

/// Before anything is called durable that is written after a swap-in, the place where it is found is on the disk.
#[test]
fn the_names_of_what_was_moved_in_are_synced_before_it_is_called_durable() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    room.swap_out();
    forget_local(&room.paths);
    crate::dir::tests::SYNCED.take();
    room.open(SWAPPED, 10).unwrap();
    let (local, app) = (room.paths.local.clone(), room.paths.state.clone());
    let state = app.parent().unwrap().to_owned();
    assert_eq!(crate::dir::tests::SYNCED.take(), [local, app, state]);
}

/// What lies at a process's place is not its own because the swap store has nothing of it.
#[test]
fn a_deleted_namesakes_folder_is_not_taken_for_swapped_state() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"old");
    let namesake = whose(8);
    let problem = room.open_as(&namesake, SWAPPED, 10).expect_err("its own is gone");
    assert_eq!(problem.kind(), Kind::StateLost);
    assert_eq!(value(room.open(Origin::Local, 8).unwrap(), &whose(7)), b"old");
}

/// A swap store on another disk: there are two of the state then, and the record tells which counts.
#[test]
fn what_cannot_be_moved_is_copied_and_counts_when_the_record_says_so() {
    let mut room = Room::new();
    let Ok(other) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED what_cannot_be_moved_is_copied_and_counts_when_the_record_says_so: no /dev/shm");
        return;
    };
    room.paths.swap = other.path().join("process");
    if other.path().metadata().unwrap().dev() == room.paths.state.parent().unwrap().metadata().unwrap().dev()
    {
        eprintln!("SKIPPED what_cannot_be_moved_is_copied_and_counts_when_the_record_says_so: one disk");
        return;
    }
    put(room.open(NEW, 7).unwrap(), b"one");
    room.swap_out();
    forget_local(&room.paths);
    // A crash while it was copied.
    let half = unfinished(&room.paths.local);
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(folder::file(&half, 1), "half").unwrap();
    crate::dir::tests::SYNCED.take();
    let opened = room.open(SWAPPED, 10).unwrap();
    assert!(opened.copied && !half.exists());
    let synced = crate::dir::tests::SYNCED.take();
    assert!(synced.starts_with(&[
        room.paths.state.parent().unwrap().to_owned(),
        half,
        room.paths.state.clone()
    ]));
    put(opened, b"no reply has left");
    // A crash before the record, and one after it.
    assert_eq!(value(room.open(SWAPPED, 11).unwrap(), &whose(7)), b"one");
    put(room.open(SWAPPED, 12).unwrap(), b"two");
    assert_eq!(value(room.open(Origin::Local, 13).unwrap(), &whose(7)), b"two");
}

fn folder_of(path: &Path) -> u64 {
    path.metadata().unwrap().ino()
}

#[test]
fn a_copy_that_broke_off_is_no_state() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    let unfinished_out = unfinished(&room.paths.swapped(Epoch::new(9)));
    std::fs::create_dir_all(&unfinished_out).unwrap();
    std::fs::write(folder::file(&unfinished_out, 1), "half").unwrap();
    room.swap_out();
    assert!(!unfinished_out.exists());
    let unfinished_in = unfinished(&room.paths.local);
    std::fs::create_dir_all(&unfinished_in).unwrap();
    std::fs::write(folder::file(&unfinished_in, 1), "half").unwrap();
    assert_eq!(value(room.open(SWAPPED, 10).unwrap(), &whose(7)), b"one");
}

#[test]
fn a_namesake_of_a_deleted_process_finds_nothing() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"old");
    room.swap_out();
    let namesake = whose(8);
    let opened = room.open_as(&namesake, Origin::New { born: Epoch::new(8) }, 8).unwrap();
    assert_eq!(value(opened, &namesake), b"");
    assert!(!room.paths.swap.exists());
}

/// The node died after a reply and before the record said that there is state; and once more while it started again.
#[test]
fn a_commit_that_the_record_does_not_know_of_counts() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"replied");
    assert_eq!(value(room.open(NEW, 8).unwrap(), &whose(7)), b"replied");
    assert_eq!(value(room.open(NEW, 9).unwrap(), &whose(7)), b"replied");
    assert_eq!(room.at_rest(Lies::Perhaps, 0).unwrap().live_bytes, room.swap_out().live_bytes);
}

/// A claim that a full disk or a crash took back left a spare. The next claim has its number.
#[test]
fn a_term_that_is_handed_out_again_takes_no_number_of_the_one_before() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    let side = SideThread::start("files-test").unwrap();
    let stock = room.paths.state.parent().unwrap().with_file_name("stock");
    for _ in 0..3 {
        room.stock.refill(&side);
        while std::fs::read_dir(&stock).unwrap().count() < 2 || block_on(side.run(|| ())).is_err() {}
        let taken_back = room.open(Origin::Local, 8).unwrap();
        let lost = folder::file(&room.paths.local, taken_back.spare.id);
        let number = |path: &Path| path.metadata().unwrap().ino();
        let inode = number(&lost);
        let again = room.open(Origin::Local, 8).unwrap();
        assert!(again.log.iter().all(|segment| segment.id < again.spare.id), "two segments of one number");
        assert_eq!(number(&lost), inode, "a segment took the place of another");
        drop(taken_back);
    }
    // Without a stock, too.
    let (first, second) = (room.open(Origin::Local, 9).unwrap(), room.open(Origin::Local, 9).unwrap());
    assert!(first.spare.id < second.spare.id);
    drop(first);
    put(second, b"two");
    assert_eq!(value(room.open(Origin::Local, 10).unwrap(), &whose(7)), b"two");
}

/// Its first term: nothing that lies there can be its own.
#[test]
fn what_a_deleted_namesake_left_is_in_nobodys_way() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"old");
    put(room.open(Origin::Local, 8).unwrap(), b"older");
    damage_header(&room);
    let second = folder::file(&room.paths.local, folder::ids(&room.paths.local).unwrap()[1]);
    let aside = room.paths.local.with_file_name("aside");
    std::fs::rename(&second, &aside).unwrap();
    assert_eq!(room.open(NEW, 8).expect_err("it is its own").kind(), Kind::StateCorrupt);
    std::fs::rename(aside, second).unwrap();
    dir::make(&unfinished(&room.paths.local)).unwrap();
    let namesake = whose(9);
    let opened = room.open_as(&namesake, Origin::New { born: Epoch::new(9) }, 9).unwrap();
    assert_eq!(value(opened, &namesake), b"");
    assert!(!unfinished(&room.paths.local).exists());
    dir::make(&unfinished(&room.paths.local)).unwrap();
    delete(&room.paths);
    assert_eq!(std::fs::read_dir(&room.paths.state).unwrap().count(), 0);
}

fn damage_header(room: &Room) {
    let file = folder::file(&room.paths.local, folder::ids(&room.paths.local).unwrap()[0]);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[100] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// The power went while the log wrote its first header. The record does not know of the process yet, and nobody had a reply.
#[test]
fn a_first_header_that_was_cut_short_is_no_damage() {
    let room = Room::new();
    let opened = room.open(NEW, 7).unwrap();
    let file = folder::file(&room.paths.local, opened.spare.id);
    put(opened, b"one");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[512..].fill(0);
    std::fs::write(file, bytes).unwrap();
    assert_eq!(room.at_rest(Lies::Perhaps, 0).unwrap().live_bytes, 0);
    assert_eq!(value(room.open(NEW, 8).unwrap(), &whose(7)), b"");
}

/// Another process's start may have made the application's folder, and not have synced it yet.
#[test]
fn a_new_process_makes_all_of_its_names_last() {
    let room = Room::new();
    dir::make(&room.paths.state).unwrap();
    let names = room.open(NEW, 7).unwrap().names;
    let all = [room.paths.local.clone(), room.paths.state.clone(), room.paths.state.parent().unwrap().into()];
    assert_eq!(names.folders, all);
}

#[test]
fn what_belongs_to_others_or_was_never_written_does_not_count() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"another's");
    let other = Whose { process: "other".to_owned(), ..whose(7) };
    assert_eq!(value(room.open_as(&other, NEW, 8).unwrap(), &other), b"");
    // Power was cut before the disk had what was allocated.
    for content in [vec![], vec![0; 8192]] {
        dir::remove(&room.paths.local).unwrap();
        dir::make(&room.paths.local).unwrap();
        std::fs::write(folder::file(&room.paths.local, 1), content).unwrap();
        assert_eq!(value(room.open(NEW, 9).unwrap(), &whose(7)), b"");
    }
}

#[test]
fn lost_state_is_said_and_never_made_anew() {
    let room = Room::new();
    for origin in [Origin::Local, SWAPPED] {
        assert_eq!(room.open(origin, 10).expect_err("there is no folder").kind(), Kind::StateLost);
    }
    for folder in [room.paths.local.clone(), room.paths.swapped(Epoch::new(9))] {
        dir::make(&folder).unwrap();
    }
    for origin in [Origin::Local, SWAPPED] {
        assert_eq!(room.open(origin, 10).expect_err("its segments are gone").kind(), Kind::StateLost);
    }
    assert_eq!(room.at_rest(Lies::Here, 0).expect_err("it is empty").kind(), Kind::StateLost);
    delete(&room.paths);
}

#[test]
fn a_log_that_ends_before_what_was_durable_is_not_passed_on() {
    let room = Room::new();
    let commit = put(room.open(NEW, 7).unwrap(), b"one");
    assert!(room.at_rest(Lies::Here, commit).is_ok());
    let problem = room.at_rest(Lies::Here, commit + 1).expect_err("its end is gone");
    assert_eq!(problem.kind(), Kind::StateCorrupt);
    assert!(problem.to_string().contains("durable"), "{problem}");
}

#[test]
fn a_segment_of_another_process_is_named() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    let other = Whose { process: "other".to_owned(), ..whose(7) };
    let problem = AtRest { paths: &room.paths, whose: &other, lies: Lies::Here, durable: 0 }.read();
    assert_eq!(problem.map(drop).expect_err("it is another's").kind(), Kind::StateCorrupt);
    assert!(matches!(
        engine(room.open(Origin::Local, 8).unwrap(), &other),
        Err(StateError::ForeignSegment { .. })
    ));
}

fn edit(room: &Room, epoch: u64, edits: Vec<Edit>) -> Result<Summary, Problem> {
    let mut edits = edits.into_iter();
    let mut next = || Ok(edits.next());
    let mut edits = Edits { quota_bytes: QUOTA, must_have: None, next: &mut next };
    let lies = if room.paths.local.exists() { Lies::Here } else { Lies::Swapped(Epoch::new(9)) };
    let state = AtRest { paths: &room.paths, whose: &whose(7), lies, durable: 0 };
    state.swap_out(Epoch::new(epoch), Some(&mut edits))
}

fn putting(value: &[u8]) -> Edit {
    Edit { key: b"key".to_vec(), change: Some((0, value.to_vec())) }
}

#[test]
fn an_edit_makes_a_new_copy_and_leaves_the_old_one() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    edit(&room, 9, vec![putting(b"two")]).unwrap();
    // A crash here: the record says local.
    assert_eq!(value(room.open(Origin::Local, 10).unwrap(), &whose(7)), b"one");
    forget_local(&room.paths);
    let deleting = Edit { key: b"key".to_vec(), change: None };
    let summary = edit(&room, 12, vec![putting(b"three"), deleting]).unwrap();
    assert_eq!(summary.live_bytes, 0);
    assert_eq!(value(room.open(SWAPPED, 13).unwrap(), &whose(7)), b"two");
    let later = Origin::Swapped { epoch: Epoch::new(12) };
    assert_eq!(value(room.open(later, 14).unwrap(), &whose(7)), b"");
}

#[test]
fn an_edit_over_the_quota_leaves_nothing_behind() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    let too_much = vec![7; usize::try_from(QUOTA).unwrap() + 1];
    let problem = edit(&room, 9, vec![putting(&too_much)]).expect_err("it is too much");
    assert_eq!(problem.kind(), Kind::StateQuota);
    assert_eq!(std::fs::read_dir(&room.paths.swap).unwrap().count(), 0);
}

/// The damage stays one object's, wherever the state goes.
#[test]
fn damage_to_one_object_goes_along_and_costs_no_other() {
    let room = Room::new();
    let engine = engine(room.open(NEW, 7).unwrap(), &whose(7)).unwrap();
    let mut transaction = engine.begin(Access::Exclusive);
    transaction.put(b"bad", 0, &[0xAB; 100]).unwrap();
    transaction.put(b"key", 0, b"good").unwrap();
    transaction.commit().unwrap();
    engine.seal().unwrap();
    drop(engine);
    let file = folder::file(&room.paths.local, folder::ids(&room.paths.local).unwrap()[0]);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.windows(100).position(|part| part == [0xAB; 100]).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    room.swap_out();
    forget_local(&room.paths);
    let engine = self::engine(room.open(SWAPPED, 10).unwrap(), &whose(7)).unwrap();
    let snapshot = engine.snapshot();
    assert_eq!(snapshot.get(b"key").unwrap().unwrap().bytes, b"good");
    assert!(matches!(snapshot.get(b"bad"), Err(StateError::Corrupt(_))));
}

#[test]
fn the_engines_own_directory_reads_what_is_written_here() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    let directory = Directory::open_read_only(&room.paths.local).unwrap();
    let segments = denizen_engine::offline::segments_of(&directory).unwrap();
    let log = Offline::read(&segments, Some(whose(7).lineage())).unwrap();
    assert_eq!(log.get(b"key").unwrap().as_deref(), Some(&b"one"[..]));
}

fn numbers(path: &Path) -> Vec<(u64, u64)> {
    let inode = |id| folder::file(path, id).metadata().unwrap().ino();
    folder::ids(path).unwrap().into_iter().map(|id| (id, inode(id))).collect()
}

/// The pages of a failed sync count as written: only new files are synced for what they hold.
#[test]
fn what_a_failed_sync_has_left_is_copied_before_a_sandbox_gets_it() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    let before = numbers(&room.paths.local);
    mark(&room.paths.local).unwrap();
    // An agent that starts anew knows of it by the mark alone.
    let opened = room.open(Origin::Local, 8).unwrap();
    let given: Vec<u64> = opened.log.iter().map(|segment| segment.id).collect();
    let after = numbers(&room.paths.local);
    assert!(given.iter().all(|id| before.iter().all(|(old, _)| old != id)), "an old file was handed out");
    assert!(
        after.iter().all(|(_, file)| before.iter().all(|(_, old)| old != file)),
        "an old file is still there"
    );
    assert!(!is_marked(&room.paths.local) && !unfinished(&room.paths.local).exists());
    assert_eq!(value(opened, &whose(7)), b"one");
    // The next one is as ever, and numbers go on.
    mark(&room.paths.local).unwrap();
    let again = room.open(Origin::Local, 9).unwrap();
    assert!(again.log.iter().all(|segment| after.iter().all(|(old, _)| *old != segment.id)));
    assert_eq!(value(again, &whose(7)), b"one");
    let kept = numbers(&room.paths.local);
    assert_eq!(value(room.open(Origin::Local, 10).unwrap(), &whose(7)), b"one");
    let files = numbers(&room.paths.local);
    assert!(kept.iter().all(|file| files.contains(file)), "it was copied without need");
}

#[test]
fn a_commit_is_not_called_durable_by_syncing_a_suspect_file_again() {
    let room = Room::new();
    let commit = put(room.open(NEW, 7).unwrap(), b"one");
    let before = numbers(&room.paths.local);
    mark(&room.paths.local).unwrap();
    let (paths, whose) = (&room.paths, &whose(7));
    let sync = |durable| AtRest { paths, whose, lies: Lies::Here, durable }.sync();
    // What was promised and cannot be read any more stays an error, and the mark stays.
    let problem = sync(commit + 100).expect_err("commits are missing");
    assert_eq!(problem.kind(), Kind::StateCorrupt, "{problem}");
    assert!(is_marked(&room.paths.local));
    assert_eq!(numbers(&room.paths.local), before);
    assert_eq!(sync(commit).unwrap(), commit);
    let after = numbers(&room.paths.local);
    assert!(
        after.iter().all(|(_, file)| before.iter().all(|(_, old)| old != file)),
        "an old file is still there"
    );
    assert!(!is_marked(&room.paths.local));
    assert_eq!(value(room.open(Origin::Local, 8).unwrap(), whose), b"one");
}

#[test]
fn a_recovery_that_breaks_off_is_begun_again() {
    let room = Room::new();
    put(room.open(NEW, 7).unwrap(), b"one");
    mark(&room.paths.local).unwrap();
    // A crash in step 3.
    let half = unfinished(&room.paths.local);
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(folder::file(&half, 1), "half").unwrap();
    assert_eq!(value(room.open(Origin::Local, 8).unwrap(), &whose(7)), b"one");
    assert!(!half.exists() && !is_marked(&room.paths.local));
    // What was never committed to is recovered as what it is.
    let empty = Room::new();
    drop(empty.open(NEW, 7).unwrap());
    mark(&empty.paths.local).unwrap();
    assert_eq!(value(empty.open(Origin::Local, 8).unwrap(), &whose(7)), b"");
    mark(&empty.paths.swap.join("nowhere")).unwrap();
}

#[test]
fn a_disk_that_does_not_tell_what_is_free_gets_no_copy() {
    let folder = Path::new("state");
    assert!(copy_fits(10, Ok(10), folder).is_ok());
    assert_eq!(copy_fits(10, Ok(9), folder).unwrap_err().kind(), Kind::NoSpace);
    assert!(copy_fits(10, Err(io::Error::from_raw_os_error(5)), folder).is_err());
}
