//! Own writes over stored entries, in one order.

use std::iter::Peekable;
use std::sync::Arc;

use super::writes::{Change, Pending};
use crate::index::Item;

/// What is under a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Merged<'a> {
    Own(&'a Arc<Pending>),
    Stored(&'a Item),
}

struct Merge<O: Iterator, S: Iterator> {
    own: Peekable<O>,
    stored: Peekable<S>,
}

/// Two ordered sequences as one; where both have a key, the own change counts.
pub(super) fn merge<'a>(
    own: impl Iterator<Item = (&'a [u8], &'a Change)>,
    stored: impl Iterator<Item = (&'a [u8], &'a Item)>,
) -> impl Iterator<Item = (&'a [u8], Merged<'a>)> {
    let changes = own.filter(|(_, change)| !matches!(change, Change::Keep));
    Merge { own: changes.peekable(), stored: stored.peekable() }
}

impl<'a, O, S> Iterator for Merge<O, S>
where
    O: Iterator<Item = (&'a [u8], &'a Change)>,
    S: Iterator<Item = (&'a [u8], &'a Item)>,
{
    type Item = (&'a [u8], Merged<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let own_first = match (self.own.peek(), self.stored.peek()) {
                (None, _) => return self.stored.next().map(|(key, item)| (key, Merged::Stored(item))),
                (Some(_), None) => true,
                (Some((own, _)), Some((stored, _))) => own <= stored,
            };
            if !own_first {
                return self.stored.next().map(|(key, item)| (key, Merged::Stored(item)));
            }
            let (key, change) = self.own.next()?;
            self.stored.next_if(|(stored, _)| *stored == key);
            if let Change::Set(pending) = change {
                return Some((key, Merged::Own(pending)));
            }
        }
    }
}
