//! Waiting between tasks of one executor: cheaper than channels, since nothing here leaves its thread.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Wakes everybody who waits for something to change.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    waiting: RefCell<Vec<Waker>>,
}

impl Changes {
    /// Something changed: all who wait look again.
    pub(crate) fn announce(&self) {
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits until `look` finds what it wants; it is asked at once and again after each change.
    pub(crate) fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> impl Future<Output = T> {
        poll_fn(move |cx| match look() {
            Some(found) => Poll::Ready(found),
            None => {
                let mut waiting = self.waiting.borrow_mut();
                if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    waiting.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
    }
}

/// Only one at a time, first come first served.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Cell<bool>,
    queue: RefCell<VecDeque<Rc<Place>>>,
}

#[derive(Debug, Default)]
struct Place {
    called: Cell<bool>,
    left: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Somebody's turn; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Rc<Turns>,
}

/// A place in the queue that is given up when its owner goes away.
struct Waiting {
    turns: Rc<Turns>,
    place: Rc<Place>,
    done: bool,
}

impl Turns {
    /// Waits for the turn.
    pub(crate) async fn take(self: &Rc<Turns>) -> Turn {
        if !self.taken.replace(true) {
            return Turn { turns: Rc::clone(self) };
        }
        let place = Rc::new(Place::default());
        self.queue.borrow_mut().push_back(Rc::clone(&place));
        let mut waiting = Waiting { turns: Rc::clone(self), place, done: false };
        poll_fn(|cx| {
            if waiting.place.called.get() {
                return Poll::Ready(());
            }
            *waiting.place.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        waiting.done = true;
        Turn { turns: Rc::clone(self) }
    }

    fn pass_on(&self) {
        loop {
            let next = self.queue.borrow_mut().pop_front();
            let Some(next) = next else { break };
            if next.left.get() {
                continue;
            }
            next.called.set(true);
            if let Some(waker) = next.waker.take() {
                waker.wake();
            }
            return;
        }
        self.taken.set(false);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.pass_on();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.place.left.set(true);
        // Called but gone before it could take its turn.
        if self.place.called.get() {
            self.turns.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once, zip};

    use super::*;

    #[test]
    fn turns_are_taken_in_order_and_places_can_be_left() {
        block_on(async {
            let turns = Rc::new(Turns::default());
            let first = turns.take().await;
            let mut second = Box::pin(turns.take());
            let mut third = Box::pin(turns.take());
            assert!(poll_once(&mut second).await.is_none());
            assert!(poll_once(&mut third).await.is_none());
            drop(first);
            // The second was called, and goes away without having taken its turn.
            drop(second);
            let third = poll_once(&mut third).await.expect("the third has the turn now");
            drop(third);
            assert!(poll_once(Box::pin(turns.take())).await.is_some());
        });
    }

    #[test]
    fn everybody_hears_of_a_change() {
        block_on(async {
            let (changes, value) = (&Changes::default(), &Cell::new(0));
            let at_least = |least: u32| changes.until(move || (value.get() >= least).then_some(()));
            let both = zip(at_least(1), at_least(2));
            let raise = async {
                for _ in 0..2 {
                    futures_lite::future::yield_now().await;
                    value.set(value.get() + 1);
                    changes.announce();
                }
            };
            zip(both, raise).await;
        });
    }
}
