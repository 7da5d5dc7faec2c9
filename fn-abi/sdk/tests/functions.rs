//! Functions as an author writes them, against the host in memory: what goes in and out, what is kept, what
//! fails and how.

#![allow(clippy::unwrap_used, reason = "a test ends where it is surprised")]

use denizen::prelude::*;
use denizen::testing::{Input, Process, process};
use denizen::{Concurrency, FailKind, IntoReply, Payload, ReplyWriter, Streamed};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};

// ---- the plugin ----

#[state]
#[derive(Default)]
struct Counter {
    count: u64,
}

#[derive(Deserialize)]
struct By {
    by: u64,
}

#[derive(Serialize)]
struct Count {
    count: u64,
}

/// Adds to the count.
///
/// Overflow is the caller's fault.
#[function]
fn increment(cx: &mut Context, Json(a): Json<By>) -> Result<Json<Count>> {
    let mut c = cx.edit_or_default::<Counter>("counter")?;
    c.count = c.count.checked_add(a.by).ok_or_else(|| bad_input("count overflows"))?;
    println!("now {}", c.count);
    Ok(Json(Count { count: c.count }))
}

#[function]
fn value(cx: &Context) -> Result<Json<Count>> {
    let count = cx.get::<Counter>("counter")?.map_or(0, |c| c.count.to_native());
    Ok(Json(Count { count }))
}

#[function(name = "the-process")]
fn the_process(cx: &Context) -> String {
    let trace = cx.traceparent().unwrap_or("-");
    format!("{}/{} {} {:?} {trace}", cx.app(), cx.process(), cx.function(), cx.deadline_remaining())
}

#[function(concurrent)]
fn add_concurrently(cx: &mut Context) -> Result<()> {
    cx.edit_or_default::<Counter>("counter")?.count += 1;
    Ok(())
}

#[function]
fn parse(_: &Context, text: &str) -> Result<String> {
    Ok((text.parse::<u64>()? + 1).to_string())
}

#[function]
fn panics(cx: &mut Context) {
    cx.put("counter", &Counter { count: 99 }).unwrap();
    let empty: Vec<u8> = Vec::new();
    assert!(!empty.is_empty(), "this {} fails", "always");
}

#[function]
fn panics_oddly(_: &Context) {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic!("and again");
            }
        }
    }
    std::panic::panic_any(Bomb);
}

#[function]
fn writes_then_fails(cx: &mut Context) -> Result<()> {
    cx.put_bytes("raw", b"lost")?;
    cx.edit_or_default::<Counter>("counter")?.count = 1;
    Err(failed("on purpose"))
}

/// Does what the input says with edits, and answers what it sees.
#[function]
fn edits(cx: &mut Context, what: &str) -> Result<String> {
    match what {
        "twice" => {
            let _one = cx.edit_or_default::<Counter>("a")?;
            cx.edit::<Counter>("a").map(drop)?;
            let _two = cx.edit_or_default::<Counter>("a")?;
        }
        "two-keys" => {
            let mut one = cx.edit_or_default::<Counter>("a")?;
            let mut two = cx.edit_or_default::<Counter>("b")?;
            std::mem::swap(&mut *one, &mut *two);
        }
        "put-under" => {
            let _one = cx.edit_or_default::<Counter>("a")?;
            cx.put("a", &Counter { count: 2 })?;
        }
        "commit-under" => {
            let _one = cx.edit_or_default::<Counter>("a")?;
            cx.commit()?;
        }
        "leak" => {
            let mut one = cx.edit_or_default::<Counter>("a")?;
            one.count = 7;
            std::mem::forget(one);
        }
        "only-look" => drop(cx.edit_or_default::<Counter>("a")?),
        "discard" => {
            let mut one = cx.edit_or_default::<Counter>("a")?;
            one.count = 7;
            one.discard();
        }
        "save" => {
            let mut one = cx.edit_or_default::<Counter>("a")?;
            one.count = 7;
            one.save()?;
            return Ok(cx.get::<Counter>("a")?.unwrap().count.to_string());
        }
        "panic-caught" => {
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let mut one = cx.edit_or_default::<Counter>("a").unwrap();
                one.count = 7;
                panic!("half way");
            }));
            assert!(caught.is_err());
        }
        "again-after-drop" => {
            cx.edit_or_default::<Counter>("a")?.count = 1;
            cx.edit_or_default::<Counter>("a")?.count += 1;
        }
        other => return Err(bad_input(format_args!("unknown: {other}"))),
    }
    Ok("done".to_owned())
}

#[function]
fn fill(cx: &mut Context, bytes: &[u8]) -> Result<()> {
    cx.put_bytes("big", bytes)
}

#[function]
fn fill_by_edit(cx: &mut Context, text: &str) -> Result<()> {
    cx.edit_or_default::<String>("big")?.push_str(text);
    Ok(())
}

/// Holds on to what it read while it overwrites, deletes and commits.
#[function]
fn holds(cx: &mut Context) -> Result<String> {
    cx.put("n", &"first".to_owned())?;
    let first = cx.get::<String>("n")?.unwrap();
    cx.put("n", &"second".to_owned())?;
    let second = cx.get::<String>("n")?.unwrap();
    cx.commit()?;
    let committed = cx.get::<String>("n")?.unwrap();
    assert!(cx.delete("n")? && !cx.delete("n")?);
    cx.commit()?;
    Ok(format!("{first} {second} {committed} {:?}", cx.get::<String>("n")?))
}

#[state]
#[derive(Debug, PartialEq, Clone)]
enum Node {
    Leaf,
    Named { name: String, values: HashMap<String, (u8, Option<f64>)> },
    Inner(Vec<Node>, Box<Node>),
}

#[payload]
struct Query {
    words: Vec<String>,
    top: u32,
}

#[state]
struct Unit;

#[function]
fn tree(cx: &mut Context) -> Result<Number> {
    let named = Node::Named { name: "x".into(), values: HashMap::from([("k".into(), (1, Some(0.5)))]) };
    let tree = Node::Inner(vec![Node::Leaf, named.clone()], Box::new(named));
    cx.put("tree", &tree)?;
    cx.put("unit", &Unit)?;
    cx.get::<Unit>("unit")?.unwrap();
    assert_eq!(*cx.edit::<Node>("tree")?.unwrap(), tree);
    match cx.get::<Node>("tree")?.unwrap() {
        ArchivedNode::Inner(children, _) => Ok(Number(children.len())),
        other => Err(failed(format_args!("{other:?}"))),
    }
}

#[function]
fn search(_: &Context, query: &Archived<Query>) -> Result<Archive<Query>> {
    let words = query.words.iter().rev().map(|word| word.as_str().to_owned()).collect();
    Ok(Archive(Query { words, top: query.top.to_native() + 1 }))
}

#[function]
fn raw_of_tree<'a>(cx: &Context<'a>) -> Result<&'a [u8]> {
    Ok(cx.get_bytes("tree")?.unwrap_or_default())
}

#[function]
fn wrong_type(cx: &Context) -> Result<Number> {
    Ok(Number(usize::from(cx.get::<Node>("counter")?.is_some())))
}

#[function]
fn scan(cx: &mut Context) -> Result<String> {
    for (key, count) in [("b/2", 2), ("b/1", 1), ("c/1", 3)] {
        cx.put(key, &Counter { count })?;
    }
    cx.put_bytes([b'b', b'/', 0xff], b"not text")?;
    let mut seen = Vec::new();
    for entry in cx.scan("b/")? {
        match entry.key_str() {
            Some(key) => seen.push(format!("{key}={}", entry.get::<Counter>()?.count)),
            None => seen.push(format!("{:?}={} bytes", entry.key(), entry.bytes().len())),
        }
    }
    Ok(seen.join(" "))
}

#[function]
fn count_bytes(cx: &Context, mut body: Stream) -> Result<String> {
    let mut total = 0;
    let mut piece = [0; 1000];
    loop {
        match body.read(&mut piece)? {
            0 => return Ok(format!("{total} {}", cx.content_type())),
            n => total += n,
        }
    }
}

#[function]
fn lines(cx: &Context, count: String) -> Result<Streamed> {
    let mut out: ReplyWriter = cx.reply_writer("text/plain")?;
    for line in 0..count.parse::<u32>().map_err(bad_input)? {
        writeln!(out, "line {line}")?;
    }
    out.finish()
}

#[function]
fn lines_unfinished(cx: &Context) -> Result<()> {
    let mut out = cx.reply_writer("text/plain")?;
    Ok(out.write_all(b"all the same")?)
}

#[function]
fn two_replies(cx: &Context) -> Result<&'static str> {
    cx.reply("one")?;
    Ok("two")
}

#[function]
fn typed_reply(_: &Context, body: Vec<u8>) -> Reply {
    Reply::new("image/png", body)
}

mod deeper {
    use denizen::prelude::*;

    #[function]
    pub(super) fn deep(_: &Context) -> &'static str {
        "deep"
    }
}

denizen::export!(
    increment,
    value,
    the_process,
    add_concurrently,
    parse,
    panics,
    panics_oddly,
    writes_then_fails,
    edits,
    fill,
    fill_by_edit,
    holds,
    tree,
    search,
    raw_of_tree,
    wrong_type,
    scan,
    count_bytes,
    lines,
    lines_unfinished,
    two_replies,
    typed_reply,
    deeper::deep,
);

/// A reply of the author's own.
struct Number(usize);

impl IntoReply for Number {
    const PAYLOAD: Payload = Payload::Json;

    fn into_reply(self, cx: &Context<'_>) -> Result<()> {
        cx.reply(Json(self.0))
    }
}

// ---- the tests ----

fn fails(process: &mut Process, function: &str, input: impl Into<Input>) -> (FailKind, String) {
    let failure = process.call(function, input).expect_err("it fails");
    (failure.kind, failure.message)
}

#[test]
fn a_counter_counts_and_is_read_beside() {
    let mut process = process!();
    assert_eq!(process.call("increment", r#"{"by":2}"#).unwrap().text(), r#"{"count":2}"#);
    let answer = process.call("increment", r#"{"by":3}"#).unwrap();
    assert_eq!(
        (answer.text(), answer.commit, &*answer.content_type),
        (r#"{"count":5}"#, 2, "application/json")
    );
    assert_eq!(process.call("add_concurrently", "").unwrap().body, b"");
    assert_eq!(process.call("value", "").unwrap().text(), r#"{"count":6}"#);
}

#[test]
fn functions_and_types_are_declared_as_they_are_written() {
    let process = process!();
    let increment = &process.functions()["increment"];
    assert_eq!(
        (increment.concurrency, increment.input, increment.output),
        (Concurrency::Exclusive, Payload::Json, Payload::Json)
    );
    assert_eq!(increment.doc, "Adds to the count.\n\nOverflow is the caller's fault.");
    assert_eq!(process.functions()["value"].concurrency, Concurrency::ReadOnly);
    assert_eq!(process.functions()["add_concurrently"].concurrency, Concurrency::Concurrent);
    assert_eq!(process.functions()["count_bytes"].input, Payload::Stream);
    assert_eq!(process.functions()["lines"].output, Payload::Stream);
    let search = &process.functions()["search"];
    assert_eq!((search.input, search.output), (Payload::Archived, Payload::Archived));
    assert_eq!(search.input_layout, "struct Query { words: Vec<String>, top: u32 }");
    assert!(process.functions().contains_key("the-process") && process.functions().contains_key("deep"));

    let types: Vec<_> = process.types().keys().collect();
    assert_eq!(types, ["Counter", "Node", "Unit"], "a payload is no record");
    assert_eq!(process.types()["Counter"].layout, "struct Counter { count: u64 }");
    assert_ne!(process.types()["Counter"].fingerprint, 0);
}

#[test]
fn the_context_says_who_calls() {
    let mut process = process!();
    process.set_name("alice");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let answer = process.call("the-process", Input::new("").deadline_ms(1500).traceparent(trace)).unwrap();
    assert_eq!(answer.text(), format!("test/alice the-process Some(1.5s) {trace}"));
    assert_eq!(process.call("the-process", "").unwrap().text(), "test/alice the-process None -");
    assert_eq!(process.call("deep", "").unwrap().text(), "deep");
}

#[test]
fn the_caller_is_told_what_is_wrong_with_its_input() {
    let mut process = process!();
    let (kind, message) = fails(&mut process, "increment", r#"{"bye":2}"#);
    assert_eq!(kind, FailKind::BadInput);
    assert_eq!(
        message,
        "the input is not the JSON that increment takes: missing field `by` at line 1 column 9"
    );
    assert_eq!(fails(&mut process, "increment", "").1, "increment takes JSON, and the input is empty");
    assert_eq!(fails(&mut process, "parse", [0xff].as_slice()).0, FailKind::BadInput);
    assert_eq!(fails(&mut process, "search", "not an archive of that").0, FailKind::BadInput);
    let overflow = format!(r#"{{"by":{}}}"#, u64::MAX);
    process.call("increment", r#"{"by":1}"#).unwrap();
    assert_eq!(fails(&mut process, "increment", overflow), (FailKind::BadInput, "count overflows".into()));
    assert_eq!(process.call("value", "").unwrap().text(), r#"{"count":1}"#);
}

#[test]
fn the_functions_own_errors_blame_the_function() {
    let mut process = process!();
    assert_eq!(process.call("parse", "41").unwrap().text(), "42");
    assert_eq!(fails(&mut process, "parse", "x"), (FailKind::Failed, "invalid digit found in string".into()));
}

#[test]
fn a_failed_invocation_commits_nothing() {
    let mut process = process!();
    assert_eq!(fails(&mut process, "writes_then_fails", ""), (FailKind::Failed, "on purpose".into()));
    assert_eq!(process.keys(), [""; 0]);
}

#[test]
fn a_panic_is_told_with_its_place_and_commits_nothing() {
    let mut process = process!();
    let (kind, message) = fails(&mut process, "panics", "");
    assert_eq!(kind, FailKind::Panicked);
    assert!(message.starts_with("this always fails (") && message.contains("functions.rs:"), "{message}");
    assert_eq!(process.keys(), [""; 0]);
    let (kind, message) = fails(&mut process, "panics_oddly", "");
    assert_eq!(kind, FailKind::Panicked);
    assert!(message.starts_with("a panic without a message ("), "{message}");
    process.call("increment", r#"{"by":2}"#).unwrap();
}

#[test]
fn edits_are_written_once_and_exclude_each_other() {
    let count = |process: &mut Process| match process.keys().contains(&"a".to_owned()) {
        true => process.call("edits", "save").map(|answer| answer.text().to_owned()),
        false => Ok("absent".to_owned()),
    };
    for (what, kind, told) in [
        ("twice", FailKind::Failed, "the record `a` is being edited: drop that edit first"),
        ("put-under", FailKind::Failed, "the record `a` is being edited: drop that edit first"),
        ("commit-under", FailKind::Failed, "the record `a` is still being edited; drop the edit first"),
        ("leak", FailKind::Failed, "the record `a` is still being edited; drop the edit first"),
        ("panic-caught", FailKind::Failed, "a panic interrupted the edit of the record `a`"),
    ] {
        let mut process = process!();
        assert_eq!(fails(&mut process, "edits", what), (kind, told.to_owned()), "{what}");
        assert_eq!(count(&mut process).unwrap(), "absent", "{what}");
    }
    for (what, then) in [
        ("only-look", &[][..]),
        ("discard", &[]),
        ("two-keys", &["a", "b"]),
        ("save", &["a"]),
        ("again-after-drop", &["a"]),
    ] {
        let mut process = process!();
        let answer = process.call("edits", what).unwrap();
        assert_eq!(process.keys(), then, "{what}");
        assert_eq!(answer.text(), if what == "save" { "7" } else { "done" });
    }
}

#[test]
fn a_full_state_fails_the_call_wherever_the_write_happens() {
    let mut process = process!();
    process.limit_state(1000);
    process.call("fill", vec![0; 900]).unwrap();
    let (kind, message) = fails(&mut process, "fill", vec![0; 1200]);
    assert_eq!(kind, FailKind::Quota);
    assert!(message.contains("`big`") && message.contains("[limits]"), "{message}");
    assert_eq!(process.state_bytes(), 903);

    let mut process = process!();
    process.limit_state(1000);
    assert_eq!(fails(&mut process, "fill_by_edit", "x".repeat(2000)).0, FailKind::Quota);
    assert_eq!(process.keys(), [""; 0]);
}

#[test]
fn what_was_read_stays_whatever_is_written() {
    let mut process = process!();
    let answer = process.call("holds", "").unwrap();
    assert_eq!((answer.text(), answer.commit), ("first second second None", 2));
}

#[test]
fn nested_and_recursive_types_come_back() {
    let mut process = process!();
    assert_eq!(process.call("tree", "").unwrap().text(), "2");
    let raw = process.call("raw_of_tree", "").unwrap();
    assert!(raw.body.len() > 50 && raw.content_type == "application/octet-stream");
}

#[test]
fn a_record_of_another_type_is_not_misread() {
    let mut process = process!();
    process.call("increment", r#"{"by":2}"#).unwrap();
    let (kind, message) = fails(&mut process, "wrong_type", "");
    assert_eq!(kind, FailKind::TypeChanged);
    assert!(message.contains("`counter`") && message.contains("enum Node"), "{message}");

    process.call("fill", "raw").unwrap();
    let (kind, message) = fails(&mut process, "fill_by_edit", "");
    assert_eq!(kind, FailKind::TypeChanged);
    assert!(message.contains("get_bytes"), "{message}");
}

#[test]
fn a_scan_sees_its_prefix_in_order_and_its_own_writes() {
    assert_eq!(process!().call("scan", "").unwrap().text(), "b/1=1 b/2=2 [98, 47, 255]=8 bytes");
}

#[test]
fn archives_are_read_in_place_both_ways() {
    let mut process = process!();
    let query = Query { words: vec!["white".into(), "rabbit".into()], top: 4 };
    let bytes = denizen::rkyv::to_bytes::<denizen::rkyv::rancor::Error>(&query).unwrap();
    let answer = process.call("search", &bytes[..]).unwrap();
    // The answer is an input of the same type, and its content type says so.
    let again =
        process.call("search", Input::new(answer.body.clone()).content_type(&answer.content_type)).unwrap();
    let reply = denizen::rkyv::from_bytes::<Query, denizen::rkyv::rancor::Error>(&again.body).unwrap();
    assert_eq!((reply.words, reply.top), (query.words, 6));
    let other = answer.content_type.replace("layout=", "layout=1");
    let (kind, message) = fails(&mut process, "search", Input::new(answer.body).content_type(&other[..50]));
    assert_eq!(kind, FailKind::BadInput);
    assert!(message.contains("another layout than `struct Query"), "{message}");
}

#[test]
fn inputs_and_replies_stream() {
    let mut process = process!();
    let body = Input::new(vec![1; 2500]).content_type("application/x-test");
    assert_eq!(process.call("count_bytes", body).unwrap().text(), "2500 application/x-test");

    let answer = process.call("lines", "3000").unwrap();
    assert!(answer.pieces > 1 && answer.text().ends_with("\nline 2999\n"));
    assert_eq!(process.call("lines_unfinished", "").unwrap().text(), "all the same");
    assert_eq!(process.call("typed_reply", "png").unwrap().content_type, "image/png");
}

#[test]
fn a_caller_that_left_is_no_fault_of_the_function() {
    let mut process = process!();
    for function in ["lines", "lines_unfinished"] {
        let (kind, message) = fails(&mut process, function, Input::new("9000").caller_left());
        assert_eq!(
            (kind, message.as_str()),
            (FailKind::Cancelled, "sending the reply: the caller went away")
        );
    }
}

#[test]
fn a_second_reply_is_refused() {
    assert_eq!(fails(&mut process!(), "two_replies", "").0, FailKind::Internal);
}

#[test]
fn collections_of_std_are_records_too() {
    type Everything = BTreeMap<String, Vec<[Option<(i8, char)>; 2]>>;
    let layout = <Everything as denizen::StateType>::layout();
    assert_eq!(layout, "BTreeMap<String, Vec<[Option<(i8, char)>; 2]>>");
}
