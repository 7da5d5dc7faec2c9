//! The specification against the code: its tables, and its examples in both directions.
//!
//! `DENIZEN_BLESS=1 cargo test -p denizen-protocol the_page` writes the examples anew; the tables are written by hand.

use std::fmt::Write as _;
use std::path::PathBuf;

use denizen_abi::{Blame, Durability, Retry};

use crate::client::{self, Call, Memory};
use crate::fields::TAGS;
use crate::frame::problem::{self, KINDS};
use crate::frame::{
    Accepted, CallHead, CancelReason, Drain, DrainReason, Final, FunctionRef, Hello, HelloOptions, Moved,
    Problem, ReplyHead,
};
use crate::header::{Header, Kind, PADDING, Sender, padding};
use crate::limits::{self, HEADER_LEN};
use crate::server::{self, Handshake, Parked, Terms};
use crate::token::{self, Claims, KeyRing, PublicKey, Refusal, SecretKey};
use crate::trace::TraceParent;
use crate::violation::{NAMES, Violation};

fn path() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md"))
}

fn page() -> String {
    std::fs::read_to_string(path()).expect("the specification is in docs")
}

/// The first cells of the table whose header begins with `title`.
fn table(page: &str, title: &str) -> Vec<Vec<String>> {
    let start = format!("| {title} |");
    let rows = page.lines().skip_while(|line| !line.starts_with(&start)).skip(2);
    let rows: Vec<Vec<String>> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect();
    assert!(!rows.is_empty(), "there is no table that begins with {title}");
    rows
}

#[test]
fn every_limit_is_on_the_page_with_its_value() {
    let page = page();
    let told: Vec<_> =
        table(&page, "limit").into_iter().map(|row| (row[0].clone(), row[1].parse().unwrap())).collect();
    let real: Vec<(String, u128)> =
        limits::ALL.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    assert_eq!(told, real);
}

#[test]
fn every_frame_is_on_the_page() {
    let told = table(&page(), "frame");
    assert_eq!(told.len(), Kind::ALL.len());
    for (row, kind) in told.iter().zip(Kind::ALL) {
        assert_eq!(row[0].split(' ').next().unwrap(), format!("{kind:?}"));
        assert_eq!(row[1], (kind as u8).to_string(), "{kind:?}");
        let from = match (kind.may_come_from(Sender::Client), kind.may_come_from(Sender::Server)) {
            (true, true) => "both",
            (true, false) => "client",
            _ => "server",
        };
        assert_eq!(row[2], from, "{kind:?}");
        let head = if kind.max_head() == 0 { "none".to_owned() } else { kind.fixed_head().to_string() };
        assert_eq!(row[8], head, "{kind:?}");
        assert_eq!(row[9].is_empty(), kind.max_body() == 0, "{kind:?}");
    }
}

#[test]
fn every_field_violation_refusal_and_problem_is_on_the_page() {
    let page = page();
    let fields: Vec<_> =
        table(&page, "field").into_iter().map(|row| (row[0].clone(), row[1].clone())).collect();
    let real: Vec<_> = TAGS.iter().map(|(name, tag)| ((*name).to_owned(), tag.to_string())).collect();
    assert_eq!(fields, real);
    let after = |heading: &str| page.split(heading).nth(1).expect(heading).to_owned();
    let names =
        |text: &str| -> Vec<String> { table(text, "name").into_iter().map(|row| row[0].clone()).collect() };
    assert_eq!(names(&after("## Violations")), NAMES);
    assert_eq!(names(&after("## Tokens")), Refusal::NAMES);
    let told: Vec<_> = table(&page, "type").into_iter().map(|row| row[..3].join(" ")).collect();
    let real: Vec<_> = KINDS
        .iter()
        .map(|(kind, blame, retry)| format!("{kind} {} {}", lower(blame), lower(retry)).to_owned())
        .collect();
    assert_eq!(told, real);
}

fn lower(value: &impl std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// The problems that HTTP and frames share have the same blame and retry in both.
#[test]
fn problems_mean_the_same_over_http() {
    let page = std::fs::read_to_string(path().with_file_name("errors.md")).unwrap();
    let http = table(&page, "type");
    let shared = KINDS.iter().filter_map(|(kind, blame, retry)| {
        http.iter().find(|row| row[0] == *kind).map(|row| (row, [lower(blame), lower(retry)]))
    });
    let mut count = 0;
    for (row, said) in shared {
        assert_eq!(row[2..4], said, "{}", row[0]);
        count += 1;
    }
    assert!(count >= 9, "only {count} are shared");
}

fn with_body(mut frame: Vec<u8>, body: &[u8]) -> Vec<u8> {
    frame.extend_from_slice(body);
    frame.extend_from_slice(&PADDING[..padding(body.len())]);
    frame
}

fn made(make: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    make(&mut out);
    out
}

fn hello() -> Hello {
    let options = HelloOptions { want_functions: true, create_never: false };
    Hello {
        options,
        token: b"no token".to_vec(),
        client: Some("example/1".to_owned()),
        ..Hello::new("shop", Some("alice"))
    }
}

fn accepted() -> Accepted {
    let functions = vec!["get".to_owned(), "put".to_owned()];
    Accepted { table: 0xA1B2_C3D4, functions, ..Accepted::new(7, 64 << 20) }
}

fn named() -> CallHead<'static> {
    CallHead { content_type: Some("text/plain"), ..CallHead::new(FunctionRef::Name("put")) }
}

fn streamed() -> CallHead<'static> {
    CallHead {
        deadline_ms: std::num::NonZeroU32::new(2000),
        length: Some(20),
        durability: Some(Durability::Node),
        idempotency_key: Some("order-17"),
        traceparent: TraceParent::from_text("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ..CallHead::new(FunctionRef::Index { table: 0xA1B2_C3D4, index: 1 })
    }
}

fn rests_on(commit: u64, durability: Durability) -> Final {
    Final { commit, durability }
}

fn failure() -> Problem {
    Problem {
        epoch: 7,
        commit: 42,
        invocation: Some("01J-3".to_owned()),
        ..Problem::new(problem::CALLER_GONE, Blame::Caller, Retry::Unknown)
            .with_detail("the caller cancelled")
    }
}

fn secret() -> SecretKey {
    SecretKey::from_random(&[7; 32])
}

fn claims() -> Claims {
    Claims {
        app: "shop".to_owned(),
        process: Some("alice".to_owned()),
        functions: Some(vec!["get".to_owned(), "put".to_owned()]),
        not_before_s: 1_700_000_000,
        expires_s: 1_700_003_600,
    }
}

/// Every example, as the code makes it, in the order of the page.
fn examples() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let bare = |header: Header| header.encode().to_vec();
    let reply = ReplyHead {
        content_type: Some("text/plain"),
        invocation: Some("01J-1"),
        function: Some((0xA1B2_C3D4, 1)),
        ..ReplyHead::new(7, rests_on(41, Durability::Process))
    };
    let begun =
        ReplyHead { invocation: Some("01J-2"), ..ReplyHead::new(7, rests_on(41, Durability::Process)) };
    let notice = Drain {
        last: 3,
        epoch: 8,
        address: Some("10.0.0.2:7071".to_owned()),
        ..Drain::new(DrainReason::Moved)
    };
    let version = Problem::from(&Violation::UnsupportedVersion { low: 2, high: 2 });
    let index = FunctionRef::Index { table: 0xA1B2_C3D4, index: 0 };
    vec![
        ("client", "hello", made(|out| hello().encode(out).unwrap())),
        ("server", "accepted", made(|out| accepted().encode(out).unwrap())),
        ("client", "call-by-name", with_body(made(|out| named().encode(1, 5, true, out).unwrap()), b"hello")),
        ("server", "reply-to-name", with_body(made(|out| reply.encode(1, 2, true, out).unwrap()), b"ok")),
        (
            "client",
            "call-streamed",
            with_body(made(|out| streamed().encode(2, 16, false, out).unwrap()), b"0123456789abcdef"),
        ),
        (
            "client",
            "data-end",
            with_body(bare(Header { body_len: 4, flags: 1, ..Header::new(Kind::Data, 2) }), b"ghij"),
        ),
        ("server", "reply-begun", with_body(made(|out| begun.encode(2, 6, false, out).unwrap()), b"part 1")),
        (
            "server",
            "data-done",
            with_body(
                made(|out| Final::encode_data(2, 6, Some(rests_on(42, Durability::Node)), out)),
                b"part 2",
            ),
        ),
        ("client", "call-empty", made(|out| CallHead::new(index).encode(3, 0, true, out).unwrap())),
        (
            "client",
            "cancel",
            bare(Header { a: CancelReason::Deadline as u32, ..Header::new(Kind::Cancel, 3) }),
        ),
        ("server", "fail", made(|out| failure().encode(3, out).unwrap())),
        ("client", "credit", bare(Header { a: 2 << 20, ..Header::new(Kind::Credit, 0) })),
        ("client", "ping", bare(Header { c: 99, ..Header::new(Kind::Ping, 0) })),
        ("server", "pong", bare(Header { c: 99, ..Header::new(Kind::Pong, 0) })),
        ("server", "drain", made(|out| notice.encode(out).unwrap())),
        (
            "server",
            "moved",
            made(|out| Moved { address: "10.0.0.2:7071".to_owned(), epoch: 8 }.encode(out).unwrap()),
        ),
        ("server", "unsupported", made(|out| version.encode(0, out).unwrap())),
        ("token", "token", secret().issue(&claims()).unwrap()),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// One line per 16 bytes, the comment on the first.
fn line(out: &mut String, bytes: &[u8], comment: &str) {
    for (at, piece) in bytes.chunks(16).enumerate() {
        let comment = if at == 0 { format!("; {comment}") } else { String::new() };
        out.push_str(format!("{:<49}{comment}", hex(piece)).trim_end());
        out.push('\n');
    }
}

fn explain(sender: &str, bytes: &[u8]) -> String {
    let mut out = String::new();
    if sender == "token" {
        explain_token(&mut out, bytes);
        return out;
    }
    let sender = if sender == "client" { Sender::Client } else { Sender::Server };
    let header = Header::decode(sender, bytes.first_chunk().unwrap()).unwrap();
    let flags = ["", ", END", ", REPLAYED", ", END and REPLAYED"][usize::from(header.flags)];
    let lengths = format!("body {}, {:?}{flags}, head {}", header.body_len, header.kind, header.head_len);
    line(&mut out, &bytes[..8], &lengths);
    line(
        &mut out,
        &bytes[8..16],
        &format!(
            "id {}",
            if header.id == crate::header::MAGIC { "denizen".to_owned() } else { header.id.to_string() }
        ),
    );
    line(&mut out, &bytes[16..24], &format!("a {:#x}, b {:#x}", header.a, header.b));
    line(&mut out, &bytes[24..32], &format!("c {:#x}", header.c));
    explain_head(&mut out, header.kind, &bytes[HEADER_LEN..HEADER_LEN + usize::from(header.head_len)]);
    let body = HEADER_LEN + header.padded_head();
    line(&mut out, &bytes[HEADER_LEN + usize::from(header.head_len)..body], "padding");
    line(&mut out, &bytes[body..body + header.body()], "body");
    line(&mut out, &bytes[body + header.body()..], "padding");
    out
}

fn explain_head(out: &mut String, kind: Kind, head: &[u8]) {
    let (fixed, mut rest) = head.split_at(kind.fixed_head());
    for piece in fixed.chunks(8) {
        line(out, piece, "fixed part");
    }
    while !rest.is_empty() {
        let tag = u16::from_le_bytes([rest[0], rest[1]]);
        let len = usize::from(u16::from_le_bytes([rest[2], rest[3]]));
        let name = TAGS.iter().find(|(_, number)| *number == tag).unwrap().0;
        line(out, &rest[..4], &format!("{name}, {len} bytes"));
        let text =
            std::str::from_utf8(&rest[4..4 + len]).ok().filter(|text| text.chars().all(|c| !c.is_control()));
        line(out, &rest[4..4 + len], text.unwrap_or("binary"));
        rest = &rest[4 + len..];
    }
}

fn explain_token(out: &mut String, token: &[u8]) {
    let mut rest = token;
    let mut next = |len: usize, comment: &str| {
        let (piece, tail) = rest.split_at(len);
        line(out, piece, comment);
        rest = tail;
    };
    for (len, comment) in [
        (1, "version"),
        (8, "key id"),
        (8, "not before"),
        (8, "expires"),
        (5, "application"),
        (6, "process"),
        (1, "two functions"),
        (4, "get"),
        (4, "put"),
        (64, "signature"),
    ] {
        next(len, comment);
    }
    assert!(rest.is_empty());
}

/// The blocks of the page as the code has them: what stands behind the three ticks, and the lines.
fn blocks() -> Vec<(String, String)> {
    let token = secret().issue(&claims()).unwrap();
    let mut blocks: Vec<(String, String)> = examples()
        .into_iter()
        .map(|(sender, name, bytes)| (format!("hex {sender} {name}"), explain(sender, &bytes)))
        .collect();
    blocks.push(("text token-text".to_owned(), wrapped(&token::to_text(&token))));
    blocks.push(("text public-key".to_owned(), wrapped(&secret().public().to_string())));
    blocks
}

/// Long texts in lines of 100; they are joined when read.
fn wrapped(text: &str) -> String {
    let lines = text.as_bytes().chunks(100).map(|line| std::str::from_utf8(line).unwrap());
    lines.fold(String::new(), |mut out, line| {
        let _ = writeln!(out, "{line}");
        out
    })
}

/// The lines of a block of the page.
fn block(page: &str, info: &str) -> String {
    let start = format!("```{info}\n");
    let rest = page.split(&start).nth(1).unwrap_or_else(|| panic!("the page has no block {info}"));
    rest.split("```").next().unwrap().to_owned()
}

fn unhex(text: &str) -> Vec<u8> {
    text.lines()
        .flat_map(|line| line.split(';').next().unwrap().split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}

#[test]
fn the_page_has_every_example_as_the_code_makes_it() {
    let mut page = page();
    let bless = std::env::var_os("DENIZEN_BLESS").is_some();
    for (info, lines) in blocks() {
        let there = block(&page, &info);
        if there != lines && bless {
            page = page.replacen(&format!("```{info}\n{there}"), &format!("```{info}\n{lines}"), 1);
        } else {
            assert_eq!(there, lines, "{info}");
        }
    }
    if bless {
        std::fs::write(path(), &page).unwrap();
    }
    let count = page.matches("\n```hex ").count();
    assert_eq!(count, examples().len(), "each example on the page is checked");
}

fn read(page: &str, sender: &str, names: &[&str]) -> Vec<u8> {
    names.iter().flat_map(|name| unhex(&block(page, &format!("hex {sender} {name}")))).collect()
}

/// What a client reads out of the page is what a server says, and the other way round.
#[test]
fn the_examples_of_the_page_are_a_conversation() {
    let page = page();
    let mut handshake = Handshake::new();
    let greeting = read(&page, "client", &["hello"]);
    let (lead, rest) = greeting.split_at(handshake.wants());
    assert_eq!(handshake.push(lead), Ok(None));
    assert_eq!(rest.len(), handshake.wants());
    let said = handshake.push(rest).unwrap().unwrap();
    assert_eq!(said, hello());
    let mut server = server::Connection::resume(Parked::fresh(Terms::agreed(&said, &accepted(), None)));
    let stream = read(
        &page,
        "client",
        &["call-by-name", "call-streamed", "data-end", "call-empty", "cancel", "credit", "ping"],
    );
    let mut input = &stream[..];
    let mut heard = Vec::new();
    while let Some(event) = server.next(&mut input).unwrap() {
        use server::Event;
        heard.push(match event {
            Event::Call { id: 1, head, part } => {
                assert_eq!(head, CallHead { length: Some(5), ..named() });
                assert_eq!((part.bytes, part.end), (&b"hello"[..], true));
                "named"
            }
            Event::Call { id: 2, head, part } => {
                assert_eq!(head, streamed());
                assert!(!part.end);
                "streamed"
            }
            Event::Call { id: 3, .. } => "empty",
            Event::Body { id: 2, part } => {
                assert_eq!((part.bytes, part.end), (&b"ghij"[..], true));
                "rest"
            }
            Event::Cancel { id: 3, reason: CancelReason::Deadline } => "cancel",
            Event::Credit { id: None } => "credit",
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(heard, ["named", "streamed", "rest", "empty", "cancel", "credit"]);
    let mut out = Vec::new();
    server.control(&mut out);
    assert_eq!(out, read(&page, "server", &["pong"]));
    the_client_understands(&page);
}

fn the_client_understands(page: &str) {
    let mut out = Vec::new();
    let mut client = client::Connection::open(&hello(), Memory::default(), &mut out).unwrap();
    assert_eq!(out, read(page, "client", &["hello"]));
    out.clear();
    let early = Call { content_type: Some("text/plain"), ..Call::new("put") };
    assert_eq!(client.call(&early, 5, true, &mut out), Ok(1));
    assert_eq!(with_body(out, b"hello"), read(page, "client", &["call-by-name"]));
    let mut sent = Vec::new();
    let mut heard = Vec::new();
    hear(&mut client, &read(page, "server", &["accepted", "reply-to-name"]), &mut heard);
    let streamed = streamed();
    let call = Call {
        deadline_ms: streamed.deadline_ms,
        length: streamed.length,
        durability: streamed.durability,
        idempotency_key: streamed.idempotency_key,
        traceparent: streamed.traceparent,
        ..Call::new("put")
    };
    assert_eq!(client.call(&call, 16, false, &mut sent), Ok(2));
    sent = with_body(sent, b"0123456789abcdef");
    client.data(2, 4, true, &mut sent).unwrap();
    sent = with_body(sent, b"ghij");
    assert_eq!(client.call(&Call::new("get"), 0, true, &mut sent), Ok(3));
    client.cancel(3, CancelReason::Deadline, &mut sent).unwrap();
    assert_eq!(sent, read(page, "client", &["call-streamed", "data-end", "call-empty", "cancel"]));
    hear(
        &mut client,
        &read(page, "server", &["reply-begun", "data-done", "fail", "pong", "drain"]),
        &mut heard,
    );
    assert_eq!(
        heard,
        [
            "accepted 7",
            "reply 1 ended",
            "reply 2",
            "body 2 ended",
            "failed 3 caller-gone",
            "pong 99",
            "drain 3"
        ]
    );
    let mut other = client::Connection::open(&hello(), Memory::default(), &mut Vec::new()).unwrap();
    heard.clear();
    hear(&mut other, &read(page, "server", &["moved"]), &mut heard);
    let mut third = client::Connection::open(&hello(), Memory::default(), &mut Vec::new()).unwrap();
    hear(&mut third, &read(page, "server", &["unsupported"]), &mut heard);
    assert_eq!(heard, ["moved 10.0.0.2:7071", "refused unsupported-version"]);
}

fn hear(client: &mut client::Connection, stream: &[u8], heard: &mut Vec<String>) {
    use client::Event;
    let mut input = stream;
    while let Some(event) = client.next(&mut input).unwrap() {
        let ended = |done: Option<Final>| if done.is_some() { " ended" } else { "" };
        heard.push(match event {
            Event::Accepted(accepted) => format!("accepted {}", accepted.epoch),
            Event::Reply { id, done, .. } => format!("reply {id}{}", ended(done)),
            Event::Body { id, done, .. } => format!("body {id}{}", ended(done)),
            Event::Failed { id, problem } => format!("failed {id} {}", problem.kind),
            Event::Pong { value } => format!("pong {value}"),
            Event::Draining(notice) => format!("drain {}", notice.last),
            Event::Moved(moved) => format!("moved {}", moved.address),
            Event::Refused(problem) => format!("refused {}", problem.kind),
            Event::Credit { .. } => "credit".to_owned(),
        });
    }
}

#[test]
fn the_token_of_the_page_is_verified_with_its_key() {
    let page = page();
    let text: String = block(&page, "text token-text").lines().collect();
    let token = token::from_text(&text).unwrap();
    assert_eq!(token, unhex(&block(&page, "hex token token")));
    let mut ring = KeyRing::new();
    ring.add(PublicKey::from_text(&block(&page, "text public-key")).unwrap()).unwrap();
    assert_eq!(ring.verify(&token, 1_700_000_000), Ok(claims()));
    assert!(matches!(ring.verify(&token, 1_700_003_600), Err(Refusal::Expired { .. })));
}
