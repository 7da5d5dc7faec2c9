//! Whose a state file is: written into it when it is made, and kept by every copy.

use denizen_sched::Epoch;
use denizen_state::Lineage;

/// The process that a file is made for, and the term that makes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Birth<'a> {
    pub(crate) app: &'a str,
    pub(crate) process: &'a str,
    pub(crate) epoch: Epoch,
}

impl Birth<'_> {
    /// Tells the state of this term's new process from every other state.
    pub(crate) fn lineage(self) -> Lineage {
        let mut lineage = [0; 16];
        let (first, second) = lineage.split_at_mut(8);
        first.copy_from_slice(&self.names());
        second.copy_from_slice(&self.epoch.get().to_le_bytes());
        Lineage(lineage)
    }

    /// Whether `lineage` is that of a file which this process made in its term `born` or a later one.
    pub(crate) fn made_since(self, born: Epoch, lineage: Lineage) -> bool {
        let (names, epoch) = lineage.0.split_at(8);
        let epoch = epoch.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        names == self.names() && (born.get()..=self.epoch.get()).contains(&epoch)
    }

    /// FNV-1a over the names.
    fn names(self) -> [u8; 8] {
        let bytes = self.app.bytes().chain([0]).chain(self.process.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        hash.to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_by_its_process_and_by_its_term() {
        let birth = |process, epoch| Birth { app: "a", process, epoch: Epoch::new(epoch) };
        let lineage = birth("p", 5).lineage();
        assert!(birth("p", 5).made_since(Epoch::new(5), lineage));
        assert!(birth("p", 9).made_since(Epoch::new(3), lineage));
        assert!(!birth("p", 9).made_since(Epoch::new(6), lineage), "a deleted namesake's");
        assert!(!birth("p", 4).made_since(Epoch::new(3), lineage), "a term that is not over yet");
        assert!(!birth("q", 5).made_since(Epoch::new(5), lineage));
    }
}
