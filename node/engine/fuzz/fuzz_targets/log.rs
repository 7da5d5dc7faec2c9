//! Any bytes behind a real log, and any bytes over it: recovery, salvage and verification say what they say, and never panic. The fuzzer
//! writes pieces of (offset, bytes) over a segment that the engine wrote.
#![no_main]

use std::io;
use std::sync::{Arc, OnceLock};

use denizen_engine::offline::Offline;
use denizen_engine::storage::{Map, Segment};
use denizen_engine::{Access, Engine, FileEntry, FileKind, Lineage, Options, Salvage};
use libfuzzer_sys::fuzz_target;

const LINEAGE: Lineage = Lineage([3; 16]);

#[derive(Debug)]
struct Bytes(u64, Vec<u8>);

impl Segment for Bytes {
    fn id(&self) -> u64 {
        self.0
    }
    fn capacity(&self) -> u64 {
        self.1.len() as u64
    }
    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let from = self.1.get(offset as usize..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn map(&self) -> io::Result<Map> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A log of one segment, as the engine writes it.
fn seed() -> &'static (u64, Vec<u8>) {
    static SEED: OnceLock<(u64, Vec<u8>)> = OnceLock::new();
    SEED.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("denizen-fuzz-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let storage = Arc::new(denizen_engine::storage::Directory::open(&dir).unwrap());
        let mut options = Options::new(LINEAGE, 1 << 20);
        options.segments.min_bytes = 64 << 10;
        let (engine, _) = Engine::open(storage.clone(), options).unwrap();
        for n in 0..6_u8 {
            let mut tx = engine.begin(Access::Exclusive);
            tx.put(&[b'k', n % 4], 1, &[n; 40]).unwrap();
            tx.delete(&[b'k', n % 3]).unwrap();
            tx.remember_reply(&[n], denizen_engine::Reply { expires_ms: 1, reply: b"r" }).unwrap();
            tx.commit().unwrap();
        }
        // Some of these are written over those before.
        for n in 0..40 {
            let mut tx = engine.begin(Access::Exclusive);
            tx.put_bytes(&[b'k', 4 + n % 3], &[n; 1024]).unwrap();
            tx.commit().unwrap();
        }
        let mut files = engine.write_files();
        files.put_part(1, &[5; 100]).unwrap();
        let kind = FileKind::File { len: 5000, part_len: 4096, parts: vec![0, 1] };
        files.put(b"dir/file", &FileEntry { mode: 0o644, modified: (1, 2), kind }).unwrap();
        files.commit().unwrap();
        engine.seal().unwrap();
        let bytes = std::fs::read(storage.file(1)).unwrap();
        drop(engine);
        let _ = std::fs::remove_dir_all(&dir);
        (1, bytes)
    })
}

fuzz_target!(|input: &[u8]| {
    let (id, image) = seed();
    let mut image = image.clone();
    let mut rest = input;
    while let [at0, at1, len, tail @ ..] = rest {
        let at = usize::from(u16::from_le_bytes([*at0, *at1]));
        let (piece, behind) = tail.split_at(tail.len().min(usize::from(*len)));
        if let Some(place) = image.get_mut(at..at + piece.len()) {
            place.copy_from_slice(piece);
        }
        rest = behind;
    }
    let segments: Vec<Arc<dyn Segment>> = vec![Arc::new(Bytes(*id, image))];
    if let Ok(offline) = Offline::read(&segments, Some(LINEAGE)) {
        let _ = offline.verify(|_, _| {});
        let _ = offline.inspect();
        for (_, entry) in offline.files().unwrap_or_default() {
            for piece in entry.iter().flat_map(|entry| entry.pieces().take(16)) {
                let _ = offline.file_piece(piece);
            }
        }
    }
    if let Ok(salvage) = Salvage::open(&segments, LINEAGE, 0) {
        for n in 0..4 {
            let _ = salvage.get(&[b'k', n]);
        }
    }
});
