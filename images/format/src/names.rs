//! The rule for names of applications, processes and functions: one rule, because each of them becomes a part
//! of a URL and the first two become file names.

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// Why a text cannot be a name. The messages quote at most 40 characters of it, escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("the name is empty; give 1 to 128 of A-Z a-z 0-9 . _ -")]
    Empty,
    /// More than [`MAX_NAME_BYTES`].
    #[error("the name is {bytes} bytes long ({start:?}...); at most 128 are allowed")]
    TooLong {
        /// How long it was.
        bytes: usize,
        /// How it began.
        start: String,
    },
    /// A leading `.` would hide the file or climb out of a directory; a leading `-` reads as an option.
    #[error("the name {name:?} begins with {first:?}; begin it with a letter, a digit or `_`")]
    BadStart {
        /// The name.
        name: String,
        /// Its first character.
        first: char,
    },
    /// A character outside the alphabet.
    #[error("the name {name:?} holds {found:?}; only A-Z a-z 0-9 . _ - are allowed")]
    BadCharacter {
        /// The name.
        name: String,
        /// The first character that is not allowed.
        found: char,
    },
}

/// Checks `name` against the rule: 1 to 128 bytes of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`.
///
/// # Errors
/// The first rule that is broken.
pub fn check(name: &str) -> Result<(), NameError> {
    let start = || name.chars().take(40).collect::<String>();
    let Some(first) = name.chars().next() else { return Err(NameError::Empty) };
    if name.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong { bytes: name.len(), start: start() });
    }
    if let Some(found) = name.chars().find(|c| !allowed(*c)) {
        return Err(NameError::BadCharacter { name: start(), found });
    }
    if matches!(first, '.' | '-') {
        return Err(NameError::BadStart { name: start(), first });
    }
    Ok(())
}

fn allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule() {
        for good in ["a", "A.b_c-9", "_x", "0", "a..b", &"x".repeat(128)] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(check(""), Err(NameError::Empty));
        assert!(matches!(check(&"x".repeat(129)), Err(NameError::TooLong { bytes: 129, .. })));
        assert!(matches!(check(&"x/".repeat(5000)), Err(NameError::TooLong { bytes: 10_000, .. })));
        for bad in [".", "..", ".hidden", "-rf"] {
            assert!(matches!(check(bad), Err(NameError::BadStart { .. })), "{bad}");
        }
        for bad in ["a/b", "../x", "a\0b", "a b", "a\nb", "é", "a%2f"] {
            assert!(matches!(check(bad), Err(NameError::BadCharacter { .. })), "{bad}");
        }
    }
}
