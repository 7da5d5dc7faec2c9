//! What the macros submit to a plugin before it starts: lists that constructors of its library fill.
//!
//! A macro makes one static [`Node`] per marked item and submits it from `.init_array`, which every linker
//! keeps and runs before `denizen_plugin_init`; so no type and no migration can be forgotten, whichever
//! function uses it. Nodes are only ever added.

use std::fmt;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Something that macros submit.
#[doc(hidden)]
pub trait Submitted: Sized + Sync + 'static {
    /// Where it is collected.
    fn list() -> &'static List<Self>;
}

/// One submitted thing.
#[doc(hidden)]
pub struct Node<T: 'static> {
    what: T,
    next: AtomicPtr<Node<T>>,
}

/// All submitted things of a kind.
#[doc(hidden)]
pub struct List<T: 'static>(AtomicPtr<Node<T>>);

impl<T: Submitted> Node<T> {
    #[must_use]
    pub const fn new(what: T) -> Node<T> {
        Node { what, next: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// Adds the node. Runs before anything else of the library, so it neither allocates nor panics. Called
    /// once per node.
    pub fn submit(&'static self) {
        let this = std::ptr::from_ref(self).cast_mut();
        let first = &T::list().0;
        let mut head = first.load(Ordering::Acquire);
        loop {
            self.next.store(head, Ordering::Relaxed);
            match first.compare_exchange_weak(head, this, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}

impl<T: Submitted> List<T> {
    pub(crate) const fn new() -> List<T> {
        List(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Everything in it.
    pub(crate) fn iter(&'static self) -> impl Iterator<Item = &'static T> {
        let mut next = &self.0;
        std::iter::from_fn(move || {
            // SAFETY: the list holds null or nodes that came in as `&'static`, published with release.
            let node: &'static Node<T> = unsafe { next.load(Ordering::Acquire).as_ref() }?;
            next = &node.next;
            Some(&node.what)
        })
    }
}

impl<T> fmt::Debug for Node<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Node")
    }
}

impl<T> fmt::Debug for List<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("List")
    }
}
