//! Sizes and times as people read and type them.

use std::time::Duration;

/// `500ms`, `30s`, `5m`, `1h`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("a time looks like 500ms, 30s, 5m or 1h".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a time begins with a whole number: 30s".to_owned())?;
    match number.checked_mul(unit_ms) {
        Some(0) => Err("a time of nothing leaves no time".to_owned()),
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err("that is longer than can be counted".to_owned()),
    }
}

/// Calls per second: above nothing, at most ten million.
pub(crate) fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e7 => Ok(rate),
        _ => Err("a rate is a number of calls per second: 0.5, 1000".to_owned()),
    }
}

/// Calls in flight on a connection: as many as a node may ever allow.
pub(crate) fn parse_depth(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(depth @ 1..=4096) => Ok(depth),
        _ => Err("a depth is a number from 1 to 4096".to_owned()),
    }
}

/// An idempotency key, as a node takes it.
pub(crate) fn parse_key(text: &str) -> Result<String, String> {
    let fits = (1..=128).contains(&text.len()) && text.bytes().all(|byte| (0x20..0x7F).contains(&byte));
    if fits { Ok(text.to_owned()) } else { Err("a key has 1 to 128 bytes of visible ASCII".to_owned()) }
}

/// `0 B`, `512 B`, `1.5 KiB`, `12 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut whole = count;
    let mut tenths = 0;
    let mut unit = "B";
    for next in UNITS {
        if whole < 1024 {
            break;
        }
        tenths = (whole % 1024) * 10 / 1024;
        whole /= 1024;
        unit = next;
    }
    if whole < 10 && tenths > 0 { format!("{whole}.{tenths} {unit}") } else { format!("{whole} {unit}") }
}

/// `85 µs`, `1.4 ms`, `12 ms`, `2.5 s`, `3 min`, `2 h`, `4 d`.
pub(crate) fn duration(time: Duration) -> String {
    let us = time.as_micros();
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        10_000..1_000_000 => format!("{} ms", us / 1_000),
        1_000_000..60_000_000 => match us % 1_000_000 / 100_000 {
            0 => format!("{} s", us / 1_000_000),
            tenths => format!("{}.{tenths} s", us / 1_000_000),
        },
        60_000_000..3_600_000_000 => format!("{} min", us / 60_000_000),
        3_600_000_000..86_400_000_000 => format!("{} h", us / 3_600_000_000),
        _ => format!("{} d", us / 86_400_000_000),
    }
}

/// The first twelve digits of an image id, which is how people name one.
pub(crate) fn short_id(image: &str) -> &str {
    image.get(..12).unwrap_or(image)
}

/// `1 process`, `3 processes`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bytes, duration, parse_duration, parse_key};

    #[test]
    fn times_are_read() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        for bad in [
            "",
            "5",
            "ms",
            "0s",
            "1.5s",
            "-3s",
            "99999999999999999999s",
            "18446744073709551615h",
            "3 s",
            "٣s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_what_a_header_can_carry() {
        for (key, fits) in [("order 7", true), ("", false), ("a\nb", false), ("caf\u{e9}", false)] {
            assert_eq!(parse_key(key).is_ok(), fits, "{key:?}");
        }
        assert!(parse_key(&"k".repeat(128)).is_ok() && parse_key(&"k".repeat(129)).is_err());
    }

    #[test]
    fn figures_are_short() {
        for (count, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (12 << 20, "12 MiB"), (10 << 30, "10 GiB")]
        {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(u64::MAX), "16383 PiB");
        for (us, text) in [
            (85, "85 µs"),
            (1_450, "1.4 ms"),
            (12_000, "12 ms"),
            (2_500_000, "2.5 s"),
            (180_000_000, "3 min"),
        ] {
            assert_eq!(duration(Duration::from_micros(us)), text);
        }
    }
}
