//! The keys of one page: sorted, in one block of bytes, with eight bytes of each drawn out for searching.
//!
//! A search compares the drawn-out *heads* (the eight bytes behind the prefix that all keys of the page share, as a big-endian number,
//! padded with zeros) and looks at whole keys only where heads are equal. A head orders as its key does, except that equal heads say
//! nothing.

use super::FANOUT;
use super::bytes::KeyBytes;

#[derive(Debug, Clone)]
pub(super) struct Keys {
    len: usize,
    /// Bytes that all keys share, and that heads leave out.
    shared: usize,
    /// The first eight of those, as in a head.
    prefix: u64,
    heads: [u64; FANOUT],
    /// Where each key ends in `bytes`.
    ends: [u32; FANOUT],
    bytes: KeyBytes,
}

impl Keys {
    pub(super) fn new() -> Keys {
        Keys { len: 0, shared: 0, prefix: 0, heads: [0; FANOUT], ends: [0; FANOUT], bytes: KeyBytes::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, at: usize) -> &[u8] {
        &self.bytes.as_slice()[self.start(at)..self.ends[at] as usize]
    }

    fn start(&self, at: usize) -> usize {
        if at == 0 { 0 } else { self.ends[at - 1] as usize }
    }

    /// Where `key` is, or where it would be.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        if !self.has_prefix(key) {
            return if self.len > 0 && key < self.get(0) { Err(0) } else { Err(self.len) };
        }
        self.find_behind_prefix(key)
    }

    /// Where `key` is, without asking first whether it shares the prefix: the whole key is compared at the end.
    pub(super) fn find_exact(&self, key: &[u8]) -> Option<usize> {
        if key.len() < self.shared { None } else { self.find_behind_prefix(key).ok() }
    }

    /// Short prefixes are compared without touching the keys' bytes, which lie elsewhere.
    #[inline]
    fn has_prefix(&self, key: &[u8]) -> bool {
        match self.shared {
            0 => true,
            shared @ 1..=8 => {
                key.len() >= shared && (head_of(key, 0) ^ self.prefix) >> (64 - 8 * shared) == 0
            }
            shared => key.len() >= shared && key[..shared] == self.bytes.as_slice()[..shared],
        }
    }

    #[inline]
    fn find_behind_prefix(&self, key: &[u8]) -> Result<usize, usize> {
        let head = head_of(key, self.shared);
        let heads = &self.heads[..self.len];
        let from = below(heads, head);
        let (mut low, mut high) = (from, from);
        while high < self.len && heads[high] == head {
            high += 1;
        }
        while low < high {
            let middle = (low + high) / 2;
            match self.get(middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// How many keys are at most `key`.
    pub(super) fn rank(&self, key: &[u8]) -> usize {
        match self.find(key) {
            Ok(at) => at + 1,
            Err(at) => at,
        }
    }

    pub(super) fn insert(&mut self, at: usize, key: &[u8]) {
        let start = self.start(at);
        let grown = u32::try_from(key.len()).unwrap_or(u32::MAX);
        self.bytes.insert(start, key);
        self.ends.copy_within(at..self.len, at + 1);
        self.ends[at] = u32::try_from(start).unwrap_or(u32::MAX);
        self.len += 1;
        self.ends[at..self.len].iter_mut().for_each(|end| *end += grown);
        let other = if at == 0 { self.len - 1 } else { 0 };
        if self.len == 1 || shared_len(key, self.get(other)) < self.shared {
            self.draw_heads();
        } else {
            self.heads.copy_within(at..self.len - 1, at + 1);
            self.heads[at] = head_of(key, self.shared);
        }
    }

    pub(super) fn remove(&mut self, at: usize) {
        let (start, end) = (self.start(at), self.ends[at] as usize);
        self.bytes.remove(start, end);
        let shrunk = u32::try_from(end - start).unwrap_or(u32::MAX);
        self.ends.copy_within(at + 1..self.len, at);
        self.heads.copy_within(at + 1..self.len, at);
        self.len -= 1;
        self.ends[at..self.len].iter_mut().for_each(|end| *end -= shrunk);
    }

    /// Keeps the first `at` keys and returns the others.
    pub(super) fn split_off(&mut self, at: usize) -> Keys {
        let mut right = Keys::new();
        let start = self.start(at);
        right.bytes = self.bytes.split_off(start);
        right.len = self.len - at;
        for (to, from) in right.ends.iter_mut().zip(&self.ends[at..self.len]) {
            *to = from - u32::try_from(start).unwrap_or(u32::MAX);
        }
        self.len = at;
        self.draw_heads();
        right.draw_heads();
        right
    }

    /// Appends all keys of `other`, which are greater.
    pub(super) fn append(&mut self, other: &Keys) {
        let base = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes.append(other.bytes.as_slice());
        for at in 0..other.len {
            self.ends[self.len + at] = other.ends[at] + base;
        }
        self.len += other.len;
        self.draw_heads();
    }

    /// Finds out again what all keys share. They are sorted, so the first and the last share only what all do.
    fn draw_heads(&mut self) {
        if self.len == 0 {
            self.shared = 0;
            return;
        }
        self.shared = shared_len(self.get(0), self.get(self.len - 1));
        self.prefix = head_of(self.get(0), 0);
        for at in 0..self.len {
            self.heads[at] = head_of(self.get(at), self.shared);
        }
    }

    /// Rough bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.heap_bytes()
    }
}

/// How many of the sorted `heads` are below `head`: first over the last head of every cache line, then within one line. No load
/// waits for another one's value, so a page that is not in any cache costs one miss and not one per step.
#[inline]
fn below(heads: &[u64], head: u64) -> usize {
    const LINE: usize = 8;
    let lines = heads.chunks_exact(LINE).filter(|line| line[LINE - 1] < head).count();
    let rest = &heads[lines * LINE..];
    lines * LINE + rest[..rest.len().min(LINE)].iter().filter(|one| **one < head).count()
}

fn shared_len(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

fn head_of(key: &[u8], shared: usize) -> u64 {
    let rest = key.get(shared..).unwrap_or_default();
    if let Some(head) = rest.first_chunk::<8>() {
        return u64::from_be_bytes(*head);
    }
    let mut head = [0; 8];
    head[..rest.len()].copy_from_slice(rest);
    u64::from_be_bytes(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_by_lines_is_counting() {
        let heads: Vec<u64> = (0..48).map(|n| n / 3 * 10).collect();
        for len in 0..=heads.len() {
            for head in 0..170 {
                let plain = heads[..len].iter().filter(|one| **one < head).count();
                assert_eq!(below(&heads[..len], head), plain);
            }
        }
    }

    #[test]
    fn keys_are_found_where_they_are() {
        let words: [&[u8]; 9] =
            [b"\0", b"\0\0", b"a", b"a\0", b"abcdefghij", b"abcdefghij\0", b"abcdefghik", b"b", b"\xFF\xFF"];
        let mut keys = Keys::new();
        for word in [4, 1, 8, 0, 6, 3, 2, 7, 5].map(|at: usize| words[at]) {
            let at = keys.find(word).unwrap_err();
            keys.insert(at, word);
        }
        for (at, word) in words.iter().enumerate() {
            assert_eq!(keys.find(word), Ok(at));
            assert_eq!(keys.get(at), *word);
        }
        keys.remove(4);
        assert_eq!(keys.find(words[4]), Err(4));
        let right = keys.split_off(3);
        assert_eq!((keys.len(), right.len()), (3, 5));
        assert_eq!(right.find(b"abcdefghik"), Ok(2));
        keys.append(&right);
        assert_eq!(keys.find(b"b"), Ok(6));
    }

    #[test]
    fn a_key_without_the_shared_prefix_goes_to_an_end() {
        let mut keys = Keys::new();
        for key in [b"prefix-a", b"prefix-b", b"prefix-c"] {
            let at = keys.find(key).unwrap_err();
            keys.insert(at, key);
        }
        assert_eq!(keys.find(b"a"), Err(0));
        assert_eq!(keys.find(b"prefix-"), Err(0));
        assert_eq!(keys.find(b"z"), Err(3));
    }
}
