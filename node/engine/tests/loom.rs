//! Every interleaving of the four places where threads meet, within loom's bounds: the index is published and old ones are freed
//! (`publish.rs`), syncs are shared (`group.rs`), writers take turns (`turn.rs`), and dead values are written over (`slots.rs`). The
//! files are included as they are, with loom's types for the standard ones.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, missing_debug_implementations, reason = "tests")]

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex, MutexGuard};
}

/// As much of these as `slots.rs` asks for.
mod format {
    pub(crate) const PLACED: std::ops::RangeInclusive<u64> = 1024..=32 << 10;
    pub(crate) fn aligned(len: u64) -> u64 {
        len.next_multiple_of(16)
    }
}
mod index {
    #[derive(Default)]
    pub(crate) struct Item {
        pub(crate) at: u32,
        pub(crate) version: u64,
        pub(crate) len: u64,
    }
    impl Item {
        pub(crate) fn offset(&self) -> u64 {
            u64::from(self.at) * 16
        }
    }
}

#[path = "../src/group.rs"]
mod group;
#[path = "../src/publish.rs"]
mod publish;
#[path = "../src/slots.rs"]
mod slots;
#[path = "../src/turn.rs"]
mod turn;

use group::{Group, Role};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use publish::Published;
use slots::{Era, Slots};
use turn::{Access, Turn};

/// Three preemptions find what these protocols could get wrong, and keep the run short.
fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

/// Two numbers that are always equal, and how many of these pairs are alive.
struct Pair {
    one: usize,
    two: usize,
    alive: Arc<AtomicUsize>,
}

impl Clone for Pair {
    fn clone(&self) -> Pair {
        self.alive.fetch_add(1, Ordering::SeqCst);
        Pair { one: self.one, two: self.two, alive: self.alive.clone() }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

fn step(pair: &mut Pair) {
    pair.one += 1;
    loom::thread::yield_now();
    pair.two += 1;
}

#[test]
fn a_reader_sees_whole_changes_and_nothing_is_kept() {
    model(|| {
        let alive = Arc::new(AtomicUsize::new(1));
        let published = Arc::new(Published::new(Pair { one: 0, two: 0, alive: alive.clone() }));
        let reader = {
            let published = published.clone();
            loom::thread::spawn(move || {
                let first = published.snapshot();
                assert_eq!(first.one, first.two);
                let seen = first.one;
                let second = published.snapshot();
                assert_eq!(second.one, second.two);
                assert!(second.one >= seen, "time went backwards");
                assert_eq!((first.one, first.two), (seen, seen), "a snapshot changed");
            })
        };
        published.change(step);
        published.change_aside(step);
        let mut mine = Some(published.snapshot());
        published.change_mine(&mut mine, |mine, now| assert_eq!(mine.one, now.one), step);
        assert_eq!(mine.map(|mine| (mine.one, mine.two)), Some((3, 3)));
        reader.join().unwrap();
        assert_eq!(published.snapshot().one, 3);
        assert_eq!(alive.load(Ordering::SeqCst), 1, "an old value was kept");
    });
}

struct Disk {
    written: AtomicU64,
    synced: AtomicU64,
    syncing: AtomicUsize,
}

/// A committer as the engine has them: writes its record, then waits for it to be durable.
fn commit(group: &Group<()>, disk: &Disk) {
    let seq = disk.written.fetch_add(1, Ordering::SeqCst) + 1;
    while let Role::Lead = group.join(seq).unwrap() {
        assert_eq!(disk.syncing.fetch_add(1, Ordering::SeqCst), 0, "two syncs in flight");
        let target = disk.written.load(Ordering::SeqCst);
        loom::thread::yield_now();
        disk.synced.fetch_max(target, Ordering::SeqCst);
        disk.syncing.fetch_sub(1, Ordering::SeqCst);
        group.finish(Ok(target));
    }
    assert!(disk.synced.load(Ordering::SeqCst) >= seq, "reported before it was durable");
}

#[test]
fn nobody_is_told_before_the_sync_that_covers_it() {
    model(|| {
        let group = Arc::new(Group::new(0));
        let disk = Arc::new(Disk {
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            syncing: AtomicUsize::new(0),
        });
        let others: Vec<_> = (0..2)
            .map(|_| {
                let (group, disk) = (group.clone(), disk.clone());
                loom::thread::spawn(move || commit(&group, &disk))
            })
            .collect();
        commit(&group, &disk);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn an_error_reaches_everybody_and_nobody_tries_again() {
    model(|| {
        let group = Arc::new(Group::<u8>::new(0));
        let led = Arc::new(AtomicUsize::new(0));
        let wait = |group: &Group<u8>, led: &AtomicUsize| match group.join(1) {
            Ok(Role::Lead) => {
                assert_eq!(led.fetch_add(1, Ordering::SeqCst), 0, "tried again");
                group.finish(Err(5));
            }
            Ok(Role::Done) => panic!("durable after an error"),
            Err(error) => assert_eq!(error, 5),
        };
        let other = {
            let (group, led) = (group.clone(), led.clone());
            loom::thread::spawn(move || wait(&group, &led))
        };
        wait(&group, &led);
        other.join().unwrap();
    });
}

/// What writers look at to see whether they are alone.
#[derive(Default)]
struct Alone {
    exclusive: AtomicUsize,
    sole: AtomicUsize,
}

fn write(turn: &Turn, alone: &Alone, access: Access) {
    let Some(held) = turn.take(access) else {
        let passing = turn.pass();
        assert_eq!(alone.sole.load(Ordering::SeqCst), 0, "a commit beside a sole one");
        return drop(passing);
    };
    assert_eq!(alone.exclusive.fetch_add(1, Ordering::SeqCst), 0, "two exclusive ones");
    alone.sole.store(usize::from(access == Access::Sole), Ordering::SeqCst);
    loom::thread::yield_now();
    alone.sole.store(0, Ordering::SeqCst);
    alone.exclusive.fetch_sub(1, Ordering::SeqCst);
    turn.end(held);
}

/// Nobody is beside an exclusive one, no commit is beside a sole one, and everybody gets a turn (loom reports who waits for ever).
#[test]
fn turns_exclude_each_other_and_nobody_is_forgotten() {
    use Access::{Concurrent, Exclusive, Sole};
    for (one, other) in [(Exclusive, Exclusive), (Sole, Exclusive), (Sole, Concurrent), (Sole, Sole)] {
        model(move || {
            // Not loom's: one that is dropped while a deadlock is reported would end the whole program.
            let shared = std::sync::Arc::new((Turn::new(), Alone::default()));
            let second = {
                let shared = shared.clone();
                loom::thread::spawn(move || write(&shared.0, &shared.1, other))
            };
            write(&shared.0, &shared.1, one);
            second.join().unwrap();
        });
    }
}

/// What a reader sees: where the one value lies, as long as it is not dead.
#[derive(Clone)]
struct View {
    value: Option<u64>,
    _era: Arc<Era>,
}

/// The value at place 1024 is read by whoever took a view in which it lives, and written over once nobody can have one. Loom panics where a
/// read and a write are not ordered.
#[test]
fn no_value_is_written_over_under_a_reader() {
    model(|| {
        let bytes = Arc::new(loom::cell::UnsafeCell::new(7_u64));
        let mut slots = Slots::new(0);
        let published = Arc::new(Published::new(View { value: Some(1024), _era: slots.era() }));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (published, bytes) = (published.clone(), bytes.clone());
                loom::thread::spawn(move || {
                    let view = published.snapshot();
                    if view.value.is_some() {
                        // SAFETY: loom looks for a write beside it.
                        assert_eq!(bytes.with(|at| unsafe { *at }), 7);
                    }
                })
            })
            .collect();
        let mut overwritten = 0;
        for round in 0..2 {
            published.change(|view| {
                view.value = None;
                // An era is as long as this.
                for at in 0..8 {
                    slots.died(&index::Item { at: 64 + 512 * round + 64 * at, version: 1, len: 1024 });
                }
                if let Some(era) = slots.next_era() {
                    view._era = era;
                }
            });
            while let Some(place) = slots.take(1024, |_, _| true) {
                if place == 1024 {
                    // SAFETY: as above.
                    bytes.with_mut(|at| unsafe { *at = 8 });
                    overwritten += 1;
                }
            }
        }
        assert!(overwritten <= 1, "a place was given twice");
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        drop(published);
        while let Some(place) = slots.take(1024, |_, _| true) {
            overwritten += u32::from(place == 1024);
        }
        assert_eq!(overwritten, 1, "it is free when all readers are gone");
    });
}
