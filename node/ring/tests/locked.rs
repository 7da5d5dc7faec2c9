//! The sandbox's side on rings of the real kernel.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use denizen_ring::locked::{Locked, News, Receive};
use denizen_ring::maker;

const LONG: Option<Duration> = Some(Duration::from_secs(10));

struct Bench {
    ring: Arc<Locked>,
    agent: OwnedFd,
    _control: (UnixStream, UnixStream),
}

fn bench() -> Bench {
    let control = UnixStream::pair().unwrap();
    let ring = maker::make(control.0.as_fd()).unwrap();
    let agent = ring.fd.try_clone().unwrap();
    let ring = Arc::new(Locked::open(ring).unwrap());
    maker::enable(agent.as_fd()).unwrap();
    Bench { ring, agent, _control: control }
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = listener.accept().unwrap().0;
    for end in [&client, &server] {
        end.set_nodelay(true).unwrap();
    }
    (client, server)
}

impl Bench {
    fn connect(&self, slot: u32) -> TcpStream {
        let (client, server) = connection();
        maker::install(self.agent.as_fd(), slot, server.as_fd()).unwrap();
        client
    }

    fn news(&self) -> Vec<News> {
        let mut news = Vec::new();
        while news.is_empty() {
            let before = Instant::now();
            self.ring.wait(LONG, &mut news).unwrap();
            assert!(before.elapsed() < LONG.unwrap(), "nothing came");
        }
        news
    }
}

fn readable(slot: u32) -> News {
    News::Readable { slot, ended: false }
}

#[test]
fn bytes_go_both_ways() {
    let bench = bench();
    let mut client = bench.connect(1);
    bench.ring.watch(1).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(bench.ring.receive(1, &mut buffer).unwrap(), None);
    for round in 0..100_u8 {
        client.write_all(&[round; 10]).unwrap();
        assert_eq!(bench.news(), [readable(1)]);
        assert_eq!(bench.ring.receive(1, &mut buffer).unwrap(), Some(10));
        assert_eq!(buffer[..10], [round; 10]);
        assert_eq!(bench.ring.send(1, &buffer[..10], false).unwrap(), 10);
        let mut back = [0; 10];
        client.read_exact(&mut back).unwrap();
        assert_eq!(back, [round; 10]);
    }
    drop(client);
    assert_eq!(bench.news(), [News::Readable { slot: 1, ended: true }]);
    assert_eq!(bench.ring.receive(1, &mut buffer).unwrap(), Some(0));
    assert!(bench.ring.send(1, b"nobody", false).is_ok(), "the first one meets a reset, and does not know");
}

#[test]
fn what_was_there_before_is_news() {
    let bench = bench();
    let mut client = bench.connect(7);
    client.write_all(b"early").unwrap();
    std::thread::sleep(Duration::from_millis(5));
    bench.ring.watch(7).unwrap();
    assert_eq!(bench.news(), [readable(7)]);
}

#[test]
fn a_queued_send_goes_with_the_wait() {
    let bench = bench();
    let mut client = bench.connect(1);
    bench.ring.watch(1).unwrap();
    let ticket = bench.ring.queue(1, b"..answer".to_vec(), 2).unwrap();
    let other = std::thread::spawn(move || {
        let mut back = [0; 6];
        client.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"answer");
        client.write_all(b"x").unwrap();
        client
    });
    assert_eq!(bench.news(), [readable(1)]);
    let collected = bench.ring.collect(ticket).unwrap();
    assert_eq!((collected.bytes, collected.sent.unwrap()), (b"..answer".to_vec(), 6));
    other.join().unwrap();
}

#[test]
fn another_thread_can_collect_and_send_while_one_waits() {
    let bench = bench();
    let mut client = bench.connect(1);
    bench.ring.watch(1).unwrap();
    let ticket = bench.ring.queue(1, b"queued".to_vec(), 0).unwrap();
    let waiter = std::thread::spawn({
        let ring = bench.ring.clone();
        move || {
            let mut news = Vec::new();
            ring.wait(LONG, &mut news).unwrap();
            news
        }
    });
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.ring.collect(ticket).unwrap().sent.unwrap(), 6);
    assert_eq!(bench.ring.send(1, b" sent", false).unwrap(), 5);
    let mut back = [0; 11];
    client.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"queued sent");
    assert!(!waiter.is_finished(), "a send that succeeds woke the thread that waits");
    bench.ring.kick().unwrap();
    assert_eq!(waiter.join().unwrap(), []);
}

#[test]
fn a_socket_that_takes_no_more_says_how_much_it_took_and_when_there_is_room() {
    let bench = bench();
    let mut client = bench.connect(3);
    let bytes: Vec<u8> = (0..64 << 20).map(|at: u32| (at % 251) as u8).collect();
    let mut sent = 0;
    loop {
        let count = bench.ring.send(3, &bytes[sent..], true).unwrap();
        sent += count;
        if count == 0 {
            break;
        }
    }
    assert!(sent > 0 && sent < bytes.len());
    bench.ring.await_room(3).unwrap();
    let mut news = Vec::new();
    bench.ring.wait(Some(Duration::from_millis(20)), &mut news).unwrap();
    assert_eq!(news, []);
    let reader = std::thread::spawn({
        let expected = bytes.clone();
        move || {
            let mut back = vec![0; expected.len()];
            client.read_exact(&mut back).unwrap();
            assert!(back == expected, "bytes are lost, doubled or out of order");
        }
    });
    while sent < bytes.len() {
        let count = bench.ring.send(3, &bytes[sent..], false).unwrap();
        sent += count;
        if count == 0 {
            bench.ring.await_room(3).unwrap();
            assert_eq!(bench.news(), [News::Room { slot: 3 }]);
        }
    }
    reader.join().unwrap();
}

#[test]
fn a_queued_send_that_is_cut_short_ends_the_wait() {
    let bench = bench();
    let _client = bench.connect(1);
    while bench.ring.send(1, &[0; 100_000], false).unwrap() > 0 {}
    let ticket = bench.ring.queue(1, vec![7; 200_000], 0).unwrap();
    let begun = Instant::now();
    let mut news = Vec::new();
    bench.ring.wait(Some(Duration::from_millis(300)), &mut news).unwrap();
    assert!(begun.elapsed() < Duration::from_millis(250), "it was not said");
    assert!(bench.ring.collect(ticket).unwrap().sent.unwrap() < 200_000);
}

#[test]
fn the_wait_moves_from_thread_to_thread() {
    let bench = bench();
    let mut client = bench.connect(1);
    bench.ring.watch(1).unwrap();
    let mut buffer = [0; 10];
    for round in 0..20_u8 {
        let ring = bench.ring.clone();
        let waiter = std::thread::spawn(move || {
            let mut news = Vec::new();
            while news.is_empty() {
                ring.wait(LONG, &mut news).unwrap();
            }
            let mut buffer = [0; 10];
            (news, ring.receive(1, &mut buffer).unwrap(), buffer[0])
        });
        client.write_all(&[round]).unwrap();
        let (_, count, byte) = waiter.join().unwrap();
        assert_eq!((count, byte), (Some(1), round));
        assert_eq!(bench.ring.receive(1, &mut buffer).unwrap(), None);
    }
}

#[test]
fn a_wait_ends_in_time_and_looking_does_not_wait() {
    let bench = bench();
    let mut client = bench.connect(1);
    bench.ring.watch(1).unwrap();
    let mut news = Vec::new();
    let begun = Instant::now();
    bench.ring.wait(Some(Duration::from_millis(30)), &mut news).unwrap();
    assert!((30..500).contains(&begun.elapsed().as_millis()));
    bench.ring.look(&mut news).unwrap();
    assert_eq!(news, []);
    client.write_all(b"x").unwrap();
    std::thread::sleep(Duration::from_millis(5));
    bench.ring.look(&mut news).unwrap();
    assert_eq!(news, [readable(1)]);
}

#[test]
fn an_empty_place_is_said_and_the_next_connection_there_is_another() {
    let bench = bench();
    bench.ring.watch(5).unwrap();
    assert_eq!(bench.news(), [News::Lost { slot: 5 }]);
    assert!(bench.ring.receive(5, &mut [0; 1]).is_err());
    let mut first = bench.connect(5);
    bench.ring.watch(5).unwrap();
    bench.ring.unwatch(5).unwrap();
    let mut second = bench.connect(5);
    bench.ring.watch(5).unwrap();
    first.write_all(b"late").unwrap_or_default();
    let mut news = Vec::new();
    bench.ring.wait(Some(Duration::from_millis(20)), &mut news).unwrap();
    assert_eq!(news, [], "of a connection that is gone");
    second.write_all(b"x").unwrap();
    assert_eq!(bench.news(), [readable(5)]);
}

#[test]
fn more_completions_than_there_is_place_for_lose_nothing() {
    let bench = bench();
    let mut clients: Vec<TcpStream> = (1..=40).map(|slot| bench.connect(slot)).collect();
    for slot in 1..=40 {
        bench.ring.watch(slot).unwrap();
    }
    // Nobody reads completions meanwhile, but they are counted in on the way.
    for _ in 0..100 {
        for client in &mut clients {
            client.write_all(b"x").unwrap();
        }
        bench.ring.send(1, b"y", false).unwrap();
    }
    let mut seen = [false; 41];
    let mut news = Vec::new();
    while seen[1..].iter().any(|seen| !seen) {
        news.clear();
        let begun = Instant::now();
        bench.ring.wait(Some(Duration::from_secs(5)), &mut news).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(4), "news are lost: {seen:?}");
        for one in &news {
            if let News::Readable { slot, .. } = one {
                seen[*slot as usize] = true;
            }
        }
    }
    for slot in 1..=40 {
        let mut received = 0;
        while received < 100 {
            received += bench.ring.receive(slot, &mut [0; 200]).unwrap().unwrap_or(0);
        }
        assert_eq!(received, 100);
    }
    clients[3].write_all(b"again").unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        news.clear();
        bench.ring.wait(Some(Duration::from_secs(1)), &mut news).unwrap();
        let mut buffer = [0; 200];
        if bench.ring.receive(4, &mut buffer).unwrap() == Some(5) {
            break;
        }
        assert!(Instant::now() < until, "a poll was not armed again");
    }
}

#[test]
fn many_threads_send_at_once() {
    let bench = bench();
    let clients: Vec<TcpStream> = (1..=4).map(|slot| bench.connect(slot)).collect();
    let senders: Vec<_> = (1..=4_u8)
        .map(|slot| {
            let ring = bench.ring.clone();
            std::thread::spawn(move || {
                for round in 0..2_000_u32 {
                    let bytes = [u8::try_from(round % 251).unwrap(); 40];
                    let mut rest = &bytes[..];
                    while !rest.is_empty() {
                        let count = ring.send(u32::from(slot), rest, false).unwrap();
                        rest = &rest[count..];
                    }
                }
            })
        })
        .collect();
    for mut client in clients {
        let mut back = vec![0; 2_000 * 40];
        client.read_exact(&mut back).unwrap();
        for (round, piece) in (0..2_000_u32).zip(back.chunks(40)) {
            assert!(piece.iter().all(|byte| u32::from(*byte) == round % 251));
        }
    }
    senders.into_iter().for_each(|sender| sender.join().unwrap());
}

#[test]
fn several_are_received_from_together_and_one_that_is_broken_harms_no_other() {
    let bench = bench();
    let mut clients: Vec<TcpStream> = (1..=5).map(|slot| bench.connect(slot)).collect();
    for slot in 1..=5 {
        bench.ring.watch(slot).unwrap();
    }
    let mut news = Vec::new();
    bench.ring.look(&mut news).unwrap();
    assert_eq!(news, []);
    for slot in [0, 2, 4] {
        clients[slot].write_all(&[u8::try_from(slot).unwrap(); 10]).unwrap();
    }
    clients[3].shutdown(std::net::Shutdown::Both).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    // 1 has ten bytes, 2 nothing, 3 more than there is place for, 4 its end; nothing is at place 9, and nobody asks 5.
    let mut buffers = [[0; 10]; 5];
    let mut receives: Vec<Receive<'_>> = buffers
        .iter_mut()
        .zip([1, 2, 9, 3, 4])
        .map(|(into, slot)| Receive {
            slot,
            into: if slot == 3 { &mut into[..7] } else { into },
            result: Ok(None),
        })
        .collect();
    bench.ring.receive_many(&mut receives, &mut news).unwrap();
    let results: Vec<_> = receives.into_iter().map(|one| one.result.map_err(|_| ())).collect();
    assert_eq!(results, [Ok(Some(10)), Ok(None), Err(()), Ok(Some(7)), Ok(Some(0))]);
    assert_eq!((buffers[0], &buffers[3][..7]), ([0; 10], &[2; 7][..]));
    let mut rest = [0; 10];
    assert_eq!(bench.ring.receive(3, &mut rest).unwrap(), Some(3));
    while !news.contains(&readable(5)) {
        bench.ring.wait(LONG, &mut news).unwrap();
    }
}

#[test]
fn what_others_have_armed_is_news_to_who_waits_now() {
    let bench = bench();
    let mut clients: Vec<TcpStream> = (1..=3).map(|slot| bench.connect(slot)).collect();
    for slot in 1..=3 {
        bench.ring.watch(slot).unwrap();
    }
    bench.ring.wait(Some(Duration::ZERO), &mut Vec::new()).unwrap();
    while bench.ring.send(3, &[0; 100_000], false).unwrap() > 0 {}
    let (begun, waits) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn({
        let ring = bench.ring.clone();
        move || {
            begun.send(()).unwrap();
            let mut news = Vec::new();
            while !news.contains(&readable(1)) || !news.contains(&News::Room { slot: 3 }) {
                ring.wait(LONG, &mut news).unwrap();
            }
        }
    });
    waits.recv().unwrap();
    // This thread does not wait: somebody else is to be told of the room.
    bench.ring.await_room(3).unwrap();
    clients[0].write_all(b"x").unwrap();
    let mut sink = vec![0; 1 << 20];
    while !waiter.is_finished() {
        let _ = clients[2].set_read_timeout(Some(Duration::from_millis(10)));
        let _ = clients[2].read(&mut sink);
    }
    waiter.join().unwrap();
}
