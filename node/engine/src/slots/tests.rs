//! Apart from what they test, because `tests/loom.rs` includes that.

use std::sync::Arc;

use crate::index::Item;
use crate::slots::{ERA_LEN, ERAS, Era, SPAN_MS, Slots};

fn take(slots: &mut Slots, len: u64) -> Option<u64> {
    slots.take(len, |_, _| true)
}

fn item(at: u32, version: u64, len: u64) -> Item {
    Item { at, version, len, ..Item::default() }
}

/// Lets so many values die, with an era of its own for each [`ERA_LEN`], and returns the last era.
fn die(slots: &mut Slots, from: u32, count: u32) -> Arc<Era> {
    let mut era = slots.era();
    for at in from..from + count {
        slots.died(&item(at * 64, 9, 1024));
        era = slots.next_era().unwrap_or(era);
    }
    era
}

#[test]
fn a_place_is_free_when_no_reader_of_its_era_or_an_older_one_is_left() {
    let mut slots = Slots::new(0);
    let reader = slots.era();
    let second = die(&mut slots, 1, 8);
    drop(die(&mut slots, 9, 8));
    assert_eq!(take(&mut slots, 1024), None, "a reader of the first era is there");
    drop(second);
    assert_eq!(take(&mut slots, 1024), None, "a reader of an older era may see what died in the second");
    drop(reader);
    let mut taken: Vec<u64> = std::iter::from_fn(|| take(&mut slots, 1024)).collect();
    taken.sort_unstable();
    assert_eq!(taken, (1..17).map(|at| at * 1024).collect::<Vec<u64>>(), "each once");
}

#[test]
fn what_may_be_needed_after_a_loss_of_power_stays() {
    let mut slots = Slots::new(9);
    drop(die(&mut slots, 1, 40));
    assert_eq!(take(&mut slots, 1024), None, "written before the floor");
    let mut slots = Slots::new(8);
    drop(die(&mut slots, 1, 40));
    slots.keep(9);
    assert_eq!(take(&mut slots, 1024), None, "a sync began");
    let mut slots = Slots::new(8);
    slots.keep_at_times(8, 10_000);
    drop(die(&mut slots, 1, 40));
    slots.keep_at_times(8, 10_000 + SPAN_MS - 1);
    assert!(take(&mut slots, 1024).is_some());
    slots.keep_at_times(9, 10_000 + SPAN_MS);
    assert_eq!(take(&mut slots, 1024), None, "some seconds went by");
}

#[test]
fn a_reader_for_ever_takes_no_memory() {
    let mut slots = Slots::new(0);
    let reader = slots.era();
    drop(die(&mut slots, 1, 100_000));
    let (eras, kept) = slots.kept();
    assert!(kept <= ERAS * ERA_LEN && eras <= ERAS, "{kept} places");
    drop(reader);
    assert!(take(&mut slots, 1020).is_some());
    assert_eq!(take(&mut slots, 512), None, "too short for a place");
    assert_eq!(take(&mut slots, 4096), None, "no place is as long");
}
