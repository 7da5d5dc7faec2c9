//! Pages of the index by reference counts: what an `Arc` would be, but for two things.
//!
//! There are no weak references, so whether a page has one owner is a load and not a locked instruction, which a commit would pay for
//! on every level. And leaves of a large index lie together in blocks of huge pages: a `get` at random among a million keys spends a
//! sixth of its time on the translation of addresses otherwise. A small index pays nothing for that: its leaves are allocated one by one.
//!
//! One of the unsafe rooms. It owns the counts, and the pairing of every allocation with its release.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// What a [`Shared`] can hold: says where it is allocated.
pub(super) trait Page: Sized + 'static {
    /// Blocks to allocate from; `None` to allocate one by one.
    fn blocks() -> Option<&'static Blocks>;
}

/// A page that is freed with its last reference.
pub(super) struct Shared<T: Page> {
    counted: NonNull<Counted<T>>,
}

struct Counted<T> {
    count: AtomicUsize,
    /// Whether it lies in a block.
    in_block: bool,
    value: T,
}

// SAFETY: as for an `Arc`: the count is atomic, and the last owner, in whatever thread, drops the value.
unsafe impl<T: Page + Send + Sync> Send for Shared<T> {}
// SAFETY: as above; a shared `Shared` gives shared references and clones.
unsafe impl<T: Page + Send + Sync> Sync for Shared<T> {}

impl<T: Page> Shared<T> {
    pub(super) fn new(value: T) -> Shared<T> {
        let layout = Layout::new::<Counted<T>>();
        let (place, in_block) = match T::blocks().and_then(|blocks| blocks.take(layout)) {
            Some(place) => (place, true),
            None => (allocate(layout), false),
        };
        let counted = place.cast::<Counted<T>>();
        // SAFETY: a fresh place of that layout, which nobody else has.
        unsafe { counted.write(Counted { count: AtomicUsize::new(1), in_block, value }) };
        Shared { counted }
    }

    fn counted(&self) -> &Counted<T> {
        // SAFETY: written by `new`, and freed only when the last reference is dropped; this is one.
        unsafe { self.counted.as_ref() }
    }

    /// To be changed, if nobody else has it.
    fn get_mut(&mut self) -> Option<&mut T> {
        // Whoever gave up another reference did it before; what he read and wrote is over. Nobody can make a new one but from this one,
        // which is borrowed.
        if self.counted().count.load(Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: no other reference exists, and this one is borrowed exclusively.
        Some(unsafe { &mut self.counted.as_mut().value })
    }

    /// To be changed: in place if nobody else has it, as a copy otherwise.
    pub(super) fn make_mut(&mut self) -> &mut T
    where
        T: Clone,
    {
        if self.get_mut().is_none() {
            *self = Shared::new(T::clone(self));
        }
        // SAFETY: either nobody else has it (and nobody can have got it since), or it was made just now.
        unsafe { &mut self.counted.as_mut().value }
    }
}

impl<T: Page> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.counted().value
    }
}

impl<T: Page> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        let before = self.counted().count.fetch_add(1, Ordering::Relaxed);
        // So many references do not fit into memory: somebody forgets them in a loop.
        assert!(before < usize::MAX / 2, "too many references to a page");
        Shared { counted: self.counted }
    }
}

impl<T: Page> Drop for Shared<T> {
    fn drop(&mut self) {
        if self.counted().count.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        fence(Ordering::Acquire);
        let in_block = self.counted().in_block;
        // SAFETY: this was the last reference, and all that others did with theirs is over.
        unsafe { self.counted.drop_in_place() };
        let (place, layout) = (self.counted.cast(), Layout::new::<Counted<T>>());
        match T::blocks() {
            // SAFETY: taken from these blocks with this layout.
            Some(blocks) if in_block => unsafe { blocks.give_back(place, layout) },
            other => {
                other.into_iter().for_each(Blocks::forget_single);
                // SAFETY: allocated one by one with this layout.
                unsafe { dealloc(place.as_ptr(), layout) }
            }
        }
    }
}

impl<T: Page + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

fn allocate(layout: Layout) -> NonNull<u8> {
    // SAFETY: no layout here has a size of 0.
    NonNull::new(unsafe { alloc(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}

/// A huge page.
const BLOCK: usize = 2 << 20;
/// So many pages are allocated one by one before there are blocks.
const SINGLES: usize = 512;

/// Blocks of huge pages, each cut into places of one layout.
#[derive(Debug)]
pub(super) struct Blocks(Mutex<Stock>);

#[derive(Debug)]
struct Stock {
    singles: usize,
    /// Blocks with free places. Full ones are known to their pages alone.
    open: Vec<NonNull<Block>>,
}

/// The beginning of a block.
struct Block {
    /// How many places are taken.
    taken: usize,
    /// How many were ever.
    touched: usize,
    /// Places that were given back, each with the next one in its first bytes.
    free: Option<NonNull<Free>>,
}

struct Free {
    next: Option<NonNull<Free>>,
}

// SAFETY: blocks belong to the stock, whatever thread holds its lock.
unsafe impl Send for Stock {}

/// Where the first place begins, and how far places are apart.
const fn places(layout: Layout) -> (usize, usize) {
    (size_of::<Block>().next_multiple_of(64), layout.size().next_multiple_of(64))
}

const fn capacity(layout: Layout) -> usize {
    let (first, step) = places(layout);
    (BLOCK - first) / step
}

impl Blocks {
    pub(super) const fn new() -> Blocks {
        Blocks(Mutex::new(Stock { singles: 0, open: Vec::new() }))
    }

    fn stock(&self) -> MutexGuard<'_, Stock> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_single(&self) {
        self.stock().singles -= 1;
    }

    /// A place for one page; `None` while it is to be allocated by itself. Callers use one layout.
    fn take(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mut stock = self.stock();
        if stock.open.is_empty() {
            if stock.singles < SINGLES {
                stock.singles += 1;
                return None;
            }
            match new_block() {
                Some(block) => stock.open.push(block),
                None => {
                    stock.singles += 1;
                    return None;
                }
            }
        }
        let mut block = *stock.open.last()?;
        // SAFETY: an open block is allocated, and only who holds the lock touches its beginning.
        let head = unsafe { block.as_mut() };
        head.taken += 1;
        let place = match head.free {
            Some(free) => {
                // SAFETY: a place that was given back holds this and nothing else.
                head.free = unsafe { free.as_ref() }.next;
                free.cast()
            }
            None => {
                let (first, step) = places(layout);
                head.touched += 1;
                // SAFETY: a block is open only if a place is free: this one lies inside.
                unsafe { block.cast::<u8>().add(first + (head.touched - 1) * step) }
            }
        };
        if head.taken == capacity(layout) {
            stock.open.pop();
        }
        Some(place)
    }

    /// Takes a place back.
    ///
    /// # Safety
    /// It comes from [`Blocks::take`] of this value, with this layout, and nobody uses it any more.
    unsafe fn give_back(&self, place: NonNull<u8>, layout: Layout) {
        let mut stock = self.stock();
        let inside = place.addr().get() % BLOCK;
        // SAFETY: blocks are aligned to their size and places lie inside, so their block begins there.
        let mut block = unsafe { place.sub(inside) }.cast::<Block>();
        let free = place.cast::<Free>();
        // SAFETY: under the lock, as above; the place is large enough, aligned, and nobody's.
        let head = unsafe { block.as_mut() };
        // SAFETY: as above.
        unsafe { free.write(Free { next: head.free }) };
        head.free = Some(free);
        if head.taken == capacity(layout) {
            stock.open.push(block);
        }
        head.taken -= 1;
        if head.taken == 0 {
            stock.open.retain(|open| *open != block);
            // SAFETY: mapped by `new_block`, and no place in it is taken.
            let _ = unsafe { munmap(block.as_ptr().cast(), BLOCK) };
        }
    }
}

/// A block of memory of its own, whose beginning is filled in. `None` if there is no memory for a whole one.
fn new_block() -> Option<NonNull<Block>> {
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // Twice as long, so that an aligned block lies in it; the ends are given back. (An allocator would keep them, and limits count them.)
    // SAFETY: a new mapping where the kernel wants it.
    let map = unsafe { mmap_anonymous(std::ptr::null_mut(), 2 * BLOCK, access, flags) }.ok()?;
    let before = map.addr().wrapping_neg() % BLOCK;
    // SAFETY: inside the mapping.
    let (block, behind) = unsafe { (map.byte_add(before), map.byte_add(before + BLOCK)) };
    for (part, len) in [(map, before), (behind, BLOCK - before)] {
        if len > 0 {
            // SAFETY: a part of the mapping that nothing points into.
            let _ = unsafe { munmap(part, len) };
        }
    }
    // SAFETY: advice on a block of our own; whether it is taken does not matter.
    let _ = unsafe { madvise(block, BLOCK, Advice::LinuxHugepage) };
    let block = NonNull::new(block)?.cast::<Block>();
    // SAFETY: fresh memory, aligned and larger than that.
    unsafe { block.write(Block { taken: 0, touched: 0, free: None }) };
    Some(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    static BLOCKS: Blocks = Blocks::new();
    static ALIVE: AtomicUsize = AtomicUsize::new(0);

    /// A page that knows whether it was written over.
    #[derive(Debug)]
    struct Marked([u64; 600]);

    impl Marked {
        fn new(mark: u64) -> Marked {
            ALIVE.fetch_add(1, Ordering::SeqCst);
            Marked([mark; 600])
        }

        fn check(&self, mark: u64) {
            assert!(self.0.iter().all(|one| *one == mark), "{mark} was written over");
        }
    }

    impl Clone for Marked {
        fn clone(&self) -> Marked {
            Marked::new(self.0[0])
        }
    }

    impl Drop for Marked {
        fn drop(&mut self) {
            ALIVE.fetch_sub(1, Ordering::SeqCst);
        }
    }

    impl Page for Marked {
        fn blocks() -> Option<&'static Blocks> {
            Some(&BLOCKS)
        }
    }

    /// Pages come and go in several threads, from single ones to several blocks and back; none is another's, none is left.
    #[test]
    fn pages_are_their_owners_and_go_with_the_last() {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                std::thread::spawn(move || {
                    let mut random = 7 + thread;
                    let mut pages: Vec<(u64, Shared<Marked>)> = Vec::new();
                    for n in 0..6000 {
                        random = u64::wrapping_mul(random, 6_364_136_223_846_793_005).wrapping_add(1);
                        let at = usize::try_from(random >> 33).unwrap() % pages.len().max(1);
                        match (random >> 20) % 8 {
                            0..5 => pages.push((n, Shared::new(Marked::new(n)))),
                            5 if !pages.is_empty() => pages.push(pages[at].clone()),
                            6 if !pages.is_empty() => {
                                pages[at].1.make_mut().0 = [n; 600];
                                pages[at].0 = n;
                            }
                            _ if !pages.is_empty() => {
                                let (mark, page) = pages.swap_remove(at);
                                page.check(mark);
                            }
                            _ => {}
                        }
                        if n == 4000 {
                            pages.truncate(10);
                        }
                    }
                    pages.iter().for_each(|(mark, page)| page.check(*mark));
                    pages
                })
            })
            .collect();
        let kept: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let copies = kept.clone();
        drop(kept);
        copies.iter().for_each(|(mark, page)| page.check(*mark));
        assert!(BLOCKS.stock().singles <= SINGLES);
        drop(copies);
        assert_eq!(ALIVE.load(Ordering::SeqCst), 0, "pages are left");
        let stock = BLOCKS.stock();
        assert_eq!((stock.singles, stock.open.len()), (0, 0), "memory is left");
    }
}
