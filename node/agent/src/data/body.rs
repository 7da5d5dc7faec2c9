//! The input of a call, out of the frames of its connection and into the hands of whoever runs it, maybe on another executor.
//!
//! What waits here is bounded by the credit that the caller has, and credit comes back as bytes are taken. Pieces that wait are put
//! together: each would cost many times its length.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use futures_channel::mpsc;
use hyper::body::Bytes;

use crate::problem::Problem;
use crate::process::broken_off;

/// Says that so many bytes of a call's input were taken.
pub(super) type Taken = (u64, usize);

/// An input.
#[derive(Debug)]
pub(crate) struct FramedBody {
    length: Option<u64>,
    from: From,
}

#[derive(Debug)]
enum From {
    /// It was whole in its frame.
    Here(Option<Bytes>),
    Frames(Reader),
}

#[derive(Debug)]
struct Reader {
    pipe: Pipe,
    call: u64,
    taken: mpsc::UnboundedSender<Taken>,
}

/// The end that the connection writes.
#[derive(Debug, Clone, Default)]
pub(super) struct Pipe(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// Whether it is whole; `false`: it never will be.
    ended: Option<bool>,
    /// Nobody reads any more.
    unread: bool,
    waker: Option<Waker>,
}

impl FramedBody {
    /// One that is all here.
    pub(super) fn here(bytes: Bytes) -> FramedBody {
        FramedBody { length: Some(bytes.len() as u64), from: From::Here(Some(bytes)) }
    }

    /// One of a call that is still being received. `taken` hears what is read of it, or dropped.
    pub(super) fn piped(
        call: u64,
        length: Option<u64>,
        taken: mpsc::UnboundedSender<Taken>,
    ) -> (FramedBody, Pipe) {
        let pipe = Pipe::default();
        let reader = Reader { pipe: pipe.clone(), call, taken };
        (FramedBody { length, from: From::Frames(reader) }, pipe)
    }

    /// Its whole length in bytes, if that is known.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Problem>> {
        match &mut self.from {
            From::Here(bytes) => bytes.take().filter(|bytes| !bytes.is_empty()).map(Ok),
            From::Frames(reader) => reader.next().await,
        }
    }
}

impl Reader {
    async fn next(&self) -> Option<Result<Bytes, Problem>> {
        let part = poll_fn(|cx| {
            let mut state = self.pipe.state();
            if !state.bytes.is_empty() {
                return Poll::Ready(Some(Ok(Bytes::from(std::mem::take(&mut state.bytes)))));
            }
            match state.ended {
                Some(true) => Poll::Ready(None),
                Some(false) => Poll::Ready(Some(Err(broken_off()))),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        if let Some(Ok(bytes)) = &part {
            self.tell(bytes.len());
        }
        part
    }

    fn tell(&self, len: usize) {
        // The connection may be gone.
        let _ = self.taken.unbounded_send((self.call, len));
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.pipe.state();
        state.unread = true;
        let left = std::mem::take(&mut state.bytes).len();
        drop(state);
        if left > 0 {
            self.tell(left);
        }
    }
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More of it. False where nobody wants it.
    pub(super) fn push(&self, bytes: &[u8], whole: bool) -> bool {
        let mut state = self.state();
        if state.unread {
            return false;
        }
        state.bytes.extend_from_slice(bytes);
        if whole {
            state.ended = Some(true);
        }
        wake(state);
        true
    }

    /// It will never be whole.
    pub(super) fn break_off(&self) {
        let mut state = self.state();
        state.ended.get_or_insert(false);
        wake(state);
    }
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    // Whoever is woken wants the lock.
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    fn told(taken: &mut mpsc::UnboundedReceiver<Taken>) -> usize {
        std::iter::from_fn(|| taken.try_recv().ok()).map(|(_, len)| len).sum()
    }

    #[test]
    fn every_byte_is_told_once_whether_read_or_dropped() {
        let (tell, mut taken) = mpsc::unbounded();
        let (mut body, pipe) = FramedBody::piped(3, None, tell);
        assert!(block_on(poll_once(body.next())).is_none(), "nothing came yet");
        for byte in 0..200 {
            assert!(pipe.push(&[byte], false));
        }
        let part = block_on(body.next()).unwrap().unwrap();
        assert_eq!(part.len(), 200, "pieces that wait are put together");
        assert_eq!(told(&mut taken), 200);
        assert!(pipe.push(b"more", true));
        drop(body);
        assert_eq!(told(&mut taken), 4);
        assert!(!pipe.push(b"for nobody", false));
    }

    #[test]
    fn an_input_that_breaks_off_is_no_whole_one() {
        let (tell, _taken) = mpsc::unbounded();
        let (mut body, pipe) = FramedBody::piped(1, Some(10), tell);
        pipe.push(b"half", false);
        pipe.break_off();
        assert_eq!(block_on(body.next()).unwrap().unwrap(), "half");
        assert!(block_on(body.next()).unwrap().is_err());
    }
}
