//! Receives what this sandbox is to be, and the segments of its state.

use std::sync::Arc;

use denizen_engine::storage::Segment;
use denizen_engine::{Lineage, Options, SegmentSizes};
use denizen_wire::{Assignment, Header, Kind, SegmentUse, WireError};

use crate::link::Gone;
use crate::source::Source;

/// An assignment and what came with it.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) assignment: Assignment,
    /// Segments of the log.
    pub(crate) segments: Vec<Arc<dyn Segment>>,
    pub(crate) spares: Vec<Arc<dyn Segment>>,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReceived {
    #[error("the agent is gone")]
    Gone,
    #[error("the agent sent no assignment: {0}")]
    Broken(#[from] WireError),
    #[error("the agent sent a {0:?} frame where the assignment was due")]
    NotAnAssignment(Kind),
    #[error("the agent sent a {0:?} frame where a segment was due")]
    NotASegment(Kind),
    #[error("segment {0} came without its two descriptors, or they cannot be used")]
    Descriptors(u64),
    #[error("{0} descriptors came with a probe, which has no state")]
    Probe(usize),
}

impl From<Gone> for NotReceived {
    fn from(_: Gone) -> NotReceived {
        NotReceived::Gone
    }
}

/// Waits for the assignment and its segments. Frames behind them stay in `source`.
pub(crate) fn receive(source: &mut Source) -> Result<Received, NotReceived> {
    let assignment = loop {
        if let Some(frame) = source.frames.frame()? {
            if frame.header.kind != Kind::Assign {
                return Err(NotReceived::NotAnAssignment(frame.header.kind));
            }
            break frame.document::<Assignment>()?;
        }
        source.read()?;
    };
    let segments = receive_segments(source, assignment.segments, SegmentUse::Log)?;
    let spares = receive_segments(source, assignment.spares, SegmentUse::Spare)?;
    if assignment.probe && source.unclaimed() > 0 {
        return Err(NotReceived::Probe(source.unclaimed()));
    }
    Ok(Received { assignment, segments, spares })
}

fn receive_segments(
    source: &mut Source,
    count: u32,
    wanted: SegmentUse,
) -> Result<Vec<Arc<dyn Segment>>, NotReceived> {
    let mut segments = Vec::new();
    while segments.len() < count as usize {
        let header = next_header(source)?;
        if header.kind != Kind::Segment || SegmentUse::from_number(header.a) != Some(wanted) {
            return Err(NotReceived::NotASegment(header.kind));
        }
        segments.push(source.segment(&header).ok_or(NotReceived::Descriptors(header.c))?);
    }
    Ok(segments)
}

fn next_header(source: &mut Source) -> Result<Header, NotReceived> {
    loop {
        if let Some(frame) = source.frames.frame()? {
            return Ok(frame.header);
        }
        source.read()?;
    }
}

/// How the engine is to open the state of an assignment; `None` if its lineage is none.
pub(crate) fn engine_options(assignment: &Assignment) -> Option<Options> {
    let lineage = denizen_wire::from_hex(&assignment.lineage)?;
    let mut options = Options::new(Lineage(lineage.try_into().ok()?), assignment.limits.state_bytes);
    let sizes = SegmentSizes::default();
    let or = |bytes: u64, default: u64| if bytes == 0 { default } else { bytes };
    options.segments = SegmentSizes {
        min_bytes: or(assignment.segment_min_bytes, sizes.min_bytes),
        max_bytes: or(assignment.segment_max_bytes, sizes.max_bytes),
    };
    options.durable_at_least = assignment.durable_at_least;
    Some(options)
}
