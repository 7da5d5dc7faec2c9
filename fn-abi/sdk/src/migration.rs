//! From the layout that a record was written with to the one that a plugin reads it as.
//!
//! A `#[migrate]` function is an edge between two fingerprints. A record is only ever read as the type with
//! its own fingerprint; if that is another than the one that is wanted, and the edges lead from one to the
//! other in exactly one way, the functions on that way are run one after the other. Two ways are refused when
//! the plugin starts: which of them is right would be luck.

use crate::error::{Error, ErrorKind, Result};
use crate::input::Archived;
use crate::layout::StateType;
use crate::record::{archive, restore, show};
use crate::submitted::{List, Submitted};
use rkyv::rancor;
use rkyv::util::AlignedVec;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// A function marked with `#[migrate]`.
#[doc(hidden)]
#[derive(Debug)]
pub struct Migration {
    name: &'static str,
    from: Side,
    to: Side,
    run: fn(&[u8]) -> Result<AlignedVec>,
}

#[derive(Debug)]
struct Side {
    fingerprint: fn() -> u64,
    layout: fn() -> String,
}

impl Side {
    const fn of<T: StateType>() -> Side {
        Side { fingerprint: T::fingerprint, layout: T::layout }
    }
}

impl Migration {
    #[must_use]
    pub const fn new<Old: StateType, New: StateType>(
        name: &'static str,
        run: fn(&[u8]) -> Result<AlignedVec>,
    ) -> Migration {
        Migration { name, from: Side::of::<Old>(), to: Side::of::<New>(), run }
    }
}

impl Submitted for Migration {
    fn list() -> &'static List<Migration> {
        static MIGRATIONS: List<Migration> = List::new();
        &MIGRATIONS
    }
}

/// Runs a migration that takes the old record as a value.
#[doc(hidden)]
pub fn from_value<Old: StateType, New: StateType, E: Into<Error>>(
    bytes: &[u8],
    migrate: impl FnOnce(Old) -> Result<New, E>,
) -> Result<AlignedVec> {
    archive(&migrate(restore::<Old>(access::<Old>(bytes)?)?).map_err(Into::into)?)
}

/// Runs a migration that reads the old record in place.
#[doc(hidden)]
pub fn from_archive<Old: StateType, New: StateType, E: Into<Error>>(
    bytes: &[u8],
    migrate: impl FnOnce(&Archived<Old>) -> Result<New, E>,
) -> Result<AlignedVec> {
    archive(&migrate(Archived::wrap(access::<Old>(bytes)?)).map_err(Into::into)?)
}

/// Old records are validated each time: each is migrated once, and the check is small beside the copy.
fn access<Old: StateType>(bytes: &[u8]) -> Result<&Old::Archived> {
    rkyv::access::<Old::Archived, rancor::Error>(bytes)
        .map_err(|error| Error::new(ErrorKind::Corrupt, format_args!("it is damaged: {error}")))
}

/// Which migration comes next, on the way from a layout to another.
#[derive(Debug, Default)]
pub(crate) struct Ways {
    next: BTreeMap<(u64, u64), &'static Migration>,
}

impl Ways {
    /// The ways that this plugin knows. [`check`](Ways::check) has been called before.
    pub(crate) fn known() -> &'static Ways {
        static NONE: Ways = Ways { next: BTreeMap::new() };
        Ways::all().as_ref().unwrap_or(&NONE)
    }

    /// Fails if the plugin's migrations contradict each other.
    pub(crate) fn check() -> Result<&'static Ways> {
        Ways::all().as_ref().map_err(Clone::clone)
    }

    fn all() -> &'static Result<Ways> {
        static ALL: OnceLock<Result<Ways>> = OnceLock::new();
        ALL.get_or_init(|| Ways::of(&Migration::list().iter().collect::<Vec<_>>()))
    }

    fn of(migrations: &[&'static Migration]) -> Result<Ways> {
        let mut ways = Ways::default();
        for target in migrations {
            ways.walk_back_from((target.to.fingerprint)(), migrations)?;
        }
        Ok(ways)
    }

    /// Notes every layout from which migrations lead to `to`.
    fn walk_back_from(&mut self, to: u64, migrations: &[&'static Migration]) -> Result<()> {
        let mut reached = vec![to];
        let mut at = 0;
        while let Some(&here) = reached.get(at) {
            for migration in migrations.iter().filter(|one| (one.to.fingerprint)() == here) {
                let from = (migration.from.fingerprint)();
                if reached.contains(&from) {
                    return Err(contradiction(migration, from == to));
                }
                reached.push(from);
                self.next.insert((from, to), migration);
            }
            at += 1;
        }
        Ok(())
    }

    /// Whether a record of the layout `from` can be read as `to`.
    pub(crate) fn lead(&self, from: u64, to: u64) -> bool {
        self.next.contains_key(&(from, to))
    }

    /// The fingerprints from which migrations lead to `to`, in their order.
    pub(crate) fn sources(&self, to: u64) -> Vec<u64> {
        self.next.keys().filter(|way| way.1 == to).map(|way| way.0).collect()
    }

    /// The bytes of a record under `key` as they would be, had it been written with the layout `to`.
    ///
    /// # Errors
    /// [`ErrorKind::TypeChanged`] with what the migration said; [`ErrorKind::Corrupt`].
    pub(crate) fn run(&self, key: &[u8], bytes: &[u8], from: u64, to: u64) -> Result<AlignedVec> {
        let mut migrated: Option<AlignedVec> = None;
        let mut at = from;
        while at != to {
            let Some(migration) = self.next.get(&(at, to)) else {
                return Err(Error::new(ErrorKind::Internal, "there is no migration from here"));
            };
            let old = migrated.as_deref().unwrap_or(bytes);
            migrated = Some((migration.run)(old).map_err(|error| migration.failed(key, &error))?);
            at = (migration.to.fingerprint)();
        }
        Ok(migrated.unwrap_or_default())
    }
}

impl Migration {
    fn failed(&self, key: &[u8], error: &Error) -> Error {
        let (key, name, layout) = (show(key), self.name, (self.from.layout)());
        let kind = match error.kind() {
            ErrorKind::Corrupt => ErrorKind::Corrupt,
            _ => ErrorKind::TypeChanged,
        };
        let message = error.message();
        Error::new(
            kind,
            format_args!("the record `{key}`, a `{layout}`, cannot be migrated by `{name}`: {message}"),
        )
    }
}

fn contradiction(migration: &Migration, circle: bool) -> Error {
    let (name, from, to) = (migration.name, (migration.from.layout)(), (migration.to.layout)());
    let what = if circle {
        "leads back to where it begins; was the old type changed along with the new one?"
    } else {
        "is not the only way between two layouts; leave one of the #[migrate] functions out"
    };
    Error::new(ErrorKind::Failed, format_args!("the migration `{name}` from `{from}` to `{to}` {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The migrations of this program, as `from → to`. Each adds a byte, so that the way shows.
    macro_rules! migrations {
        ($($from:literal => $to:literal),*) => {{
            static ALL: &[Migration] = &[$(Migration {
                name: concat!($from, " to ", $to),
                from: Side { fingerprint: || $from, layout: || concat!("V", $from).to_owned() },
                to: Side { fingerprint: || $to, layout: || concat!("V", $to).to_owned() },
                run: |old| {
                    let mut new = AlignedVec::new();
                    new.extend_from_slice(old);
                    new.push($to);
                    Ok(new)
                },
            }),*];
            Ways::of(&ALL.iter().collect::<Vec<_>>())
        }};
    }

    #[test]
    fn migrations_chain() {
        let ways = migrations!(3 => 4, 1 => 2, 2 => 3, 9 => 4).unwrap();
        assert_eq!(ways.sources(4), [1, 2, 3, 9]);
        assert_eq!((ways.sources(2), ways.sources(1)), (vec![1], vec![]));
        assert!(ways.lead(1, 3) && !ways.lead(3, 1) && !ways.lead(9, 3) && !ways.lead(4, 4));
        assert_eq!(&ways.run(b"key", &[1], 1, 4).unwrap()[..], [1, 2, 3, 4]);
        assert_eq!(&ways.run(b"key", &[9], 9, 4).unwrap()[..], [9, 4]);
        assert_eq!(ways.run(b"key", &[4], 4, 1).unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn one_layout_may_lead_to_several() {
        let ways = migrations!(1 => 2, 1 => 3, 3 => 4).unwrap();
        assert_eq!(&ways.run(b"key", &[1], 1, 4).unwrap()[..], [1, 3, 4]);
        assert_eq!(&ways.run(b"key", &[1], 1, 2).unwrap()[..], [1, 2]);
    }

    #[test]
    fn two_ways_and_circles_are_refused() {
        let refused = |ways: Result<Ways>| ways.unwrap_err().message().to_owned();
        assert!(refused(migrations!(1 => 2, 2 => 3, 1 => 3)).contains("not the only way"));
        assert!(refused(migrations!(1 => 2, 1 => 2)).contains("not the only way"));
        assert!(refused(migrations!(1 => 2, 2 => 4, 1 => 3, 3 => 4)).contains("not the only way"));
        assert!(refused(migrations!(1 => 2, 2 => 1)).contains("leads back"));
        let itself = refused(migrations!(1 => 1));
        assert_eq!(
            itself,
            "the migration `1 to 1` from `V1` to `V1` leads back to where it begins; was the old type changed along with \
             the new one?"
        );
    }
}
