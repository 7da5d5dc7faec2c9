//! The engine of one process's state: ties the log, the published index, group commit and the turns together.
//!
//! The order of locks is: turn, compactor, log, published, group. A commit holds the log's lock from the check for conflicts to the
//! publication; a sync holds none while it runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::compact::Compactor;
use crate::error::{Damage, Operation};
use crate::format::{Lineage, PartKind, RECORD_LEN};
use crate::group::{Group, Role};
use crate::index::Item;
use crate::log::{Log, LogStart, Placed, Tracked};
use crate::out::Out;
use crate::publish::Published;
use crate::replay::{Source, replay};
use crate::segment::{Mapped, Segments};
use crate::state::{Base, Snapshot, State};
use crate::storage::{Segment, Storage};
use crate::transaction::{Transaction, Writes};
use crate::turn::{Access, Held, Passing, Turn};
use crate::{StateError, Table};

/// A commit of more parts than this is applied to a copy of the index, so that readers who begin meanwhile do not wait for it.
const SHORT: usize = 256;
/// What snapshots hold on to counts as state only beyond so many segments of the largest size.
const PINNED_SEGMENTS: u64 = 2;

/// Bounds of the size of new segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentSizes {
    /// In bytes, for small state.
    pub min_bytes: u64,
    /// In bytes, for large state. A commit that needs more gets a segment of its size.
    pub max_bytes: u64,
}

impl Default for SegmentSizes {
    fn default() -> SegmentSizes {
        SegmentSizes { min_bytes: 256 << 10, max_bytes: 64 << 20 }
    }
}

/// How to open state.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which state this is: fixed when it is made, checked ever after.
    pub lineage: Lineage,
    /// The most bytes that live objects may take: keys and values, each rounded up to 16 bytes, and 48 per object. The same limit holds
    /// for what one transaction pins, and for retired segments that snapshots hold.
    pub quota_bytes: u64,
    /// Sizes of new segments.
    pub segments: SegmentSizes,
    /// The last commit that the owner knows to have been durable; 0 if it knows of none. A log that ends before it is damaged.
    pub durable_at_least: u64,
    /// Tells the time of commits, in milliseconds since 1970.
    pub clock: fn() -> u64,
}

impl Options {
    /// A lineage, a quota, and the defaults.
    pub fn new(lineage: Lineage, quota_bytes: u64) -> Options {
        let segments = SegmentSizes::default();
        Options { lineage, quota_bytes, segments, durable_at_least: 0, clock: wall_clock_ms }
    }
}

fn wall_clock_ms() -> u64 {
    // Coarse (a few milliseconds) because it is asked for at every commit.
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    u64::try_from(now.tv_sec * 1000 + now.tv_nsec / 1_000_000).unwrap_or(0)
}

/// What a commit has survived, or is to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// The end of the process that wrote it: it is with the kernel.
    Process,
    /// The end of the node's power: it is on its disk.
    Node,
}

/// What opening found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Number of the last commit; 0 for new state. It is durable on the node.
    pub commit: u64,
    /// Whether a tail that never was durable was cut.
    pub torn: bool,
    /// Values that are damaged: reading them is an error, putting them anew heals it. Large values are not among them before they are read.
    pub damaged: Vec<Damage>,
}

/// What is in the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Number of the last commit; 0 before the first.
    pub commit: u64,
    /// Number of the last commit that is durable on the node.
    pub durable: u64,
    /// Bytes that live objects take, as the quota counts them.
    pub live_bytes: u64,
    /// How many objects there are.
    pub keys: u64,
    /// Bytes of all segments of the log.
    pub disk_bytes: u64,
    /// Bytes of retired segments that snapshots still hold.
    pub pinned_bytes: u64,
    /// How many segments the log has.
    pub segments: u64,
    /// Bytes of memory that the index takes, about.
    pub index_bytes: u64,
}

/// Open state. Cloning it gives another handle to the same.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    storage: Arc<dyn Storage>,
    turn: Turn,
    compactor: Mutex<Compactor>,
    log: Mutex<Log>,
    published: Published<State>,
    group: Group<StateError>,
    /// In bytes.
    quota: AtomicU64,
}

impl Engine {
    /// Opens state, or begins it if there is none. What it finds is made durable before this returns. Nothing is written to segments
    /// that were there before.
    ///
    /// # Errors
    /// [`StateError::Corrupt`], [`StateError::UnknownPart`], [`StateError::OtherFormat`], [`StateError::ForeignSegment`],
    /// [`StateError::MissingSegment`], [`StateError::CommitsLost`], [`StateError::Io`]. A full disk is none.
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<(Engine, Recovery), StateError> {
        let present = storage.segments().map_err(StateError::io(Operation::Read, 0))?;
        let mut replayed = replay(&present, Some(options.lineage))?;
        if replayed.seq < options.durable_at_least {
            let (found, promised) = (replayed.seq, options.durable_at_least);
            return Err(StateError::CommitsLost { found, promised });
        }
        drop(present);
        let (tracked, empty) = take_up(std::mem::take(&mut replayed.sources), replayed.durable)?;
        let (blank, mut unlisted): (Vec<u64>, Vec<u64>) =
            replayed.unlisted.iter().partition(|id| replayed.blank.contains(id));
        unlisted.extend(empty);
        blank.into_iter().for_each(|id| storage.retire(id));
        let mut segments = Segments::default();
        tracked.iter().for_each(|one| segments.set(one.slot, one.mapped.clone()));
        let recovery = Recovery { commit: replayed.seq, torn: replayed.torn, damaged: replayed.damaged };
        let live = replayed.ledger.live();
        let mut log = Log::new(LogStart {
            lineage: options.lineage,
            segments: tracked,
            ledger: replayed.ledger,
            seq: replayed.seq,
            chain: replayed.chain,
            next_ordinal: replayed.next_ordinal,
            sizes: options.segments,
            maps: true,
        });
        let era = log.slots.era();
        let state =
            State { trees: replayed.trees, segments: Arc::new(segments), seq: replayed.seq, live, era };
        // Files vanish in any order. As long as a header that lists one may be the newest, all have to stay: until there is a newer one
        // on the disk.
        unlisted.into_iter().for_each(|id| log.retire_after(replayed.seq + 1, id));
        storage.request_spare(log.spare_bytes());
        let shared = Shared {
            quota: AtomicU64::new(options.quota_bytes),
            options,
            storage,
            turn: Turn::new(),
            compactor: Mutex::default(),
            log: Mutex::new(log),
            published: Published::new(state),
            group: Group::new(replayed.seq),
        };
        Ok((Engine { shared: Arc::new(shared) }, recovery))
    }

    /// Begins a transaction, waiting for its turn where `access` needs one.
    pub fn begin(&self, access: Access) -> Transaction {
        let turn = self.shared.turn.take(access);
        Transaction::new(self.clone(), access, turn)
    }

    /// The state as it is now, for reading. Never waits for a writer's transaction.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { state: self.published() }
    }

    pub(crate) fn published(&self) -> Arc<State> {
        self.shared.published.snapshot()
    }

    pub(crate) fn pass(&self) -> Passing<'_> {
        self.shared.turn.pass()
    }

    pub(crate) fn end_turn(&self, turn: Held) {
        self.shared.turn.end(turn);
    }

    pub(crate) fn clock_ms(&self) -> u64 {
        (self.shared.options.clock)()
    }

    pub(crate) fn quota(&self) -> u64 {
        self.shared.quota.load(Ordering::Relaxed)
    }

    /// Lets live objects take so many bytes from now on, if that is more than before.
    pub fn raise_quota(&self, bytes: u64) {
        // Nothing else is read or written with it.
        self.shared.quota.fetch_max(bytes, Ordering::Relaxed);
    }

    pub(crate) fn segment_sizes(&self) -> SegmentSizes {
        self.shared.options.segments
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Log> {
        self.shared.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn compactor(&self) -> MutexGuard<'_, Compactor> {
        self.shared.compactor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of the last commit that is durable on the node.
    pub fn durable(&self) -> u64 {
        self.shared.group.durable()
    }

    /// Counts.
    pub fn summary(&self) -> Summary {
        let state = self.published();
        let mut log = self.log();
        Summary {
            commit: state.seq,
            durable: self.durable(),
            live_bytes: state.live,
            keys: state.tree(Table::Objects).len(),
            disk_bytes: log.segments.iter().map(|segment| segment.mapped.segment.capacity()).sum(),
            pinned_bytes: log.pinned_bytes(),
            segments: log.segments.len() as u64,
            index_bytes: state.trees.iter().map(|tree| tree.heap_bytes() as u64).sum(),
        }
    }

    /// Commits `writes`. `base` is what they were made over, and what is published then.
    pub(crate) fn commit(&self, writes: &Writes, base: &mut Base) -> Result<u64, StateError> {
        let mut log = self.log();
        log.check_usable()?;
        // Whoever publishes holds the log's lock, so what the log says is what is published.
        if base.seq() != Some(log.seq)
            && let Some(key) = writes.conflict(&self.published().trees)
        {
            return Err(StateError::Conflict { key });
        }
        let mut parts = writes.parts(log.seq + 1);
        if parts.is_empty() {
            return Ok(log.seq);
        }
        let (quota, used) = (self.quota(), log.ledger.live());
        // Any reader may pin what is compacted while it reads, if only for a moment.
        let pinned = log.pinned_bytes().saturating_sub(PINNED_SEGMENTS * self.segment_sizes().max_bytes);
        let needed = writes.live_over(used).max(pinned);
        if needed > quota && needed > used {
            return Err(StateError::QuotaExceeded { needed, quota, used });
        }
        let placed = self.write(&mut log, &mut parts)?;
        self.publish(&mut log, &parts, placed, Some(base), |_, _| {});
        Ok(placed.seq)
    }

    /// Writes one record, and values of it to where dead ones lay.
    pub(crate) fn write(&self, log: &mut Log, outs: &mut [Out<'_>]) -> Result<Placed, StateError> {
        let len = RECORD_LEN as u64 + outs.iter().map(Out::len).sum::<u64>();
        let (durable, time_ms) = (self.durable(), (self.shared.options.clock)());
        if let Some(seated) = log.reserve(len, durable, time_ms, &*self.shared.storage)? {
            let seat = |state: &mut State| {
                Arc::make_mut(&mut state.segments).set(seated.slot, seated.mapped);
            };
            self.shared.published.change(seat);
        }
        log.place(outs, time_ms);
        log.append(outs, durable, time_ms)
    }

    /// Makes pages ready that the next commits will be written to, at most about `max_bytes` of them (and never more than takes some
    /// twenty microseconds). A commit that finds none ready takes about a microsecond longer for each page that it begins. Does nothing
    /// while commits are synced one by one. To be called when there is nothing else to do; [`Engine::compact_step`] does it too.
    pub fn prepare(&self, max_bytes: u64) {
        let unready = self.log().unready(max_bytes, (self.shared.options.clock)());
        // Without the lock, so that no commit waits for it. Whatever fails here, the next commit finds out and reports.
        if let Some(unready) = unready
            && unready.populate().is_ok()
        {
            self.log().populated(&unready);
        }
    }

    /// Shows a record that was written to readers, and to the one whose commit it is. `placed_item` is told of every item before anybody
    /// can see it.
    pub(crate) fn publish(
        &self,
        log: &mut Log,
        outs: &[Out<'_>],
        placed: Placed,
        base: Option<&mut Base>,
        placed_item: impl Fn(usize, &mut Item),
    ) {
        let Log { ledger, slots, .. } = log;
        let mut left = None;
        let apply = |state: &mut State| {
            let mut value_at = placed.values_at;
            for (at, out) in outs.iter().enumerate() {
                let place = out.place.unwrap_or(value_at);
                let mut item = placed.item(out, place, ledger.next_cell(placed.slot));
                placed_item(at, &mut item);
                if let (1.., Some(mapped)) = (out.validated, state.segments.get(placed.slot)) {
                    mapped.validated(&item).store(out.validated, Ordering::Relaxed);
                }
                let dead = ledger.apply(&mut state.trees, placed.slot, out.kind, &out.key, item);
                if let Some(dead) = dead.filter(|dead| dead.slot == placed.slot) {
                    slots.died(&dead);
                }
                value_at += out.value_in_record();
            }
            if let Some(era) = slots.next_era() {
                left = Some(std::mem::replace(&mut state.era, era));
            }
            state.seq = placed.seq;
            state.live = ledger.live();
        };
        match base {
            Some(base) if outs.len() <= SHORT => {
                let Base { state, pins } = base;
                self.shared.published.change_mine(state, |mine, now| mine.pin_if_other(now, pins), apply);
                left.into_iter().for_each(|era| pins.keep_era(era));
            }
            None if outs.len() <= SHORT => self.shared.published.change(apply),
            base => {
                self.shared.published.change_aside(apply);
                base.into_iter().for_each(|base| base.renew(self.published()));
            }
        }
    }

    /// Takes a segment out of the index; nothing in it is live any more.
    pub(crate) fn unseat(&self, log: &mut Log, slot: u32) {
        self.shared.published.change(|state| Arc::make_mut(&mut state.segments).remove(slot));
        log.retire(slot);
    }

    /// Waits until commit `seq` (or the last one, if that is less) has reached a level. Whoever waits while no sync runs syncs for all.
    ///
    /// # Errors
    /// [`StateError::Io`] if the sync failed; the engine takes no commits then, and nothing is synced again.
    pub fn wait(&self, seq: u64, level: Durability) -> Result<(), StateError> {
        if level == Durability::Process {
            return Ok(());
        }
        let seq = seq.min(self.published().seq);
        match self.shared.group.join(seq)? {
            Role::Done => Ok(()),
            Role::Lead => self.lead().run(),
        }
    }

    /// A sync for the caller to carry out itself (on its ring, say), so that commit `seq` becomes durable; `None` if it is, or if
    /// another sync is in flight.
    ///
    /// # Errors
    /// [`StateError::Io`] if an earlier sync failed.
    pub fn sync_job(&self, seq: u64) -> Result<Option<SyncJob>, StateError> {
        let role = self.shared.group.try_join(seq.min(self.published().seq))?;
        Ok(matches!(role, Some(Role::Lead)).then(|| self.lead()))
    }

    fn lead(&self) -> SyncJob {
        let (seq, segments) = self.log().take_unsynced();
        SyncJob { engine: self.clone(), seq, segments, ended: false }
    }

    fn synced(&self, seq: u64, outcome: Result<(), StateError>) -> Result<(), StateError> {
        if let Err(error) = &outcome {
            self.log().poison(error);
        }
        self.shared.group.finish(outcome.clone().map(|()| seq));
        if outcome.is_ok() {
            let retired = self.log().take_retired(self.durable());
            retired.into_iter().for_each(|id| self.shared.storage.retire(id));
        }
        outcome
    }

    /// Makes everything durable and writes down that it is, so that the next opening can tell damage from a torn tail. Commits may go on.
    ///
    /// # Errors
    /// As [`Engine::wait`], and [`StateError::NoSpare`]: everything is durable then.
    pub fn seal(&self) -> Result<u64, StateError> {
        let seq = self.published().seq;
        self.wait(seq, Durability::Node)?;
        let mut log = self.log();
        log.check_usable()?;
        if log.is_sealed() {
            return Ok(seq);
        }
        let mark = Out::of(PartKind::Watermark);
        let mut marks = [mark];
        let placed = self.write(&mut log, &mut marks)?;
        self.publish(&mut log, &marks, placed, None, |_, _| {});
        drop(log);
        self.wait(placed.seq, Durability::Node)?;
        Ok(placed.seq)
    }
}

/// Maps what recovery found, and syncs what of it was not durable. Returns it, and the segments that are left out.
fn take_up(sources: Vec<Source>, durable: u64) -> Result<(Vec<Tracked>, Vec<u64>), StateError> {
    let mut tracked = Vec::new();
    let mut empty = Vec::new();
    for (slot, Source { segment, begin, listed }) in (0..).zip(sources) {
        if listed.last_seq == listed.base_seq {
            // Nothing is in it, and nobody knows whether its header is on the disk: the log does not build on it.
            empty.push(listed.id);
            continue;
        }
        if listed.last_seq > durable {
            segment.sync().map_err(StateError::io(Operation::Sync, listed.id))?;
        }
        tracked.push(Tracked { slot, begin, listed, mapped: Arc::new(Mapped::new(segment)?) });
    }
    Ok((tracked, empty))
}

/// A sync that its holder carries out: sync every segment, then say how it went. Dropping it unsaid counts as a failure.
#[derive(Debug)]
pub struct SyncJob {
    engine: Engine,
    seq: u64,
    segments: Vec<Arc<dyn Segment>>,
    ended: bool,
}

impl SyncJob {
    /// The segments to sync, in this order.
    pub fn segments(&self) -> &[Arc<dyn Segment>] {
        &self.segments
    }

    /// Says how it went. The error names the segment.
    ///
    /// # Errors
    /// The same error.
    pub fn finish(mut self, outcome: Result<(), (u64, std::io::Error)>) -> Result<(), StateError> {
        self.ended = true;
        let outcome = outcome.map_err(|(segment, error)| StateError::io(Operation::Sync, segment)(error));
        self.engine.synced(self.seq, outcome)
    }

    fn run(self) -> Result<(), StateError> {
        let failed = self.segments.iter().find_map(|segment| Some((segment.id(), segment.sync().err()?)));
        self.finish(failed.map_or(Ok(()), Err))
    }
}

impl Drop for SyncJob {
    fn drop(&mut self) {
        if !self.ended {
            let abandoned = std::io::Error::other("a sync was begun and not carried out");
            let _ = self.engine.synced(self.seq, Err(StateError::io(Operation::Sync, 0)(abandoned)));
        }
    }
}
