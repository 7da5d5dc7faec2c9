//! Sizes and durations as people write them, always with a unit: `"64MiB"`, `"500ms"`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteSize(u64);

/// Why a text is not a size or a duration; the message says how to write one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(pub(super) String);

const BYTE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const TIME_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl ByteSize {
    /// `bytes` bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// `mib` times 1,048,576 bytes.
    pub const fn mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// As a number.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Reads `"64MiB"`: a whole number and one of `B KiB MiB GiB TiB`.
    ///
    /// # Errors
    /// [`UnitError`] for another unit, none, a fraction, or more than 2^64 bytes.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split(text).ok_or_else(|| size_error(text, ""))?;
        let hint = if unit.is_empty() {
            "; give a unit"
        } else if unit.to_ascii_lowercase().ends_with(['b', 'k', 'm', 'g', 't']) {
            "; units are binary and spelled B, KiB, MiB, GiB, TiB"
        } else {
            ""
        };
        let scale = scale(&BYTE_UNITS, unit).ok_or_else(|| size_error(text, hint))?;
        number.checked_mul(scale).map(Self).ok_or_else(|| size_error(text, "; this is more than 2^64 bytes"))
    }
}

/// Reads `"30s"`: a whole number and one of `ms s m h d`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error = |hint: &str| {
        UnitError(format!("{text:?} is not a duration{hint}; write it like \"30s\", \"500ms\" or \"5m\""))
    };
    let (number, unit) = split(text).ok_or_else(|| error(""))?;
    let scale =
        scale(&TIME_UNITS, unit).ok_or_else(|| error(if unit.is_empty() { "; give a unit" } else { "" }))?;
    let millis = number.checked_mul(scale).ok_or_else(|| error("; it is too long"))?;
    Ok(Duration::from_millis(millis))
}

fn size_error(text: &str, hint: &str) -> UnitError {
    UnitError(format!("{text:?} is not a size{hint}; write it like \"64MiB\" or \"512KiB\""))
}

/// Digits, optional spaces, the rest. `None` where it does not begin with a digit or the number is over 64
/// bits.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..digits].parse().ok()?;
    Some((number, text[digits..].trim_start_matches(' ')))
}

fn scale(units: &[(&str, u64)], unit: &str) -> Option<u64> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, scale)| *scale)
}

/// The largest unit that divides it: what was written, or a shorter form of it.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |scale: u64| self.0 >= scale && self.0.is_multiple_of(scale);
        let (unit, scale) = BYTE_UNITS.into_iter().find(|(_, scale)| fits(*scale)).unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / scale)
    }
}

/// As [`ByteSize`]'s `Display`, for durations of whole milliseconds.
pub(super) fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    let fits = |scale: u64| millis >= u128::from(scale) && millis.is_multiple_of(u128::from(scale));
    let (unit, scale) = TIME_UNITS.into_iter().find(|(_, scale)| fits(*scale)).unwrap_or(("ms", 1));
    format!("{}{unit}", millis / u128::from(scale))
}

/// A [`Duration`] as a whole number of milliseconds in JSON.
pub(super) mod millis {
    use super::{Deserialize, Duration};
    use serde::{Deserializer, Serializer};

    pub(in crate::manifest) fn serialize<S: Serializer>(
        duration: &Duration,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(in crate::manifest) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

/// The same where it may be absent.
pub(super) mod optional_millis {
    use super::{Deserialize, Duration};
    use serde::{Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde calls it with a reference to the field")]
    pub(in crate::manifest) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::millis::serialize(duration, to),
            None => to.serialize_none(),
        }
    }

    pub(in crate::manifest) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}
