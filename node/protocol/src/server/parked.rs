//! A connection at rest: what must be known of it while nobody serves it, or to give it to another.
//!
//! The agent makes one from a handshake. A process that is drained makes one from its connection, which the next sandbox of the same
//! process goes on from; since a sandbox made it, it is an allegation, and reading it checks every number.

use crate::credit::Receiving;
use crate::frame::{Accepted, Hello};
use crate::header::{FLAG_END, Header, Kind};
use crate::limits::{
    ALIGN, MAX_CALLS, MAX_FRAME_BODY, MAX_NAME, MAX_TOKEN_FUNCTIONS, MAX_WINDOW, MIN_CALLS, MIN_WINDOW,
};
use crate::text;

const LAYOUT: u32 = 1;
const FIXED_LEN: usize = 10 * 4 + 4 * 8;

/// What both ends agreed on in the handshake, and what the token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// The process that the connection is for; `None` if the calls name theirs.
    pub process: Option<String>,
    /// Names of the functions that may be called; `None` is any. At most [`MAX_TOKEN_FUNCTIONS`].
    pub functions: Option<Vec<String>>,
    /// Calls that may be in flight.
    pub max_calls: u32,
    /// Request bytes that the client may send unasked, per call.
    pub call_window: u32,
    /// The same for the connection.
    pub connection_window: u32,
    /// Reply bytes that the server may send unasked, per call.
    pub reply_call_window: u32,
    /// The same for the connection.
    pub reply_connection_window: u32,
}

impl Terms {
    /// What follows from a HELLO and the OK that answered it. `functions` is what the token allows.
    pub fn agreed(hello: &Hello, accepted: &Accepted, functions: Option<Vec<String>>) -> Terms {
        Terms {
            process: hello.process.clone(),
            functions,
            max_calls: accepted.max_calls,
            call_window: accepted.call_window,
            connection_window: accepted.connection_window,
            reply_call_window: hello.call_window,
            reply_connection_window: hello.connection_window,
        }
    }

    /// Whether the token allows this function.
    pub fn permit(&self, function: &str) -> bool {
        self.functions.as_ref().is_none_or(|allowed| allowed.iter().any(|name| name == function))
    }

    fn fit(&self) -> bool {
        let window =
            |call: u32, connection: u32| MIN_WINDOW <= call && call <= connection && connection <= MAX_WINDOW;
        (MIN_CALLS..=MAX_CALLS).contains(&self.max_calls)
            && window(self.call_window, self.connection_window)
            && window(self.reply_call_window, self.reply_connection_window)
            && self.functions.as_ref().is_none_or(|names| names.len() <= MAX_TOKEN_FUNCTIONS)
    }
}

/// Why bytes are not a parked connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record of a parked connection is damaged: {0}; reset the connection, its client will resume")]
pub struct ParkedError(&'static str);

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    pub(crate) terms: Terms,
    /// The last call that came.
    pub(crate) last: u64,
    /// Reply credit of the connection.
    pub(crate) sending: u64,
    /// Request credit of the connection: what is open, and what is consumed but not told.
    pub(crate) receiving: (u64, u64),
    /// Bytes of a body that nobody wants, and its padding, which are the next on the stream.
    pub(crate) skip: (u32, u32),
}

impl Parked {
    /// The longest record in bytes.
    pub const MAX_LEN: usize = FIXED_LEN + (1 + MAX_TOKEN_FUNCTIONS) * (1 + MAX_NAME);

    /// A connection that has just been accepted.
    pub fn fresh(terms: Terms) -> Parked {
        let sending = u64::from(terms.reply_connection_window);
        let receiving = (u64::from(terms.connection_window), 0);
        Parked { terms, last: 0, sending, receiving, skip: (0, 0) }
    }

    /// What was agreed on.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The record, at most [`Parked::MAX_LEN`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let Terms {
            max_calls,
            call_window,
            connection_window,
            reply_call_window,
            reply_connection_window,
            ..
        } = self.terms;
        let windows = [call_window, connection_window, reply_call_window, reply_connection_window];
        let mut out = Vec::with_capacity(FIXED_LEN);
        let mut put = |number: u32| out.extend_from_slice(&number.to_le_bytes());
        put(LAYOUT);
        put(max_calls);
        windows.into_iter().for_each(&mut put);
        put(self.skip.0);
        put(self.skip.1);
        let names = self.terms.functions.as_ref();
        put(names.map_or(u32::MAX, |names| u32::try_from(names.len()).unwrap_or(u32::MAX)));
        put(u32::from(self.terms.process.is_some()));
        for number in [self.last, self.sending, self.receiving.0, self.receiving.1] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for name in self.terms.process.iter().chain(names.into_iter().flatten()) {
            out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(name.as_bytes());
        }
        out
    }

    /// Reads a record, wherever it comes from.
    ///
    /// # Errors
    /// [`ParkedError`] for anything that [`Parked::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Parked, ParkedError> {
        let mut rest = bytes;
        let mut small = || {
            let (head, tail) = rest.split_first_chunk::<4>().ok_or(ParkedError("it is cut short"))?;
            rest = tail;
            Ok(u32::from_le_bytes(*head))
        };
        if small()? != LAYOUT {
            return Err(ParkedError("its layout is unknown"));
        }
        let max_calls = small()?;
        let [call_window, connection_window, reply_call_window, reply_connection_window] =
            [small()?, small()?, small()?, small()?];
        let (skip, names, bound) = ((small()?, small()?), small()?, small()?);
        let mut large = || {
            let (head, tail) = rest.split_first_chunk::<8>().ok_or(ParkedError("it is cut short"))?;
            rest = tail;
            Ok(u64::from_le_bytes(*head))
        };
        let (last, sending, receiving) = (large()?, large()?, (large()?, large()?));
        let process = match bound {
            0 => None,
            1 => Some(take_name(&mut rest)?),
            _ => return Err(ParkedError("a number is out of range")),
        };
        let terms = Terms {
            process,
            functions: take_names(names, &mut rest)?,
            max_calls,
            call_window,
            connection_window,
            reply_call_window,
            reply_connection_window,
        };
        let parked = Parked { terms, last, sending, receiving, skip };
        if parked.fits() && rest.is_empty() {
            Ok(parked)
        } else {
            Err(ParkedError("a number is out of range"))
        }
    }

    /// The header that the bytes to be skipped stand in for.
    pub(crate) fn skipped_header(&self) -> Header {
        Header { body_len: self.skip.0, flags: FLAG_END, ..Header::new(Kind::Data, self.last) }
    }

    fn fits(&self) -> bool {
        let (open, untold) = self.receiving;
        self.terms.fit()
            && self.sending <= u64::from(MAX_WINDOW)
            && Receiving::restore(self.terms.connection_window, open, untold).is_some()
            && self.skip.0 as usize <= MAX_FRAME_BODY
            && (self.skip.1 as usize) < ALIGN
    }
}

fn take_names(count: u32, rest: &mut &[u8]) -> Result<Option<Vec<String>>, ParkedError> {
    if count == u32::MAX {
        return Ok(None);
    }
    if count as usize > MAX_TOKEN_FUNCTIONS {
        return Err(ParkedError("it has too many functions"));
    }
    (0..count).map(|_| take_name(rest)).collect::<Result<Vec<_>, _>>().map(Some)
}

fn take_name(rest: &mut &[u8]) -> Result<String, ParkedError> {
    let cut = ParkedError("it is cut short");
    let (len, tail) = rest.split_first().ok_or(cut.clone())?;
    let (name, tail) = tail.split_at_checked(usize::from(*len)).ok_or(cut)?;
    *rest = tail;
    text::name(name).map(str::to_owned).map_err(ParkedError)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parked() -> Parked {
        let hello = Hello::new("app", Some("alice"));
        let accepted = Accepted::new(1, 100);
        let terms = Terms::agreed(&hello, &accepted, Some(vec!["f".to_owned(), "g".to_owned()]));
        Parked { last: 9, skip: (5, 11), receiving: (1000, 24), ..Parked::fresh(terms) }
    }

    #[test]
    fn a_record_goes_through_and_back_and_no_part_of_it_does() {
        let bytes = parked().encode();
        assert_eq!(Parked::decode(&bytes), Ok(parked()));
        for cut in 0..bytes.len() {
            assert!(Parked::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let unbound = Parked::fresh(Terms { process: None, functions: None, ..parked().terms });
        assert_eq!(Parked::decode(&unbound.encode()), Ok(unbound));
    }

    #[test]
    fn the_longest_record_is_as_long_as_is_said() {
        let name = "n".repeat(MAX_NAME);
        let functions = Some(vec![name.clone(); MAX_TOKEN_FUNCTIONS]);
        let terms = Terms { process: Some(name), functions, ..parked().terms };
        let bytes = Parked::fresh(terms.clone()).encode();
        assert_eq!(bytes.len(), Parked::MAX_LEN);
        assert_eq!(Parked::decode(&bytes), Ok(Parked::fresh(terms)));
    }

    proptest! {
        #[test]
        fn damaged_records_are_refused_or_still_within_every_limit(at in 0..90_usize, byte in any::<u8>()) {
            let mut bytes = parked().encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(parked) = Parked::decode(&bytes) {
                prop_assert!(parked.fits());
                prop_assert_eq!(parked.encode(), bytes);
            }
        }
    }
}
