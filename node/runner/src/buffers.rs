//! Inputs and replies: 16-aligned blocks, used again by later calls.
//!
//! Small ones are of two sizes, so that a process whose calls are small takes little memory when it is idle, and its first call touches few
//! pages. Large ones are made to measure. A process that serves connections keeps some of them for a moment ([`Buffers::keep_large`]): a
//! fresh page costs more than receiving into it. What must hold:
//!
//! - A block that was used holds what an earlier call left there. Whoever gets one sees only what was put there since, or zeros.
//! - What is kept of large blocks is bounded, and goes when the process is quiet.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use denizen_engine::AlignedBuf;

use crate::locked;
use crate::plugin::give_back_free_memory;

/// The sizes of blocks that are kept, in bytes; larger ones are made to measure. The block of a whole page leaves room for what the
/// allocator puts before it.
const KEPT_LENS: [usize; 2] = [4000, 64 << 10];
/// So many of each are kept.
const KEPT_BLOCKS: usize = 8;
/// A large block is kept until none was given back for so long.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// Bytes in a block: what an input or a reply consists of.
#[derive(Debug)]
pub(crate) struct Body {
    block: AlignedBuf,
    /// Where the bytes begin. Not 0 only in a reply that is a part of an input.
    start: usize,
    len: usize,
}

impl Body {
    fn new(block: AlignedBuf, len: usize) -> Body {
        Body { block, start: 0, len }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.block[self.start..self.start + self.len]
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the bytes begin, to be filled by a function.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.block[self.start..].as_mut_ptr()
    }

    /// The part of the block behind the bytes.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.block[self.start + self.len..]
    }

    /// `count` bytes were written to [`Body::room`].
    pub(crate) fn filled(&mut self, count: usize) {
        self.len += count.min(self.room().len());
    }

    /// Copies bytes in; there must be room.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Which part of these bytes the slice is, if it lies within them.
    pub(crate) fn range_of(&self, part: &[u8]) -> Option<Range<usize>> {
        let start = part.as_ptr().addr().checked_sub(self.bytes().as_ptr().addr())?;
        let end = start.checked_add(part.len())?;
        (end <= self.len && !part.is_empty()).then_some(start..end)
    }

    /// Only this part of the bytes, where they lie.
    pub(crate) fn only(self, part: Range<usize>) -> Body {
        let end = part.end.min(self.len);
        let start = part.start.min(end);
        Body { block: self.block, start: self.start + start, len: end - start }
    }
}

#[derive(Debug)]
pub(crate) struct Buffers {
    kept: Mutex<[Vec<AlignedBuf>; KEPT_LENS.len()]>,
    large: Mutex<Large>,
}

/// Large blocks that are kept, the oldest first.
#[derive(Debug, Default)]
struct Large {
    blocks: VecDeque<AlignedBuf>,
    /// Bytes of them, and the most of those.
    bytes: usize,
    most: usize,
    /// When the last was given back.
    since: Option<Instant>,
}

impl Large {
    /// One with room for so many bytes, and for not many more: a short body must not hold a long block.
    fn take(&mut self, capacity: usize) -> Option<AlignedBuf> {
        let fits = |block: &AlignedBuf| (capacity..=capacity + capacity / 4).contains(&block.len());
        let block = self.blocks.iter().position(fits).and_then(|at| self.blocks.remove(at))?;
        self.bytes -= block.len();
        Some(block)
    }

    /// Whether nothing was kept before.
    fn put(&mut self, block: AlignedBuf) -> bool {
        if block.len() > self.most {
            return false;
        }
        let first = self.blocks.is_empty();
        self.bytes += block.len();
        self.blocks.push_back(block);
        while self.bytes > self.most
            && let Some(oldest) = self.blocks.pop_front()
        {
            self.bytes -= oldest.len();
        }
        self.since = Some(Instant::now());
        first
    }
}

impl Buffers {
    pub(crate) fn new() -> Buffers {
        Buffers { kept: Mutex::default(), large: Mutex::default() }
    }

    /// From now on so many bytes of large blocks may be kept. Whoever says so calls [`Buffers::let_go`] when it is time to.
    pub(crate) fn keep_large(&self, most: usize) {
        locked(&self.large).most = most;
    }

    /// Lets go of the large blocks if none was given back for a while. Otherwise, if there are any: when to look again.
    pub(crate) fn let_go(&self, now: Instant) -> Option<Instant> {
        let mut large = locked(&self.large);
        let until = large.since? + QUIET;
        if now < until {
            return Some(until);
        }
        *large = Large { most: large.most, ..Large::default() };
        drop(large);
        give_back_free_memory();
        None
    }

    /// An empty body with room for `capacity` bytes, whose content is whatever an earlier call left there. `None`: no memory.
    pub(crate) fn with_room(&self, capacity: usize) -> Option<Body> {
        match self.used(capacity) {
            Some(block) => Some(Body::new(block, 0)),
            None => Some(Body::new(fresh(capacity)?, 0)),
        }
    }

    /// A body of `len` zeros.
    pub(crate) fn zeroed(&self, len: usize) -> Option<Body> {
        match self.used(len) {
            Some(mut block) => {
                block[..len].fill(0);
                Some(Body::new(block, len))
            }
            None => Some(Body::new(fresh(len)?, len)),
        }
    }

    /// A block that was used before.
    fn used(&self, capacity: usize) -> Option<AlignedBuf> {
        match size_of_kept(capacity) {
            Some(size) => locked(&self.kept)[size].pop(),
            None => locked(&self.large).take(capacity),
        }
    }

    /// Makes room for `more` bytes, up to `most` in all, by moving to a larger block.
    pub(crate) fn grow(&self, body: &mut Body, more: usize, most: usize) -> Option<()> {
        let needed = body.len + more;
        if needed <= body.block.len() {
            return Some(());
        }
        let mut larger = self.with_room(needed.max((body.block.len() * 2).min(most)))?;
        larger.push(body.bytes());
        self.keep_small(std::mem::replace(body, larger).block);
        Some(())
    }

    /// Keeps the block of a body that is not needed any more, or lets it go. True when it is the first of the large ones: somebody has to
    /// look after them ([`Buffers::let_go`]) within a second.
    #[must_use]
    pub(crate) fn give_back(&self, body: Body) -> bool {
        if body.block.len() > KEPT_LENS[1] {
            return locked(&self.large).put(body.block);
        }
        self.keep_small(body.block);
        false
    }

    fn keep_small(&self, block: AlignedBuf) {
        if let Some(size) = KEPT_LENS.iter().position(|len| block.len() == *len) {
            let kept = &mut locked(&self.kept)[size];
            if kept.len() < KEPT_BLOCKS {
                kept.push(block);
            }
        }
    }
}

/// Which of the sizes that are always kept has room for so many bytes.
fn size_of_kept(capacity: usize) -> Option<usize> {
    KEPT_LENS.iter().position(|len| capacity <= *len)
}

/// A block of zeros.
fn fresh(capacity: usize) -> Option<AlignedBuf> {
    AlignedBuf::zeroed(size_of_kept(capacity).map_or(capacity, |size| KEPT_LENS[size]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_blocks_are_used_again_and_zeroed_where_that_is_promised() {
        let buffers = Buffers::new();
        let mut body = buffers.with_room(10).unwrap();
        body.push(&[9; 10]);
        let block = body.as_mut_ptr();
        assert!(!buffers.give_back(body), "a small block is nobody's to look after");
        let mut again = buffers.zeroed(10).unwrap();
        assert_eq!(again.as_mut_ptr(), block);
        assert_eq!(again.bytes(), [0; 10]);
    }

    fn large(buffers: &Buffers, len: usize, byte: u8) -> Body {
        let mut body = buffers.with_room(len).unwrap();
        body.push(&vec![byte; len]);
        body
    }

    #[test]
    fn large_blocks_are_kept_within_bounds_until_it_is_quiet() {
        const MIB: usize = 1 << 20;
        let buffers = Buffers::new();
        assert!(!buffers.give_back(large(&buffers, MIB, 1)));
        assert!(locked(&buffers.large).blocks.is_empty(), "nobody looks after them here");
        buffers.keep_large(3 * MIB);
        let (first, second) = (large(&buffers, MIB, 1), large(&buffers, 2 * MIB, 2));
        assert!(buffers.give_back(first));
        assert!(!buffers.give_back(second));
        // Over the bound the oldest goes; what is over it alone is not kept.
        assert!(!buffers.give_back(Body::new(fresh(MIB + 1).unwrap(), 0)));
        assert!(!buffers.give_back(Body::new(fresh(4 * MIB).unwrap(), 0)));
        let lens: Vec<_> = locked(&buffers.large).blocks.iter().map(|block| block.len()).collect();
        assert_eq!(lens, [MIB + 1]);
        assert_eq!(locked(&buffers.large).bytes, MIB + 1);
        // A short body does not hold a long block.
        assert!(locked(&buffers.large).take(MIB / 2).is_none());
        let since = locked(&buffers.large).since.unwrap();
        let until = buffers.let_go(since).unwrap();
        assert_eq!(locked(&buffers.large).blocks.len(), 1);
        assert_eq!(buffers.let_go(until), None);
        let kept = |large: &Large| (large.blocks.len(), large.bytes);
        assert_eq!(kept(&locked(&buffers.large)), (0, 0));
        assert!(buffers.give_back(large(&buffers, MIB, 1)), "it is to be looked after again");
    }

    #[test]
    fn a_large_block_comes_again_as_zeros_where_that_is_promised() {
        let buffers = Buffers::new();
        buffers.keep_large(1 << 20);
        let mut body = large(&buffers, 100_000, 7);
        let block = body.as_mut_ptr();
        assert!(buffers.give_back(body));
        let mut again = buffers.zeroed(90_000).unwrap();
        assert_eq!((again.as_mut_ptr(), again.len()), (block, 90_000));
        assert!(again.bytes().iter().all(|byte| *byte == 0));
        assert!(buffers.give_back(again));
        let received = buffers.with_room(100_000).unwrap();
        assert!(received.bytes().is_empty(), "what was there before is room, not bytes");
    }

    #[test]
    fn a_part_of_the_bytes_is_where_it_lies() {
        let buffers = Buffers::new();
        let mut body = buffers.with_room(10).unwrap();
        body.push(b"0123456789");
        let other = *b"234";
        assert_eq!(body.range_of(&other), None);
        assert_eq!(body.range_of(&body.block[9..12]), None, "not all of it is among the bytes");
        let part = body.range_of(&body.bytes()[2..5]).unwrap();
        let address = body.bytes()[2..].as_ptr();
        let part = body.only(part);
        assert_eq!((part.bytes(), part.bytes().as_ptr()), (&b"234"[..], address));
        assert_eq!(part.range_of(&part.bytes()[1..]), Some(1..3));
        assert_eq!(part.only(1..9).bytes(), b"34");
    }

    #[test]
    fn growing_keeps_the_bytes() {
        let buffers = Buffers::new();
        let mut body = buffers.with_room(0).unwrap();
        let mut expected = Vec::new();
        for step in 0..100_u8 {
            let piece = vec![step; 5_000];
            buffers.grow(&mut body, piece.len(), 1 << 20).unwrap();
            body.push(&piece);
            expected.extend(piece);
        }
        assert!(body.bytes() == expected);
        assert_eq!(body.len(), 500_000);
    }
}
