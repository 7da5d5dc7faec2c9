//! What a runner promises about idempotency keys: one key, one execution, whatever the function is and whenever somebody asks again.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod harness;

use std::time::Duration;

use denizen_wire::{Durability, FailKind, Header, Kind, LENGTH_UNKNOWN, WINDOW};
use harness::{Agent, Ended, State, assignment, pattern, plugin};

/// Bytes of a reply that are remembered at most, as the documents say.
const MAX_REMEMBERED: usize = 1 << 20;
const DEADLINE: u16 = 0;

fn begin(agent: &mut Agent, key: &str, function: &str, input: &str) -> u64 {
    agent.key = Some(key.to_owned());
    let id = agent.start(function, input);
    agent.key = None;
    id
}

fn keyed(agent: &mut Agent, key: &str, function: &str, input: &str) -> Ended {
    let id = begin(agent, key, function, input);
    agent.finish(id)
}

/// A call whose input streams, `end`ing with these bytes or not.
fn streamed(agent: &mut Agent, key: &str, function: &str, input: &[u8]) -> Ended {
    agent.key = Some(key.to_owned());
    let id = agent.begin(function, LENGTH_UNKNOWN, 0, b"", false);
    agent.key = None;
    if input.is_empty() {
        agent.send(Header::new(Kind::Data, id).with_end(true), &[]);
    }
    agent.feed(id, input)
}

/// With room for large replies.
fn roomy(state: &State) -> Agent {
    let mut agent = Agent::spawn();
    let mut told = assignment(&plugin());
    told.limits.state_bytes = 64 << 20;
    agent.assign(&told, Some(state));
    agent.ready();
    agent
}

/// A reply, and whether it was remembered.
fn body(ended: Ended) -> (Vec<u8>, bool) {
    match ended {
        Ended::Reply { body, replayed, .. } => (body, replayed),
        Ended::Failed { failure, .. } => panic!("{failure:?}"),
    }
}

/// What `pour` makes.
fn poured(len: usize) -> Vec<u8> {
    let piece = pattern(100_000);
    piece.iter().copied().cycle().take(len).collect()
}

fn count(agent: &mut Agent) -> String {
    agent.call("count", "").body()
}

fn pause() {
    std::thread::sleep(Duration::from_millis(50));
}

#[test]
fn the_same_key_runs_once_and_the_reply_comes_back() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let first = keyed(&mut agent, "order 7", "add", "one");
    assert!(!first.is_replayed());
    let commit = first.commit();
    assert_eq!(commit, 1, "the reply has a commit of its own");
    assert_eq!(first.body(), "1");
    assert_eq!(agent.call("add", "").body(), "2");
    let Ended::Reply { content_type, body, commit: again, replayed, .. } =
        keyed(&mut agent, "order 7", "add", "one")
    else {
        panic!("it failed")
    };
    assert_eq!(
        (again, replayed, body.as_slice(), content_type.as_str()),
        (commit, true, &b"1"[..], "text/plain")
    );
    assert_eq!(keyed(&mut agent, "order 8", "add", "one").body(), "3", "another key");
    // Beside a call that holds up all others of its kind.
    let long = agent.start("add_later", "");
    assert_eq!(keyed(&mut agent, "order 7", "add", "one").body(), "1", "it waited for its turn");
    agent.call("open_door", "");
    agent.finish(long);
    assert_eq!(count(&mut agent), "4");
    // And in the lives after this one, one of which ends badly.
    for _ in 0..2 {
        agent.kill();
        agent = Agent::serving(&state);
        let again = keyed(&mut agent, "order 7", "add", "one");
        assert_eq!((again.commit(), again.is_replayed()), (commit, true));
        assert_eq!(again.body(), "1");
    }
    assert_eq!(count(&mut agent), "4");
}

#[test]
fn a_key_stands_for_one_function_and_one_input() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    assert_eq!(keyed(&mut agent, "k", "append", "abc").body(), "abc");
    let refused = |ended: Ended| {
        let failure = ended.failure();
        assert_eq!((failure.kind, failure.started), (FailKind::KeyReused, false), "{}", failure.message);
        assert!(failure.message.contains("\"k\""), "{}", failure.message);
    };
    refused(keyed(&mut agent, "k", "append", "abd"));
    refused(keyed(&mut agent, "k", "append", ""));
    refused(keyed(&mut agent, "k", "append", "abcd"));
    refused(keyed(&mut agent, "k", "echo", "abc"));
    agent.content_type = "text/other".to_owned();
    refused(keyed(&mut agent, "k", "append", "abc"));
    agent.content_type = "text/x-test".to_owned();
    assert_eq!(keyed(&mut agent, "k", "append", "abc").body(), "abc");
    assert_eq!(agent.call("has", "all").body(), "yes");
    assert_eq!(agent.call("append", "").body(), "abc", "something was appended twice");
}

#[test]
fn every_kind_of_function_is_run_once() {
    let state = State::new();
    let mut agent = roomy(&state);
    // One that writes nothing, and one that cannot: both are remembered by a commit that holds nothing else.
    let echo = keyed(&mut agent, "echo", "echo", "x");
    assert_eq!(echo.commit(), 1);
    let read = keyed(&mut agent, "read", "count", "");
    assert_eq!((read.commit(), read.body()), (2, "0".to_owned()));
    assert_eq!(keyed(&mut agent, "beside", "add_beside", "").body(), "1");
    assert_eq!(keyed(&mut agent, "large", "large", &WINDOW.to_string()).commit(), 4);
    assert_eq!(agent.call("add", "").body(), "2");
    let read = keyed(&mut agent, "read", "count", "");
    assert_eq!((read.commit(), read.is_replayed(), read.body()), (2, true, "0".to_owned()));
    assert_eq!(keyed(&mut agent, "beside", "add_beside", "").body(), "1");
    assert!(keyed(&mut agent, "echo", "echo", "x").is_replayed());
    let Ended::Reply { body, replayed, .. } = keyed(&mut agent, "large", "large", &WINDOW.to_string()) else {
        panic!("it failed")
    };
    assert!(replayed && body == pattern(WINDOW), "{} bytes", body.len());
    assert_eq!(count(&mut agent), "2");
}

#[test]
fn a_repeat_waits_for_the_call_that_runs() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    for (function, key) in [("add_later", "alone"), ("add_later_beside", "beside")] {
        agent.call("close_door", "");
        let runs = count(&mut agent);
        let first = begin(&mut agent, key, function, "");
        let repeats: Vec<u64> = (0..3).map(|_| begin(&mut agent, key, function, "")).collect();
        let late = begin(&mut agent, key, function, "");
        let gone = begin(&mut agent, key, function, "");
        let other = begin(&mut agent, key, function, "another input");
        pause();
        agent.cancel(late, DEADLINE);
        agent.cancel(gone, 1);
        let failure = agent.finish(late).failure();
        assert_eq!((failure.kind, failure.started), (FailKind::InProgress, false), "{}", failure.message);
        assert_eq!(agent.finish(gone).failure().kind, FailKind::Cancelled);
        agent.call("open_door", "");
        let first = agent.finish(first);
        assert!(!first.is_replayed());
        let (commit, body) = (first.commit(), first.body());
        for repeat in repeats {
            let again = agent.finish(repeat);
            assert_eq!((again.commit(), again.is_replayed()), (commit, true));
            assert_eq!(again.body(), body);
        }
        assert_eq!(agent.finish(other).failure().kind, FailKind::KeyReused);
        assert_ne!(count(&mut agent), runs);
    }
    assert_eq!(count(&mut agent), "2");
}

#[test]
fn a_repeat_runs_where_the_call_before_it_failed_or_never_began() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    // The first one holds the key and is ended at its deadline; the second has waited for it.
    let first = begin(&mut agent, "k", "until_cancelled", "");
    let second = begin(&mut agent, "k", "until_cancelled", "");
    pause();
    agent.cancel(first, DEADLINE);
    assert_eq!(agent.finish(first).failure().kind, FailKind::Deadline);
    pause();
    agent.cancel(second, DEADLINE);
    let failure = agent.finish(second).failure();
    assert_eq!((failure.kind, failure.started), (FailKind::Deadline, true), "{}", failure.message);
    // It waits for its turn with the key, and gives it up there.
    let long = agent.start("add_later", "");
    let first = begin(&mut agent, "turn", "add", "");
    let second = begin(&mut agent, "turn", "add", "");
    pause();
    agent.cancel(first, 1);
    assert!(!agent.finish(first).failure().started);
    agent.call("open_door", "");
    assert_eq!(agent.finish(long).body(), "1");
    let second = agent.finish(second);
    assert!(!second.is_replayed());
    assert_eq!(second.body(), "2");
}

#[test]
fn failures_are_remembered_only_where_something_was_committed() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    for _ in 0..2 {
        let failure = keyed(&mut agent, "never", "seven", "").failure();
        assert_eq!((failure.kind, failure.replayed, failure.committed), (FailKind::Failed, false, false));
    }
    let commit = keyed(&mut agent, "half", "half", "");
    assert_eq!(commit.commit(), 2, "its own commit, and what is remembered");
    let first = commit.failure();
    assert!(first.committed && !first.replayed);
    for round in 0..2 {
        let again = keyed(&mut agent, "half", "half", "").failure();
        assert!(again.replayed && again.committed && again.started, "{again:?}");
        assert_eq!((again.kind, again.message), (first.kind, first.message.clone()));
        assert_eq!(keyed(&mut agent, "half", "half", "x").failure().kind, FailKind::KeyReused);
        if round == 0 {
            agent.kill();
            agent = Agent::serving(&state);
        }
    }
    assert_eq!(agent.call("has", "lost").body(), "no");
    // The reply of one that commits in the middle and ends well is a part of its last commit.
    let first = keyed(&mut agent, "middle", "commit_at", "1");
    let (commit, body) = (first.commit(), first.body());
    assert_eq!(
        commit,
        body.parse::<u64>().unwrap() + 1,
        "the reply is not in the commit after that in the middle"
    );
    let again = keyed(&mut agent, "middle", "commit_at", "1");
    assert_eq!((again.commit(), again.is_replayed()), (commit, true));
}

#[test]
fn a_call_that_was_cut_off_after_a_commit_is_not_run_again() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    // What has committed nothing has left nothing.
    for _ in 0..2 {
        begin(&mut agent, "nothing", "half_and_die", "");
        // Had it been refused, it would have been answered.
        assert!(agent.next_frame().is_none());
        agent = Agent::serving(&state);
    }
    begin(&mut agent, "half", "half_and_die", "x");
    assert!(agent.next_frame().is_none());
    for round in 0..2 {
        let mut agent = Agent::serving(&state);
        let failure = keyed(&mut agent, "half", "half_and_die", "x").failure();
        assert_eq!(failure.kind, FailKind::Interrupted, "{}", failure.message);
        assert!(failure.replayed && failure.committed, "round {round}: {failure:?}");
        let other = keyed(&mut agent, "half", "half_and_die", "another input").failure();
        assert_eq!(other.kind, FailKind::KeyReused);
        assert_eq!(agent.call("has", "kept").body(), "yes");
        assert_eq!(agent.call("has", "lost").body(), "no");
        agent.kill();
    }
}

#[test]
fn what_has_expired_goes_when_the_process_does() {
    let state = State::new();
    let mut agent = Agent::spawn();
    let mut told = assignment(&plugin());
    told.remember_ms = 1000;
    agent.assign(&told, Some(&state));
    agent.ready();
    for number in 0..600 {
        keyed(&mut agent, &format!("key {number}"), "count", "");
    }
    std::thread::sleep(Duration::from_millis(1100));
    agent.call("add", "");
    agent.send(Header::new(Kind::Drain, 0), &[]);
    agent.next_of(|said| said.header.kind == Kind::Drained);
    let live = agent.live.unwrap();
    assert!(live < 4096, "{live} bytes are live: what expired is still there");
}

#[test]
fn a_conflict_runs_again_under_the_same_key() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let long = begin(&mut agent, "k", "add_later", "");
    pause();
    assert_eq!(agent.call("add_beside", "").body(), "1");
    agent.call("open_door", "");
    assert_eq!(agent.finish(long).body(), "2", "the second run of it");
    let again = keyed(&mut agent, "k", "add_later", "");
    assert!(again.is_replayed());
    assert_eq!(again.body(), "2");
    // A concurrent one is told, and nothing is remembered.
    agent.call("close_door", "");
    let slow = begin(&mut agent, "slow", "add_later_beside", "");
    pause();
    agent.call("add_beside", "");
    agent.call("open_door", "");
    assert_eq!(agent.finish(slow).failure().kind, FailKind::Conflict);
    assert!(!keyed(&mut agent, "slow", "add_later_beside", "").is_replayed());
    assert_eq!(count(&mut agent), "4");
}

#[test]
fn what_streams_is_remembered_up_to_a_limit() {
    let state = State::new();
    let mut agent = roomy(&state);
    let length = 300_000;
    let first = keyed(&mut agent, "pour", "pour", &length.to_string());
    let commit = first.commit();
    assert_eq!(body(first), (poured(length), false));
    let again = keyed(&mut agent, "pour", "pour", &length.to_string());
    assert_eq!(again.commit(), commit);
    assert!(body(again) == (poured(length), true));
    let limit = MAX_REMEMBERED.to_string();
    for function in ["pour", "large"] {
        let key = format!("{function} at the limit");
        assert!(matches!(keyed(&mut agent, &key, function, &limit), Ended::Reply { .. }));
        assert_eq!(body(keyed(&mut agent, &key, function, &limit)).0.len(), MAX_REMEMBERED);
    }
    let over = (MAX_REMEMBERED + 1).to_string();
    for function in ["pour", "large"] {
        let Ended::Failed { failure, .. } = keyed(&mut agent, "over", function, &over) else {
            panic!("{function} was remembered in part")
        };
        assert_eq!((failure.kind, failure.committed), (FailKind::TooLarge, false), "{}", failure.message);
        assert!(failure.message.contains(&limit), "{}", failure.message);
    }
    assert_eq!(keyed(&mut agent, "over", "add", "").body(), "1", "a call that failed has taken the key");
}

#[test]
fn an_input_that_streams_is_compared_as_far_as_it_was_read() {
    let state = State::new();
    let mut agent = roomy(&state);
    let input = pattern(3 * WINDOW / 2);
    for function in ["stream_echo", "stream_whole"] {
        let first = streamed(&mut agent, function, function, &input);
        let (first, replayed) = body(first);
        assert!(!replayed);
        let (again, replayed) = body(streamed(&mut agent, function, function, &input));
        assert!(replayed && again == first, "{function}");
        let mut other = input.clone();
        *other.last_mut().unwrap() ^= 1;
        let shorter = &input[..input.len() - 1];
        let longer = [input.as_slice(), b"x"].concat();
        for wrong in [other.as_slice(), shorter, &longer, b""] {
            let failure = streamed(&mut agent, function, function, wrong).failure();
            assert_eq!(failure.kind, FailKind::KeyReused, "{function} {} bytes", wrong.len());
        }
    }
    // Both frames of a short one come with the call.
    let (first, replayed) = body(streamed(&mut agent, "empty", "stream_echo", b""));
    assert!(first.is_empty() && !replayed);
    assert!(body(streamed(&mut agent, "empty", "stream_echo", b"")).1);
}

#[test]
fn a_repeat_is_as_durable_as_it_asks() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let first = keyed(&mut agent, "k", "add", "");
    assert_eq!(first.level(), Durability::Process);
    agent.level = Durability::Node;
    let again = keyed(&mut agent, "k", "add", "");
    assert_eq!(
        (again.level(), again.commit(), again.is_replayed()),
        (Durability::Node, first.commit(), true)
    );
    let reader = keyed(&mut agent, "reader", "count", "");
    assert_eq!((reader.level(), reader.commit()), (Durability::Node, 2));
}

#[test]
fn replies_are_forgotten_when_their_time_is_over_and_not_before() {
    let state = State::new();
    let mut agent = Agent::spawn();
    let mut told = assignment(&plugin());
    told.remember_ms = 1500;
    agent.assign(&told, Some(&state));
    agent.ready();
    let mut kept = 0;
    for number in 0..200 {
        kept = keyed(&mut agent, &format!("key {number}"), "count", "").commit();
    }
    assert!(kept >= 200);
    assert!(keyed(&mut agent, "key 199", "count", "").is_replayed());
    std::thread::sleep(Duration::from_millis(1600));
    let anew = keyed(&mut agent, "key 199", "count", "");
    assert!(!anew.is_replayed(), "it is remembered for longer than was said");
    // Calls with keys clear up, a step every now and then.
    for number in 0..40 {
        keyed(&mut agent, &format!("later {number}"), "add", "");
    }
    assert!(keyed(&mut agent, "later 0", "add", "").is_replayed());
    agent.call("add", "");
    agent.send(Header::new(Kind::Drain, 0), &[]);
    agent.next_of(|said| said.header.kind == Kind::Drained);
    let live = agent.live.unwrap();
    assert!(live < 100 * 200, "{live} bytes are live: what expired is still there");
    let mut agent = Agent::serving(&state);
    assert!(keyed(&mut agent, "later 39", "add", "").is_replayed());
}

#[test]
fn remembered_replies_have_a_share_of_the_state_and_nobody_is_forgotten_for_another() {
    let state = State::new();
    let mut agent = Agent::spawn();
    let mut told = assignment(&plugin());
    told.remember_ms = 3000;
    agent.assign(&told, Some(&state));
    agent.ready();
    // A quarter of 1 MiB.
    let large = (100 << 10).to_string();
    assert!(matches!(keyed(&mut agent, "1", "large", &large), Ended::Reply { .. }));
    assert!(matches!(keyed(&mut agent, "2", "large", &large), Ended::Reply { .. }));
    let full = keyed(&mut agent, "3", "large", &large).failure();
    assert_eq!((full.kind, full.committed), (FailKind::Quota, false), "{}", full.message);
    assert!(full.message.contains("262144"), "{}", full.message);
    assert!(keyed(&mut agent, "1", "large", &large).is_replayed(), "the oldest went before its time");
    assert_eq!(keyed(&mut agent, "small", "add", "").body(), "1", "there is room for a small one");
    assert_eq!(agent.call("put", "key*300000").body(), "put", "the rest of the state is full, too");
    std::thread::sleep(Duration::from_millis(3100));
    assert!(!keyed(&mut agent, "3", "large", &large).is_replayed());
}

#[test]
fn what_waits_for_a_key_is_sent_elsewhere_when_the_process_drains() {
    let state = State::new();
    let mut agent = Agent::serving(&state);
    let first = begin(&mut agent, "k", "add_later", "");
    let second = begin(&mut agent, "k", "add_later", "");
    pause();
    agent.send(Header::new(Kind::Drain, 0), &[]);
    let failure = agent.finish(second).failure();
    assert_eq!((failure.kind, failure.started), (FailKind::Draining, false));
    let open = agent.start("open_door", "");
    assert_eq!(agent.finish(open).failure().kind, FailKind::Draining);
    agent.cancel(first, 1);
    let mut next = Agent::serving(&state);
    // The old one still runs its call, as a sandbox would; here only what it has left counts.
    agent.kill();
    next.call("open_door", "");
    assert!(!keyed(&mut next, "k", "add_later", "").is_replayed());
}
