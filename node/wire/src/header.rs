//! The fixed header of a frame, its limits, and who may send what.
//!
//! Everything that can be refused from the header alone is refused here, before a byte of payload is read or a byte of memory is
//! allocated for it.

use crate::direct::{MAX_CALLER_PAYLOAD, is_direct};
use crate::{MAX_INVOCATION_ID, WireError};

/// Length of an encoded [`Header`] in bytes.
pub const HEADER_LEN: usize = 32;
/// The most payload, in bytes, of a frame that carries body bytes or a log line.
pub const MAX_FRAME_PAYLOAD: usize = 64 << 10;
/// The most payload, in bytes, of a frame that carries a JSON document.
pub const MAX_CONTROL_PAYLOAD: usize = 1 << 20;
/// Body bytes that may be under way, unreturned, per invocation and direction.
pub const WINDOW: usize = 256 << 10;
/// The last frame of its direction: no more body bytes follow.
pub const FLAG_END: u8 = 1;
/// Of a `Reply`: remembered from an earlier call with the same idempotency key. Its commit may be an old one.
pub const FLAG_REPLAYED: u8 = 2;
/// `Invoke.c` where the caller did not say how long its body is.
pub const LENGTH_UNKNOWN: u64 = u64::MAX;

/// Which end of the socket sent a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The agent: our code, trusted by the runner.
    Agent,
    /// The runner: shares memory with tenant code, believed by nobody.
    Runner,
}

/// What a frame is about. The numbers are the wire's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Agent: what this sandbox is to be. Once, first; JSON [`Assignment`](crate::Assignment). The segments that it announces follow it
    /// directly.
    Assign = 1,
    /// Agent: begin an invocation. `a` function index or a [`Builtin`](crate::Builtin), `b` deadline in ms from now (0: none), `c`
    /// declared body length or [`LENGTH_UNKNOWN`], `code` the [`Durability`](crate::Durability) that the reply is to have.
    Invoke = 2,
    /// Agent: more input.
    Data = 3,
    /// Agent: the reply is no longer wanted. `code` is a [`CancelReason`].
    Cancel = 4,
    /// Agent: finish what runs, start nothing, park each direct connection, answer `Drained`, exit. `code` is a
    /// [`DrainCause`](crate::DrainCause).
    Drain = 5,
    /// Either: `a` body bytes of the other direction were passed on.
    Credit = 6,
    /// Agent: the input broke off and will never be complete.
    AbortInput = 7,
    /// Agent: a segment of the state. `c` its number, `a` what it is for ([`SegmentUse`]). Exactly two descriptors,
    /// `[read-write, read-only]`, ride on its first byte: one `sendmsg` for each such frame.
    Segment = 8,
    /// Agent: the spare that was asked for cannot be had. `code` is a [`SpareRefusal`].
    SpareRefused = 9,
    /// Agent: say when a commit is durable. `c` commit, `code` the [`Durability`](crate::Durability); answered with `Durable` or `Fail`.
    /// The id is of the same numbers as those of invocations.
    Sync = 10,
    /// Agent: a connection is yours. The id is its number, never used again in the same sandbox; `a` its slot in the ring; the payload an
    /// [`AtRest`](crate::AtRest).
    Caller = 11,
    /// Agent: how busy are you with direct calls? Answered with a `Census`.
    AskCensus = 12,
    /// Agent: the token of a connection expires in `b` ms. Its client is to be told, no further call is accepted on it, and it ends with
    /// the last that runs. The id is its number; it may have ended already.
    CallerExpires = 13,
    /// Runner: loaded and serving; JSON [`Declarations`](crate::Declarations).
    Ready = 32,
    /// Runner: cannot serve and is about to exit; JSON [`LoadFailure`](crate::LoadFailure).
    Refused = 33,
    /// Runner: the function succeeded, or began to stream. `c` commit number, `b` the [`Durability`](crate::Durability) that it has
    /// reached. In a streamed reply both are as when streaming began; the frame with the end flag has the final ones.
    Reply = 34,
    /// Runner: more reply. `c` and `b` on the end frame are the commit that the reply rests on and how durable it is.
    ReplyData = 35,
    /// Runner: the invocation failed; ends it even after part of a reply. `c` last commit; JSON [`Failure`](crate::Failure).
    Fail = 36,
    /// Runner: one line of the function's log. `code` is the level (0 error, 1 warn, 2 info, 3 debug); id 0 where no call is known.
    LogLine = 37,
    /// Runner: nothing runs any more and nothing will. `c` last commit, `b` the [`Durability`](crate::Durability) that it has, `a` what
    /// became of the files in `/state` ([`LastCapture`](crate::LastCapture)).
    Drained = 38,
    /// Runner: a spare segment of at least `c` bytes is wanted. Answered with a `Segment` or a `SpareRefused`, in the order of asking.
    WantSpare = 39,
    /// Runner: segment `c` may be deleted, for ever; that is durable.
    Retired = 40,
    /// Runner: commit `c`, at least the one that was asked for, has the level that was asked for.
    Durable = 41,
    /// Runner: the state holds `c` live bytes; sent when that has changed notably, and before `Drained`.
    StateNews = 42,
    /// Runner: a connection has ended, and is not touched any more. `a` its slot, `code` a [`CallerEnd`](crate::CallerEnd).
    CallerDone = 43,
    /// Runner, while it drains: a connection that goes on in another sandbox, and is not touched any more. `c` bytes that were taken off
    /// its socket since the `Caller` frame, `b` ms ago the last of them or of what it took; the payload an [`AtRest`](crate::AtRest).
    CallerParked = 44,
    /// Runner: `c` direct calls were accepted so far, `a` are in flight, on `b` connections.
    Census = 45,
    /// Runner: a direct call has run, or waited, for a while. The id is its number ([`direct_id`](crate::direct_id)), `a` the low 32 bits
    /// of its connection's number, `b` ms until its deadline, at least 1; the payload names the invocation.
    Overrun = 46,
    /// Runner: the direct call of this number, of which there was an `Overrun`, has ended.
    Finished = 47,
}

impl Kind {
    /// The kind with this number on the wire.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Assign,
            2 => Kind::Invoke,
            3 => Kind::Data,
            4 => Kind::Cancel,
            5 => Kind::Drain,
            6 => Kind::Credit,
            7 => Kind::AbortInput,
            8 => Kind::Segment,
            9 => Kind::SpareRefused,
            10 => Kind::Sync,
            11 => Kind::Caller,
            12 => Kind::AskCensus,
            13 => Kind::CallerExpires,
            32 => Kind::Ready,
            33 => Kind::Refused,
            34 => Kind::Reply,
            35 => Kind::ReplyData,
            36 => Kind::Fail,
            37 => Kind::LogLine,
            38 => Kind::Drained,
            39 => Kind::WantSpare,
            40 => Kind::Retired,
            41 => Kind::Durable,
            42 => Kind::StateNews,
            43 => Kind::CallerDone,
            44 => Kind::CallerParked,
            45 => Kind::Census,
            46 => Kind::Overrun,
            47 => Kind::Finished,
            _ => return None,
        })
    }

    /// The most payload, in bytes, that a frame of this kind can have.
    pub const fn max_payload(self) -> usize {
        match self {
            Kind::Assign | Kind::Ready | Kind::Refused | Kind::Fail => MAX_CONTROL_PAYLOAD,
            Kind::Invoke | Kind::Data | Kind::Reply | Kind::ReplyData | Kind::LogLine => MAX_FRAME_PAYLOAD,
            Kind::Caller | Kind::CallerParked => MAX_CALLER_PAYLOAD,
            Kind::Overrun => MAX_INVOCATION_ID,
            Kind::Cancel
            | Kind::Drain
            | Kind::Credit
            | Kind::AbortInput
            | Kind::Segment
            | Kind::SpareRefused
            | Kind::Sync
            | Kind::Drained
            | Kind::WantSpare
            | Kind::Retired
            | Kind::Durable
            | Kind::StateNews
            | Kind::AskCensus
            | Kind::CallerExpires
            | Kind::CallerDone
            | Kind::Census
            | Kind::Finished => 0,
        }
    }

    /// Whether `sender` is entitled to send this kind.
    pub const fn may_come_from(self, sender: Sender) -> bool {
        match self {
            Kind::Credit => true,
            Kind::Assign
            | Kind::Invoke
            | Kind::Data
            | Kind::Cancel
            | Kind::Drain
            | Kind::AbortInput
            | Kind::Segment
            | Kind::SpareRefused
            | Kind::Sync
            | Kind::Caller
            | Kind::AskCensus
            | Kind::CallerExpires => matches!(sender, Sender::Agent),
            _ => matches!(sender, Sender::Runner),
        }
    }

    /// The flags that a frame of this kind may have.
    const fn flags(self) -> u8 {
        match self {
            Kind::Reply => FLAG_END | FLAG_REPLAYED,
            Kind::Invoke | Kind::Data | Kind::ReplyData => FLAG_END,
            _ => 0,
        }
    }

    const fn id_is_plausible(self, id: u64) -> bool {
        match self {
            Kind::LogLine => true,
            Kind::Assign
            | Kind::Drain
            | Kind::Segment
            | Kind::SpareRefused
            | Kind::Ready
            | Kind::Refused
            | Kind::Drained
            | Kind::WantSpare
            | Kind::Retired
            | Kind::StateNews
            | Kind::AskCensus
            | Kind::Census => id == 0,
            Kind::Overrun | Kind::Finished => is_direct(id),
            _ => id != 0,
        }
    }
}

/// Why the agent no longer wants a reply: `code` of a `Cancel` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum CancelReason {
    /// The deadline of the call passed.
    Deadline = 0,
    /// The caller went away.
    CallerGone = 1,
}

impl CancelReason {
    /// Reads the `code` of a `Cancel` frame; what is unknown counts as a caller that went away.
    pub fn from_code(code: u16) -> CancelReason {
        if code == CancelReason::Deadline as u16 { CancelReason::Deadline } else { CancelReason::CallerGone }
    }
}

/// What a segment is for: `a` of a `Segment` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SegmentUse {
    /// It is part of the log that there was.
    Log = 0,
    /// It is blank, for the log to go on in.
    Spare = 1,
}

impl SegmentUse {
    /// From the number on the wire.
    pub fn from_number(number: u32) -> Option<SegmentUse> {
        [SegmentUse::Log, SegmentUse::Spare].into_iter().find(|one| *one as u32 == number)
    }
}

/// Why there is no spare: `code` of a `SpareRefused` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum SpareRefusal {
    /// The node's disk is full.
    DiskFull = 0,
    /// The segments of the process would take more than it may have.
    OverLimit = 1,
    /// The node could not make one.
    Failed = 2,
}

impl SpareRefusal {
    /// Reads the `code` of a `SpareRefused` frame; what is unknown counts as a failure of the node.
    pub fn from_code(code: u16) -> SpareRefusal {
        [SpareRefusal::DiskFull, SpareRefusal::OverLimit]
            .into_iter()
            .find(|one| *one as u16 == code)
            .unwrap_or(SpareRefusal::Failed)
    }
}

/// The fixed part of a frame: 32 bytes, little-endian, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of payload that follow.
    pub payload_len: u32,
    /// What the frame is.
    pub kind: Kind,
    /// [`FLAG_END`], and in a `Reply` [`FLAG_REPLAYED`].
    pub flags: u8,
    /// A small number whose meaning depends on `kind`.
    pub code: u16,
    /// The invocation, chosen by the agent and never used again in the same sandbox; 0 is the connection itself.
    pub id: u64,
    /// Depends on `kind`.
    pub a: u32,
    /// Depends on `kind`.
    pub b: u32,
    /// Depends on `kind`.
    pub c: u64,
}

impl Header {
    /// A header of `kind` about `id`, everything else zero.
    pub const fn new(kind: Kind, id: u64) -> Header {
        Header { payload_len: 0, kind, flags: 0, code: 0, id, a: 0, b: 0, c: 0 }
    }

    /// The same with the length of its payload.
    ///
    /// # Panics
    /// When `len` is over [`Kind::max_payload`]: the caller is our own code and cuts its payloads.
    #[must_use]
    pub const fn with_payload(mut self, len: usize) -> Header {
        assert!(
            len <= self.kind.max_payload(),
            "a payload must be cut to the limit of its kind before it is sent"
        );
        #[expect(clippy::cast_possible_truncation, reason = "at most MAX_CONTROL_PAYLOAD, just checked")]
        {
            self.payload_len = len as u32;
        }
        self
    }

    /// The same with the end flag set or cleared.
    #[must_use]
    pub const fn with_end(mut self, end: bool) -> Header {
        self.flags = (self.flags & !FLAG_END) | if end { FLAG_END } else { 0 };
        self
    }

    /// The same with the flag of a remembered reply set or cleared.
    #[must_use]
    pub const fn with_replayed(mut self, replayed: bool) -> Header {
        self.flags = (self.flags & !FLAG_REPLAYED) | if replayed { FLAG_REPLAYED } else { 0 };
        self
    }

    /// Whether this begins a remembered reply.
    pub const fn is_replayed(&self) -> bool {
        self.flags & FLAG_REPLAYED != 0
    }

    /// Whether this is the last frame of its direction.
    pub const fn is_end(&self) -> bool {
        self.flags & FLAG_END != 0
    }

    /// Payload length in bytes.
    pub const fn len(&self) -> usize {
        self.payload_len as usize
    }

    /// Whether the frame has no payload.
    pub const fn is_empty(&self) -> bool {
        self.payload_len == 0
    }

    /// The 32 bytes on the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..4].copy_from_slice(&self.payload_len.to_le_bytes());
        out[4] = self.kind as u8;
        out[5] = self.flags;
        out[6..8].copy_from_slice(&self.code.to_le_bytes());
        out[8..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..20].copy_from_slice(&self.a.to_le_bytes());
        out[20..24].copy_from_slice(&self.b.to_le_bytes());
        out[24..32].copy_from_slice(&self.c.to_le_bytes());
        out
    }

    /// Reads and checks a header: kind, flags, length limit, id.
    ///
    /// # Errors
    /// [`WireError`] for anything that no end of this protocol would send. Who sent it is for [`Header::decode_from`].
    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Header, WireError> {
        let kind = Kind::from_byte(bytes[4]).ok_or(WireError::UnknownKind(bytes[4]))?;
        let header = Header {
            payload_len: u32_at(bytes, 0),
            kind,
            flags: bytes[5],
            code: u16::from_le_bytes([bytes[6], bytes[7]]),
            id: u64_at(bytes, 8),
            a: u32_at(bytes, 16),
            b: u32_at(bytes, 20),
            c: u64_at(bytes, 24),
        };
        header.check()?;
        Ok(header)
    }

    /// [`Header::decode`], and refuses a kind that `sender` is not entitled to send.
    ///
    /// # Errors
    /// As [`Header::decode`], and [`WireError::WrongDirection`].
    pub fn decode_from(sender: Sender, bytes: &[u8; HEADER_LEN]) -> Result<Header, WireError> {
        let header = Header::decode(bytes)?;
        if !header.kind.may_come_from(sender) {
            return Err(WireError::WrongDirection(header.kind));
        }
        Ok(header)
    }

    fn check(&self) -> Result<(), WireError> {
        let kind = self.kind;
        if self.flags & !kind.flags() != 0 {
            return Err(WireError::BadFlags { kind, flags: self.flags });
        }
        if self.len() > kind.max_payload() {
            return Err(WireError::TooLong { kind, len: self.len(), max: kind.max_payload() });
        }
        if !kind.id_is_plausible(self.id) {
            return Err(WireError::BadId { kind, id: self.id });
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Kind; 29] = [
        Kind::Assign,
        Kind::Invoke,
        Kind::Data,
        Kind::Cancel,
        Kind::Drain,
        Kind::Credit,
        Kind::AbortInput,
        Kind::Ready,
        Kind::Refused,
        Kind::Reply,
        Kind::ReplyData,
        Kind::Fail,
        Kind::LogLine,
        Kind::Drained,
        Kind::Segment,
        Kind::SpareRefused,
        Kind::Sync,
        Kind::WantSpare,
        Kind::Retired,
        Kind::Durable,
        Kind::StateNews,
        Kind::Caller,
        Kind::AskCensus,
        Kind::CallerExpires,
        Kind::CallerDone,
        Kind::CallerParked,
        Kind::Census,
        Kind::Overrun,
        Kind::Finished,
    ];

    fn some_id(kind: Kind) -> u64 {
        [7, crate::direct_id(7)].into_iter().find(|id| kind.id_is_plausible(*id)).unwrap_or(0)
    }

    #[test]
    fn layout_is_what_the_document_says() {
        let header = Header {
            payload_len: 0x0403,
            kind: Kind::Invoke,
            flags: FLAG_END,
            code: 0x0201,
            id: 0x1122_3344_5566_7788,
            a: 0xA1A2_A3A4,
            b: 0xB1B2_B3B4,
            c: 0xC1C2_C3C4_C5C6_C7C8,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..8], [0x03, 0x04, 0, 0, 2, 1, 0x01, 0x02]);
        assert_eq!(bytes[8..16], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[16..24], [0xA4, 0xA3, 0xA2, 0xA1, 0xB4, 0xB3, 0xB2, 0xB1]);
        assert_eq!(bytes[24..], [0xC8, 0xC7, 0xC6, 0xC5, 0xC4, 0xC3, 0xC2, 0xC1]);
        assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn every_kind_round_trips_at_its_limit_and_not_above() {
        for kind in ALL {
            let header = Header::new(kind, some_id(kind)).with_payload(kind.max_payload());
            let mut bytes = header.encode();
            assert_eq!(Header::decode(&bytes), Ok(header), "{kind:?}");
            bytes[..4].copy_from_slice(&(header.payload_len + 1).to_le_bytes());
            assert!(matches!(Header::decode(&bytes), Err(WireError::TooLong { .. })), "{kind:?}");
            bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert!(matches!(Header::decode(&bytes), Err(WireError::TooLong { .. })), "{kind:?}");
        }
    }

    #[test]
    fn only_the_numbers_of_the_table_are_kinds() {
        for byte in 0..=255 {
            let known = ALL.iter().find(|kind| **kind as u8 == byte).copied();
            assert_eq!(Kind::from_byte(byte), known);
            let mut bytes = Header::new(Kind::Credit, 1).encode();
            bytes[4] = byte;
            if known.is_none() {
                assert_eq!(Header::decode(&bytes), Err(WireError::UnknownKind(byte)));
            }
        }
    }

    #[test]
    fn flags_and_ids_are_checked_for_each_kind() {
        for kind in ALL {
            let plain = Header::new(kind, some_id(kind));
            for flags in 1..=255 {
                let mut bytes = plain.encode();
                bytes[5] = flags;
                let accepted = Header::decode(&bytes).is_ok();
                assert_eq!(accepted, flags & !kind.flags() == 0, "{kind:?} {flags}");
            }
            let mut other = plain;
            other.id = if plain.id == 0 { 1 } else { 0 };
            let accepted = Header::decode(&other.encode()).is_ok();
            assert_eq!(accepted, kind == Kind::LogLine, "{kind:?} with id {}", other.id);
        }
    }

    #[test]
    fn each_kind_belongs_to_one_end_except_credit() {
        for kind in ALL {
            let bytes = Header::new(kind, some_id(kind)).encode();
            let agent = Header::decode_from(Sender::Agent, &bytes).is_ok();
            let runner = Header::decode_from(Sender::Runner, &bytes).is_ok();
            assert_eq!(agent && runner, kind == Kind::Credit, "{kind:?}");
            assert!(agent || runner);
        }
        let ready = Header::new(Kind::Ready, 0).encode();
        assert_eq!(Header::decode_from(Sender::Agent, &ready), Err(WireError::WrongDirection(Kind::Ready)));
    }

    #[test]
    fn random_headers_never_panic_and_what_is_accepted_encodes_back() {
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..200_000 {
            let mut bytes = [0u8; HEADER_LEN];
            for chunk in bytes.chunks_mut(8) {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                chunk.copy_from_slice(&seed.to_le_bytes());
            }
            bytes[4] %= 50;
            bytes[5] %= 3;
            bytes[2] = 0;
            bytes[3] = 0;
            if let Ok(header) = Header::decode(&bytes) {
                assert_eq!(header.encode(), bytes);
                assert!(header.len() <= header.kind.max_payload());
            }
        }
    }

    #[test]
    #[should_panic(expected = "cut to the limit")]
    fn our_own_oversized_payload_is_a_bug_and_says_so() {
        let _ = Header::new(Kind::Data, 1).with_payload(MAX_FRAME_PAYLOAD + 1);
    }

    #[test]
    fn cancel_reasons() {
        assert_eq!(CancelReason::from_code(0), CancelReason::Deadline);
        assert_eq!(CancelReason::from_code(1), CancelReason::CallerGone);
        assert_eq!(CancelReason::from_code(9), CancelReason::CallerGone);
    }

    #[test]
    fn uses_and_refusals_of_segments() {
        assert_eq!(SegmentUse::from_number(0), Some(SegmentUse::Log));
        assert_eq!(SegmentUse::from_number(1), Some(SegmentUse::Spare));
        assert_eq!(SegmentUse::from_number(2), None);
        assert_eq!(SpareRefusal::from_code(0), SpareRefusal::DiskFull);
        assert_eq!(SpareRefusal::from_code(1), SpareRefusal::OverLimit);
        assert_eq!(SpareRefusal::from_code(700), SpareRefusal::Failed);
    }
}
