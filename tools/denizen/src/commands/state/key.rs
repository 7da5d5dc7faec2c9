//! How keys are typed and shown: as text where they are text, else as `0x` and hexadecimal digits. Both ways read back as the same key.

use std::{borrow::Cow, fmt};

use denizen_wire::{from_hex, to_hex};

/// The key of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Key<'a>(Cow<'a, [u8]>);

impl<'a> Key<'a> {
    /// A key as it is typed.
    pub(super) fn parse(typed: &'a str) -> Key<'a> {
        match digits(typed) {
            Some(bytes) => Key(Cow::Owned(bytes)),
            None => Key(Cow::Borrowed(typed.as_bytes())),
        }
    }

    /// A key as it is stored.
    pub(super) fn of(bytes: &'a [u8]) -> Key<'a> {
        Key(Cow::Borrowed(bytes))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What `0x…` stands for.
fn digits(typed: &str) -> Option<Vec<u8>> {
    typed.strip_prefix("0x").filter(|digits| !digits.is_empty()).and_then(from_hex)
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.0) {
            // Text that would be taken for digits is shown as what it is taken for.
            Ok(text) if digits(text).is_none() => f.write_str(text),
            _ => write!(f, "0x{}", to_hex(&self.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Key;

    #[test]
    fn every_key_is_shown_so_that_it_can_be_typed() {
        for (bytes, shown) in [
            (&b"counter"[..], "counter"),
            ("häuser/1".as_bytes(), "häuser/1"),
            (&[0xff, 0, 1][..], "0xff0001"),
            (b"0xabcd", "0x307861626364"),
            (b"0xabc", "0xabc"),
            (b"0x", "0x"),
            (b"0xzz", "0xzz"),
        ] {
            assert_eq!(Key::of(bytes).to_string(), shown);
            assert_eq!(Key::parse(shown).bytes(), bytes);
        }
    }
}
