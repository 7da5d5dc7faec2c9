//! What a sandbox may use, as the manifest of its image sets it.

use serde::{Deserialize, Serialize};

/// Ceilings of one sandbox. The agent applies them to the control group ([`crate::Sandbox::limit`]) and the sandbox
/// applies them to itself ([`crate::Waiting::admit`]), so that they hold with and without control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory for the function, in bytes. A fixed base for the runner itself is added to it.
    pub memory_bytes: u64,
    /// Threads, the runner's own included. At least 1.
    pub threads: u32,
    /// Hundredths of one core: 150 is one and a half. `None`: no ceiling. Needs a control group.
    pub cpu_percent: Option<u32>,
}

/// Which files sealed tenant code may open. The image is always readable while the plugin loads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileAccess {
    /// None: every open fails with `EACCES`.
    #[default]
    None,
    /// The files of the image, for reading.
    Image,
    /// The files of the image, for reading, and a file system of its own at `/state`, for everything but links and
    /// devices. There already while the plugin loads.
    State,
}

/// How many files and directories `/state` holds at most. Each takes kernel memory, whatever its size.
pub const MOST_STATE_FILES: u32 = 16 * 1024;

/// What a waiting sandbox must know to take in its image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// The image's digest, 64 lower-case hexadecimal digits: a directory of that name in the image store.
    pub image: String,
    /// Ceilings to apply from inside.
    pub limits: Limits,
    /// What the sealed sandbox may open.
    pub files: FileAccess,
    /// Size of the file system at `/state`, in bytes; rounded up to whole pages, one at least. It is part of the memory that the control
    /// group counts. Without meaning but for [`FileAccess::State`].
    pub files_bytes: u64,
    /// Address space for mapped files, in bytes, beside the memory limit: every segment that is mapped at one time, counted
    /// once per map.
    pub mapped_bytes: u64,
    /// No file can ever be made longer, in bytes: the largest segment. (A file in `/state` may be as long as the file system.)
    pub file_bytes: u64,
    /// At first no file can be made longer, in bytes: the largest segment that it has to write to. [`crate::Life::let_files_reach`] raises
    /// it, as far as `file_bytes`.
    pub first_file_bytes: u64,
    /// Segments held at one time. Each takes two descriptors.
    pub segments: u32,
    /// Whether the sandbox may use its ring (it may have none all the same). If not, the ring is closed, unless it was taken out before,
    /// and the filters trap every use of one.
    pub ring: bool,
}

/// Whether `text` is an image digest: 64 lower-case hexadecimal digits, and so a harmless path component.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::is_digest;

    #[test]
    fn only_digests_are_digests() {
        assert!(is_digest(&"0a".repeat(32)));
        for wrong in ["", "..", &"0A".repeat(32), &"0a".repeat(33), &"../".repeat(21), &"g0".repeat(32)] {
            assert!(!is_digest(wrong), "{wrong}");
        }
    }
}
