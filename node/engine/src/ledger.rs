//! What applying a part does: to the index, and to the counts of what is live in which segment. Commits, recovery and compaction all go
//! through here, so that they cannot disagree.

use crate::format::{Effect, PartKind, cost_in_log};
use crate::index::{Item, Tree};
use crate::tables::{TABLES, Table};

/// The indexes of all tables.
pub(crate) type Trees = [Tree; TABLES];

/// Counts of one segment.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Account {
    /// Bytes of parts that an index points to.
    pub(crate) live: u64,
    /// Bytes of parts that remove something; they may have to be kept as long as older segments are.
    pub(crate) tombstones: u64,
    /// Cells given out.
    pub(crate) cells: u32,
}

/// Counts of all segments, by slot.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    accounts: Vec<Account>,
    live: u64,
    /// Of these, bytes of remembered replies.
    replies: u64,
}

impl Ledger {
    /// Bytes of live parts in all segments: what the quota limits.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    /// Bytes of remembered replies among them.
    pub(crate) fn replies(&self) -> u64 {
        self.replies
    }

    pub(crate) fn account(&self, slot: u32) -> Account {
        self.accounts.get(slot as usize).copied().unwrap_or_default()
    }

    pub(crate) fn open(&mut self, slot: u32) {
        let slot = slot as usize;
        if self.accounts.len() <= slot {
            self.accounts.resize(slot + 1, Account::default());
        }
        self.accounts[slot] = Account::default();
    }

    pub(crate) fn next_cell(&mut self, slot: u32) -> u32 {
        let account = &mut self.accounts[slot as usize];
        account.cells += 1;
        account.cells - 1
    }

    fn set(&mut self, table: Table, key: &[u8], item: &Item) {
        let cost = cost_in_log(key.len(), item.len);
        self.accounts[item.slot as usize].live += cost;
        self.live += cost;
        if table == Table::Replies {
            self.replies += cost;
        }
    }

    fn unset(&mut self, table: Table, key: &[u8], item: &Item) {
        let cost = cost_in_log(key.len(), item.len);
        self.accounts[item.slot as usize].live -= cost;
        self.live -= cost;
        if table == Table::Replies {
            self.replies -= cost;
        }
    }

    /// Applies one part, stored in `slot`. `item` is what it sets, if it sets something. Returns what is dead now.
    pub(crate) fn apply(
        &mut self,
        trees: &mut Trees,
        slot: u32,
        kind: PartKind,
        key: &[u8],
        item: Item,
    ) -> Option<Item> {
        match kind.effect() {
            Effect::Set(table) => {
                self.set(table, key, &item);
                let old = trees[table.index()].insert(key, item);
                old.inspect(|old| self.unset(table, key, old))
            }
            Effect::Remove(table) => {
                self.accounts[slot as usize].tombstones += cost_in_log(key.len(), 0);
                let old = trees[table.index()].remove(key);
                old.inspect(|old| self.unset(table, key, old))
            }
            Effect::Log => None,
        }
    }
}
