//! Reading the HELLO, and not a byte more: what follows it belongs to whom the connection is given.

use crate::frame::Hello;
use crate::header::{Header, Kind, MAGIC, Sender};
use crate::limits::HEADER_LEN;
use crate::violation::Violation;

/// Reads one HELLO. Holds at most [`HEADER_LEN`] and [`crate::limits::MAX_HELLO_HEAD`] bytes.
///
/// The caller reads at most [`Handshake::wants`] bytes at a time, gives up after [`crate::limits::HANDSHAKE_MS`], and answers with
/// [`crate::Accepted`], [`crate::Moved`] or a [`crate::Problem`] about id 0.
#[derive(Debug, Default)]
pub struct Handshake {
    bytes: Vec<u8>,
    header: Option<Header>,
    over: bool,
}

impl Handshake {
    /// One that has read nothing.
    pub fn new() -> Handshake {
        Handshake::default()
    }

    /// How many bytes may be read now. 0 once the HELLO is whole, or refused.
    pub fn wants(&self) -> usize {
        let whole = self.header.map_or(HEADER_LEN, |header| HEADER_LEN + header.padded_head());
        if self.over { 0 } else { whole - self.bytes.len() }
    }

    /// Takes bytes that were read. Gives the HELLO when it is whole.
    ///
    /// # Errors
    /// [`Violation`]. A peer that is [`Violation::NotDenizen`] gets no answer; the others are told with a [`crate::Problem`].
    ///
    /// # Panics
    /// When `bytes` are more than [`Handshake::wants`]: they belong to somebody else.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Hello>, Violation> {
        assert!(bytes.len() <= self.wants(), "more was read than the handshake wants");
        self.bytes.extend_from_slice(bytes);
        let result = self.read();
        self.over |= !matches!(result, Ok(None));
        result
    }

    fn read(&mut self) -> Result<Option<Hello>, Violation> {
        let Some(lead) = self.bytes.first_chunk::<HEADER_LEN>() else { return self.look_ahead() };
        let header = match self.header {
            Some(header) => header,
            None => *self.header.insert(read_header(lead)?),
        };
        if self.wants() > 0 {
            return Ok(None);
        }
        let (head, padding) = self.bytes[HEADER_LEN..].split_at(usize::from(header.head_len));
        if padding.iter().any(|byte| *byte != 0) {
            return Err(Violation::BadPadding { kind: header.kind });
        }
        Hello::decode(&header, head).map(Some)
    }

    /// A stranger is refused with the first byte that tells it, rather than waited for.
    fn look_ahead(&self) -> Result<Option<Hello>, Violation> {
        let magic = MAGIC.to_le_bytes();
        let there = self.bytes.get(8..).unwrap_or_default();
        let len = there.len().min(magic.len());
        let kind_fits = self.bytes.get(4).is_none_or(|kind| *kind == Kind::Hello as u8);
        if kind_fits && there[..len] == magic[..len] { Ok(None) } else { Err(Violation::NotDenizen) }
    }
}

fn read_header(bytes: &[u8; HEADER_LEN]) -> Result<Header, Violation> {
    if bytes[8..16] != MAGIC.to_le_bytes() || bytes[4] != Kind::Hello as u8 {
        return Err(Violation::NotDenizen);
    }
    let header = Header::decode(Sender::Client, bytes)?;
    // Before the head, which may look different in another version.
    Hello::check_versions(&header)?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{MAX_HELLO_HEAD, VERSION};

    fn hello() -> Hello {
        Hello { token: vec![1, 2, 3], client: Some("test/1".to_owned()), ..Hello::new("app", Some("alice")) }
    }

    fn bytes() -> Vec<u8> {
        let mut out = Vec::new();
        hello().encode(&mut out).unwrap();
        out
    }

    fn read_all(bytes: &[u8], step: usize) -> Result<(Option<Hello>, usize), Violation> {
        let mut handshake = Handshake::new();
        let mut at = 0;
        while at < bytes.len() && handshake.wants() > 0 {
            let take = handshake.wants().min(step).min(bytes.len() - at);
            at += take;
            if let Some(hello) = handshake.push(&bytes[at - take..at])? {
                assert_eq!(handshake.wants(), 0);
                return Ok((Some(hello), at));
            }
        }
        Ok((None, at))
    }

    #[test]
    fn exactly_the_hello_is_read_at_any_pace() {
        let whole = bytes();
        let mut stream = whole.clone();
        stream.extend_from_slice(b"the first call of the client");
        for step in [1, 2, 31, 32, 33, 1000] {
            assert_eq!(read_all(&stream, step), Ok((Some(hello()), whole.len())), "in steps of {step}");
        }
        for cut in 0..whole.len() {
            assert_eq!(read_all(&whole[..cut], 1000), Ok((None, cut)));
        }
    }

    #[test]
    fn a_stranger_is_refused_before_it_has_sent_a_whole_header() {
        let mut web = Handshake::new();
        assert_eq!(web.push(b"GET / "), Err(Violation::NotDenizen));
        assert_eq!(web.wants(), 0);
        let mut wrong = bytes();
        wrong[9] ^= 1;
        let mut handshake = Handshake::new();
        assert_eq!(handshake.push(&wrong[..9]), Ok(None));
        assert_eq!(handshake.push(&wrong[9..10]), Err(Violation::NotDenizen));
    }

    #[test]
    fn versions_are_compared_before_the_head_is_read() {
        let mut stream = bytes();
        stream[16..20].copy_from_slice(&[2, 0, 9, 0]);
        let error = Violation::UnsupportedVersion { low: 2, high: 9 };
        assert_eq!(Handshake::new().push(&stream[..HEADER_LEN]), Err(error));
        stream[16..20].copy_from_slice(&[0, 0, 9, 0]);
        assert_eq!(read_all(&stream, 1000).unwrap().0.unwrap().versions, (0, 9));
        assert!((0..=9).contains(&VERSION));
    }

    #[test]
    fn a_hostile_head_length_is_refused_with_the_header() {
        let mut stream = bytes();
        let len = u16::try_from(MAX_HELLO_HEAD + 1).unwrap();
        stream[6..8].copy_from_slice(&len.to_le_bytes());
        assert!(matches!(Handshake::new().push(&stream[..HEADER_LEN]), Err(Violation::BadHeadLength { .. })));
    }

    #[test]
    #[should_panic(expected = "more was read than the handshake wants")]
    fn reading_too_much_is_a_bug_and_says_so() {
        let _ = Handshake::new().push(&[0; HEADER_LEN + 1]);
    }
}
