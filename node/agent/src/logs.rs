//! What processes print: the last of it in memory, and the rest to whoever follows.
//!
//! Each process has a ring of at most [`RING_BYTES`], and of much less where there are very many; a reader that follows has a
//! queue of its own and loses lines, counted, when it is slow: a process never waits for a reader. A process that prints
//! without end loses lines too, so that it cannot keep the agent busy. Shared between executors behind short locks; nothing is
//! done under them but moving pointers.

mod line;
mod packed;
mod text;

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_channel::mpsc;

pub(crate) use line::{Line, STARTED, Speaker, Stream};
use packed::Packed;
pub(crate) use text::Splitter;

/// Memory for the lines of one process, in bytes.
const RING_BYTES: usize = 1 << 20;
/// The same while all logs together take more than [`ALL_BYTES`].
const SCARCE_RING_BYTES: usize = 16 << 10;
/// Memory for all logs, in bytes, before each new line costs its process older ones.
const ALL_BYTES: usize = 256 << 20;
/// How much of a line is quoted in a problem.
const QUOTED_CHARS: usize = 1000;
/// Lines that a follower may be behind.
const FOLLOWER_LINES: usize = 4096;
/// What one process may print in a second before lines are dropped, in bytes.
const BYTES_PER_SECOND: usize = 4 << 20;
/// What a line counts for, at least: an empty one costs the agent and its readers about as much as a short one.
const LEAST_LINE_BYTES: usize = 256;

/// Names a process: application and process.
type Key = (Box<str>, Box<str>);

/// The logs of a node.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    rings: Mutex<HashMap<Key, Kept>>,
    followers: Arc<Mutex<Vec<Follower>>>,
    /// Orders lines of different processes.
    sequence: Arc<AtomicU64>,
    /// What all rings take.
    bytes: Arc<AtomicUsize>,
}

/// The log of a process, or what is left of it while nobody writes there.
#[derive(Debug)]
enum Kept {
    Open(Arc<Log>),
    Packed(Packed),
}

/// The log of one process.
#[derive(Debug)]
pub(crate) struct Log {
    app: Box<str>,
    process: Box<str>,
    ring: Mutex<Ring>,
    followers: Arc<Mutex<Vec<Follower>>>,
    sequence: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Ring {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    /// What all rings of the node take, this one included.
    all_bytes: Arc<AtomicUsize>,
    second: Instant,
    printed: usize,
    dropped: u64,
}

#[derive(Debug)]
struct Follower {
    wants: Wanted,
    lines: mpsc::Sender<Arc<Line>>,
    missed: u64,
}

/// Whose lines.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) app: Option<String>,
    pub(crate) process: Option<String>,
}

impl Wanted {
    fn wants(&self, app: &str, process: &str) -> bool {
        self.app.as_deref().is_none_or(|wanted| wanted == app)
            && self.process.as_deref().is_none_or(|wanted| wanted == process)
    }
}

/// A panic while the lock was held leaves at worst a line out; logs go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Logs {
    /// The log of a process, a new one if it has none yet.
    pub(crate) fn of(&self, app: &str, process: &str) -> Arc<Log> {
        let mut rings = lock(&self.rings);
        let kept = rings
            .entry((app.into(), process.into()))
            .or_insert_with(|| Kept::Open(self.unlisted(app, process)));
        if let Kept::Packed(packed) = kept {
            let log = self.unlisted(app, process);
            packed.lines(app, process).into_iter().for_each(|line| lock(&log.ring).push(Arc::new(line)));
            *kept = Kept::Open(log);
        }
        match kept {
            Kept::Open(log) => Arc::clone(log),
            Kept::Packed(_) => unreachable!("it was opened"),
        }
    }

    /// Keeps the lines of a process that nobody writes any more in as few bytes as they take, until it is used again.
    pub(crate) fn pack(&self, app: &str, process: &str) {
        let mut rings = lock(&self.rings);
        let Some(kept) = rings.get_mut(&(app.into(), process.into()) as &Key) else { return };
        let Kept::Open(log) = kept else { return };
        // Nobody else gets it meanwhile: it is found here only.
        if Arc::strong_count(log) > 1 {
            return;
        }
        let ring = lock(&log.ring);
        // How many lines were dropped is still to be said.
        if ring.dropped > 0 {
            return;
        }
        let packed = Packed::new(&ring.lines, &self.bytes);
        drop(ring);
        *kept = Kept::Packed(packed);
    }

    /// A log that followers hear and nobody finds later: of a probe.
    pub(crate) fn unlisted(&self, app: &str, process: &str) -> Arc<Log> {
        let ring = Ring::new(&self.bytes, Instant::now());
        Arc::new(Log {
            app: app.into(),
            process: process.into(),
            ring: Mutex::new(ring),
            followers: Arc::clone(&self.followers),
            sequence: Arc::clone(&self.sequence),
        })
    }

    /// Forgets the log of a deleted process.
    pub(crate) fn forget(&self, app: &str, process: &str) {
        lock(&self.rings).remove(&(app.into(), process.into()));
    }

    /// The last `tail` lines that are wanted, in the order in which they came, and all later ones.
    pub(crate) fn follow(&self, wanted: &Wanted, tail: usize) -> (Vec<Arc<Line>>, mpsc::Receiver<Arc<Line>>) {
        let (sender, receiver) = mpsc::channel(FOLLOWER_LINES);
        // Registered first: a line that comes in between is in both, and the sequence tells.
        lock(&self.followers).push(Follower { wants: wanted.clone(), lines: sender, missed: 0 });
        (self.tail(wanted, tail), receiver)
    }

    /// The last `tail` lines that are wanted, in the order in which they came.
    pub(crate) fn tail(&self, wanted: &Wanted, tail: usize) -> Vec<Arc<Line>> {
        let (mut logs, mut lines) = (Vec::new(), Vec::<Arc<Line>>::new());
        for ((app, process), kept) in lock(&self.rings).iter() {
            match kept {
                _ if !wanted.wants(app, process) => {}
                Kept::Open(log) => logs.push(Arc::clone(log)),
                Kept::Packed(packed) => {
                    lines.extend(packed.lines(app, process).into_iter().rev().take(tail).map(Arc::new));
                }
            }
        }
        for log in logs {
            lines.extend(lock(&log.ring).lines.iter().rev().take(tail).cloned());
        }
        lines.sort_unstable_by_key(|line| line.sequence);
        lines.split_off(lines.len().saturating_sub(tail))
    }
}

impl Log {
    /// Adds a line of the agent itself.
    pub(crate) fn host(&self, text: impl Into<String>) {
        self.add(Stream::Host, None, text.into());
    }

    /// Adds a line. `speaker` is `None` where it cannot be known.
    pub(crate) fn add(&self, stream: Stream, speaker: Option<Speaker>, text: String) {
        let mut ring = lock(&self.ring);
        // What the agent says is little, and needed most when a process floods its log.
        let Some(dropped) =
            (if stream == Stream::Host { Some(0) } else { ring.admit(self.cost_of(&text), Instant::now()) })
        else {
            return;
        };
        // Only now: a line that is dropped should cost next to nothing.
        let line = Arc::new(Line::new(self.next(), &self.app, &self.process, stream, speaker, text));
        let marker = (dropped > 0).then(|| {
            let text = format!("{dropped} lines were dropped: this process prints too fast");
            Arc::new(Line::new(self.next(), &self.app, &self.process, Stream::Host, None, text))
        });
        for line in marker.into_iter().chain([line]) {
            ring.push(Arc::clone(&line));
            self.hand_out(&line);
        }
    }

    /// The end of what was printed in this term, at most `lines` lines, each cut: it is quoted in problems, which are stored.
    pub(crate) fn last_printed(&self, lines: usize) -> Vec<String> {
        let ring = lock(&self.ring);
        let wanted = ring
            .lines
            .iter()
            .rev()
            .take_while(|line| !line.begins_term())
            .filter(|line| line.stream == Stream::Output);
        let mut last: Vec<_> =
            wanted.take(lines).map(|line| line.text.chars().take(QUOTED_CHARS).collect()).collect();
        last.reverse();
        last
    }

    /// What a line of this log takes in memory, about.
    fn cost_of(&self, text: &str) -> usize {
        size_of::<Line>() + self.app.len() + self.process.len() + text.len()
    }

    fn next(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed)
    }

    fn hand_out(&self, line: &Arc<Line>) {
        lock(&self.followers).retain_mut(|follower| {
            if !follower.wants.wants(&self.app, &self.process) {
                return !follower.lines.is_closed();
            }
            follower.give(line, || self.next())
        });
    }
}

impl Ring {
    fn new(all_bytes: &Arc<AtomicUsize>, now: Instant) -> Ring {
        let (lines, all_bytes) = (VecDeque::new(), Arc::clone(all_bytes));
        Ring { lines, bytes: 0, all_bytes, second: now, printed: 0, dropped: 0 }
    }

    /// Whether a line may be kept, and how many were dropped before it.
    fn admit(&mut self, bytes: usize, now: Instant) -> Option<u64> {
        if now.duration_since(self.second) >= Duration::from_secs(1) {
            self.second = now;
            self.printed = 0;
        }
        self.printed = self.printed.saturating_add(bytes.max(LEAST_LINE_BYTES));
        if self.printed > BYTES_PER_SECOND {
            self.dropped += 1;
            return None;
        }
        Some(std::mem::take(&mut self.dropped))
    }

    fn push(&mut self, line: Arc<Line>) {
        let bytes = line.bytes();
        self.bytes += bytes;
        let all = self.all_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.lines.push_back(line);
        let limit = if all > ALL_BYTES { SCARCE_RING_BYTES } else { RING_BYTES };
        while self.bytes > limit {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.bytes();
            self.all_bytes.fetch_sub(oldest.bytes(), Ordering::Relaxed);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.all_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Follower {
    /// False when it is gone.
    fn give(&mut self, line: &Arc<Line>, next: impl Fn() -> u64) -> bool {
        if self.missed > 0 {
            let text = format!("{} lines were dropped: this reader is too slow", self.missed);
            let marker = Line::new(next(), &line.app, &line.process, Stream::Host, None, text);
            match self.lines.try_send(Arc::new(marker)) {
                Ok(()) => self.missed = 0,
                Err(error) if error.is_disconnected() => return false,
                Err(_) => {}
            }
        }
        match self.lines.try_send(Arc::clone(line)) {
            Err(error) if error.is_disconnected() => false,
            Err(_) => {
                self.missed += 1;
                true
            }
            Ok(()) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use denizen_protocol::TraceParent;

    use super::*;

    fn texts(lines: &[Arc<Line>]) -> Vec<&str> {
        lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn the_ring_keeps_the_end_within_its_bytes() {
        let logs = Logs::default();
        let log = logs.of("a", "p");
        for number in 0..3 {
            log.add(Stream::Output, None, format!("{number}{}", "x".repeat(RING_BYTES / 2 - 1000)));
        }
        let kept = logs.tail(&Wanted::default(), usize::MAX);
        assert_eq!(kept.len(), 2, "the oldest went");
        assert!(kept.iter().map(|line| line.bytes()).sum::<usize>() <= RING_BYTES);
    }

    #[test]
    fn very_many_processes_keep_little_each() {
        let logs = Logs::default();
        let text = "x".repeat(RING_BYTES / 4);
        let processes = 2 * ALL_BYTES / RING_BYTES;
        for number in 0..processes {
            let log = logs.of("a", &number.to_string());
            (0..4).for_each(|_| log.add(Stream::Output, None, text.clone()));
        }
        let all = logs.bytes.load(Ordering::Relaxed);
        assert!(all <= ALL_BYTES + RING_BYTES, "{all} bytes are kept");
        (0..processes).for_each(|number| logs.forget("a", &number.to_string()));
        assert_eq!(logs.bytes.load(Ordering::Relaxed), 0, "what is forgotten is given back");
    }

    #[test]
    fn a_packed_log_is_read_and_goes_on() {
        let logs = Logs::default();
        let log = logs.of("a", "p");
        let speaker = Speaker { invocation: "call".into(), trace: TraceParent::from_bytes(&[7; 25]) };
        log.add(Stream::Output, Some(speaker), "said ü".to_owned());
        log.host("swapped out");
        let documents = || -> Vec<_> {
            logs.tail(&Wanted::default(), 10)
                .iter()
                .map(|line| serde_json::to_value(&**line).unwrap())
                .collect()
        };
        let before = documents();
        logs.pack("a", "p");
        assert!(matches!(lock(&logs.rings).values().next(), Some(Kept::Open(_))), "somebody has it");
        drop(log);
        logs.pack("a", "p");
        assert!(matches!(lock(&logs.rings).values().next(), Some(Kept::Packed(_))));
        let packed = logs.bytes.load(Ordering::Relaxed);
        assert!((1..200).contains(&packed), "{packed} bytes for two short lines");
        assert_eq!(documents(), before);
        assert_eq!(texts(&logs.tail(&Wanted::default(), 1)), ["swapped out"]);
        logs.of("a", "p").host("started");
        assert_eq!(texts(&logs.tail(&Wanted::default(), 10)), ["said ü", "swapped out", "started"]);
        logs.forget("a", "p");
        assert_eq!(logs.bytes.load(Ordering::Relaxed), 0, "what is forgotten is given back");
    }

    #[test]
    fn lines_of_several_processes_come_in_order() {
        let logs = Logs::default();
        let (a, b) = (logs.of("a", "p"), logs.of("b", "p"));
        a.host("1");
        b.host("2");
        a.host("3");
        assert_eq!(texts(&logs.tail(&Wanted::default(), 10)), ["1", "2", "3"]);
        assert_eq!(texts(&logs.tail(&Wanted::default(), 2)), ["2", "3"]);
        let only_a = Wanted { app: Some("a".into()), process: None };
        assert_eq!(texts(&logs.tail(&only_a, 10)), ["1", "3"]);
    }

    #[test]
    fn a_slow_follower_loses_lines_and_is_told_how_many() {
        let logs = Logs::default();
        let log = logs.of("a", "p");
        let (_, mut follower) = logs.follow(&Wanted::default(), 0);
        let sent = FOLLOWER_LINES + 100;
        for number in 0..sent {
            log.host(number.to_string());
        }
        let mut got = 0;
        while follower.try_recv().is_ok() {
            got += 1;
        }
        log.host("later");
        let marker = follower.try_recv().unwrap();
        assert!(marker.text.starts_with(&format!("{} lines were dropped", sent - got)), "{}", marker.text);
        assert_eq!(follower.try_recv().unwrap().text, "later");
    }

    #[test]
    fn a_process_that_prints_without_end_is_cut_and_says_so() {
        let now = Instant::now();
        let mut ring = Ring::new(&Arc::default(), now);
        let admitted = (0..BYTES_PER_SECOND).filter(|_| ring.admit(1, now).is_some()).count();
        assert_eq!(admitted, BYTES_PER_SECOND / LEAST_LINE_BYTES, "short lines count, too");
        let dropped = u64::try_from(BYTES_PER_SECOND - admitted).unwrap();
        assert_eq!(ring.admit(1, now + Duration::from_secs(1)), Some(dropped));
    }
}
