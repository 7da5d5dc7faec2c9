//! Inputs and replies: 16-aligned blocks, the small ones used again by later calls.
//!
//! Of two sizes, so that a process whose calls are small takes little memory when it is idle, and its first call touches few pages.

use std::sync::Mutex;

use denizen_engine::AlignedBuf;

use crate::locked;

/// The sizes of blocks that are kept, in bytes; larger ones are made to measure and given back. The block of a whole page leaves room for
/// what the allocator puts before it.
const KEPT_LENS: [usize; 2] = [4000, 64 << 10];
/// So many of each are kept.
const KEPT_BLOCKS: usize = 8;

/// Bytes at the front of a block.
#[derive(Debug)]
pub(crate) struct Body {
    block: AlignedBuf,
    len: usize,
}

impl Body {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.block[..self.len]
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where the bytes begin, to be filled by a function.
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.block.as_mut_ptr()
    }

    /// The part of the block that holds no bytes yet.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.block[self.len..]
    }

    /// `count` bytes were written to [`Body::room`].
    pub(crate) fn filled(&mut self, count: usize) {
        self.len += count.min(self.block.len() - self.len);
    }

    /// Copies bytes in; there must be room.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

#[derive(Debug)]
pub(crate) struct Buffers {
    kept: Mutex<[Vec<AlignedBuf>; KEPT_LENS.len()]>,
}

impl Buffers {
    pub(crate) fn new() -> Buffers {
        Buffers { kept: Mutex::default() }
    }

    /// An empty body with room for `capacity` bytes, whose content is whatever an earlier call left there. `None`: no memory.
    pub(crate) fn with_room(&self, capacity: usize) -> Option<Body> {
        let Some(size) = KEPT_LENS.iter().position(|len| capacity <= *len) else {
            return Some(Body { block: AlignedBuf::zeroed(capacity)?, len: 0 });
        };
        let kept = locked(&self.kept)[size].pop();
        let block = match kept {
            Some(block) => block,
            None => AlignedBuf::zeroed(KEPT_LENS[size])?,
        };
        Some(Body { block, len: 0 })
    }

    /// A body of `len` zeros.
    pub(crate) fn zeroed(&self, len: usize) -> Option<Body> {
        let mut body = self.with_room(len)?;
        if KEPT_LENS.contains(&body.block.len()) {
            body.block[..len].fill(0);
        }
        body.len = len;
        Some(body)
    }

    /// Makes room for `more` bytes, up to `most` in all, by moving to a larger block.
    pub(crate) fn grow(&self, body: &mut Body, more: usize, most: usize) -> Option<()> {
        let needed = body.len + more;
        if needed <= body.block.len() {
            return Some(());
        }
        let mut larger = self.with_room(needed.max((body.block.len() * 2).min(most)))?;
        larger.push(body.bytes());
        self.give_back(std::mem::replace(body, larger));
        Some(())
    }

    pub(crate) fn give_back(&self, body: Body) {
        if let Some(size) = KEPT_LENS.iter().position(|len| body.block.len() == *len) {
            let kept = &mut locked(&self.kept)[size];
            if kept.len() < KEPT_BLOCKS {
                kept.push(body.block);
            }
        }
    }
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
        buffers.give_back(body);
        let mut again = buffers.zeroed(10).unwrap();
        assert_eq!(again.as_mut_ptr(), block);
        assert_eq!(again.bytes(), [0; 10]);
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
