//! Whom to reach, and within which limits.

use std::time::Duration;

use denizen_protocol::{
    Hello, HelloOptions,
    client::{Epochs, Target},
    limits::{DEFAULT_CALL_WINDOW, DEFAULT_CONNECTION_WINDOW, MAX_WINDOW, MIN_WINDOW},
    token,
};

use crate::error::Error;

const CLIENT: &str = concat!("denizen-framed/", env!("CARGO_PKG_VERSION"));

/// Whom to reach, and within which limits. See each method for its default.
///
/// Clones are of one client: what a connection of one has seen of epochs, no connection of another goes back behind.
#[derive(Clone)]
pub struct Options {
    address: String,
    app: String,
    process: Option<String>,
    token: Option<String>,
    create_never: bool,
    pub(crate) patience: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) reply_limit: usize,
    pub(crate) spin: Duration,
    pub(crate) epochs: Epochs,
    window: (u32, u32),
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the token: it opens doors.
        f.debug_struct("Options")
            .field("address", &self.address)
            .field("app", &self.app)
            .field("process", &self.process)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// An application at a node's data-plane address, `host:port`. Unless [`Options::process`] is called the connection is for any of
    /// its processes, and each [`crate::Request`] may name one.
    pub fn new(address: impl Into<String>, app: impl Into<String>) -> Options {
        Options {
            address: address.into(),
            app: app.into(),
            process: None,
            token: None,
            create_never: false,
            patience: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            reply_limit: 64 << 20,
            spin: Duration::ZERO,
            epochs: Epochs::default(),
            window: (DEFAULT_CALL_WINDOW, DEFAULT_CONNECTION_WINDOW),
        }
    }

    /// Binds the connection to one process: the quickest way, since nobody stands between the two.
    #[must_use]
    pub fn process(mut self, process: impl Into<String>) -> Options {
        self.process = Some(process.into());
        self
    }

    /// The token that the node issued, in its text form. Default: none.
    #[must_use]
    pub fn token(mut self, token: impl Into<String>) -> Options {
        self.token = Some(token.into()).filter(|token: &String| !token.is_empty());
        self
    }

    /// Refuse with `unknown-process` rather than create the process. Default: create it, if its image allows.
    #[must_use]
    pub fn create_never(mut self) -> Options {
        self.create_never = true;
        self
    }

    /// How long to go on trying when no node accepts the connection. Default 10 s. Zero: one attempt.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Options {
        self.patience = patience;
        self
    }

    /// Time for one attempt: to connect, and again to be greeted. Default 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Options {
        self.connect_timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// Bytes of a reply that is taken whole; a longer one is cancelled. Default 64 MiB. Streams have no limit.
    #[must_use]
    pub fn reply_limit(mut self, bytes: usize) -> Options {
        self.reply_limit = bytes;
        self
    }

    /// Reply bytes that the server may send unasked: for each call, and for the connection. Default 1 MiB and 4 MiB; at least 64 KiB.
    #[must_use]
    pub fn windows(mut self, call: u32, connection: u32) -> Options {
        let call = call.clamp(MIN_WINDOW, MAX_WINDOW);
        self.window = (call, connection.clamp(call, MAX_WINDOW));
        self
    }

    /// How long a blocking connection looks for an answer again and again before it sleeps: some microseconds quicker, and a core that
    /// does nothing else. Default: zero.
    #[must_use]
    pub fn spin(mut self, time: Duration) -> Options {
        self.spin = time;
        self
    }

    /// What a session begins with.
    /// Whether it is for one process.
    pub(crate) fn is_bound(&self) -> bool {
        self.process.is_some()
    }

    /// The same at another address.
    pub(crate) fn at(mut self, address: &str) -> Options {
        address.clone_into(&mut self.address);
        self
    }

    pub(crate) fn target(&self) -> Result<Target, Error> {
        let token = self.token.as_deref().map(|text| token::from_text(text.trim())).transpose();
        let (call_window, connection_window) = self.window;
        let hello = Hello {
            options: HelloOptions { want_functions: true, create_never: self.create_never },
            token: token.map_err(Error::Token)?.unwrap_or_default(),
            client: Some(CLIENT.to_owned()),
            call_window,
            connection_window,
            ..Hello::new(self.app.clone(), self.process.as_deref())
        };
        // What cannot be sent is the caller's doing, and is told before anything is tried.
        hello.encode(&mut Vec::new()).map_err(|violation| Error::Refused(violation.into()))?;
        Ok(Target { address: self.address.clone(), hello })
    }
}
