//! The keys of one page: sorted, in one block of bytes, with four bytes of each drawn out for searching.
//!
//! A search compares the drawn-out *heads* (the four bytes behind the prefix that all keys of the page share, as a big-endian number,
//! padded with zeros) and looks at whole keys only where heads are equal. A head orders as its key does, except that equal heads say
//! nothing.

use super::FANOUT;
use super::bytes::KeyBytes;

/// What a search needs first lies first, so that it comes with few cache lines: none of them has to wait for another.
#[derive(Debug, Clone)]
#[repr(C)]
pub(super) struct Keys {
    len: u32,
    /// Bytes that all keys share, and that heads leave out.
    shared: u32,
    /// The first eight of those, as in a head.
    prefix: u64,
    /// Length of every key; 0 if they differ. With it a key is found without reading where it ends, which would be one more cache miss
    /// that the next one waits for.
    stride: u32,
    /// [`NO_HEAD`] behind the last key, so that a search need not wait for `len`.
    heads: [u32; FANOUT],
    bytes: KeyBytes,
    /// Where each key ends in `bytes`.
    ends: [u32; FANOUT],
}

/// No head is above it.
const NO_HEAD: u32 = u32::MAX;

impl Keys {
    pub(super) fn new() -> Keys {
        Keys {
            len: 0,
            shared: 0,
            prefix: 0,
            stride: 0,
            heads: [NO_HEAD; FANOUT],
            bytes: KeyBytes::new(),
            ends: [0; FANOUT],
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn get(&self, at: usize) -> &[u8] {
        let bytes = self.bytes.as_slice();
        match self.stride as usize {
            0 => &bytes[self.start(at)..self.ends[at] as usize],
            stride => &bytes[at * stride..][..stride],
        }
    }

    fn start(&self, at: usize) -> usize {
        if at == 0 { 0 } else { self.ends[at - 1] as usize }
    }

    /// Where `key` is, or where it would be.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        if !self.has_prefix(key) {
            return if self.len > 0 && key < self.get(0) { Err(0) } else { Err(self.len()) };
        }
        self.find_behind_prefix(key)
    }

    /// Where `key` is, without asking first whether it shares the prefix: the whole key is compared at the end.
    pub(super) fn find_exact(&self, key: &[u8]) -> Option<usize> {
        if key.len() < self.shared as usize { None } else { self.find_behind_prefix(key).ok() }
    }

    /// Short prefixes are compared without touching the keys' bytes, which lie elsewhere.
    #[inline]
    fn has_prefix(&self, key: &[u8]) -> bool {
        match self.shared as usize {
            0 => true,
            shared @ 1..=8 => key.len() >= shared && (prefix_of(key) ^ self.prefix) >> (64 - 8 * shared) == 0,
            shared => key.len() >= shared && key[..shared] == self.bytes.as_slice()[..shared],
        }
    }

    #[inline]
    fn find_behind_prefix(&self, key: &[u8]) -> Result<usize, usize> {
        let head = head_of(key, self.shared as usize);
        let from = below(&self.heads, head);
        let (mut low, mut high) = (from, from);
        let heads = &self.heads[..self.len()];
        while high < heads.len() && heads[high] == head {
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
        let (start, len) = (self.start(at), self.len());
        let grown = u32::try_from(key.len()).unwrap_or(u32::MAX);
        self.stride = if len == 0 || self.stride == grown { grown } else { 0 };
        self.bytes.insert(start, key);
        self.ends.copy_within(at..len, at + 1);
        self.ends[at] = u32::try_from(start).unwrap_or(u32::MAX);
        self.len += 1;
        self.ends[at..=len].iter_mut().for_each(|end| *end += grown);
        let other = if at == 0 { len } else { 0 };
        if len == 0 || shared_len(key, self.get(other)) < self.shared as usize {
            self.draw_heads();
        } else {
            self.heads.copy_within(at..len, at + 1);
            self.heads[at] = head_of(key, self.shared as usize);
        }
    }

    pub(super) fn remove(&mut self, at: usize) {
        let (start, end, len) = (self.start(at), self.ends[at] as usize, self.len());
        self.bytes.remove(start, end);
        let shrunk = u32::try_from(end - start).unwrap_or(u32::MAX);
        self.ends.copy_within(at + 1..len, at);
        self.heads.copy_within(at + 1..len, at);
        self.heads[len - 1] = NO_HEAD;
        self.len -= 1;
        self.ends[at..len - 1].iter_mut().for_each(|end| *end -= shrunk);
    }

    /// Keeps the first `at` keys and returns the others.
    pub(super) fn split_off(&mut self, at: usize) -> Keys {
        let mut right = Keys::new();
        let (start, len) = (self.start(at), self.len());
        right.bytes = self.bytes.split_off(start);
        for (to, from) in right.ends.iter_mut().zip(&self.ends[at..len]) {
            *to = from - u32::try_from(start).unwrap_or(u32::MAX);
        }
        right.len = u32::try_from(len - at).unwrap_or(u32::MAX);
        self.len = u32::try_from(at).unwrap_or(u32::MAX);
        self.draw_heads();
        right.draw_heads();
        right
    }

    /// Appends all keys of `other`, which are greater.
    pub(super) fn append(&mut self, other: &Keys) {
        let (base, len) = (u32::try_from(self.bytes.len()).unwrap_or(u32::MAX), self.len());
        self.bytes.append(other.bytes.as_slice());
        for at in 0..other.len() {
            self.ends[len + at] = other.ends[at] + base;
        }
        self.len += other.len;
        self.draw_heads();
    }

    /// Finds out again what all keys share. They are sorted, so the first and the last share only what all do.
    fn draw_heads(&mut self) {
        self.stride = 0;
        self.shared = 0;
        let len = self.len();
        self.heads[len..].fill(NO_HEAD);
        if len == 0 {
            return;
        }
        let first = self.ends[0];
        let alike = (1..len).all(|at| self.ends[at] - self.ends[at - 1] == first);
        self.stride = if alike { first } else { 0 };
        self.shared = u32::try_from(shared_len(self.get(0), self.get(len - 1))).unwrap_or(u32::MAX);
        self.prefix = prefix_of(self.get(0));
        for at in 0..len {
            self.heads[at] = head_of(self.get(at), self.shared as usize);
        }
    }

    /// Rough bytes on the heap.
    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.heap_bytes()
    }
}

/// How many of the sorted `heads` are below `head`: first over the last head of every cache line, then within one line. No load
/// waits for another one's value, and nothing is guessed, so a page that is not in any cache costs one miss and not one per step.
#[inline]
fn below(heads: &[u32; FANOUT], head: u32) -> usize {
    const LINE: usize = 16;
    let count =
        |some: &mut dyn Iterator<Item = &u32>| some.map(|one| usize::from(*one < head)).sum::<usize>();
    let lines = count(&mut heads.iter().skip(LINE - 1).step_by(LINE));
    // Where every line is below, the last one is counted whole.
    let begin = lines.min(FANOUT / LINE - 1) * LINE;
    begin + count(&mut heads[begin..begin + LINE].iter())
}

fn shared_len(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

fn head_of(key: &[u8], shared: usize) -> u32 {
    u32::from_be_bytes(padded(key.get(shared..).unwrap_or_default()))
}

fn prefix_of(key: &[u8]) -> u64 {
    u64::from_be_bytes(padded(key))
}

/// The first bytes, with zeros behind what is shorter.
fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk::<N>().copied().unwrap_or_else(|| {
        let mut padded = [0; N];
        padded[..bytes.len()].copy_from_slice(bytes);
        padded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_by_lines_is_counting() {
        for len in 0..=FANOUT {
            let mut heads = [NO_HEAD; FANOUT];
            (0..len).for_each(|at| heads[at] = u32::try_from(at / 3 * 10).unwrap());
            for head in (0..170).chain([u32::MAX]) {
                let plain = heads.iter().filter(|one| **one < head).count();
                assert_eq!(below(&heads, head), plain);
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

    /// Against a plain list: keys of one length and of several, as they come and go.
    #[test]
    fn keys_of_one_length_and_of_several_are_found() {
        let mut random = 7_u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            usize::try_from(random >> 33).unwrap() % below
        };
        for lengths in [1, 2, 9] {
            let (mut keys, mut plain) = (Keys::new(), Vec::<Vec<u8>>::new());
            for _ in 0..20_000 {
                let key: Vec<u8> = (0..3 + next(lengths)).map(|_| u8::try_from(next(4)).unwrap()).collect();
                assert_eq!(keys.find(&key), plain.binary_search(&key));
                assert_eq!(keys.find_exact(&key), plain.binary_search(&key).ok());
                match plain.binary_search(&key) {
                    Ok(at) => {
                        keys.remove(at);
                        plain.remove(at);
                    }
                    Err(at) if plain.len() < FANOUT => {
                        keys.insert(at, &key);
                        plain.insert(at, key);
                    }
                    Err(_) => {
                        let at = next(FANOUT);
                        let right = keys.split_off(at);
                        assert_eq!((0..right.len()).map(|n| right.get(n)).collect::<Vec<_>>(), plain[at..]);
                        if next(2) == 0 { keys.append(&right) } else { plain.truncate(at) }
                    }
                }
                assert_eq!((0..keys.len()).map(|n| keys.get(n)).collect::<Vec<_>>(), plain);
            }
        }
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
