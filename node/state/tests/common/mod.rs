//! A state file of a test's own, and a seeded source of choices.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use denizen_state::{Engine, Lineage, OpenOptions as StateOptions, StateError};

pub struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    pub fn empty() -> Disk {
        let disk = Disk { dir: tempfile::tempdir().unwrap() };
        OpenOptions::new().create(true).truncate(true).write(true).open(disk.path()).unwrap();
        disk
    }

    pub fn formatted() -> Disk {
        let disk = Disk::empty();
        Engine::format(&disk.file(), Lineage([9; 16])).unwrap();
        disk
    }

    pub fn holding(bytes: &[u8]) -> Disk {
        let disk = Disk::empty();
        std::fs::write(disk.path(), bytes).unwrap();
        disk
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.path()).unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    pub fn blocks_bytes(&self) -> u64 {
        std::fs::metadata(self.path()).unwrap().blocks() * 512
    }

    pub fn try_open(&self, options: StateOptions) -> Result<Engine, StateError> {
        Engine::open(self.file(), File::open(self.path()).unwrap(), options)
    }

    pub fn open_with(&self, quota_bytes: u64, garbage_bytes: u64) -> Engine {
        self.try_open(StateOptions { quota_bytes, garbage_bytes }).unwrap()
    }

    pub fn open(&self) -> Engine {
        self.try_open(StateOptions::with_quota(64 << 20)).unwrap()
    }
}

/// xorshift64: the same seed gives the same choices.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 8).unwrap() % bound
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| u8::try_from(self.next() >> 56).unwrap()).collect()
    }
}
