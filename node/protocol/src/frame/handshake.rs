//! HELLO and its answers. All of them are read from or by strangers, so they own what they hold and are checked in full.

use crate::fields::{
    ADDRESS, APP, CLIENT, FieldReader, FrameWriter, PROCESS, TOKEN, u32_in, u64_in, zero_from,
};
use crate::header::{Header, Kind, MAGIC, padding};
use crate::limits::{
    DEFAULT_CALL_WINDOW, DEFAULT_CALLS, DEFAULT_CONNECTION_WINDOW, MAX_ADDRESS, MAX_CALLS, MAX_CLIENT,
    MAX_FUNCTIONS, MAX_TOKEN, MAX_WINDOW, MIN_CALLS, MIN_WINDOW, VERSION,
};
use crate::text;
use crate::violation::Violation;

const WANT_FUNCTIONS: u32 = 1;
const CREATE_NEVER: u32 = 2;

/// What a client may ask for in its HELLO.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HelloOptions {
    /// The OK shall list the functions.
    pub want_functions: bool,
    /// A process that does not exist is not to be created.
    pub create_never: bool,
}

/// The first frame of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The lowest and the highest version that the client speaks.
    pub versions: (u16, u16),
    /// What it asks for.
    pub options: HelloOptions,
    /// The epoch that the process must have; 0 is any.
    pub epoch: u64,
    /// Reply bytes that the server may send unasked, per call.
    pub call_window: u32,
    /// The same for the connection as a whole.
    pub connection_window: u32,
    /// The application.
    pub app: String,
    /// The one process that this connection is for, or none: the calls name theirs.
    pub process: Option<String>,
    /// A signed token in its binary form; empty where the node asks for none.
    pub token: Vec<u8>,
    /// Name and version of the client software, for logs.
    pub client: Option<String>,
}

impl Hello {
    /// A HELLO for `process` of `app` (or unbound), with everything else at its default.
    pub fn new(app: impl Into<String>, process: Option<&str>) -> Hello {
        Hello {
            versions: (VERSION, VERSION),
            options: HelloOptions::default(),
            epoch: 0,
            call_window: DEFAULT_CALL_WINDOW,
            connection_window: DEFAULT_CONNECTION_WINDOW,
            app: app.into(),
            process: process.map(str::to_owned),
            token: Vec::new(),
            client: None,
        }
    }

    /// Appends the frame.
    ///
    /// # Errors
    /// [`Violation`] if a text breaks its rule or a number its range; `out` is then as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Violation> {
        let mut frame = FrameWriter::new(Kind::Hello, out);
        frame.fixed(&self.call_window.to_le_bytes());
        frame.fixed(&self.connection_window.to_le_bytes());
        frame.fixed(&[0; 8]);
        frame.field((APP, "app"), Some(&self.app), text::name);
        frame.field((PROCESS, "process"), self.process.as_ref(), text::name);
        if self.token.len() > MAX_TOKEN {
            frame.refuse(bad_token());
        } else if !self.token.is_empty() {
            frame.raw(TOKEN, &self.token);
        }
        frame.field((CLIENT, "client"), self.client.as_ref(), |t| text::visible(t, MAX_CLIENT));
        if let Err(why) = check_windows(Kind::Hello, self.call_window, self.connection_window) {
            frame.refuse(why);
        }
        let (low, high) = self.versions;
        let mut options = 0;
        options |= if self.options.want_functions { WANT_FUNCTIONS } else { 0 };
        options |= if self.options.create_never { CREATE_NEVER } else { 0 };
        frame.finish(Header {
            a: u32::from(low) | u32::from(high) << 16,
            b: options,
            c: self.epoch,
            ..Header::new(Kind::Hello, MAGIC)
        })
    }

    /// The versions that a HELLO's header offers, and whether this end speaks one of them. In every version they stand there.
    pub(crate) fn check_versions(header: &Header) -> Result<(u16, u16), Violation> {
        #[expect(clippy::cast_possible_truncation, reason = "the halves of a u32")]
        let (low, high) = (header.a as u16, (header.a >> 16) as u16);
        if low <= VERSION && VERSION <= high {
            Ok((low, high))
        } else {
            Err(Violation::UnsupportedVersion { low, high })
        }
    }

    pub(crate) fn decode(header: &Header, head: &[u8]) -> Result<Hello, Violation> {
        let kind = Kind::Hello;
        let versions = Hello::check_versions(header)?;
        if header.b & !(WANT_FUNCTIONS | CREATE_NEVER) != 0 {
            return Err(Violation::BadValue { kind, what: "options", value: u64::from(header.b) });
        }
        let (fixed, mut fields) = FieldReader::new(kind, head)?;
        zero_from(kind, fixed, 8)?;
        let mut hello = Hello {
            versions,
            options: HelloOptions {
                want_functions: header.b & WANT_FUNCTIONS != 0,
                create_never: header.b & CREATE_NEVER != 0,
            },
            epoch: header.c,
            call_window: u32_in(fixed, 0),
            connection_window: u32_in(fixed, 4),
            ..Hello::new(String::new(), None)
        };
        check_windows(kind, hello.call_window, hello.connection_window)?;
        let mut app = None;
        while let Some((tag, value)) = fields.next()? {
            match tag {
                APP => app = fields.text("app", text::name(value))?,
                PROCESS => hello.process = fields.text("process", text::name(value))?.map(str::to_owned),
                TOKEN if value.is_empty() || value.len() > MAX_TOKEN => return Err(bad_token()),
                TOKEN => hello.token = value.to_vec(),
                CLIENT => {
                    let client = fields.text("client", text::visible(value, MAX_CLIENT))?;
                    hello.client = client.map(str::to_owned);
                }
                other => fields.unknown(other)?,
            }
        }
        hello.app = app.ok_or(Violation::MissingField { kind, field: "app" })?.to_owned();
        Ok(hello)
    }
}

fn bad_token() -> Violation {
    Violation::BadField { kind: Kind::Hello, field: "token", why: "it is empty or over its limit" }
}

fn check_windows(kind: Kind, call: u32, connection: u32) -> Result<(), Violation> {
    let bad = |what, value: u32| Err(Violation::BadValue { kind, what, value: u64::from(value) });
    if !(MIN_WINDOW..=MAX_WINDOW).contains(&call) {
        return bad("call window", call);
    }
    if !(call..=MAX_WINDOW).contains(&connection) {
        return bad("connection window", connection);
    }
    Ok(())
}

/// OK: the connection stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The version that both ends speak from now on.
    pub version: u16,
    /// The process's ownership term; 0 on an unbound connection.
    pub epoch: u64,
    /// Calls that may be in flight at once.
    pub max_calls: u32,
    /// The longest input in bytes; functions may have lower limits of their own.
    pub max_body_bytes: u64,
    /// Body bytes that the client may send unasked, per call.
    pub call_window: u32,
    /// The same for the connection as a whole.
    pub connection_window: u32,
    /// Tag of the function table; 0 if there is none yet.
    pub table: u64,
    /// The functions by index, if the HELLO asked for them and the server knows them. At most [`MAX_FUNCTIONS`].
    pub functions: Vec<String>,
}

impl Accepted {
    /// An OK with everything at its default.
    pub const fn new(epoch: u64, max_body_bytes: u64) -> Accepted {
        Accepted {
            version: VERSION,
            epoch,
            max_calls: DEFAULT_CALLS,
            max_body_bytes,
            call_window: DEFAULT_CALL_WINDOW,
            connection_window: DEFAULT_CONNECTION_WINDOW,
            table: 0,
            functions: Vec::new(),
        }
    }

    /// Appends the frame, its body included.
    ///
    /// # Errors
    /// [`Violation`] if a text breaks its rule or a number its range; `out` is then as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Violation> {
        let kind = Kind::Accepted;
        let start = out.len();
        let mut body = Vec::new();
        let mut frame = FrameWriter::new(kind, out);
        if let Err(why) = self.check().and_then(|()| write_table(&self.functions, &mut body)) {
            frame.refuse(why);
        }
        frame.fixed(&self.table.to_le_bytes());
        frame.fixed(&self.max_body_bytes.to_le_bytes());
        frame.fixed(&self.call_window.to_le_bytes());
        frame.fixed(&self.connection_window.to_le_bytes());
        frame.fixed(&[0; 8]);
        let body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        frame.finish(Header {
            body_len,
            a: u32::from(self.version),
            b: self.max_calls,
            c: self.epoch,
            ..Header::new(kind, MAGIC)
        })?;
        debug_assert_eq!((out.len() - start) % crate::limits::ALIGN, 0);
        out.extend_from_slice(&body);
        out.resize(out.len() + padding(body.len()), 0);
        Ok(())
    }

    /// Reads everything but the function table, which is the body.
    pub(crate) fn decode(header: &Header, head: &[u8]) -> Result<Accepted, Violation> {
        let kind = Kind::Accepted;
        let (fixed, mut fields) = FieldReader::new(kind, head)?;
        zero_from(kind, fixed, 24)?;
        let accepted = Accepted {
            version: u16::try_from(header.a).unwrap_or(u16::MAX),
            epoch: header.c,
            max_calls: header.b,
            max_body_bytes: u64_in(fixed, 8),
            call_window: u32_in(fixed, 16),
            connection_window: u32_in(fixed, 20),
            table: u64_in(fixed, 0),
            functions: Vec::new(),
        };
        while let Some((tag, _)) = fields.next()? {
            fields.unknown(tag)?;
        }
        if accepted.table == 0 && header.body_len != 0 {
            return Err(Violation::BadValue { kind, what: "table tag", value: 0 });
        }
        accepted.check()?;
        Ok(accepted)
    }

    fn check(&self) -> Result<(), Violation> {
        let kind = Kind::Accepted;
        if self.version != VERSION {
            return Err(Violation::BadValue { kind, what: "version", value: u64::from(self.version) });
        }
        if !(MIN_CALLS..=MAX_CALLS).contains(&self.max_calls) {
            return Err(Violation::BadValue {
                kind,
                what: "calls in flight",
                value: u64::from(self.max_calls),
            });
        }
        if self.table == 0 && !self.functions.is_empty() {
            return Err(Violation::BadValue { kind, what: "table tag", value: 0 });
        }
        check_windows(kind, self.call_window, self.connection_window)
    }
}

fn write_table(functions: &[String], body: &mut Vec<u8>) -> Result<(), Violation> {
    if functions.len() > MAX_FUNCTIONS as usize {
        return Err(bad_table("it lists too many functions"));
    }
    for function in functions {
        let name = text::name(function.as_bytes()).map_err(bad_table)?;
        body.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        body.extend_from_slice(name.as_bytes());
    }
    Ok(())
}

/// Reads the body of an OK: for each function, by index, a byte with the length of its name, and the name.
pub(crate) fn read_table(mut body: &[u8]) -> Result<Vec<String>, Violation> {
    let mut functions = Vec::new();
    while let Some((len, rest)) = body.split_first() {
        let (name, rest) =
            rest.split_at_checked(usize::from(*len)).ok_or_else(|| bad_table("a name is cut short"))?;
        if functions.len() >= MAX_FUNCTIONS as usize {
            return Err(bad_table("it lists too many functions"));
        }
        functions.push(text::name(name).map_err(bad_table)?.to_owned());
        body = rest;
    }
    Ok(functions)
}

fn bad_table(why: &'static str) -> Violation {
    Violation::BadField { kind: Kind::Accepted, field: "function table", why }
}

/// Instead of OK: connect elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// `host:port`.
    pub address: String,
    /// The epoch of the process there; 0 if not known.
    pub epoch: u64,
}

impl Moved {
    /// Appends the frame.
    ///
    /// # Errors
    /// [`Violation`] if the address breaks its rule; `out` is then as before.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), Violation> {
        let mut frame = FrameWriter::new(Kind::Moved, out);
        frame.field((ADDRESS, "address"), Some(&self.address), |t| text::visible(t, MAX_ADDRESS));
        frame.finish(Header { c: self.epoch, ..Header::new(Kind::Moved, MAGIC) })
    }

    pub(crate) fn decode(header: &Header, head: &[u8]) -> Result<Moved, Violation> {
        let kind = Kind::Moved;
        let (_, mut fields) = FieldReader::new(kind, head)?;
        let mut address = None;
        while let Some((tag, value)) = fields.next()? {
            match tag {
                ADDRESS => address = fields.text("address", text::visible(value, MAX_ADDRESS))?,
                other => fields.unknown(other)?,
            }
        }
        let address = address.ok_or(Violation::MissingField { kind, field: "address" })?.to_owned();
        Ok(Moved { address, epoch: header.c })
    }
}
