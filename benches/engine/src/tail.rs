//! The ways to write the tail of a segment: a plain write, or a writable alias of it; each alone and with a sync, and what
//! reaches the disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use denizen_engine::storage::FileSegment;

use crate::Plan;
use crate::rounds::{Contender, compare};

const CAPACITY: usize = 256 << 20;
const SMALL: usize = 192;
const LARGE: usize = 4096 + 128;
static RECORD: [u8; LARGE] = [7; LARGE];

fn file(plan: &Plan, name: &str) -> File {
    let path = plan.dir(name).join("tail");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).unwrap();
    FileSegment::allocate(&file, CAPACITY as u64).unwrap();
    file
}

/// A mapping of all of the tail for writing: more than the engine has, to see what it costs.
struct Alias {
    file: File,
    base: *mut u8,
    at: usize,
    ready: usize,
}

impl Alias {
    fn new(file: File) -> Alias {
        let len = CAPACITY;
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let base = unsafe {
            mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)
        };
        // SAFETY: advice on a mapping of our own.
        unsafe { rustix::mm::madvise(base.unwrap(), len, rustix::mm::Advice::Random) }.unwrap();
        Alias { file, base: base.unwrap().cast(), at: 0, ready: 0 }
    }

    fn append(&mut self, len: usize) {
        assert!(self.at + len <= CAPACITY);
        // SAFETY: inside the mapping; nobody else has a pointer into it.
        unsafe { self.base.add(self.at).copy_from_nonoverlapping(RECORD.as_ptr(), len) };
        self.at += len;
    }

    /// As [`Alias::prepare`], with the pages brought into the page cache before, as one piece, by a write of zeros.
    fn prepare_with_zeros(&mut self) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        if self.ready < self.at + LARGE {
            self.file.write_all_at(&ZEROS, self.ready as u64).unwrap();
            self.prepare(ZEROS.len());
        }
    }

    /// Makes the pages of the next `step` bytes ready to be written when they are not.
    fn prepare(&mut self, step: usize) {
        while self.ready < self.at + step.min(64 << 10) && self.ready + step <= CAPACITY {
            // SAFETY: inside the mapping; populating changes no byte.
            unsafe {
                rustix::mm::madvise(
                    self.base.add(self.ready).cast(),
                    step,
                    rustix::mm::Advice::LinuxPopulateWrite,
                )
            }
            .unwrap();
            self.ready += step;
        }
    }
}

fn written_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = text.lines().find(|line| line.starts_with("write_bytes:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Compares both ways.
pub(crate) fn ways_to_write(plan: &Plan) {
    let plain = file(plan, "tail-pwrite");
    let mut at = 0;
    let mut pwrite = |len: usize, sync: bool| {
        plain.write_all_at(&RECORD[..len], at).unwrap();
        at += len as u64;
        if sync {
            plain.sync_data().unwrap();
        }
    };
    let mut alias = Alias::new(file(plan, "tail-alias"));
    let mut ready = Alias::new(file(plan, "tail-ready"));
    let begun = Instant::now();
    ready.prepare(CAPACITY);
    let each = begun.elapsed().as_secs_f64() * 1e9 / (CAPACITY / 4096) as f64;
    println!("populating ahead: {each:.0} ns per page");
    let mut batched = Alias::new(file(plan, "tail-batched"));
    let mut zeroed = Alias::new(file(plan, "tail-zeroed"));
    for (len, n) in [(SMALL, plan.pick(50_000, 100)), (LARGE, plan.pick(5_000, 10))] {
        let contenders = vec![
            Contender::each("pwrite", || pwrite(len, false)),
            Contender::each("writable alias", || alias.append(len)),
            Contender::each("populated 64 KiB ahead", || {
                batched.prepare(64 << 10);
                batched.append(len);
            }),
            Contender::each("64 KiB of zeros ahead", || {
                zeroed.prepare_with_zeros();
                zeroed.append(len);
            }),
            Contender::each("populated by somebody else", || ready.append(len)),
        ];
        compare(&format!("{len} B to the tail"), 7, n, contenders);
    }
    let syncs = plan.pick(300, 5);
    {
        let contenders = vec![
            Contender::each("pwrite + fdatasync", || pwrite(SMALL, true)),
            Contender::each("writable alias + fdatasync", || {
                alias.append(SMALL);
                alias.file.sync_data().unwrap();
            }),
        ];
        compare("192 B to the tail, synced", 21, syncs, contenders);
    }
    measure("pwrite", syncs, || pwrite(SMALL, true));
    measure("writable alias", syncs, || {
        alias.append(SMALL);
        alias.file.sync_data().unwrap();
    });
}

/// Bytes that reach the disk for a record.
fn measure(name: &str, syncs: usize, mut step: impl FnMut()) {
    let (before, begun) = (written_bytes(), Instant::now());
    (0..syncs).for_each(|_| step());
    let each = (written_bytes() - before) / syncs as u64;
    let took = begun.elapsed().as_secs_f64() * 1e6 / syncs as f64;
    println!("{name:<28} {each} bytes written per synced record, {took:.0} µs");
}
