//! What can be wrong with a layout, an archive or a JSON value, and where.

use std::fmt;

/// Where in a value something is, as in `.orders[3].price`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Path(String);

impl Path {
    /// Puts a step in front.
    fn under(&mut self, step: &str) {
        self.0.insert_str(0, step);
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("the value") } else { f.write_str(&self.0) }
    }
}

/// Why a text is no layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// Something else was expected.
    #[error(
        "the layout is not understood at byte {at}: {expected} is expected there; was the plugin made with another SDK?"
    )]
    Syntax {
        /// Where, in bytes.
        at: usize,
        /// What should be there.
        expected: &'static str,
    },
    /// It is too long.
    #[error("the layout has {len} bytes, {} are allowed", crate::MAX_LAYOUT_LEN)]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Types are nested too deeply, or too many.
    #[error("the layout is nested deeper than {} types", crate::MAX_DEPTH)]
    TooDeep,
    /// A type holds itself without a pointer in between, or is larger than any record.
    #[error("the type{} has no size: it holds itself, or is larger than any record", called(name))]
    NoSize {
        /// Its name, if it has one.
        name: String,
    },
}

fn called(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" `{name}`") }
}

/// Why bytes are no archive of the type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{path} cannot be read: {why}; the record is damaged, or was written as another type")]
pub struct ArchiveError {
    /// Where in the value.
    pub path: Path,
    /// What is wrong.
    pub why: &'static str,
}

impl ArchiveError {
    pub(crate) fn new(why: &'static str) -> ArchiveError {
        ArchiveError { path: Path::default(), why }
    }

    pub(crate) fn under(mut self, step: impl AsRef<str>) -> ArchiveError {
        self.path.under(step.as_ref());
        self
    }
}

/// Why a JSON value is no value of the type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{path}: {why}")]
pub struct JsonError {
    /// Where in the value.
    pub path: Path,
    /// What is wrong, and what would be right.
    pub why: String,
}

impl JsonError {
    pub(crate) fn new(why: impl Into<String>) -> JsonError {
        JsonError { path: Path::default(), why: why.into() }
    }

    pub(crate) fn under(mut self, step: impl AsRef<str>) -> JsonError {
        self.path.under(step.as_ref());
        self
    }
}
