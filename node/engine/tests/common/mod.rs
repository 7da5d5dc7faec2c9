//! What the tests of the engine share: a disk in memory that remembers every write, a deterministic source of randomness, and a
//! plain model of what the engine should hold.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "each test file uses a part of it"
)]
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "tests")]

pub mod sim;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use denizen_engine::{Engine, Lineage, Options, Recovery, SegmentSizes, Snapshot, StateError};
use sim::Sim;

pub const LINEAGE: Lineage = Lineage(*b"the test lineage");

/// Splitmix64.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

pub type Objects = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// Small segments, so that a test sees many of them.
pub fn options() -> Options {
    let mut options = Options::new(LINEAGE, 8 << 20);
    options.segments = SegmentSizes { min_bytes: 16 << 10, max_bytes: 64 << 10 };
    options.clock = || 1_700_000_000_000;
    options
}

pub fn open(sim: &Sim) -> Result<(Engine, Recovery), StateError> {
    Engine::open(Arc::new(sim.clone()), options())
}

/// Everything that a snapshot shows.
pub fn contents(snapshot: &Snapshot) -> Result<Objects, StateError> {
    let mut objects = Objects::new();
    snapshot.scan(b"", None, |key, value| {
        assert_eq!(value.bytes.as_ptr().addr() % 16, 0, "a value is not aligned");
        let fresh = objects.insert(key.to_vec(), (value.fingerprint, value.bytes.to_vec()));
        assert!(fresh.is_none(), "a key came twice");
        ControlFlow::Continue(())
    })?;
    for (key, (fingerprint, bytes)) in &objects {
        let value = snapshot.get(key)?.expect("what a scan shows can be got");
        assert_eq!((value.fingerprint, value.bytes), (*fingerprint, bytes.as_slice()));
    }
    assert_eq!(snapshot.len(), objects.len() as u64);
    Ok(objects)
}
