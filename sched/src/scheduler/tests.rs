//! The scheduler over real files, over a disk that fails, and over a disk that forgets what was not flushed.

mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use denizen_image::ImageId;
use futures_lite::future::block_on;
use redb::TableDefinition;
use serde_json::json;

use super::*;
use crate::{Home, Origin, Phase};
use disk::Disk;

fn app(name: &str) -> AppName {
    AppName::new(name).unwrap()
}

fn name(name: &str) -> ProcessName {
    ProcessName::new(name).unwrap()
}

fn image(tag: &str, processes: u64) -> ImageRecord {
    let mut manifest = Manifest::default_for("a");
    manifest.limits.processes = processes;
    ImageRecord {
        image: ImageId::of(tag.as_bytes()),
        manifest: serde_json::to_value(manifest).unwrap(),
        declarations: json!({"functions": []}),
        created_at_ms: 7,
    }
}

/// A scheduler with one application `a`, asked without an executor.
struct Room {
    _dir: tempfile::TempDir,
    path: PathBuf,
    handle: SchedulerHandle,
}

impl Room {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sched.redb");
        let handle = Scheduler::open(&path, Config::default()).unwrap();
        block_on(handle.deploy(app("a"), image("one", 1000))).unwrap();
        Self { _dir: dir, path, handle }
    }

    fn reopened(self) -> Self {
        block_on(self.handle.stop()).unwrap();
        let handle = Scheduler::open(&self.path, Config::default()).unwrap();
        Self { handle, ..self }
    }

    fn claim(&self, process: &str) -> Claim {
        self.try_claim(process, Create::IfMissing).unwrap()
    }

    fn try_claim(&self, process: &str, create: Create) -> Result<Claim, SchedError> {
        block_on(self.handle.claim(app("a"), name(process), create))
    }

    fn settled(&self, process: &str, epoch: Epoch, settled: Settled) -> Result<(), SchedError> {
        block_on(self.handle.settled(app("a"), name(process), epoch, settled))
    }

    fn get(&self, process: &str) -> ProcessRecord {
        block_on(self.handle.get(app("a"), name(process))).unwrap()
    }

    /// Claims and settles as active.
    fn run(&self, process: &str) -> Epoch {
        let epoch = self.claim(process).epoch;
        self.settled(process, epoch, Settled::Active).unwrap();
        epoch
    }
}

fn new(born: u64) -> Origin {
    Origin::New { born: Epoch::new(born) }
}

const SWAPPED: Settled = Settled::Swapped { bytes: 40, commit: 4, durable: 4 };
const STOPPED: Settled = Settled::Stopped { bytes: 50, commit: 5, durable: 3 };

#[test]
fn a_life() {
    let room = Room::new();
    let first = room.claim("p");
    assert_eq!((first.epoch, first.origin), (Epoch::new(1), new(1)));
    assert_eq!(*first.image, image("one", 1000));
    assert_eq!((room.get("p").phase, room.get("p").home), (Phase::Starting, Home::Nowhere));

    room.settled("p", first.epoch, Settled::Active).unwrap();
    room.settled("p", first.epoch, Settled::Draining).unwrap();
    assert_eq!((room.get("p").phase, room.get("p").home), (Phase::Draining, Home::Local));
    room.settled("p", first.epoch, SWAPPED).unwrap();
    let record = room.get("p");
    assert_eq!((record.phase, record.home), (Phase::Swapped, Home::Swapped { epoch: first.epoch }));
    assert_eq!((record.state_bytes, record.commit), (40, 4));

    let second = room.claim("p");
    assert_eq!(second.origin, Origin::Swapped { epoch: first.epoch });
    room.settled("p", second.epoch, Settled::Active).unwrap();
    room.settled("p", second.epoch, STOPPED).unwrap();
    let record = room.get("p");
    assert_eq!(
        (record.phase, record.home, record.state_bytes, record.commit),
        (Phase::Placed, Home::Local, 50, 5)
    );

    let third = room.claim("p");
    assert_eq!(third.origin, Origin::Local);
    assert_eq!((third.born, third.durable), (first.epoch, 4), "what was durable stays so");
    room.settled("p", third.epoch, Settled::Failed { problem: json!({"type": "x"}), durable: 0 }).unwrap();
    assert_eq!((room.get("p").phase, room.get("p").failure), (Phase::Failed, Some(json!({"type": "x"}))));

    let fourth = room.claim("p");
    assert_eq!((fourth.origin, room.get("p").failure), (Origin::Local, None));
    room.settled("p", fourth.epoch, Settled::Deleted).unwrap();
    assert!(matches!(block_on(room.handle.get(app("a"), name("p"))), Err(SchedError::UnknownProcess { .. })));
    assert_eq!(room.claim("p").origin, new(5), "a namesake is born later");
}

#[test]
fn epochs_only_grow_whatever_happens() {
    let mut room = Room::new();
    let mut last = Epoch::NONE;
    for round in 0..12 {
        for process in ["p", "q"] {
            let epoch = room.claim(process).epoch;
            assert!(epoch > last, "{epoch} after {last}");
            last = epoch;
        }
        match round % 3 {
            0 => drop(block_on(room.handle.delete(app("a"), name("p"))).unwrap()),
            1 => room = room.reopened(),
            _ => {}
        }
    }
}

#[test]
fn the_holder_of_an_old_epoch_can_settle_nothing() {
    let room = Room::new();
    let old = room.run("p");
    let new = room.claim("p").epoch;
    for settled in [Settled::Active, Settled::Draining, SWAPPED, STOPPED, Settled::Deleted] {
        let stale = SchedError::StaleEpoch { given: old, current: new };
        assert_eq!(room.settled("p", old, settled), Err(stale));
    }
    // Nor one that was never handed out, nor that of a deleted namesake.
    assert!(matches!(room.settled("p", Epoch::new(99), Settled::Active), Err(SchedError::StaleEpoch { .. })));
    block_on(room.handle.delete(app("a"), name("p"))).unwrap();
    assert!(matches!(room.settled("p", new, Settled::Active), Err(SchedError::UnknownProcess { .. })));
    room.claim("p");
    assert!(matches!(room.settled("p", new, Settled::Active), Err(SchedError::StaleEpoch { .. })));
}

#[test]
fn steps_that_the_lifecycle_lacks_are_refused_and_change_nothing() {
    let room = Room::new();
    let epoch = room.run("p");
    room.settled("p", epoch, SWAPPED).unwrap();
    let before = room.get("p");
    let error = room.settled("p", epoch, Settled::Active).unwrap_err();
    assert_eq!(error.to_string(), "a process that is swapped has no step activate");
    assert!(room.settled("p", epoch, STOPPED).is_err());
    assert_eq!(room.get("p"), before);
    room.settled("p", epoch, SWAPPED).unwrap();
    assert_eq!(room.get("p"), before, "saying it twice is saying it once");
}

#[test]
fn a_start_that_was_given_up_leaves_the_state_where_it_was() {
    let room = Room::new();
    let epoch = room.run("p");
    room.settled("p", epoch, SWAPPED).unwrap();
    let start = room.claim("p").epoch;
    room.settled("p", start, Settled::Stopped { bytes: 0, commit: 0, durable: 7 }).unwrap();
    let record = room.get("p");
    assert_eq!((record.phase, record.home, record.commit), (Phase::Swapped, Home::Swapped { epoch }, 4));
    assert_eq!(record.durable, 7, "what is known to be durable was forgotten");
    assert_eq!(room.claim("p").origin, Origin::Swapped { epoch });
}

#[test]
fn create_says_whether_it_may_and_whether_it_must() {
    let room = Room::new();
    let unknown = SchedError::UnknownProcess { app: app("a"), process: name("p") };
    assert_eq!(room.try_claim("p", Create::Never), Err(unknown));
    room.try_claim("p", Create::Must).unwrap();
    let exists = SchedError::ProcessExists { app: app("a"), process: name("p") };
    assert_eq!(room.try_claim("p", Create::Must), Err(exists));
    room.try_claim("p", Create::Never).unwrap();
    room.try_claim("p", Create::IfMissing).unwrap();
    let unknown = SchedError::UnknownApp { app: app("b") };
    assert_eq!(block_on(room.handle.claim(app("b"), name("p"), Create::IfMissing)), Err(unknown.clone()));
    assert_eq!(block_on(room.handle.get(app("b"), name("p"))).unwrap_err(), unknown);
    assert_eq!(block_on(room.handle.list(Some(app("b")))).unwrap_err(), unknown);
    assert_eq!(block_on(room.handle.image_of(app("b"))).unwrap_err(), unknown);
    assert_eq!(block_on(room.handle.delete(app("b"), name("p"))).unwrap_err(), unknown);
}

#[test]
fn an_application_has_no_more_processes_than_its_manifest_allows() {
    let room = Room::new();
    block_on(room.handle.deploy(app("a"), image("two", 2))).unwrap();
    room.claim("p");
    let epoch = room.run("q");
    let full = SchedError::TooManyProcesses { app: app("a"), limit: 2 };
    assert_eq!(room.try_claim("r", Create::IfMissing), Err(full.clone()));
    // Those that exist go on, swapped ones count, and refusals do not.
    room.settled("q", epoch, SWAPPED).unwrap();
    room.claim("q");
    assert_eq!(room.try_claim("r", Create::Must), Err(full.clone()));
    block_on(room.handle.delete(app("a"), name("p"))).unwrap();
    let epoch = room.claim("r").epoch;
    room.settled("r", epoch, Settled::Deleted).unwrap();
    room.claim("s");
    let room = room.reopened();
    assert_eq!(room.try_claim("t", Create::IfMissing), Err(full));
    assert_eq!(block_on(room.handle.apps()).unwrap()[0].processes, 2);
    block_on(room.handle.deploy(app("a"), image("three", 3))).unwrap();
    room.claim("t");
}

#[test]
fn those_that_rest_are_found_and_no_more_than_wanted() {
    let room = Room::new();
    room.claim("starting");
    room.run("active");
    let (failed, swapped, placed) = (room.run("failed"), room.run("swapped"), room.run("placed"));
    room.settled("failed", failed, Settled::Failed { problem: json!({}), durable: 0 }).unwrap();
    room.settled("swapped", swapped, SWAPPED).unwrap();
    room.settled("placed", placed, STOPPED).unwrap();
    let resting = |most| block_on(room.handle.resting(app("a"), most)).unwrap();
    assert_eq!(resting(9), [name("placed"), name("swapped")]);
    assert_eq!(resting(1), [name("placed")]);
    assert!(block_on(room.handle.resting(app("b"), 1)).is_err());
}

#[test]
fn a_full_node_gets_no_process_and_nothing_has_changed() {
    let room = Room::new();
    let on = |process: &str, create, sandboxes_free| {
        let claim = room.handle.claim_on(app("a"), name(process), create, node(sandboxes_free));
        block_on(claim).map(|(claim, durable)| block_on(durable.wait()).map(|()| claim).unwrap())
    };
    let first = on("p", Create::IfMissing, 1).unwrap();
    let refused = on("q", Create::IfMissing, 0).unwrap_err();
    assert!(matches!(&refused, SchedError::NoRoom(_)), "{refused}");
    assert!(refused.to_string().contains("here runs as many sandboxes as it may"), "{refused}");
    assert!(block_on(room.handle.get(app("a"), name("q"))).is_err(), "a refused process was never created");
    assert_eq!(block_on(room.handle.apps()).unwrap()[0].processes, 1);
    // Whoever holds it goes on holding it.
    assert!(on("p", Create::IfMissing, 0).is_err());
    room.settled("p", first.epoch, Settled::Active).unwrap();
    // What cannot be at all is said before what cannot be now.
    assert!(matches!(on("q", Create::Never, 0), Err(SchedError::UnknownProcess { .. })));
    assert!(matches!(on("p", Create::Must, 0), Err(SchedError::ProcessExists { .. })));
    // A term in which nothing runs needs no room.
    assert!(room.claim("p").epoch > first.epoch);
}

fn node(sandboxes_free: u64) -> NodeView {
    let boundless = denizen_image::ByteSize::new(u64::MAX);
    NodeView {
        name: "here".to_owned(),
        open: true,
        memory_free: boundless,
        state_free: boundless,
        sandboxes_free,
        load_permille: 0,
        has_image: true,
        has_state: true,
    }
}

#[test]
fn an_image_is_kept_for_those_who_run_it_ran_it_before_or_were_left_by_it() {
    let room = Room::new();
    let deploy = |tag| block_on(room.handle.deploy(app("a"), image(tag, 9))).unwrap();
    let uses = || -> BTreeMap<ImageId, ImageUse> {
        block_on(room.handle.images()).unwrap().into_iter().map(|used| (used.image, used)).collect()
    };
    let of = |tag: &str| uses().remove(&ImageId::of(tag.as_bytes()));
    let epoch = room.run("p");
    deploy("two");
    let one = of("one").unwrap();
    assert_eq!(
        (&one.apps[..], &one.previous_of[..], one.running, one.processes),
        (&[][..], &[app("a")][..], 1, 1)
    );
    assert!(one.is_in_use(), "a sandbox runs it");
    assert!(of("two").unwrap().is_in_use());
    room.settled("p", epoch, STOPPED).unwrap();
    assert!(!of("one").unwrap().is_in_use(), "a process that rests gets the next image");
    // The same again is no step.
    deploy("two");
    assert_eq!(of("one").unwrap().previous_of, [app("a")]);
    deploy("three");
    assert_eq!(of("one").map(|used| used.processes), Some(1), "the record of p names it");
    room.claim("p");
    assert_eq!(of("one"), None);
    assert_eq!(uses().len(), 2);
}

#[test]
fn images_and_applications_are_listed_in_order() {
    let room = Room::new();
    for (name, tag) in [("c", "two"), ("b", "one")] {
        block_on(room.handle.deploy(app(name), image(tag, 5))).unwrap();
    }
    room.claim("p");
    let apps = block_on(room.handle.apps()).unwrap();
    assert_eq!(
        apps.iter().map(|app| (app.app.as_str(), app.processes)).collect::<Vec<_>>(),
        [("a", 1), ("b", 0), ("c", 0)]
    );
    let images = block_on(room.handle.images()).unwrap();
    assert!(images.is_sorted_by_key(|image| image.image));
    let one = images.iter().find(|used| used.image == ImageId::of(b"one")).unwrap();
    assert_eq!(one.apps, [app("a"), app("b")]);
    assert_eq!(block_on(room.handle.image_of(app("c"))).unwrap(), image("two", 5));
}

#[test]
fn processes_of_one_application_do_not_mix_with_those_of_its_neighbours() {
    let room = Room::new();
    for other in ["A", "a-", "a.b", "aa", "b"] {
        block_on(room.handle.deploy(app(other), image("one", 5))).unwrap();
        block_on(room.handle.claim(app(other), name("x"), Create::Must)).unwrap();
    }
    for process in ["q", "Z", "_", "p"] {
        room.claim(process);
    }
    let own = block_on(room.handle.list(Some(app("a")))).unwrap();
    assert_eq!(own.iter().map(|record| record.process.as_str()).collect::<Vec<_>>(), ["Z", "_", "p", "q"]);
    assert_eq!(block_on(room.handle.list(None)).unwrap().len(), 9);
}

#[test]
fn a_new_image_comes_with_the_next_claim() {
    let room = Room::new();
    let epoch = room.run("p");
    block_on(room.handle.deploy(app("a"), image("two", 5))).unwrap();
    assert_eq!(room.get("p").image, ImageId::of(b"one"));
    room.settled("p", epoch, STOPPED).unwrap();
    assert_eq!(room.claim("p").image.image, ImageId::of(b"two"));
    let mut bad = image("x", 1);
    bad.manifest = json!({"name": 7});
    assert!(matches!(block_on(room.handle.deploy(app("a"), bad)), Err(SchedError::BadManifest { .. })));
}

#[test]
fn what_dead_owners_left_is_put_back() {
    let room = Room::new();
    let starting = room.claim("starting").epoch;
    room.run("active");
    let draining = room.run("draining");
    room.settled("draining", draining, Settled::Draining).unwrap();
    let swapped = room.run("swapped");
    room.settled("swapped", swapped, SWAPPED).unwrap();
    let returning = room.run("returning");
    room.settled("returning", returning, SWAPPED).unwrap();
    room.claim("returning");
    let failed = room.claim("failed").epoch;
    room.settled("failed", failed, Settled::Failed { problem: json!(1), durable: 0 }).unwrap();

    let room = room.reopened();
    for (process, phase, origin) in [
        ("starting", Phase::Placed, Origin::New { born: starting }),
        ("active", Phase::Placed, Origin::Local),
        ("draining", Phase::Placed, Origin::Local),
        ("swapped", Phase::Swapped, Origin::Swapped { epoch: swapped }),
        ("returning", Phase::Swapped, Origin::Swapped { epoch: returning }),
        ("failed", Phase::Failed, Origin::New { born: failed }),
    ] {
        assert_eq!(room.get(process).phase, phase, "{process}");
        assert_eq!(room.claim(process).origin, origin, "{process}");
    }
}

#[test]
fn two_schedulers_on_one_file_are_one_too_many() {
    let room = Room::new();
    let error = Scheduler::open(&room.path, Config::default()).unwrap_err();
    assert_eq!(error, SchedError::InUse { path: room.path.clone() });
    assert!(error.to_string().contains("another denizen runs"), "{error}");
    room.claim("p");
}

#[test]
fn a_stopped_scheduler_says_so_and_lets_the_file_go() {
    let room = Room::new();
    let other = room.handle.clone();
    block_on(room.handle.stop()).unwrap();
    assert_eq!(block_on(other.apps()), Err(SchedError::Stopped));
    assert_eq!(block_on(other.stop()), Err(SchedError::Stopped));
    Scheduler::open(&room.path, Config::default()).unwrap();
}

#[test]
fn a_newer_format_is_refused() {
    let room = Room::new();
    block_on(room.handle.stop()).unwrap();
    let database = redb::Database::create(&room.path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 3).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Scheduler::open(&room.path, Config::default()).unwrap_err();
    assert_eq!(error, SchedError::NewerFormat { path: room.path.clone(), found: 3, supported: 2 });
}

#[test]
fn a_file_of_something_else_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sched.redb");
    for content in [&b"hello"[..], &[7; 100_000], &[0; 4096]] {
        fs::write(&path, content).unwrap();
        let error = Scheduler::open(&path, Config::default()).unwrap_err();
        assert!(matches!(error, SchedError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    let error = Scheduler::open(&dir.path().join("no/such/dir"), Config::default()).unwrap_err();
    assert!(matches!(error, SchedError::Store { .. }), "{error:?}");
}

/// Flipped bytes and cuts: either the file still says exactly what was written, or the error names it.
#[test]
fn damage_is_found_on_opening() {
    let room = Room::new();
    for process in 0..40 {
        room.run(&format!("p{process}"));
    }
    let written = block_on(room.handle.list(None)).unwrap();
    block_on(room.handle.stop()).unwrap();
    let good = fs::read(&room.path).unwrap();
    let expected: Vec<_> = written.iter().map(|record| (record.process.clone(), record.epoch)).collect();
    let mut found = 0;
    let step = good.len() / 150;
    for at in (0..good.len()).step_by(step).chain((0..320).step_by(4)) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x21;
        if at % 5 == 0 {
            bytes.truncate(at);
        }
        fs::write(&room.path, bytes).unwrap();
        match Scheduler::open(&room.path, Config::default()) {
            Ok(handle) => {
                let read = block_on(handle.list(None)).unwrap();
                let read: Vec<_> = read.into_iter().map(|record| (record.process, record.epoch)).collect();
                // A cut to nothing is a new database, as redb takes an empty file for one.
                assert!(read == expected || at == 0, "a damage at {at} went unseen");
                block_on(handle.stop()).unwrap();
            }
            Err(error) => {
                found += 1;
                assert!(error.to_string().contains("sched.redb"), "{error}");
            }
        }
    }
    assert!(found > 10, "only {found} damages were found, so this test damages nothing");
}

/// One bit of a number in a record, in a file that was closed in good order: the text still parses, and only
/// the checksums tell.
#[test]
fn a_changed_epoch_is_not_believed() {
    let room = Room::new();
    for process in 0..40 {
        room.run(&format!("p{process}"));
    }
    block_on(room.handle.stop()).unwrap();
    let good = fs::read(&room.path).unwrap();
    let key = b"\"epoch\":";
    let digits = good
        .windows(key.len())
        .enumerate()
        .filter(|(_, window)| *window == key)
        .map(|(at, _)| at + key.len());
    let mut found = 0;
    for at in digits {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs::write(&room.path, bytes).unwrap();
        // Most copies of the text are left over from earlier transactions.
        match Scheduler::open(&room.path, Config::default()) {
            Ok(handle) => {
                let records = block_on(handle.list(None)).unwrap();
                let epochs: BTreeSet<u64> = records.iter().map(|record| record.epoch.get()).collect();
                assert_eq!(epochs, (1..=40).collect(), "a change at {at} was believed");
                block_on(handle.stop()).unwrap();
            }
            Err(SchedError::Corrupt { .. }) => found += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(found > 0, "no record was hit, so this test shows nothing");
}

#[test]
fn a_claim_is_durable_before_it_resolves() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 100))).unwrap();
    for round in 1..20 {
        let process = name(&format!("p{round}"));
        let claim = block_on(handle.claim(app("a"), process.clone(), Create::IfMissing)).unwrap();
        let after = disk.cut_power().open().unwrap();
        assert_eq!(block_on(after.get(app("a"), process.clone())).unwrap().epoch, claim.epoch);
        let next = block_on(after.claim(app("a"), process, Create::Never)).unwrap();
        assert!(next.epoch > claim.epoch);
    }
}

/// What the journal does not carry is in the database before it is answered, and what the journal had is with it.
#[test]
fn a_deployment_and_a_deletion_are_durable_before_they_resolve() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 100))).unwrap();
    let claim = |process| block_on(handle.claim(app("a"), name(process), Create::IfMissing)).unwrap();
    let (first, second) = (claim("p"), claim("q"));
    block_on(handle.deploy(app("b"), image("two", 100))).unwrap();
    let after = disk.cut_power().open().unwrap();
    assert_eq!(block_on(after.image_of(app("b"))).unwrap(), image("two", 100));
    assert_eq!(block_on(after.get(app("a"), name("p"))).unwrap().epoch, first.epoch);
    claim("r");
    block_on(handle.delete(app("a"), name("p"))).unwrap();
    for again in [false, true] {
        let cut = disk.cut_power();
        let after = cut.open().unwrap();
        let gone = SchedError::UnknownProcess { app: app("a"), process: name("p") };
        assert_eq!(block_on(after.get(app("a"), name("p"))).unwrap_err(), gone, "a deleted process is back");
        assert_eq!(block_on(after.get(app("a"), name("q"))).unwrap().epoch, second.epoch);
        assert_eq!(block_on(after.apps()).unwrap()[0].processes, 2 + u64::from(again));
        // The next generation of the journal lies over this one.
        claim("s");
    }
}

/// More than the journal holds, with a crash at any time: claims of all generations are there, and each is counted once.
#[test]
fn a_journal_that_is_full_is_taken_over() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 10_000))).unwrap();
    let before = disk.database.flushes();
    for number in 1..=1100 {
        let claim = block_on(handle.claim(app("a"), name(&format!("p{number}")), Create::Must)).unwrap();
        if number % 91 == 0 || (510..515).contains(&number) {
            let after = disk.cut_power().open().unwrap();
            assert_eq!(block_on(after.list(None)).unwrap().len(), number);
            assert_eq!(block_on(after.apps()).unwrap()[0].processes, number as u64);
            let next = block_on(after.claim(app("a"), name("p1"), Create::Never)).unwrap();
            assert!(next.epoch > claim.epoch);
        }
    }
    let taken_over = disk.database.flushes() - before;
    assert!((2..100).contains(&taken_over), "{taken_over} transactions for 1100 claims");
}

/// The power goes while a batch is written, which nobody was told of: all before it is there, whatever of it is.
#[test]
fn a_batch_that_was_cut_short_takes_none_before_it_along() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 1000))).unwrap();
    let claim = |process| block_on(handle.claim(app("a"), name(process), Create::IfMissing));
    let last = ["p", "q", "r"].map(|process| claim(process).unwrap().epoch)[2];
    // The write succeeds, and the flush does not.
    disk.fail_after(Some(1));
    assert!(claim("s").is_err());
    for is_there in [true, false] {
        let after = disk.cut_power_midway(|_| is_there).open().unwrap();
        assert_eq!(block_on(after.get(app("a"), name("r"))).unwrap().epoch, last);
        let unanswered = block_on(after.get(app("a"), name("s")));
        assert_eq!(unanswered.is_ok(), is_there);
        let next = block_on(after.claim(app("a"), name("t"), Create::Must)).unwrap().epoch;
        assert!(next > last && unanswered.is_ok_and(|record| record.epoch < next) == is_there);
    }
}

#[test]
fn a_damaged_or_missing_journal_is_named() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 1000))).unwrap();
    for process in ["p", "q"] {
        block_on(handle.claim(app("a"), name(process), Create::Must)).unwrap();
    }
    let damaged = disk.cut_power();
    damaged.journal.platters.lock().unwrap().written[100] ^= 1;
    let missing = disk.cut_power();
    missing.journal.platters.lock().unwrap().written.clear();
    for disk in [damaged, missing] {
        let error = disk.open().unwrap_err();
        assert!(matches!(error, SchedError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains("disk.journal"), "{error}");
    }
}

/// An older release had no journal. What lies there is another database's.
#[test]
fn a_database_of_an_older_release_is_read_and_gets_a_journal() {
    let room = Room::new();
    let first = room.run("p");
    let second = room.claim("q").epoch;
    block_on(room.handle.stop()).unwrap();
    let database = redb::Database::create(&room.path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut meta = transaction.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap();
        meta.insert("format", 1).unwrap();
        meta.remove("journal").unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let reopened = || Scheduler::open(&room.path, Config::default()).unwrap();
    for file in ["there", "gone"] {
        if file == "gone" {
            fs::remove_file(room.path.with_extension("journal")).unwrap();
            let error = Scheduler::open(&room.path, Config::default()).unwrap_err();
            assert!(error.to_string().contains("sched.journal"), "{error}");
            continue;
        }
        let handle = reopened();
        let records = block_on(handle.list(None)).unwrap();
        assert_eq!(records.iter().map(|record| record.epoch).collect::<Vec<_>>(), [first, second]);
        assert!(block_on(handle.claim(app("a"), name("p"), Create::Never)).unwrap().epoch > second);
        block_on(handle.stop()).unwrap();
    }
}

/// What is left when nobody asks any more is in the database: a node that rests has nothing to replay.
#[test]
fn what_was_journaled_goes_to_the_database_when_it_is_quiet() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 100))).unwrap();
    let before = disk.database.flushes();
    block_on(handle.claim(app("a"), name("p"), Create::Must)).unwrap();
    assert_eq!(disk.database.flushes(), before, "a claim waited for the database");
    while disk.database.flushes() == before {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let flushes = disk.flushes();
    assert_eq!(block_on(handle.list(None)).unwrap().len(), 1);
    assert_eq!(disk.flushes(), flushes);
}

/// What rests on a claim may be prepared while it is written, and is told when that fails.
#[test]
fn a_claim_can_be_had_ahead_of_the_disk() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 100))).unwrap();
    let ahead = || block_on(handle.claim_on(app("a"), name("p"), Create::IfMissing, node(1)));
    disk.fail_after(Some(0));
    let (claim, durable) = ahead().unwrap();
    assert!(matches!(block_on(durable.wait()), Err(SchedError::NoSpace { .. })));
    disk.fail_after(None);
    assert!(block_on(handle.get(app("a"), name("p"))).is_err(), "a claim that was not written never was");
    let (again, durable) = ahead().unwrap();
    block_on(durable.wait()).unwrap();
    assert!(again.epoch >= claim.epoch);
    let after = disk.cut_power().open().unwrap();
    assert_eq!(block_on(after.get(app("a"), name("p"))).unwrap().epoch, again.epoch);
    let refused = block_on(handle.claim_on(app("a"), name("q"), Create::Never, node(1))).map(drop);
    assert_eq!(refused, Err(SchedError::UnknownProcess { app: app("a"), process: name("q") }));
}

/// One flush for a start. What a crash takes back of it is found out by the state's own file.
#[test]
fn that_local_state_is_served_costs_no_flush_and_that_swapped_state_is_does() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 100))).unwrap();
    let claim =
        |handle: &SchedulerHandle| block_on(handle.claim(app("a"), name("p"), Create::IfMissing)).unwrap();
    let settled = |epoch, settled| block_on(handle.settled(app("a"), name("p"), epoch, settled)).unwrap();
    let first = claim(&handle);
    let before = disk.flushes();
    settled(first.epoch, Settled::Active);
    assert_eq!(block_on(handle.get(app("a"), name("p"))).unwrap().phase, Phase::Active);
    assert_eq!(disk.flushes(), before);
    for _ in 0..2 {
        // Each time the node dies before the record is on the disk; the first term is remembered through all of them.
        let after = disk.cut_power().open().unwrap();
        assert_eq!(claim(&after).origin, Origin::New { born: first.epoch });
    }
    settled(first.epoch, SWAPPED);
    let second = claim(&handle);
    settled(second.epoch, Settled::Active);
    let after = disk.cut_power().open().unwrap();
    assert_eq!(claim(&after).origin, Origin::Local);
}

#[test]
fn requests_that_wait_together_are_flushed_together() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 1000))).unwrap();
    let before = disk.flushes();
    let (count, mut epochs) = (400, BTreeSet::new());
    let mut answers = Vec::new();
    // Hold the thread up on the disk, so that the rest queues up behind the first.
    let platters = disk.journal.platters.lock().unwrap();
    for process in 0..count {
        let process = name(&format!("p{process}"));
        let (reply, answer) = oneshot::channel();
        let what = move |ledger: &mut Ledger<'_>| ledger.claim(&app("a"), &process, Create::Must, &[]);
        handle.requests.send(Request::Work(Box::new(Work::new(what, reply)))).unwrap();
        answers.push(answer);
    }
    drop(platters);
    for answer in answers {
        epochs.insert(block_on(answer).unwrap().unwrap().epoch);
    }
    assert_eq!(epochs.len(), count);
    let flushes = disk.flushes() - before;
    assert!(flushes < count / 10, "{flushes} flushes for {count} claims");
}

#[test]
fn a_read_flushes_nothing() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 100))).unwrap();
    let before = disk.flushes();
    block_on(handle.list(None)).unwrap();
    assert!(block_on(handle.get(app("a"), name("p"))).is_err());
    assert_eq!(disk.flushes(), before);
}

/// The disk fails at every point of a claim, and of the transaction behind it, in turn.
/// The answer is an error, the thread lives, and once the
/// disk works again the next claim has a higher epoch than any that was ever answered.
#[test]
fn a_failing_disk_is_an_error_and_not_the_end() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 1000))).unwrap();
    let claim = || {
        let claim = block_on(handle.claim(app("a"), name("p"), Create::IfMissing))?;
        // The first has gone to the journal; now the database takes it over.
        block_on(handle.deploy(app("a"), image("two", 1000)))?;
        Ok(claim)
    };
    let mut last = claim().unwrap().epoch;
    let mut failures = 0;
    for good_for in 0..30 {
        disk.fail_after(Some(good_for));
        match claim() {
            Ok(claim) => {
                assert!(claim.epoch > last);
                last = claim.epoch;
            }
            Err(error) => {
                failures += 1;
                assert!(matches!(&error, SchedError::NoSpace { .. }), "{error:?}");
                assert!(error.to_string().contains("free some space"), "{error}");
                assert!(claim().is_err(), "the disk is still bad");
            }
        }
        disk.fail_after(None);
        let next = claim().unwrap().epoch;
        assert!(next > last, "{next} after {last}");
        last = next;
    }
    assert!(failures > 4, "the disk failed {failures} times, so this test tries nothing");
}

/// A process that runs while the disk fails is not taken for a dead owner's when the database is opened
/// again.
#[test]
fn a_failure_does_not_end_terms() {
    let disk = Disk::new();
    let handle = disk.open().unwrap();
    block_on(handle.deploy(app("a"), image("one", 100))).unwrap();
    let epoch = block_on(handle.claim(app("a"), name("p"), Create::Must)).unwrap().epoch;
    block_on(handle.settled(app("a"), name("p"), epoch, Settled::Active)).unwrap();
    disk.fail_after(Some(0));
    assert!(block_on(handle.claim(app("a"), name("q"), Create::Must)).is_err());
    disk.fail_after(None);
    // That it was active was not on the disk yet; that it has an owner was.
    assert!(block_on(handle.get(app("a"), name("p"))).unwrap().phase.is_owned());
    block_on(handle.settled(app("a"), name("p"), epoch, SWAPPED)).unwrap();
}
