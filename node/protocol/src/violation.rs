//! What a peer can do wrong. Each of these ends the connection: a stream that broke one rule cannot be trusted to be in step.
//!
//! The names are stable and listed in `docs/protocol.md`; a client that is told one can look up what it did.

use crate::header::Kind;
use crate::limits::{MAX_FRAME_BODY, VERSION};

macro_rules! violations {
    ($($(#[$meta:meta])* $variant:ident $({ $($(#[$fdoc:meta])* $field:ident: $type:ty),* })? = $name:literal;)*) => {
        /// A broken rule of the protocol.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[non_exhaustive]
        pub enum Violation {
            $($(#[$meta])* $variant $({ $($(#[$fdoc])* $field: $type),* })?,)*
        }

        impl Violation {
            /// The stable name of the rule.
            pub fn name(&self) -> &'static str {
                match self { $(Violation::$variant $({ $($field: _),* })? => $name,)* }
            }
        }

        /// Every name, in the order of the document.
        #[cfg(test)]
        pub(crate) const NAMES: &[&str] = &[$($name,)*];
    };
}

violations! {
    /// The first frame does not carry the magic.
    #[error("the peer does not speak this protocol: the first frame lacks the magic")]
    NotDenizen = "not-denizen";
    /// No version in common.
    #[error("the peer offers versions {low} to {high}, this end speaks {VERSION}: bring the older end up to date")]
    UnsupportedVersion {
        /// The lowest on offer.
        low: u16,
        /// The highest on offer.
        high: u16
    } = "unsupported-version";
    /// The kind byte names no frame.
    #[error("frame kind {kind} does not exist: the peer lost its place in the stream")]
    UnknownKind {
        /// The byte.
        kind: u8
    } = "unknown-kind";
    /// Only the other end may send this.
    #[error("a {kind:?} frame came from the end that never sends one")]
    WrongDirection {
        /// The frame.
        kind: Kind
    } = "wrong-direction";
    /// Not in this state of the connection.
    #[error("a {kind:?} frame came {when}")]
    Unexpected {
        /// The frame.
        kind: Kind,
        /// What makes it wrong.
        when: &'static str
    } = "unexpected-frame";
    /// A flag that this kind does not have.
    #[error("a {kind:?} frame has the flags {flags:#04x}")]
    BadFlags {
        /// The frame.
        kind: Kind,
        /// All its flags.
        flags: u8
    } = "bad-flags";
    /// An id where there must be none, or none where there must be one.
    #[error("a {kind:?} frame has the id {id:#x}")]
    BadId {
        /// The frame.
        kind: Kind,
        /// Its id.
        id: u64
    } = "bad-id";
    /// A part of the header or of a fixed head that must be zero.
    #[error("a {kind:?} frame uses a field that must be zero")]
    ReservedNotZero {
        /// The frame.
        kind: Kind
    } = "reserved-not-zero";
    /// The head is longer or shorter than its kind allows.
    #[error("a {kind:?} frame announces a head of {len} bytes")]
    BadHeadLength {
        /// The frame.
        kind: Kind,
        /// The announced length.
        len: usize
    } = "bad-head-length";
    /// The body is longer than its kind allows.
    #[error("a {kind:?} frame announces a body of {len} bytes; {MAX_FRAME_BODY} is the most that any has")]
    BodyTooLong {
        /// The frame.
        kind: Kind,
        /// The announced length.
        len: usize
    } = "body-too-long";
    /// Padding is zero bytes.
    #[error("the padding of a {kind:?} frame is not zero: the peer lost count of its bytes")]
    BadPadding {
        /// The frame.
        kind: Kind
    } = "bad-padding";
    /// A field is cut short by the end of its head.
    #[error("a field of a {kind:?} frame runs over the end of its head")]
    FieldCutShort {
        /// The frame.
        kind: Kind
    } = "field-cut-short";
    /// Fields come in the order of their tags, each at most once.
    #[error("the field {tag} of a {kind:?} frame comes twice or after a higher one")]
    FieldOrder {
        /// The frame.
        kind: Kind,
        /// Its tag.
        tag: u16
    } = "field-order";
    /// A field that this kind does not have and that may not be skipped.
    #[error("a {kind:?} frame has a field {tag}, which it cannot have")]
    UnknownField {
        /// The frame.
        kind: Kind,
        /// Its tag.
        tag: u16
    } = "unknown-field";
    /// A field that must be there.
    #[error("a {kind:?} frame lacks its {field}")]
    MissingField {
        /// The frame.
        kind: Kind,
        /// What is missing.
        field: &'static str
    } = "missing-field";
    /// A field with a content that it cannot have.
    #[error("a {kind:?} frame has a bad {field}: {why}")]
    BadField {
        /// The frame.
        kind: Kind,
        /// Which one.
        field: &'static str,
        /// What is wrong.
        why: &'static str
    } = "bad-field";
    /// A number outside its range.
    #[error("a {kind:?} frame has {value} as its {what}")]
    BadValue {
        /// The frame.
        kind: Kind,
        /// Which one.
        what: &'static str,
        /// The number.
        value: u64
    } = "bad-value";
    /// Ids of calls only grow.
    #[error("the call {id} follows the call {last}: ids only grow")]
    IdNotIncreasing {
        /// The new id.
        id: u64,
        /// The one before.
        last: u64
    } = "id-not-increasing";
    /// A frame about a call that never was, or that has ended for good.
    #[error("a {kind:?} frame is about the call {id}, which is not there")]
    UnknownCall {
        /// The frame.
        kind: Kind,
        /// The id.
        id: u64
    } = "unknown-call";
    /// More calls than the server allows.
    #[error("more than {max} calls are in flight, which the OK allowed")]
    TooManyCalls {
        /// How many are allowed.
        max: u32
    } = "too-many-calls";
    /// More body bytes than there was credit for.
    #[error("{len} body bytes came for {open} bytes of credit (call {id}; 0 is the connection)")]
    WindowExceeded {
        /// The call, or 0.
        id: u64,
        /// What came.
        len: u64,
        /// What was open.
        open: u64
    } = "window-exceeded";
    /// Credit over [`crate::limits::MAX_WINDOW`].
    #[error("the credit of call {id} (0 is the connection) would go over its limit")]
    CreditOverflow {
        /// The call, or 0.
        id: u64
    } = "credit-overflow";
    /// The body is not as long as was said.
    #[error("the body of call {id} is not as long as was declared")]
    LengthMismatch {
        /// The call.
        id: u64
    } = "length-mismatch";
    /// A DATA frame with nothing in it.
    #[error("a frame of call {id} carries neither bytes nor the end")]
    EmptyData {
        /// The call.
        id: u64
    } = "empty-data";
    /// Body bytes after the end of the body, or before its beginning.
    #[error("a body frame of call {id} came before its body began or after it ended")]
    OutsideBody {
        /// The call.
        id: u64
    } = "outside-body";
    /// An owner whose term is over answered.
    #[error("the answer is of epoch {got}, and epoch {seen} was seen before: its owner has lost the process")]
    StaleEpoch {
        /// The epoch of the answer.
        got: u64,
        /// The highest seen.
        seen: u64
    } = "stale-epoch";
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    CutShort = "cut-short";
}
