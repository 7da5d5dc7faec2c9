//! The blocking client against a small node over real sockets: every way in which a call, a stream or a connection can end.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::fake::{Fake, via};
use denizen_framed::{Blame, Connection, Durability, Error, Group, Options, Pool, Request, Retry};

/// Generous: the machine may be busy. Nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

fn options(fake: &Fake, app: &str) -> Options {
    Options::new(fake.address(), app).process("alice").patience(PATIENCE).connect_timeout(PATIENCE)
}

fn connect(fake: &Fake) -> Connection {
    Connection::open(options(fake, "app")).unwrap()
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[test]
fn a_call_and_what_is_said_of_it() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let request = Request::new("echo").content_type("text/plain").durability(Durability::Node);
    let reply = connection.call(request, b"hello").unwrap();
    assert_eq!(reply.body, b"hello");
    assert_eq!((reply.head.epoch, reply.head.commit, reply.head.durability), (7, 42, Durability::Node));
    assert_eq!(reply.head.content_type.as_deref(), Some("text/plain"));
    assert_eq!(reply.head.invocation.as_deref(), Some("inv-1"));
    assert_eq!(connection.call("echo", b"").unwrap().body, b"");
    assert_eq!(connection.epoch("alice"), 7);
}

#[test]
fn calls_are_pipelined_and_end_in_any_order() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    // More than the node allows at once, the slowest first.
    let tickets: Vec<_> = (0..100_u64)
        .map(|n| connection.begin("slow", (if n == 0 { 100 } else { 0 }).to_string()).unwrap())
        .collect();
    let last = connection.begin("echo", b"last").unwrap();
    assert_eq!(connection.wait(last).unwrap().body, b"last");
    for ticket in tickets {
        connection.wait(ticket).unwrap();
    }
    assert_eq!(connection.in_flight(), 0);
    assert_eq!(fake.shared.accepted.load(Ordering::SeqCst), 1);
    let again = connection.begin("echo", b"x").unwrap();
    let (which, reply) = connection.wait_any(None).unwrap();
    assert_eq!((which, reply.unwrap().body), (again, b"x".to_vec()));
    assert!(connection.wait_any(None).is_none());
}

#[test]
fn large_bodies_go_both_ways_at_once_within_the_windows() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let large = bytes(3 << 20);
    let tickets: Vec<_> = (0..3).map(|_| connection.begin("parrot", &large).unwrap()).collect();
    for ticket in tickets {
        assert!(connection.wait(ticket).unwrap().body == large);
    }
    // Replies of calls that nobody waits for yet do not stop the one that is waited for.
    let tickets: Vec<_> = (0..8).map(|_| connection.begin("generate", b"2000000").unwrap()).collect();
    for ticket in tickets.into_iter().rev() {
        assert!(connection.wait(ticket).unwrap().body == bytes(2_000_000));
    }
}

#[test]
fn a_stream_is_written_and_read_in_turns() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let mut stream = connection.stream("parrot", None).unwrap();
    for word in ["one", "two", "three"] {
        stream.write_all(word.as_bytes()).unwrap();
        let mut said = vec![0; word.len()];
        let mut at = 0;
        while at < said.len() {
            at += stream.read_some(&mut said[at..]).unwrap();
        }
        assert_eq!(said, word.as_bytes());
    }
    assert_eq!(stream.head().unwrap().commit, 41, "so far");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    assert_eq!(stream.head().unwrap().commit, 42, "in the end");
    drop(stream);

    let mut stream = connection.stream(Request::new("length"), Some(5 << 20)).unwrap();
    stream.write_all(&bytes(5 << 20)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, (5 << 20).to_string());
    drop(stream);

    // One that is left in the middle is cancelled, and what was on its way is credited: together these are more than a window.
    let mut connection = Connection::open(options(&fake, "app").windows(64 << 10, 64 << 10)).unwrap();
    let soon = Duration::from_secs(20);
    for _ in 0..12 {
        let mut stream = connection.stream(Request::new("generate").deadline(soon), None).unwrap();
        stream.write_all(b"20000000").unwrap();
        stream.finish().unwrap();
        let mut some = [0; 1000];
        stream.read_exact(&mut some).unwrap();
    }
    assert_eq!(connection.call(Request::new("echo").deadline(soon), b"on").unwrap().body, b"on");
    assert_eq!(fake.shared.accepted.load(Ordering::SeqCst), 2);
}

#[test]
fn a_failure_says_whose_it_is_and_what_to_do() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let error = connection.call("fail", b"").unwrap_err();
    assert_eq!(
        (error.kind(), error.blame(), error.retry()),
        ("function-failed", Blame::Function, Retry::Safe)
    );
    assert_eq!((error.cause().as_deref(), error.remedy().as_deref()), (Some("a whim"), Some("ask nicely")));
    assert_eq!(error.to_string(), "function-failed: it does not want to");
    assert_eq!(connection.call("no-such", b"").unwrap_err().retry(), Retry::Never);
    let mut stream = connection.stream("fail", None).unwrap();
    let through_io = stream.read(&mut [0; 1]).unwrap_err();
    let inner = through_io.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    assert_eq!(inner.kind(), "function-failed");
    drop(stream);
    let error = connection.call(Request::new("bad name"), b"").unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    assert!(matches!(connection.call("echo", vec![0; 33 << 20]).unwrap_err(), Error::Refused(_)));
    assert_eq!(connection.call("echo", b"on").unwrap().body, b"on");
}

#[test]
fn a_lost_call_is_made_again_only_with_a_key() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let error = connection.call("cut", b"").unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    assert_eq!((error.retry(), error.blame()), (Retry::Unknown, Blame::Host));
    assert_eq!(fake.shared.count.load(Ordering::SeqCst), 1);

    let reply = connection.call(Request::new("cut").idempotency_key("order-1"), b"").unwrap();
    assert_eq!((reply.body.as_slice(), reply.head.replayed), (&b"2"[..], true));
    assert_eq!(fake.shared.count.load(Ordering::SeqCst), 2, "it was executed once");

    // One that ends its connection takes the others along: those with a key come back, the others are told.
    let keyed = connection.begin(Request::new("slow").idempotency_key("k"), b"50").unwrap();
    let bare = connection.begin("slow", b"10000").unwrap();
    let cut = connection.begin("cut", b"").unwrap();
    assert_eq!(connection.wait(cut).unwrap_err().retry(), Retry::Unknown);
    assert_eq!(connection.wait(bare).unwrap_err().retry(), Retry::Unknown);
    assert_eq!(connection.wait(keyed).unwrap().body, b"");
}

#[test]
fn calls_behind_a_drain_go_to_the_next_connection() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let slow = connection.begin("slow", b"50").unwrap();
    let leave = connection.begin("leave", b"").unwrap();
    let behind: Vec<_> = (0..5).map(|_| connection.begin("count", b"").unwrap()).collect();
    assert_eq!(connection.wait(leave).unwrap().body, b"left");
    connection.wait(slow).unwrap();
    for ticket in behind {
        connection.wait(ticket).unwrap();
    }
    assert_eq!(fake.shared.count.load(Ordering::SeqCst), 5, "each was executed once");
    assert_eq!(fake.shared.accepted.load(Ordering::SeqCst), 2);
}

#[test]
fn a_drained_connection_ends_what_it_runs_beside_the_next_one() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let slow = connection.begin("slow", b"60000").unwrap();
    let mut answered = connection.begin("slow", b"200").unwrap();
    let leave = connection.begin("leave", b"").unwrap();
    assert_eq!(connection.wait(leave).unwrap().body, b"left");
    assert!(!connection.is_connected(), "it takes no more calls");
    // Without a key: each would be reported if it were sent to where nobody takes it.
    for n in 1..=3_u64 {
        let count = Request::new("count").deadline(Duration::from_secs(20));
        assert_eq!(connection.call(count, b"").unwrap().body, n.to_string().as_bytes());
    }
    assert_eq!(fake.shared.accepted.load(Ordering::SeqCst), 2, "a second connection, at once");
    assert!(connection.in_flight() >= 1, "the first runs on");
    answered = match connection.wait_any(None).unwrap() {
        (ticket, Ok(_)) => {
            assert_eq!(ticket, answered);
            slow
        }
        (_, Err(error)) => panic!("the call was cut off: {error}"),
    };
    connection.cancel(answered);
    assert_eq!(connection.call("echo", b"on").unwrap().body, b"on");
}

#[test]
fn a_stream_that_is_cut_off_says_so() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let mut stream = connection.stream("cut", None).unwrap();
    stream.finish().unwrap();
    let error = stream.read_some(&mut [0; 1]).unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("connection-lost", Retry::Unknown));
}

#[test]
fn a_stream_is_written_and_read_at_once() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    // Far more than all windows together: who only wrote would wait for ever.
    let (large, mut at, mut said) = (bytes(20 << 20), 0, Vec::new());
    let mut stream = connection.stream("parrot", None).unwrap();
    let mut buf = vec![0; 64 << 10];
    loop {
        let done = stream.exchange(&large[at..], &mut buf).unwrap();
        said.extend_from_slice(&buf[..done.read]);
        at += done.written;
        if at == large.len() {
            stream.finish().unwrap();
        }
        if done.is_over {
            break;
        }
    }
    assert!(said == large);
    assert_eq!(stream.known_head().unwrap().commit, 42);
}

#[test]
fn a_reset_is_a_lost_connection_like_any_other() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let error = connection.call("reset", b"").unwrap_err();
    assert_eq!(
        (error.kind(), error.retry(), error.blame()),
        ("connection-lost", Retry::Unknown, Blame::Host)
    );
    let reply = connection.call(Request::new("reset").idempotency_key("order-2"), b"").unwrap();
    assert_eq!((reply.body.as_slice(), reply.head.replayed), (&b"2"[..], true));
}

#[test]
fn a_call_that_may_be_repeated_is_and_not_for_ever() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let other = connection.begin(Request::new("slow").repeatable(), b"50").unwrap();
    let cut = connection.begin(Request::new("cut").repeatable(), b"").unwrap();
    let error = connection.wait(cut).unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("connection-lost", Retry::Unknown));
    assert_eq!(fake.shared.count.load(Ordering::SeqCst), 8, "as often as a call is sent at most");
    // It was on each of them, and is an innocent.
    assert!(matches!(connection.wait(other), Ok(_) | Err(Error::Lost { retry: Retry::Unknown, .. })));
}

#[test]
fn what_a_parting_process_did_not_look_at_is_made_again() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    fake.shared.parting.store(3, Ordering::SeqCst);
    assert_eq!(connection.call("parting", b"").unwrap().body, b"stayed");
    fake.shared.parting.store(usize::MAX, Ordering::SeqCst);
    let error = connection.call("parting", b"").unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("draining", Retry::Safe));
    assert_eq!(usize::MAX - fake.shared.parting.load(Ordering::SeqCst), 8);
}

#[test]
fn connections_of_one_client_believe_no_owner_that_another_has_outlived() {
    let fake = Fake::start();
    let pool = Pool::new(options(&fake, "app"), 2);
    let (mut one, mut other) = (pool.get().unwrap(), pool.get().unwrap());
    one.call("echo", b"").unwrap();
    other.call("echo", b"").unwrap();
    fake.set_epoch(9);
    one.call("echo", b"").unwrap();
    assert_eq!(other.epoch("alice"), 9);
    fake.set_epoch(8);
    let error = other.call("echo", b"").unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("stale-epoch", Retry::Unknown));
    // A client of its own has heard of nothing.
    assert_eq!(connect(&fake).call("echo", b"x").unwrap().head.epoch, 8);
}

#[test]
fn moves_are_followed_and_not_for_ever() {
    let (here, there) = (Fake::start(), Fake::start());
    there.set_epoch(9);
    let app = format!("moved-to-port-{}", there.shared.address.port());
    // The other answers the same for this name, unless it is asked for another one.
    let error = Connection::open(options(&here, &app)).unwrap_err();
    assert_eq!(error.kind(), "moved");
    assert_eq!(there.shared.greeted.load(Ordering::SeqCst), 5, "as many as are followed");
    let error = Connection::open(options(&here, "loop")).unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("moved", Retry::Safe));
}

#[test]
fn calls_that_were_moved_are_made_where_their_process_is() {
    let fakes: Vec<Fake> = (0..7).map(|_| Fake::start()).collect();
    let [a, b, c, ..] = &fakes[..] else { unreachable!() };
    let unbound = Options::new(a.address(), "app").patience(PATIENCE);
    let mut connection = Connection::open(unbound).unwrap();
    let at = |fakes: &[&Fake]| Request::new("count").process(&via(fakes));
    // One hop, two, none; beside one another.
    let tickets: Vec<_> = [&[a, b][..], &[a, b, c], &[a], &[a, b]]
        .iter()
        .map(|fakes| connection.begin(at(fakes), b"").unwrap())
        .collect();
    for ticket in tickets {
        connection.wait(ticket).unwrap();
    }
    let counts = [a, b, c].map(|fake| fake.shared.count.load(Ordering::SeqCst));
    assert_eq!(counts, [1, 2, 1], "each is executed once, and where it belongs");
    assert_eq!(b.shared.accepted.load(Ordering::SeqCst), 1, "its connection is kept");
    // In a circle, and to too many; the connection goes on.
    let circle = connection.call(Request::new("count").process(&via(&[a, b, a])), b"").unwrap_err();
    assert_eq!((circle.kind(), circle.retry()), ("moved", Retry::Safe));
    assert!(circle.to_string().contains("circle"), "{circle}");
    let all: Vec<&Fake> = fakes.iter().collect();
    assert!(connection.call(at(&all[..6]), b"").is_ok());
    let far = connection.call(at(&all), b"").unwrap_err();
    assert_eq!((far.kind(), far.retry()), ("moved", Retry::Safe));
    assert!(far.to_string().contains("in a row"), "{far}");
    assert_eq!(fakes[6].shared.count.load(Ordering::SeqCst), 0);
    // Its time is that of the whole call, and one that nobody waits for any more is given up there.
    let slow = |time| Request::new("slow").process(&via(&[a, b])).deadline(time);
    let late = connection.call(slow(Duration::from_millis(50)), b"60000").unwrap_err();
    assert_eq!(late.kind(), "deadline-exceeded");
    let given_up = connection.begin(slow(PATIENCE), b"60000").unwrap();
    connection.cancel(given_up);
    assert!(connection.call(at(&[a, b]), b"").is_ok());
    assert_eq!(connection.in_flight(), 0);
}

#[test]
fn a_call_that_was_moved_to_nobody_says_so() {
    let here = Fake::start();
    let unbound = Options::new(here.address(), "app").patience(Duration::from_millis(100));
    let mut connection = Connection::open(unbound).unwrap();
    let nowhere = format!("via-{}-1", here.shared.address.port());
    let error = connection.call(Request::new("count").process(&nowhere), b"").unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("unreachable", Retry::Safe));
    assert!(connection.call("count", b"").is_ok());
}

#[test]
fn an_owner_of_the_past_is_not_believed() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    connection.call("echo", b"").unwrap();
    let error = connection.call("old", b"").unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("stale-epoch", Retry::Unknown));
    assert_eq!(connection.call("echo", b"on").unwrap().body, b"on");
    // Nor when it greets: the connection is not used, and the client tries until its patience is over.
    fake.set_epoch(6);
    let mut impatient = connection;
    let cut = impatient.begin("cut", b"").unwrap();
    impatient.wait(cut).unwrap_err();
    let error = impatient.call(Request::new("echo").deadline(Duration::from_millis(300)), b"").unwrap_err();
    assert!(matches!(error, Error::Deadline { .. } | Error::Broken { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Safe, "the call was never sent to it");
    fake.set_epoch(8);
    assert_eq!(impatient.call("echo", b"on").unwrap().body, b"on");
    assert_eq!(impatient.epoch("alice"), 8);
}

#[test]
fn functions_are_called_by_name_again_when_the_image_has_changed() {
    let fake = Fake::start();
    for app in ["app", "nameless"] {
        let mut connection = Connection::open(options(&fake, app)).unwrap();
        for _ in 0..3 {
            assert_eq!(connection.call("echo", b"x").unwrap().body, b"x");
            fake.change_functions();
        }
    }
}

#[test]
fn deadlines_hold_at_both_ends() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let request = || Request::new("slow").deadline(Duration::from_millis(30));
    let error = connection.call(request(), b"60000").unwrap_err();
    assert_eq!((error.kind(), error.blame()), ("deadline-exceeded", Blame::Function));
    // A node that says nothing at all.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let mut connection = Connection::new(Options::new(address, "app").process("p")).unwrap();
    let error = connection.call(request(), b"").unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert_eq!(error.kind(), "deadline-exceeded");
}

#[test]
fn a_refusal_is_told_and_a_busy_node_is_tried_again() {
    let fake = Fake::start();
    let error = Connection::open(options(&fake, "guarded")).unwrap_err();
    assert_eq!(
        (error.kind(), error.retry(), error.cause().as_deref()),
        ("bad-token", Retry::Never, Some("token-missing"))
    );
    let error = Connection::open(options(&fake, "app").token("not a token")).unwrap_err();
    assert!(matches!(error, Error::Token(_)), "{error:?}");
    let error = Connection::open(options(&fake, "busy").patience(Duration::from_millis(200))).unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("overloaded", Retry::Safe));
    assert!(fake.shared.greeted.load(Ordering::SeqCst) > 2, "it was tried more than once");
}

#[test]
fn a_node_that_is_not_there_is_waited_for_and_then_told_of() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Options::new(free.to_string(), "app").process("p").patience(Duration::from_millis(150));
    let error = Connection::open(gone).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(error.retry(), Retry::Safe);
    let fake = Fake::start();
    fake.shared.closed_at_once.store(3, Ordering::SeqCst);
    assert_eq!(connect(&fake).call("echo", b"x").unwrap().body, b"x");
    // Nor is a call without a key risked on a connection that is not accepted yet.
    fake.shared.closed_at_once.store(2, Ordering::SeqCst);
    let mut connection = Connection::new(options(&fake, "app")).unwrap();
    assert_eq!(connection.call("count", b"").unwrap().body, b"1");
}

#[test]
fn an_idle_connection_that_was_closed_is_noticed_before_a_call_is_risked() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    let leave = connection.begin("leave", b"").unwrap();
    connection.wait(leave).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    // Without a key: it would be reported, had it been sent on the dead connection.
    assert_eq!(connection.call("count", b"").unwrap().body, b"1");
}

#[test]
fn a_reply_over_the_limit_is_given_up() {
    let fake = Fake::start();
    let mut connection = Connection::open(options(&fake, "app").reply_limit(100_000)).unwrap();
    assert!(matches!(
        connection.call("generate", b"100001").unwrap_err(),
        Error::ReplyTooLong { limit: 100_000 }
    ));
    assert!(matches!(connection.call("generate", b"9000000").unwrap_err(), Error::ReplyTooLong { .. }));
    assert_eq!(connection.call("generate", b"100000").unwrap().body.len(), 100_000);
}

#[test]
fn a_pool_keeps_what_is_good() {
    let fake = Fake::start();
    let pool = Pool::new(options(&fake, "app"), 2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(pool.get().unwrap().call("echo", b"x").unwrap().body, b"x");
                }
            });
        }
    });
    assert!(pool.idle() <= 2 && pool.idle() > 0);
    let before = pool.idle();
    let mut lent = pool.get().unwrap();
    let _forgotten = lent.begin("slow", b"10000").unwrap();
    drop(lent);
    assert_eq!(pool.idle(), before - 1, "one with a call on it is not lent to another");
}

#[test]
fn one_thread_uses_many_connections() {
    let fake = Fake::start();
    let open = |_| Connection::open(options(&fake, "app")).unwrap();
    let mut group = Group::new((0..20).map(open).collect()).unwrap();
    assert_eq!((group.len(), group.is_empty()), (20, false));
    let mut underway = std::collections::HashMap::new();
    for round in 0..5 {
        for at in 0..group.len() {
            let text = format!("{at} {round}");
            let ticket = group.begin(at, "echo", &text).unwrap();
            underway.insert((at, ticket), text);
        }
    }
    while !underway.is_empty() {
        let (at, ticket, end) = group.wait_any(None).unwrap().unwrap();
        assert_eq!(end.unwrap().body, underway.remove(&(at, ticket)).unwrap().as_bytes());
    }
    assert!(group.wait_any(Some(std::time::Instant::now())).unwrap().is_none());
    // One that is cut off ends its call, connects again, and holds no other up.
    let cut = group.begin(3, "cut", b"").unwrap();
    let large = group.begin(4, "parrot", bytes(2 << 20)).unwrap();
    for _ in 0..2 {
        match group.wait_any(None).unwrap().unwrap() {
            (3, ticket, end) => {
                assert_eq!((&ticket, end.unwrap_err().retry()), (&cut, Retry::Unknown));
            }
            (at, ticket, end) => {
                assert_eq!((at, &ticket), (4, &large));
                assert!(end.unwrap().body == bytes(2 << 20));
            }
        }
    }
    let _ = group.begin(3, Request::new("echo"), b"on").unwrap();
    let (at, _, end) = group.wait_any(None).unwrap().unwrap();
    assert_eq!((at, end.unwrap().body), (3, b"on".to_vec()));
    let late = group.begin(5, Request::new("slow").deadline(Duration::from_millis(20)), b"60000").unwrap();
    let (at, ticket, end) = group.spinning().wait_any(None).unwrap().unwrap();
    assert_eq!((at, ticket, end.unwrap_err().kind()), (5, late, "deadline-exceeded"));
}

#[test]
fn an_unbound_connection_names_processes_and_is_told_which_answered() {
    let fake = Fake::start();
    let mut connection = Connection::open(Options::new(fake.address(), "app").patience(PATIENCE)).unwrap();
    let named = connection.call(Request::new("echo").process("bob"), b"").unwrap();
    assert_eq!(named.head.process.as_deref(), Some("bob"));
    assert_eq!(connection.call("echo", b"").unwrap().head.process.as_deref(), Some("any-1"));
}

#[test]
fn a_call_that_is_cancelled_holds_nothing_up() {
    let fake = Fake::start();
    let mut connection = connect(&fake);
    for _ in 0..100 {
        let ticket = connection.begin("slow", b"60000").unwrap();
        connection.cancel(ticket);
    }
    assert_eq!(connection.call("echo", b"x").unwrap().body, b"x");
}
