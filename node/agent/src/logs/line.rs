//! One line of a log.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use denizen_protocol::TraceParent;
use serde::Serialize;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stream {
    /// What was printed, on standard output or error: both come on one socket.
    Output,
    /// The function's log call.
    Log,
    /// The agent.
    Host,
}

/// Whose line it is: a call's.
#[derive(Debug, Clone)]
pub(crate) struct Speaker {
    pub(crate) invocation: Arc<str>,
    /// The trace that the call belongs to.
    pub(crate) trace: Option<TraceParent>,
}

/// One line, as the interface writes it.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// RFC 3339, UTC, milliseconds.
    pub(crate) at: String,
    pub(crate) app: Box<str>,
    pub(crate) process: Box<str>,
    #[serde(serialize_with = "text_or_null")]
    pub(crate) invocation: Option<Arc<str>>,
    /// The trace that the invocation belongs to, as the HTTP header has it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "in_words_or_null")]
    pub(crate) traceparent: Option<TraceParent>,
    pub(crate) stream: Stream,
    pub(crate) text: String,
    /// Grows from line to line over all processes of the node.
    #[serde(skip)]
    pub(crate) sequence: u64,
}

/// What the agent says when a sandbox begins to serve.
pub(crate) const STARTED: &str = "started";

#[expect(clippy::ref_option, reason = "serde hands the field over like this")]
fn text_or_null<S: serde::Serializer>(text: &Option<Arc<str>>, to: S) -> Result<S::Ok, S::Error> {
    text.as_deref().serialize(to)
}

#[expect(clippy::ref_option, reason = "serde hands the field over like this")]
fn in_words_or_null<S: serde::Serializer>(trace: &Option<TraceParent>, to: S) -> Result<S::Ok, S::Error> {
    trace.map(|trace| trace.to_string()).serialize(to)
}

impl Line {
    pub(crate) fn new(
        sequence: u64,
        app: &str,
        process: &str,
        stream: Stream,
        speaker: Option<Speaker>,
        text: String,
    ) -> Line {
        let (invocation, traceparent) =
            speaker.map_or((None, None), |speaker| (Some(speaker.invocation), speaker.trace));
        Line {
            at: timestamp(SystemTime::now()),
            app: app.into(),
            process: process.into(),
            invocation,
            traceparent,
            stream,
            text,
            sequence,
        }
    }

    /// What it takes in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Line>() + self.at.len() + self.app.len() + self.process.len() + self.text.len()
    }

    /// Whether an ownership term began here.
    pub(crate) fn begins_term(&self) -> bool {
        self.stream == Stream::Host && self.text.starts_with(STARTED)
    }
}

/// RFC 3339 in UTC with milliseconds.
fn timestamp(time: SystemTime) -> String {
    // A clock before 1970 is a clock that was never set.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

/// Year, month and day of a day since 1970-01-01, in the Gregorian calendar. Years begin in March, so that a leap day is a year's last.
const fn date(days_since_1970: u64) -> (u64, u64, u64) {
    // Days from 0000-03-01 to 1970-01-01.
    let days = days_since_1970 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (1_795_000_000_001, "2026-11-18T11:06:40.001Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_millis(millis)), text);
        }
    }
}
