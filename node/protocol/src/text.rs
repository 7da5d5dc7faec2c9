//! The rules for texts in frames and tokens. They end in HTTP headers, file names, log lines and terminals, so each is checked where it
//! comes in, at both ends, and refused rather than cut: half a name names something else.

use crate::limits::{MAX_NAME, MAX_PROBLEM_TYPE};

/// What is wrong with a text.
pub(crate) type Wrong = &'static str;

/// 1 to 128 bytes of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`: the rule for applications, processes and functions.
pub(crate) fn name(bytes: &[u8]) -> Result<&str, Wrong> {
    let text = sized(bytes, MAX_NAME)?;
    if matches!(bytes.first(), Some(b'.' | b'-')) {
        return Err("a name does not begin with . or -");
    }
    if !bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        return Err("a name consists of A-Z a-z 0-9 . _ -");
    }
    Ok(text)
}

/// 1 to `max` bytes of visible ASCII and blanks: what fits into an HTTP header and onto one log line.
pub(crate) fn visible(bytes: &[u8], max: usize) -> Result<&str, Wrong> {
    let text = sized(bytes, max)?;
    // A line break would forge the next header.
    if bytes.iter().all(|byte| (0x20..0x7F).contains(byte)) {
        Ok(text)
    } else {
        Err("it is not visible ASCII")
    }
}

/// 1 to `max` bytes of UTF-8 without control characters, line feed and tab excepted.
pub(crate) fn prose(bytes: &[u8], max: usize) -> Result<&str, Wrong> {
    let text = sized(bytes, max)?;
    let controls = text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'));
    if controls { Err("it has control characters") } else { Ok(text) }
}

/// 1 to 64 bytes of `a-z 0-9 -`: the last part of a problem's URN.
pub(crate) fn problem_type(bytes: &[u8]) -> Result<&str, Wrong> {
    let text = sized(bytes, MAX_PROBLEM_TYPE)?;
    let fits = bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-');
    if fits { Ok(text) } else { Err("a problem type consists of a-z 0-9 -") }
}

fn sized(bytes: &[u8], max: usize) -> Result<&str, Wrong> {
    if bytes.is_empty() {
        return Err("it is empty: leave it out instead");
    }
    if bytes.len() > max {
        return Err("it is over its limit");
    }
    std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

/// Makes prose of any text: control characters become blanks, and what is over `max` bytes goes, at a character.
pub(crate) fn tamed(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(if c.is_control() && !matches!(c, '\n' | '\t') { ' ' } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_obey_the_rule_of_the_whole_house(text in "[a-zA-Z0-9._\\-é/ ]{0,140}") {
            prop_assert_eq!(name(text.as_bytes()).is_ok(), denizen_image::names::check(&text).is_ok(), "{:?}", text);
        }

        #[test]
        fn tamed_text_is_prose(text in any::<String>(), max in 1..200_usize) {
            let tame = tamed(&text, max);
            prop_assert!(tame.is_empty() || prose(tame.as_bytes(), max).is_ok());
        }
    }

    #[test]
    fn a_text_that_could_forge_a_line_is_refused() {
        for bad in ["a\r\nb", "a\0b", "a\nb", "caf\u{e9}", "\x7f", ""] {
            assert!(visible(bad.as_bytes(), 100).is_err(), "{bad:?}");
        }
        assert!(visible(b"text/plain; charset=utf-8", 100).is_ok());
        assert!(prose(b"two\nlines", 100).is_ok());
        assert!(prose(b"\x1b[2J", 100).is_err(), "an escape sequence would reach a terminal");
        assert!(prose(&[0xC3, 0x28], 100).is_err());
    }

    #[test]
    fn limits_are_exact() {
        assert!(name(&[b'a'; MAX_NAME]).is_ok());
        assert!(name(&[b'a'; MAX_NAME + 1]).is_err());
        assert!(problem_type(&[b'a'; MAX_PROBLEM_TYPE]).is_ok());
        assert!(problem_type(&[b'a'; MAX_PROBLEM_TYPE + 1]).is_err());
        assert!(problem_type(b"Bad").is_err());
        assert_eq!(tamed("aé", 2), "a");
    }
}
