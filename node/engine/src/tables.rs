//! The tables of a process's state, and how the entries of those that the host keeps are written.
//!
//! Objects are the tenant's. Four others are what an invocation leaves behind beside them, in the same commit: consumption watermarks,
//! sent messages, timers, remembered replies. The last one holds what was captured of the process's files (`files`). All are the same
//! ordered maps of bytes; this module gives the four their types.
//! Decoders take bytes that a checksum vouched for but a sandbox wrote: they refuse, they never panic.

use crate::StateError;
use crate::format::{Fields, MAX_KEY_LEN};

/// A table of the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// What functions store.
    Objects = 0,
    /// How far the messages of each (source, key) are consumed.
    Consumed = 1,
    /// Messages that were sent and not acknowledged.
    Sent = 2,
    /// Timers that are set.
    Timers = 3,
    /// Replies that are remembered for callers that ask again.
    Replies = 4,
    /// Files and their parts.
    Files = 5,
}

impl Table {
    /// All tables.
    pub const ALL: [Table; TABLES] =
        [Table::Objects, Table::Consumed, Table::Sent, Table::Timers, Table::Replies, Table::Files];

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// How many tables there are.
pub(crate) const TABLES: usize = 6;

/// How far messages of one source and key are consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumption {
    /// Which life of the source counted.
    pub incarnation: u64,
    /// Number of the last message that was consumed.
    pub sequence: u64,
}

/// Identity of a sent message within this process: ordered as they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    /// Number of the commit that sent it; `u64::MAX` while that commit is not made.
    pub commit: u64,
    /// Which message of that commit, from 0.
    pub index: u32,
}

/// A sent message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Which process it is for, as the host writes it.
    pub destination: &'a [u8],
    /// The key it is received by.
    pub key: &'a [u8],
    /// What it carries.
    pub payload: &'a [u8],
}

/// Identity of a timer: ordered by when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimerId {
    /// When it is due, in milliseconds since 1970.
    pub due_ms: u64,
    /// Number of the commit that set it; `u64::MAX` while that commit is not made.
    pub commit: u64,
    /// Which timer of that commit, from 0.
    pub index: u32,
}

/// What a timer calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer<'a> {
    /// Function to call.
    pub function: &'a [u8],
    /// Its argument.
    pub argument: &'a [u8],
}

/// A remembered reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    /// It may be forgotten from then on, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The reply as the host wrote it.
    pub reply: &'a [u8],
}

/// Keys of entries whose identity holds the number of the commit that makes them: their last [`STAMP_LEN`] bytes are (commit, index),
/// and the commit is filled in when it is known.
pub(crate) const STAMP_LEN: usize = 12;

/// Stands for the commit that is not made yet; sorts last.
pub(crate) const UNSTAMPED: u64 = u64::MAX;

impl MessageId {
    pub(crate) fn key(self) -> [u8; STAMP_LEN] {
        let mut key = [0; STAMP_LEN];
        key[..8].copy_from_slice(&self.commit.to_be_bytes());
        key[8..].copy_from_slice(&self.index.to_be_bytes());
        key
    }

    pub(crate) fn from_key(key: &[u8]) -> Option<MessageId> {
        let key: &[u8; STAMP_LEN] = key.try_into().ok()?;
        let (commit, index) = key.split_first_chunk::<8>()?;
        Some(MessageId {
            commit: u64::from_be_bytes(*commit),
            index: u32::from_be_bytes(index.try_into().ok()?),
        })
    }
}

impl TimerId {
    pub(crate) fn key(self) -> [u8; 8 + STAMP_LEN] {
        let mut key = [0; 8 + STAMP_LEN];
        key[..8].copy_from_slice(&self.due_ms.to_be_bytes());
        key[8..].copy_from_slice(&MessageId { commit: self.commit, index: self.index }.key());
        key
    }

    pub(crate) fn from_key(key: &[u8]) -> Option<TimerId> {
        let (due, stamp) = key.split_first_chunk::<8>()?;
        let MessageId { commit, index } = MessageId::from_key(stamp)?;
        Some(TimerId { due_ms: u64::from_be_bytes(*due), commit, index })
    }
}

impl Consumption {
    pub(crate) fn encode(self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.incarnation.to_le_bytes());
        value[8..].copy_from_slice(&self.sequence.to_le_bytes());
        value
    }

    pub(crate) fn decode(value: &[u8]) -> Option<Consumption> {
        let mut fields = Fields(<&[u8; 16]>::try_from(value).ok()?);
        Some(Consumption { incarnation: fields.u64(), sequence: fields.u64() })
    }
}

/// The key of a (source, key) pair; the length of the source goes first, so that no two pairs share one.
pub(crate) fn consumption_key(source: &[u8], key: &[u8]) -> Result<Vec<u8>, StateError> {
    let len = 2 + source.len() + key.len();
    let source_len = u16::try_from(source.len()).ok().filter(|_| len <= MAX_KEY_LEN);
    let source_len = source_len.ok_or(StateError::KeyTooLong { len })?;
    Ok([&source_len.to_be_bytes(), source, key].concat())
}

/// The source and key of a consumption's key.
pub(crate) fn consumption_of(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = key.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*len)))
}

impl<'a> Message<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        join(&[self.destination, self.key, self.payload])
    }

    pub(crate) fn decode(value: &'a [u8]) -> Option<Message<'a>> {
        let [destination, key, payload] = split(value)?;
        Some(Message { destination, key, payload })
    }
}

impl<'a> Timer<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        join(&[self.function, self.argument])
    }

    pub(crate) fn decode(value: &'a [u8]) -> Option<Timer<'a>> {
        let [function, argument] = split(value)?;
        Some(Timer { function, argument })
    }
}

impl<'a> Reply<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        [&self.expires_ms.to_le_bytes(), self.reply].concat()
    }

    /// Length of an encoded entry whose reply is so long, in bytes.
    pub(crate) fn encoded_len(reply_len: usize) -> u64 {
        8 + reply_len as u64
    }

    pub(crate) fn decode(value: &'a [u8]) -> Option<Reply<'a>> {
        let (expires, reply) = value.split_first_chunk::<8>()?;
        Some(Reply { expires_ms: u64::from_le_bytes(*expires), reply })
    }
}

fn join(fields: &[&[u8]]) -> Vec<u8> {
    let mut value = Vec::with_capacity(fields.iter().map(|field| field.len() + 8).sum());
    for field in fields {
        value.extend_from_slice(&(field.len() as u64).to_le_bytes());
        value.extend_from_slice(field);
    }
    value
}

fn split<const N: usize>(mut value: &[u8]) -> Option<[&[u8]; N]> {
    let mut fields = [[].as_slice(); N];
    for field in &mut fields {
        let (len, rest) = value.split_first_chunk::<8>()?;
        (*field, value) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    }
    value.is_empty().then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back() {
        let message = Message { destination: b"app/b", key: b"", payload: b"hello" };
        assert_eq!(Message::decode(&message.encode()), Some(message));
        let timer = Timer { function: b"tick", argument: b"" };
        assert_eq!(Timer::decode(&timer.encode()), Some(timer));
        let reply = Reply { expires_ms: 77, reply: b"ok" };
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        let seen = Consumption { incarnation: 3, sequence: 9 };
        assert_eq!(Consumption::decode(&seen.encode()), Some(seen));
        let key = consumption_key(b"from", b"k").unwrap();
        assert_eq!(consumption_of(&key), Some((b"from".as_slice(), b"k".as_slice())));
        let timer = TimerId { due_ms: 5, commit: 6, index: 7 };
        assert_eq!(TimerId::from_key(&timer.key()), Some(timer));
    }

    #[test]
    fn cut_entries_are_refused() {
        let whole = Message { destination: b"app/b", key: b"k", payload: b"hello" }.encode();
        for len in 0..whole.len() {
            assert_eq!(Message::decode(&whole[..len]), None, "{len}");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        assert_eq!(Message::decode(&longer), None);
    }

    #[test]
    fn timers_sort_by_when_they_are_due() {
        let soon = TimerId { due_ms: 1, commit: UNSTAMPED, index: 9 };
        let later = TimerId { due_ms: 256, commit: 1, index: 0 };
        assert!(soon.key() < later.key());
    }
}
