//! A runner without a sandbox, a plugin in C, and the agent's end of the socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::time::{Duration, Instant};

use denizen_wire::{
    Concurrency, FailKind, Header, Kind, LENGTH_UNKNOWN, LoadFailureKind, MAX_FRAME_PAYLOAD, PayloadKind,
    WINDOW,
};
use harness::{Agent, BODY_LIMIT, Ended, REPLY_LIMIT, State, assignment, build_plugin, pattern, plugin};

#[test]
fn declarations_say_what_the_plugin_declared() {
    let state = State::new();
    let agent = Agent::serving(&state);
    let declarations = agent.declarations.as_ref().unwrap();
    assert_eq!(declarations.abi_version, 1);
    assert_eq!(declarations.functions[0].name, "echo");
    assert_eq!(declarations.functions[0].doc, "for a test");
    assert_eq!(declarations.functions[2].concurrency, Concurrency::ReadOnly);
    assert!(declarations.functions.iter().any(|decl| decl.input == PayloadKind::Stream));
    assert_eq!(declarations.types[0].fingerprint, 7);
    assert_eq!(declarations.types[0].migrates_from, [5, 6]);
    assert_eq!(declarations.types[1].migrates_from, [0_u64; 0], "it is of a header without them");
    assert_eq!(declarations.state.commit, 0);
}

#[test]
fn a_call_answers_commits_and_outlives_a_kill() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    for number in 1..=20_u64 {
        let ended = agent.call("add", "");
        let Ended::Reply { content_type, body, commit, .. } = ended else { panic!("{ended:?}") };
        assert_eq!((content_type.as_str(), commit), ("text/plain", number));
        assert_eq!(body, number.to_string().as_bytes());
    }
    agent.kill();
    let mut again = Agent::serving(&state);
    assert_eq!(again.declarations.as_ref().unwrap().state.commit, 20);
    let ended = again.call("count", "");
    assert_eq!(ended.commit(), 20);
    assert_eq!(ended.body(), "20");
}

#[test]
fn inputs_of_every_size_arrive_whole_and_aligned() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    for len in [0, 1, 15, 16, 4000, 16_000, 16_384, 60_000, MAX_FRAME_PAYLOAD - 40] {
        let body = pattern(len);
        let id = agent.begin("echo", len as u64, 0, &body, true);
        let Ended::Reply { body: back, .. } = agent.finish(id) else { panic!("{len}") };
        assert!(back == body, "{len} bytes in one frame");
    }
    for len in [1, 70_000, WINDOW, WINDOW + 1, 3 << 20] {
        let body = pattern(len);
        for declared in [len as u64, LENGTH_UNKNOWN] {
            let id = agent.begin("echo", declared, 0, &body[..len.min(100)], false);
            let ended = if len > 100 {
                agent.feed(id, &body[100..])
            } else {
                agent.send(Header::new(Kind::Data, id).with_end(true), &[]);
                agent.finish(id)
            };
            let Ended::Reply { body: back, .. } = ended else { panic!("{len}: {ended:?}") };
            assert!(back == body, "{len} bytes, declared {declared}");
        }
    }
}

#[test]
fn a_body_over_the_limit_is_refused_declared_or_not() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let declared = agent.begin("echo", BODY_LIMIT + 1, 0, b"x", false);
    let failure = agent.finish(declared).failure();
    assert_eq!((failure.kind, failure.started), (FailKind::TooLarge, false));
    let body = pattern(usize::try_from(BODY_LIMIT).unwrap() + 1);
    let undeclared = agent.begin("echo", LENGTH_UNKNOWN, 0, b"", false);
    assert_eq!(agent.feed(undeclared, &body).failure().kind, FailKind::TooLarge);
    let streamed = agent.begin("stream_whole", LENGTH_UNKNOWN, 0, b"", false);
    assert_eq!(agent.feed(streamed, &body).failure().message, "function returned -5");
    assert_eq!(agent.call("echo", "still here").body(), "still here");
}

#[test]
fn exclusive_calls_run_one_at_a_time_in_their_order() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let ids: Vec<u64> =
        ["sleep", "b", "c", "sleep", "e"].iter().map(|input| agent.start("append", input)).collect();
    let ends: Vec<String> = ids.iter().map(|id| agent.finish(*id).body()).collect();
    assert_eq!(ends, ["sleep", "sleepb", "sleepbc", "sleepbcsleep", "sleepbcsleepe"]);
}

#[test]
fn read_only_calls_run_in_parallel() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let ids: Vec<u64> = (0..4).map(|_| agent.start("meet", "4")).collect();
    for id in ids {
        assert_eq!(agent.finish(id).body(), "met");
    }
}

#[test]
fn another_thread_reads_on_while_a_function_burns() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    for round in 0..3 {
        let burning = agent.start("burn", "400");
        let begun = Instant::now();
        let unknown = agent.begin_index(9999, 0, 0, b"", true);
        assert_eq!(agent.finish(unknown).failure().kind, FailKind::UnknownFunction);
        let waited = begun.elapsed();
        assert!(waited < Duration::from_millis(200), "round {round}: nobody read for {waited:?}");
        assert_eq!(agent.finish(burning).body(), "burnt");
    }
}

#[test]
fn a_running_call_that_asks_is_told_that_it_was_cancelled() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    for (code, kind) in [(0, FailKind::Deadline), (1, FailKind::Cancelled)] {
        let id = agent.start("until_cancelled", "");
        std::thread::sleep(Duration::from_millis(20));
        agent.cancel(id, code);
        let failure = agent.finish(id).failure();
        assert_eq!((failure.kind, failure.started, failure.committed), (kind, true, false));
    }
    assert_eq!(agent.call("has", "mark").body(), "no", "an aborted call has written");
    let deadline = agent.begin("until_cancelled", 0, 50, b"", true);
    assert_eq!(agent.finish(deadline).failure().kind, FailKind::Deadline);
}

#[test]
fn a_call_that_is_cancelled_while_it_waits_never_starts() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let first = agent.start("append", "sleep");
    let second = agent.start("append", "never");
    let assembling = agent.begin("append", 5, 0, b"ne", false);
    agent.cancel(second, 1);
    agent.cancel(assembling, 0);
    let failure = agent.finish(second).failure();
    assert_eq!((failure.kind, failure.started), (FailKind::Cancelled, false));
    assert_eq!(agent.finish(assembling).failure().kind, FailKind::Deadline);
    assert_eq!(agent.finish(first).body(), "sleep");
    assert_eq!(agent.call("append", "!").body(), "sleep!");
}

#[test]
fn an_input_that_breaks_off_ends_the_call() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let whole = agent.begin("echo", 10, 0, b"half", false);
    agent.send(Header::new(Kind::AbortInput, whole), &[]);
    let failure = agent.finish(whole).failure();
    assert_eq!((failure.kind, failure.started), (FailKind::InputBroken, false));
    let streamed = agent.begin("stream_echo", LENGTH_UNKNOWN, 0, b"half", false);
    agent.send(Header::new(Kind::AbortInput, streamed), &[]);
    let Ended::Failed { part, .. } = agent.finish(streamed) else { panic!() };
    assert_eq!(part, b"half");
}

#[test]
fn streams_go_both_ways_beyond_the_window() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let body = pattern(3 << 20);
    for _ in 0..2 {
        let id = agent.begin("stream_echo", LENGTH_UNKNOWN, 0, &body[..1000], false);
        let ended = agent.feed(id, &body[1000..]);
        let Ended::Reply { content_type, body: back, .. } = ended else { panic!("{ended:?}") };
        assert_eq!(content_type, "application/x-echo");
        assert!(back == body);
    }
    let id = agent.begin("stream_whole", LENGTH_UNKNOWN, 0, b"", false);
    assert_eq!(agent.feed(id, &body).body(), body.len().to_string());
}

/// A function that waits for its input lets its own thread read on at once, not after the millisecond that a busy one is given.
#[test]
fn waiting_for_input_does_not_wait_for_another_thread() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let mut batch = || {
        let begun = Instant::now();
        for _ in 0..100 {
            let id = agent.begin("stream_whole", LENGTH_UNKNOWN, 0, b"", false);
            agent.send(Header::new(Kind::Data, id).with_end(true), b"four");
            assert_eq!(agent.finish(id).body(), "4");
        }
        begun.elapsed()
    };
    // The best of several: other programs may be slow, this one may not.
    let best = (0..8).map(|_| batch()).min().unwrap();
    assert!(best < Duration::from_millis(80), "100 calls took {best:?}");
}

#[test]
fn other_calls_are_served_while_a_stream_waits() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    // `pour` waits for credit inside its exclusive turn.
    let pouring = agent.start("pour", &(WINDOW + 1).to_string());
    let unknown = agent.begin_index(9999, 0, 0, b"", true);
    assert_eq!(agent.finish(unknown).failure().kind, FailKind::UnknownFunction);
    let counting = agent.start("count", "");
    let Ended::Reply { body, .. } = agent.finish(pouring) else { panic!() };
    assert_eq!(body.len(), WINDOW + 1);
    assert_eq!(agent.finish(counting).body(), "0");
}

#[test]
fn a_large_reply_that_nobody_takes_holds_nobody_up() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let large = agent.start("large", &(3 * WINDOW).to_string());
    assert_eq!(agent.call("add", "").body(), "1");
    assert_eq!(agent.call("add", "").body(), "2");
    let Ended::Reply { body, .. } = agent.finish(large) else { panic!() };
    assert!(body == pattern(3 * WINDOW));
    let abandoned = agent.start("large", &(3 * WINDOW).to_string());
    agent.cancel(abandoned, 1);
    assert_eq!(agent.finish(abandoned).failure().kind, FailKind::Cancelled);
    let over = agent.start("large", &(REPLY_LIMIT + 1).to_string());
    assert_eq!(agent.finish(over).failure().message, "function returned -5");
}

#[test]
fn a_stream_whose_caller_left_is_closed_for_the_function() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let id = agent.start("pour", &(10 * WINDOW).to_string());
    agent.next_of(|said| said.header.id == id && said.header.kind == Kind::Reply);
    agent.cancel(id, 1);
    let end = agent.next_of(|said| said.header.id == id && said.header.kind == Kind::Fail);
    let failure: denizen_wire::Failure = serde_json::from_slice(&end.payload).unwrap();
    assert_eq!(failure.kind, FailKind::Cancelled);
}

#[test]
fn a_failed_call_leaves_nothing_and_says_why() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let failure = agent.call("refuse", "").failure();
    assert_eq!((failure.kind, failure.message.as_str()), (FailKind::BadInput, "not like this"));
    assert!(failure.started && !failure.committed);
    let failure = agent.call("seven", "").failure();
    assert_eq!((failure.kind, failure.message.as_str()), (FailKind::Failed, "function returned 7"));
    assert_eq!(agent.call("has", "lost").body(), "no");
    let ended = agent.call("half", "");
    assert_eq!(ended.commit(), 1);
    assert!(ended.failure().committed, "it committed half way");
    assert_eq!(agent.call("has", "kept").body(), "yes");
    assert_eq!(agent.call("has", "lost").body(), "no");
    let ended = agent.call("pour_and_fail", "");
    let Ended::Failed { failure, part, .. } = ended else { panic!("{ended:?}") };
    assert_eq!((failure.kind, part.as_slice()), (FailKind::Panicked, &b"part"[..]));
    assert_eq!(agent.call("write_read_only", "").body(), "refused");
}

#[test]
fn a_full_quota_is_named_and_nothing_of_the_call_is_kept() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let failure = agent.call("fill", "").failure();
    assert_eq!(failure.kind, FailKind::Quota);
    assert_eq!(agent.call("has", "fill 0").body(), "no");
    assert_eq!(agent.call("add", "").body(), "1");
}

#[test]
fn misuse_is_refused_and_harms_nobody() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    assert_eq!(agent.call("remember", "").body(), "remembered");
    let id = agent.start("misuse", "");
    assert_eq!(agent.finish(id).body(), "fine");
    assert!(agent.log.contains(&(id, "from another thread".into())), "{:?}", agent.log);
    assert!(agent.log.contains(&(0, "from nowhere".into())), "{:?}", agent.log);
    assert_eq!(agent.call("scan", "").body(), "scanned");
}

#[test]
fn a_call_knows_its_facts() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let id = agent.begin("info", 0, 5000, b"", true);
    assert_eq!(agent.finish(id).body(), format!("app/process info call-{id} text/x-test 42 1"));
    assert_eq!(agent.log, [(id, "asked for its facts".to_owned())]);
}

#[test]
fn a_drained_process_finishes_what_runs_and_starts_nothing() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let running = agent.start("append", "sleep");
    let waiting = agent.start("append", "later");
    let assembling = agent.begin("append", 5, 0, b"ne", false);
    std::thread::sleep(Duration::from_millis(20));
    agent.send(Header::new(Kind::Drain, 0), &[]);
    let late = agent.start("append", "late");
    for id in [waiting, assembling, late] {
        let failure = agent.finish(id).failure();
        assert_eq!((failure.kind, failure.started), (FailKind::Draining, false));
    }
    assert_eq!(agent.finish(running).body(), "sleep");
    let drained = agent.next_of(|said| said.header.kind == Kind::Drained);
    // One commit of the function, and one that says that everything is durable.
    assert_eq!((drained.header.c, drained.header.b), (2, 1));
    assert!(agent.live.is_some_and(|live| live > 0));
    assert_eq!(agent.exit().code(), Some(0));
    let mut again = Agent::serving(&state);
    assert_eq!(again.declarations.as_ref().unwrap().recovery, None);
    again.send(Header::new(Kind::Drain, 0), &[]);
    let drained = again.next_of(|said| said.header.kind == Kind::Drained);
    assert_eq!((drained.header.c, drained.header.b), (2, 1));
    assert_eq!(again.exit().code(), Some(0));
}

#[test]
fn a_runner_ends_with_its_agent() {
    let state = State::new();
    let mut waiting = Agent::spawn();
    waiting.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(waiting.exit().code(), Some(0));
    let mut idle = Agent::serving(&state);
    idle.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(idle.exit().code(), Some(0));
    let mut busy = Agent::serving(&state);
    busy.start("until_cancelled", "");
    std::thread::sleep(Duration::from_millis(20));
    busy.socket.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(busy.exit().code(), Some(0));
}

#[test]
fn a_function_that_dies_takes_its_process_and_no_commit() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    assert_eq!(agent.call("add", "").body(), "1");
    agent.start("die", "");
    assert!(std::iter::from_fn(|| agent.next_frame()).all(|said| said.header.kind == Kind::LogLine));
    assert!(!agent.exit().success());
    let mut again = Agent::serving(&state);
    assert_eq!(again.call("has", "lost").body(), "no");
    assert_eq!(again.call("add", "").body(), "2");
}

#[test]
fn bytes_that_are_no_frame_end_the_runner_aloud() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    std::io::Write::write_all(&mut agent.socket, &[0xFF; 32]).unwrap();
    let said = agent.next_of(|said| said.header.kind == Kind::LogLine);
    assert!(String::from_utf8(said.payload).unwrap().contains("frame kind 255 does not exist"));
    assert_eq!(agent.exit().code(), Some(70));
}

/// Voluntary switches of all threads, and processor time in ticks.
fn activity(pid: u32) -> (u64, u64) {
    let number_after = |text: &str, name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    let mut switches = 0;
    let mut ticks = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        switches += number_after(&status, "voluntary_ctxt_switches");
        let stat = std::fs::read_to_string(task.join("stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        ticks += fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    }
    (switches, ticks)
}

#[test]
fn an_idle_process_does_nothing_at_all() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    assert_eq!(agent.call("add", "").body(), "1");
    let burning = agent.start("burn", "20");
    assert_eq!(agent.finish(burning).body(), "burnt");
    std::thread::sleep(Duration::from_millis(300));
    let before = activity(agent.pid());
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(activity(agent.pid()), before, "an idle process woke up");
    assert_eq!(agent.call("add", "").body(), "2");
}

#[test]
fn many_calls_at_once_all_come_back() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let mut added = 0;
    for _ in 0..10 {
        let ids: Vec<(u64, bool)> =
            (0..60)
                .map(|at| {
                    if at % 3 == 0 {
                        (agent.start("add", ""), true)
                    } else {
                        (agent.start("count", ""), false)
                    }
                })
                .collect();
        for (id, adds) in ids {
            let number: u64 = agent.finish(id).body().parse().unwrap();
            added += u64::from(adds);
            assert!(number <= 400, "{number}");
            if adds {
                assert_eq!(number, added);
            }
        }
    }
    assert_eq!(added, 200);
}

#[test]
fn a_probe_declares_and_ends() {
    let mut agent = Agent::spawn();
    let mut probe = assignment(&plugin());
    probe.probe = true;
    agent.assign(&probe, None);
    agent.next_of(|said| said.header.kind == Kind::Ready);
    assert_eq!(agent.exit().code(), Some(0));
}

fn refused_with(plugin: &std::path::Path) -> (LoadFailureKind, String) {
    let state = State::new();
    let mut agent = Agent::spawn();
    agent.assign(&assignment(plugin), Some(&state));
    let failure = agent.refused();
    assert!(!failure.remedy.is_empty());
    (failure.kind, failure.message)
}

#[test]
fn a_plugin_that_cannot_be_loaded_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plugin.so");
    assert_eq!(refused_with(&path).0, LoadFailureKind::Unreadable);
    std::fs::write(&path, "no plugin").unwrap();
    assert_eq!(refused_with(&path).0, LoadFailureKind::Unreadable);
    let good = std::fs::read(plugin()).unwrap();
    std::fs::write(&path, &good[..good.len() / 3]).unwrap();
    assert_ne!(refused_with(&path).0, LoadFailureKind::Host);
    let mut other = good.clone();
    // The machine, and then the class, in the ELF header.
    other[18] ^= 0xFF;
    std::fs::write(&path, &other).unwrap();
    assert_eq!(refused_with(&path).0, LoadFailureKind::WrongArchitecture);
    other = good.clone();
    other[4] = 1;
    std::fs::write(&path, &other).unwrap();
    assert_eq!(refused_with(&path).0, LoadFailureKind::WrongArchitecture);
    build_plugin(&path, &["-DTEST_ABI=9"]);
    let (kind, message) = refused_with(&path);
    assert_eq!(kind, LoadFailureKind::AbiVersion);
    assert!(message.contains("ABI 9"), "{message}");
    build_plugin(&path, &["-Ddenizen_plugin_init=other_name"]);
    let (kind, message) = refused_with(&path);
    assert_eq!(kind, LoadFailureKind::MissingSymbol);
    assert!(message.contains("denizen_plugin_init"), "{message}");
    build_plugin(&path, &["-DTEST_INIT_FAILS"]);
    assert_eq!(refused_with(&path), (LoadFailureKind::InitFailed, "no licence found".into()));
}

#[test]
fn a_library_beside_the_plugin_is_found_and_a_missing_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("part.c");
    std::fs::write(&source, "int part(void) { return 1; }").unwrap();
    let library = dir.path().join("libpart.so");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libpart.so"])
        .arg(&source)
        .arg("-o")
        .arg(&library)
        .status()
        .unwrap();
    assert!(built.success());
    let image = dir.path().join("image");
    std::fs::create_dir_all(image.join("lib")).unwrap();
    let plugin = image.join("plugin.so");
    let search = format!("-L{}", dir.path().display());
    build_plugin(&plugin, &[&search, "-Wl,--no-as-needed", "-lpart"]);
    let (kind, message) = refused_with(&plugin);
    assert_eq!(kind, LoadFailureKind::MissingLibrary);
    assert!(message.contains("libpart.so"), "{message}");
    std::fs::copy(&library, image.join("lib/libpart.so")).unwrap();
    let state = State::new();
    let mut agent = Agent::spawn();
    agent.assign(&assignment(&plugin), Some(&state));
    agent.next_of(|said| said.header.kind == Kind::Ready);
}

#[test]
fn state_that_lost_what_was_durable_is_refused_by_name() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    agent.call("add", "");
    agent.kill();
    let mut agent = Agent::spawn();
    let told = denizen_wire::Assignment { durable_at_least: 9, ..assignment(&plugin()) };
    agent.assign(&told, Some(&state));
    let failure = agent.refused();
    assert_eq!(failure.kind, LoadFailureKind::StateCorrupt);
    assert!(failure.message.contains("commit 9 had been durable"), "{}", failure.message);
}
