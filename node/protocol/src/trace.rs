//! The `traceparent` of W3C Trace Context, level 1, in 25 bytes instead of 55 characters.

use std::fmt;

/// Bytes of the binary form: trace id, parent id, flags.
pub const TRACEPARENT_LEN: usize = 25;

/// Which trace a call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// Of the whole trace; not all zero.
    pub trace_id: [u8; 16],
    /// Of the caller's span; not all zero.
    pub parent_id: [u8; 8],
    /// Bit 0: sampled.
    pub flags: u8,
}

impl TraceParent {
    /// From the binary form, or `None` if an id is all zero or the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Option<TraceParent> {
        let bytes: &[u8; TRACEPARENT_LEN] = bytes.try_into().ok()?;
        let (trace_id, rest) = bytes.split_first_chunk::<16>()?;
        let (parent_id, flags) = rest.split_first_chunk::<8>()?;
        let trace = TraceParent { trace_id: *trace_id, parent_id: *parent_id, flags: flags[0] };
        trace.is_valid().then_some(trace)
    }

    /// The binary form.
    pub fn to_bytes(&self) -> [u8; TRACEPARENT_LEN] {
        let mut out = [0; TRACEPARENT_LEN];
        out[..16].copy_from_slice(&self.trace_id);
        out[16..24].copy_from_slice(&self.parent_id);
        out[24] = self.flags;
        out
    }

    /// From the text of the HTTP header, version 00. Anything else is `None`; the standard says to go on without it then.
    pub fn from_text(text: &str) -> Option<TraceParent> {
        let mut parts = text.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() {
            return None;
        }
        let (mut trace_id, mut parent_id, mut flag) = ([0; 16], [0; 8], [0; 1]);
        unhex(trace, &mut trace_id)?;
        unhex(parent, &mut parent_id)?;
        unhex(flags, &mut flag)?;
        let trace = TraceParent { trace_id, parent_id, flags: flag[0] };
        trace.is_valid().then_some(trace)
    }

    /// Whether both ids are there.
    pub fn is_valid(&self) -> bool {
        self.trace_id != [0; 16] && self.parent_id != [0; 8]
    }
}

/// The text of the HTTP header.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.parent_id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

/// Lower-case digits only, as the standard has it.
fn unhex(text: &str, out: &mut [u8]) -> Option<()> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * out.len() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_text_of_the_standard_goes_through_and_back() {
        let trace = TraceParent::from_text(TEXT).unwrap();
        assert_eq!(trace.to_string(), TEXT);
        assert_eq!(TraceParent::from_bytes(&trace.to_bytes()), Some(trace));
    }

    #[test]
    fn what_the_standard_forbids_is_no_trace() {
        for bad in [
            "",
            "00",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        ] {
            assert_eq!(TraceParent::from_text(bad), None, "{bad}");
        }
        assert_eq!(TraceParent::from_bytes(&[0; TRACEPARENT_LEN]), None);
        assert_eq!(TraceParent::from_bytes(&[1; TRACEPARENT_LEN - 1]), None);
    }
}
