//! What is remembered of a call with an idempotency key, as bytes: which call it was, and how it ended.
//!
//! ```text
//!  0  form          1   1
//!  1  how it ended  1   0 replied, 1 failed after a commit in the middle, 2 not at all: it has committed in the middle
//!  2  flags         1   1: the function has seen the end of its input
//!  3  zero          1
//!  4  content type  4   length
//!  8  call          8   checksum of the function's name and the content type of the input
//! 16  input         8   checksum of the input as far as the function has read it
//! 24  input length  8   of that
//! 32  content type of the reply, then its body; or a failure as JSON
//! ```
//!
//! Numbers are little-endian, checksums CRC-64/NVME. They guard against mistakes, not against malice: whoever knows a key may as well have
//! made the call. What is decoded comes from the process's own state: it is refused if it is malformed, and believed otherwise.

use crc_fast::{CrcAlgorithm, Digest};

const FORM: u8 = 1;
const HEAD_LEN: usize = 32;
const SAW_END: u8 = 1;
const REPLIED: u8 = 0;
const FAILED: u8 = 1;
const BEGUN: u8 = 2;

/// The longest body of a reply, in bytes, that is remembered.
pub(crate) const MAX_REMEMBERED: usize = 1 << 20;

/// Which call it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) call: u64,
    pub(crate) input: u64,
    /// Bytes of input that were read.
    pub(crate) len: u64,
    /// Whether those were all.
    pub(crate) ended: bool,
}

impl Identity {
    /// Whether a call with this whole input is the same.
    pub(crate) fn is_of(&self, call: u64, input: &[u8]) -> bool {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        let fits = if self.ended { input.len() == len } else { input.len() >= len };
        fits && self.call == call && checksum(&input[..len]) == self.input
    }
}

/// The identity of a call whose input is still being read.
#[derive(Debug, Clone)]
pub(crate) struct Fingerprint {
    pub(crate) call: u64,
    input: Digest,
    pub(crate) len: u64,
    ended: bool,
}

impl Fingerprint {
    pub(crate) fn new(function: &str, content_type: &str) -> Fingerprint {
        Fingerprint {
            call: call_checksum(function, content_type),
            input: Digest::new(CrcAlgorithm::Crc64Nvme),
            len: 0,
            ended: false,
        }
    }

    /// These bytes of the input were read; none: its end was.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        self.input.update(bytes);
        self.len += bytes.len() as u64;
        self.ended |= bytes.is_empty();
    }

    /// The whole input is this.
    pub(crate) fn read_whole(&mut self, bytes: &[u8]) {
        self.read(bytes);
        self.ended = true;
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity { call: self.call, input: self.input.finalize(), len: self.len, ended: self.ended }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End<'a> {
    Replied {
        content_type: &'a str,
        body: &'a [u8],
    },
    /// JSON.
    Failed(&'a [u8]),
    /// It has not, as far as anybody knows: it is a part of its first commit in the middle, and its end takes its place.
    Begun,
}

/// What is remembered of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) of: Identity,
    pub(crate) end: End<'a>,
}

impl<'a> Record<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (how, content_type, rest) = match self.end {
            End::Replied { content_type, body } => (REPLIED, content_type, body),
            End::Failed(failure) => (FAILED, "", failure),
            End::Begun => (BEGUN, "", &[][..]),
        };
        let mut bytes = Vec::with_capacity(HEAD_LEN + content_type.len() + rest.len());
        bytes.extend_from_slice(&[FORM, how, u8::from(self.of.ended) * SAW_END, 0]);
        bytes.extend_from_slice(&u32::try_from(content_type.len()).unwrap_or(0).to_le_bytes());
        for number in [self.of.call, self.of.input, self.of.len] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(content_type.as_bytes());
        bytes.extend_from_slice(rest);
        bytes
    }

    /// `None` for bytes that nobody encodes.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Record<'a>> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_LEN>()?;
        let (form, numbers) = head.split_first_chunk::<8>()?;
        let [FORM, how, flags @ 0..=SAW_END, 0, len @ ..] = *form else { return None };
        let number = |at: usize| Some(u64::from_le_bytes(numbers.get(at * 8..)?.first_chunk().copied()?));
        let of = Identity { call: number(0)?, input: number(1)?, len: number(2)?, ended: flags == SAW_END };
        let len = usize::try_from(u32::from_le_bytes(len)).ok()?;
        let (content_type, rest) = rest.split_at_checked(len)?;
        let end = match how {
            REPLIED => End::Replied { content_type: std::str::from_utf8(content_type).ok()?, body: rest },
            FAILED if content_type.is_empty() => End::Failed(rest),
            BEGUN if content_type.is_empty() && rest.is_empty() => End::Begun,
            _ => return None,
        };
        Some(Record { of, end })
    }
}

fn call_checksum(function: &str, content_type: &str) -> u64 {
    // No name has a zero byte.
    checksum(&[function.as_bytes(), b"\0", content_type.as_bytes()].concat())
}

fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::crc64_nvme(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Identity {
        let mut print = Fingerprint::new("pay", "text/plain");
        print.read(b"one ");
        print.read(b"two");
        print.identity()
    }

    #[test]
    fn records_come_back_and_cut_ones_are_refused() {
        let ends = [
            End::Replied { content_type: "application/json", body: b"{}" },
            End::Replied { content_type: "", body: b"" },
            End::Failed(b"{\"kind\":\"failed\"}"),
            End::Begun,
        ];
        for end in ends {
            let record = Record { of: some(), end };
            let bytes = record.encode();
            assert_eq!(Record::decode(&bytes), Some(record));
            for cut in 0..HEAD_LEN {
                assert_eq!(Record::decode(&bytes[..cut]), None, "{cut}");
            }
        }
        let bytes = Record { of: some(), end: ends[0] }.encode();
        assert_eq!(Record::decode(&bytes[..HEAD_LEN + 15]), None, "half a content type");
        for (at, byte) in [(0, 2), (1, 2), (1, 3), (2, 2), (3, 1), (7, 1)] {
            let mut other = bytes.clone();
            other[at] = byte;
            assert_eq!(Record::decode(&other), None, "byte {at}");
        }
    }

    #[test]
    fn what_differs_is_another_call() {
        let open = some();
        let of = |function, content_type| Fingerprint::new(function, content_type).call;
        let call = of("pay", "text/plain");
        assert!(open.is_of(call, b"one two") && open.is_of(call, b"one two three"));
        assert!(!open.is_of(call, b"one tw") && !open.is_of(call, b"one twX"));
        let ended = Identity { ended: true, ..open };
        assert!(ended.is_of(call, b"one two") && !ended.is_of(call, b"one two three"));
        for other in [of("pay", "text/html"), of("repay", "text/plain"), of("paytext", "/plain")] {
            assert!(!ended.is_of(other, b"one two"));
        }
    }

    #[test]
    fn the_end_of_an_input_is_seen_once_nothing_more_is_read() {
        let mut print = Fingerprint::new("f", "");
        print.read(b"ab");
        assert!(!print.identity().ended);
        print.read(b"");
        assert!(print.identity().ended);
        let mut whole = Fingerprint::new("f", "");
        whole.read_whole(b"ab");
        assert_eq!(whole.identity(), print.identity());
    }
}
