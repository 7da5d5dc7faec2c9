//! The contenders, opened alike.

use std::path::Path;
use std::sync::Arc;

use denizen_engine::storage::Directory;
use denizen_engine::{Access, Engine, Lineage, Options};
use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions, WithTls};
use redb::TableDefinition;

pub(crate) const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("t");

pub(crate) fn denizen(dir: &Path) -> Engine {
    denizen_with(dir, Options::new(Lineage(*b"benchmark lineag"), 32 << 30))
}

pub(crate) fn denizen_with(dir: &Path, options: Options) -> Engine {
    Engine::open(Arc::new(Directory::open(dir).unwrap()), options).unwrap().0
}

/// Keys 0 to `n`, in transactions of a thousand.
pub(crate) fn fill_denizen(engine: &Engine, n: u64, value: &[u8]) {
    for from in (0..n).step_by(1000) {
        let mut tx = engine.begin(Access::Exclusive);
        for one in from..(from + 1000).min(n) {
            tx.put_bytes(&crate::rounds::key(one), value).unwrap();
        }
        tx.commit().unwrap();
    }
}

pub(crate) struct Lmdb {
    pub(crate) env: Env<WithTls>,
    pub(crate) db: Database<Bytes, Bytes>,
}

pub(crate) fn lmdb(dir: &Path, synced: bool) -> Lmdb {
    let mut options = EnvOpenOptions::new();
    options.map_size(16 << 30);
    if !synced {
        // SAFETY: only this process opens the environment, and losing it in a crash is the point of this contender.
        unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP | EnvFlags::NO_META_SYNC) };
    }
    // SAFETY: the directory is this benchmark's own.
    let env = unsafe { options.open(dir) }.unwrap();
    let mut tx = env.write_txn().unwrap();
    let db = env.create_database(&mut tx, None).unwrap();
    tx.commit().unwrap();
    Lmdb { env, db }
}

impl Lmdb {
    pub(crate) fn fill(&self, n: u64, value: &[u8]) {
        for from in (0..n).step_by(1000) {
            let mut tx = self.env.write_txn().unwrap();
            for one in from..(from + 1000).min(n) {
                self.db.put(&mut tx, &crate::rounds::key(one), value).unwrap();
            }
            tx.commit().unwrap();
        }
    }

    pub(crate) fn put(&self, key: &[u8], value: &[u8]) {
        let mut tx = self.env.write_txn().unwrap();
        self.db.put(&mut tx, key, value).unwrap();
        tx.commit().unwrap();
    }
}

pub(crate) fn redb(dir: &Path) -> redb::Database {
    let db = redb::Database::create(dir.join("redb")).unwrap();
    let tx = db.begin_write().unwrap();
    tx.open_table(TABLE).unwrap();
    tx.commit().unwrap();
    db
}

pub(crate) fn fill_redb(db: &redb::Database, n: u64, value: &[u8]) {
    for from in (0..n).step_by(10_000) {
        let mut tx = db.begin_write().unwrap();
        tx.set_durability(redb::Durability::None).unwrap();
        {
            let mut table = tx.open_table(TABLE).unwrap();
            for one in from..(from + 10_000).min(n) {
                table.insert(crate::rounds::key(one).as_slice(), value).unwrap();
            }
        }
        tx.commit().unwrap();
    }
}

pub(crate) fn put_redb(db: &redb::Database, key: &[u8], value: &[u8], synced: bool) {
    let mut tx = db.begin_write().unwrap();
    let level = if synced { redb::Durability::Immediate } else { redb::Durability::None };
    tx.set_durability(level).unwrap();
    tx.open_table(TABLE).unwrap().insert(key, value).unwrap();
    tx.commit().unwrap();
}
