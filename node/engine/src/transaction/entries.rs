//! The changes of one table, in the order of their keys. Most transactions change one key, and that takes no tree.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::{Bound, Deref};

use super::writes::Write;

/// A key that takes no memory of its own while it is short.
#[derive(Debug)]
pub(crate) enum Key {
    Short(u8, [u8; SHORT_LEN]),
    Long(Box<[u8]>),
}

/// As long as makes it no larger than it would be anyway.
const SHORT_LEN: usize = 22;

impl From<&[u8]> for Key {
    fn from(key: &[u8]) -> Key {
        match u8::try_from(key.len()) {
            Ok(len) if key.len() <= SHORT_LEN => {
                let mut bytes = [0; SHORT_LEN];
                bytes[..key.len()].copy_from_slice(key);
                Key::Short(len, bytes)
            }
            _ => Key::Long(key.into()),
        }
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Key::Short(len, bytes) => &bytes[..usize::from(*len)],
            Key::Long(key) => key,
        }
    }
}

// By its bytes, however they are kept: what `Borrow` asks for.
impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        **self == **other
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Key) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Key) -> Ordering {
        (**self).cmp(&**other)
    }
}

#[derive(Debug, Default)]
pub(crate) enum Entries {
    #[default]
    None,
    One(Key, Write),
    Many(BTreeMap<Key, Write>),
}

impl Entries {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Entries::None)
    }

    #[inline]
    pub(crate) fn get(&self, key: &[u8]) -> Option<&Write> {
        match self {
            Entries::None => None,
            Entries::One(one, write) => (**one == *key).then_some(write),
            Entries::Many(many) => many.get(key),
        }
    }

    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut Write> {
        match self {
            Entries::None => None,
            Entries::One(one, write) => (**one == *key).then_some(write),
            Entries::Many(many) => many.get_mut(key),
        }
    }

    /// Sets what happens to a key; returns what was to happen.
    pub(crate) fn insert(&mut self, key: &[u8], write: Write) -> Option<Write> {
        if let Some(place) = self.get_mut(key) {
            return Some(std::mem::replace(place, write));
        }
        *self = match std::mem::take(self) {
            Entries::None => Entries::One(key.into(), write),
            Entries::One(one, before) => Entries::Many([(one, before), (key.into(), write)].into()),
            Entries::Many(mut many) => {
                many.insert(key.into(), write);
                Entries::Many(many)
            }
        };
        None
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &Write)> {
        self.from(Bound::Unbounded)
    }

    /// Those at or behind `from`.
    pub(crate) fn from<'a>(&'a self, from: Bound<&'a [u8]>) -> impl Iterator<Item = (&'a [u8], &'a Write)> {
        let (one, many) = match self {
            Entries::None => (None, None),
            Entries::One(key, write) => (Some((key, write)), None),
            Entries::Many(many) => (None, Some(many.range::<[u8], _>((from, Bound::Unbounded)))),
        };
        let inside = move |key: &[u8]| match from {
            Bound::Included(from) => key >= from,
            Bound::Excluded(from) => key > from,
            Bound::Unbounded => true,
        };
        let one = one.into_iter().filter(move |(key, _)| inside(key));
        one.chain(many.into_iter().flatten()).map(|(key, write)| (&**key, write))
    }

    /// Takes all out, one by one.
    pub(crate) fn drain(&mut self, mut take: impl FnMut(Write)) {
        match std::mem::take(self) {
            Entries::None => {}
            Entries::One(_, write) => take(write),
            Entries::Many(many) => many.into_values().for_each(take),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::writes::{Change, Seen};
    use super::*;

    fn write(version: u64) -> Write {
        Write { seen: Seen { version, cost: 0 }, change: Change::Keep }
    }

    /// Against a plain map, with keys that are short and keys that are not.
    #[test]
    fn entries_are_an_ordered_map() {
        for count in 0..4_u8 {
            let (mut entries, mut plain) = (Entries::default(), BTreeMap::new());
            for round in 0..2_u8 {
                for n in (0..count).rev() {
                    let key = vec![b'k'; SHORT_LEN - 1 + usize::from(n)];
                    let version = u64::from(round * 10 + n);
                    let before = entries.insert(&key, write(version)).map(|write| write.seen.version);
                    assert_eq!(before, plain.insert(key, version));
                }
            }
            let all = |from: Bound<&[u8]>| -> Vec<(Vec<u8>, u64)> {
                entries.from(from).map(|(key, write)| (key.to_vec(), write.seen.version)).collect()
            };
            let long = [b'k'; SHORT_LEN];
            for from in [Bound::Unbounded, Bound::Included(&long[..]), Bound::Excluded(&long[..])] {
                let range = plain.range::<[u8], _>((from, Bound::Unbounded));
                assert_eq!(
                    all(from),
                    range.map(|(key, version)| (key.clone(), *version)).collect::<Vec<_>>()
                );
            }
            assert_eq!(entries.get(&long).map(|write| write.seen.version), plain.get(&long[..]).copied());
            let mut drained = 0;
            entries.drain(|_| drained += 1);
            assert_eq!((drained, entries.is_empty()), (plain.len(), true));
        }
    }
}
