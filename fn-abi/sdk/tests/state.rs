//! What functions do with their state beyond reading and writing it: changes in place, parts, keys, conflicts,
//! savepoints, commits; and the errors that each of them can give.

#![allow(clippy::unwrap_used, reason = "a test ends where it is surprised")]

use denizen::prelude::*;
use denizen::rkyv::bytecheck::Verify;
use denizen::rkyv::rancor::Fallible;
use denizen::testing::{Input, Process, process};
use denizen::{FailKind, MAX_KEY_BYTES};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

// ---- the plugin ----

#[state]
#[derive(Default)]
struct Account {
    pence: u64,
    history: Vec<u32>,
}

/// `NAME PENCE`
fn parts(input: &str) -> Result<(&str, u64)> {
    let (name, pence) = input.split_once(' ').ok_or_else(|| bad_input("NAME PENCE"))?;
    Ok((name, pence.parse().map_err(bad_input)?))
}

#[function]
fn open(cx: &mut Context, input: &str) -> Result<()> {
    let (name, pence) = parts(input)?;
    cx.put(name, &Account { pence, history: vec![0; 4] })
}

#[function]
fn balance(cx: &Context, name: &str) -> Result<String> {
    let account = cx.get::<Account>(name)?.ok_or_else(|| bad_input("no such account"))?;
    let history: Vec<_> = account.history.iter().map(|entry| entry.to_native()).collect();
    Ok(format!("{} {history:?}", account.pence))
}

fn add(account: Seal<'_, ArchivedAccount>, more: u32) {
    munge!(let ArchivedAccount { mut pence, history } = account);
    *pence += u64::from(more);
    *denizen::rkyv::vec::ArchivedVec::as_slice_seal(history).index(1) = more.into();
}

#[function]
fn add_in_place(cx: &mut Context, input: &str) -> Result<String> {
    let (name, more) = parts(input)?;
    let more = u32::try_from(more)?;
    let before = cx.get::<Account>(name)?;
    let first = cx.update::<Account, _>(name, |account| add(account, more))?;
    // Again, once unseen and once seen by a read in between.
    cx.update::<Account, _>(name, |account| add(account, more))?;
    let between = cx.get::<Account>(name)?;
    cx.update::<Account, _>(name, |account| add(account, more))?;
    let pence = |account: Option<&ArchivedAccount>| account.map_or(0, |account| account.pence.to_native());
    let after = cx.get::<Account>(name)?;
    Ok(format!("{} {} {} {}", first.is_some(), pence(before), pence(between), pence(after)))
}

#[function]
fn update_badly(cx: &mut Context, what: &str) -> Result<()> {
    match what {
        "wrong type" => drop(cx.update::<u64, _>("a", |mut n| *n = 1.into())?),
        "wrong type, own" => {
            cx.put("a", &1_u64)?;
            cx.update::<Nothing, _>("a", |_| ())?;
        }
        "under an edit" => {
            let _edit = cx.edit::<Account>("a")?;
            cx.update::<Account, _>("a", |account| add(account, 1))?;
        }
        "under an edit, caught" => {
            let _edit = cx.edit::<Account>("a")?;
            assert!(cx.update::<Account, _>("a", |account| add(account, 1)).is_err());
        }
        "then fail" => {
            cx.update::<Account, _>("a", |account| add(account, 1))?;
            return Err(failed("on purpose"));
        }
        "caught panic" => {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                cx.update::<Account, _>("a", |account| {
                    add(account, 1);
                    panic!("half way");
                })
            }));
            assert!(caught.is_err());
        }
        "caught panic in a savepoint" => {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                cx.savepoint(|cx| {
                    cx.update::<Account, _>("a", |account| {
                        add(account, 1);
                        panic!("half way");
                    })
                })
            }));
            assert!(caught.is_err());
        }
        other => return Err(bad_input(format_args!("unknown: {other}"))),
    }
    Ok(())
}

#[state]
struct Nothing;

#[function]
fn update_nothing(cx: &mut Context) -> Result<Json<bool>> {
    cx.put("nothing", &Nothing)?;
    Ok(Json(cx.update::<Nothing, _>("nothing", |_| ())?.is_some()))
}

#[function]
fn fill(cx: &mut Context, bytes: &[u8]) -> Result<()> {
    cx.put_bytes("raw", bytes)
}

#[function]
fn range(cx: &Context, range: &str) -> Result<String> {
    let (offset, len) = range.split_once('+').ok_or_else(|| bad_input("OFFSET+LEN"))?;
    let part = cx.get_range("raw", offset.parse()?, len.parse()?)?;
    assert_eq!(cx.get_range("absent", 0, 1)?, None);
    Ok(part.map_or_else(|| "none".to_owned(), |part| String::from_utf8_lossy(part).into_owned()))
}

#[function]
fn list(cx: &mut Context, limit: &str) -> Result<String> {
    for key in ["b/3", "b/1", "b/2", "b", "c"] {
        cx.put(key, &0_u64)?;
    }
    cx.commit()?;
    cx.delete("b/2")?;
    cx.put_bytes("b/4", b"12345")?;
    let limit = limit.parse()?;
    let (mut pages, mut after) = (Vec::new(), String::new());
    loop {
        let page = cx.keys_after("b/", &after, limit)?;
        let Some(last) = page.last() else { break };
        after = last.key_str().unwrap().to_owned();
        pages.push(page.iter().map(|key| key.key_str().unwrap()).collect::<Vec<_>>().join(" "));
    }
    let all = cx.keys("b/")?;
    assert_eq!(all.len(), 3);
    assert!(cx.keys_after("b/", "b/4", 9)?.is_empty() && cx.keys_after("b/", "", 0)?.is_empty());
    assert_eq!(
        cx.keys_after("b/", "a", 9)?.len(),
        3,
        "what comes after another key comes after it all the same"
    );
    let (stored, fresh) = (all[0].info(), all[2].info());
    assert!(stored.is::<u64>() && stored.version > 0 && stored.written.is_some() && stored.len == 8);
    assert!(fresh.fingerprint == 0 && fresh.version == 0 && fresh.written.is_none() && fresh.len == 5);
    assert_eq!(cx.info("b/4")?, Some(fresh));
    assert_eq!(cx.info("b/2")?, None);
    Ok(pages.join(" | "))
}

/// Concurrently: adds to an account.
#[function(concurrent)]
fn pay_in(cx: &mut Context, input: &str) -> Result<()> {
    let (name, more) = parts(input)?;
    cx.edit_or_default::<Account>(name)?.pence += more;
    Ok(())
}

/// An exclusive twin.
#[function]
fn pay_in_alone(cx: &mut Context, input: &str) -> Result<()> {
    let (name, more) = parts(input)?;
    cx.edit_or_default::<Account>(name)?.pence += more;
    Ok(())
}

/// Takes from one of two accounts as long as both together have enough. What it does not watch it may overlook.
#[function(concurrent)]
fn pay_out(cx: &mut Context, input: &str) -> Result<()> {
    let (how, name) = input.split_once(' ').ok_or_else(|| bad_input("HOW NAME"))?;
    let other = if name == "a" { "b" } else { "a" };
    let spare = match how {
        "careless" => cx.get::<Account>(other)?,
        "careful" => cx.get_for_update::<Account>(other)?,
        "watching" => {
            cx.watch(other)?;
            cx.get::<Account>(other)?
        }
        _ => return Err(bad_input("unknown")),
    };
    let spare = spare.map_or(0, |account| account.pence.to_native());
    let mut account = cx.edit_or_default::<Account>(name)?;
    if account.pence + spare < 100 {
        return Err(bad_input("not enough"));
    }
    account.pence = account.pence.saturating_sub(100);
    Ok(())
}

/// Looks for an account that is not there, and counts on that.
#[function(concurrent)]
fn first_to_come(cx: &mut Context) -> Result<()> {
    if cx.get_for_update::<Account>("winner")?.is_some() {
        return Err(bad_input("too late"));
    }
    cx.put("runner-up", &1_u64)
}

/// Looks in a savepoint that is taken back.
#[function(concurrent)]
fn looks_and_takes_back(cx: &mut Context) -> Result<()> {
    let refused = cx.savepoint(|cx| {
        cx.put("winner", &1_u64)?;
        Err::<(), _>(failed("no"))
    });
    assert!(refused.is_err());
    cx.put("runner-up", &1_u64)
}

/// Notes how often it is validated.
#[state]
#[rkyv(bytecheck(verify))]
struct Checked {
    number: u64,
}

thread_local!(static CHECKS: Cell<u32> = const { Cell::new(0) });

// SAFETY: there is nothing to be verified.
unsafe impl<C: Fallible + ?Sized> Verify<C> for ArchivedChecked {
    fn verify(&self, _: &mut C) -> Result<(), C::Error> {
        CHECKS.set(CHECKS.get() + 1);
        Ok(())
    }
}

#[function]
fn checked(cx: &mut Context, what: &str) -> Result<()> {
    match what {
        "put" => cx.put("checked", &Checked { number: 1 })?,
        "update" => drop(cx.update::<Checked, _>("checked", |_| ())?),
        _ => assert!(cx.get::<Checked>("checked")?.is_some_and(|checked| checked.number == 1)),
    }
    Ok(())
}

/// Does what the input says inside savepoints, and answers the keys that it then sees.
#[function]
fn savepoints(cx: &mut Context, what: &str) -> Result<String> {
    cx.put("before", &1_u64)?;
    let refused = |cx: &mut Context<'_>| cx.put("inside", &1_u64).and_then(|()| Err::<(), _>(failed("no")));
    match what {
        "kept" => cx.savepoint(|cx| cx.put("inside", &1_u64))?,
        "taken back" => assert_eq!(cx.savepoint(refused).unwrap_err().message(), "no"),
        "overwritten" => {
            let refused = cx.savepoint(|cx| {
                cx.put("before", &"another type".to_owned())?;
                cx.update::<String, _>("before", |_| ())?;
                cx.delete("before")?;
                Err::<(), _>(failed("no"))
            });
            assert!(refused.is_err());
            assert_eq!(cx.get::<u64>("before")?.map(|n| n.to_native()), Some(1));
        }
        "updated" => {
            cx.update::<u64, _>("before", |mut n| *n = 2.into())?;
            let refused = cx.savepoint(|cx| {
                cx.update::<u64, _>("before", |mut n| *n = 3.into())?;
                Err::<(), _>(failed("no"))
            });
            assert!(refused.is_err());
            assert_eq!(cx.get::<u64>("before")?.map(|n| n.to_native()), Some(2));
        }
        "nested" => {
            cx.savepoint(|cx| {
                cx.put("outer", &1_u64)?;
                assert!(cx.savepoint(refused).is_err());
                cx.savepoint(|cx| cx.put("inner", &1_u64))
            })?;
        }
        "nested and all taken back" => {
            let outer = cx.savepoint(|cx| {
                cx.savepoint(|cx| cx.put("inner", &1_u64))?;
                Err::<(), _>(failed("no"))
            });
            assert!(outer.is_err());
        }
        "panic" => {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                cx.savepoint(|cx| {
                    let mut edit = cx.edit_or_default::<u64>("inside")?;
                    *edit = 1;
                    panic!("half way");
                    #[expect(unreachable_code, reason = "gives the closure its type")]
                    Ok(())
                })
            }));
            assert!(caught.is_err());
        }
        "full" => {
            let full = cx.savepoint(|cx| {
                cx.edit_or_default::<String>("inside")?.push_str(&"x".repeat(5000));
                Ok(())
            });
            assert_eq!(full.unwrap_err().kind(), ErrorKind::Quota);
        }
        "commit inside" => {
            cx.savepoint(|cx| cx.commit())?;
        }
        "under an edit" => {
            let _edit = cx.edit::<u64>("before")?;
            cx.savepoint(|_| Ok(()))?;
        }
        "edit escapes" => {
            let edit = cx.savepoint(|cx| cx.edit::<u64>("before"));
            assert_eq!(edit.map(drop).unwrap_err().kind(), ErrorKind::InUse);
        }
        "edit escapes sideways" => {
            let mut escaped = None;
            let refused = cx.savepoint(|cx| {
                escaped = cx.edit::<u64>("before")?;
                Err::<(), _>(failed("no"))
            });
            assert_eq!(refused.unwrap_err().message(), "no");
            *escaped.unwrap() = 7;
        }
        other => return Err(bad_input(format_args!("unknown: {other}"))),
    }
    Ok(cx.keys("")?.iter().map(|key| key.key_str().unwrap()).collect::<Vec<_>>().join(" "))
}

#[function]
fn commits(cx: &mut Context, what: &str) -> Result<String> {
    cx.put("n", &1_u64)?;
    let seq = match what {
        "process" => cx.commit_at(Durability::Process)?,
        "node" => cx.commit_at(Durability::Node)?,
        "store" => cx.commit_at(Durability::Store)?,
        "later" => {
            let seq = cx.commit()?;
            cx.put("n", &2_u64)?;
            cx.commit()?;
            cx.wait_commit(seq, Durability::Node)?;
            seq
        }
        "again" => {
            cx.commit()?;
            cx.commit()?
        }
        _ => cx.commit()?,
    };
    Ok(seq.to_string())
}

#[function(concurrent)]
fn commits_concurrently(cx: &mut Context) -> Result<String> {
    cx.put("mine", &1_u64)?;
    let seq = cx.commit()?;
    cx.edit_or_default::<u64>("n").map(drop)?;
    Ok(seq.to_string())
}

#[function]
fn keep_files(cx: &mut Context) -> Result<()> {
    cx.sync_files()
}

#[function]
fn odd_keys(cx: &mut Context, what: &str) -> Result<()> {
    let key = match what {
        "empty" => String::new(),
        "longest" => "k".repeat(MAX_KEY_BYTES),
        _ => "k".repeat(64 * 1024),
    };
    let kinds = [
        cx.put(&key, &1_u64).err(),
        cx.get::<u64>(&key).err(),
        cx.get_bytes(&key).err(),
        cx.get_range(&key, 0, 1).err(),
        cx.info(&key).err(),
        cx.update::<u64, _>(&key, |_| ()).err(),
        cx.edit::<u64>(&key).err(),
        cx.watch(&key).err(),
        cx.delete(&key).err(),
        cx.put_bytes(&key, b"").err(),
    ];
    match what {
        "longest" => assert!(kinds.iter().all(Option::is_none), "{kinds:?}"),
        _ => assert!(kinds.iter().flatten().all(|error| error.kind() == ErrorKind::BadKey), "{kinds:?}"),
    }
    assert!(cx.scan(&key)?.len() <= 1 && cx.keys(&key)?.len() <= 1);
    kinds.into_iter().flatten().next().map_or(Ok(()), Err)
}

#[function]
fn touch_all(cx: &Context) -> Result<String> {
    let kind = |error: Error| format!("{:?}", error.kind());
    Ok([
        cx.get::<Account>("a").map_or_else(kind, |_| "read".to_owned()),
        cx.get_range("a", 0, 1).map_or_else(kind, |_| "read".to_owned()),
        cx.scan("").map_or_else(kind, |_| "read".to_owned()),
        cx.info("a").map_or_else(kind, |_| "read".to_owned()),
        cx.keys("").map_or_else(kind, |_| "read".to_owned()),
        cx.get::<Account>("b").map_or_else(kind, |_| "read".to_owned()),
    ]
    .join(" "))
}

denizen::export!(
    open,
    balance,
    add_in_place,
    update_badly,
    update_nothing,
    fill,
    range,
    list,
    pay_in,
    pay_in_alone,
    pay_out,
    first_to_come,
    looks_and_takes_back,
    checked,
    savepoints,
    commits,
    commits_concurrently,
    keep_files,
    odd_keys,
    touch_all,
);

// ---- the tests ----

fn call(process: &mut Process, function: &str, input: impl Into<Input>) -> String {
    process.call(function, input).unwrap().text().to_owned()
}

fn fails(process: &mut Process, function: &str, input: &str) -> (FailKind, String) {
    let failure = process.call(function, input).expect_err("it fails");
    (failure.kind, failure.message)
}

fn with_accounts(accounts: &[&str]) -> Process {
    let mut process = process!();
    for account in accounts {
        process.call("open", *account).unwrap();
    }
    process
}

#[test]
fn an_update_changes_a_copy_that_is_committed_with_the_rest() {
    let mut process = with_accounts(&["a 100"]);
    assert_eq!(call(&mut process, "add_in_place", "a 5"), "true 100 110 115");
    assert_eq!(call(&mut process, "balance", "a"), "115 [0, 5, 0, 0]");
    assert_eq!(call(&mut process, "add_in_place", "absent 5"), "false 0 0 0");
    assert_eq!(call(&mut process, "update_nothing", ""), "true");
}

#[test]
fn an_update_that_goes_wrong_leaves_the_record() {
    for (what, kind, told) in [
        ("wrong type", FailKind::TypeChanged, "the record `a` was written with another layout"),
        ("wrong type, own", FailKind::TypeChanged, "the record `a` was written with another layout"),
        ("under an edit", FailKind::Failed, "the record `a` is being edited"),
        ("then fail", FailKind::Failed, "on purpose"),
        ("caught panic", FailKind::Failed, "a panic interrupted the update of the record `a`"),
    ] {
        let mut process = with_accounts(&["a 100"]);
        let (found, message) = fails(&mut process, "update_badly", what);
        assert!(found == kind && message.starts_with(told), "{what}: {found:?} {message}");
        assert_eq!(call(&mut process, "balance", "a"), "100 [0, 0, 0, 0]", "{what}");
    }
    let mut process = with_accounts(&["a 100"]);
    assert_eq!(process.call("update_badly", "under an edit, caught").unwrap().commit, 1, "nothing to commit");
    process.call("update_badly", "caught panic in a savepoint").unwrap();
    assert_eq!(call(&mut process, "balance", "a"), "100 [0, 0, 0, 0]");
    process.limit_state(process.state_bytes() - 1);
    assert_eq!(fails(&mut process, "add_in_place", "a 1").0, FailKind::Quota);
}

#[test]
fn a_part_of_a_record_is_as_much_as_there_is() {
    let mut process = process!();
    assert_eq!(call(&mut process, "range", "0+1"), "none");
    process.call("fill", "0123456789").unwrap();
    for (range, part) in [
        ("0+3", "012"),
        ("7+99", "789"),
        ("10+1", ""),
        ("99+1", ""),
        ("3+0", ""),
        ("1+18446744073709551615", "123456789"),
        ("18446744073709551615+18446744073709551615", ""),
    ] {
        assert_eq!(call(&mut process, "range", range), part, "{range}");
    }
}

#[test]
fn keys_come_in_order_and_in_pieces() {
    assert_eq!(call(&mut process!(), "list", "2"), "b/1 b/3 | b/4");
    assert_eq!(call(&mut process!(), "list", "1"), "b/1 | b/3 | b/4");
    assert_eq!(call(&mut process!(), "list", "9"), "b/1 b/3 b/4");
}

#[test]
fn concurrent_functions_conflict_where_they_write_the_same() {
    let mut process = with_accounts(&["a 0"]);
    let outcome = process.call_beside("pay_in", "a 1", |process| {
        process.call("pay_in", "a 10").unwrap();
    });
    let failure = outcome.unwrap_err();
    assert_eq!(failure.kind, FailKind::Conflict);
    assert_eq!(call(&mut process, "balance", "a"), "10 [0, 0, 0, 0]", "nothing of it was committed");
    process.call("pay_in", "a 1").unwrap();
    // Different keys do not meet, and neither does a reader.
    process
        .call_beside("pay_in", "a 1", |process| {
            process.call("pay_in", "b 10").unwrap();
            assert_eq!(call(process, "balance", "a"), "11 [0, 0, 0, 0]");
        })
        .unwrap();
    assert_eq!(call(&mut process, "balance", "a"), "12 [0, 0, 0, 0]");
    // An exclusive one is run again.
    process
        .call_beside("pay_in_alone", "a 100", |process| {
            process.call("pay_in", "a 1000").unwrap();
        })
        .unwrap();
    assert_eq!(call(&mut process, "balance", "a"), "1112 [0, 0, 0, 0]");
}

#[test]
fn write_skew_is_possible_unless_what_counts_is_watched() {
    let both = |how: &str| {
        let mut process = with_accounts(&["a 60", "b 60"]);
        let outcome = process.call_beside("pay_out", format!("{how} a"), |process| {
            process.call("pay_out", format!("{how} b")).unwrap();
        });
        outcome.map(|_| ()).map_err(|failure| failure.kind)
    };
    assert_eq!(both("careless"), Ok(()), "each of them saw 120 pence");
    assert_eq!(both("careful"), Err(FailKind::Conflict));
    assert_eq!(both("watching"), Err(FailKind::Conflict));
}

#[test]
fn what_is_not_there_can_be_watched_too() {
    for function in ["first_to_come", "looks_and_takes_back"] {
        let mut process = process!();
        let outcome = process.call_beside(function, "", |process| {
            process.call("open", "winner 1").unwrap();
        });
        assert_eq!(outcome.unwrap_err().kind, FailKind::Conflict, "{function}");
        assert_eq!(process.keys(), ["winner"]);
    }
}

#[test]
fn a_stored_version_is_validated_once() {
    let mut process = process!();
    let mut checks = |what: &str| {
        let before = CHECKS.get();
        process.call("checked", what).unwrap();
        CHECKS.get() - before
    };
    assert_eq!(checks("put"), 0);
    assert_eq!((checks("get"), checks("get"), checks("update")), (1, 0, 0));
    assert_eq!((checks("get"), checks("get")), (1, 0), "another version");
}

#[test]
fn savepoints_take_back_what_was_written_in_them() {
    for (what, keys) in [
        ("kept", "before inside"),
        ("taken back", "before"),
        ("overwritten", "before"),
        ("updated", "before"),
        ("nested", "before inner outer"),
        ("nested and all taken back", "before"),
        ("panic", "before"),
        ("full", "before"),
        ("edit escapes", "before"),
    ] {
        let mut process = process!();
        process.limit_state(1000);
        assert_eq!(call(&mut process, "savepoints", what), keys, "{what}");
        assert_eq!(process.keys().join(" "), keys, "{what}");
    }
}

#[test]
fn savepoints_and_edits_do_not_overlap() {
    for (what, told) in [
        ("commit inside", "a savepoint is open"),
        ("under an edit", "the record `before` is still being edited"),
        ("edit escapes sideways", "a savepoint was taken back: the record `before` is still being edited"),
    ] {
        let mut process = process!();
        let (kind, message) = fails(&mut process, "savepoints", what);
        assert!(kind == FailKind::Failed && message.starts_with(told), "{what}: {message}");
        assert_eq!(process.keys(), [""; 0], "{what}");
    }
}

#[test]
fn a_function_commits_by_itself_and_waits_as_long_as_it_likes() {
    for (what, seq, durable) in
        [("plain", "1", 0), ("process", "1", 0), ("node", "1", 1), ("later", "1", 1), ("again", "1", 0)]
    {
        let mut process = process!();
        assert_eq!(call(&mut process, "commits", what), seq, "{what}");
        assert_eq!(process.durable_commit(), durable, "{what}");
    }
    let mut process = process!();
    let (kind, message) = fails(&mut process, "commits", "store");
    assert!(kind == FailKind::Internal && message.starts_with("committing"), "{message}");
    assert_eq!(process.keys(), [""; 0]);

    // Concurrent functions commit early too, and conflict at each commit by itself.
    assert_eq!(call(&mut process, "commits_concurrently", ""), "1");
    let outcome = process.call_beside("commits_concurrently", "", |process| {
        process.call("commits_concurrently", "").unwrap();
    });
    assert_eq!(outcome.unwrap_err().kind, FailKind::Conflict);
}

#[test]
fn a_full_disk_commits_nothing() {
    let mut process = with_accounts(&["a 100"]);
    process.fill_disk(true);
    let failure = process.call("open", "b 1").unwrap_err();
    assert_eq!((failure.kind, &*failure.message), (FailKind::Quota, "the disk is full"));
    let (_, message) = fails(&mut process, "commits", "process");
    assert_eq!(message, "committing: the node's disk is full; make room there");
    assert_eq!(call(&mut process, "balance", "a"), "100 [0, 0, 0, 0]");
    process.fill_disk(false);
    process.call("open", "b 1").unwrap();
}

#[test]
fn a_damaged_record_is_named_and_others_are_read() {
    let mut process = with_accounts(&["a 1", "b 2"]);
    process.damage("a");
    assert_eq!(call(&mut process, "touch_all", ""), "Corrupt Corrupt Corrupt read read read");
    let (kind, message) = fails(&mut process, "balance", "a");
    assert!(
        kind == FailKind::Corrupt && message.starts_with("reading the record `a`: it is damaged"),
        "{message}"
    );
    process.call("open", "a 5").unwrap();
    assert_eq!(call(&mut process, "touch_all", ""), "read read read read read read");
}

#[test]
fn files_are_kept_where_there_are_any() {
    let mut process = process!();
    let (kind, message) = fails(&mut process, "keep_files", "");
    assert!(kind == FailKind::Internal && message.starts_with("keeping the files under /state"), "{message}");
    process.keep_files();
    process.call("keep_files", "").unwrap();
    assert_eq!(process.files_synced(), 1);
}

#[test]
fn a_key_has_at_least_one_byte_and_is_not_too_long() {
    let mut process = process!();
    process.call("odd_keys", "longest").unwrap();
    let (kind, message) = fails(&mut process, "odd_keys", "empty");
    assert_eq!((kind, &*message), (FailKind::Failed, "the key is empty: a key has at least one byte"));
    let (_, message) = fails(&mut process, "odd_keys", "64 KiB");
    assert!(message.contains("65536 bytes, and 1024 are allowed") && message.len() < 300, "{message}");
}
