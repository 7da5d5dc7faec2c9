//! Types that changed: records of older layouts are led to the newer one or refused, and are never read by luck.

#![allow(clippy::unwrap_used, reason = "a test ends where it is surprised")]

use denizen::prelude::*;
use denizen::testing::{Process, process};
use denizen::{FailKind, StateType};
use std::cell::Cell;

// ---- the plugin: the third version of a counter ----

#[state(name = "Counter")]
struct CounterV1 {
    count: u32,
}

#[state(name = "Counter")]
struct CounterV2 {
    count: u64,
}

#[state]
struct Counter {
    count: u64,
    name: String,
}

#[migrate]
fn counter_from_v1(old: &Archived<CounterV1>) -> CounterV2 {
    CounterV2 { count: old.count.to_native().into() }
}

thread_local!(static MIGRATED: Cell<u32> = const { Cell::new(0) });

#[migrate]
fn counter_from_v2(old: CounterV2) -> Result<Counter> {
    MIGRATED.set(MIGRATED.get() + 1);
    match old.count {
        13 => Err(bad_input("13 cannot be carried over")),
        14 => panic!("14 breaks it"),
        count => Ok(Counter { count, name: "unnamed".to_owned() }),
    }
}

/// What an older plugin does.
#[function]
fn write_old(cx: &mut Context, what: &str) -> Result<()> {
    let (key, count) = what.split_once('=').ok_or_else(|| bad_input("KEY=COUNT"))?;
    match key.strip_prefix("v2/") {
        Some(_) => cx.put(key, &CounterV2 { count: count.parse()? }),
        None => cx.put(key, &CounterV1 { count: count.parse()? }),
    }
}

#[function]
fn read_as_an_older_plugin(cx: &Context) -> Result<String> {
    Ok(cx.get::<CounterV1>("c")?.map_or_else(String::new, |c| c.count.to_string()))
}

fn told(c: &ArchivedCounter) -> String {
    format!("{} {}", c.count, c.name)
}

#[function]
fn read(cx: &Context, key: &str) -> Result<String> {
    let once = cx.get::<Counter>(key)?.map_or_else(String::new, told);
    let again = cx.get::<Counter>(key)?.map_or_else(String::new, told);
    assert_eq!(once, again);
    Ok(once)
}

#[function]
fn read_beside_writing(cx: &mut Context, key: &str) -> Result<String> {
    Ok(cx.get::<Counter>(key)?.map_or_else(String::new, told))
}

#[function]
fn fails_after_reading(cx: &mut Context) -> Result<()> {
    cx.get::<Counter>("c")?;
    Err(failed("on purpose"))
}

#[function]
fn edit(cx: &mut Context, key: &str) -> Result<String> {
    let mut c = cx.edit::<Counter>(key)?.ok_or_else(|| bad_input("none"))?;
    c.count += 1;
    c.name.push('!');
    Ok(c.count.to_string())
}

#[function]
fn update(cx: &mut Context, key: &str) -> Result<String> {
    let count = cx.update::<Counter, _>(key, |c| {
        munge!(let ArchivedCounter { mut count, .. } = c);
        *count = (count.to_native() + 1).into();
        count.to_native()
    })?;
    Ok(count.map_or_else(|| "none".to_owned(), |count| count.to_string()))
}

/// An old record is read as the new type while it is being edited as the old one.
#[function]
fn read_under_an_edit(cx: &mut Context, add: &str) -> Result<String> {
    let mut old = cx.edit::<CounterV1>("c")?.unwrap();
    if !add.is_empty() {
        old.count += 1;
    }
    let new = told(cx.get::<Counter>("c")?.unwrap());
    drop(old);
    let count = cx.get::<CounterV1>("c")?.unwrap().count;
    Ok(format!("{new} {count}"))
}

#[function]
fn sum(cx: &Context) -> Result<String> {
    add_up(cx)
}

#[function]
fn sum_and_migrate(cx: &mut Context) -> Result<String> {
    add_up(cx)
}

fn add_up(cx: &Context) -> Result<String> {
    let mut sum = 0;
    for entry in cx.scan("")? {
        sum += entry.get::<Counter>()?.count.to_native();
    }
    Ok(sum.to_string())
}

/// A scan shows an old record that is written anew, and only then read.
#[function]
fn stale_scan(cx: &mut Context) -> Result<String> {
    let before = cx.scan("c")?;
    cx.put("c", &Counter { count: 100, name: "new".to_owned() })?;
    let stale = told(before[0].get::<Counter>()?);
    Ok(format!("{stale}, {}", told(cx.get::<Counter>("c")?.unwrap())))
}

#[function]
fn catches_a_failed_migration(cx: &mut Context) -> Result<String> {
    match cx.get::<Counter>("c") {
        Err(error) if error.kind() == ErrorKind::TypeChanged => {}
        _ => return Err(failed("it should be refused")),
    }
    cx.put("other", &1_u64)?;
    Ok(cx.edit::<CounterV1>("c")?.unwrap().count.to_string())
}

#[function]
fn layout_of(cx: &Context, key: &str) -> Result<&'static str> {
    let info = cx.info(key)?.ok_or_else(|| bad_input("none"))?;
    Ok(match () {
        () if info.is::<CounterV1>() => "V1",
        () if info.is::<CounterV2>() => "V2",
        () if info.is::<Counter>() => "V3",
        () => "?",
    })
}

#[function]
fn garbage(cx: &mut Context) -> Result<()> {
    cx.put_bytes("c", b"raw")
}

denizen::export!(
    write_old,
    read_as_an_older_plugin,
    read,
    read_beside_writing,
    fails_after_reading,
    edit,
    update,
    read_under_an_edit,
    sum,
    sum_and_migrate,
    stale_scan,
    catches_a_failed_migration,
    layout_of,
    garbage,
);

// ---- the tests ----

fn holding(records: &[&str]) -> Process {
    let mut process = process!();
    for record in records {
        process.call("write_old", *record).unwrap();
    }
    process
}

fn call(process: &mut Process, function: &str, input: &str) -> String {
    process.call(function, input).unwrap().text().to_owned()
}

#[test]
fn the_host_is_told_which_layouts_are_migrated() {
    let process = process!();
    let declared: Vec<_> = process.types().keys().collect();
    assert_eq!(declared, ["Counter"]);
    let counter = &process.types()["Counter"];
    assert_eq!(counter.layout, "struct Counter { count: u64, name: String }");
    let mut older = vec![CounterV1::fingerprint(), CounterV2::fingerprint()];
    older.sort_unstable();
    assert_eq!(counter.migrates_from, older);
}

#[test]
fn a_read_only_function_sees_the_new_record_and_writes_nothing() {
    let mut process = holding(&["c=7"]);
    let (bytes, before) = (process.state_bytes(), MIGRATED.get());
    let answer = process.call("read", "c").unwrap();
    assert_eq!((answer.text(), answer.commit), ("7 unnamed", 1));
    assert_eq!(MIGRATED.get(), before + 1, "once for each invocation");
    assert_eq!((process.state_bytes(), call(&mut process, "layout_of", "c")), (bytes, "V1".to_owned()));
}

#[test]
fn a_writing_function_migrates_within_its_commit() {
    for (function, then) in [
        ("read_beside_writing", "7 unnamed"),
        ("edit", "8 unnamed!"),
        ("update", "8 unnamed"),
        ("sum_and_migrate", "7 unnamed"),
    ] {
        for key in ["c", "v2/c"] {
            let mut process = holding(&[&format!("{key}=7")]);
            call(&mut process, function, key);
            let before = MIGRATED.get();
            assert_eq!(call(&mut process, "layout_of", key), "V3", "{function}");
            assert_eq!(call(&mut process, "read", key), then, "{function}");
            assert_eq!(MIGRATED.get(), before, "it is not migrated again");
        }
    }
}

#[test]
fn a_migration_is_taken_back_with_the_rest() {
    let mut process = holding(&["c=7"]);
    assert_eq!(process.call("fails_after_reading", "").unwrap_err().message, "on purpose");
    assert_eq!(call(&mut process, "layout_of", "c"), "V1");
    process.limit_state(10);
    assert_eq!(process.call("read_beside_writing", "c").unwrap_err().kind, FailKind::Quota);
    assert_eq!(call(&mut process, "read", "c"), "7 unnamed", "to read it needs no room");
}

#[test]
fn a_failed_migration_leaves_the_old_record() {
    let mut process = holding(&["c=13"]);
    for function in ["read", "read_beside_writing", "edit", "update", "sum", "sum_and_migrate"] {
        let failure = process.call(function, "c").unwrap_err();
        assert_eq!(failure.kind, FailKind::TypeChanged, "{function}");
        assert_eq!(
            failure.message,
            "the record `c`, a `struct Counter { count: u64 }`, cannot be migrated by `counter_from_v2`: 13 cannot be carried over"
        );
    }
    assert_eq!(call(&mut process, "catches_a_failed_migration", ""), "13");
    assert_eq!(call(&mut process, "layout_of", "c"), "V1");

    let mut process = holding(&["c=14"]);
    assert_eq!(process.call("edit", "c").unwrap_err().kind, FailKind::Panicked);
    assert_eq!(call(&mut process, "layout_of", "c"), "V1");
}

#[test]
fn an_older_plugin_does_not_read_a_newer_record() {
    let mut process = holding(&["c=7"]);
    assert_eq!(call(&mut process, "read_as_an_older_plugin", ""), "7");
    call(&mut process, "edit", "c");
    let failure = process.call("read_as_an_older_plugin", "").unwrap_err();
    assert_eq!(failure.kind, FailKind::TypeChanged);
    assert!(failure.message.contains("no #[migrate] function leads"), "{}", failure.message);
    assert_eq!(process.call("write_old", "c=9").map(|_| ()), Ok(()), "it may be overwritten");
}

#[test]
fn raw_bytes_are_never_migrated() {
    let mut process = process!();
    process.call("garbage", "").unwrap();
    let failure = process.call("edit", "c").unwrap_err();
    assert_eq!(failure.kind, FailKind::TypeChanged);
    assert!(failure.message.contains("raw bytes"), "{}", failure.message);
}

#[test]
fn only_what_is_there_now_is_migrated() {
    let mut process = holding(&["c=7"]);
    assert_eq!(call(&mut process, "stale_scan", ""), "7 unnamed, 100 new");
    assert_eq!(call(&mut process, "read", "c"), "100 new");

    let mut process = holding(&["c=7"]);
    assert_eq!(call(&mut process, "read_under_an_edit", ""), "7 unnamed 7");
    assert_eq!(call(&mut process, "read_under_an_edit", "1"), "7 unnamed 8");
    assert_eq!(call(&mut process, "layout_of", "c"), "V1");
    assert_eq!(call(&mut process, "read", "c"), "8 unnamed");
}

#[test]
fn a_scan_reads_all_layouts() {
    let mut process = holding(&["a=1", "v2/b=2", "c=4"]);
    call(&mut process, "edit", "c");
    assert_eq!(call(&mut process, "sum", ""), "8");
    assert_eq!(call(&mut process, "layout_of", "a"), "V1");
    assert_eq!(call(&mut process, "sum_and_migrate", ""), "8");
    for key in ["a", "v2/b", "c"] {
        assert_eq!(call(&mut process, "layout_of", key), "V3");
    }
}

#[test]
fn nothing_is_there_to_migrate() {
    let mut process = process!();
    assert_eq!(call(&mut process, "read", "c"), "");
    assert_eq!(call(&mut process, "update", "c"), "none");
}
