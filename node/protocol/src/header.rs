//! The fixed header of a frame, and everything that can be refused from it alone, before a byte of the rest is read.
//!
//! The layout is that of the agent's frames to a runner, with the same places for length, kind, flags and id, so that an agent that
//! relays changes the id and nothing else.

use crate::limits::{ALIGN, HEADER_LEN, MAX_FRAME_BODY, MAX_HEAD, MAX_HELLO_HEAD, MAX_TABLE_BYTES};
use crate::violation::Violation;

/// The id of the frames of the handshake: the bytes `denizen` and a zero.
pub const MAGIC: u64 = u64::from_le_bytes(*b"denizen\0");
/// The last frame of a body.
pub const FLAG_END: u8 = 1;
/// The reply was remembered from an earlier call with the same idempotency key.
pub const FLAG_REPLAYED: u8 = 2;
/// `a` of a CALL that names its function.
pub const BY_NAME: u32 = u32::MAX;
/// A body length that is not known yet.
pub const LENGTH_UNKNOWN: u64 = u64::MAX;

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The end that connected.
    Client,
    /// The node, or the process behind it.
    Server,
}

/// What a frame is about. Numbers below 64 belong to the agent and its runners and are never valid here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Client, first: who it is and whom it wants.
    Hello = 64,
    /// Server: OK.
    Accepted = 65,
    /// Server, instead of OK: the process lives elsewhere.
    Moved = 66,
    /// Client: an invocation begins.
    Call = 72,
    /// Either: more of a body.
    Data = 73,
    /// Client: the reply is no longer wanted, or the input will never be complete.
    Cancel = 74,
    /// Either: more body bytes may come.
    Credit = 75,
    /// Either: are you there?
    Ping = 76,
    /// Either: yes.
    Pong = 77,
    /// Server: the function succeeded, or began to stream.
    Reply = 80,
    /// Server: a call, or with id 0 the connection, failed. Client, only with id 0: it gives the connection up.
    Fail = 81,
    /// Server: no further calls are accepted.
    Drain = 82,
}

/// What is true of every header of a kind.
struct Rules {
    client: bool,
    server: bool,
    /// Bytes of the head before its fields; a kind without a head has 0 here and in `max_head`.
    fixed: usize,
    max_head: usize,
    max_body: usize,
    flags: u8,
    id: IdRule,
    /// Which of `a`, `b` and `c` mean something.
    uses: [bool; 3],
}

#[derive(Clone, Copy)]
enum IdRule {
    Magic,
    Zero,
    Call,
    Any,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Kind; 12] = [
        Kind::Hello,
        Kind::Accepted,
        Kind::Moved,
        Kind::Call,
        Kind::Data,
        Kind::Cancel,
        Kind::Credit,
        Kind::Ping,
        Kind::Pong,
        Kind::Reply,
        Kind::Fail,
        Kind::Drain,
    ];

    /// The kind with this number.
    pub fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Bytes of the fixed part of its head.
    pub const fn fixed_head(self) -> usize {
        self.rules().fixed
    }

    /// The longest head in bytes, padding not counted.
    pub const fn max_head(self) -> usize {
        self.rules().max_head
    }

    /// The longest body of one frame in bytes, padding not counted.
    pub const fn max_body(self) -> usize {
        self.rules().max_body
    }

    /// Whether `sender` is entitled to send it.
    pub const fn may_come_from(self, sender: Sender) -> bool {
        match sender {
            Sender::Client => self.rules().client,
            Sender::Server => self.rules().server,
        }
    }

    const fn rules(self) -> Rules {
        let none = Rules {
            client: false,
            server: false,
            fixed: 0,
            max_head: 0,
            max_body: 0,
            flags: 0,
            id: IdRule::Call,
            uses: [false; 3],
        };
        let to_server = Rules { client: true, ..none };
        let to_client = Rules { server: true, ..none };
        let both = Rules { client: true, server: true, ..none };
        let all = [true; 3];
        match self {
            Kind::Hello => {
                Rules { fixed: 16, max_head: MAX_HELLO_HEAD, id: IdRule::Magic, uses: all, ..to_server }
            }
            Kind::Accepted => Rules {
                fixed: 32,
                max_head: MAX_HEAD,
                max_body: MAX_TABLE_BYTES,
                id: IdRule::Magic,
                uses: all,
                ..to_client
            },
            Kind::Moved => {
                Rules { max_head: MAX_HEAD, id: IdRule::Magic, uses: [false, false, true], ..to_client }
            }
            Kind::Call => Rules {
                fixed: 16,
                max_head: MAX_HEAD,
                max_body: MAX_FRAME_BODY,
                flags: FLAG_END,
                uses: all,
                ..to_server
            },
            Kind::Data => {
                Rules { max_body: MAX_FRAME_BODY, flags: FLAG_END, uses: [false, true, true], ..both }
            }
            Kind::Cancel => Rules { uses: [true, false, false], ..to_server },
            Kind::Credit => Rules { id: IdRule::Any, uses: [true, false, false], ..both },
            Kind::Ping | Kind::Pong => Rules { id: IdRule::Zero, uses: [false, false, true], ..both },
            Kind::Reply => Rules {
                fixed: 16,
                max_head: MAX_HEAD,
                max_body: MAX_FRAME_BODY,
                flags: FLAG_END | FLAG_REPLAYED,
                uses: [false, true, true],
                ..to_client
            },
            Kind::Fail => Rules {
                fixed: 16,
                max_head: MAX_HEAD,
                id: IdRule::Any,
                flags: FLAG_REPLAYED,
                uses: all,
                ..both
            },
            Kind::Drain => Rules { max_head: MAX_HEAD, id: IdRule::Any, uses: all, ..to_client },
        }
    }
}

/// The fixed part of a frame: 32 bytes, little-endian, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Bytes of body, padding not counted.
    pub body_len: u32,
    /// What the frame is.
    pub kind: Kind,
    /// [`FLAG_END`], [`FLAG_REPLAYED`].
    pub flags: u8,
    /// Bytes of head, padding not counted.
    pub head_len: u16,
    /// The call, 0 for the connection, or [`MAGIC`].
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
        Header { body_len: 0, kind, flags: 0, head_len: 0, id, a: 0, b: 0, c: 0 }
    }

    /// Whether the body ends with this frame.
    pub const fn is_end(&self) -> bool {
        self.flags & FLAG_END != 0
    }

    /// Body bytes, padding not counted.
    pub const fn body(&self) -> usize {
        self.body_len as usize
    }

    /// Head bytes with their padding: what is between the header and the body.
    pub const fn padded_head(&self) -> usize {
        (self.head_len as usize).next_multiple_of(ALIGN)
    }

    /// Zero bytes behind the body.
    pub const fn body_padding(&self) -> usize {
        padding(self.body())
    }

    /// The 32 bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..4].copy_from_slice(&self.body_len.to_le_bytes());
        out[4] = self.kind as u8;
        out[5] = self.flags;
        out[6..8].copy_from_slice(&self.head_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..20].copy_from_slice(&self.a.to_le_bytes());
        out[20..24].copy_from_slice(&self.b.to_le_bytes());
        out[24..32].copy_from_slice(&self.c.to_le_bytes());
        out
    }

    /// Reads a header that `sender` sent, and checks what can be checked without knowing the connection.
    ///
    /// # Errors
    /// [`Violation`]: an unknown kind, the wrong end, flags, id, lengths, or a place that must be zero.
    pub fn decode(sender: Sender, bytes: &[u8; HEADER_LEN]) -> Result<Header, Violation> {
        let kind = Kind::from_byte(bytes[4]).ok_or(Violation::UnknownKind { kind: bytes[4] })?;
        let header = Header {
            body_len: u32_at(bytes, 0),
            kind,
            flags: bytes[5],
            head_len: u16::from_le_bytes([bytes[6], bytes[7]]),
            id: u64_at(bytes, 8),
            a: u32_at(bytes, 16),
            b: u32_at(bytes, 20),
            c: u64_at(bytes, 24),
        };
        header.check(sender)?;
        Ok(header)
    }

    fn check(&self, sender: Sender) -> Result<(), Violation> {
        let kind = self.kind;
        let rules = kind.rules();
        if !kind.may_come_from(sender) {
            return Err(Violation::WrongDirection { kind });
        }
        if self.flags & !rules.flags != 0 {
            return Err(Violation::BadFlags { kind, flags: self.flags });
        }
        self.check_id(sender, rules.id)?;
        let head = usize::from(self.head_len);
        if head < rules.fixed || head > rules.max_head {
            return Err(Violation::BadHeadLength { kind, len: head });
        }
        if self.body() > rules.max_body {
            return Err(Violation::BodyTooLong { kind, len: self.body() });
        }
        let values = [u64::from(self.a), u64::from(self.b), self.c];
        // Only the last piece of a reply has a commit and a durability to tell.
        let silent = kind == Kind::Data && (sender == Sender::Client || !self.is_end());
        let stray = values.iter().zip(rules.uses).any(|(value, used)| *value != 0 && (silent || !used));
        if stray { Err(Violation::ReservedNotZero { kind }) } else { Ok(()) }
    }

    fn check_id(&self, sender: Sender, rule: IdRule) -> Result<(), Violation> {
        let right = match rule {
            IdRule::Magic => self.id == MAGIC,
            IdRule::Zero => self.id == 0,
            IdRule::Call => self.id != 0,
            // What a client gives up is the connection; a single call it cancels.
            IdRule::Any => self.kind != Kind::Fail || sender == Sender::Server || self.id == 0,
        };
        match (right, rule) {
            (true, _) => Ok(()),
            (false, IdRule::Magic) => Err(Violation::NotDenizen),
            (false, _) => Err(Violation::BadId { kind: self.kind, id: self.id }),
        }
    }
}

/// Zero bytes that follow `len` bytes.
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() % ALIGN
}

/// As many zero bytes as any padding needs.
pub const PADDING: [u8; ALIGN] = [0; ALIGN];

fn u32_at(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A valid header of `kind` from an end that may send it.
    fn valid(kind: Kind) -> (Sender, Header) {
        let sender = if kind.may_come_from(Sender::Server) { Sender::Server } else { Sender::Client };
        let id = match kind.rules().id {
            IdRule::Magic => MAGIC,
            IdRule::Zero => 0,
            IdRule::Call | IdRule::Any => 7,
        };
        let head_len = u16::try_from(kind.fixed_head()).unwrap();
        (sender, Header { head_len, ..Header::new(kind, id) })
    }

    #[test]
    fn the_places_are_where_the_document_says() {
        let header = Header {
            body_len: 0x0003_0201,
            kind: Kind::Call,
            flags: FLAG_END,
            head_len: 0x0110,
            id: 0x1122_3344_5566_7788,
            a: 0xA1A2_A3A4,
            b: 0xB1B2_B3B4,
            c: 0xC1C2_C3C4_C5C6_C7C8,
        };
        let bytes = header.encode();
        assert_eq!(bytes[..8], [0x01, 0x02, 0x03, 0, 72, 1, 0x10, 0x01]);
        assert_eq!(bytes[8..16], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[16..24], [0xA4, 0xA3, 0xA2, 0xA1, 0xB4, 0xB3, 0xB2, 0xB1]);
        assert_eq!(bytes[24..], [0xC8, 0xC7, 0xC6, 0xC5, 0xC4, 0xC3, 0xC2, 0xC1]);
        assert_eq!(Header::decode(Sender::Client, &bytes), Ok(header));
    }

    #[test]
    fn lengths_are_accepted_at_their_limits_and_not_beyond() {
        for kind in Kind::ALL {
            let (sender, plain) = valid(kind);
            let most = Header {
                head_len: u16::try_from(kind.max_head()).unwrap(),
                body_len: u32::try_from(kind.max_body()).unwrap(),
                ..plain
            };
            assert_eq!(Header::decode(sender, &most.encode()), Ok(most), "{kind:?}");
            let long_head = Header { head_len: most.head_len + 1, ..most };
            assert!(
                matches!(Header::decode(sender, &long_head.encode()), Err(Violation::BadHeadLength { .. })),
                "{kind:?}"
            );
            for body_len in [most.body_len + 1, u32::MAX] {
                let long = Header { body_len, ..most };
                let result = Header::decode(sender, &long.encode());
                assert!(matches!(result, Err(Violation::BodyTooLong { .. })), "{kind:?} {body_len}");
            }
            if kind.fixed_head() > 0 {
                let short = Header { head_len: plain.head_len - 1, ..plain };
                let result = Header::decode(sender, &short.encode());
                assert!(matches!(result, Err(Violation::BadHeadLength { .. })), "{kind:?}");
            }
        }
    }

    #[test]
    fn only_the_numbers_of_the_table_are_kinds() {
        for byte in 0..=255 {
            let known = Kind::ALL.iter().find(|kind| **kind as u8 == byte).copied();
            assert_eq!(Kind::from_byte(byte), known);
            let mut bytes = Header::new(Kind::Ping, 0).encode();
            bytes[4] = byte;
            if known.is_none() {
                assert_eq!(
                    Header::decode(Sender::Client, &bytes),
                    Err(Violation::UnknownKind { kind: byte })
                );
            }
        }
    }

    #[test]
    fn flags_are_those_of_the_kind() {
        for kind in Kind::ALL {
            let (sender, plain) = valid(kind);
            for flags in 0..=255 {
                let accepted = Header::decode(sender, &Header { flags, ..plain }.encode()).is_ok();
                assert_eq!(accepted, flags & !kind.rules().flags == 0, "{kind:?} {flags}");
            }
        }
    }

    #[test]
    fn what_means_nothing_is_zero() {
        for kind in Kind::ALL {
            let (sender, plain) = valid(kind);
            let uses = if kind == Kind::Data { [false; 3] } else { kind.rules().uses };
            let set = [Header { a: 1, ..plain }, Header { b: 1, ..plain }, Header { c: 1, ..plain }];
            for (header, used) in set.into_iter().zip(uses) {
                assert_eq!(Header::decode(sender, &header.encode()).is_ok(), used, "{header:?}");
            }
        }
        let last = Header { flags: FLAG_END, c: 9, ..Header::new(Kind::Data, 1) };
        assert!(Header::decode(Sender::Server, &last.encode()).is_ok());
        assert!(Header::decode(Sender::Client, &last.encode()).is_err(), "a client has no commit to tell");
    }

    #[test]
    fn each_kind_comes_from_the_end_that_may_send_it() {
        for kind in Kind::ALL {
            let (_, plain) = valid(kind);
            for sender in [Sender::Client, Sender::Server] {
                let result = Header::decode(sender, &plain.encode());
                let refused = result == Err(Violation::WrongDirection { kind });
                assert_eq!(refused, !kind.may_come_from(sender), "{kind:?} from {sender:?}");
            }
        }
        let one = Header { head_len: 16, ..Header::new(Kind::Fail, 1) }.encode();
        assert!(matches!(Header::decode(Sender::Client, &one), Err(Violation::BadId { .. })));
    }

    #[test]
    fn padding_fills_up_to_sixteen() {
        for (len, pad) in [(0, 0), (1, 15), (15, 1), (16, 0), (17, 15), (MAX_FRAME_BODY, 0)] {
            assert_eq!(padding(len), pad);
        }
    }
}
