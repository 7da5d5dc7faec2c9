//! The two system-call filters.
//!
//! **Filter 1** goes on before the plugin is loaded, because its constructors are tenant code. **Filter 2** goes on every
//! thread after its init. The plugin shares the runner's address space, so a malicious constructor can keep filter 2
//! from being installed: filter 1 is the boundary, filter 2 is hygiene. What lies between them — reading the sandbox's
//! own image, mapping it executable — is pinned by a test in [`rules`].

mod names;
mod program;
mod rules;

pub(crate) use names::name_of;
pub(crate) use rules::{Filter, Stage};

use std::io;
use std::sync::OnceLock;

use libc::sock_filter;

use crate::FileAccess;

/// The compiled filters, one for each that there is.
static PROGRAMS: OnceLock<Vec<(Filter, Vec<sock_filter>)>> = OnceLock::new();

/// Every filter that there is, each with and without a ring. While loading, what is granted makes a difference only where something
/// can be written: filter 2 cannot give back what filter 1 took.
const FILTERS: [(Stage, FileAccess); 5] = [
    (Stage::Loading, FileAccess::None),
    (Stage::Loading, FileAccess::State),
    (Stage::Sealed, FileAccess::None),
    (Stage::Sealed, FileAccess::Image),
    (Stage::Sealed, FileAccess::State),
];

/// Compiles the filters, so that forks find them ready.
pub(crate) fn prepare() -> &'static [(Filter, Vec<sock_filter>)] {
    PROGRAMS.get_or_init(|| {
        let compile = |filter| (filter, program::compile(rules::rules(filter), names::highest()));
        let with = |ring| FILTERS.map(|(stage, files)| compile(Filter { stage, files, ring }));
        [with(false), with(true)].into_iter().flatten().collect()
    })
}

/// Puts a filter on every thread. It is never taken off.
pub(crate) fn install(filter: Filter) -> io::Result<()> {
    let files = match (filter.stage, filter.files) {
        (Stage::Loading, FileAccess::Image) => FileAccess::None,
        (_, files) => files,
    };
    let wanted = Filter { files, ..filter };
    let found = prepare().iter().find(|(one, _)| *one == wanted);
    let (_, program) = found.ok_or(io::ErrorKind::NotFound)?;
    crate::sys::seccomp_install(program)
}

/// Whether this kernel has what the filters need.
pub(crate) fn available() -> bool {
    [libc::SECCOMP_RET_TRAP, libc::SECCOMP_RET_ERRNO, libc::SECCOMP_RET_KILL_PROCESS]
        .into_iter()
        .all(crate::sys::seccomp_has)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel keeps the text of a filter for each sandbox, in a piece of memory whose size is a power of two.
    #[test]
    fn no_filter_takes_more_than_a_page_of_each_sandbox() {
        for (filter, program) in prepare() {
            let bytes = size_of_val(program.as_slice());
            eprintln!("{filter:?} {bytes}");
            assert!(bytes <= 4096, "{filter:?} takes {bytes} bytes");
        }
    }
}
