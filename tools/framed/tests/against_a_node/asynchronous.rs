//! The asynchronous client, on the smallest executor there is and a runtime of this file's own: it must need no other.

use std::future::{Future, Ready, ready};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use denizen_framed::asynchronous::{Driver, Handle, Runtime, client};
use denizen_framed::{Error, Options, Request, Retry};
use futures_lite::future::{block_on, or, poll_once, zip};
use futures_lite::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::fake::{Fake, via};

/// Generous: the machine may be busy. Nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// A socket that is asked again and again: poor, and enough for a test.
struct Socket(TcpStream);

/// A time that is asked for again and again.
struct Until(Instant);

struct Poor;

fn again(context: &Context<'_>) {
    context.waker().wake_by_ref();
    std::thread::yield_now();
}

impl Runtime for Poor {
    type Stream = Socket;
    type Connecting = Ready<io::Result<Socket>>;
    type Sleeping = Until;

    fn connect(&self, address: &str) -> Self::Connecting {
        let connect = || {
            let stream = TcpStream::connect(address)?;
            stream.set_nonblocking(true)?;
            Ok(Socket(stream))
        };
        ready(connect())
    }

    fn sleep(&self, time: Duration) -> Until {
        Until(Instant::now() + time)
    }
}

impl Future for Until {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.0 {
            return Poll::Ready(());
        }
        again(context);
        Poll::Pending
    }
}

impl Socket {
    fn again<T>(done: io::Result<T>, context: &Context<'_>) -> Poll<io::Result<T>> {
        match done {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                again(context);
                Poll::Pending
            }
            done => Poll::Ready(done),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        Socket::again(self.0.read(into), cx)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Socket::again(self.0.write(bytes), cx)
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn options(fake: &Fake, app: &str) -> Options {
    Options::new(fake.address(), app).process("alice").patience(PATIENCE).connect_timeout(PATIENCE)
}

fn open(fake: &Fake, app: &str) -> (Handle, Driver<Poor>) {
    client(options(fake, app), Poor).unwrap()
}

/// Runs `work` with the client driven beside it.
fn run<T>(driver: Driver<Poor>, work: impl Future<Output = T>) -> T {
    let drive = async {
        driver.await;
        // The work sees how it ended.
        std::future::pending().await
    };
    block_on(or(work, drive))
}

/// A runtime with many threads moves all of these between them.
#[test]
fn everything_may_go_to_another_thread() {
    fn sent<T: Send>(value: T) -> T {
        value
    }
    fn shared<T: Sync>(value: T) -> T {
        value
    }
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app");
    let (handle, driver) = (shared(sent(handle)), sent(driver));
    run(
        driver,
        sent(async {
            assert_eq!(sent(handle.call("echo", b"x")).await.unwrap().body, b"x");
            let mut stream = sent(sent(handle.stream("echo", None)).await.unwrap());
            sent(stream.finish()).await.unwrap();
        }),
    );
}

#[test]
fn many_tasks_share_a_connection() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app");
    run(driver, async {
        handle.accepted().await.unwrap();
        let large: Vec<u8> = (0..1 << 20).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let other = handle.clone();
        let calls = async {
            for n in 0..50 {
                assert_eq!(other.call("echo", n.to_string()).await.unwrap().body, n.to_string().as_bytes());
            }
        };
        let (echoed, ()) = zip(handle.call("parrot", &large), calls).await;
        assert!(echoed.unwrap().body == large);
        // More than the node allows at once.
        let mut at_once: Vec<_> = (0..100).map(|_| Box::pin(handle.call("slow", b"1"))).collect();
        for call in &mut at_once {
            let _ = poll_once(call.as_mut()).await;
        }
        for call in at_once {
            call.await.unwrap();
        }
        fake.change_functions();
        assert_eq!(handle.call("echo", b"x").await.unwrap().body, b"x");
        assert_eq!(handle.in_flight(), 0);
    });
    assert_eq!(fake.shared.accepted.load(Ordering::SeqCst), 1);
}

#[test]
fn a_dropped_call_is_cancelled_and_holds_nothing_up() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app");
    run(driver, async {
        handle.accepted().await.unwrap();
        for _ in 0..100 {
            let mut call = Box::pin(handle.call("slow", b"60000"));
            let mut turns = 0;
            let some = std::future::poll_fn(|context| {
                turns += 1;
                let polled = call.as_mut().poll(context);
                if polled.is_pending() && turns > 3 { Poll::Ready(()) } else { polled.map(drop) }
            });
            some.await;
        }
        assert_eq!(handle.call("echo", b"x").await.unwrap().body, b"x");
    });
}

#[test]
fn streams_go_both_ways_beside_calls() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app");
    run(driver, async {
        let mut stream = handle.stream("parrot", None).await.unwrap();
        for word in ["one", "two", "three"] {
            stream.write_all(word.as_bytes()).await.unwrap();
            let mut said = vec![0; word.len()];
            let mut at = 0;
            while at < said.len() {
                at += stream.read_some(&mut said[at..]).await.unwrap();
            }
            assert_eq!(said, word.as_bytes());
            assert_eq!(handle.call("echo", b"beside").await.unwrap().body, b"beside");
        }
        assert_eq!(stream.head().await.unwrap().commit, 41, "so far");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty());
        assert_eq!(stream.head().await.unwrap().commit, 42, "in the end");

        let large: Vec<u8> = (0..5 << 20).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut stream = handle.stream("length", Some(5 << 20)).await.unwrap();
        stream.write_all(&large).await.unwrap();
        stream.close().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, (5 << 20).to_string());
        // Left in the middle, and together more than a window.
        for _ in 0..12 {
            let mut stream = handle.stream(Request::new("generate"), None).await.unwrap();
            stream.write_all(b"20000000").await.unwrap();
            let mut some = [0; 1000];
            stream.read_exact(&mut some).await.unwrap();
        }
        let mut stream = handle.stream("fail", None).await.unwrap();
        let through_io = stream.read(&mut [0; 1]).await.unwrap_err();
        let inner = through_io.get_ref().unwrap().downcast_ref::<Error>().unwrap();
        assert_eq!(inner.kind(), "function-failed");
        assert_eq!(handle.call("echo", b"on").await.unwrap().body, b"on");
    });
    assert_eq!(fake.shared.accepted.load(Ordering::SeqCst), 1);
}

#[test]
fn it_connects_again_and_makes_again_what_may_be() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app");
    run(driver, async {
        let keyed = || Request::new("slow").idempotency_key("k");
        let calls = zip(handle.call("cut", b""), handle.call("slow", b"60000"));
        let ((cut, slow), again) = zip(calls, handle.call(keyed(), b"50")).await;
        assert_eq!(cut.unwrap_err().retry(), Retry::Unknown);
        assert_eq!(slow.unwrap_err().retry(), Retry::Unknown);
        assert_eq!(again.unwrap().body, b"");
        let reply = handle.call(Request::new("cut").idempotency_key("order"), b"").await.unwrap();
        assert!(reply.head.replayed);
        assert_eq!(fake.shared.count.load(Ordering::SeqCst), 2, "it was executed once");
        let mut stream = handle.stream("cut", None).await.unwrap();
        let _ = stream.finish().await;
        assert_eq!(stream.read_some(&mut [0; 1]).await.unwrap_err().retry(), Retry::Unknown);
        drop(stream);
        assert_eq!(handle.call("echo", b"on").await.unwrap().body, b"on");
        // Owners of the past stay known.
        fake.set_epoch(6);
        let late = handle.call("old", b"").await.unwrap_err();
        assert_eq!((late.kind(), late.retry()), ("stale-epoch", Retry::Unknown));
        fake.set_epoch(7);
        assert_eq!((handle.call("echo", b"on").await.unwrap().head.epoch, handle.epoch("alice")), (7, 7));
    });
}

#[test]
fn a_drained_connection_ends_what_it_runs_beside_the_next_one() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app");
    run(driver, async {
        let mut slow = Box::pin(handle.call("slow", b"60000"));
        let _ = poll_once(slow.as_mut()).await;
        assert_eq!(handle.call("leave", b"").await.unwrap().body, b"left");
        for n in 1..=3_u64 {
            assert_eq!(handle.call("count", b"").await.unwrap().body, n.to_string().as_bytes());
        }
        assert!(poll_once(slow.as_mut()).await.is_none(), "the first runs on");
    });
    assert_eq!(fake.shared.accepted.load(Ordering::SeqCst), 2);
}

#[test]
fn what_a_stream_received_outlives_its_connection() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app");
    run(driver, async {
        let mut stream = handle.stream("length", None).await.unwrap();
        stream.write_all(b"12345").await.unwrap();
        stream.finish().await.unwrap();
        assert_eq!(stream.head().await.unwrap().commit, 42);
        handle.call("leave", b"").await.unwrap();
        // The first connection is drained, and closed.
        handle.call("echo", b"").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "5");
    });
    assert_eq!(fake.shared.accepted.load(Ordering::SeqCst), 2);
}

#[test]
fn moves_are_followed_and_refusals_told() {
    let (here, there) = (Fake::start(), Fake::start());
    there.set_epoch(9);
    let (handle, driver) = open(&here, &format!("once-to-port-{}", there.shared.address.port()));
    run(driver, async {
        assert_eq!(handle.call("echo", b"x").await.unwrap().head.epoch, 9);
    });
    let unbound = Options::new(here.address(), "app").patience(PATIENCE);
    let (handle, driver) = client(unbound, Poor).unwrap();
    run(driver, async {
        let there = Request::new("count").process(&via(&[&here, &there]));
        assert_eq!(handle.call(there, b"").await.unwrap().body, b"1");
        let circle = Request::new("count").process(&via(&[&here, &here]));
        assert_eq!(handle.call(circle, b"").await.unwrap_err().kind(), "moved");
    });
    let (handle, driver) = open(&here, "loop");
    let error = run(driver, handle.call("echo", b"")).unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("moved", Retry::Safe));
    let (handle, driver) = open(&here, "guarded");
    let error = run(driver, handle.accepted()).unwrap_err();
    assert_eq!((error.kind(), error.retry()), ("bad-token", Retry::Never));

    let gone = Options::new("127.0.0.1:1", "app").patience(Duration::from_millis(100));
    let (handle, driver) = client(gone, Poor).unwrap();
    run(driver, async {
        assert_eq!(handle.accepted().await.unwrap_err().kind(), "unreachable");
        assert_eq!(handle.call("echo", b"").await.unwrap_err().retry(), Retry::Safe);
    });
}

#[test]
fn deadlines_hold_by_the_clients_own_clock() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let (handle, driver) = client(Options::new(address, "app"), Poor).unwrap();
    let request = Request::new("slow").deadline(Duration::from_millis(30));
    let error = run(driver, handle.call(request, b"")).unwrap_err();
    assert!(matches!(error, Error::Deadline { retry: Retry::Safe, .. }), "{error:?}");
}

#[test]
fn without_a_driver_every_call_ends_and_without_a_handle_the_driver_does() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app");
    drop(driver);
    assert_eq!(block_on(handle.call(Request::new("echo"), b"")).unwrap_err().retry(), Retry::Safe);
    assert_eq!(block_on(handle.accepted()).unwrap_err().retry(), Retry::Safe);
    let (handle, driver) = open(&fake, "app");
    drop(handle);
    block_on(driver);
}
