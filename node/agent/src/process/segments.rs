//! The segments of a sandbox as its executor sees them: which it has, which it asked for, which it gives back.
//!
//! What it says of them is an allegation: a segment that it never had, or had given back, and a third spare while two are on their way,
//! are broken rules. How much room it may have is [`Shelf`]'s affair, on a side thread, where everything happens that a disk has to do
//! with; answers go out in the order of asking.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use denizen_engine::MAX_SEGMENT_LEN;
use denizen_engine::offline::commits_possible;
use denizen_wire::{Header, Kind, SegmentUse, SpareRefusal};

use crate::executor;
use crate::process::Active;
use crate::process::end::Killing;
use crate::process::files::{Bounds, Handed, Refused, Shelf};
use crate::process::invocation::Broken;
use crate::process::link::Link;
use crate::process::room;
use crate::side::SideThread;

/// Spares that may be on their way: the next one, and a larger one that a commit needs now.
const MOST_WANTED: usize = 2;

/// Lets a sandbox write to files as long as this, in bytes.
type Reach = Box<dyn Fn(u64) -> std::io::Result<()>>;

/// The segments of one sandbox.
pub(crate) struct Segments {
    link: Rc<Link>,
    reach: Reach,
    /// The rule that it broke by its segments.
    broken: RefCell<Option<Broken>>,
    /// Whom it is told.
    sandbox: RefCell<Weak<Active>>,
    present: RefCell<BTreeSet<u64>>,
    /// The highest number that a commit can have.
    last_commit: Cell<u64>,
    /// Bytes of the spares that it waits for.
    wanted: RefCell<VecDeque<u64>>,
    answering: Cell<bool>,
    shelf: Arc<Mutex<Shelf>>,
    /// It could write behind the ends of its segments: [`Shelf::can_be_stretched`] after the last job that knew.
    can_stretch: Arc<AtomicBool>,
    /// It is among those that [`room`] looks at.
    pub(super) watched: Cell<bool>,
    /// Jobs on the side thread that are not done.
    pending: Arc<AtomicUsize>,
    side: SideThread,
}

/// The segments of a sandbox, to be looked at on the side thread.
pub(super) struct ToLookAt {
    shelf: Arc<Mutex<Shelf>>,
    can_stretch: Arc<AtomicBool>,
    counted: Pending,
}

/// A segment that is not as long as it was made, and its length.
pub(super) type Stretched = (u64, u64);

impl ToLookAt {
    /// Looks. Blocks.
    pub(super) fn look(self) -> Option<Stretched> {
        let shelf = lock(&self.shelf);
        let stretched = shelf.stretched();
        self.can_stretch.store(shelf.can_be_stretched(), Ordering::Release);
        drop((shelf, self.counted));
        stretched
    }

    /// Bytes that are free on the disk under them. Blocks.
    pub(super) fn disk_free(&self) -> Option<u64> {
        lock(&self.shelf).disk_free()
    }
}

impl Segments {
    /// Begins with the segments that went out with the assignment.
    pub(crate) fn new(
        link: Rc<Link>,
        reach: Reach,
        present: BTreeSet<u64>,
        shelf: Shelf,
        side: SideThread,
    ) -> Rc<Segments> {
        Rc::new(Segments {
            link,
            reach,
            broken: RefCell::default(),
            sandbox: RefCell::default(),
            present: RefCell::new(present),
            last_commit: Cell::new(shelf.last_commit()),
            can_stretch: Arc::new(AtomicBool::new(shelf.can_be_stretched())),
            watched: Cell::new(false),
            wanted: RefCell::default(),
            answering: Cell::new(false),
            shelf: Arc::new(Mutex::new(shelf)),
            pending: Arc::default(),
            side,
        })
    }

    /// Ends `active` when it breaks a rule that only a look at the disk shows; from now on there are such looks.
    pub(crate) fn belongs_to(self: &Rc<Segments>, active: &Rc<Active>) {
        *self.sandbox.borrow_mut() = Rc::downgrade(active);
        self.watch_if_need_be();
    }

    fn watch_if_need_be(self: &Rc<Segments>) {
        if self.can_stretch() && !self.is_over() && !self.watched.replace(true) {
            room::watch(self, &self.side);
        }
    }

    /// Whether nobody has to look any more.
    pub(super) fn is_over(&self) -> bool {
        self.sandbox.borrow().upgrade().is_none_or(|active| active.is_ending())
    }

    pub(super) fn breaks(&self, (id, bytes): Stretched) {
        let broken = format!("it wrote behind the end of segment {id}, which is {bytes} bytes long now");
        self.broken.borrow_mut().get_or_insert_with(|| broken.clone());
        if let Some(active) = self.sandbox.borrow().upgrade() {
            active.kill(Killing::Misbehaved(broken));
        }
    }

    /// For a look whether it has written behind the ends of its segments.
    pub(super) fn to_look_at(&self) -> ToLookAt {
        let (shelf, can_stretch) = (Arc::clone(&self.shelf), Arc::clone(&self.can_stretch));
        ToLookAt { shelf, can_stretch, counted: Pending::new(&self.pending) }
    }

    /// Whether it could write behind the ends of its segments.
    pub(super) fn can_stretch(&self) -> bool {
        self.can_stretch.load(Ordering::Acquire)
    }

    /// Whether its log can have a commit of this number, by the room that there was for it.
    ///
    /// # Errors
    /// It cannot: what is said of it is not to be believed, nor written down.
    pub(crate) fn can_have(&self, commit: u64) -> Result<(), Broken> {
        let last = self.last_commit.get();
        let broken = || format!("it tells of commit {commit}, and its segments have room for {last} at most");
        if commit <= last { Ok(()) } else { Err(broken()) }
    }

    /// Its state may take so many bytes from now on, if that is more than before.
    pub(crate) fn allow(&self, quota: u64) {
        if quota > 0 {
            let shelf = Arc::clone(&self.shelf);
            self.side.later(move || lock(&shelf).allow(&Bounds::of(quota)));
        }
    }

    /// The sandbox wants a spare of at least `bytes`.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub(crate) fn want(self: &Rc<Segments>, bytes: u64) -> Result<(), Broken> {
        let mut wanted = self.wanted.borrow_mut();
        if wanted.len() >= MOST_WANTED {
            return Err(format!("it wants another segment while {MOST_WANTED} are on their way"));
        }
        if bytes > MAX_SEGMENT_LEN {
            return Err(format!("it wants a segment of {bytes} bytes, which no log can have"));
        }
        wanted.push_back(bytes);
        if !self.answering.replace(true) {
            executor::spawn(answer(Rc::clone(self)));
        }
        Ok(())
    }

    /// The sandbox gives a segment back.
    ///
    /// # Errors
    /// It has no such segment.
    pub(crate) fn retired(&self, id: u64) -> Result<(), Broken> {
        if !self.present.borrow_mut().remove(&id) {
            return Err(format!("it gives back segment {id}, which it does not have"));
        }
        let shelf = Arc::clone(&self.shelf);
        let counted = Pending::new(&self.pending);
        self.side.later(move || {
            if let Err(error) = lock(&shelf).retire(id) {
                tracing::warn!("segment {id:x} cannot be deleted: {error}");
            }
            drop(counted);
        });
        Ok(())
    }

    /// Waits until nothing is done to the folder any more, and its segments are as long as they were made. The sandbox is dead: nothing
    /// more is asked for.
    pub(crate) async fn settle(&self) {
        self.wanted.borrow_mut().clear();
        let (shelf, counted) = (Arc::clone(&self.shelf), Pending::new(&self.pending));
        self.side.later(move || {
            if let Err(error) = lock(&shelf).trim() {
                tracing::warn!("a segment that was made too long cannot be cut: {error}");
            }
            drop(counted);
        });
        while self.pending.load(Ordering::Acquire) > 0 {
            // Jobs are done in order. A thread that is gone does nothing any more either.
            if self.side.run(|| ()).await.is_err() {
                break;
            }
        }
    }

    fn answered(&self, made: Result<Handed, Refused>) {
        match made {
            Ok(segment) => {
                self.present.borrow_mut().insert(segment.id);
                let more = commits_possible(segment.bytes);
                self.last_commit.set(self.last_commit.get().saturating_add(more));
                if let Err(error) = (self.reach)(segment.bytes) {
                    tracing::warn!(
                        "a sandbox cannot be let write to a segment of {} bytes: {error}",
                        segment.bytes
                    );
                    // It never had it, and takes it from nobody.
                    let _ = self.retired(segment.id);
                    return self.refuse(SpareRefusal::Failed);
                }
                let header =
                    Header { a: SegmentUse::Spare as u32, c: segment.id, ..Header::new(Kind::Segment, 0) };
                self.link.hand(&header, segment);
            }
            Err(Refused { why, error }) => {
                tracing::info!("a process gets no further segment: {error}");
                self.refuse(why);
            }
        }
    }

    fn refuse(&self, why: SpareRefusal) {
        self.link.send_header(&Header { code: why as u16, ..Header::new(Kind::SpareRefused, 0) });
    }
}

/// Answers what is asked for, one after the other.
async fn answer(segments: Rc<Segments>) {
    loop {
        let Some(bytes) = segments.wanted.borrow().front().copied() else { break };
        let (shelf, counted) = (Arc::clone(&segments.shelf), Pending::new(&segments.pending));
        let can_stretch = Arc::clone(&segments.can_stretch);
        let made = segments.side.run(move || {
            let mut shelf = lock(&shelf);
            let stretched = shelf.stretched();
            let made = if stretched.is_none() { Some(shelf.spare(bytes)) } else { None };
            can_stretch.store(shelf.can_be_stretched(), Ordering::Release);
            drop(counted);
            (made, stretched)
        });
        let made = made.await;
        // None waits any more: the sandbox is dead.
        if segments.wanted.borrow_mut().pop_front().is_none() {
            break;
        }
        match made {
            Ok((Some(made), _)) => {
                segments.watch_if_need_be();
                segments.answered(made);
            }
            Ok((None, stretched)) => {
                stretched.into_iter().for_each(|stretched| segments.breaks(stretched));
                segments.refuse(SpareRefusal::OverLimit);
            }
            Err(_) => segments.refuse(SpareRefusal::Failed),
        }
    }
    segments.answering.set(false);
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A job that is not done.
struct Pending(Arc<AtomicUsize>);

impl Pending {
    fn new(count: &Arc<AtomicUsize>) -> Pending {
        count.fetch_add(1, Ordering::Relaxed);
        Pending(Arc::clone(count))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // What the job did to the folder comes before.
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segments({:?})", self.present.borrow())
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use denizen_sched::{Epoch, Origin};
    use denizen_wire::HEADER_LEN;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

    use super::*;
    use crate::dir::Dir;
    use crate::executor::tests::on_executor;
    use crate::process::files::{self, Bounds};
    use crate::process::lineage::Whose;
    use crate::stock::Stock;

    /// What a runner sees: a frame, and the descriptors on its first byte.
    fn received(socket: &UnixStream) -> (Header, Vec<OwnedFd>) {
        let (mut bytes, mut space) =
            ([0; HEADER_LEN], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))]);
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let got = rustix::net::recvmsg(socket, &mut into, &mut control, RecvFlags::empty()).unwrap();
        assert_eq!(got.bytes, HEADER_LEN);
        let descriptors = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect::<Vec<_>>(),
            _ => panic!("something else came along"),
        });
        let descriptors = descriptors.collect();
        (Header::decode(&bytes).unwrap(), descriptors)
    }

    /// The test's sandbox cannot be let write longer files.
    const REACH: u64 = 2 << 20;

    /// The segments of a new process, and its end of the socket.
    fn segments(dir: &std::path::Path) -> (Rc<Segments>, u64, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let writer = executor::ControlWriter::new(ours.into());
        let node = Dir::open(dir).unwrap();
        let stock = Stock::open(node.stock(), 0).unwrap();
        let whose = Whose { app: "a".to_owned(), process: "p".to_owned(), born: Epoch::new(1) };
        let (paths, origin) = (node.process("a", "p"), Origin::New { born: whose.born });
        let bounds = Bounds::of(1 << 20);
        let opened = files::open(&paths, &whose, Epoch::new(1), origin, 0, bounds, &stock).unwrap();
        let present = BTreeSet::from([opened.spare.id]);
        let side = SideThread::start("segments-test").unwrap();
        let reach = Box::new(|bytes| if bytes > REACH { Err(std::io::Error::other("no")) } else { Ok(()) });
        (Segments::new(Link::new(writer), reach, present, opened.shelf, side), opened.spare.id, theirs)
    }

    #[test]
    fn spares_come_in_order_and_only_two_are_on_their_way() {
        on_executor(|()| async {
            let dir = tempfile::tempdir().unwrap();
            let (segments, first, runner) = segments(dir.path());
            segments.want(1).unwrap();
            segments.want(1 << 20).unwrap();
            assert!(segments.want(1).unwrap_err().contains("on their way"));
            while segments.answering.get() {
                executor::sleep(std::time::Duration::from_millis(1)).await;
            }
            let (small, files) = received(&runner);
            let (large, _) = received(&runner);
            assert_eq!((small.kind, small.a, files.len()), (Kind::Segment, SegmentUse::Spare as u32, 2));
            assert!(first < small.c && small.c < large.c);
            let writable = std::fs::File::from(files.into_iter().next().unwrap());
            assert!(writable.metadata().unwrap().len() < 1 << 20, "the answers changed places");
            // Over every bound.
            segments.want(MAX_SEGMENT_LEN).unwrap();
            assert!(segments.want(MAX_SEGMENT_LEN + 1).unwrap_err().contains("no log can have"));
            while segments.answering.get() {
                executor::sleep(std::time::Duration::from_millis(1)).await;
            }
            let (refused, files) = received(&runner);
            assert_eq!((refused.kind, refused.code), (Kind::SpareRefused, SpareRefusal::OverLimit as u16));
            assert!(files.is_empty());
        });
    }

    async fn answered(segments: &Segments) {
        while segments.answering.get() {
            executor::sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    async fn look(segments: &Segments) {
        let to_look_at = segments.to_look_at();
        let stretched = segments.side.run(|| to_look_at.look()).await.unwrap();
        stretched.into_iter().for_each(|stretched| segments.breaks(stretched));
    }

    #[test]
    fn who_writes_behind_the_end_of_a_segment_gets_no_other_and_is_ended() {
        on_executor(|()| async {
            let dir = tempfile::tempdir().unwrap();
            let (segments, first, runner) = segments(dir.path());
            let path = dir.path().join(format!("state/a/p.state/segment-{first:016x}.log"));
            let file = std::fs::File::options().write(true).open(path).unwrap();
            let made = file.metadata().unwrap().len();
            look(&segments).await;
            assert_eq!(*segments.broken.borrow(), None);
            std::os::unix::fs::FileExt::write_all_at(&file, b"x", made).unwrap();
            segments.want(1).unwrap();
            answered(&segments).await;
            let (refused, files) = received(&runner);
            assert_eq!((refused.kind, files.len()), (Kind::SpareRefused, 0));
            let broken = segments.broken.take().expect("it was not found");
            assert!(broken.contains("behind the end"), "{broken}");
            look(&segments).await;
            assert!(segments.broken.take().is_some(), "only who wants another is looked at");
            segments.settle().await;
            assert_eq!(file.metadata().unwrap().len(), made, "what was too much stays on the disk");
        });
    }

    #[test]
    fn a_segment_that_could_not_be_written_to_its_end_is_not_handed_in() {
        on_executor(|()| async {
            let dir = tempfile::tempdir().unwrap();
            let (segments, _, runner) = segments(dir.path());
            segments.want(REACH + 1).unwrap();
            answered(&segments).await;
            assert_eq!(received(&runner).0.kind, Kind::SpareRefused);
        });
    }

    #[test]
    fn only_what_it_has_can_be_given_back_and_only_once() {
        on_executor(|()| async {
            let dir = tempfile::tempdir().unwrap();
            let (segments, first, _runner) = segments(dir.path());
            let folder = dir.path().join("state/a/p.state");
            assert!(segments.retired(first + 1).unwrap_err().contains("does not have"));
            segments.retired(first).unwrap();
            assert!(segments.retired(first).is_err());
            segments.settle().await;
            assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "it is settled, and the file is there");
        });
    }
}
