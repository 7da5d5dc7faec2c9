//! What a runner promises about state: who runs beside whom, what is durable when, what happens where there is no room or no disk.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::io::Write as _;

use denizen_wire::archive::{Decoder, Encoder, Event, RecordHead};
use denizen_wire::{
    Builtin, CallHead, Durability, FailKind, Header, Imported, Kind, ListAsk, Listing, ValueHead, encode_put,
};
use harness::state::Syncs;
use harness::{Agent, Ended, Giving, SEGMENT_BYTES, State, assignment, pattern, plugin};

#[test]
fn readers_and_concurrent_calls_go_beside_a_long_exclusive_one() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let long = agent.start("add_later", "");
    assert_eq!(agent.call("count", "").body(), "0");
    assert_eq!(agent.call("put_beside", "other=1").body(), "put");
    assert_eq!(agent.call("get", "other").body(), "1");
    // The exclusive call waits for this one.
    assert_eq!(agent.call("open_door", "").body(), "open");
    assert_eq!(agent.finish(long).body(), "1");
    assert_eq!(agent.call("count", "").body(), "1");
}

#[test]
fn of_two_concurrent_calls_that_write_one_key_the_first_wins() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let slow = agent.start("add_later_beside", "");
    let watching = agent.start("watch_later", "");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(agent.call("add_beside", "").body(), "1");
    agent.call("open_door", "");
    let failure = agent.finish(slow).failure();
    assert_eq!((failure.kind, failure.committed), (FailKind::Conflict, false), "{}", failure.message);
    assert!(failure.message.contains("count"), "{}", failure.message);
    let failure = agent.finish(watching).failure();
    assert_eq!(failure.kind, FailKind::Conflict, "it had read what was changed");
    assert_eq!(agent.call("has", "seen").body(), "no");
    assert_eq!(agent.call("add_later_beside", "").body(), "2", "the second run of it");
    assert_eq!(agent.call("count", "").body(), "2");
}

#[test]
fn an_exclusive_call_that_meets_a_conflict_runs_again_alone() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let long = agent.start("add_later", "");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(agent.call("add_beside", "").body(), "1");
    agent.call("open_door", "");
    assert_eq!(agent.finish(long).body(), "2", "the second run of it");
    assert_eq!(agent.call("count", "").body(), "2", "an addition was lost");
    agent.call("close_door", "");
    // A reply that has begun cannot be taken back.
    let streaming = agent.start("stream_add_later", "");
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(agent.call("add_beside", "").body(), "3");
    agent.call("open_door", "");
    let Ended::Failed { failure, part, .. } = agent.finish(streaming) else { panic!() };
    assert_eq!((failure.kind, part.as_slice()), (FailKind::Conflict, &b"begun "[..]));
    assert_eq!(agent.call("count", "").body(), "3");
}

#[test]
fn nobody_is_faster_than_a_second_run() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let pause = || std::thread::sleep(std::time::Duration::from_millis(100));
    let long = agent.start("add_later_each_time", "");
    pause();
    assert_eq!(agent.call("add_beside", "").body(), "1");
    agent.call("open_door", "");
    pause();
    // Its commit would be the next conflict.
    let beside = agent.start("add_beside", "");
    pause();
    agent.call("open_door", "");
    assert_eq!(agent.finish(long).body(), "2", "the second run of it");
    let added = u64::from(matches!(agent.finish(beside), Ended::Reply { .. }));
    assert_eq!(agent.call("count", "").body(), (2 + added).to_string());
}

#[test]
fn a_reply_says_how_durable_its_commit_is() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let ended = agent.call("add", "");
    assert_eq!((ended.commit(), ended.level()), (1, Durability::Process));
    agent.level = Durability::Node;
    let ended = agent.call("add", "");
    assert_eq!((ended.commit(), ended.level()), (2, Durability::Node));
    let ended = agent.call("stream_add", "");
    assert_eq!((ended.commit(), ended.level()), (3, Durability::Node));
    agent.level = Durability::Process;
    assert_eq!(agent.call("add", "").level(), Durability::Process);
    // A reader that wants to rely on what it read makes it durable.
    agent.level = Durability::Node;
    let ended = agent.call("count", "");
    assert_eq!((ended.commit(), ended.level()), (4, Durability::Node));
    let ended = agent.call("large", &(3 * denizen_wire::WINDOW).to_string());
    assert_eq!(ended.level(), Durability::Node);
    let seven = agent.call("seven", "").failure();
    assert_eq!(seven.kind, FailKind::Failed);
}

#[test]
fn many_replies_share_a_sync() {
    let syncs = Syncs::new();
    // On a slow disk the replies would pile up behind the first sync, whatever the runner does.
    syncs.skip();
    let state = State::new();
    let mut agent = syncs.spawn().serve(&state);
    agent.level = Durability::Node;
    agent.call("add", "");
    let before = syncs.count();
    for _ in 0..20 {
        assert_eq!(agent.call("add", "").level(), Durability::Node);
    }
    assert_eq!(syncs.count() - before, 20, "one after another, each needs its own");
    let add = agent.declarations.as_ref().unwrap().functions.iter().position(|decl| decl.name == "add");
    let mut frames = Vec::new();
    for id in 1000..1100 {
        let mut payload = Vec::new();
        CallHead { content_type: "", invocation: "many", key: None, trace: None }
            .encode(&mut payload)
            .unwrap();
        let header = Header::invoke(id, u32::try_from(add.unwrap()).unwrap(), 0, 0).with_end(true);
        let header = Header { code: Durability::Node.code(), ..header }.with_payload(payload.len());
        frames.extend_from_slice(&header.encode());
        frames.extend_from_slice(&payload);
    }
    let before = syncs.count();
    agent.socket.write_all(&frames).unwrap();
    let mut last = 0;
    for id in 1000..1100 {
        let ended = agent.finish(id);
        assert_eq!(ended.level(), Durability::Node);
        assert!(ended.commit() > last, "each has its own commit");
        last = ended.commit();
    }
    let shared = syncs.count() - before;
    assert!((1..=50).contains(&shared), "100 replies took {shared} syncs");
}

#[test]
fn others_are_served_while_a_sync_takes_long() {
    let syncs = Syncs::new();
    let state = State::new();
    let mut agent = syncs.spawn().serve(&state);
    agent.call("add", "");
    syncs.delay_ms(300);
    agent.level = Durability::Node;
    let slow = agent.start("add", "");
    agent.level = Durability::Process;
    // Both see what is committed and not yet durable; exclusive ones are not held up either.
    assert_eq!(agent.call("count", "").body(), "2");
    let ended = agent.call("add", "");
    assert_eq!((ended.level(), ended.body().as_str()), (Durability::Process, "3"));
    assert_eq!(agent.finish(slow).body(), "2");
}

#[test]
fn the_agent_can_wait_for_a_commit_later() {
    let syncs = Syncs::new();
    let state = State::new();
    let mut agent = syncs.spawn().serve(&state);
    let commit = agent.call("add", "").commit();
    let durable = |agent: &mut Agent, id: u64| {
        let said = agent.next_of(|said| said.header.id == id);
        assert_eq!(said.header.kind, Kind::Durable, "{}", String::from_utf8_lossy(&said.payload));
        said.header.c
    };
    let before = syncs.count();
    let id = agent.sync(commit, 0);
    assert_eq!(durable(&mut agent, id), commit);
    assert_eq!(syncs.count(), before, "nothing had to be synced for that");
    let id = agent.sync(commit, 1);
    assert_eq!(durable(&mut agent, id), commit);
    assert_eq!(syncs.count(), before + 1);
    let id = agent.sync(commit, 1);
    durable(&mut agent, id);
    assert_eq!(syncs.count(), before + 1, "it was durable already");
    for (commit, level, kind) in [(commit + 1, 1, FailKind::NotFound), (commit, 2, FailKind::Internal)] {
        let id = agent.sync(commit, level);
        assert_eq!(agent.finish(id).failure().kind, kind);
    }
}

#[test]
fn a_failed_sync_is_the_stores_fault_and_the_end_of_the_process() {
    let syncs = Syncs::new();
    let state = State::new();
    let mut agent = syncs.spawn().serve(&state);
    agent.level = Durability::Node;
    assert_eq!(agent.call("add", "").body(), "1");
    syncs.fail();
    let failure = agent.call("add", "").failure();
    assert_eq!(failure.kind, FailKind::StoreBroken, "{}", failure.message);
    assert!(failure.committed, "it may have been committed: a retry is not safe");
    assert_eq!(agent.exit().code(), Some(70));
    let mut again = Agent::serving(&state);
    let count: u64 = again.call("count", "").body().parse().unwrap();
    assert!(count == 1 || count == 2, "{count}");
}

#[test]
fn a_failed_sync_inside_a_function_ends_the_process_too() {
    let syncs = Syncs::new();
    let state = State::new();
    let mut agent = syncs.spawn().serve(&state);
    assert_eq!(agent.call("commit_at", "1").body(), "1");
    syncs.fail();
    let failure = agent.call("commit_at", "1").failure();
    assert_eq!(failure.kind, FailKind::StoreBroken, "{}", failure.message);
    assert_eq!(agent.exit().code(), Some(70));
}

#[test]
fn what_is_not_to_be_durable_is_not_synced() {
    let syncs = Syncs::new();
    let state = State::new();
    let mut agent = syncs.spawn().serve(&state);
    agent.call("add", "");
    let before = syncs.count();
    for _ in 0..50 {
        agent.call("add", "");
    }
    assert_eq!(syncs.count(), before);
    assert_eq!(agent.call("commit_at", "0").body(), "52");
    assert_eq!(syncs.count(), before + 1, "its second commit was waited for");
}

#[test]
fn without_room_a_commit_fails_by_name_and_later_succeeds() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    agent.giving = Giving::Refusals(0);
    let large = format!("large*{}", 2 * SEGMENT_BYTES);
    let failure = agent.call("put", &large).failure();
    assert_eq!((failure.kind, failure.committed), (FailKind::StoreFull, false), "{}", failure.message);
    assert_eq!(agent.call("has", "large").body(), "no");
    agent.giving = Giving::Refusals(1);
    assert_eq!(agent.call("put", &large).failure().kind, FailKind::Quota);
    assert_eq!(agent.call("add", "").body(), "1", "what fits into the spare that is there goes on");
    agent.giving = Giving::Spares;
    assert_eq!(agent.call("put", &large).body(), "put");
    assert_eq!(agent.call("has", "large").body(), "yes");
}

#[test]
fn a_commit_waits_for_room_while_others_are_served() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    agent.giving = Giving::Nothing;
    let waiting = agent.start("put", &format!("large*{}", 2 * SEGMENT_BYTES));
    agent.wait_until_wanted(1);
    assert!(agent.wanted[0] >= 2 * SEGMENT_BYTES);
    assert_eq!(agent.call("count", "").body(), "0");
    let late = agent.start("put_beside", "other*200000");
    std::thread::sleep(std::time::Duration::from_millis(50));
    agent.cancel(late, 0);
    let failure = agent.finish(late).failure();
    assert_eq!(failure.kind, FailKind::Deadline, "{}", failure.message);
    agent.give(Giving::Spares);
    assert_eq!(agent.finish(waiting).body(), "put");
    assert_eq!(agent.call("has", "large").body(), "yes");
    assert_eq!(agent.call("has", "other").body(), "no");
}

#[test]
fn old_segments_are_given_back() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    for round in 0..400 {
        assert_eq!(agent.call("put", &format!("k{}*20000", round % 4)).body(), "put");
    }
    // What is left to do is done while nothing else is.
    for _ in 0..200 {
        if state.files.bytes() < 4 << 20 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        agent.call("count", "");
    }
    let (left, retired) = (state.files.bytes(), agent.retired.len());
    assert!(
        left < 4 << 20,
        "{left} bytes are left of 8 million that were written, {retired} segments retired"
    );
    for key in ["k0", "k1", "k2", "k3"] {
        assert_eq!(agent.call("get", key).body().len(), 20_000);
    }
    agent.kill();
    let mut again = Agent::serving(&state);
    for key in ["k0", "k1", "k2", "k3"] {
        assert_eq!(again.call("get", key).body().len(), 20_000);
    }
}

#[test]
fn the_services_for_state_do_what_the_header_says() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    assert_eq!(agent.call("savepoints", "").body(), "taken back");
    assert_eq!(agent.call("get", "p").body(), "before");
    assert_eq!(agent.call("update", "").body(), "updated");
    assert_eq!(agent.call("get", "u").body(), "XYc");
    assert_eq!(agent.call("ranges", "").body(), "ranged");
    assert_eq!(agent.call("limits", "").body(), "limited");
    assert_eq!(agent.call("write_read_only", "").body(), "refused");
    let ended = agent.call("half_beside", "");
    assert!(ended.failure().committed, "it committed half way");
    assert_eq!(agent.call("has", "kept").body(), "yes");
    assert_eq!(agent.call("has", "lost").body(), "no");
}

#[test]
fn a_call_that_outlives_its_deadline_leaves_nothing() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let id = agent.begin("too_late", 0, 30, b"", true);
    assert_eq!(agent.finish(id).failure().kind, FailKind::Deadline);
    assert_eq!(agent.call("has", "late").body(), "no");
}

#[test]
fn a_damaged_object_is_named_and_the_others_are_served() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    agent.level = Durability::Node;
    for key in ["before", "broken", "behind"] {
        agent.call("put", &format!("{key}=the value of {key}"));
    }
    agent.kill();
    state.files.damage(b"the value of broken");
    let mut agent = Agent::serving(&state);
    let recovery = agent.declarations.as_ref().unwrap().recovery.clone().unwrap();
    assert_eq!(recovery.damaged.len(), 1, "{recovery:?}");
    assert!(recovery.damaged[0].contains("broken"), "{recovery:?}");
    let failure = agent.call("get", "broken").failure();
    assert_eq!(failure.kind, FailKind::StateCorrupt, "{}", failure.message);
    assert!(failure.message.contains("broken"), "{}", failure.message);
    assert_eq!(agent.builtin(Builtin::StateGet, b"broken").failure().kind, FailKind::StateCorrupt);
    assert_eq!(agent.call("get", "before").body(), "the value of before");
    assert_eq!(agent.call("get", "behind").body(), "the value of behind");
    assert_eq!(agent.call("put", "broken=healed").body(), "put");
    assert_eq!(agent.call("get", "broken").body(), "healed");
}

fn list(agent: &mut Agent, ask: &ListAsk) -> Listing {
    let reply = agent.builtin(Builtin::StateList, &serde_json::to_vec(ask).unwrap()).body();
    serde_json::from_str(&reply).unwrap()
}

#[test]
fn objects_can_be_looked_at_and_changed_without_the_plugin() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    agent.call("add", "");
    let large = pattern(300_000);
    let mut input = Vec::new();
    encode_put(&mut input, &[0, 0xFF], 77).unwrap();
    input.extend_from_slice(&large);
    let ended = agent.builtin(Builtin::StatePut, &input);
    assert_eq!(ended.commit(), 2);
    let Ended::Reply { content_type, body, .. } = agent.builtin(Builtin::StateGet, &[0, 0xFF]) else {
        panic!()
    };
    assert!(body == large);
    let head = ValueHead::parse(&content_type).unwrap();
    assert_eq!((head.fingerprint, head.version), (77, 2));
    assert!(head.time_ms > 1_600_000_000_000);
    assert_eq!(agent.builtin(Builtin::StateGet, b"count").body().len(), 8);
    let all = list(&mut agent, &ListAsk { limit: 10, ..ListAsk::default() });
    let keys: Vec<(&[u8], u64)> = all.keys.iter().map(|key| (&key.key[..], key.bytes)).collect();
    assert_eq!(keys, [(&[0, 0xFF][..], 300_000), (b"count", 8)]);
    assert_eq!((all.keys[1].fingerprint, all.more, all.commit), (7, false, 2));
    let first = list(&mut agent, &ListAsk { limit: 1, ..ListAsk::default() });
    assert_eq!((first.keys.len(), first.more), (1, true));
    let after = list(&mut agent, &ListAsk { after: Some(vec![0, 0xFF]), limit: 1, ..ListAsk::default() });
    assert_eq!((after.keys[0].key.as_slice(), after.more), (&b"count"[..], false));
    let prefixed = list(&mut agent, &ListAsk { prefix: b"co".to_vec(), limit: 9, after: None });
    assert_eq!(prefixed.keys.len(), 1);
    agent.builtin(Builtin::StateDelete, b"count").body();
    assert_eq!(agent.call("count", "").body(), "0");
    for builtin in [Builtin::StateGet, Builtin::StateDelete] {
        assert_eq!(agent.builtin(builtin, b"count").failure().kind, FailKind::NotFound);
    }
}

#[test]
fn built_in_functions_refuse_what_makes_no_sense() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    for (builtin, input) in [
        (Builtin::StateList, &b"{"[..]),
        (Builtin::StateList, b"{\"prefix\":\"zz\",\"after\":null,\"limit\":1}"),
        (Builtin::StatePut, b"\x05"),
        (Builtin::StatePut, &[0; 10]),
        (Builtin::StateImport, b"no archive at all"),
        (Builtin::StateImport, b""),
        (Builtin::StateImport, b"DZSTATE1"),
    ] {
        let failure = agent.builtin(builtin, input).failure();
        assert_eq!(failure.kind, FailKind::BadInput, "{builtin:?}: {}", failure.message);
    }
    let failure = agent.builtin(Builtin::StateDelete, &[b'k'; 1025]).failure();
    assert_eq!(failure.kind, FailKind::BadInput, "{}", failure.message);
    let mut put = Vec::new();
    encode_put(&mut put, b"too large", 0).unwrap();
    put.resize(2 << 20, 0);
    let failure = agent.builtin(Builtin::StatePut, &put).failure();
    assert!(matches!(failure.kind, FailKind::Quota | FailKind::TooLarge), "{failure:?}");
    let unknown = agent.begin_index(u32::MAX, 0, 0, b"", true);
    assert_eq!(agent.finish(unknown).failure().kind, FailKind::UnknownFunction);
    assert_eq!(agent.call("add", "").body(), "1");
}

type Objects = Vec<(Vec<u8>, RecordHead, Vec<u8>)>;

fn decode(archive: &[u8]) -> Objects {
    let mut decoder = Decoder::new(u64::MAX);
    let mut objects = Objects::new();
    let mut rest = archive;
    while let Some(event) = decoder.next(&mut rest).unwrap() {
        match event {
            Event::Record { key, head } => objects.push((key.to_vec(), head, Vec::new())),
            Event::Value(bytes) => objects.last_mut().unwrap().2.extend_from_slice(bytes),
            Event::End { .. } => {}
        }
    }
    decoder.finish().unwrap();
    objects
}

#[test]
fn an_export_can_be_imported_elsewhere() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    agent.call("add", "");
    for number in 0..300 {
        agent.call("put", &format!("k{number:03}=value {number}"));
    }
    agent.call("put", "large*400000");
    agent.call("put", "none=");
    let Ended::Reply { body: archive, .. } = agent.builtin(Builtin::StateExport, b"") else { panic!() };
    let objects = decode(&archive);
    assert_eq!(objects.len(), 303);
    let count = objects.iter().find(|(key, ..)| key == b"count").unwrap();
    assert_eq!((count.1.fingerprint, count.1.version), (7, 1));
    let other = State::new();
    let mut agent = Agent::serving(&other);
    agent.call("put", "mine=stays");
    agent.call("put", "k007=goes");
    let imported: Imported =
        serde_json::from_str(&agent.builtin(Builtin::StateImport, &archive).body()).unwrap();
    assert_eq!(imported.keys, 303);
    assert_eq!(agent.call("get", "k007").body(), "value 7");
    assert_eq!(agent.call("get", "mine").body(), "stays");
    assert_eq!(agent.call("count", "").body(), "1");
    assert_eq!(agent.call("get", "large").body().len(), 400_000);
    agent.call("drop", "mine");
    let Ended::Reply { body: back, .. } = agent.builtin(Builtin::StateExport, b"") else { panic!() };
    let plain = |objects: Objects| -> Vec<_> {
        objects.into_iter().map(|(key, head, value)| (key, head.fingerprint, value)).collect()
    };
    assert!(plain(decode(&back)) == plain(objects), "the copy differs");
}

/// An import commits as it goes: it takes no more memory than a batch, and no record larger than that.
#[test]
fn an_import_that_breaks_off_says_what_it_has_done() {
    let state = State::new();
    let mut agent = Agent::spawn();
    let mut told = assignment(&plugin());
    told.limits.state_bytes = 8 << 20;
    agent.assign(&told, Some(&state));
    agent.ready();
    let mut archive = Vec::new();
    let mut encoder = Encoder::begin(&mut archive);
    let value = pattern(200_000);
    let mut add = |archive: &mut Vec<u8>, keys: std::ops::Range<u8>| {
        for key in keys {
            let head = RecordHead { value_len: 200_000, fingerprint: 0, version: 1, time_ms: 1 };
            encoder.record(archive, &[key], head);
            encoder.value(&value);
            archive.extend_from_slice(&value);
        }
    };
    add(&mut archive, b'a'..b'e');
    let failure = agent.builtin(Builtin::StateImport, &archive).failure();
    assert_eq!((failure.kind, failure.committed), (FailKind::BadInput, false), "{}", failure.message);
    assert_eq!(agent.call("has", "a").body(), "no");
    add(&mut archive, b'e'..b'l');
    let failure = agent.builtin(Builtin::StateImport, &archive).failure();
    assert_eq!((failure.kind, failure.committed), (FailKind::BadInput, true), "{}", failure.message);
    assert_eq!(agent.call("has", "a").body(), "yes");
    assert_eq!(agent.call("has", "k").body(), "no");
    add(&mut archive, b'l'..b'z');
    add(&mut archive, b'A'..b'Y');
    encoder.end(&mut archive);
    let failure = agent.builtin(Builtin::StateImport, &archive).failure();
    assert_eq!(failure.kind, FailKind::Quota, "{}", failure.message);
}

#[test]
fn a_write_that_fails_ends_the_process_after_it_was_said() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    assert_eq!(agent.call("add", "").body(), "1");
    agent.giving = Giving::Nothing;
    let waiting = agent.start("put", &format!("large*{}", 2 * SEGMENT_BYTES));
    agent.wait_until_wanted(1);
    agent.give_unwritable();
    let failure = agent.finish(waiting).failure();
    assert_eq!((failure.kind, failure.committed), (FailKind::StoreBroken, true), "{}", failure.message);
    assert_eq!(agent.exit().code(), Some(70));
    let mut again = Agent::serving(&state);
    assert_eq!(again.call("count", "").body(), "1");
}

#[test]
fn a_spare_without_descriptors_is_the_agents_fault_and_said() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    agent.send(Header { a: 1, c: 77, ..Header::new(Kind::Segment, 0) }, &[]);
    let said = agent.next_of(|said| said.header.kind == Kind::LogLine);
    assert!(String::from_utf8(said.payload).unwrap().contains("segment 77"));
    assert_eq!(agent.exit().code(), Some(70));
}
