//! Whose state is: a number in the header of every segment, kept by every copy.

use denizen_engine::Lineage;
use denizen_sched::Epoch;

/// A process, told from every other and from its deleted namesakes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Whose {
    pub(crate) app: String,
    pub(crate) process: String,
    /// Its first term.
    pub(crate) born: Epoch,
}

impl Whose {
    /// What its segments say.
    pub(crate) fn lineage(&self) -> Lineage {
        let mut lineage = [0; 16];
        let (first, second) = lineage.split_at_mut(8);
        first.copy_from_slice(&self.names());
        second.copy_from_slice(&self.born.get().to_le_bytes());
        Lineage(lineage)
    }

    /// FNV-1a over the names.
    fn names(&self) -> [u8; 8] {
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
    fn state_is_told_by_its_process_and_by_its_first_term() {
        let lineage = |app: &str, process: &str, born| {
            Whose { app: app.to_owned(), process: process.to_owned(), born: Epoch::new(born) }.lineage()
        };
        assert_eq!(lineage("a", "p", 5), lineage("a", "p", 5));
        assert_ne!(lineage("a", "p", 5), lineage("a", "p", 6), "a deleted namesake's");
        assert_ne!(lineage("a", "p", 5), lineage("a", "q", 5));
        assert_ne!(lineage("ap", "p", 5), lineage("a", "pp", 5));
    }
}
