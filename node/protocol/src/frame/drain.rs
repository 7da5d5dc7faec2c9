//! DRAIN: the last call that will be executed on a connection, and where to go for the others.

use crate::fields::{ADDRESS, DETAIL, FieldReader, FrameWriter};
use crate::header::{Header, Kind};
use crate::limits::{DRAIN_MS, MAX_ADDRESS, MAX_DETAIL};
use crate::text;
use crate::violation::Violation;

/// Why no more calls are accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DrainReason {
    /// The node stops.
    Shutdown = 0,
    /// The process moves to another node.
    Moved = 1,
    /// The token of this connection is about to expire.
    TokenExpires = 2,
    /// The node wants the connection back.
    Policy = 3,
}

impl DrainReason {
    fn from_number(number: u32) -> Result<DrainReason, Violation> {
        match number {
            0 => Ok(DrainReason::Shutdown),
            1 => Ok(DrainReason::Moved),
            2 => Ok(DrainReason::TokenExpires),
            3 => Ok(DrainReason::Policy),
            other => Err(Violation::BadValue { kind: Kind::Drain, what: "reason", value: u64::from(other) }),
        }
    }
}

/// What a DRAIN says. Calls with an id above `last` were not and will not be executed; the others end as always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// The last call that was accepted; 0 if none was. Filled in by the connection.
    pub last: u64,
    /// Why.
    pub reason: DrainReason,
    /// Milliseconds until the server closes; 0 is [`DRAIN_MS`].
    pub within_ms: u32,
    /// The epoch at `address`; 0 if not known.
    pub epoch: u64,
    /// Where to connect instead.
    pub address: Option<String>,
    /// For people.
    pub detail: Option<String>,
}

impl Drain {
    /// A notice of `reason` with nothing else to say.
    pub const fn new(reason: DrainReason) -> Drain {
        Drain { last: 0, reason, within_ms: DRAIN_MS, epoch: 0, address: None, detail: None }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), Violation> {
        let detail = self.detail.as_deref().map(|text| text::tamed(text, MAX_DETAIL));
        let mut frame = FrameWriter::new(Kind::Drain, out);
        frame.field((ADDRESS, "address"), self.address.as_ref(), |t| text::visible(t, MAX_ADDRESS));
        if let Some(detail) = detail.filter(|text| !text.is_empty()) {
            frame.raw(DETAIL, detail.as_bytes());
        }
        frame.finish(Header {
            a: self.reason as u32,
            b: self.within_ms,
            c: self.epoch,
            ..Header::new(Kind::Drain, self.last)
        })
    }
}

/// A DRAIN as it is read.
pub(crate) struct DrainHead;

impl DrainHead {
    pub(crate) fn decode(header: &Header, head: &[u8]) -> Result<Drain, Violation> {
        let (_, mut fields) = FieldReader::new(Kind::Drain, head)?;
        let within_ms = if header.b == 0 { DRAIN_MS } else { header.b };
        let reason = DrainReason::from_number(header.a)?;
        let mut drain = Drain { last: header.id, within_ms, epoch: header.c, ..Drain::new(reason) };
        while let Some((tag, value)) = fields.next()? {
            match tag {
                ADDRESS => {
                    let address = fields.text("address", text::visible(value, MAX_ADDRESS))?;
                    drain.address = address.map(str::to_owned);
                }
                DETAIL => {
                    drain.detail = fields.text("detail", text::prose(value, MAX_DETAIL))?.map(str::to_owned);
                }
                other => fields.unknown(other)?,
            }
        }
        Ok(drain)
    }
}
