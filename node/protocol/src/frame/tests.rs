//! Every frame, written and read again: the same content, and the same bytes; and what no honest end writes is refused.

use std::fmt::Debug;
use std::num::NonZeroU32;

use denizen_abi::{Blame, Durability, Retry};
use proptest::option::of;
use proptest::prelude::*;

use super::*;
use crate::fields::{FieldReader, FrameWriter};
use crate::header::{Header, Kind, Sender};
use crate::limits::*;
use crate::trace::TraceParent;
use crate::violation::Violation;

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}"
}

fn visible(max: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(0x20..0x7F_u8, 1..=max).prop_map(|bytes| String::from_utf8(bytes).unwrap())
}

fn prose(max: usize) -> impl Strategy<Value = String> {
    "[a-zäß\n\t]{1,60}".prop_map(move |text| text.chars().take(max / 2).collect())
}

fn durability() -> impl Strategy<Value = Durability> {
    prop::sample::select(Durability::ALL)
}

fn trace() -> impl Strategy<Value = TraceParent> {
    (any::<[u8; 16]>(), any::<[u8; 8]>(), any::<u8>())
        .prop_map(|(trace_id, parent_id, flags)| TraceParent { trace_id, parent_id, flags })
        .prop_filter("ids are not zero", TraceParent::is_valid)
}

/// A frame cut into header, head and body.
fn cut(sender: Sender, bytes: &[u8]) -> (Header, &[u8], &[u8]) {
    assert_eq!(bytes.len() % ALIGN, 0, "frames are multiples of 16");
    let header = Header::decode(sender, bytes.first_chunk().unwrap()).unwrap();
    let head = &bytes[HEADER_LEN..HEADER_LEN + usize::from(header.head_len)];
    (header, head, &bytes[HEADER_LEN + header.padded_head()..])
}

/// No shortened head is read as the same thing, and none makes the reader panic.
fn no_truncation_passes<T: Debug + PartialEq>(
    head: &[u8],
    whole: &T,
    read: impl Fn(&[u8]) -> Result<T, Violation>,
) {
    for cut in 0..head.len() {
        assert!(read(&head[..cut]).as_ref() != Ok(whole), "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn hello(
        app in name(), process in of(name()), token in prop::collection::vec(any::<u8>(), 0..=MAX_TOKEN),
        client in of(visible(MAX_CLIENT)), high in VERSION..u16::MAX, epoch in any::<u64>(),
        call_window in MIN_WINDOW..=MAX_WINDOW, extra in any::<u32>(),
        (want_functions, create_never) in any::<(bool, bool)>(),
    ) {
        let connection_window = call_window.saturating_add(extra).min(MAX_WINDOW);
        let options = HelloOptions { want_functions, create_never };
        let hello =
            Hello { versions: (0, high), options, epoch, call_window, connection_window, app, process, token, client };
        let mut bytes = Vec::new();
        hello.encode(&mut bytes).unwrap();
        let (header, head, rest) = cut(Sender::Client, &bytes);
        prop_assert!(rest.is_empty());
        prop_assert_eq!(Hello::decode(&header, head), Ok(hello.clone()));
        no_truncation_passes(head, &hello, |head| Hello::decode(&header, head));
    }

    #[test]
    fn accepted(
        epoch in any::<u64>(), max_calls in MIN_CALLS..=MAX_CALLS, max_body_bytes in any::<u64>(),
        table in 1..u64::MAX, functions in prop::collection::vec(name(), 0..20),
    ) {
        let accepted = Accepted { max_calls, table, functions, ..Accepted::new(epoch, max_body_bytes) };
        let mut bytes = Vec::new();
        accepted.encode(&mut bytes).unwrap();
        let (header, head, body) = cut(Sender::Server, &bytes);
        let functions = read_table(&body[..header.body()]).unwrap();
        let read = Accepted::decode(&header, head).map(|read| Accepted { functions, ..read });
        prop_assert_eq!(read, Ok(accepted));
    }

    #[test]
    fn call(
        (function, process) in (name(), of(name())), index in of((1..u64::MAX, 0..MAX_FUNCTIONS)),
        deadline in any::<u32>(), length in of(0..u64::MAX), durability in of(durability()),
        create_never in any::<bool>(), content_type in of(visible(MAX_CONTENT_TYPE)),
        key in of(visible(MAX_IDEMPOTENCY_KEY)), traceparent in of(trace()),
        (id, body_len, end) in (1..u64::MAX, 0..=1_u32 << 20, any::<bool>()),
    ) {
        let function = match index {
            Some((table, index)) => FunctionRef::Index { table, index },
            None => FunctionRef::Name(&function),
        };
        let call = CallHead {
            function, process: process.as_deref(), deadline_ms: NonZeroU32::new(deadline), length, durability,
            create_never, content_type: content_type.as_deref(), idempotency_key: key.as_deref(), traceparent,
        };
        let mut bytes = Vec::new();
        call.encode(id, body_len, end, &mut bytes).unwrap();
        let (header, head, _) = cut(Sender::Client, &bytes);
        prop_assert_eq!((header.id, header.body_len, header.is_end()), (id, body_len, end));
        let told = CallHead { length: if end { Some(u64::from(body_len)) } else { length }, ..call };
        prop_assert_eq!(CallHead::decode(&header, head), Ok(told));
        for cut in 0..head.len() {
            prop_assert!(CallHead::decode(&header, &head[..cut]) != Ok(told));
        }
    }

    #[test]
    fn reply(
        (epoch, commit) in any::<(u64, u64)>(), durability in durability(), length in of(0..u64::MAX),
        replayed in any::<bool>(), process in of(name()), content_type in of(visible(MAX_CONTENT_TYPE)),
        invocation in of(visible(MAX_INVOCATION_ID)), function in of((1..u64::MAX, 0..MAX_FUNCTIONS)),
        (id, body_len, end) in (1..u64::MAX, 0..=1_u32 << 20, any::<bool>()),
    ) {
        let rests_on = Final { commit, durability };
        let reply = ReplyHead {
            epoch, rests_on, length, replayed, process: process.as_deref(),
            content_type: content_type.as_deref(), invocation: invocation.as_deref(), function,
        };
        let mut bytes = Vec::new();
        reply.encode(id, body_len, end, &mut bytes).unwrap();
        let (header, head, _) = cut(Sender::Server, &bytes);
        let told = ReplyHead { length: if end { Some(u64::from(body_len)) } else { length }, ..reply };
        prop_assert_eq!(ReplyHead::decode(&header, head), Ok(told));
        for cut in 0..head.len() {
            prop_assert!(ReplyHead::decode(&header, &head[..cut]) != Ok(told));
        }
    }

    #[test]
    fn problem(
        kind in "[a-z0-9-]{1,64}", blame in prop::sample::select(Blame::ALL), retry in prop::sample::select(Retry::ALL),
        (retry_after_ms, epoch, commit) in any::<(u32, u64, u64)>(), detail in of(prose(MAX_DETAIL)),
        cause in of(prose(MAX_CAUSE)), remedy in of(prose(MAX_REMEDY)), process in of(name()),
        invocation in of(visible(MAX_INVOCATION_ID)), address in of(visible(MAX_ADDRESS)), id in any::<u64>(),
        replayed in any::<bool>(),
    ) {
        let problem = Problem {
            kind, blame, retry, retry_after_ms, epoch, commit, detail, cause, remedy, process, invocation, address,
            replayed,
        };
        let mut bytes = Vec::new();
        problem.encode(id, &mut bytes).unwrap();
        let (header, head, _) = cut(Sender::Server, &bytes);
        prop_assert_eq!(Problem::decode(&header, head), Ok(problem.clone()));
        no_truncation_passes(head, &problem, |head| Problem::decode(&header, head));
    }

    #[test]
    fn moved_and_drain(
        address in visible(MAX_ADDRESS), (last, epoch) in any::<(u64, u64)>(), within_ms in 1..u32::MAX,
        detail in of(prose(MAX_DETAIL)),
    ) {
        let moved = Moved { address: address.clone(), epoch };
        let mut bytes = Vec::new();
        moved.encode(&mut bytes).unwrap();
        let (header, head, _) = cut(Sender::Server, &bytes);
        prop_assert_eq!(Moved::decode(&header, head), Ok(moved));
        let drain = Drain { last, reason: DrainReason::Moved, within_ms, epoch, address: Some(address), detail };
        let mut bytes = Vec::new();
        drain.encode(&mut bytes).unwrap();
        let (header, head, _) = cut(Sender::Server, &bytes);
        prop_assert_eq!(DrainHead::decode(&header, head), Ok(drain));
    }

    /// Whatever is read from any head is written back as the same bytes, but for fields that were skipped: one form for one content.
    #[test]
    fn any_head_is_refused_or_has_one_form(
        head in prop::collection::vec(any::<u8>(), 0..80), small in prop::collection::vec(0..9_u8, 0..80),
        (a, b, c, flags) in (prop_oneof![Just(u32::MAX), 0..4_u32], 0..3_u32, any::<u64>(), 0..2_u8),
    ) {
        for head in [head, small] {
            let head_len = u16::try_from(head.len()).unwrap();
            let header = |kind| Header { head_len, flags, a, b, c, ..Header::new(kind, 7) };
            let mut out = Vec::new();
            if let Ok(call) = CallHead::decode(&header(Kind::Call), &head) {
                call.encode(7, 0, false, &mut out).unwrap();
                prop_assert_eq!(&out[HEADER_LEN..HEADER_LEN + head.len()], &head[..]);
            }
            let _ = (
                ReplyHead::decode(&header(Kind::Reply), &head),
                Problem::decode(&header(Kind::Fail), &head),
                Hello::decode(&header(Kind::Hello), &head),
                Accepted::decode(&header(Kind::Accepted), &head),
                Moved::decode(&header(Kind::Moved), &head),
                DrainHead::decode(&header(Kind::Drain), &head),
                read_table(&head),
            );
        }
    }
}

fn head_of(fields: &[(u16, &[u8])]) -> (Header, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut frame = FrameWriter::new(Kind::Call, &mut bytes);
    frame.fixed(&[0, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0]);
    fields.iter().for_each(|(tag, value)| frame.raw(*tag, value));
    frame.finish(Header { a: crate::header::BY_NAME, ..Header::new(Kind::Call, 1) }).unwrap();
    let (header, head, _) = cut(Sender::Client, &bytes);
    let head = head.to_vec();
    (header, head)
}

fn read_call(fields: &[(u16, &[u8])]) -> Result<(), Violation> {
    let (header, head) = head_of(fields);
    CallHead::decode(&header, &head).map(drop)
}

#[test]
fn fields_come_once_in_order_and_unknown_ones_are_refused_unless_skippable() {
    let kind = Kind::Call;
    assert_eq!(read_call(&[(3, b"f"), (4, b"text/plain")]), Ok(()));
    assert_eq!(read_call(&[(3, b"f"), (3, b"f")]), Err(Violation::FieldOrder { kind, tag: 3 }));
    assert_eq!(read_call(&[(4, b"text/plain"), (3, b"f")]), Err(Violation::FieldOrder { kind, tag: 3 }));
    assert_eq!(read_call(&[(3, b"f"), (0x7FFF, b"")]), Err(Violation::UnknownField { kind, tag: 0x7FFF }));
    assert_eq!(read_call(&[(3, b"f"), (0x8001, b"later")]), Ok(()));
    assert_eq!(read_call(&[(3, b"f"), (9, b"token")]), Err(Violation::UnknownField { kind, tag: 9 }));
    assert_eq!(read_call(&[]), Err(Violation::MissingField { kind, field: "function" }));
}

#[test]
fn a_field_that_runs_over_its_head_is_refused() {
    let (header, mut head) = head_of(&[(3, b"function")]);
    head[18] = 9;
    assert_eq!(CallHead::decode(&header, &head), Err(Violation::FieldCutShort { kind: Kind::Call }));
    head[19] = 255;
    assert_eq!(CallHead::decode(&header, &head), Err(Violation::FieldCutShort { kind: Kind::Call }));
    let (_, mut reader) = FieldReader::new(Kind::Moved, &[8, 0, 1]).unwrap();
    assert_eq!(reader.next(), Err(Violation::FieldCutShort { kind: Kind::Moved }));
}

#[test]
fn a_function_is_named_or_indexed_and_never_both() {
    let read = |a: u32, table: u8, fields: &[(u16, &[u8])]| {
        let (header, mut head) = head_of(fields);
        head[0] = table;
        CallHead::decode(&Header { a, ..header }, &head).map(|call| match call.function {
            FunctionRef::Name(_) => "name",
            FunctionRef::Index { .. } => "index",
        })
    };
    let by_name = crate::header::BY_NAME;
    assert_eq!(read(by_name, 0, &[(3, b"f")]), Ok("name"));
    assert_eq!(read(0, 9, &[]), Ok("index"));
    assert!(read(by_name, 9, &[(3, b"f")]).is_err(), "a name has no table");
    assert!(read(0, 0, &[]).is_err(), "an index needs one");
    assert!(read(0, 9, &[(3, b"f")]).is_err());
    assert!(read(MAX_FUNCTIONS, 9, &[]).is_err());
    assert!(read(0xFFFF_FF00, 9, &[]).is_err(), "what a node calls for itself no caller can");
}

#[test]
fn numbers_outside_their_range_are_refused() {
    let (header, head) = head_of(&[(3, b"f")]);
    for (at, byte) in [(8, 3), (9, 2), (10, 1), (15, 1)] {
        let mut head = head.clone();
        head[at] = byte;
        assert!(CallHead::decode(&header, &head).is_err(), "byte {at}");
    }
    let mut bytes = Vec::new();
    for (call, connection) in
        [(MIN_WINDOW - 1, MIN_WINDOW), (MIN_WINDOW + 1, MIN_WINDOW), (MIN_WINDOW, MAX_WINDOW + 1)]
    {
        let hello = Hello { call_window: call, connection_window: connection, ..Hello::new("a", None) };
        assert!(hello.encode(&mut bytes).is_err());
        assert!(bytes.is_empty(), "what is refused leaves nothing behind");
    }
    for max_calls in [MIN_CALLS - 1, MAX_CALLS + 1] {
        assert!(Accepted { max_calls, ..Accepted::new(1, 1) }.encode(&mut bytes).is_err());
    }
    let reply = Header { b: 3, head_len: 16, ..Header::new(Kind::Reply, 1) };
    assert!(ReplyHead::decode(&reply, &[0; 16]).is_err());
    let fail = Header { a: 4, head_len: 16, ..Header::new(Kind::Fail, 1) };
    assert!(Problem::decode(&fail, &[0; 16]).is_err());
}

#[test]
fn heads_with_every_field_at_its_limit_fit() {
    let text = |len| Some("x".repeat(len));
    let mut bytes = Vec::new();
    let problem = Problem {
        kind: "x".repeat(MAX_PROBLEM_TYPE),
        detail: text(MAX_DETAIL + 99),
        cause: text(MAX_CAUSE + 99),
        remedy: text(MAX_REMEDY + 99),
        process: text(MAX_NAME),
        invocation: text(MAX_INVOCATION_ID),
        address: text(MAX_ADDRESS),
        ..Problem::new("x", Blame::Host, Retry::Safe)
    };
    problem.encode(1, &mut bytes).unwrap();
    let (header, head, _) = cut(Sender::Server, &bytes);
    let read = Problem::decode(&header, head).unwrap();
    assert_eq!(read.detail, text(MAX_DETAIL), "texts for people are cut");
    let hello = Hello {
        token: vec![1; MAX_TOKEN],
        client: text(MAX_CLIENT),
        ..Hello::new("x".repeat(MAX_NAME), text(MAX_NAME).as_deref())
    };
    hello.encode(&mut bytes).unwrap();
    let accepted = Accepted {
        table: 1,
        functions: vec!["x".repeat(MAX_NAME); MAX_FUNCTIONS as usize],
        ..Accepted::new(1, 1)
    };
    accepted.encode(&mut bytes).unwrap();
    let too_many = Accepted { functions: vec!["x".to_owned(); 1 + MAX_FUNCTIONS as usize], ..accepted };
    assert!(too_many.encode(&mut bytes).is_err());
    assert!(Problem { address: text(MAX_ADDRESS + 1), ..problem }.encode(1, &mut bytes).is_err());
}
