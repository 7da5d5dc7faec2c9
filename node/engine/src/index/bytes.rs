//! The bytes of a page's keys: in the page itself while they are few, so that comparing a key costs no other page of memory; on the heap
//! when they are many.

/// Bytes that a page holds itself: enough for a full page of keys of 21 bytes.
const INLINE_LEN: usize = 1024;

#[derive(Debug, Clone)]
#[repr(C, align(16))]
pub(super) struct KeyBytes {
    /// Used while nothing is spilled.
    inline: [u8; INLINE_LEN],
    inline_len: u32,
    spilled: Option<Vec<u8>>,
}

impl KeyBytes {
    pub(super) fn new() -> KeyBytes {
        KeyBytes { inline_len: 0, inline: [0; INLINE_LEN], spilled: None }
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        match &self.spilled {
            None => &self.inline[..self.inline_len as usize],
            Some(spilled) => spilled,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Makes a gap of `len` bytes at `at` and returns it.
    fn gap(&mut self, at: usize, len: usize) -> &mut [u8] {
        let old = self.len();
        if self.spilled.is_none() && old + len > INLINE_LEN {
            let mut spilled = Vec::with_capacity((old + len).next_power_of_two());
            spilled.extend_from_slice(self.as_slice());
            self.spilled = Some(spilled);
        }
        let bytes = match &mut self.spilled {
            Some(spilled) => {
                spilled.resize(old + len, 0);
                &mut spilled[..]
            }
            None => {
                self.inline_len += u32::try_from(len).unwrap_or(u32::MAX);
                &mut self.inline[..old + len]
            }
        };
        bytes.copy_within(at..old, at + len);
        &mut bytes[at..at + len]
    }

    pub(super) fn insert(&mut self, at: usize, key: &[u8]) {
        self.gap(at, key.len()).copy_from_slice(key);
    }

    pub(super) fn append(&mut self, others: &[u8]) {
        self.insert(self.len(), others);
    }

    pub(super) fn remove(&mut self, from: usize, to: usize) {
        match &mut self.spilled {
            Some(spilled) => drop(spilled.drain(from..to)),
            None => {
                self.inline.copy_within(to..self.inline_len as usize, from);
                self.inline_len -= u32::try_from(to - from).unwrap_or(u32::MAX);
            }
        }
    }

    /// Keeps the first `at` bytes and returns the others. Both go back into their pages if they fit.
    pub(super) fn split_off(&mut self, at: usize) -> KeyBytes {
        let (mut left, mut right) = (KeyBytes::new(), KeyBytes::new());
        left.append(&self.as_slice()[..at]);
        right.append(&self.as_slice()[at..]);
        *self = left;
        right
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.spilled.as_ref().map_or(0, Vec::capacity)
    }
}
