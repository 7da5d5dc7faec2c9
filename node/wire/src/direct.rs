//! Connections that a process was given: what the agent and the runner tell each other about them beside the sockets themselves.
//!
//! A connection at rest is a record (which `denizen_protocol` writes and reads; here it is bytes) and a residue: bytes that were taken off
//! the socket and are the next on its stream. Both travel in the payload of `Caller` and `CallerParked` frames.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use crate::WireError;

/// The longest residue in bytes.
pub const MAX_RESIDUE: usize = 64 << 10;
/// The longest record of a parked connection in bytes. At least `denizen_protocol::server::Parked::MAX_LEN`.
pub const MAX_PARKED_RECORD: usize = 8 << 10;
/// What comes before the record: its length.
const LENGTH: usize = 4;
/// The most payload, in bytes, of a frame that carries a connection at rest.
pub(crate) const MAX_CALLER_PAYLOAD: usize = LENGTH + MAX_PARKED_RECORD + MAX_RESIDUE;
/// The bit that the numbers of direct calls have, and those of other calls have not.
const DIRECT: u64 = 1 << 63;

/// A connection at rest, as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtRest<'a> {
    /// What must be known of it. At most [`MAX_PARKED_RECORD`] bytes.
    pub record: &'a [u8],
    /// Bytes that come before those on the socket. At most [`MAX_RESIDUE`].
    pub residue: &'a [u8],
}

impl<'a> AtRest<'a> {
    /// Bytes of the payload.
    pub const fn encoded_len(&self) -> usize {
        LENGTH + self.record.len() + self.residue.len()
    }

    /// Appends the payload to `out`.
    ///
    /// # Errors
    /// [`WireError::BadCaller`] for what is over its limit; `out` is then unchanged.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), WireError> {
        self.check()?;
        let len =
            u32::try_from(self.record.len()).map_err(|_| WireError::BadCaller("its record is too long"))?;
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(self.record);
        out.extend_from_slice(self.residue);
        Ok(())
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`WireError::BadCaller`].
    pub fn decode(payload: &'a [u8]) -> Result<AtRest<'a>, WireError> {
        let cut = WireError::BadCaller("it is cut short");
        let (len, rest) = payload.split_first_chunk::<LENGTH>().ok_or(cut.clone())?;
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        let (record, residue) = rest.split_at_checked(len).ok_or(cut)?;
        let at_rest = AtRest { record, residue };
        at_rest.check()?;
        Ok(at_rest)
    }

    fn check(&self) -> Result<(), WireError> {
        if self.record.len() > MAX_PARKED_RECORD {
            return Err(WireError::BadCaller("its record is too long"));
        }
        if self.residue.len() > MAX_RESIDUE {
            return Err(WireError::BadCaller("its residue is too long"));
        }
        Ok(())
    }
}

/// Why a process is drained: `code` of a `Drain` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u16)]
pub enum DrainCause {
    /// It is swapped out; the next call brings it back.
    #[default]
    Swap = 0,
    /// The node stops.
    Shutdown = 1,
    /// It goes on in another image.
    Image = 2,
}

impl DrainCause {
    /// Reads the `code` of a `Drain` frame; what is unknown counts as a swap.
    pub fn from_code(code: u16) -> DrainCause {
        [DrainCause::Shutdown, DrainCause::Image]
            .into_iter()
            .find(|one| *one as u16 == code)
            .unwrap_or_default()
    }
}

/// How a connection ended in the process: `code` of a `CallerDone` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum CallerEnd {
    /// Its client closed it, between two frames.
    Closed = 0,
    /// Its client broke a rule, and was told.
    Violation = 1,
    /// It broke: cut short within a frame, or an error of the socket.
    Broken = 2,
    /// Its client took nothing of what it was sent for too long.
    Stalled = 3,
    /// Its client did not take in time what was to be sent before a drain.
    Unsent = 4,
}

impl CallerEnd {
    /// Reads the `code` of a `CallerDone` frame; what is unknown counts as broken.
    pub fn from_code(code: u16) -> CallerEnd {
        [CallerEnd::Closed, CallerEnd::Violation, CallerEnd::Stalled, CallerEnd::Unsent]
            .into_iter()
            .find(|one| *one as u16 == code)
            .unwrap_or(CallerEnd::Broken)
    }

    /// Whether both ends know where the stream ends: it is closed, and not reset.
    pub const fn is_orderly(self) -> bool {
        matches!(self, CallerEnd::Closed | CallerEnd::Violation)
    }
}

/// The number of the `count`th direct call of a sandbox, from 1. Such numbers are the runner's, and never one of the agent's.
pub const fn direct_id(count: u64) -> u64 {
    count | DIRECT
}

/// Whether a number is a direct call's.
pub const fn is_direct(id: u64) -> bool {
    id & DIRECT != 0
}

/// How logs, replies and failures name a direct call: the same text on both ends. `epoch` is the sandbox's term, which no other has.
///
/// The text is `d<epoch>-<number>`, both decimal: at most 41 bytes.
pub fn direct_name(epoch: u64, id: u64) -> String {
    format!("d{epoch}-{}", id & !DIRECT)
}

/// The tag of a function table, by which callers name it: the same for the same names in the same order, never 0. Another version of this
/// program may have another; agent and runner are one program.
pub fn table_tag<'a>(names: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for name in names {
        name.hash(&mut hasher);
    }
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_connection_at_rest_goes_through_and_back() {
        for (record, residue) in
            [(vec![], vec![]), (vec![7; 100], vec![8; 3]), (vec![1; MAX_PARKED_RECORD], vec![2; MAX_RESIDUE])]
        {
            let at_rest = AtRest { record: &record, residue: &residue };
            let mut bytes = Vec::new();
            at_rest.encode(&mut bytes).unwrap();
            assert_eq!(bytes.len(), at_rest.encoded_len());
            assert!(bytes.len() <= MAX_CALLER_PAYLOAD);
            assert_eq!(AtRest::decode(&bytes), Ok(at_rest));
        }
    }

    #[test]
    fn what_is_cut_short_or_too_long_is_refused() {
        let mut bytes = Vec::new();
        AtRest { record: &[7; 100], residue: &[] }.encode(&mut bytes).unwrap();
        for cut in 0..bytes.len() {
            assert!(AtRest::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut out = vec![1];
        let long = vec![0; MAX_RESIDUE + 1];
        for at_rest in [
            AtRest { record: &long[..MAX_PARKED_RECORD + 1], residue: &[] },
            AtRest { record: &[], residue: &long },
        ] {
            assert!(at_rest.encode(&mut out).is_err());
            assert_eq!(out, [1]);
            let mut bytes = u32::try_from(at_rest.record.len()).unwrap().to_le_bytes().to_vec();
            bytes.extend_from_slice(at_rest.record);
            bytes.extend_from_slice(at_rest.residue);
            assert!(AtRest::decode(&bytes).is_err());
        }
        assert!(AtRest::decode(&[255; 40]).is_err(), "a length of 4 GiB");
    }

    #[test]
    fn unknown_codes_are_read_as_the_harmless_ones() {
        let causes = [DrainCause::Swap, DrainCause::Shutdown, DrainCause::Image];
        assert!(causes.into_iter().all(|cause| DrainCause::from_code(cause as u16) == cause));
        assert_eq!(DrainCause::from_code(700), DrainCause::Swap);
        let ends = [
            CallerEnd::Closed,
            CallerEnd::Violation,
            CallerEnd::Broken,
            CallerEnd::Stalled,
            CallerEnd::Unsent,
        ];
        assert!(ends.into_iter().all(|end| CallerEnd::from_code(end as u16) == end));
        assert_eq!(CallerEnd::from_code(700), CallerEnd::Broken);
        assert!(CallerEnd::Violation.is_orderly() && !CallerEnd::Broken.is_orderly());
    }

    #[test]
    fn direct_calls_have_numbers_and_names_of_their_own() {
        let id = direct_id(42);
        assert!(is_direct(id) && !is_direct(42));
        assert_eq!(direct_name(7, id), "d7-42");
        assert!(direct_name(u64::MAX, u64::MAX).len() <= crate::MAX_INVOCATION_ID);
    }

    proptest! {
        #[test]
        fn any_payload_is_refused_or_encodes_back(
            len in prop_oneof![0..64_u32, any::<u32>()],
            rest in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let bytes = [&len.to_le_bytes()[..], &rest].concat();
            if let Ok(at_rest) = AtRest::decode(&bytes) {
                let mut back = Vec::new();
                at_rest.encode(&mut back).unwrap();
                prop_assert_eq!(back, bytes);
            }
        }
    }
}
