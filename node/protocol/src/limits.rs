//! Every limit of the protocol, by the name and with the value that `docs/protocol.md` gives it. A test compares the two.
//!
//! A limit bounds what a stranger can make an end remember or wait for. Changing one is a new version of the protocol, except for
//! those that a HELLO or an OK announces.

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: $type = $value;)*

        /// Name and value of each, for the comparison with the document.
        #[cfg(test)]
        pub(crate) const ALL: &[(&str, u128)] = &[$((stringify!($name), $value as u128),)*];
    };
}

limits! {
    /// The only version so far.
    VERSION: u16 = 1;
    /// Bytes of a header.
    HEADER_LEN: usize = 32;
    /// Every part of a frame is padded with zero bytes to a multiple of this.
    ALIGN: usize = 16;
    /// The longest head in bytes, padding not counted.
    MAX_HEAD: usize = 8 << 10;
    /// The longest head of a HELLO in bytes: it is read from strangers.
    MAX_HELLO_HEAD: usize = 4 << 10;
    /// The most body bytes in one frame, padding not counted.
    MAX_FRAME_BODY: usize = 1 << 20;
    /// The smallest window that an end may announce, in bytes.
    MIN_WINDOW: u32 = 64 << 10;
    /// The window of a call that an end announces unless it has reasons, in bytes.
    DEFAULT_CALL_WINDOW: u32 = 1 << 20;
    /// The window of a connection that an end announces unless it has reasons, in bytes.
    DEFAULT_CONNECTION_WINDOW: u32 = 4 << 20;
    /// The most credit, in bytes, that may be open on a call or a connection.
    MAX_WINDOW: u32 = 1 << 30;
    /// The fewest calls in flight that a server may allow.
    MIN_CALLS: u32 = 16;
    /// The calls in flight that a server allows unless it has reasons.
    DEFAULT_CALLS: u32 = 256;
    /// The most calls in flight that a server may allow.
    MAX_CALLS: u32 = 4096;
    /// Calls that a client may send before it has read the OK.
    EARLY_CALLS: u32 = 16;
    /// Body bytes that a client may send before it has read the OK.
    EARLY_BYTES: u32 = 64 << 10;
    /// Functions that can be called by index.
    MAX_FUNCTIONS: u32 = 4096;
    /// Bytes of a name of an application, process or function.
    MAX_NAME: usize = 128;
    /// Bytes of a content type.
    MAX_CONTENT_TYPE: usize = 1024;
    /// Bytes of an idempotency key.
    MAX_IDEMPOTENCY_KEY: usize = 128;
    /// Bytes of an invocation id.
    MAX_INVOCATION_ID: usize = 128;
    /// Bytes of an address, `host:port`.
    MAX_ADDRESS: usize = 256;
    /// Bytes of a token in its binary form.
    MAX_TOKEN: usize = 1024;
    /// Functions that one token can name.
    MAX_TOKEN_FUNCTIONS: usize = 32;
    /// Public keys in a key ring.
    MAX_KEYS: usize = 64;
    /// Bytes of the name of the client software.
    MAX_CLIENT: usize = 64;
    /// Bytes of a problem type.
    MAX_PROBLEM_TYPE: usize = 64;
    /// Bytes of a problem's detail; a longer one is cut.
    MAX_DETAIL: usize = 4096;
    /// Bytes of a problem's cause; a longer one is cut.
    MAX_CAUSE: usize = 1024;
    /// Bytes of a problem's remedy; a longer one is cut.
    MAX_REMEDY: usize = 1024;
    /// Bytes that a server holds unsent before it stops reading from the client.
    MAX_UNSENT: usize = 1 << 20;
    /// MOVED answers that a client follows in a row.
    MAX_MOVES: u32 = 5;
    /// Processes whose highest epoch a client remembers.
    MAX_EPOCHS: usize = 4096;
    /// Milliseconds from accepting a connection to the last byte of its HELLO.
    HANDSHAKE_MS: u32 = 5_000;
    /// Milliseconds that a peer may pause within a frame.
    STALL_MS: u32 = 30_000;
    /// Milliseconds between a DRAIN and the end of the connection, where the DRAIN does not say.
    DRAIN_MS: u32 = 30_000;
    /// Milliseconds before a client connects again after the first failure.
    RECONNECT_MIN_MS: u32 = 50;
    /// The longest pause in milliseconds before a client connects again.
    RECONNECT_MAX_MS: u32 = 5_000;
}

/// The most bytes of the function table in an OK.
pub const MAX_TABLE_BYTES: usize = MAX_FUNCTIONS as usize * (1 + MAX_NAME);

const _: () =
    assert!(MIN_WINDOW == EARLY_BYTES && MIN_CALLS == EARLY_CALLS, "what is sent early must fit every OK");
const _: () = assert!(
    MAX_HELLO_HEAD >= 16 + 4 * 4 + 2 * MAX_NAME + MAX_TOKEN + MAX_CLIENT,
    "a HELLO with every field at its limit must fit"
);
const _: () = assert!(
    MAX_HEAD
        >= 16
            + 8 * 4
            + MAX_NAME
            + MAX_INVOCATION_ID
            + MAX_ADDRESS
            + MAX_PROBLEM_TYPE
            + MAX_DETAIL
            + MAX_CAUSE
            + MAX_REMEDY,
    "a FAIL with every field at its limit must fit"
);
const _: () = assert!(
    MAX_HEAD.is_multiple_of(ALIGN)
        && MAX_FRAME_BODY.is_multiple_of(ALIGN)
        && HEADER_LEN.is_multiple_of(ALIGN),
    "frames stay aligned"
);
