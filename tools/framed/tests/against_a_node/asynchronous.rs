//! The asynchronous client, on the smallest executor there is and a stream of this file's own: it must need no runtime.

use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use denizen_framed::asynchronous::{Driver, Handle, Memory, connect};
use denizen_framed::{Error, Options, Request, Retry};
use futures_lite::future::{block_on, or, poll_once, zip};
use futures_lite::io::{AsyncRead, AsyncWrite};

use crate::fake::Fake;

/// A socket that is asked again and again: poor, and enough for a test.
struct Socket(TcpStream);

impl Socket {
    fn again<T>(done: io::Result<T>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match done {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                context.waker().wake_by_ref();
                std::thread::yield_now();
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

fn open(fake: &Fake, app: &str, memory: Memory) -> (Handle, Driver<Socket>) {
    let stream = TcpStream::connect(fake.address()).unwrap();
    stream.set_nonblocking(true).unwrap();
    connect(Socket(stream), &Options::new(fake.address(), app).process("alice"), memory).unwrap()
}

/// Runs `work` with the connection driven beside it.
fn run<T>(driver: Driver<Socket>, work: impl Future<Output = T>) -> T {
    let drive = async {
        let _ = driver.await;
        // The work sees how it ended.
        std::future::pending().await
    };
    block_on(or(work, drive))
}

#[test]
fn many_tasks_share_a_connection() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app", Memory::default());
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
        let crowd: Vec<_> = (0..100).map(|_| Box::pin(handle.call("slow", b"1"))).collect();
        for call in crowd {
            call.await.unwrap();
        }
        let mut at_once: Vec<_> = (0..100).map(|_| Box::pin(handle.call("slow", b"1"))).collect();
        for call in &mut at_once {
            let _ = poll_once(call.as_mut()).await;
        }
        for call in at_once {
            call.await.unwrap();
        }
        fake.change_functions();
        assert_eq!(handle.call("echo", b"x").await.unwrap().body, b"x");
    });
    assert_eq!(fake.shared.accepted.load(Ordering::SeqCst), 1);
}

#[test]
fn a_dropped_call_is_cancelled_and_holds_nothing_up() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app", Memory::default());
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
fn every_call_ends_with_its_connection_and_owners_of_the_past_stay_known() {
    let fake = Fake::start();
    let (handle, driver) = open(&fake, "app", Memory::default());
    run(driver, async {
        let (cut, slow) = zip(handle.call("cut", b""), handle.call("slow", b"60000")).await;
        assert_eq!(cut.unwrap_err().retry(), Retry::Unknown);
        assert_eq!(slow.unwrap_err().retry(), Retry::Unknown);
        let late = handle.call("echo", b"").await.unwrap_err();
        assert_eq!(late.retry(), Retry::Safe, "it was not sent: {late}");
    });
    fake.set_epoch(6);
    let (next, driver) = open(&fake, "app", handle.memory());
    let error = run(driver, next.accepted()).unwrap_err();
    assert_eq!(error.kind(), "stale-epoch");

    let (handle, driver) = open(&fake, "loop", Memory::default());
    let error = run(driver, handle.call("echo", b"")).unwrap_err();
    let address = fake.address();
    assert!(matches!(&error, Error::Problem(moved) if moved.address.as_ref() == Some(&address)), "{error:?}");

    let (handle, driver) = open(&fake, "app", Memory::default());
    drop(driver);
    assert_eq!(block_on(handle.call(Request::new("echo"), b"")).unwrap_err().retry(), Retry::Safe);
    let (handle, driver) = open(&fake, "app", Memory::default());
    drop(handle);
    block_on(driver).unwrap();
}
