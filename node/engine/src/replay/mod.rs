//! Recovery: from segments to an index, by plain reads.
//!
//! The newest valid header says which segments the log has; their records are applied in order. Where the chain of records breaks, one
//! question decides: does anything valid say that the missing commit had been durable? If so this is **corruption**, a named error,
//! and nothing is cut. If not it is a **torn tail**: what was never durable ends there, and so does the log. Evidence is the durable
//! watermark in every header and record, those behind the break included.
//!
//! The last sync of a life may have left no trace but the data itself (the watermark of the next record would have told). So the
//! owner, who saw the replies, can say what it knows to have been durable: [`crate::Options::durable_at_least`].

mod doubts;
mod reader;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub(crate) use doubts::Doubts;
pub(crate) use reader::{Cursor, EAGER_LEN, Found, Records, Stop};

use crate::error::{Damage, Operation};
use crate::format::{Effect, Header, HeaderPeek, Lineage, Listed, PEEK_LEN, PartKind, RecordHead};
use crate::index::Item;
use crate::ledger::{Ledger, Trees};
use crate::storage::Segment;
use crate::tables::Table;
use crate::{FORMAT, MAX_SEGMENT_LEN, StateError};

/// A segment that is part of the log.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) segment: Arc<dyn Segment>,
    /// Where its first record begins.
    pub(crate) begin: u64,
    pub(crate) listed: Listed,
}

/// A log as it was found.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) lineage: Option<Lineage>,
    /// In the order of the log; a segment's place here is its slot.
    pub(crate) sources: Vec<Source>,
    pub(crate) trees: Trees,
    pub(crate) ledger: Ledger,
    pub(crate) seq: u64,
    pub(crate) chain: u64,
    /// Everything up to here had been durable.
    pub(crate) durable: u64,
    pub(crate) next_ordinal: u64,
    /// Segments that are not part of the log (any more).
    pub(crate) unlisted: Vec<u64>,
    /// Those of them in which nothing was ever written and that no header knows: spares of an earlier life.
    pub(crate) blank: BTreeSet<u64>,
    /// Values that do not fit their checksums; reading them is an error, and putting them anew heals it.
    pub(crate) damaged: Vec<Damage>,
    /// Whether something that was never durable was cut.
    pub(crate) torn: bool,
}

/// A segment whose header was read.
pub(crate) struct Headed {
    pub(crate) segment: Arc<dyn Segment>,
    pub(crate) header: Header,
}

/// All segments, by what their headers say.
pub(crate) struct Sorted {
    /// In the order of the log.
    pub(crate) headed: Vec<Headed>,
    /// No header, or a damaged one.
    pub(crate) headless: Vec<(Arc<dyn Segment>, bool)>,
}

pub(crate) fn read_headers(
    segments: &[Arc<dyn Segment>],
    lineage: Option<Lineage>,
) -> Result<Sorted, StateError> {
    let mut sorted = Sorted { headed: Vec::new(), headless: Vec::new() };
    for segment in segments {
        match read_header(&**segment)? {
            Ok(header) => sorted.headed.push(Headed { segment: segment.clone(), header }),
            Err(blank) => sorted.headless.push((segment.clone(), blank)),
        }
    }
    sorted.headed.sort_by_key(|one| one.header.ordinal);
    let lineage = lineage.or_else(|| sorted.headed.last().map(|one| one.header.lineage));
    for one in &sorted.headed {
        let segment = one.segment.id();
        if lineage.is_some_and(|lineage| lineage != one.header.lineage) {
            return Err(StateError::ForeignSegment { segment, why: "it is of another lineage" });
        }
        if one.header.id != segment {
            return Err(StateError::ForeignSegment { segment, why: "its header has another number" });
        }
        if one.header.capacity != one.segment.capacity() {
            return Err(StateError::ForeignSegment {
                segment,
                why: "its length is not what its header says",
            });
        }
    }
    Ok(sorted)
}

/// The header, or whether the segment looks as if it was never written.
pub(crate) fn read_header(segment: &dyn Segment) -> Result<Result<Header, bool>, StateError> {
    let (id, capacity) = (segment.id(), segment.capacity());
    let read = |bytes: &mut [u8]| segment.read_at(bytes, 0).map_err(StateError::io(Operation::Read, id));
    if capacity < PEEK_LEN as u64 || capacity > MAX_SEGMENT_LEN {
        return Ok(Err(false));
    }
    let mut peek = [0; PEEK_LEN];
    read(&mut peek)?;
    match Header::peek(&peek) {
        HeaderPeek::Blank => Ok(Err(true)),
        HeaderPeek::Header(len) if len as u64 <= capacity => {
            let mut bytes = vec![0; len];
            read(&mut bytes)?;
            match Header::format(&bytes) {
                Some(found) if found != FORMAT => Err(StateError::OtherFormat { segment: id, found }),
                _ => Ok(Header::decode(&bytes).ok_or(false)),
            }
        }
        HeaderPeek::Header(_) | HeaderPeek::Damaged => Ok(Err(false)),
    }
}

/// Reads the log.
///
/// # Errors
/// Everything that [`StateError`] has to say about bytes and reading.
pub(crate) fn replay(
    segments: &[Arc<dyn Segment>],
    lineage: Option<Lineage>,
) -> Result<Replayed, StateError> {
    let sorted = read_headers(segments, lineage)?;
    let next_ordinal = sorted.headed.last().map_or(1, |one| one.header.ordinal.saturating_add(1));
    let mut known = Known::new(segments, &sorted);
    let mut candidates = sorted.headed.as_slice();
    let mut durable = 0;
    let mut torn = false;
    let mut believed = u64::MAX;
    // The first attempt nearly always holds, so it builds the index at once. After one that does not, attempts only look, until one holds.
    let mut builds = true;
    let mut limit = u64::MAX;
    while let Some(newest) = candidates.last() {
        let mut survey = survey(newest, durable)?;
        durable = survey.durable;
        survey.retired.retain(|_, seq| *seq <= believed);
        let replayed = Replayed::empty(Some(newest.header.lineage), next_ordinal);
        let doubts = Doubts::default();
        let mut run = Run { replayed, durable, builds, limit, doubts, suspects: Vec::new() };
        run.replayed.torn = torn;
        match run.all(newest, &survey, &mut known)? {
            None if survey.retired.values().any(|seq| *seq > run.replayed.seq) => {
                // A part behind the cut retired a segment: it is needed after all.
                believed = run.replayed.seq;
                builds = false;
            }
            None if builds => match run.end()? {
                Ok(replayed) => return replayed.finish(segments, &sorted),
                Err((end, sources)) => {
                    // What is live at the end is not whole. Up to here it is, and up to here the log is read again.
                    let inside = sources.iter().filter(|source| source.listed.base_seq <= end);
                    let ordinals = inside.filter_map(|one| known.headed.get(&one.listed.id));
                    if let Some(last) = ordinals.map(|one| one.header.ordinal).max() {
                        candidates =
                            &candidates[..candidates.partition_point(|one| one.header.ordinal <= last)];
                    }
                    limit = end;
                    torn = true;
                }
            },
            None => builds = true,
            Some(last_ordinal) => {
                // A segment in the middle was never durable to its end: what came after it never was either, so the log is what
                // that segment saw. Whatever a header says, it is an older one.
                let last_ordinal = last_ordinal.min(newest.header.ordinal.saturating_sub(1));
                candidates =
                    &candidates[..candidates.partition_point(|one| one.header.ordinal <= last_ordinal)];
                torn = true;
                builds = false;
            }
        }
    }
    Replayed::empty(lineage, next_ordinal).finish(segments, &sorted)
}

/// Bytes of segments that may be read again because headers disagree about where they end, in lengths of all segments. A crash makes two
/// headers disagree; what a sandbox wrote may make all of them.
const AGAIN: u64 = 4;

/// What attempts to read the log share.
struct Known<'a> {
    present: BTreeSet<u64>,
    headed: BTreeMap<u64, &'a Headed>,
    /// Segments that are whole up to where a header says that they end.
    whole: BTreeMap<u64, Listed>,
    /// How many bytes may still be read again.
    again: u64,
}

impl<'a> Known<'a> {
    fn new(segments: &[Arc<dyn Segment>], sorted: &'a Sorted) -> Known<'a> {
        let bytes = segments.iter().fold(0_u64, |sum, segment| sum.saturating_add(segment.capacity()));
        Known {
            present: segments.iter().map(|segment| segment.id()).collect(),
            headed: sorted.headed.iter().map(|one| (one.header.id, one)).collect(),
            whole: BTreeMap::new(),
            again: bytes.saturating_mul(AGAIN),
        }
    }

    /// Whether a segment of `capacity` bytes is known to be whole up to there. If it is known to be whole up to somewhere else, it is
    /// about to be read again.
    fn is_whole(&mut self, listed: &Listed, capacity: u64) -> Result<bool, StateError> {
        let Some(whole) = self.whole.get(&listed.id) else { return Ok(false) };
        if whole == listed {
            return Ok(true);
        }
        let left = self.again.checked_sub(capacity);
        let why = "too many headers disagree about where it ends";
        self.again = left.ok_or_else(|| StateError::damage(listed.id, 0, None, why))?;
        Ok(false)
    }
}

/// What has to be known of the newest segment before the others are read.
struct Survey {
    /// Segments that its records retire, and the commit that says so.
    retired: BTreeMap<u64, u64>,
    durable: u64,
}

fn survey(newest: &Headed, durable: u64) -> Result<Survey, StateError> {
    let header = &newest.header;
    let mut records = Records::new(&*newest.segment, header.lineage);
    let mut survey = Survey { retired: BTreeMap::new(), durable: durable.max(header.durable) };
    let mut cursor = Cursor::first(header);
    loop {
        match records.next(&cursor) {
            Ok(head) => {
                survey.durable = survey.durable.max(head.durable);
                for part in records.parts(cursor.at, &head)? {
                    if part.head.kind == PartKind::SegmentRetired {
                        survey.retired.extend(retired_id(&part).map(|id| (id, head.seq)));
                    }
                }
                cursor = Cursor::behind(cursor.at, &head);
            }
            Err(Stop::Fatal(error)) => return Err(error),
            Err(Stop::Broken(_)) => break,
        }
    }
    // Valid records behind a break may know that what is missing had been durable.
    let mut at = cursor.at;
    while let Some((found, head)) = records.scan(at)? {
        survey.durable = survey.durable.max(head.durable);
        at = found + head.len;
    }
    Ok(survey)
}

pub(crate) fn retired_id(part: &Found) -> Option<u64> {
    Some(u64::from_le_bytes(part.key[..].try_into().ok()?))
}

/// One attempt to read the log with a certain segment as the newest.
struct Run {
    replayed: Replayed,
    durable: u64,
    /// Whether records are applied, and not only looked at.
    builds: bool,
    /// The log ends with this commit, if it goes so far.
    limit: u64,
    doubts: Doubts,
    /// Values that did not fit their checksum when their record was read. Those that are live at the end are damaged.
    suspects: Vec<(Table, Found, Item)>,
}

impl Run {
    /// Returns the ordinal of the segment that the log ends in, if that is not `newest`.
    fn all(
        &mut self,
        newest: &Headed,
        survey: &Survey,
        known: &mut Known<'_>,
    ) -> Result<Option<u64>, StateError> {
        self.replayed.durable = self.durable;
        for listed in newest.header.listed.iter().filter(|listed| !survey.retired.contains_key(&listed.id)) {
            let candidate = known.headed.get(&listed.id).copied();
            let Some(headed) = candidate.filter(|one| one.header.ordinal <= newest.header.ordinal) else {
                return self.without_header(listed, newest, known).map(Some);
            };
            if !self.builds && known.is_whole(listed, headed.header.capacity)? {
                continue;
            }
            let end = self.segment(headed, Some(listed))?;
            if end.at != listed.end || end.seq != listed.last_seq || end.chain != listed.end_chain {
                return Ok(Some(headed.header.ordinal));
            }
            known.whole.insert(listed.id, *listed);
        }
        let end = self.segment(newest, None)?;
        (self.replayed.seq, self.replayed.chain) = (end.seq, end.chain);
        Ok(None)
    }

    /// Where the log ends if a listed segment has no header.
    fn without_header(&self, listed: &Listed, newest: &Headed, known: &Known<'_>) -> Result<u64, StateError> {
        if !known.present.contains(&listed.id) {
            return Err(StateError::MissingSegment { segment: listed.id });
        }
        if listed.base_seq < self.durable {
            return Err(StateError::damage(listed.id, 0, None, "the header does not fit its checksum"));
        }
        // Its header was never durable, so nothing behind it was. What was begun before it counts, and also what the newest does not list
        // any more: a record that retired it would have been in the segment that is lost, or later.
        let headers = known.headed.values().map(|one| &one.header);
        let before = headers
            .filter(|one| one.base_seq <= listed.base_seq && one.ordinal < newest.header.ordinal)
            .map(|one| one.ordinal);
        Ok(before.max().unwrap_or(0))
    }

    /// Applies the records of one segment; returns where they end.
    fn segment(&mut self, headed: &Headed, listed: Option<&Listed>) -> Result<Cursor, StateError> {
        let header = &headed.header;
        let slot = u32::try_from(self.replayed.sources.len()).unwrap_or(u32::MAX);
        self.replayed.ledger.open(slot);
        let mut records = Records::new(&*headed.segment, header.lineage);
        let mut cursor = Cursor::first(header);
        let broken = loop {
            if listed.is_some_and(|listed| cursor.at == listed.end) {
                break None;
            }
            match self.record(&mut records, &cursor, slot) {
                Ok(head) => cursor = Cursor::behind(cursor.at, &head),
                Err(Stop::Fatal(error)) => return Err(error),
                Err(Stop::Broken(why)) => break Some(why),
            }
        };
        if let Some(why) = broken {
            // The newest segment ends where its records do; a break in it is told from its end by what should have been durable.
            if cursor.seq < self.durable {
                return Err(StateError::damage(headed.segment.id(), cursor.at, None, why));
            }
            self.replayed.torn |=
                headed.segment.next_data(cursor.at).is_some() && !records.blank_at(cursor.at)?;
        }
        let listed = Listed {
            id: header.id,
            base_seq: header.base_seq,
            last_seq: cursor.seq,
            end: cursor.at,
            end_chain: cursor.chain,
        };
        let segment = headed.segment.clone();
        self.replayed.sources.push(Source { segment, begin: header.len(), listed });
        Ok(cursor)
    }

    fn record(&mut self, records: &mut Records<'_>, cursor: &Cursor, slot: u32) -> Result<RecordHead, Stop> {
        let head = records.next(cursor)?;
        if head.seq > self.limit {
            return Err(Stop::Broken("values of the last commits do not fit their checksums"));
        }
        let parts = records.parts(cursor.at, &head)?;
        if !self.builds {
            return Ok(head);
        }
        let vouched = head.seq <= self.durable;
        for part in &parts {
            // Whatever lies at a place now may be of a later commit.
            let look = !part.is_placed() && (!vouched || part.head.value_len <= EAGER_LEN);
            let fits = if look { Some(records.value_fits(part)?) } else { None };
            if !vouched {
                self.doubts.note(slot, &head, part, fits);
            }
            // Nothing above the watermark is left that its commit would not vouch for.
            let item = self.replayed.apply(slot, &head, part, vouched && fits != Some(true));
            if let (true, Some(false), Effect::Set(table)) = (vouched, fits, part.head.kind.effect()) {
                self.suspects.push((table, part.clone(), item));
            }
        }
        Ok(head)
    }

    /// What was read, if all that is live in it fits its checksum; otherwise the commit that the log ends with, and its segments.
    fn end(mut self) -> Result<Result<Replayed, (u64, Vec<Source>)>, StateError> {
        let Run { replayed, durable, doubts, .. } = &mut self;
        let lineage = replayed.lineage.unwrap_or(Lineage([0; 16]));
        let records_of = |slot: u32| Records::new(&*replayed.sources[slot as usize].segment, lineage);
        let end = std::mem::take(doubts).end(*durable, replayed.seq, records_of)?;
        if end < replayed.seq {
            return Ok(Err((end, self.replayed.sources)));
        }
        for (slot, source) in (0..).zip(&replayed.sources) {
            if replayed.ledger.account(slot).live > source.segment.capacity() {
                let why = "more is live in it than it holds";
                return Err(StateError::damage(source.listed.id, 0, None, why));
            }
        }
        for (table, part, item) in self.suspects {
            let live = self.replayed.trees[table.index()].get(&part.key);
            if live.is_some_and(|live| (live.slot, live.cell) == (item.slot, item.cell)) {
                let segment = self.replayed.sources[item.slot as usize].segment.id();
                self.replayed.damaged.push(Damage::of_value(segment, part.value_at, &part.key));
            }
        }
        Ok(Ok(self.replayed))
    }
}

impl Replayed {
    pub(crate) fn empty(lineage: Option<Lineage>, next_ordinal: u64) -> Replayed {
        Replayed {
            lineage,
            sources: Vec::new(),
            trees: Trees::default(),
            ledger: Ledger::default(),
            seq: 0,
            chain: 0,
            durable: 0,
            next_ordinal,
            unlisted: Vec::new(),
            blank: BTreeSet::new(),
            damaged: Vec::new(),
            torn: false,
        }
    }

    pub(crate) fn apply(&mut self, slot: u32, head: &RecordHead, part: &Found, unread: bool) -> Item {
        let item = part.item(slot, self.ledger.next_cell(slot), head, unread);
        self.ledger.apply(&mut self.trees, slot, part.head.kind, &part.key, item);
        item
    }

    /// Names what is left over, and makes sure that nothing left over knows better.
    fn finish(mut self, segments: &[Arc<dyn Segment>], sorted: &Sorted) -> Result<Replayed, StateError> {
        let Some(lineage) = self.lineage.or_else(|| sorted.headed.last().map(|one| one.header.lineage))
        else {
            return self.only_blanks(segments, sorted);
        };
        let lists = sorted.headed.iter().flat_map(|one| &one.header.listed);
        let listed: BTreeSet<u64> = lists.map(|listed| listed.id).collect();
        for (segment, _) in &sorted.headless {
            let mut records = Records::new(&**segment, lineage);
            let mut at = 0;
            if segment.next_data(0).is_none() && !listed.contains(&segment.id()) {
                self.blank.insert(segment.id());
            }
            while let Some((found, head)) = records.scan(at)? {
                // The header of the first segment was durable before there were records.
                if head.durable > self.seq || self.sources.is_empty() {
                    let why = "the header does not fit its checksum";
                    return Err(StateError::damage(segment.id(), 0, None, why));
                }
                self.torn = true;
                at = found + head.len;
            }
        }
        self.unlisted = unlisted(&self.sources, segments);
        Ok(self)
    }

    /// There is no header at all: new state, unless something is there that once had one.
    fn only_blanks(mut self, segments: &[Arc<dyn Segment>], sorted: &Sorted) -> Result<Replayed, StateError> {
        for (segment, blank) in &sorted.headless {
            let written = segment.capacity() > 0 && segment.next_data(0).is_some();
            if !blank || (written && !Records::new(&**segment, Lineage([0; 16])).blank_at(0)?) {
                let why = "the only segment has no readable header";
                return Err(StateError::damage(segment.id(), 0, None, why));
            }
        }
        self.unlisted = unlisted(&self.sources, segments);
        Ok(self)
    }
}

pub(crate) fn unlisted(sources: &[Source], segments: &[Arc<dyn Segment>]) -> Vec<u64> {
    let used: BTreeSet<u64> = sources.iter().map(|source| source.listed.id).collect();
    segments.iter().map(|segment| segment.id()).filter(|id| !used.contains(id)).collect()
}
